//! What follows from the tests of an arm against the control, in plain words. Never a p-value alone.

use serde::Serialize;

use super::Comparison;
use crate::file::Study;
use crate::statistics::Interval;
use crate::statistics::planning::chance_of_wins;

/// What follows from a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The arm is better, by a difference in this interval.
    Better(Interval),
    /// The arm is worse, by a difference in this interval.
    Worse(Interval),
    /// The two are the same within the margin.
    Same,
    /// The runs can't tell.
    Unclear,
}

/// The tests of an arm against the control, before they are corrected for the number of comparisons. The fields are those of
/// [`Comparison`].
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "Comparison describes them")]
pub struct Tested {
    pub arm: String,
    pub is_again: bool,
    pub differences: Vec<f64>,
    pub mean: f64,
    pub deviation: f64,
    pub interval: Interval,
    pub bootstrap: Interval,
    pub sign_flip: f64,
    pub equivalence: f64,
    pub superiority: f64,
    pub superiority_interval: Interval,
    pub welch: f64,
    pub welch_interval: Interval,
    pub correlation: Option<f64>,
    pub effective_runs: Option<f64>,
    pub diverged: usize,
    pub pairs_needed: Option<usize>,
}

impl Tested {
    /// The comparison, with p-values that are corrected for the number of comparisons.
    pub(super) fn judged(&self, sign_flip_holm: f64, equivalence_holm: f64, study: &Study) -> Comparison {
        let alpha = 1.0 - study.confidence;
        // The sign-flip test and both intervals must agree: the test is exact for seeds, and the bootstrap also varies the images.
        let differs = sign_flip_holm <= alpha && self.interval.excludes_zero() && self.bootstrap.excludes_zero();
        let wider = Interval {
            low: self.interval.low.min(self.bootstrap.low),
            high: self.interval.high.max(self.bootstrap.high),
        };
        let is_same = equivalence_holm <= alpha;
        let verdict = match (differs, self.mean > 0.0) {
            (true, true) => Verdict::Better(wider),
            (true, false) => Verdict::Worse(Interval { low: -wider.high, high: -wider.low }),
            (false, _) if is_same => Verdict::Same,
            (false, _) => Verdict::Unclear,
        };
        let tested = self.clone();
        Comparison {
            said: self.said(verdict, is_same, study),
            luck: self.luck(study),
            arm: tested.arm,
            pairs: tested.differences.len(),
            differences: tested.differences,
            mean: tested.mean,
            deviation: tested.deviation,
            interval: tested.interval,
            bootstrap: tested.bootstrap,
            sign_flip: tested.sign_flip,
            sign_flip_holm,
            equivalence: tested.equivalence,
            equivalence_holm,
            superiority: tested.superiority,
            superiority_interval: tested.superiority_interval,
            welch: tested.welch,
            welch_interval: tested.welch_interval,
            correlation: tested.correlation,
            effective_runs: tested.effective_runs,
            diverged: tested.diverged,
            pairs_needed: tested.pairs_needed,
            verdict,
        }
    }

    fn luck(&self, study: &Study) -> String {
        let count = |sign: f64| self.differences.iter().filter(|difference| **difference * sign > 0.0).count();
        let (wins, losses, pairs) = (count(1.0), count(-1.0), self.differences.len());
        let (winner, loser, most) = match wins >= losses {
            true => (&self.arm, &study.control().name, wins),
            false => (&study.control().name, &self.arm, losses),
        };
        let chance = 100.0 * chance_of_wins(most, pairs);
        format!(
            "{winner} wins {most} of {pairs} pairs against {loser}; a net wins at least {most} of {pairs} against its equal with a chance of \
             {chance:.0} %"
        )
    }

    fn said(&self, verdict: Verdict, is_same: bool, study: &Study) -> String {
        let (arm, control, margin) = (&self.arm, &study.control().name, study.margin * 100.0);
        let pairs = self.differences.len();
        let by = |interval: Interval, word: &str| {
            let Interval { low, high } = interval.scaled(100.0);
            let small =
                if is_same { format!(", which is less than the margin of {margin} points") } else { String::new() };
            format!("{arm} is {word} than {control} by {low:.2} to {high:.2} points{small}")
        };
        let said = match verdict {
            Verdict::Better(interval) => by(interval, "better"),
            Verdict::Worse(interval) => by(interval, "worse"),
            Verdict::Same => format!("{arm} and {control} are the same within {margin} points"),
            Verdict::Unclear => {
                let more = match self.pairs_needed {
                    Some(needed) if needed > pairs => format!("{} more pairs would", needed - pairs),
                    Some(_) => "a study with more pairs could".to_owned(),
                    None => "no reasonable number of pairs would".to_owned(),
                };
                format!("these {pairs} pairs of runs can't tell {arm} from {control}; {more}")
            }
        };
        let diverged = match self.diverged {
            0 => String::new(),
            1 => " (a run diverged, and counts as guessing)".to_owned(),
            several => format!(" ({several} runs diverged, and count as guessing)"),
        };
        said + &diverged
    }
}
