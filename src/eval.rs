//! `convoy eval`: parses the command line, measures, and prints the result.

use std::error::Error;
use std::path::PathBuf;

use convoy_common::address::Address;
use convoy_common::batch::THREADS_MAX;
use convoy_common::text::printable;
use convoy_coordinator::evaluate::Views;
use convoy_coordinator::job::defaults;
use convoy_coordinator::links::Transport;
use convoy_coordinator::measure::{Measurement, Measuring, measure};
use convoy_coordinator::metrics::Metrics;
use convoy_coordinator::observe::{Event, Observer};
use convoy_coordinator::running::{Rehearsal, Running};
use convoy_coordinator::trace::Sampling;
use convoy_dataset::{AskedData, AskedReading, DataSource, Part};
use convoy_net::secrets::Secrets;
use convoy_net::tls::Role;
use convoy_report::run::classes::{Classes, TOP};
use convoy_worker::Isa;
use serde::Serialize;

use crate::console::{Console, connected};
use crate::credentials::Credentials;
use crate::log::Log;
use crate::numbers::{AT_LEAST_1, share_or_all, whole};
use crate::settings::DataArguments;
use crate::sockets::SocketFile;
use crate::table::aligned;
use crate::{Outcome, output, settings, signals};

/// The most frequent confusions that are listed.
const CONFUSIONS_SHOWN: usize = 5;

/// The command line of `convoy eval`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a checkpoint, folder of a run (its newest sound checkpoint is used), or a safetensors file
    path: PathBuf,
    /// Preset (alexnet-fashion, alexnet-fashion-dense, alexnet-cifar, alexnet, alexnet-torchvision) or path of a model file; required for a safetensors file outside a
    /// checkpoint
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// Test images: auto, a folder as for convoy train, bundled, or synthetic. auto uses Fashion-MNIST if it is on this machine. If not, auto downloads it,
    /// except with CONVOY_OFFLINE=1. If that is not possible, auto uses bundled. bundled is a part of Fashion-MNIST that comes with the program.
    /// synthetic is noise, for measuring speed [default: the data of the checkpoint, or auto for a safetensors file outside a checkpoint]
    #[arg(long, value_name = "auto|DIR|bundled|synthetic")]
    data: Option<DataSource>,
    /// Share of the image files that are for tests, if --data has no test images of its own. 1 measures all of them
    /// [default: that of the checkpoint, or 0.1]
    #[arg(long, value_name = "SHARE", value_parser = share_or_all)]
    test_share: Option<f64>,
    #[command(flatten)]
    resources: DataArguments,
    /// Images to measure: test, train (those that the job trained on), or holdout (those that it held out)
    #[arg(long, value_name = "test|train|holdout", default_value = "test")]
    part: Part,
    /// Average the class probabilities of ten views of each image: the corners and the centre of the scaled image, and their mirror images. The
    /// model's input must have a resize that is larger than its shorter side
    #[arg(long)]
    ten_crop: bool,
    /// Worker processes. With more workers than towers, several workers hold the same tower, and each computes some of the images. At most the number
    /// of towers times the number of test images [default: one per tower]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    workers: Option<usize>,
    /// Compute threads of each worker that this command starts [default: the machine's cores divided by the workers]
    #[arg(long, value_name = "N", conflicts_with = "listen", value_parser = whole::<usize>(1..=THREADS_MAX as u64))]
    threads: Option<usize>,
    /// Instruction set of the workers that this command starts: scalar, avx2, avx512 or neon. It does not change the result
    /// [default: the best that the machine has]
    #[arg(long, value_name = "NAME", conflicts_with = "listen")]
    isa: Option<Isa>,
    /// Address on which to wait for workers, instead of starting them: HOST:PORT, or unix:PATH if all workers are on this machine
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<Address>,
    #[command(flatten)]
    credentials: Credentials,
    /// Write all logits to this safetensors file, as one tensor "logits" of shape (images, classes). If the file exists, it is replaced
    /// only if it holds logits; otherwise the command fails
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// Write a list of the wrongly classified images to this file: the place of each image in the set, its label, the predicted class, and the
    /// image's file if it has one of its own. If the file exists, it is replaced only if it holds such a list; otherwise the command fails
    #[arg(long, value_name = "FILE")]
    wrong: Option<PathBuf>,
    /// Also print the accuracy of each class, and the most frequent confusions. With --json, the whole confusion matrix
    #[arg(long)]
    by_class: bool,
    /// Exit when standard input closes, as if killed. For commands that another process starts
    #[arg(long, hide = true)]
    lifeline: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments, log: &Log) -> Result<Outcome, Box<dyn Error>> {
    if arguments.lifeline {
        signals::end_with_input()?;
    }
    let reading = AskedReading {
        test_share: arguments.test_share,
        format: arguments.resources.format(),
        ..AskedReading::default()
    };
    let secrets = arguments.credentials.secrets(Role::Coordinator, "--listen", &arguments.listen)?;
    let measuring = Measuring {
        path: arguments.path,
        model: arguments.model.as_deref().map(settings::model_text).transpose()?,
        data: AskedData { source: arguments.data, reading },
        part: arguments.part,
        views: views(arguments.ten_crop),
        places: arguments.resources.places()?,
        running: Running {
            workers: arguments.workers,
            threads: arguments.threads,
            listen: arguments.listen,
            secrets,
            isa: arguments.isa.map(|isa| isa.to_string()),
            ..running(log)?
        },
        logits: arguments.logits,
        wrong: arguments.wrong,
    };
    let mut console = Quiet::new(arguments.json);
    let stop = signals::stop_flag("stopping", "quit".to_owned())?;
    let _socket = SocketFile::at(measuring.running.listen.as_ref())?;
    let result = measure(measuring, &mut console, &stop)?;
    let classes = Classes::new(&result.labels, &result.predicted, &result.logits, result.loss);
    let text = match (arguments.json, arguments.by_class) {
        (true, by_class) => format!("{:#}\n", serde_json::to_value(Printed::of(&result, &classes, by_class))?),
        (false, true) => described(&result, &classes, arguments.part) + &by_class(&result, &classes),
        (false, false) => described(&result, &classes, arguments.part),
    };
    output::print(&text)?;
    Ok(Outcome::Done)
}

