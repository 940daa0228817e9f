//! The part of a report about what the channels of layers represent.
//!
//! Not here: computing it (`representation`), and what it looks like (`layers_page`).

use serde::Serialize;

use super::summary::Summary;
use crate::file::Study;
use crate::represent::{Layer, Represented};
use crate::representation::{Correlated, Picture};
use crate::statistics::Interval;
use crate::statistics::paired::StudentT;

/// A layer in all arms.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Its name.
    pub layer: String,
    /// Each arm in which enough of its channels vary.
    pub arms: Vec<ArmLayer>,
}

/// A layer in the runs of an arm.
#[derive(Clone, Debug, Serialize)]
pub struct ArmLayer {
    /// The arm.
    pub arm: String,
    /// Number of runs.
    pub runs: usize,
    /// Mean absolute correlation of two channels.
    pub all: Summary,
    /// The same within groups.
    pub within: Summary,
    /// The same between groups.
    pub between: Summary,
    /// Within minus between.
    pub difference: Summary,
    /// The interval of the mean difference over seeds. None of a single run.
    pub interval: Option<Interval>,
    /// The difference of each run.
    pub differences: Vec<f64>,
    /// Number of runs whose groups differ from random partitions: at most 5 % of these have as large a difference.
    pub beyond_chance: usize,
    /// The middle 95 % of differences of random partitions: the means of both ends over runs.
    pub null: Interval,
    /// The difference under the best partition.
    pub best: Summary,
    /// The similarity of the first and the second group.
    pub similarity: Option<Summary>,
    /// The similarity of the layer in two runs.
    pub with_next_seed: Option<Summary>,
    /// The effective number of independent channels.
    pub effective_rank: Summary,
    /// The first run in full.
    #[serde(skip)]
    pub picture: Option<(Picture, Correlated)>,
}

/// The share of random partitions that may have as large a difference as the observed one.
pub(super) const LEVEL: f64 = 0.05;

impl LayerReport {
    /// All layers of a study.
    pub(super) fn all(study: &Study, represented: &[Represented]) -> Vec<Self> {
        let Some(what) = &study.represent else { return Vec::new() };
        let layer = |name: &String| {
            let arms = study.arms.iter().filter_map(|arm| {
                let of_arm = represented.iter().filter(|run| run.arm == arm.name);
                let layers: Vec<&Layer> =
                    of_arm.flat_map(|run| run.layers.iter().filter(|layer| layer.name == *name)).collect();
                ArmLayer::new(&arm.name, &layers, study.confidence)
            });
            LayerReport { layer: name.clone(), arms: arms.collect() }
        };
        what.layers.iter().map(layer).collect()
    }
}

impl ArmLayer {
    fn new(arm: &str, layers: &[&Layer], confidence: f64) -> Option<Self> {
        let found: Vec<&Correlated> = layers.iter().filter_map(|layer| layer.correlated.as_ref()).collect();
        if found.is_empty() {
            return None;
        }
        let of = |value: fn(&Correlated) -> f64| Summary::of(&found.iter().map(|run| value(run)).collect::<Vec<_>>());
        let some = |values: Vec<f64>| (!values.is_empty()).then(|| Summary::of(&values));
        let differences: Vec<f64> = found.iter().map(|run| run.difference()).collect();
        let picture = layers.iter().find_map(|layer| Some((layer.picture.clone()?, layer.correlated.clone()?)));
        Some(Self {
            arm: arm.to_owned(),
            runs: found.len(),
            all: of(|run| run.all),
            within: of(|run| run.within),
            between: of(|run| run.between),
            difference: of(Correlated::difference),
            interval: (found.len() > 1).then(|| StudentT::of_pairs(&differences).interval(confidence)),
            beyond_chance: found.iter().filter(|run| run.p <= LEVEL).count(),
            null: Interval { low: of(|run| run.null.low).mean, high: of(|run| run.null.high).mean },
            best: of(|run| run.best_difference),
            similarity: some(found.iter().filter_map(|run| run.similarity).collect()),
            with_next_seed: some(layers.iter().filter_map(|layer| layer.with_next_seed).collect()),
            effective_rank: of(|run| run.effective_rank),
            differences,
            picture,
        })
    }
}
