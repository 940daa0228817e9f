//! Two models that differ in their groups alone, in training: the grouped one, the other one with a mask of blocks, and the other one without
//! a mask. All begin with the same weights. Each job is an ordinary run in the folder.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use convoy_common::model::Network;
use convoy_common::parameters::{Tensors, sha256};
use convoy_coordinator::checkpoint::{folder as checkpoints, write_weights};
use convoy_coordinator::files::{read_regular, write_atomically};
use convoy_dataset::{DataSource, Places, Reading, Wanted, load};
use serde_json::Value;
use toml::Table;

use super::embedding::{differing, embedded, parted};
use super::{Claim, ModelFacts, same};
use crate::error::StudyError;
use crate::model::changed;
use crate::place::{Lane, Place};
use crate::process::{Program, run};

/// The folder of the jobs.
pub(super) const RUNS: &str = "runs";
/// Steps of the longer jobs.
const STEPS: u64 = 5;
/// Seed of the weights.
const SEED: u64 = 1;

/// The texts of two models, with the names that errors call them.
#[derive(Clone, Debug)]
pub struct Models {
    /// The model with groups.
    pub grouped: (String, String),
    /// The model without.
    pub dense: (String, String),
}

impl Models {
    fn fitting(&self) -> Result<Fitting, StudyError> {
        let parse = |(name, text): &(String, String)| {
            let wrong = |source| StudyError::Model { file: name.clone(), arm: name.clone(), source: Box::new(source) };
            Network::parse(text).map_err(wrong)
        };
        let (grouped, dense) = (parse(&self.grouped)?, parse(&self.dense)?);
        let unlike = |reason: String| {
            let file = format!("{} and {}", self.grouped.0, self.dense.0);
            StudyError::Value { file, reason: format!("{reason}; the two models must differ in their groups alone") }
        };
        let layers = differing(&grouped, &dense).map_err(unlike)?;
        Ok(Fitting { grouped, dense, layers })
    }

    /// Checks that the models fit each other, and the images fit them.
    pub(super) fn check_data(&self, data: &DataSource, places: &Places) -> Result<(), StudyError> {
        let Fitting { grouped, .. } = self.fitting()?;
        load(data, &Wanted::by(&grouped, SEED), places, &Reading::default())?;
        Ok(())
    }
}

/// Two networks that differ in their groups alone.
struct Fitting {
    grouped: Network,
    dense: Network,
    /// The layers that differ, with the number of groups.
    layers: Vec<(String, usize)>,
}

/// A job to run.
struct Job<'a> {
    name: &'a str,
    model: &'a str,
    init: &'a Tensors,
    /// Further flags.
    flags: &'a [&'a str],
}

/// Where jobs run.
struct Site<'a> {
    out: &'a Path,
    data: String,
    place: &'a Place,
    stop: &'a AtomicBool,
}

/// What a job came to.
struct Came {
    weights: Tensors,
    /// The loss of each step.
    losses: Vec<f64>,
}

/// Checks the claims about training.
pub(super) fn check(
    models: &Models,
    data: &DataSource,
    out: &Path,
    place: &Place,
    stop: &AtomicBool,
) -> Result<(ModelFacts, Vec<Claim>), StudyError> {
    let Fitting { grouped, dense, layers } = models.fitting()?;
    let mask = |(name, groups): &(String, usize)| {
        let mask: Table = [("kind".to_owned(), "blocks".into()), ("groups".to_owned(), (*groups as i64).into())]
            .into_iter()
            .collect();
        (name.clone(), Table::from_iter([("mask".to_owned(), mask.into())]).into())
    };
    let masks: Table = layers.iter().map(mask).collect();
    let refused = |reason: String| StudyError::Value { file: models.dense.0.clone(), reason };
    let masked = changed(&models.dense.1, &dense.name, &masks).map_err(refused)?;
    let start = grouped.initial_weights(SEED, SEED);
    let spread = embedded(&start, &layers);
    let site = Site { out, data: data.remembered()?, place, stop };
    let steps = STEPS.to_string();
    let several = ["--steps", steps.as_str()];
    // With these settings, the change of a weight is its gradient with the opposite sign.
    let plain = ["--steps", "1", "--momentum", "0", "--weight-decay", "0", "--lr", "1", "--schedule", "constant"];
    let ours = site.run(&Job { name: "grouped", model: &models.grouped.1, init: &start, flags: &several })?;
    let theirs = site.run(&Job { name: "masked", model: &masked, init: &spread, flags: &several })?;
    let free = site.run(&Job { name: "dense", model: &models.dense.1, init: &spread, flags: &plain })?;
    let expected = embedded(&ours.weights, &layers);
    let mut claims = vec![trained_alike(&ours, &theirs, &expected)];
    let (mut gradients, mut left, mut outside_count) = (Vec::new(), 0, 0);
    for (name, groups) in &layers {
        let key = format!("{name}.weight");
        let (Some(before), Some(after)) = (spread.get(&key), free.weights.get(&key)) else { continue };
        let change = (before - after).into_dyn();
        let (within, outside) = parted(&change, *groups);
        let size = |values: &[f32]| values.iter().map(|v| f64::from(v.abs())).sum::<f64>() / values.len() as f64;
        left += outside.iter().filter(|value| **value != 0.0).count();
        outside_count += outside.len();
        gradients.push([size(&within), size(&outside)]);
    }
    claims.push(Claim {
        claim: "Without the mask, the first step leaves the grouped model: weights between the groups, which begin at zero, have gradients."
            .to_owned(),
        holds: left > 0,
        found: format!(
            "{left} of {outside_count} weights between groups change in the first step; their gradients are {} as large as those within \
             groups",
            ratios(&layers, &gradients)
        ),
    });
    let facts = ModelFacts {
        grouped: grouped.name,
        dense: dense.name,
        layers,
        steps: STEPS,
        weights_sha256: sha256(&ours.weights),
        gradients,
    };
    Ok((facts, claims))
}

