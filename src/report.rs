//! `convoy report`: reads what a run wrote, measures its newest checkpoint, and writes a page.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use convoy_common::chain::chain;
use convoy_common::model::Network;
use convoy_coordinator::checkpoint::folder::{self, Opened};
use convoy_coordinator::checkpoint::{Checkpoint, CheckpointError};
use convoy_coordinator::error::JobError;
use convoy_coordinator::evaluate::Views;
use convoy_coordinator::measure::{Measuring, measure};
use convoy_coordinator::record::TRACE;
use convoy_dataset::{AskedData, AskedReading, DataSource, Part};
use convoy_report::run::classes::Classes;
use convoy_report::run::compare::Comparison;
use convoy_report::run::layers::Layers;
use convoy_report::run::records::Records;
use convoy_report::run::{RunReport, Time, Trained};

use crate::eval::{Quiet, running};
use crate::log::Log;
use crate::pages::Wrote;
use crate::settings::DataArguments;
use crate::trace::{accounted, verdict, worker_rows};
use crate::{Outcome, output, pages, signals};

/// The command line of `convoy report`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a run
    run: PathBuf,
    /// Compare with another run
    #[arg(long, value_name = "RUN")]
    compare: Option<PathBuf>,
    /// Measure these test images instead of those of the run: auto, a folder as for convoy train, bundled, or synthetic
    #[arg(long, value_name = "auto|DIR|bundled|synthetic")]
    data: Option<DataSource>,
    #[command(flatten)]
    resources: DataArguments,
    /// File of the page. If it exists, it is replaced only if it is a page of convoy; otherwise the command fails. Not with --json if it is
    /// a device, such as /dev/stdout [default: report.html, or compare.html with --compare, in the run's folder]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, log: &Log) -> Result<Outcome, Box<dyn Error>> {
    // Before the work.
    arguments.html.as_deref().map_or(Ok(()), pages::check)?;
    let stop = signals::stop_flag("stopping", "quit".to_owned())?;
    let reporter = Reporter { arguments, log, stop: &stop };
    let report = reporter.of(&arguments.run)?;
    let (page, text, json, name) = match &arguments.compare {
        None => (report.page(), report.text(), serde_json::to_value(&report)?, "report.html"),
        Some(other) => {
            let compared = Comparison::new(report, reporter.of(other)?);
            (compared.page(), compared.text(), serde_json::to_value(&compared)?, "compare.html")
        }
    };
    let path = arguments.html.clone().unwrap_or_else(|| arguments.run.join(name));
    // The page itself may be on standard output.
    if let Wrote::File = pages::write(&path, &page)? {
        let path = path.display();
        let text = if arguments.json { format!("{json:#}\n") } else { format!("{text}page            {path}\n") };
        output::print(&text)?;
    }
    Ok(Outcome::Done)
}

/// Makes reports.
struct Reporter<'a> {
    arguments: &'a Arguments,
    log: &'a Log,
    stop: &'a AtomicBool,
}

impl Reporter<'_> {
    fn of(&self, run: &Path) -> Result<RunReport, Box<dyn Error>> {
        let records = Records::read(run)?;
        let mut missing = Vec::new();
        let trained = match folder::open(run) {
            Err(CheckpointError::None { .. }) => {
                missing.push("the run has no checkpoint, so there is nothing about its weights".to_owned());
                None
            }
            Err(error) => {
                missing.push(format!("no checkpoint could be read: {}", chain(&error)));
                None
            }
            Ok(Opened { checkpoint, damaged }) => {
                let used = checkpoint.path.display().to_string();
                missing.extend(damaged.iter().map(|error| format!("{}; {used} is used instead", chain(error))));
                Some(self.trained(checkpoint, &records, &mut missing)?)
            }
        };
        if records.damaged_lines > 0 {
            missing.push(format!("lines of the metrics that are damaged and left out: {}", records.damaged_lines));
        }
        let time = if run.join(TRACE).exists() {
            time(run, &mut missing)
        } else {
            missing.push("there is no trace, so there is nothing about where the time went".to_owned());
            None
        };
        Ok(RunReport { folder: run.display().to_string(), records, trained, time, missing })
    }

    fn trained(
        &self,
        checkpoint: Checkpoint,
        records: &Records,
        missing: &mut Vec<String>,
    ) -> Result<Trained, Box<dyn Error>> {
        let Checkpoint { path, manifest, state } = checkpoint;
        let network = Network::parse(&manifest.job.model)?;
        let classes = match measure(self.measuring(&path)?, &mut Quiet::new(true), self.stop) {
            // The files are gone or have changed: the rest of the report is still true.
            Err(error) if self.can_do_without(&error) => {
                missing.push(format!("the test images were not measured: {}", chain(&error)));
                None
            }
            measured => {
                let found = measured?;
                let classes = Classes::new(&found.labels, &found.predicted, &found.logits, found.loss);
                Some(classes.of_images(found.data, found.classes, found.images_sha256))
            }
        };
        let step = manifest.progress.step;
        let rate = records.steps.iter().find(|line| line.step == step).map(|line| line.lr);
        let seeds = manifest.job.init.is_none().then(|| [manifest.job.init_seed(), manifest.job.seed]);
        let layers = Layers::new(&network, &state.weights, &state.momentum, rate, seeds);
        Ok(Trained { step, weights_sha256: manifest.weights_sha256, classes, layers })
    }

    /// Whether the rest of the report is still true: the files of images are gone or have changed, or logits are not finite.
    fn can_do_without(&self, error: &JobError) -> bool {
        match error {
            JobError::OtherImages { .. } | JobError::NotMeasurable { .. } => true,
            JobError::Data(_) => self.arguments.data.is_none(),
            _ => false,
        }
    }

    /// A request to measure the test images with a checkpoint.
    fn measuring(&self, checkpoint: &Path) -> Result<Measuring, Box<dyn Error>> {
        let reading = AskedReading { format: self.arguments.resources.format(), ..AskedReading::default() };
        Ok(Measuring {
            path: checkpoint.to_owned(),
            model: None,
            data: AskedData { source: self.arguments.data.clone(), reading },
            part: Part::Test,
            views: Views::Centre,
            places: self.arguments.resources.places()?,
            running: running(self.log)?,
            logits: None,
            wrong: None,
        })
    }
}

/// Whether a row of the table has only zeros.
fn is_nothing(row: &[String]) -> bool {
    row.iter().skip(1).all(|cell| cell == "0.00")
}

/// Where the time went, by the run's trace.
fn time(run: &Path, missing: &mut Vec<String>) -> Option<Time> {
    match accounted(run, None) {
        Ok((_, _, found)) => Some(Time {
            steps: found.steps.len(),
            step_ms: found.step_ns / 1e6,
            bottleneck: verdict(&found),
            rows: worker_rows(&found).into_iter().filter(|row| !is_nothing(row)).collect(),
        }),
        Err(error) => {
            missing.push(format!("the trace could not be added up: {}", chain(&*error)));
            None
        }
    }
}
