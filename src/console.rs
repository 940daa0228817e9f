//! What a job prints: a progress bar on a terminal, plain lines elsewhere, JSON objects for programs.

use std::io::IsTerminal;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use convoy_coordinator::files::quoted;
use convoy_coordinator::incident::Incident;
use convoy_coordinator::observe::{Ended, Event, Observer, Started, WorkerRecord};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use convoy_common::text::counted;

use crate::output::{show_bar, tell};

/// Time between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The share of time from which on waits for images are told.
const WAIT_TOLD: f64 = 0.02;

/// Prints events.
pub(crate) struct Console {
    json: bool,
    bar: Option<ProgressBar>,
    started: Option<Box<Started>>,
    images: u64,
    /// Seconds that steps have waited for images.
    image_wait_seconds: f64,
    began: Instant,
    last_line: Instant,
}

impl Console {
    pub(crate) fn new(json: bool) -> Self {
        let now = Instant::now();
        Self { json, bar: None, started: None, images: 0, image_wait_seconds: 0.0, began: now, last_line: now }
    }

    /// The line about a worker that does not join, if the event is about one.
    pub(crate) fn peer(event: &Event) -> Option<String> {
        match event {
            Event::Elsewhere { host, coordinator, model } => {
                let what = model.as_ref().map_or("is waiting".to_owned(), |model| format!("is training {model}"));
                Some(format!("the worker on {host} {what} with another coordinator, at {coordinator}"))
            }
            Event::Refused { address, reason } => Some(format!("a worker at {address} was refused: {reason}")),
            _ => None,
        }
    }

    fn start(&mut self, started: Box<Started>) {
        tell(&described(&started));
        if std::io::stdout().is_terminal() && std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}  {eta} left");
            let bar = ProgressBar::new(started.last_step + 1 - started.first_step);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            show_bar(Some(bar.clone()));
            self.bar = Some(bar);
        }
        (self.began, self.last_line) = (Instant::now(), Instant::now());
        self.started = Some(started);
    }

    fn step(&mut self, step: u64, epoch: u64, loss: f64, images: usize, image_wait_seconds: f64) {
        self.images += images as u64;
        self.image_wait_seconds += image_wait_seconds;
        let elapsed = self.began.elapsed().as_secs_f64().max(1e-9);
        let rate = self.images as f64 / elapsed;
        let waits = match self.image_wait_seconds / elapsed {
            share if share >= WAIT_TOLD => format!("  waits for images {:.0} % of the time", share * 100.0),
            _ => String::new(),
        };
        if let Some(bar) = &self.bar {
            self.show(step);
            bar.set_message(format!("epoch {epoch}  {rate:.0} images/s  loss {loss:.4}{waits}"));
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let last = self.started.as_ref().map_or(step, |started| started.last_step);
            tell(&format!("step {step}/{last}  epoch {epoch}  {rate:.0} images/s  loss {loss:.4}{waits}"));
        }
    }

    /// Prints the workers that have another number, process or tower than before.
    fn regroup(&mut self, workers: Vec<WorkerRecord>) {
        let Some(started) = &mut self.started else { return };
        let holder =
            |worker: &WorkerRecord| (worker.worker, worker.process_id, worker.host.clone(), worker.holds.clone());
        let before: Vec<_> = started.workers.iter().map(holder).collect();
        workers.iter().filter(|worker| !before.contains(&holder(worker))).for_each(|worker| tell(&worker_line(worker)));
        started.workers = workers;
    }

    /// Sets the progress bar to a step.
    fn show(&self, step: u64) {
        if let (Some(bar), Some(started)) = (&self.bar, &self.started) {
            bar.set_position((step + 1).saturating_sub(started.first_step));
        }
    }

    fn end(&mut self, ended: &Ended) {
        self.bar = None;
        show_bar(None);
        let how = if ended.interrupted { "interrupted" } else { "done" };
        let rate = ended.images_per_second;
        let rate = if rate > 0.0 { format!(" at {rate:.0} images/s") } else { String::new() };
        tell(&format!("{how} after {}{rate}", counted(ended.steps as usize, "step", "steps")));
        if let Some(accuracy) = ended.test_accuracy {
            tell(&format!("  test accuracy   {:.2} %", accuracy * 100.0));
        }
        tell(&format!("  weights_sha256  {}", ended.weights_sha256));
        tell(&format!("  checkpoint      {}", ended.checkpoint.display()));
        tell(&format!("  records         {}/run.json, metrics.jsonl", ended.out.display()));
        if ended.interrupted {
            tell(&format!("  continue with   convoy train --resume {}", quoted(&ended.out)));
        }
    }
}

/// An event for programs.
#[derive(Serialize)]
struct Stamped<'a> {
    #[serde(flatten)]
    event: &'a Event,
    /// When it happened, in seconds since 1970.
    at: f64,
}

impl Drop for Console {
    fn drop(&mut self) {
        // A job that fails sends no event of its end.
        show_bar(None);
    }
}

