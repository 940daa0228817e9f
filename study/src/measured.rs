//! What was measured in a run, as its file in the run's folder says it. Everything in it is the same to the bit when the run is repeated,
//! so it has no times.
//!
//! Not here: measuring (`run`), and what follows from it (`report`).

use serde::{Deserialize, Serialize};

/// A run's file.
pub const MEASURED: &str = "measured.json";
/// The file of all runs, in the study's folder.
pub const MEASUREMENTS: &str = "measurements.json";

/// A run that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The name of its arm.
    pub arm: String,
    /// Its seed.
    pub seed: u64,
    /// SHA-256 over all that decides its result.
    pub job_sha256: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Measured {
    /// Number of test images. None if it diverged.
    pub(crate) fn test_images(&self) -> Option<usize> {
        match &self.outcome {
            Outcome::Trained(trained) => Some(trained.test.images),
            Outcome::DivergedAfter(_) => None,
        }
    }

    /// Checks that its figures agree with each other, with a run of so many epochs, and with the test images of other runs, if there are
    /// any.
    ///
    /// # Errors
    /// Says which do not.
    pub(crate) fn check(&self, epochs: u64, test_images: Option<usize>) -> Result<(), String> {
        let Outcome::Trained(trained) = &self.outcome else { return Ok(()) };
        let (run, test, train) =
            (format!("the run of arm \"{}\" with seed {}", self.arm, self.seed), trained.test, trained.train);
        let right = &trained.right.0;
        let counted = right.iter().filter(|right| **right).count();
        if right.len() != test.images || counted != test.correct {
            let (all, correct, images) = (right.len(), test.correct, test.images);
            return Err(format!(
                "in {run}, \"right\" has {counted} of {all} images, and \"test\" {correct} of {images}"
            ));
        }
        if test.images == 0 || train.images == 0 || train.correct > train.images {
            return Err(format!("{run} has impossible counts of images"));
        }
        if let Some(others) = test_images.filter(|others| *others != test.images) {
            return Err(format!("{run} has {} test images, and other runs have {others}", test.images));
        }
        if trained.epochs.len() as u64 != epochs {
            return Err(format!("{run} has {} epochs, not {epochs}", trained.epochs.len()));
        }
        let losses = trained.epochs.iter().flat_map(|epoch| [epoch.train_loss, epoch.test_loss]);
        if let Some(loss) = losses.chain([test.loss, train.loss]).find(|loss| *loss < 0.0) {
            return Err(format!("{run} has a loss of {loss}; must be at least 0"));
        }
        Ok(())
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was trained to its end.
    Trained(Trained),
    /// Numbers were no longer finite after this many steps, so it has no result.
    DivergedAfter(u64),
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// SHA-256 over all weights.
    pub weights_sha256: String,
    /// Each epoch, as `metrics.jsonl` has it.
    pub epochs: Vec<Epoch>,
    /// The final weights on the test images. In runs that try learning rates, these and the following are the held-out images.
    pub test: Score,
    /// The final weights on the training images, without dropout.
    pub train: Score,
    /// Which test images were classified correctly, in their order.
    pub right: Right,
}

impl Trained {
    /// Accuracy on the training images minus that on the test images.
    pub fn gap(&self) -> f64 {
        self.train.accuracy() - self.test.accuracy()
    }
}

/// An epoch of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Counted from 1.
    pub epoch: u64,
    /// Mean loss of its training images, during training.
    pub train_loss: f64,
    /// Share of the test images that were classified correctly after it.
    pub test_accuracy: f64,
    /// Mean loss of the test images after it.
    pub test_loss: f64,
}

/// A measurement on a set of images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Number of images.
    pub images: usize,
    /// Number of images that were classified correctly.
    pub correct: usize,
    /// Mean loss.
    pub loss: f64,
}

impl Score {
    /// The share of images that were classified correctly.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.images.max(1) as f64
    }
}

/// A list of yes or no, written as hexadecimal digits of four each, the first one in the highest bit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Right(pub Vec<bool>);

impl From<Right> for String {
    fn from(Right(bits): Right) -> String {
        let digit = |four: &[bool]| {
            let value = (0..4).fold(0, |value, bit| value * 2 + u32::from(four.get(bit).copied().unwrap_or(false)));
            char::from_digit(value, 16).unwrap_or('0')
        };
        let digits: String = bits.chunks(4).map(digit).collect();
        format!("{}:{digits}", bits.len())
    }
}

impl TryFrom<String> for Right {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong =
            || "must be the number of images, a colon, and a hexadecimal digit for every four of them".to_owned();
        let (count, digits) = text.split_once(':').ok_or_else(wrong)?;
        let count: usize = count.parse().map_err(|_| wrong())?;
        if digits.len() != count.div_ceil(4) {
            return Err(wrong());
        }
        let mut bits = Vec::with_capacity(digits.len() * 4);
        for digit in digits.chars() {
            let value = digit.to_digit(16).ok_or_else(wrong)?;
            bits.extend((0..4).rev().map(|bit| value >> bit & 1 == 1));
        }
        if bits[count..].contains(&true) {
            return Err(wrong());
        }
        bits.truncate(count);
        Ok(Right(bits))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(bits in proptest::collection::vec(any::<bool>(), 0..50)) {
            let text = String::from(Right(bits.clone()));
            prop_assert_eq!(Right::try_from(text).unwrap(), Right(bits));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-f:]{0,12}") {
            if let Ok(right) = Right::try_from(text) {
                prop_assert_eq!(Right::try_from(String::from(right.clone())).unwrap(), right);
            }
        }
    }

    #[test]
    fn an_outcome_is_one_key_of_the_file() {
        let measured =
            Measured { arm: "a".to_owned(), seed: 3, job_sha256: "0".to_owned(), outcome: Outcome::DivergedAfter(7) };
        let text = serde_json::to_string(&measured).unwrap();
        assert_eq!(text, r#"{"arm":"a","seed":3,"job_sha256":"0","diverged_after":7}"#);
        assert_eq!(serde_json::from_str::<Measured>(&text).unwrap(), measured);
    }
}
