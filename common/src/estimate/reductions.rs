//! The sums of the trunk's gradients over replicas, as a model: every worker sends each piece to its owner, and the owner sends the sum to
//! all others.

use super::events::Time;
use crate::index::{PerWorker, TowerIndex, WorkerIndex};
use crate::plan::Plan;

/// The sum of one tower's gradients of a bundle.
#[derive(Debug)]
pub(super) struct Reduction {
    /// The first layer of the bundle. The gradients are complete after its backward pass.
    pub(super) layer: usize,
    /// The tower.
    pub(super) tower: TowerIndex,
    /// The workers that share the tower.
    pub(super) sharers: Vec<WorkerIndex>,
    /// The index of each worker in the lists.
    indices: PerWorker<Option<usize>>,
    /// Bytes of the piece that each one owns.
    pieces: Vec<u64>,
    /// Number of partial sums that each worker sends of each piece.
    nodes: Vec<usize>,
    /// What the owner of each piece waits for, and what each worker waits for after that.
    partial: Vec<Awaited>,
    whole: Vec<Awaited>,
}

/// Messages that are still to come, and when the last one arrives.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    count: usize,
    last: Time,
}

impl Awaited {
    /// One message arrives at `at`. Returns when the last one has arrived, if that is known.
    fn arrives(&mut self, at: Time) -> Option<Time> {
        self.last = self.last.max(at);
        self.count = self.count.saturating_sub(1);
        (self.count == 0).then_some(self.last)
    }
}

impl Reduction {
    /// All sums of a step over `samples` samples, in the order of the bundles.
    pub(super) fn all(plan: &Plan, samples: usize) -> Vec<Self> {
        let of = |bundle| plan.all_towers().map(move |tower| (tower, plan.pieces(bundle, tower), bundle.layers.start));
        let shared = plan.bundles.iter().flat_map(of).filter(|(_, pieces, _)| !pieces.is_empty());
        shared
            .map(|(tower, pieces, layer)| {
                let sharers: Vec<_> = pieces.iter().map(|piece| piece.owner).collect();
                let nodes: Vec<_> = sharers.iter().map(|worker| plan.nodes(*worker, tower, samples).len()).collect();
                let count = nodes.iter().filter(|nodes| **nodes > 0).count();
                let pieces = pieces.iter().map(|piece| (piece.floats.len() * size_of::<f32>()) as u64).collect();
                let partial = vec![Awaited { count, last: 0 }; sharers.len()];
                let whole = vec![Awaited { count: sharers.len(), last: 0 }; sharers.len()];
                let mut indices: PerWorker<_> = vec![None; plan.workers].into();
                sharers.iter().enumerate().for_each(|(index, worker)| indices[*worker] = Some(index));
                Self { layer, tower, sharers, indices, pieces, nodes, partial, whole }
            })
            .collect()
    }

    /// What `worker`, which shares the tower, sends to the owners of the other pieces: to whom, and how many bytes.
    pub(super) fn partial_sums_of(&self, worker: WorkerIndex) -> Vec<(WorkerIndex, u64)> {
        let Some(own) = self.indices[worker] else { return Vec::new() };
        let nodes = self.nodes[own] as u64;
        self.others(own).map(|owner| (self.sharers[owner], self.pieces[owner] * nodes)).collect()
    }

    /// What `owner` sends when its piece is summed.
    pub(super) fn whole_sums_of(&self, owner: WorkerIndex) -> Vec<(WorkerIndex, u64)> {
        let Some(own) = self.indices[owner] else { return Vec::new() };
        self.others(own).map(|other| (self.sharers[other], self.pieces[own])).collect()
    }

    /// All but one, beginning with the one after it. A worker sends to all others at the same time. In the model, it sends to one after
    /// another, so that they must not all begin with the same one.
    fn others(&self, own: usize) -> impl Iterator<Item = usize> {
        (own + 1..self.sharers.len()).chain(0..own)
    }

    /// Partial sums of a worker arrive at the owner of a piece, or are its own. Returns when the piece is summed, if that is known.
    pub(super) fn partial_arrives(&mut self, owner: WorkerIndex, at: Time) -> Option<Time> {
        self.partial[self.indices[owner]?].arrives(at)
    }

    /// The sum of a piece arrives at a worker, or is its own. Returns when that has all pieces, if that is known.
    pub(super) fn whole_arrives(&mut self, worker: WorkerIndex, at: Time) -> Option<Time> {
        self.whole[self.indices[worker]?].arrives(at)
    }
}