impl Observer for Console {
    fn on(&mut self, event: Event) {
        if self.json {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            // An event consists of numbers and strings, so it always has a JSON form.
            tell(&serde_json::to_string(&Stamped { event: &event, at }).unwrap_or_default());
            return;
        }
        match event {
            Event::Notice { text } => tell(&format!("note: {text}")),
            Event::Waiting { address, start, have, want } if have < want => {
                tell(&format!("waiting for workers at {address}: {}; start more with: {start}", connected(have, want)));
            }
            Event::Waiting { have, want, .. } => tell(&connected(have, want)),
            Event::Elsewhere { .. } | Event::Refused { .. } => Self::peer(&event).iter().for_each(|line| tell(line)),
            Event::Started(started) => self.start(started),
            Event::Step { step, epoch, loss, images, image_wait_seconds, .. } => {
                self.step(step, epoch, loss, images, image_wait_seconds);
            }
            Event::Epoch(epoch) => tell(&format!(
                "epoch {}  loss {:.4}  test accuracy {:.2} %  {:.1} s  {:.0} images/s",
                epoch.epoch,
                epoch.train_loss,
                epoch.test_accuracy * 100.0,
                epoch.seconds,
                epoch.images_per_second
            )),
            Event::Snapshot { .. } | Event::Checkpoint { .. } => {}
            Event::Fault { what, step, rewound_to, .. } if step == rewound_to => {
                self.show(step);
                tell(&format!("{what}; no step is lost"));
            }
            Event::Fault { what, rewound_to, .. } => {
                self.show(rewound_to);
                tell(&format!("{what}; going back to step {rewound_to}, the last snapshot"));
            }
            Event::Suspected { worker, process_id, host, given_up_after, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("worker {worker} does not answer"));
                }
                tell(&format!(
                    "worker {worker} (process {process_id} on {host}) does not answer; it will be given up after {given_up_after} s of silence"
                ));
            }
            Event::Gone { worker, process_id, host, why } => {
                tell(&format!(
                    "worker {worker} (process {process_id} on {host}) was lost while the job waited for workers: {why}"
                ));
            }
            Event::Answered { worker, process_id, host, seconds } => {
                tell(&format!("worker {worker} (process {process_id} on {host}) answers again, after {seconds:.1} s"));
            }
            Event::Slow { worker, process_id, host, .. } => tell(&format!(
                "worker {worker} (process {process_id} on {host}) is slow: the others wait for it more than a third of the time"
            )),
            Event::Regrouped { workers } => self.regroup(workers),
            Event::Recovered(incident) => tell(&recovered(&incident)),
            Event::Ended(ended) => self.end(&ended),
        }
    }
}

fn recovered(incident: &Incident) -> String {
    let Incident { worker, step, rewound_to, detect_ms, replace_ms, restore_ms, replay_ms, .. } = incident;
    let sum = replace_ms + restore_ms + replay_ms;
    let replayed = match step.saturating_sub(*rewound_to) {
        0 => String::new(),
        1 => format!(", {replay_ms:.0} ms to compute a step again"),
        steps => format!(", {replay_ms:.0} ms to compute {steps} steps again"),
    };
    format!(
        "recovered in {sum:.0} ms from the fault of worker {worker} (found {detect_ms:.0} ms after its last message): {replace_ms:.0} ms to replace the \
         worker, {restore_ms:.0} ms to restore the weights{replayed}"
    )
}

/// How many of the workers that a job waits for have connected.
pub(crate) fn connected(have: usize, want: usize) -> String {
    format!("{have} of {want} worker{} connected", if want == 1 { "" } else { "s" })
}

/// The towers of a worker, and where it runs.
fn worker_line(worker: &WorkerRecord) -> String {
    format!(
        "worker {} {} on {} (process {} at {}), {} thread{}, {}",
        worker.worker,
        worker.holds,
        worker.host,
        worker.process_id,
        worker.address,
        worker.threads,
        if worker.threads == 1 { "" } else { "s" },
        worker.instruction_set
    )
}

fn described(started: &Started) -> String {
    let mut lines = vec![
        format!(
            "model    {}: {} parameters, {:.1} M multiply-adds per image",
            started.model,
            started.parameters,
            started.multiply_adds as f64 / 1e6
        ),
        format!("data     {}", started.data),
        match started.first_step..=started.last_step {
            steps if steps.is_empty() => {
                format!("steps    none: the job is already at its last step, {}", started.last_step)
            }
            steps => format!(
                "steps    {} to {}, {} each ({}), {} per epoch, {:.2} MB over sockets per step",
                steps.start(),
                steps.end(),
                counted(started.batch, "image", "images"),
                counted(started.slots, "slot", "slots"),
                counted(started.steps_per_epoch as usize, "step", "steps"),
                started.step_bytes as f64 / 1e6
            ),
        },
    ];
    lines.extend(started.workers.iter().map(worker_line));
    lines.push(format!("run      {}", started.out.display()));
    lines.join("\n")
}
