//! The charts of the page that show all arms: differences, runs, learning, and accuracy against cost.
//!
//! Not here: drawing (`svg`), and the table of tests (`comparisons_page`).

use convoy_report::svg::{Picture, Scale, colour, escaped, key};
use convoy_report::words::{percent, sentence};

use super::page::{ROW, ROWS, WIDTH};
use super::{ArmReport, Comparison, CurvePoint, Report, Summary, Tested};
use crate::statistics::Interval;

/// With more arms, the ranges of runs would hide each other.
const RANGES_MAX: usize = 4;

impl Report {
    pub(super) fn differences_section(&self) -> String {
        let control = &self.arms[0].name;
        let compared: Vec<(usize, &Comparison)> = self.all_comparisons();
        if compared.is_empty() {
            return String::new();
        }
        let height = ROW * compared.len() as f64;
        let mut picture =
            Picture::new(WIDTH, height + 74.0, "Differences of accuracy from the control, with intervals");
        let margin = self.study.margin;
        let points = |share: f64| share * 100.0;
        let values = compared.iter().flat_map(|(_, comparison)| {
            let Tested { differences, interval, bootstrap, .. } = &comparison.tested;
            let ends = [interval.low, interval.high, bootstrap.low, bootstrap.high].map(points);
            differences.iter().map(|d| points(*d)).chain(ends).collect::<Vec<_>>()
        });
        let scale = Scale::around(values.chain([-margin, margin]), ROWS, 8.0);
        let (top, bottom) = (16.0, 16.0 + height);
        let (left, right) = (scale.at(-margin), scale.at(margin));
        picture.text((left + right) / 2.0, top - 4.0, "middle", &format!("within {margin} points"));
        picture.area("margin", &[(left, top), (right, top), (right, bottom), (left, bottom)], "#009e73");
        picture.axis_below(&scale, top, bottom, &format!("points of accuracy above (right) or below (left) {control}"));
        picture.line("zero", (scale.at(0.0), top), (scale.at(0.0), bottom), "#000");
        for (row, (arm, comparison)) in compared.iter().enumerate() {
            let y = top + ROW * (row as f64 + 0.5);
            picture.text(ROWS.0 - 12.0, y + 4.0, "end", &comparison.tested.arm);
            for (pair, difference) in comparison.tested.differences.iter().enumerate() {
                let title = format!("{}, pair {}: {:+.2} points", comparison.tested.arm, pair + 1, points(*difference));
                picture.mark(*arm, "run", (scale.at(points(*difference)), y + 11.0), 3.0, &title);
            }
            let Interval { low, high } = comparison.tested.bootstrap.scaled(100.0);
            picture.line("thin", (scale.at(low), y - 7.0), (scale.at(high), y - 7.0), colour(*arm));
            let Interval { low, high } = comparison.tested.interval.scaled(100.0);
            picture.line("thick", (scale.at(low), y - 7.0), (scale.at(high), y - 7.0), colour(*arm));
            picture.mark(
                *arm,
                "mean",
                (scale.at(points(comparison.tested.mean)), y - 7.0),
                5.5,
                &sentence(if comparison.tested.is_again { &comparison.luck } else { &comparison.said }),
            );
        }
        let confidence = percent(self.study.confidence);
        let same = match self.design.comparisons {
            1 => "A mean that is drawn there is not enough for \"the same\".".to_owned(),
            several => format!(
                "With {several} comparisons, the tests for \"the same\" are stricter than the intervals that are drawn here, so an interval in the \
                 green area is not always enough."
            ),
        };
        format!(
            "<h2>What came out, and how sure it is</h2>\n<figure>\n{}<figcaption>The difference of each arm from {}: the large mark is the \
             mean of all pairs, and small marks are single pairs. The thick line is the {confidence} interval of the mean over seeds. The \
             thin line is the interval over seeds and test images: it would also hold for other test images of the same kind. Green: \
             differences of less than {margin} points, the margin. {same} A difference can lie there \
             and still be better or worse.</figcaption>\n\
             </figure>\n{}",
            picture.finish(),
            escaped(control),
            self.comparison_table(),
        )
    }

    pub(super) fn runs_section(&self) -> String {
        let height = ROW * self.arms.len() as f64;
        let mut picture = Picture::new(WIDTH, height + 74.0, "The test accuracy of every run");
        let accuracies = self.arms.iter().flat_map(|arm| arm.runs.iter().map(|run| run.test_accuracy * 100.0));
        let scale = Scale::around(accuracies, ROWS, 8.0);
        let (top, bottom) = (16.0, 16.0 + height);
        picture.axis_below(&scale, top, bottom, "accuracy on the test images, %");
        for (index, arm) in self.arms.iter().enumerate() {
            let y = top + ROW * (index as f64 + 0.5);
            picture.text(ROWS.0 - 12.0, y + 4.0, "end", &arm.name);
            let mean = scale.at(arm.test_accuracy.mean * 100.0);
            picture.line("thick", (mean, y - 14.0), (mean, y + 14.0), colour(index));
            for (place, run) in arm.runs.iter().enumerate() {
                // Runs with the same accuracy stay visible.
                let shift = (place % 5) as f64 * 4.0 - 8.0;
                let title = format!("{}, seed {}: {:.2} %", arm.name, run.seed, run.test_accuracy * 100.0);
                picture.mark(index, "run", (scale.at(run.test_accuracy * 100.0), y + shift), 3.5, &title);
            }
        }
        format!(
            "<h2>Every run</h2>\n<figure>\n{}<figcaption>Each mark is a run, and each line the mean of its arm. Heights within a row mean \
             nothing.</figcaption>\n</figure>\n",
            picture.finish()
        )
    }