/// The views that `--ten-crop` asks for.
pub(crate) fn views(ten_crop: bool) -> Views {
    if ten_crop { Views::Ten } else { Views::Centre }
}

/// How a measurement runs: on local workers, one for each tower.
pub(crate) fn running(log: &Log) -> Result<Running, Box<dyn Error>> {
    Ok(Running {
        workers: None,
        replicas: None,
        transport: Transport::Relay,
        threads: None,
        listen: None,
        secrets: Secrets::default(),
        micro_batches: None,
        checkpoint_every: None,
        snapshot_every: None,
        keep: defaults::KEEP,
        patience: defaults::PATIENCE,
        begins_with_fewer: false,
        rehearsal: Rehearsal::default(),
        trace: Sampling::Off,
        tensorboard: false,
        otlp: None,
        isa: None,
        local: log.local_program()?,
        metrics: Metrics::default(),
    })
}

/// The result as a JSON object.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    result: &'a Measurement,
    /// The share of images whose class is among the five with the highest logits.
    top5_accuracy: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_class: Option<Vec<OfClass>>,
    /// How many images of a class were classified as a class, where there are any: (class, predicted, count).
    #[serde(skip_serializing_if = "Option::is_none")]
    confusion: Option<&'a [(u16, u16, u32)]>,
}

/// The result for one class.
#[derive(Serialize)]
struct OfClass {
    label: usize,
    /// Its name, if it has one.
    class: Option<String>,
    images: u32,
    correct: u32,
    /// None without images.
    accuracy: Option<f64>,
}

impl<'a> Printed<'a> {
    fn of(result: &'a Measurement, classes: &'a Classes, by_class: bool) -> Self {
        let of_class = |label: usize| OfClass {
            label,
            class: result.classes.get(label).cloned(),
            images: classes.images_of(label),
            correct: classes.count(label, label),
            accuracy: classes.accuracy_of(label),
        };
        Self {
            result,
            top5_accuracy: classes.top_accuracy(),
            by_class: by_class.then(|| (0..classes.classes).map(of_class).collect()),
            confusion: by_class.then_some(classes.confusion.as_slice()),
        }
    }
}

/// A table of the classes, and the most frequent confusions.
fn by_class(result: &Measurement, classes: &Classes) -> String {
    let name = |label: usize| result.classes.get(label).map_or_else(|| label.to_string(), |name| printable(name));
    let mut rows = vec![["class", "images", "correct", "accuracy"].map(str::to_owned).to_vec()];
    rows.extend((0..classes.classes).map(|label| {
        let accuracy = classes.accuracy_of(label).map_or("-".to_owned(), |share| format!("{:.2} %", share * 100.0));
        vec![name(label), classes.images_of(label).to_string(), classes.count(label, label).to_string(), accuracy]
    }));
    let confused = classes.confusions(CONFUSIONS_SHOWN).into_iter().map(|(label, taken, count)| {
        format!("{count} of {} were taken for {}\n", name(usize::from(label)), name(usize::from(taken)))
    });
    format!("\n{}\n{}", aligned(&rows, &[0]), confused.collect::<String>())
}

fn described(result: &Measurement, classes: &Classes, part: Part) -> String {
    let accuracy = match part {
        Part::Test => "test accuracy",
        Part::Train => "train accuracy",
        Part::Holdout => "holdout accuracy",
    };
    // Of five classes, the right one is always among the first five.
    let top = match classes.classes {
        ..=TOP => String::new(),
        _ => format!("top-5 accuracy  {:.2} %\n", classes.top_accuracy() * 100.0),
    };
    format!(
        "model           {}\nweights         {} ({})\ndata            {}\n{accuracy:<15} {:.2} %: {} of {} images\n{top}loss            {:.4}\n",
        result.model,
        result.weights.display(),
        result.weights_sha256,
        result.data,
        result.accuracy * 100.0,
        result.correct,
        result.images,
        result.loss
    )
}

/// With `--json`, standard output gets one object and nothing else. Notes go to standard error.
pub(crate) struct Quiet {
    console: Console,
    json: bool,
}

impl Quiet {
    pub(crate) fn new(json: bool) -> Self {
        Self { console: Console::new(false), json }
    }
}

impl Observer for Quiet {
    fn on(&mut self, event: Event) {
        match event {
            Event::Notice { text } if self.json => output::complain(&format!("note: {text}")),
            Event::Waiting { address, have, want, .. } if self.json => {
                output::complain(&format!("{} to {address}", connected(have, want)))
            }
            event @ (Event::Elsewhere { .. } | Event::Refused { .. }) if self.json => {
                Console::peer(&event).iter().for_each(|line| output::complain(line));
            }
            event => self.console.on(event),
        }
    }
}