/// `expected` are the weights of the first job in the shapes of the second one.
fn trained_alike(ours: &Came, theirs: &Came, expected: &Tensors) -> Claim {
    let flat = |tensors: &Tensors| tensors.values().flat_map(|tensor| tensor.iter().copied()).collect::<Vec<f32>>();
    let text = format!(
        "In training, the grouped model equals the model without groups and with a mask of blocks, forward and backward, after {STEPS} steps."
    );
    let weights = same(&text, "weights", &flat(expected), &flat(&theirs.weights));
    let equal_losses = ours.losses.iter().zip(&theirs.losses).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
    let holds = weights.holds && equal_losses == ours.losses.len() && equal_losses == STEPS as usize;
    Claim { holds, found: format!("{}, and so are {equal_losses} of {STEPS} losses", weights.found), ..weights }
}

fn ratios(layers: &[(String, usize)], gradients: &[[f64; 2]]) -> String {
    let ratio = |((name, _), [within, outside]): (&(String, usize), &[f64; 2])| {
        format!("{:.2} times ({name})", outside / within)
    };
    layers.iter().zip(gradients).map(ratio).collect::<Vec<_>>().join(", ")
}

impl Site<'_> {
    /// Runs a job to its end.
    fn run(&self, job: &Job) -> Result<Came, StudyError> {
        let folder = self.out.join(RUNS).join(job.name);
        std::fs::create_dir_all(&folder).map_err(|source| StudyError::Write { path: folder.clone(), source })?;
        let (model, init) = (folder.join("model.toml"), folder.join("init.safetensors"));
        let written = write_atomically(&model, job.model.as_bytes());
        written.map_err(|source| StudyError::Write { path: model.clone(), source })?;
        let damaged = |why: String| StudyError::Damaged { path: folder.clone(), why };
        write_weights(&init, job.init).map_err(|error| damaged(convoy_common::chain::chain(&error)))?;
        let own = Lane::Own { threads: 1 };
        let lane = self.place.lanes.first().unwrap_or(&own);
        let program = Program { place: self.place, lane, data: &self.data };
        let mut command = program.command("train");
        command.args(["--json", "--trace", "off", "--batch", "16", "--seed", "1", "--data", &self.data]);
        command.args(job.flags).arg("--model").arg(&model).arg("--init").arg(&init).arg("--out").arg(&folder);
        let end = run(&mut command, &|| self.stop.load(Ordering::Relaxed), &mut |_| {})?;
        if !end.status.success() {
            return Err(damaged(format!("the job failed: {}", end.errors)));
        }
        let opened = checkpoints::open(&folder).map_err(|error| damaged(convoy_common::chain::chain(&error)))?;
        let losses = losses(&folder.join("metrics.jsonl")).map_err(damaged)?;
        Ok(Came { weights: opened.checkpoint.state.weights, losses })
    }
}

/// The loss of each step in a file of metrics.
fn losses(path: &Path) -> Result<Vec<f64>, String> {
    let text =
        String::from_utf8(read_regular(path).map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter_map(|line| line["loss"].as_f64()).collect())
}
