//! The numbers of images of the steps of an account. Planned figures depend on them.
//!
//! Not here: what is planned (the plan of the job), and which steps count (`account`).

use std::collections::BTreeMap;

/// How many steps have how many images. The last batch of an epoch may be smaller than the others.
pub(super) struct Batches(BTreeMap<usize, usize>);

impl Batches {
    /// The images of each step.
    pub(super) fn of(images: impl Iterator<Item = usize>) -> Self {
        let mut counts = BTreeMap::new();
        images.for_each(|images| *counts.entry(images).or_default() += 1);
        Self(counts)
    }

    /// The mean over all steps of a figure that depends on the number of images.
    pub(super) fn mean(&self, of: impl Fn(usize) -> u64) -> f64 {
        let steps: usize = self.0.values().sum();
        let sum: f64 = self.0.iter().map(|(images, steps)| of(*images) as f64 * *steps as f64).sum();
        sum / steps.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_last_batch_counts_as_what_it_is() {
        let batches = Batches::of([64, 64, 64, 8].into_iter());
        assert_eq!(batches.mean(|images| images as u64), 50.0);
        assert_eq!(batches.mean(|_| 7), 7.0);
        assert_eq!(Batches::of(std::iter::empty()).mean(|_| 7), 0.0);
    }
}
