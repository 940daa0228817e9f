//! `convoy eval`: parses, measures, and prints what was found.

use std::error::Error;
use std::path::PathBuf;

use convoy_common::address::Address;
use convoy_coordinator::data::DataSource;
use convoy_coordinator::job::Running;
use convoy_coordinator::measure::{Finding, Measuring, measure};
use convoy_coordinator::metrics::Metrics;
use convoy_coordinator::observe::{Event, Observer};
use convoy_coordinator::trace::Sampling;

use convoy_worker::Isa;

use crate::console::Console;
use crate::log::Log;
use crate::{Outcome, output, settings, signals};

/// Measure a checkpoint or a weights file on a data set's test images, over the same towers as in training.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A checkpoint's folder, a run's folder (its newest checkpoint), or a safetensors file
    path: PathBuf,
    /// A preset (alexnet-fashion, alexnet-fashion-dense, alexnet) or a model file; needed for a safetensors file
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// auto (Fashion-MNIST: looked for, else downloaded, else the bundled subset), a folder of IDX files, bundled, or
    /// synthetic
    #[arg(long, value_name = "auto|DIR|bundled|synthetic")]
    data: Option<DataSource>,
    /// Worker processes, at most one a tower [default: one a tower]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Threads of each worker that is started here [default: the machine's cores shared out]
    #[arg(long, value_name = "N", conflicts_with = "listen")]
    threads: Option<usize>,
    /// Instruction set of the kernels of each worker that is started here: scalar, avx2, avx512 or neon, with the same bits
    /// [default: the best that the machine has]
    #[arg(long, value_name = "NAME", conflicts_with = "listen")]
    isa: Option<Isa>,
    /// Wait here for workers to dial in, rather than start them
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<Address>,
    /// A file with a word; workers that dial in and don't say it (their --token-file) are refused. It isn't encrypted on its way
    #[arg(long, value_name = "FILE", requires = "listen")]
    token_file: Option<PathBuf>,
    /// Write all logits, (image, class), to this safetensors file
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments, log: &Log) -> Result<Outcome, Box<dyn Error>> {
    let measuring = Measuring {
        path: arguments.path,
        model: arguments.model.as_deref().map(settings::model_text).transpose()?,
        data: arguments.data,
        places: settings::places()?,
        running: Running {
            workers: arguments.workers,
            threads: arguments.threads,
            listen: arguments.listen,
            token: settings::token(arguments.token_file.as_deref())?,
            micro_batches: None,
            checkpoint_every: None,
            trace: Sampling::Off,
            otlp: None,
            isa: arguments.isa.map(|isa| isa.to_string()),
            local: log.local_program()?,
            metrics: Metrics::default(),
        },
        logits: arguments.logits,
    };
    let mut console = Quiet { console: Console::new(false), json: arguments.json };
    let stop = signals::stop_flag()?;
    let found = measure(measuring, &mut console, &stop)?;
    let text = if arguments.json { format!("{:#}\n", serde_json::to_value(&found)?) } else { described(&found) };
    output::print(&text)?;
    Ok(Outcome::Done)
}

fn described(found: &Finding) -> String {
    format!(
        "model           {}\nweights         {} ({})\ndata            {}\ntest accuracy   {:.2} %: {} of {} images\nloss            {:.4}\n",
        found.model,
        found.weights.display(),
        found.weights_sha256,
        found.data,
        found.accuracy * 100.0,
        found.correct,
        found.images,
        found.loss
    )
}

/// With `--json` one object alone goes to standard output; what else there is to say goes to standard error.
struct Quiet {
    console: Console,
    json: bool,
}

impl Observer for Quiet {
    fn on(&mut self, event: Event) {
        match event {
            Event::Notice { text } if self.json => output::complain(&format!("note: {text}")),
            Event::Waiting { address, have, want } if self.json => {
                output::complain(&format!("{have} of {want} workers have come to {address}"))
            }
            event => self.console.on(event),
        }
    }
}
