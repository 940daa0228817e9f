//! Softmax and cross-entropy, in f64 with a platform-independent `exp` and `log`. No other module combines the logits of
//! all towers.

use std::borrow::Cow;

/// The result of one sample's logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Cross-entropy.
    pub loss: f64,
    /// The class of the largest logit; the first of several.
    pub predicted: usize,
}

/// The loss of one sample. Writes the gradient of its logits, divided by `batch`, to `gradient`.
pub fn cross_entropy(logits: &[f32], label: usize, batch: usize, gradient: &mut [f32]) -> Verdict {
    let (predicted, largest) = first_maximum(logits);
    let (exponentials, sum) = exponentials(logits, largest);
    for (class, (slot, e)) in gradient.iter_mut().zip(&exponentials).enumerate() {
        let target = if class == label { 1.0 } else { 0.0 };
        *slot = ((e / sum - target) / batch as f64) as f32;
    }
    Verdict { loss: libm::log(sum) - (f64::from(logits[label]) - largest), predicted }
}

/// The softmax of one sample's logits.
pub(crate) fn probabilities(logits: &[f32]) -> Vec<f64> {
    let (exponentials, sum) = exponentials(logits, first_maximum(logits).1);
    exponentials.iter().map(|e| e / sum).collect()
}

/// The logits of an image that was seen by several views, (view, class): for each class, the logarithm of its mean probability over the views.
/// The logits of a single view stay as they are.
pub(crate) fn mean_logits(logits: &[f32], classes: usize) -> Cow<'_, [f32]> {
    if logits.len() == classes {
        return Cow::Borrowed(logits);
    }
    let views: Vec<Vec<f64>> = logits.chunks_exact(classes).map(log_probabilities).collect();
    let mean = |class: usize| {
        let of_class = || views.iter().map(|view| view[class]);
        let largest = of_class().fold(f64::NEG_INFINITY, f64::max);
        let sum = of_class().fold(0.0, |sum, logarithm| sum + libm::exp(logarithm - largest));
        (largest + libm::log(sum / views.len() as f64)) as f32
    };
    Cow::Owned((0..classes).map(mean).collect())
}

/// The logarithm of the softmax of one sample's logits. It is finite also where the softmax is too small for f64.
fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let (_, largest) = first_maximum(logits);
    let (_, sum) = exponentials(logits, largest);
    let logarithm = libm::log(sum);
    logits.iter().map(|logit| f64::from(*logit) - largest - logarithm).collect()
}

/// The exponential of each logit minus the largest one, and their sum in the order of classes.
fn exponentials(logits: &[f32], largest: f64) -> (Vec<f64>, f64) {
    let exponentials: Vec<f64> = logits.iter().map(|l| libm::exp(f64::from(*l) - largest)).collect();
    let sum = exponentials.iter().fold(0.0, |sum, e| sum + e);
    (exponentials, sum)
}

fn first_maximum(logits: &[f32]) -> (usize, f64) {
    let first = (0, f64::NEG_INFINITY);
    logits.iter().map(|l| f64::from(*l)).enumerate().fold(first, |best, next| if next.1 > best.1 { next } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_lose_the_logarithm_of_the_classes_and_predict_the_first() {
        let mut gradient = [0.0; 4];
        let verdict = cross_entropy(&[2.0; 4], 1, 2, &mut gradient);
        assert!((verdict.loss - 4f64.ln()).abs() < 1e-12);
        assert_eq!(verdict.predicted, 0);
        assert_eq!(gradient, [0.125, -0.375, 0.125, 0.125]);
    }

    #[test]
    fn the_mean_of_views_is_that_of_their_probabilities() {
        let views = [[1.0, 2.0, -1.0], [0.5, -3.0, 2.0]];
        let mean = probabilities(&mean_logits(&views.concat(), 3));
        for (class, found) in mean.iter().enumerate() {
            let expected = (probabilities(&views[0])[class] + probabilities(&views[1])[class]) / 2.0;
            assert!((found - expected).abs() < 1e-7, "class {class}: {found}, {expected}");
        }
        assert_eq!(*mean_logits(&views[0], 3), views[0], "the logits of one view stay as they are");
        assert!(mean_logits(&[0.0, 2000.0, 1.0, 3000.0], 2).iter().all(|logit| logit.is_finite()));
    }

    #[test]
    fn large_logits_neither_overflow_nor_vanish() {
        let mut gradient = [0.0; 2];
        let verdict = cross_entropy(&[1e30, -1e30], 1, 1, &mut gradient);
        assert!(verdict.loss.is_finite() && verdict.loss > 1e30);
        assert!(cross_entropy(&[f32::NAN, 1.0], 0, 1, &mut gradient).loss.is_nan());
    }
}
