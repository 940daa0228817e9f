//! The batches of a job, and the division of a batch into slots and micro-batches: pure arithmetic on positions.
//!
//! Not here: which images are at those positions (the coordinator's `order`).

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The most images per step.
pub const BATCH_MAX: usize = 1 << 20;
/// Micro-batches of a measurement that are in progress at once: enough that no worker waits for images.
pub const EVALUATIONS_UNDER_WAY: usize = 3;
/// The most compute threads of a worker. No known machine has more cores.
pub const THREADS_MAX: usize = 1024;

/// The range of part `index` if `count` items are divided into `parts`. If they don't divide evenly, the first parts get one more.
pub fn part(count: usize, parts: usize, index: usize) -> Range<usize> {
    let (each, extra) = (count / parts, count % parts);
    let start = index * each + index.min(extra);
    start..start + each + usize::from(index < extra)
}

/// The batches into which each epoch divides the training images. The last batch of an epoch may be smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Training images, at least one.
    pub images: usize,
    /// Images of a full batch, at least one.
    pub batch: usize,
}

impl Batches {
    /// Steps per epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.images.div_ceil(self.batch) as u64
    }

    /// The epoch of `step`, both counted from 1.
    pub fn epoch(&self, step: u64) -> u64 {
        (step - 1) / self.steps_per_epoch() + 1
    }

    /// Whether `step` is the last of its epoch.
    pub fn ends_epoch(&self, step: u64) -> bool {
        step.is_multiple_of(self.steps_per_epoch())
    }

    /// The images of `step`, as positions in the order of its epoch.
    pub fn positions(&self, step: u64) -> Range<usize> {
        let within = ((step - 1) % self.steps_per_epoch()) as usize;
        within * self.batch..self.images.min((within + 1) * self.batch)
    }
}

/// Whether a micro-batch is for training or for measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Forward and backward, with dropout. Activations are kept.
    Train,
    /// Forward only, without dropout.
    Evaluate,
}

/// Identifies a micro-batch. The order is that of computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroBatchId {
    /// The step, counted from 1. In a measurement: the last committed step.
    pub step: u64,
    /// Training or measuring.
    pub phase: Phase,
    /// Index of the slot. In a measurement: 0.
    pub slot: u32,
    /// Index in the slot. In a measurement: index in the pass over the images.
    pub micro_batch: u32,
}

/// A micro-batch and the samples of the global batch that it holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MicroBatch {
    /// Its identity.
    pub id: MicroBatchId,
    /// Positions in the global batch.
    pub samples: Range<usize>,
}

/// How a job divides its batches. `slots` belongs to the job. `micro_batches` may differ from run to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Division {
    /// Slots per batch.
    pub slots: usize,
    /// Micro-batches per slot.
    pub micro_batches: usize,
}

impl Division {
    /// The micro-batches of a batch of `batch` samples, in the order of their samples, without empty ones.
    pub fn of(&self, step: u64, batch: usize) -> Vec<MicroBatch> {
        // Only the first parts hold anything, however many there are.
        let slots = (0..self.slots.min(batch)).map(|slot| (slot, part(batch, self.slots, slot)));
        slots
            .flat_map(|(slot, held)| {
                (0..self.micro_batches.min(held.len())).map(move |index| {
                    let within = part(held.len(), self.micro_batches, index);
                    let id = MicroBatchId { step, phase: Phase::Train, slot: slot as u32, micro_batch: index as u32 };
                    MicroBatch { id, samples: held.start + within.start..held.start + within.end }
                })
            })
            .collect()
    }

    /// The size of the largest micro-batch of a batch of `batch` samples. Micro-batches of a measurement are no larger.
    pub fn largest_micro_batch(&self, batch: usize) -> usize {
        batch.div_ceil(self.slots).div_ceil(self.micro_batches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_parts_get_one_more() {
        let parts: Vec<_> = (0..4).map(|i| part(10, 4, i)).collect();
        assert_eq!(parts, [0..3, 3..6, 6..8, 8..10]);
        assert_eq!(part(2, 4, 3), 2..2);
    }

    #[test]
    fn micro_batches_cover_the_batch_in_order_and_never_cross_slots() {
        for (batch, slots, micro_batches) in
            [(10, 2, 2), (1, 2, 4), (7, 3, 2), (64, 1, 4), (2, 1, 3), (3, 1 << 40, 1 << 40)]
        {
            let division = Division { slots, micro_batches };
            let cut = division.of(5, batch);
            let samples: Vec<_> = cut.iter().flat_map(|m| m.samples.clone()).collect();
            assert_eq!(samples, (0..batch).collect::<Vec<_>>());
            assert!(cut.iter().all(|m| !m.samples.is_empty()));
            for m in &cut {
                let slot = part(batch, slots, m.id.slot as usize);
                assert!(slot.start <= m.samples.start && m.samples.end <= slot.end, "{m:?}");
                assert!(m.samples.len() <= division.largest_micro_batch(batch));
            }
        }
    }
}
