//! The tables of the page about the comparisons with the control, and how their tests work.
//!
//! Not here: the charts (`charts_page`), and verdicts (`verdict`).

use convoy_report::svg::{escaped, key};
use convoy_report::words::{chance, percent};

use super::{Comparison, Report, Verdict};
use crate::statistics::Interval;

/// How chances are corrected.
const HOLM: &str = "<li>Holm's correction: each comparison is another opportunity for luck. The smallest chance is multiplied by the number of \
                    comparisons, the next one by one less, and so on; none becomes smaller than the one before it. That of the control with other seeds is multiplied by the full number.</li>\n";

impl Report {
    /// What came out, and the figures of all tests in a part that can be opened.
    pub(super) fn comparison_table(&self) -> String {
        let row = |(arm, comparison): (usize, &Comparison)| {
            let tested = &comparison.tested;
            let verdict = match comparison.verdict {
                Verdict::Better(_) | Verdict::Worse(_) if tested.is_again => "differs from itself",
                _ if tested.is_again => "not found to differ",
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
        let confidence = percent(self.study.confidence);
        format!(
            "<div class=\"wide\"><table>\n<tr><th>arm</th><th>pairs</th><th>mean difference from {}, points</th><th>{confidence} interval over \
             seeds</th><th>{confidence} interval over seeds and test images</th><th>chance of a difference of this size or more between equal arms{}</th>\
             <th>verdict</th></tr>\n{rows}</table></div>\n{}",
            escaped(&self.arms[0].name),
            self.corrected(),
            self.all_tests(),
        )
    }

    fn all_tests(&self) -> String {
        let is_corrected = self.design.comparisons > 1;
        let row = |(arm, comparison): (usize, &Comparison)| {
            let tested = &comparison.tested;
            let share = tested.superiority_interval.scaled(100.0);
            let mut cells = vec![
                format!("{:+.3} ± {:.3}", tested.mean * 100.0, tested.deviation * 100.0),
                chance(tested.sign_flip),
                chance(tested.equivalence),
            ];
            cells.extend(is_corrected.then(|| chance(comparison.equivalence_corrected)));
            cells.extend([
                format!("{:.0} % ({:.0} to {:.0} %)", tested.superiority * 100.0, share.low, share.high),
                points(tested.welch_interval),
                tested.correlation.map_or("none".to_owned(), |correlation| format!("{correlation:+.2}")),
                tested.effective_runs.map_or("-".to_owned(), |runs| format!("{runs:.1}")),
            ]);
            format!("<tr><td>{}</td>{}</tr>\n", key(arm, &tested.arm), unbroken(&cells))
        };
        let rows: String = self.all_comparisons().into_iter().map(row).collect();
        let margin = self.study.margin;
        // Each of the two tests has the whole level.
        let narrower = percent(1.0 - 2.0 * self.design.alpha);
        let (not, both, holm) = match is_corrected {
            true => (", not corrected", "<th>two one-sided tests, corrected</th>", HOLM),
            false => ("", "", ""),
        };
        format!(
            "<details><summary>All tests, and how they work</summary>\n<ul>\n<li>Sign-flip test: if two nets are equal, the sign of each pair's \
             difference is a coin toss. All combinations of signs are tried. The chance is the share of them with a mean that is at least as far \
             from zero.</li>\n<li>Two one-sided tests: the chance of a mean difference at least this far inside the margin if the true one lies \
             exactly at the margin, {margin} points. They correspond to an interval of {narrower}, which is narrower than the one in the table \
             above.</li>\n{holm}<li>Welch's interval ignores which runs form a pair. Pairs help if their \
             accuracies are correlated.</li>\n</ul>\n<div class=\"wide\"><table>\n<tr><th>arm</th>\
             <th>mean difference ± standard deviation of pairs, points</th><th>sign-flip test{not}</th><th>two one-sided tests{not}</th>{both}\
             <th>pairs in which it is better (a tie counts half)</th><th>Welch's interval</th><th>correlation of pairs</th>\
             <th>runs per arm that would be as precise without pairs</th></tr>\n{rows}</table></div>\n<p><small>Intervals are not corrected for the number of \
             arms. A verdict needs the chances and the intervals to agree.</small></p>\n</details>\n"
        )
    }

    /// How chances are corrected, as a part of a sentence. Nothing for a single comparison.
    pub(super) fn corrected(&self) -> String {
        match self.design.comparisons {
            1 => String::new(),
            several => format!(", corrected for {several} comparisons"),
        }
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
