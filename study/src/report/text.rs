//! The report for a terminal.

use super::{ArmReport, Comparison, Report};

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
        lines.push(String::new());
        lines.extend(self.comparisons.iter().map(|comparison| format!("verdict   {}", comparison.said)));
        lines.extend(self.comparisons.iter().map(|comparison| format!("luck      {}", comparison.luck)));
        lines.extend(self.check());
        lines.join("\n") + "\n"
    }

    /// What the control's second series says about the method.
    pub(super) fn check(&self) -> Option<String> {
        let again = self.again.as_ref()?;
        let control = &self.study.control().name;
        Some(if self.is_broken() {
            format!(
                "BROKEN    {control} with other seeds came out as different from {control}, so nothing above can be believed: {}",
                again.said
            )
        } else {
            let largest = again.differences.iter().fold(0.0, |largest: f64, d| largest.max(d.abs()));
            format!(
                "check     {control} with other seeds is not found to differ from {control}, as it should be; their pairs differ by up to {:.2} \
                 points",
                largest * 100.0
            )
        })
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
        let (t, bootstrap) = (self.interval.scaled(100.0), self.bootstrap.scaled(100.0));
        format!(
            "{:<names$}  {:+.2} points, from {:+.2} to {:+.2} over seeds, and from {:+.2} to {:+.2} over seeds and test images; better in {:.0} % \
             of {} pairs",
            self.arm,
            self.mean * 100.0,
            t.low,
            t.high,
            bootstrap.low,
            bootstrap.high,
            self.superiority * 100.0,
            self.pairs
        )
    }
}
