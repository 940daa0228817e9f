//! The images of the next steps. They are prepared while the current step is computed.
//!
//! Not here: preparing them (the data set's `Feeder`), and sending them (`steps`).

use std::collections::VecDeque;

use convoy_common::batch::MicroBatch;
use convoy_dataset::{Feeder, Split};

/// The most steps whose images are asked for ahead of time. Small images would fit by the thousand, and a fault costs all of them.
const STEPS_MAX: usize = 16;

/// The images of a step.
pub(super) struct StepImages {
    /// Its number.
    pub(super) number: u64,
    /// Indices of training images.
    pub(super) images: Vec<usize>,
    /// How they are divided.
    pub(super) micro_batches: Vec<MicroBatch>,
}

/// The steps whose images were asked for and not sent, in their order.
pub(super) struct Prefetch {
    pub(super) feeder: Feeder,
    upcoming: VecDeque<StepImages>,
}

impl Prefetch {
    /// For the training images.
    pub(super) fn new(split: &Split) -> Self {
        Self { feeder: Feeder::new(split), upcoming: VecDeque::new() }
    }

    /// The steps whose images must be asked for before those of step `number` are sent, if a step has at most `images` images, and
    /// `last` is the last one.
    pub(super) fn missing(&self, number: u64, images: usize, last: u64) -> std::ops::RangeInclusive<u64> {
        let first = self.upcoming.back().map_or(number, |latest| latest.number + 1);
        let ahead = self.feeder.depth(images).min(STEPS_MAX) as u64;
        first..=last.min(number + ahead - 1)
    }

    /// Notes that the images of a step were asked for, one batch for each micro-batch.
    pub(super) fn asked(&mut self, step: StepImages) {
        self.upcoming.push_back(step);
    }

    /// The images of step `number`, which are sent next.
    ///
    /// # Panics
    /// If other ones were asked for. It would train on the wrong images.
    pub(super) fn next(&mut self, number: u64) -> StepImages {
        let next = self.upcoming.pop_front().expect("the images of a step are asked for before they are sent");
        assert_eq!(next.number, number, "images are sent in the order of steps");
        next
    }

    /// Whether the images of the next step can be sent without a wait.
    pub(super) fn is_ready(&mut self) -> bool {
        self.upcoming.front().is_some_and(|next| self.feeder.has(next.micro_batches.len()))
    }

    /// Forgets all steps, because the run continues from another one.
    pub(super) fn forget(&mut self) {
        self.feeder.forget();
        self.upcoming.clear();
    }
}
