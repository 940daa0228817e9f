//! What a training step of each arm costs on this machine: time, memory and energy, by `convoy bench`. Arms take turns in several rounds, so
//! that a moment at which the machine is busy does not meet a single arm. These figures depend on the machine, so they are in a file of
//! their own, and no part of the report.
//!
//! Not here: measuring a job (`convoy bench`).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use convoy_coordinator::job::defaults;
use serde::{Deserialize, Serialize};

use crate::arm::Arm;
use crate::error::StudyError;
use crate::file::Study;
use crate::folder::Folder;
use crate::images::Images;
use crate::process::{run, undisturbed};

/// The file, in the study's folder.
pub const COSTS: &str = "costs.json";
/// Times that each arm is measured.
const ROUNDS: usize = 5;
/// Steps of a measurement, and steps before it.
const STEPS: &str = "60";
const WARM_UP: &str = "10";

/// What a training step of an arm costs.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// The arm.
    pub arm: String,
    /// Images per step.
    pub batch: usize,
    /// Workers.
    pub workers: usize,
    /// Compute threads of each worker.
    pub threads: usize,
    /// The median time of a step in each round, in milliseconds.
    pub ms: Vec<f64>,
    /// The median over rounds of this time, divided by that of the control in the same round.
    pub relative: f64,
    /// The most memory of each worker, added up, in bytes. None where the machine doesn't tell.
    pub memory_bytes: Option<u64>,
    /// Joules of the machine's processors in a step, the median over rounds. None where the machine doesn't tell.
    pub joules: Option<f64>,
}

/// What `convoy bench` prints, as far as it is needed.
#[derive(Deserialize)]
struct Benched {
    median: Median,
    memory_bytes: Option<u64>,
    joules_a_step: Option<f64>,
}

#[derive(Deserialize)]
struct Median {
    ms: f64,
}

/// What is measured, and with what.
pub struct Bench<'a> {
    /// The study, whose runs have ended.
    pub study: &'a Study,
    /// Its images.
    pub images: &'a Images,
    /// Its folder.
    pub out: &'a Path,
    /// The program.
    pub program: PathBuf,
    /// Workers.
    pub workers: usize,
    /// Compute threads of each.
    pub threads: usize,
}

impl Bench<'_> {
    /// Measures each arm, writes the file into the study's folder, and returns what it says. `told` hears of each round, and of how many
    /// there are.
    ///
    /// # Errors
    /// When a measurement fails, when the file can't be written, or when `stop` is set.
    pub fn measure(&self, stop: &AtomicBool, told: &mut dyn FnMut(usize, usize)) -> Result<Vec<Cost>, StudyError> {
        let folder = Folder::open(self.out, self.study, &self.images.sha256, self.images.all)?;
        let arms: Vec<&Arm> = self.study.arms.iter().filter(|arm| !arm.is_series()).collect();
        let mut rounds: Vec<Vec<Benched>> = Vec::new();
        for round in 0..ROUNDS {
            told(round + 1, ROUNDS);
            let of = |arm: &&Arm| self.of_arm(arm, &folder.model(&arm.name), stop);
            rounds.push(arms.iter().map(of).collect::<Result<_, _>>()?);
        }
        let costs: Vec<Cost> = arms.iter().enumerate().map(|(index, arm)| self.cost(arm, index, &rounds)).collect();
        folder.write_json(COSTS, &costs)?;
        Ok(costs)
    }

    /// The cost of the arm with this index in each round.
    fn cost(&self, arm: &Arm, index: usize, rounds: &[Vec<Benched>]) -> Cost {
        let ratios = rounds.iter().map(|round| round[index].median.ms / round[0].median.ms).collect();
        let joules: Option<Vec<f64>> = rounds.iter().map(|round| round[index].joules_a_step).collect();
        Cost {
            arm: arm.name.clone(),
            batch: self.batch(),
            workers: self.workers,
            threads: self.threads,
            ms: rounds.iter().map(|round| round[index].median.ms).collect(),
            relative: median(ratios),
            memory_bytes: rounds.iter().map(|round| round[index].memory_bytes).max().flatten(),
            joules: joules.map(median),
        }
    }

    fn batch(&self) -> usize {
        self.study.settings.batch.unwrap_or(defaults::BATCH)
    }

    fn of_arm(&self, arm: &Arm, model: &Path, stop: &AtomicBool) -> Result<Benched, StudyError> {
        let mut command = undisturbed(&self.program, "bench");
        command.args(["--json", "--steps", STEPS, "--warm-up", WARM_UP]);
        command.args(["--workers", &self.workers.to_string(), "--threads", &self.threads.to_string()]);
        command.args(["--batch", &self.batch().to_string()]);
        command.args(self.study.settings.slots.map(|slots| format!("--slots={slots}")));
        command.arg("--model").arg(model);
        let end = run(&mut command, &|| stop.load(Ordering::Relaxed), &mut |_| {})?;
        let failed = |why: String| StudyError::Costs { arm: arm.name.clone(), why };
        if !end.status.success() {
            let why = if end.errors.is_empty() { end.status.to_string() } else { end.errors };
            return Err(failed(format!("{why}; the same command measures again")));
        }
        serde_json::from_str(&end.output).map_err(|error| failed(error.to_string()))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Cost {
    /// For a terminal. `names` is the width of the longest name.
    pub fn line(&self, names: usize) -> String {
        let (least, most) =
            self.ms.iter().fold((f64::INFINITY, 0.0_f64), |(least, most), ms| (least.min(*ms), most.max(*ms)));
        let memory = self.memory_bytes.map_or(String::new(), |bytes| format!(", {:.0} MB", bytes as f64 / 1e6));
        let joules = self.joules.map_or(String::new(), |joules| format!(", {joules:.3} J"));
        format!(
            "{:<names$}  {:.2} ms per step of {} images (from {least:.2} to {most:.2} in {} rounds), {:.2} of the control's time{memory}{joules}",
            self.arm,
            median(self.ms.clone()),
            self.batch,
            self.ms.len(),
            self.relative,
        )
    }
}
