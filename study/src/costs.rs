//! What a training step of each arm costs on this machine: time, memory and energy, by `convoy bench`. Arms take turns in several rounds, so
//! that a moment at which the machine is busy does not meet a single arm. These figures depend on the machine, so they are in a file of
//! their own, and no part of the report.
//!
//! Not here: measuring a job (`convoy bench`).

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use convoy_coordinator::job::defaults;
use serde::{Deserialize, Serialize};

use crate::error::StudyError;
use crate::file::{Arm, Study};
use crate::folder::write_json;
use crate::place::{Lane, Place};
use crate::process::run;

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
    /// Workers, and the compute threads of each.
    pub workers: usize,
    /// Compute threads of each worker.
    pub threads: usize,
    /// The median time of a step in each round, in milliseconds.
    pub ms: Vec<f64>,
    /// The median over rounds of this time, divided by that of the control in the same round.
    pub relative: f64,
    /// The most memory of all processes together, in bytes. None where the machine doesn't tell.
    pub memory_bytes: Option<u64>,
    /// Joules of the machine in a step, the median over rounds. None where the machine doesn't tell.
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

/// Measures each arm, writes the file into the study's folder, and returns what it says. `told` hears of each round.
///
/// # Errors
/// When a measurement fails, when the file can't be written, or when `stop` is set.
pub fn measure(
    study: &Study,
    out: &Path,
    place: &Place,
    stop: &AtomicBool,
    told: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Cost>, StudyError> {
    let arms: Vec<&Arm> = study.arms.iter().filter(|arm| !arm.is_series()).collect();
    let mut rounds: Vec<Vec<Benched>> = Vec::new();
    for round in 0..ROUNDS {
        told(round + 1, ROUNDS);
        rounds.push(arms.iter().map(|arm| bench(study, arm, out, place, stop)).collect::<Result<_, _>>()?);
    }
    let cost = |(index, arm): (usize, &&Arm)| {
        let of =
            |value: &dyn Fn(&Benched) -> f64| rounds.iter().map(|round| value(&round[index])).collect::<Vec<f64>>();
        let ratios = rounds.iter().map(|round| round[index].median.ms / round[0].median.ms).collect();
        let joules: Option<Vec<f64>> = rounds.iter().map(|round| round[index].joules_a_step).collect();
        Cost {
            arm: arm.name.clone(),
            batch: study.settings.batch.unwrap_or(defaults::BATCH),
            workers: place.workers,
            threads: threads(place),
            ms: of(&|benched| benched.median.ms),
            relative: median(ratios),
            memory_bytes: rounds.iter().map(|round| round[index].memory_bytes).max().flatten(),
            joules: joules.map(median),
        }
    };
    let costs: Vec<Cost> = arms.iter().enumerate().map(cost).collect();
    write_json(&out.join(COSTS), &costs)?;
    Ok(costs)
}

fn threads(place: &Place) -> usize {
    match place.lanes.first() {
        Some(Lane::Own { threads }) => *threads,
        _ => 1,
    }
}

fn bench(study: &Study, arm: &Arm, out: &Path, place: &Place, stop: &AtomicBool) -> Result<Benched, StudyError> {
    let mut command = Command::new(&place.program);
    command.args(["bench", "--json", "--steps", STEPS, "--warm-up", WARM_UP]);
    command.args(["--workers", &place.workers.to_string(), "--threads", &threads(place).to_string()]);
    command.args(["--batch", &study.settings.batch.unwrap_or(defaults::BATCH).to_string()]);
    command.args(study.settings.slots.map(|slots| format!("--slots={slots}")));
    command.arg("--model").arg(out.join("models").join(format!("{}.toml", arm.name)));
    let end = run(&mut command, &|| stop.load(Ordering::Relaxed), &mut |_| {})?;
    let failed = |why: String| StudyError::Start {
        what: format!("the measurement of what arm \"{}\" costs", arm.name),
        source: std::io::Error::other(why),
    };
    if !end.status.success() {
        return Err(failed(end.errors));
    }
    serde_json::from_str(&end.output).map_err(|error| failed(error.to_string()))
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
