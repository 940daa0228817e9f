//! The report for a terminal.

use convoy_report::words::{chance, percent};

use super::{ArmReport, Comparison, Further, Report, Tested};
use crate::statistics::{Interval, sign_flip};
use crate::tune::Tuned;

impl Report {
    /// The verdicts, and the figures behind them.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("question  {}", self.question)];
        lines.push(format!("design    {}", self.design.described()));
        lines.push(String::new());
        let names = self.arms.iter().map(|arm| arm.name.len()).max().unwrap_or(0);
        for arm in &self.arms {
            lines.push(arm.line(names));
        }
        lines.push(String::new());
        for comparison in self.comparisons.iter().chain(&self.again) {
            lines.push(comparison.line(names));
        }
        let gap = |gap: &Further| {
            format!("gap       that of {} minus that of {}: {} points", gap.arm, gap.against, gap.points())
        };
        lines.extend(self.gaps.iter().map(gap));
        lines.push(String::new());
        lines.extend(self.comparisons.iter().map(|comparison| format!("verdict   {}", comparison.said)));
        lines.extend(self.comparisons.iter().map(|comparison| format!("luck      {}", comparison.luck)));
        lines.extend(self.variation.iter().map(|variation| format!("variation {}", variation.said())));
        lines.extend(self.tuned.iter().map(Tuned::line));
        let coloured = self.filters.iter().flat_map(|layer| &layer.arms).filter_map(|arm| arm.colours.as_ref());
        lines.extend(coloured.map(|colours| format!("colour    {}", colours.said)));
        lines.extend(self.check());
        lines.join("\n") + "\n"
    }

    /// What the control's second series says about the method.
    pub(super) fn check(&self) -> Option<String> {
        let again = self.again.as_ref()?;
        let (control, pairs) = (&self.study.control().name, again.tested.differences.len());
        let rate = percent(self.design.alpha / self.design.comparisons as f64);
        let largest = again.tested.differences.iter().fold(0.0, |largest: f64, d| largest.max(d.abs()));
        let Interval { low, high } = again.tested.interval.scaled(100.0);
        let apart = format!(
            "single pairs differ by up to {:.2} points; the mean difference is {:+.2} ({} interval {low:+.2} to {high:+.2}); one of this size has \
             a chance of {}, and a verdict needs at most {rate}",
            largest * 100.0,
            again.tested.mean * 100.0,
            percent(self.study.confidence),
            chance(again.tested.sign_flip)
        );
        if again.tested.has_diverged() {
            return Some(format!("check     runs of {control} diverged, so the method was not checked"));
        }
        Some(if self.is_broken() {
            format!(
                "BROKEN    {control} with other seeds came out as different from {control}: {}. A sound method does that in at most {rate} of all \
                 studies, so do not believe the verdicts above",
                again.said
            )
        } else if sign_flip::smallest(pairs) * self.design.comparisons as f64 > self.design.alpha {
            format!(
                "check     {pairs} pairs are too few to check the method; {control} with other seeds and {control}: {apart}"
            )
        } else {
            format!(
                "check     {control} with other seeds is not found to differ from {control}, as it should be; {apart}"
            )
        })
    }
}

impl Tuned {
    fn line(&self) -> String {
        format!("rate      {} was trained with a learning rate of {}", self.arm, self.chosen())
    }
}

impl ArmReport {
    fn line(&self, names: usize) -> String {
        let diverged = if self.diverged > 0 { format!(", {} diverged", self.diverged) } else { String::new() };
        let train = self
            .train_accuracy
            .map_or(String::new(), |train| format!(", training accuracy {:.2} %", train.mean * 100.0));
        format!(
            "{:<names$}  test accuracy {:.2} % (from {:.2} to {:.2}, {} runs{diverged}){train}; {} parameters, {:.2} M \
             multiply-adds",
            self.name,
            self.test_accuracy.mean * 100.0,
            self.test_accuracy.min * 100.0,
            self.test_accuracy.max * 100.0,
            self.test_accuracy.runs,
            self.parameters,
            self.multiply_adds as f64 / 1e6
        )
    }
}

impl Comparison {
    fn line(&self, names: usize) -> String {
        let Tested { arm, mean, interval, bootstrap, superiority, differences, .. } = &self.tested;
        let (t, bootstrap) = (interval.scaled(100.0), bootstrap.scaled(100.0));
        format!(
            "{arm:<names$}  {:+.2} points, from {:+.2} to {:+.2} over seeds, and from {:+.2} to {:+.2} over seeds and test images; better in {:.0} % \
             of {} pairs",
            mean * 100.0,
            t.low,
            t.high,
            bootstrap.low,
            bootstrap.high,
            superiority * 100.0,
            differences.len()
        )
    }
}
