//! A run of a study: `convoy train` in a process of its own, and then `convoy eval` on the test images and on the training images. What
//! was measured is written into the run's folder last, so a run that has that file has ended.
//!
//! Not here: the queue of runs (`conduct`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use convoy_coordinator::files::read_regular;
use convoy_coordinator::wrong;
use serde_json::Value;

use crate::arm::Arm;
use crate::error::StudyError;
use crate::file::Study;
use crate::folder::write_json;
use crate::measured::{Epoch, MEASURED, Measured, Outcome, Right, Score, Trained};
use crate::process::{End, Program, run};

/// Attempts without progress after which a run is given up.
const ATTEMPTS_MAX: usize = 3;
/// Exit code of a command that was used wrongly.
const MISUSED: i32 = 2;
/// The list of wrongly classified test images, in the folder of a run.
const WRONG: &str = "wrong.tsv";

/// A run to carry out.
pub(crate) struct Run<'a> {
    pub(crate) study: &'a Study,
    /// SHA-256 over all that decides its result.
    pub(crate) job_sha256: String,
    /// SHA-256 over the images. None if each seed has images of its own.
    pub(crate) images: Option<&'a str>,
    pub(crate) arm: &'a Arm,
    pub(crate) seed: u64,
    pub(crate) program: Program<'a>,
}

/// What is heard of a run.
pub(crate) enum Heard {
    /// This share of its steps is done.
    Stepped(f64),
    /// Too few workers came, and it waits again.
    Waits,
    /// A process of it was lost, and starts again.
    Lost(String),
}

