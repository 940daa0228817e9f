//! How much the runs of the control vary, and which source of randomness makes them vary.
//!
//! Not here: the series of runs (`vary`).

use convoy_report::svg::{Picture, Scale, colour, key};
use convoy_report::words::percent;
use serde::Serialize;

use super::page::{ROW, ROWS, WIDTH};
use super::{Report, Runs};
use crate::file::Study;
use crate::statistics::{Interval, deviation, deviation_interval};

/// How much the runs of a series vary in their test accuracy.
#[derive(Clone, Debug, Serialize)]
pub struct Variation {
    /// The arm whose runs they are.
    pub arm: String,
    /// What varies between them, in words.
    pub varies: String,
    /// Whether nothing else varies.
    #[serde(skip)]
    is_alone: bool,
    /// Number of runs.
    pub runs: usize,
    /// The standard deviation of the test accuracy.
    pub deviation: f64,
    /// Its interval, by chi-squared.
    pub interval: Interval,
}

impl Variation {
    /// Of the control and of its series. Nothing if it has no series.
    pub(super) fn all(runs: &[Runs], study: &Study) -> Vec<Self> {
        if runs.iter().all(|runs| runs.arm.varies.is_none()) {
            return Vec::new();
        }
        let all_of_it = || "everything that a seed decides".to_owned();
        let of = |(index, runs): (usize, &Runs)| {
            let source = runs.arm.varies.map(|varies| varies.source.about().to_owned());
            let varies = source.or_else(|| (index == 0).then(all_of_it))?;
            let accuracies: Vec<f64> = (0..runs.all.len()).map(|run| runs.accuracy(run)).collect();
            Some(Self {
                arm: runs.arm.name.clone(),
                varies,
                is_alone: runs.arm.varies.is_some(),
                runs: accuracies.len(),
                deviation: deviation(&accuracies),
                interval: deviation_interval(&accuracies, study.confidence),
            })
        };
        runs.iter().enumerate().filter_map(of).collect()
    }

    /// For people.
    pub(super) fn said(&self) -> String {
        let Interval { low, high } = self.interval.scaled(100.0);
        let Self { varies, runs, deviation, .. } = self;
        let deviation = deviation * 100.0;
        let differ = if self.is_alone { "differ only in" } else { "differ in" };
        format!(
            "{runs} runs that {differ} {varies} have a standard deviation of {deviation:.2} points (from {low:.2} to {high:.2})"
        )
    }
}

impl Report {
    /// Where the variation comes from, as a section of the page.
    pub(super) fn variation_section(&self) -> String {
        if self.variation.is_empty() {
            return String::new();
        }
        let height = ROW * self.variation.len() as f64;
        let mut picture = Picture::new(WIDTH, height + 74.0, "The standard deviation of runs by what varies");
        let ends = self.variation.iter().flat_map(|variation| {
            let Interval { low, high } = variation.interval.scaled(100.0);
            [low, high]
        });
        let scale = Scale::around(ends.chain([0.0]), ROWS, 8.0);
        let (top, bottom) = (16.0, 16.0 + height);
        picture.axis_below(&scale, top, bottom, "standard deviation of the test accuracy, points");
        let mut rows = String::new();
        for (row, variation) in self.variation.iter().enumerate() {
            let arm = self.arms.iter().position(|arm| arm.name == variation.arm).unwrap_or(0);
            let y = top + ROW * (row as f64 + 0.5);
            let Interval { low, high } = variation.interval.scaled(100.0);
            let deviation = variation.deviation * 100.0;
            picture.text(ROWS.0 - 12.0, y + 4.0, "end", &variation.arm);
            picture.line("thick", (scale.at(low), y), (scale.at(high), y), colour(arm));
            picture.mark(arm, "mean", (scale.at(deviation), y), 5.5, &variation.said());
            rows += &format!(
                "<tr><td>{}</td><td>{}</td><td>{deviation:.3}</td><td>{low:.3} to {high:.3}</td><td>{}</td></tr>\n",
                key(arm, &variation.arm),
                variation.varies,
                variation.runs
            );
        }
        format!(
            "<h2>Where the variation of runs comes from</h2>\n<figure>\n{}<figcaption>The standard deviation of each series of runs of the \
             control, with its {} interval. In a series, only what is named varies between runs, and all else is the same to the bit.\
             </figcaption>\n</figure>\n<div class=\"wide\"><table>\n<tr><th>series</th><th>what varies</th><th>standard deviation, points</th>\
             <th>interval</th><th>runs</th></tr>\n{rows}</table></div>\n",
            picture.finish(),
            percent(self.study.confidence),
        )
    }
}
