//! What a worker can compute now, and the order in which it does.
//!
//! Tasks of the head come before those of the trunk: every replica waits for the head, but only one for a pass of the trunk. Within each of
//! the two, tasks go in the order in which they became possible. The rest of an interrupted pass of the trunk comes before other passes of
//! the trunk, so that the chains of weight gradients stay in the order of the samples. No other worker waits for the weight gradients of the
//! head, so they come last.
//!
//! Not here: when a task becomes possible, and how it is computed (`engine`).

use std::collections::VecDeque;
use std::sync::Arc;

use convoy_common::batch::MicroBatch;
use convoy_common::index::{SegmentIndex, TowerIndex};
use convoy_common::placement::Half;
use convoy_common::trace::SegmentRun;
use convoy_common::wire::Direction;

use crate::tower::SavedSegment;
use convoy_kernels::memory::Tensor;

/// A pass of a segment, or a part of it.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) micro_batch: MicroBatch,
    pub(super) segment: SegmentIndex,
    pub(super) tower: TowerIndex,
    pub(super) work: Work,
}

#[derive(Debug)]
pub(super) enum Work {
    /// The forward pass, from the whole input of the segment.
    Forward(Arc<Tensor>),
    /// The backward pass. The gradient of the segment's output is the sum of these, in this order.
    Backward(Vec<Tensor>),
    /// The rest of an interrupted backward pass: that of the layers that are left, from the gradient of their output.
    RestOfBackward(Tensor, SavedSegment),
    /// The gradients of a layer's weights, after the last micro-batch of the step.
    WeightGradients { layer: usize },
}

impl Task {
    /// The piece of work, for traces. Weight gradients count as part of the backward pass of the micro-batch that
    /// came last.
    pub(super) fn run(&self) -> SegmentRun {
        let direction = match self.work {
            Work::Forward(_) => Direction::Forward,
            Work::Backward(_) | Work::RestOfBackward(..) | Work::WeightGradients { .. } => Direction::Backward,
        };
        SegmentRun { micro_batch: self.micro_batch.id, segment: self.segment, tower: self.tower, direction }
    }
}

/// The tasks that can be computed now.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    head: VecDeque<Task>,
    trunk: VecDeque<Task>,
    weight_gradients: VecDeque<Task>,
}

impl Tasks {
    /// Adds a task of one half of the network.
    pub(super) fn add(&mut self, half: Half, task: Task) {
        match (&task.work, half) {
            (Work::WeightGradients { .. }, _) => self.weight_gradients.push_back(task),
            (Work::RestOfBackward(..), _) => self.trunk.push_front(task),
            (_, Half::Head) => self.head.push_back(task),
            (_, Half::Trunk) => self.trunk.push_back(task),
        }
    }

    /// Takes the next task.
    pub(super) fn next(&mut self) -> Option<Task> {
        let Self { head, trunk, weight_gradients } = self;
        [head, trunk, weight_gradients].into_iter().find_map(VecDeque::pop_front)
    }

    /// What the next task computes.
    pub(super) fn next_run(&self) -> Option<SegmentRun> {
        let Self { head, trunk, weight_gradients } = self;
        [head, trunk, weight_gradients].into_iter().find_map(VecDeque::front).map(Task::run)
    }

    /// Whether weight gradients of the head have not been computed yet.
    pub(super) fn owes_weight_gradients(&self) -> bool {
        !self.weight_gradients.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::batch::{MicroBatchId, Phase};

    use super::*;

    fn task(segment: usize, work: Work) -> Task {
        let id = MicroBatchId { step: 1, phase: Phase::Train, slot: 0, micro_batch: 0 };
        let micro_batch = MicroBatch { id, samples: 0..1 };
        Task { micro_batch, segment: SegmentIndex(segment), tower: TowerIndex(0), work }
    }

    #[test]
    fn the_head_comes_first_and_its_weight_gradients_last() {
        let mut tasks = Tasks::default();
        let backward = || Work::Backward(Vec::new());
        tasks.add(Half::Head, task(9, Work::WeightGradients { layer: 3 }));
        tasks.add(Half::Trunk, task(1, backward()));
        tasks.add(Half::Trunk, task(2, backward()));
        assert_eq!(tasks.next().map(|task| task.segment), Some(SegmentIndex(1)));
        // A pass of the trunk was interrupted, and meanwhile two of the head became possible.
        tasks.add(Half::Trunk, task(1, Work::RestOfBackward(vec![].into(), SavedSegment::default())));
        tasks.add(Half::Head, task(3, backward()));
        tasks.add(Half::Head, task(4, backward()));
        let mut order = Vec::new();
        while let Some(run) = tasks.next_run() {
            assert!(tasks.owes_weight_gradients(), "they come last");
            order.push(run.segment.0);
            assert_eq!(tasks.next().map(|task| task.segment), Some(run.segment));
        }
        assert_eq!(order, [3, 4, 1, 2, 9]);
        assert!(!tasks.owes_weight_gradients());
    }
}
