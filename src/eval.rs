//! `convoy eval`: parses the command line, measures, and prints the result.

use std::error::Error;
use std::path::PathBuf;

use convoy_common::address::Address;
use convoy_common::batch::THREADS_MAX;
use convoy_coordinator::job::defaults;
use convoy_coordinator::links::Transport;
use convoy_coordinator::measure::{Measurement, Measuring, measure};
use convoy_coordinator::metrics::Metrics;
use convoy_coordinator::observe::{Event, Observer};
use convoy_coordinator::running::{Rehearsal, Running};
use convoy_coordinator::trace::Sampling;
use convoy_dataset::{DataSource, Part};

use convoy_worker::Isa;

use crate::console::{Console, connected};
use crate::log::Log;
use crate::numbers::{AT_LEAST_1, whole};
use crate::settings::KeepingArguments;
use crate::sockets::SocketFile;
use crate::{Outcome, output, settings, signals};

/// The command line of `convoy eval`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a checkpoint, folder of a run (its newest sound checkpoint is used), or a safetensors file
    path: PathBuf,
    /// Preset (alexnet-fashion, alexnet-fashion-dense, alexnet-cifar, alexnet) or path of a model file; required for a safetensors file outside a
    /// checkpoint
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// Test images: auto, a folder as for convoy train, bundled, or synthetic. auto uses Fashion-MNIST if it is on this machine. If not, auto downloads it,
    /// except with CONVOY_OFFLINE=1. If that is not possible, auto uses bundled. bundled is a part of Fashion-MNIST that comes with the program.
    /// synthetic is noise, for measuring speed [default: the data of the checkpoint, or auto for a safetensors file outside a checkpoint]
    #[arg(long, value_name = "auto|DIR|bundled|synthetic")]
    data: Option<DataSource>,
    #[command(flatten)]
    keeping: KeepingArguments,
    /// Images to measure: test, train (those that the job trained on), or holdout (those that it held out)
    #[arg(long, value_name = "test|train|holdout", default_value = "test")]
    part: Part,
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
    /// File with a shared secret. Workers must be started with the same secret (--token-file); others are refused. The secret is
    /// sent unencrypted
    #[arg(long, value_name = "FILE", requires = "listen", conflicts_with_all = ["threads", "isa"])]
    token_file: Option<PathBuf>,
    /// Write all logits to this safetensors file, as one tensor "logits" of shape (images, classes). If the file exists, it is replaced
    /// only if it holds logits; otherwise the command fails
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// Write a list of the wrongly classified images to this file: the place of each image in the set, its label, and the predicted class. If
    /// the file exists, it is replaced only if it holds such a list; otherwise the command fails
    #[arg(long, value_name = "FILE")]
    wrong: Option<PathBuf>,
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
    let measuring = Measuring {
        path: arguments.path,
        model: arguments.model.as_deref().map(settings::model_text).transpose()?,
        data: arguments.data,
        part: arguments.part,
        places: arguments.keeping.places()?,
        running: Running {
            workers: arguments.workers,
            threads: arguments.threads,
            listen: arguments.listen,
            token: settings::token(arguments.token_file.as_deref())?,
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
    let text = if arguments.json {
        format!("{:#}\n", serde_json::to_value(&result)?)
    } else {
        described(&result, arguments.part)
    };
    output::print(&text)?;
    Ok(Outcome::Done)
}

/// How a measurement runs: on local workers, one for each tower.
pub(crate) fn running(log: &Log) -> Result<Running, Box<dyn Error>> {
    Ok(Running {
        workers: None,
        replicas: None,
        transport: Transport::Relay,
        threads: None,
        listen: None,
        token: None,
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

fn described(result: &Measurement, part: Part) -> String {
    let accuracy = match part {
        Part::Test => "test accuracy",
        Part::Train => "train accuracy",
        Part::Holdout => "holdout accuracy",
    };
    format!(
        "model           {}\nweights         {} ({})\ndata            {}\n{accuracy:<15} {:.2} %: {} of {} images\nloss            {:.4}\n",
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
            Event::Waiting { address, have, want } if self.json => {
                output::complain(&format!("{} to {address}", connected(have, want)))
            }
            event @ (Event::Elsewhere { .. } | Event::Refused { .. }) if self.json => {
                Console::peer(&event).iter().for_each(|line| output::complain(line));
            }
            event => self.console.on(event),
        }
    }
}
