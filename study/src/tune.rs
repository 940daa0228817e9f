//! The learning rate of each arm, chosen on held-out training images. Every arm tries the same rates with the same seeds, because a
//! comparison in which only one arm has a good rate compares rates. Test images play no part in the choice.
//!
//! The runs that try rates form a study of their own, with an arm for each arm and rate.
//!
//! Not here: which rates are tried (`rates`), and carrying it out (`conduct`).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::arm::{Arm, Settings};
use crate::design::RunId;
use crate::file::Study;
use crate::measured::{Measured, Outcome, Score};

/// How far the seeds of these runs lie from those of the arms.
const AWAY: u64 = 3_000_000;

/// The rate that was chosen for an arm.
#[derive(Clone, Debug, Serialize)]
pub struct Tuned {
    /// The arm.
    pub arm: String,
    /// The chosen rate.
    pub lr: f64,
    /// All rates that were tried, ascending.
    pub tried: Vec<Tried>,
}

/// A rate that was tried.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Tried {
    /// The rate.
    pub lr: f64,
    /// Mean accuracy on the held-out images. A run that diverged counts as guessing.
    pub accuracy: f64,
    /// Mean loss on the held-out images. None if a run diverged.
    pub loss: Option<f64>,
    /// Number of runs that diverged.
    pub diverged: usize,
}

impl Tuned {
    /// The chosen rate for people. If it is the smallest or the largest of those that were tried, a better one may lie outside.
    pub(crate) fn chosen(&self) -> String {
        let mut ends = [self.tried.first(), self.tried.last()].into_iter().flatten();
        let edge = if ends.any(|tried| tried.lr == self.lr) { ", at the edge of those that were tried" } else { "" };
        format!("{}{edge}", self.lr)
    }
}

impl Study {
    /// The study that tries learning rates. None if rates are not chosen.
    pub(crate) fn tuning(&self) -> Option<Study> {
        let tune = self.tune.as_ref()?;
        let seed = AWAY + self.control().seeds.first()?;
        let tried = |arm: &Arm, index: usize| Arm {
            name: format!("{}-lr-{}", arm.name, tune.rates[index]),
            about: format!("{}, with a learning rate of {}", arm.about, tune.rates[index]),
            lr: Some(tune.rates[index]),
            seeds: (seed..seed + tune.runs).collect(),
            ..arm.clone()
        };
        let arms = self.tuned_arms().flat_map(|arm| (0..tune.rates.len()).map(move |index| tried(arm, index)));
        Some(Study {
            name: format!("{}-tuning", self.name),
            arms: arms.collect(),
            settings: Settings { holdout: Some(tune.holdout), ..self.settings.clone() },
            represent: None,
            tune: None,
            ..self.clone()
        })
    }

    /// The arms that choose a rate. Series of the control have the control's.
    fn tuned_arms(&self) -> impl Iterator<Item = &Arm> {
        self.arms.iter().filter(|arm| !arm.is_series())
    }

    /// The rate of each arm, from the runs of the study that tried them: the one with the highest mean accuracy on held-out images. If
    /// several have it, the one with the smallest loss; then the smallest one.
    pub(crate) fn tuned(&self, measured: &BTreeMap<RunId, Measured>) -> Vec<Tuned> {
        let Some(tune) = &self.tune else { return Vec::new() };
        let chosen = |(place, arm): (usize, &Arm)| {
            let of_rate = |index: usize| -> Vec<&Measured> {
                let arm = place * tune.rates.len() + index;
                (0..tune.runs as usize).filter_map(|pair| measured.get(&RunId { pair, arm })).collect()
            };
            let guessed = tune.holdout / arm.network.classes().max(1);
            let rates = tune.rates.iter().enumerate();
            let tried: Vec<Tried> =
                rates.map(|(index, lr)| Tried::of(*lr, &of_rate(index), tune.holdout, guessed)).collect();
            let best = tried.iter().min_by(|a, b| a.order(b));
            Tuned { arm: arm.name.clone(), lr: best.map_or(tune.rates[0], |best| best.lr), tried }
        };
        self.tuned_arms().enumerate().map(chosen).collect()
    }

    /// The study with these learning rates. The study itself if rates are not chosen.
    pub(crate) fn with_rates(&self, tuned: &[Tuned]) -> Study {
        let mut study = self.clone();
        if self.tune.is_none() {
            return study;
        }
        let rate = |name: &str| tuned.iter().find(|tuned| tuned.arm == name).map(|tuned| tuned.lr);
        let control = rate(&self.control().name);
        for arm in &mut study.arms {
            arm.lr = if arm.is_series() { control } else { rate(&arm.name) };
        }
        study
    }
}

impl Tried {
    /// From the runs with this rate on `images` held-out images. A run that diverged gets `guessed` of them right.
    fn of(lr: f64, runs: &[&Measured], images: usize, guessed: usize) -> Self {
        let scores: Vec<Score> = runs.iter().filter_map(|run| score(run)).collect();
        let diverged = runs.len() - scores.len();
        // Whole numbers have the same sum in any order.
        let correct = scores.iter().map(|score| score.correct).sum::<usize>() + diverged * guessed;
        let loss: f64 = scores.iter().map(|score| score.loss).sum();
        let count = runs.len().max(1);
        Self {
            lr,
            accuracy: correct as f64 / (count * images).max(1) as f64,
            loss: (diverged == 0).then_some(loss / count as f64),
            diverged,
        }
    }

    /// The better one comes first.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let loss = |tried: &Self| tried.loss.unwrap_or(f64::INFINITY);
        let by_accuracy = other.accuracy.total_cmp(&self.accuracy);
        by_accuracy.then(loss(self).total_cmp(&loss(other))).then(self.lr.total_cmp(&other.lr))
    }
}

fn score(run: &Measured) -> Option<Score> {
    match &run.outcome {
        Outcome::Trained(trained) => Some(trained.test),
        Outcome::DivergedAfter(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(lr: f64, accuracy: f64, loss: Option<f64>) -> Tried {
        Tried { lr, accuracy, loss, diverged: usize::from(loss.is_none()) }
    }

    #[test]
    fn the_highest_accuracy_wins_and_ties_go_to_the_smallest_loss_and_rate() {
        let best = |all: &[Tried]| all.iter().min_by(|a, b| a.order(b)).unwrap().lr;
        assert_eq!(best(&[tried(0.1, 0.8, Some(1.0)), tried(0.2, 0.9, Some(2.0)), tried(0.3, 0.7, Some(0.1))]), 0.2);
        assert_eq!(best(&[tried(0.1, 0.9, Some(2.0)), tried(0.2, 0.9, Some(1.0))]), 0.2);
        assert_eq!(best(&[tried(0.1, 0.9, Some(1.0)), tried(0.2, 0.9, Some(1.0))]), 0.1);
        assert_eq!(best(&[tried(0.1, 0.9, None), tried(0.2, 0.9, Some(9.0))]), 0.2);
    }
}
