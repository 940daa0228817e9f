//! Differences beside the planned comparisons: how much more an arm overfits than the control, and arms against each other. They have
//! intervals and no verdict, because the study does not correct for them.
//!
//! Not here: the comparisons that the study was planned for (`verdict`).

use convoy_report::svg::{escaped, key};
use serde::Serialize;

use super::{Report, Runs, trained};
use crate::measured::Trained;
use crate::statistics::Interval;
use crate::statistics::paired::StudentT;

/// The mean difference of two arms in something that each run has.
#[derive(Clone, Debug, Serialize)]
pub struct Further {
    /// The arm.
    pub arm: String,
    /// The arm that it is compared with. Differences are the first one's value minus this one's.
    pub against: String,
    /// Number of pairs in which no run diverged.
    pub pairs: usize,
    /// The mean difference.
    pub mean: f64,
    /// Its interval over seeds, by Student's t.
    pub interval: Interval,
}

impl Further {
    /// None with fewer than two pairs in which no run diverged.
    fn of(arm: &Runs, against: &Runs, confidence: f64, value: fn(&Trained) -> f64) -> Option<Self> {
        let of_pair = |(ours, theirs)| Some(value(trained(ours)?) - value(trained(theirs)?));
        let pairs = arm.all.iter().copied().zip(against.all.iter().copied());
        let differences: Vec<f64> = pairs.filter_map(of_pair).collect();
        if differences.len() < 2 {
            return None;
        }
        let paired = StudentT::of_pairs(&differences);
        Some(Self {
            arm: arm.arm.name.clone(),
            against: against.arm.name.clone(),
            pairs: differences.len(),
            mean: paired.mean,
            interval: paired.interval(confidence),
        })
    }

    /// The gap between the accuracies on training and on test images: each arm against the control.
    pub(super) fn gaps(runs: &[Runs], confidence: f64) -> Vec<Self> {
        let arms = runs[1..].iter().filter(|arm| arm.arm.varies.is_none());
        arms.filter_map(|arm| Self::of(arm, &runs[0], confidence, Trained::gap)).collect()
    }

    /// The test accuracy: all arms against each other, but for the control, and for the control with other seeds.
    pub(super) fn between(runs: &[Runs], confidence: f64) -> Vec<Self> {
        let arms: Vec<&Runs> = runs[1..].iter().filter(|arm| !arm.arm.is_series()).collect();
        let later = |index: usize| arms[index + 1..].iter();
        let pairs = (0..arms.len()).flat_map(|index| later(index).map(move |against| (index, against)));
        let accuracy: fn(&Trained) -> f64 = |trained| trained.test.accuracy();
        pairs.filter_map(|(index, against)| Self::of(arms[index], against, confidence, accuracy)).collect()
    }

    /// In points: the mean and its interval.
    pub(super) fn points(&self) -> String {
        let Interval { low, high } = self.interval.scaled(100.0);
        format!("{:+.2} ({low:+.2} to {high:+.2})", self.mean * 100.0)
    }
}

/// Two arms cost about the same if their parameters and their multiply-adds differ by at most this share.
const SAME_COST: f64 = 0.02;

impl Report {
    /// The arms other than the control that cost about the same, in a sentence each, as HTML.
    pub(super) fn equal_costs(&self) -> String {
        let arm = |name: &str| self.arms.iter().find(|arm| arm.name == name);
        let is_close = |a: f64, b: f64| (a - b).abs() <= SAME_COST * a.max(b);
        let cost_the_same = |difference: &&Further| {
            let (Some(ours), Some(theirs)) = (arm(&difference.arm), arm(&difference.against)) else { return false };
            is_close(ours.parameters as f64, theirs.parameters as f64)
                && is_close(ours.multiply_adds as f64, theirs.multiply_adds as f64)
        };
        let said = |difference: &Further| {
            let zero = if difference.interval.excludes_zero() { "zero is outside" } else { "zero is inside" };
            format!(
                "<p>At the same cost: {} and {} have about as many parameters and multiply-adds. The accuracy of the first minus that of the \
                 second is {} points, over {} pairs: {zero} the interval. That is no verdict, because the study was planned for comparisons with \
                 {}.</p>\n",
                escaped(&difference.arm),
                escaped(&difference.against),
                difference.points(),
                difference.pairs,
                escaped(&self.arms[0].name)
            )
        };
        self.between.iter().filter(cost_the_same).map(said).collect()
    }

    /// How much arms overfit, as a section of the page.
    pub(super) fn gaps_section(&self) -> String {
        let row = |gap: &Further| {
            let index = self.arms.iter().position(|arm| arm.name == gap.arm).unwrap_or(0);
            format!("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n", key(index, &gap.arm), gap.points(), gap.pairs)
        };
        let rows: String = self.gaps.iter().map(row).collect();
        if rows.is_empty() {
            return String::new();
        }
        format!(
            "<h2>Overfitting</h2>\n<p>The gap of a run is its accuracy on the training images minus that on the test images. An arm that \
             regularises has a smaller gap than {0}: its difference is below zero.</p>\n<div class=\"wide\"><table>\n<tr><th>arm</th>\
             <th>its gap minus that of {0}, points (interval over seeds)</th><th>pairs</th></tr>\n{rows}</table></div>\n\
             <p><small>{1}These intervals are not corrected for the number of arms.</small></p>\n",
            escaped(&self.arms[0].name),
            self.gap_of_seeds(),
        )
    }

    /// How far seeds alone move the gap.
    fn gap_of_seeds(&self) -> String {
        let again = self.again.as_ref().map(|again| &again.tested.arm);
        let gap = self.gaps.iter().find(|gap| Some(&gap.arm) == again);
        gap.map_or(String::new(), |gap| {
            format!(
                "{} is the same net as {}, and its gap differs by {} points: other seeds alone do that. ",
                escaped(&gap.arm),
                escaped(&gap.against),
                gap.points()
            )
        })
    }

    /// Arms against each other, as a section of the page.
    pub(super) fn between_section(&self) -> String {
        let row = |difference: &Further| {
            format!(
                "<tr><td>{} minus {}</td><td>{}</td><td>{}</td></tr>\n",
                escaped(&difference.arm),
                escaped(&difference.against),
                difference.points(),
                difference.pairs
            )
        };
        let rows: String = self.between.iter().map(row).collect();
        if rows.is_empty() {
            return String::new();
        }
        format!(
            "<h2 id=\"between\">Arms against each other</h2>\n<p>The study was planned for comparisons with {}. These differences are for orientation: they \
             have no verdict, and their intervals are not corrected for their number.</p>\n<div class=\"wide\"><table>\n<tr><th>arms</th>\
             <th>difference of test accuracy, points (interval over seeds)</th><th>pairs</th></tr>\n{rows}</table></div>\n",
            escaped(&self.arms[0].name)
        )
    }
}
