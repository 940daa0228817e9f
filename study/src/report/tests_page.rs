//! The tables of the page about the comparisons with the control, and how their tests work.

use convoy_report::svg::{escaped, key};
use convoy_report::words::{chance, percent, plural};

use super::{Comparison, Report, Verdict};
use crate::statistics::Interval;

impl Report {
    /// What came out, and the figures of all tests in a part that can be opened.
    pub(super) fn comparison_table(&self) -> String {
        let row = |(arm, comparison): (usize, &Comparison)| {
            let tested = &comparison.tested;
            let verdict = match comparison.verdict {
                _ if tested.is_again => "the control itself",
                Verdict::Better(_) => "better",
                Verdict::Worse(_) => "worse",
                Verdict::Same => "the same",
                Verdict::Unclear => "can't tell",
            };
            let mean = format!("{:+.2}", tested.mean * 100.0);
            let cells = [
                tested.differences.len().to_string(),
                mean,
                points(tested.interval),
                points(tested.bootstrap),
                chance(comparison.sign_flip_corrected),
                verdict.to_owned(),
            ];
            format!("<tr><td>{}</td>{}</tr>\n", key(arm, &tested.arm), unbroken(&cells))
        };
        let rows: String = self.all_comparisons().into_iter().map(row).collect();
        format!(
            "<div class=\"wide\"><table>\n<tr><th>arm</th><th>pairs</th><th>mean difference from {}, points</th><th>{} interval over seeds</th>\
             <th>over seeds and test images</th><th>chance of at least this difference between equal arms, corrected for {}</th>\
             <th>verdict</th></tr>\n{rows}</table></div>\n{}",
            escaped(&self.arms[0].name),
            percent(self.study.confidence),
            plural(self.design.comparisons, "comparison", "comparisons"),
            self.all_tests(),
        )
    }

    fn all_tests(&self) -> String {
        let row = |(arm, comparison): (usize, &Comparison)| {
            let tested = &comparison.tested;
            let share = tested.superiority_interval.scaled(100.0);
            let better = format!("{:.0} % ({:.0} to {:.0} %)", tested.superiority * 100.0, share.low, share.high);
            let cells = [
                format!("{:+.3} ± {:.3}", tested.mean * 100.0, tested.deviation * 100.0),
                chance(tested.sign_flip),
                chance(tested.equivalence),
                chance(comparison.equivalence_corrected),
                better,
                points(tested.welch_interval),
                tested.correlation.map_or("none".to_owned(), |correlation| format!("{correlation:+.2}")),
                tested.effective_runs.map_or("-".to_owned(), |runs| format!("{runs:.1}")),
            ];
            format!("<tr><td>{}</td>{}</tr>\n", key(arm, &tested.arm), unbroken(&cells))
        };
        let rows: String = self.all_comparisons().into_iter().map(row).collect();
        let margin = self.study.margin;
        format!(
            "<details><summary>All tests, and how they work</summary>\n<ul>\n<li>Sign-flip test: if two nets are equal, the sign of each pair's \
             difference is a coin toss. All combinations of signs are tried. The chance is the share of them with a mean that is at least as far \
             from zero.</li>\n<li>Two one-sided tests: the chance of a difference as small as this one if the true one is {margin} points, the \
             margin.</li>\n<li>Holm's correction: each comparison is another opportunity for luck, so the chances are made larger.</li>\n<li>Welch's \
             interval ignores which runs form a pair. Pairs help if their accuracies are correlated.</li>\n</ul>\n<div class=\"wide\"><table>\n\
             <tr><th>arm</th><th>mean difference ± standard deviation of pairs, points</th><th>sign-flip test, not corrected</th>\
             <th>two one-sided tests, not corrected</th><th>two one-sided tests, corrected</th>\
             <th>pairs in which it is better (a tie counts half)</th><th>Welch's interval</th><th>correlation of pairs</th>\
             <th>unpaired runs as precise as these pairs</th></tr>\n{rows}</table></div>\n<p><small>Intervals are not corrected for the number of \
             arms. Chances are, where it says so, and a verdict needs both.</small></p>\n</details>\n"
        )
    }
}

/// An interval in points.
fn points(interval: Interval) -> String {
    let Interval { low, high } = interval.scaled(100.0);
    format!("{low:+.2} to {high:+.2}")
}

/// Cells whose texts stay on one line.
fn unbroken(cells: &[String]) -> String {
    cells.iter().map(|cell| format!("<td>{}</td>", cell.replace(' ', "&nbsp;"))).collect()
}