impl Run<'_> {
    /// Trains to the end, whatever happens to its processes, and measures.
    ///
    /// # Errors
    /// When it fails several times without progress, when its files can't be read, or when `is_over`.
    pub(crate) fn carry_out(
        &self,
        folder: &Path,
        model: &Path,
        is_over: &dyn Fn() -> bool,
        hear: &mut dyn FnMut(Heard),
    ) -> Result<Measured, StudyError> {
        let outcome = match self.train(folder, model, is_over, hear)? {
            Some(steps) => Outcome::DivergedAfter(steps),
            None => Outcome::Trained(self.measure(folder, is_over, hear)?),
        };
        let (arm, job_sha256) = (self.arm.name.clone(), self.job_sha256.clone());
        let measured = Measured { arm, seed: self.seed, job_sha256, outcome };
        write_json(&folder.join(MEASURED), &measured)?;
        Ok(measured)
    }

    /// Trains. Returns the number of steps after which numbers were no longer finite, if that happened.
    fn train(
        &self,
        folder: &Path,
        model: &Path,
        is_over: &dyn Fn() -> bool,
        hear: &mut dyn FnMut(Heard),
    ) -> Result<Option<u64>, StudyError> {
        let (mut attempts, mut furthest) = (0, 0);
        loop {
            let (mut step, mut last_step) = (0, 1);
            let mut on_event = |event: &Value| match event["event"].as_str() {
                Some("started") => last_step = event["last_step"].as_u64().unwrap_or(1).max(1),
                Some("step") => {
                    step = event["step"].as_u64().unwrap_or(0);
                    hear(Heard::Stepped(step as f64 / last_step as f64));
                }
                _ => {}
            };
            let end = run(&mut self.training(folder, model), is_over, &mut on_event)?;
            let record = record(folder);
            if end.status.success() {
                self.check_images(&record, folder)?;
                return Ok(None);
            }
            if let Some(steps) = record["diverged_after"].as_u64().filter(|_| record["status"] == "failed") {
                self.check_images(&record, folder)?;
                return Ok(Some(steps));
            }
            attempts = match step {
                0 if self.program.has_waited(end.status) => attempts,
                _ if step > furthest => 1,
                _ => attempts + 1,
            };
            furthest = furthest.max(step);
            self.lost(end, attempts, folder, hear)?;
        }
    }

    fn check_images(&self, record: &Value, folder: &Path) -> Result<(), StudyError> {
        let now = record["configuration"]["data"].as_str().unwrap_or_default();
        match self.images {
            Some(before) if before != now => {
                let (before, now) = (before.to_owned(), now.to_owned());
                Err(StudyError::ChangedData { before, now, folder: folder.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Tells of a process that ended with an error.
    ///
    /// # Errors
    /// When it happened too often.
    fn lost(&self, end: End, attempts: usize, folder: &Path, hear: &mut dyn FnMut(Heard)) -> Result<(), StudyError> {
        if self.program.has_waited(end.status) {
            hear(Heard::Waits);
            return Ok(());
        }
        let why = if end.errors.is_empty() { end.status.to_string() } else { end.errors };
        // A command that was used wrongly is used wrongly again.
        if attempts >= ATTEMPTS_MAX || end.status.code() == Some(MISUSED) {
            let (arm, seed, folder) = (self.arm.name.clone(), self.seed, folder.to_owned());
            return Err(StudyError::Run { arm, seed, attempts, why, folder });
        }
        hear(Heard::Lost(why));
        Ok(())
    }

    fn training(&self, folder: &Path, model: &Path) -> Command {
        let settings = &self.study.settings;
        let mut command = self.program.command("train");
        command.args(["--json", "--resume", "auto", "--keep", "1", "--trace", "off", "--data", self.program.data]);
        command.arg("--out").arg(folder).arg("--model").arg(model);
        let numbers = [
            ("--epochs", Some(self.study.epochs as f64)),
            ("--seed", Some(self.arm.varies.map_or(self.seed, |varies| varies.seed) as f64)),
            ("--batch", settings.batch.map(|batch| batch as f64)),
            ("--lr", self.arm.lr.or(settings.lr)),
            ("--momentum", settings.momentum),
            ("--weight-decay", settings.weight_decay),
            ("--slots", settings.slots.map(|slots| slots as f64)),
            ("--train-images", settings.images.map(|images| images as f64)),
            ("--holdout", settings.holdout.map(|images| images as f64)),
        ];
        for (flag, value) in numbers {
            // The shortest text of a number reads back to the same number.
            command.args(value.map(|value| format!("{flag}={value}")));
        }
        command.args(self.arm.varies.map(|varies| format!("{}={}", varies.source.flag(), self.seed)));
        command.args(settings.schedule.as_ref().map(|schedule| format!("--schedule={schedule}")));
        command
    }

    /// Measures the final weights on the test images, or on those that are held out, and on the training images.
    fn measure(
        &self,
        folder: &Path,
        is_over: &dyn Fn() -> bool,
        hear: &mut dyn FnMut(Heard),
    ) -> Result<Trained, StudyError> {
        let list = folder.join(WRONG);
        // Test images play no part in the choice of a learning rate.
        let measured = if self.study.settings.holdout.is_some() { "holdout" } else { "test" };
        let test = self.score(folder, measured, Some(&list), is_over, hear)?;
        let train = self.score(folder, "train", None, is_over, hear)?;
        let damaged = |path: PathBuf, why: String| StudyError::Damaged { path, why };
        let wrong = wrong::read(&list).map_err(|error| damaged(list.clone(), error.to_string()))?;
        let mut right = vec![true; test.images];
        let known = wrong
            .iter()
            .filter(|wrong| right.get_mut(wrong.image).is_some_and(|right| std::mem::replace(right, false)));
        if known.count() != wrong.len() || wrong.len() + test.correct != test.images {
            let why = format!("it lists {} images, but {} of {} are right", wrong.len(), test.correct, test.images);
            return Err(damaged(list, why));
        }
        let metrics = folder.join("metrics.jsonl");
        let epochs = epochs(&metrics, self.study.epochs).map_err(|why| damaged(metrics, why))?;
        let weights_sha256 = record(folder)["final"]["weights_sha256"].as_str().unwrap_or_default().to_owned();
        Ok(Trained { weights_sha256, epochs, test, train, right: Right(right) })
    }

    fn score(
        &self,
        folder: &Path,
        part: &str,
        list: Option<&Path>,
        is_over: &dyn Fn() -> bool,
        hear: &mut dyn FnMut(Heard),
    ) -> Result<Score, StudyError> {
        let mut attempts = 0;
        loop {
            let mut command = self.program.command("eval");
            // Without --data, it refuses images that are not those of the job.
            command.args(["--json", "--part", part]).arg(folder);
            if let Some(list) = list {
                command.arg("--wrong").arg(list);
            }
            let end = run(&mut command, is_over, &mut |_| {})?;
            let score = serde_json::from_str::<Score>(&end.output);
            match score {
                Ok(score) if end.status.success() => return Ok(score),
                _ if self.program.has_waited(end.status) => {}
                _ => attempts += 1,
            }
            self.lost(end, attempts, folder, hear)?;
        }
    }
}

/// `run.json` in a folder; null if it can't be read.
fn record(folder: &Path) -> Value {
    let text = read_regular(&folder.join("run.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// The epochs in a file of metrics, so many as a run has.
fn epochs(metrics: &Path, expected: u64) -> Result<Vec<Epoch>, String> {
    let text = fs::read_to_string(metrics).map_err(|error| error.to_string())?;
    let lines = text.lines().filter(|line| line.contains("\"test_accuracy\""));
    let epochs: Vec<Epoch> =
        lines.map(|line| serde_json::from_str(line).map_err(|error| error.to_string())).collect::<Result<_, _>>()?;
    if epochs.len() as u64 == expected {
        Ok(epochs)
    } else {
        Err(format!("it has {} epochs, not {expected}", epochs.len()))
    }
}
