//! What follows from the tests of an arm against the control, in plain words. Never a p-value alone.

use convoy_report::binomial::as_uneven;
use convoy_report::words::chance;
use serde::Serialize;

use crate::file::Study;
use crate::statistics::Interval;

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

/// The tests of an arm against the control, before they are corrected for the number of comparisons. Differences are the arm's accuracy
/// minus the control's, as shares.
#[derive(Clone, Debug, Serialize)]
pub struct Tested {
    /// The arm.
    pub arm: String,
    /// Whether it is the control with other seeds.
    #[serde(skip)]
    pub(super) is_again: bool,
    /// The difference of each pair.
    pub differences: Vec<f64>,
    /// The mean difference.
    pub mean: f64,
    /// The standard deviation of differences.
    pub deviation: f64,
    /// The interval of the mean over seeds, by Student's t.
    pub interval: Interval,
    /// The interval of the mean over seeds and test images, by the BCa bootstrap.
    pub bootstrap: Interval,
    /// The same with twice the error: if it lies within the margin, the bootstrap agrees that the arms are the same.
    pub bootstrap_of_equivalence: Interval,
    /// The p-value of the exact sign-flip test. 1 if the differences are too large to tabulate.
    pub sign_flip: f64,
    /// The p-value of two one-sided tests of equivalence within the margin.
    pub equivalence: f64,
    /// The share of pairs in which the arm is better; a tie counts half.
    pub superiority: f64,
    /// Its interval.
    pub superiority_interval: Interval,
    /// Welch's test, which ignores pairs: its p-value.
    pub welch: f64,
    /// Its interval.
    pub welch_interval: Interval,
    /// The correlation of paired accuracies. None if an arm's accuracy never varies.
    pub correlation: Option<f64>,
    /// The number of unpaired runs of each arm that would be as precise. None if differences never vary.
    pub effective_runs: Option<f64>,
    /// Runs of the arm and of the control that diverged.
    pub diverged: [usize; 2],
    /// About the number of pairs that the margin needs with the observed deviation. None if it is beyond reason.
    pub pairs_needed: Option<usize>,
}

/// An arm against the control.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What was tested.
    #[serde(flatten)]
    pub tested: Tested,
    /// The p-value of the sign-flip test, corrected over all comparisons by Holm's method. That of the control with other seeds is multiplied
    /// by the number of comparisons.
    pub sign_flip_corrected: f64,
    /// That of equivalence, corrected likewise.
    pub equivalence_corrected: f64,
    /// What follows.
    pub verdict: Verdict,
    /// The verdict in words.
    pub said: String,
    /// How many pairs the arm wins, and how often chance alone does as much, in words.
    pub luck: String,
}

impl Tested {
    /// The comparison, with p-values that are corrected for the number of comparisons.
    pub(super) fn judged(self, sign_flip_corrected: f64, equivalence_corrected: f64, study: &Study) -> Comparison {
        let alpha = 1.0 - study.confidence;
        // The sign-flip test and both intervals must agree: the test is exact for seeds, and the bootstrap also varies the images.
        let differs = sign_flip_corrected <= alpha && self.interval.excludes_zero() && self.bootstrap.excludes_zero();
        let margin = study.margin_share();
        let Interval { low, high } = self.bootstrap_of_equivalence;
        let is_same = equivalence_corrected <= alpha && -margin < low && high < margin && !self.both_diverged();
        let wider = Interval {
            low: self.interval.low.min(self.bootstrap.low),
            high: self.interval.high.max(self.bootstrap.high),
        };
        let verdict = match (differs, self.mean > 0.0) {
            (true, true) => Verdict::Better(wider),
            (true, false) => Verdict::Worse(Interval { low: -wider.high, high: -wider.low }),
            (false, _) if is_same => Verdict::Same,
            (false, _) => Verdict::Unclear,
        };
        let (said, luck) = (self.said(verdict, is_same, study), self.luck(study));
        Comparison { sign_flip_corrected, equivalence_corrected, verdict, said, luck, tested: self }
    }

    /// Whether runs of both arms diverged. Runs that both count as guessing are not equal in any sense that matters.
    fn both_diverged(&self) -> bool {
        self.diverged.iter().all(|diverged| *diverged > 0)
    }

    /// Whether a run of either arm diverged.
    pub(super) fn has_diverged(&self) -> bool {
        self.diverged.iter().any(|diverged| *diverged > 0)
    }

    fn luck(&self, study: &Study) -> String {
        let count = |sign: f64| self.differences.iter().filter(|difference| **difference * sign > 0.0).count();
        let (wins, losses) = (count(1.0), count(-1.0));
        let (winner, loser, most) = match wins >= losses {
            true => (&self.arm, &study.control().name, wins),
            false => (&study.control().name, &self.arm, losses),
        };
        if wins + losses == 0 {
            return format!("all {} pairs are ties", self.differences.len());
        }
        let (decided, ties) = (wins + losses, self.differences.len() - wins - losses);
        let ties = match ties {
            0 => String::new(),
            1 => ", with a tie".to_owned(),
            several => format!(", with {several} ties"),
        };
        let chance = chance(as_uneven(most, decided));
        format!(
            "{winner} wins {most} of {decided} pairs against {loser}{ties}; of two equal nets, one or the other wins at least {most} of {decided} with \
             a chance of {chance}"
        )
    }

    fn said(&self, verdict: Verdict, is_same: bool, study: &Study) -> String {
        let (arm, control, margin) = (&self.arm, &study.control().name, study.margin);
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
            Verdict::Unclear if self.both_diverged() => {
                format!("runs of both {arm} and {control} diverged, so these pairs can't tell them apart")
            }
            Verdict::Unclear => {
                let more = match self.pairs_needed {
                    Some(needed) if needed == pairs + 1 => "about one more pair would".to_owned(),
                    Some(needed) if needed > pairs => format!("about {} more pairs would", needed - pairs),
                    Some(_) => "a study with more pairs could".to_owned(),
                    None => "no reasonable number of pairs would".to_owned(),
                };
                format!("these {pairs} pairs of runs can't tell {arm} from {control}; {more}")
            }
        };
        let diverged = match self.diverged.iter().sum() {
            0 => String::new(),
            1 => " (a run diverged, and counts as guessing)".to_owned(),
            several => format!(" ({several} runs diverged, and count as guessing)"),
        };
        said + &diverged
    }
}