    pub(super) fn curves_section(&self) -> String {
        let has_ranges = self.arms.len() <= RANGES_MAX;
        let chart = |name: &str, about: &str, value: &dyn Fn(&CurvePoint) -> (f64, f64, f64)| {
            let (left, right, top, bottom) = (80.0, WIDTH - 30.0, 16.0, 300.0);
            let mut picture = Picture::new(WIDTH, 352.0, about);
            let all = || self.arms.iter().flat_map(|arm| arm.curve.iter().map(value));
            let shown = |(mean, low, high)| if has_ranges { [mean, low, high] } else { [mean; 3] };
            let vertical = Scale::around(all().flat_map(shown), (bottom, top), 6.0);
            let epochs = (1.0, (self.study.epochs as f64).max(2.0));
            // There is nothing between two epochs.
            let horizontal = Scale::around([epochs.0, epochs.1], (left, right), (epochs.1 - epochs.0).min(9.0));
            picture.axis_left(&vertical, left, right, name);
            picture.axis_below(&horizontal, top, bottom, "epoch");
            for (index, arm) in self.arms.iter().enumerate() {
                let at = |point: &CurvePoint, value: f64| (horizontal.at(point.epoch as f64), vertical.at(value));
                let upper = arm.curve.iter().map(|point| at(point, value(point).2));
                let lower = arm.curve.iter().rev().map(|point| at(point, value(point).1));
                if has_ranges {
                    picture.area("band", &upper.chain(lower).collect::<Vec<_>>(), colour(index));
                }
                let means: Vec<_> = arm.curve.iter().map(|point| at(point, value(point).0)).collect();
                picture.path("curve", &means, colour(index));
                for (point, place) in arm.curve.iter().zip(&means) {
                    let title = format!("{}, epoch {}: {:.4}", arm.name, point.epoch, value(point).0);
                    picture.mark(index, "mean", *place, 3.5, &title);
                }
            }
            picture.finish()
        };
        let in_percent = |summary: &Summary| (summary.mean * 100.0, summary.min * 100.0, summary.max * 100.0);
        let plain = |summary: &Summary| (summary.mean, summary.min, summary.max);
        format!(
            "<h2>Learning</h2>\n{}<figure>\n{}{}<figcaption>The mean of each arm{}.</figcaption>\n</figure>\n",
            self.keys(),
            chart("test accuracy, %", "Test accuracy by epoch", &|point| in_percent(&point.test_accuracy)),
            chart("training loss", "Training loss by epoch", &|point| plain(&point.train_loss)),
            if has_ranges { ", and the range of its runs" } else { "" },
        )
    }

    pub(super) fn cost_section(&self) -> String {
        let (left, right, top, bottom) = (80.0, WIDTH - 30.0, 16.0, 300.0);
        let mut picture = Picture::new(WIDTH, 352.0, "Accuracy against cost");
        let millions = |arm: &ArmReport| arm.multiply_adds as f64 / 1e6;
        let reach = |arm: &ArmReport| {
            let Summary { mean, deviation, .. } = arm.test_accuracy;
            [mean - deviation, mean, mean + deviation].map(|value| value * 100.0)
        };
        let vertical = Scale::around(self.arms.iter().flat_map(reach), (bottom, top), 6.0);
        let horizontal = Scale::around(self.arms.iter().map(millions).chain([0.0]), (left, right), 8.0);
        picture.axis_left(&vertical, left, right, "test accuracy, %");
        picture.axis_below(&horizontal, top, bottom, "million multiply-adds per image, forward");
        for (index, arm) in self.arms.iter().enumerate() {
            let [low, mean, high] = reach(arm);
            let x = horizontal.at(millions(arm));
            picture.line("thin", (x, vertical.at(low)), (x, vertical.at(high)), colour(index));
            picture.mark(index, "mean", (x, vertical.at(mean)), 6.0, &format!("{}: {mean:.2} %", arm.name));
        }
        format!(
            "<h2>Accuracy against cost</h2>\n{}<figure>\n{}<figcaption>The mean of each arm; the line is one standard deviation of runs up and \
             down.</figcaption>\n</figure>\n",
            self.keys(),
            picture.finish()
        )
    }

    /// The marks of all arms.
    fn keys(&self) -> String {
        let keys: String = self.arms.iter().enumerate().map(|(index, arm)| key(index, &arm.name)).collect();
        format!("<p class=\"keys\">{keys}</p>\n")
    }
}
