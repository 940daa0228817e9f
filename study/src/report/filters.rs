//! The part of a report about the filters of layers, and how colourful they are.
//!
//! Not here: computing it (`representation::filters`), and what it looks like (`filters_page`).

use convoy_common::text::counted;
use convoy_report::binomial::at_least;
use convoy_report::words::chance;
use serde::Serialize;

use super::layers::LEVEL;
use super::summary::Summary;
use crate::file::Study;
use crate::represent::Represented;
use crate::representation::filters::{Colours, FilterPicture, Filters};
use crate::statistics::Interval;
use crate::statistics::mean;
use crate::statistics::paired::StudentT;

/// The filters of a layer in all arms.
#[derive(Clone, Debug, Serialize)]
pub struct FiltersReport {
    /// The layer.
    pub layer: String,
    /// Each arm that has it.
    pub arms: Vec<ArmFilters>,
}

/// The filters of a layer in the runs of an arm.
#[derive(Clone, Debug, Serialize)]
pub struct ArmFilters {
    /// The arm.
    pub arm: String,
    /// How colourful they are. None of grey images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colours: Option<ArmColours>,
    /// The filters of the first run.
    #[serde(skip)]
    pub picture: Option<FilterPicture>,
}

/// How colourful the filters of an arm are.
#[derive(Clone, Debug, Serialize)]
pub struct ArmColours {
    /// The mean colour index of each run.
    pub index: Summary,
    /// The difference of the groups' mean colour indices, in each run.
    pub differences: Vec<f64>,
    /// The same, summarised.
    pub difference: Summary,
    /// The mean difference of random partitions.
    pub expected: f64,
    /// The interval of the mean of how much differences exceed what is expected, over seeds. None of a single run.
    pub excess: Option<Interval>,
    /// The interval of how much more they exceed it than those of the control, over pairs of runs. None of the control.
    pub above_control: Option<Interval>,
    /// A run is beyond chance if its difference exceeds a limit of its own. This is the mean of the limits.
    pub limit: f64,
    /// Number of runs whose groups differ by more than chance: at most 5 % of random partitions differ as much.
    pub beyond_chance: usize,
    /// The chance of at least as many such runs if groups mean nothing.
    pub chance: f64,
    /// The result in plain words.
    pub said: String,
}

impl FiltersReport {
    /// All layers of a study whose filters were looked at.
    pub(super) fn all(study: &Study, represented: &[Represented]) -> Vec<Self> {
        let Some(what) = &study.represent else { return Vec::new() };
        let layer = |name: &String| {
            let of_arm = |arm: &str| -> Vec<(u64, &Filters)> {
                let runs = represented.iter().filter(|run| run.arm == arm);
                runs.flat_map(|run| run.filters.iter().filter(|filters| filters.name == *name).map(|f| (run.seed, f)))
                    .collect()
            };
            let control = of_arm(&study.control().name);
            let arms = study.arms.iter().filter_map(|arm| {
                let is_control = arm.name == study.control().name;
                ArmFilters::new(
                    &arm.name,
                    name,
                    &of_arm(&arm.name),
                    (!is_control).then_some(&control),
                    study.confidence,
                )
            });
            FiltersReport { layer: name.clone(), arms: arms.collect() }
        };
        what.filters.iter().map(layer).collect()
    }
}

impl ArmFilters {
    fn new(
        arm: &str,
        layer: &str,
        runs: &[(u64, &Filters)],
        control: Option<&Vec<(u64, &Filters)>>,
        confidence: f64,
    ) -> Option<Self> {
        let picture = runs.iter().find_map(|(_, run)| run.picture.clone());
        let colours: Vec<(u64, &Colours)> = coloured(runs);
        let control = control.map(|runs| coloured(runs));
        (!runs.is_empty()).then(|| Self {
            arm: arm.to_owned(),
            colours: (!colours.is_empty())
                .then(|| ArmColours::new(arm, layer, &colours, control.as_deref(), confidence)),
            picture,
        })
    }
}

fn coloured<'a>(runs: &[(u64, &'a Filters)]) -> Vec<(u64, &'a Colours)> {
    runs.iter().filter_map(|(seed, run)| Some((*seed, run.colours.as_ref()?))).collect()
}

impl ArmColours {
    fn new(
        arm: &str,
        layer: &str,
        runs: &[(u64, &Colours)],
        control: Option<&[(u64, &Colours)]>,
        confidence: f64,
    ) -> Self {
        let of = |value: fn(&Colours) -> f64| runs.iter().map(|(_, run)| value(run)).collect::<Vec<f64>>();
        let differences = of(|run| run.difference);
        let interval = |values: &[f64]| (values.len() > 1).then(|| StudentT::of_pairs(values).interval(confidence));
        // Runs with the same seed form a pair.
        let above = control.map(|control| {
            let pairs = runs.iter().filter_map(|(seed, run)| {
                let (_, other) = control.iter().find(|(other, _)| other == seed)?;
                Some(run.excess() - other.excess())
            });
            pairs.collect::<Vec<f64>>()
        });
        let beyond_chance = runs.iter().filter(|(_, run)| run.p <= LEVEL).count();
        let as_many = at_least(beyond_chance, runs.len(), LEVEL);
        let (difference, expected) = (Summary::of(&differences), mean(&of(|run| run.expected)));
        let said = format!(
            "in {beyond_chance} of {} of {arm}, the groups of {layer} differ in colour beyond chance. If groups meant nothing, at least as many would \
             with a chance of {}. Over all runs, the groups differ by {:.3} on average, and random groups of the same filters by {expected:.3}",
            counted(runs.len(), "run", "runs"),
            chance(as_many),
            difference.mean,
        );
        Self {
            index: Summary::of(&of(|run| mean(&run.indices))),
            excess: interval(&of(Colours::excess)),
            expected,
            above_control: above.and_then(|values| interval(&values)),
            limit: mean(&of(|run| run.limit)),
            beyond_chance,
            chance: as_many,
            said,
            difference,
            differences,
        }
    }
}
