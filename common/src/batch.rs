//! How a batch falls into slots and micro-batches: pure arithmetic on positions in the global batch.
//!
//! Not here: which images those positions hold (the coordinator's data order).

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Images that a step may have at most.
pub const BATCH_MAX: usize = 1 << 20;
/// Micro-batches of a measurement that are under way at once: enough that no worker waits for images.
pub const EVALUATIONS_UNDER_WAY: usize = 3;
/// No worker has more threads: no machine that is known has more cores.
pub const THREADS_MAX: usize = 1024;

/// `count` things dealt to `parts`: part `index`'s range. The first parts get one more where it doesn't divide.
pub fn part(count: usize, parts: usize, index: usize) -> Range<usize> {
    let (each, extra) = (count / parts, count % parts);
    let start = index * each + index.min(extra);
    start..start + each + usize::from(index < extra)
}

/// Whether a micro-batch is for learning or for measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Forward and backward; dropout is on; activations are kept.
    Train,
    /// Forward alone; dropout is off.
    Evaluate,
}

/// Which micro-batch a tensor belongs to. Ordered as they are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroBatchId {
    /// The step, counted from 1; in evaluation the last step that was committed.
    pub step: u64,
    /// Train or evaluate.
    pub phase: Phase,
    /// Slot index; in evaluation 0.
    pub slot: u32,
    /// Index within the slot; in evaluation within the pass over the data.
    pub micro_batch: u32,
}

/// One micro-batch: its name and the samples of the global batch that it holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MicroBatch {
    /// Its name.
    pub id: MicroBatchId,
    /// Positions in the global batch.
    pub samples: Range<usize>,
}

/// How a job divides its batches. `slots` is the job's; `micro_batches` may differ from run to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Division {
    /// Slots a batch.
    pub slots: usize,
    /// Micro-batches a slot.
    pub micro_batches: usize,
}

impl Division {
    /// The micro-batches of a batch of `batch` samples, in the order of their samples; empty ones are left out.
    pub fn of(&self, step: u64, batch: usize) -> Vec<MicroBatch> {
        let slots = (0..self.slots).map(|slot| (slot, part(batch, self.slots, slot)));
        slots
            .flat_map(|(slot, held)| {
                (0..self.micro_batches).map(move |index| {
                    let within = part(held.len(), self.micro_batches, index);
                    let id = MicroBatchId { step, phase: Phase::Train, slot: slot as u32, micro_batch: index as u32 };
                    MicroBatch { id, samples: held.start + within.start..held.start + within.end }
                })
            })
            .filter(|micro_batch| !micro_batch.samples.is_empty())
            .collect()
    }

    /// The most samples that one micro-batch of a batch of `batch` samples holds. Micro-batches of a measurement hold no more.
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
        for (batch, slots, micro_batches) in [(10, 2, 2), (1, 2, 4), (7, 3, 2), (64, 1, 4), (2, 1, 3)] {
            let division = Division { slots, micro_batches };
            let cut = division.of(5, batch);
            let samples: Vec<_> = cut.iter().flat_map(|m| m.samples.clone()).collect();
            assert_eq!(samples, (0..batch).collect::<Vec<_>>());
            for m in &cut {
                let slot = part(batch, slots, m.id.slot as usize);
                assert!(slot.start <= m.samples.start && m.samples.end <= slot.end, "{m:?}");
                assert!(m.samples.len() <= division.largest_micro_batch(batch));
            }
        }
    }
}
