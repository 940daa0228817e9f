//! The design of a study before it runs: its runs, its hash, and what it can show at best.
//!
//! Not here: results.

use convoy_common::batch::Batches;
use convoy_common::parameters::hex;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::StudyError;
use crate::file::Study;
use crate::images::Images;
use crate::statistics::{planning, sign_flip};

/// The version of the arithmetic: it changes when docs/NUMERICS.md changes the bits of a job.
const NUMERICS: u32 = 1;
/// The number of resamples of an interval over seeds and test images.
pub const RESAMPLES: usize = 10_000;

/// A run of a study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId {
    /// The place of its pair: runs of different arms with the same place form a pair. It comes first, so that runs in order have whole
    /// pairs as early as possible.
    pub pair: usize,
    /// The index of its arm.
    pub arm: usize,
}

/// What the design can show.
#[derive(Clone, Debug, Serialize)]
pub struct Design {
    /// Number of comparisons with the control, over which tests are corrected. The control with other seeds is not among them.
    pub comparisons: usize,
    /// Pairs of the comparison with the fewest.
    pub pairs: usize,
    /// The smallest p-value that the sign-flip test can give, corrected for all comparisons.
    pub smallest_p: f64,
    /// The level of tests.
    pub alpha: f64,
    /// The number of pairs from which the sign-flip test can reject.
    pub pairs_to_reject: usize,
    /// The smallest difference of accuracy that is found with a chance of 80 %, in points, if the expected deviation is right. The test is
    /// corrected as for the first of all comparisons.
    pub detectable: f64,
    /// The smallest margin within which equal arms are shown to be equal with a chance of 80 %, in points, likewise.
    pub provable_margin: f64,
}

impl Design {
    /// The design of a study.
    pub fn of(study: &Study) -> Self {
        let compared = || study.arms[1..].iter().filter(|arm| !arm.is_series());
        let comparisons = compared().count().max(1);
        let pairs = compared().map(|arm| arm.seeds.len()).min().unwrap_or(0);
        let alpha = 1.0 - study.confidence;
        let corrected = |pairs| (sign_flip::smallest(pairs) * comparisons as f64).min(1.0);
        Self {
            comparisons,
            pairs,
            smallest_p: corrected(pairs),
            alpha,
            pairs_to_reject: (1..).find(|pairs| corrected(*pairs) <= alpha).unwrap_or(usize::MAX),
            detectable: planning::detectable(pairs, study.expected_deviation, alpha / comparisons as f64),
            provable_margin: planning::provable_margin(pairs, study.expected_deviation, alpha / comparisons as f64),
        }
    }

    /// Whether tests can reject anything.
    pub fn can_reject(&self) -> bool {
        self.smallest_p <= self.alpha
    }

    /// What the design can show, in a sentence or two.
    pub fn described(&self) -> String {
        if self.pairs == 0 {
            return "no arms are compared with the control".to_owned();
        }
        let Self { pairs, comparisons, pairs_to_reject, detectable, provable_margin, .. } = self;
        let corrected =
            if *comparisons > 1 { format!(", corrected for {comparisons} comparisons") } else { String::new() };
        if self.can_reject() {
            return format!(
                "{pairs} pairs of runs can find a difference of {detectable:.2} points, or show that arms are the same within {provable_margin:.2} \
                 points, each with a chance of about 80 %{corrected}"
            );
        }
        format!(
            "{pairs} pairs of runs can't show a difference of any size: the smallest possible p-value of the exact sign-flip test is \
             {:.3}{corrected}, and it needs {pairs_to_reject} pairs",
            self.smallest_p
        )
    }

    /// Checks that the design can show something, unless the study is exploratory.
    ///
    /// # Errors
    /// Says how many runs it needs.
    pub fn check(&self, study: &Study) -> Result<(), StudyError> {
        if self.can_reject() || study.exploratory || self.pairs == 0 {
            return Ok(());
        }
        Err(StudyError::Weak(format!(
            "{}; give the study more runs, or say exploratory = true to run it all the same",
            self.described()
        )))
    }
}

impl Study {
    /// All runs, pair by pair.
    pub fn runs(&self) -> Vec<RunId> {
        let of_arm = |arm: usize| (0..self.arms[arm].seeds.len()).map(move |pair| RunId { pair, arm });
        let mut runs: Vec<RunId> = (0..self.arms.len()).flat_map(of_arm).collect();
        runs.sort_unstable();
        runs
    }

    /// SHA-256 over everything that decides what is run and what is claimed, and over the images.
    pub fn sha256(&self, images: &str) -> String {
        sha256_of(&(self, images))
    }

    /// SHA-256 over everything that decides the result of a run, defaults included: it is the same in every study that has the run.
    pub fn job_sha256(&self, id: RunId, images: &Images) -> String {
        let arm = &self.arms[id.arm];
        let trained = self.settings.trained_of(images.all);
        let steps = |batch| Batches { images: trained, batch }.steps_per_epoch();
        let job = self.settings.job(arm, self.epochs, arm.seeds[id.pair], images.sha256.clone(), steps);
        sha256_of(&(NUMERICS, job.ok()))
    }
}

/// SHA-256 over the JSON form of a value.
fn sha256_of(value: &impl Serialize) -> String {
    // Keys of JSON objects are in the order of the struct's fields, so the text is always the same.
    let text = serde_json::to_string(value).unwrap_or_default();
    hex(&Sha256::digest(text.as_bytes()))
}
