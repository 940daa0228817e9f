//! The sum of a tower's gradients of a bundle over the workers that hold the tower. Each of them owns a piece: it gets the others' sums
//! over nodes of the slot tree, adds them along the tree, and sends the sum to the others. The order of arrival changes nothing.
//!
//! Not here: when gradients are complete, and the tensors that carry them (`engine`).

use std::collections::{BTreeMap, HashSet};

use convoy_common::bundles::Bundle;
use convoy_common::index::{TowerIndex, WorkerIndex};
use convoy_common::placement::Half;
use convoy_common::plan::{Piece, Plan};
use convoy_common::slots::{Node, NodeSums, SlotTree};

use convoy_kernels::Compute;
use convoy_kernels::elementwise::add;

/// A gradient while it is summed over replicas.
#[derive(Debug)]
pub(super) struct Reduction {
    tree: SlotTree,
    worker: WorkerIndex,
    pieces: Vec<Piece>,
    /// Sums of this worker's piece, and the nodes whose sums have not arrived.
    nodes: NodeSums<Vec<f32>>,
    missing: HashSet<Node>,
    /// The nodes that this worker sums itself.
    own_nodes: HashSet<Node>,
    /// The sum over all slots, and the pieces of it that have not arrived.
    whole: Vec<f32>,
    open: HashSet<usize>,
}

impl Reduction {
    /// The reduction of a bundle at `worker`, in a step over `samples` samples. None if no other worker holds the tower.
    pub(super) fn new(
        plan: &Plan,
        bundle: &Bundle,
        tower: TowerIndex,
        worker: WorkerIndex,
        samples: usize,
    ) -> Option<Self> {
        let pieces = plan.pieces(bundle, tower);
        if pieces.is_empty() {
            return None;
        }
        let is_open = |index: &usize| !pieces[*index].floats.is_empty();
        let open: HashSet<usize> = (0..pieces.len()).filter(is_open).collect();
        let owns = open.iter().any(|index| pieces[*index].owner == worker);
        let sharers = plan.placement.sharers(Half::Trunk, tower).into_iter();
        let missing = sharers.filter(|_| owns).flat_map(|sharer| plan.nodes(sharer, tower, samples)).collect();
        let tree = SlotTree::new(plan.placement.slots);
        let own_nodes = plan.nodes(worker, tower, samples).into_iter().collect();
        Some(Self { tree, worker, pieces, nodes: NodeSums::new(), missing, own_nodes, whole: Vec::new(), open })
    }

    /// The pieces of other workers, by index.
    pub(super) fn of_others(&self) -> impl Iterator<Item = (usize, &Piece)> {
        let all = self.pieces.iter().enumerate();
        all.filter(|(_, piece)| piece.owner != self.worker && !piece.floats.is_empty())
    }

    /// This worker's own piece, and its index. None if it is empty.
    pub(super) fn own(&self) -> Option<(usize, &Piece)> {
        let mut all = self.pieces.iter().enumerate();
        all.find(|(_, piece)| piece.owner == self.worker && !piece.floats.is_empty())
    }

    /// The most tensors that other workers send in a step, however many samples it has: their pieces, and their sums of the own piece. A range of
    /// slots fills at most two nodes for each level of the tree.
    pub(super) fn most_tensors(&self) -> usize {
        let levels = self.tree.root().len().ilog2() as usize + 1;
        self.pieces.len() * (1 + 2 * levels)
    }

    /// Adds this worker's sum of its own piece over one of its nodes. Returns the index of the piece and its sum over all slots, once it is
    /// complete.
    ///
    /// # Errors
    /// When the sum is not expected.
    pub(super) fn add_own(
        &mut self,
        compute: &Compute,
        node: &Node,
        sum: Vec<f32>,
    ) -> Result<Option<(usize, Vec<f32>)>, &'static str> {
        self.add_node(compute, node, sum)
    }

    /// Adds another worker's sum of this worker's piece over a node. Returns the same.
    ///
    /// # Errors
    /// When the sum is not expected.
    pub(super) fn add_others(
        &mut self,
        compute: &Compute,
        node: &Node,
        sum: Vec<f32>,
    ) -> Result<Option<(usize, Vec<f32>)>, &'static str> {
        if self.own_nodes.contains(node) {
            return Err("this worker computes it itself");
        }
        self.add_node(compute, node, sum)
    }

    fn add_node(
        &mut self,
        compute: &Compute,
        node: &Node,
        sum: Vec<f32>,
    ) -> Result<Option<(usize, Vec<f32>)>, &'static str> {
        if !self.missing.remove(node) {
            return Err("it arrived before, or no worker has such a sum");
        }
        self.nodes.insert(node.clone(), sum);
        if !self.missing.is_empty() {
            return Ok(None);
        }
        let sum = self.nodes.finish(self.tree, |sum, other| add(compute, sum, &other));
        let (own, _) = self.own().expect("only an owner is sent sums over nodes");
        let sum = sum.expect("a step has samples");
        self.place(own, &sum)?;
        Ok(Some((own, sum)))
    }

    /// Puts the sum of a piece over all slots where it belongs.
    ///
    /// # Errors
    /// When it is not expected.
    pub(super) fn place(&mut self, piece: usize, sum: &[f32]) -> Result<(), &'static str> {
        if !self.open.remove(&piece) {
            return Err("it arrived before");
        }
        let length = self.pieces.last().map_or(0, |last| last.floats.end);
        self.whole.resize(length, 0.0);
        self.whole[self.pieces[piece].floats.clone()].copy_from_slice(sum);
        Ok(())
    }

    /// The whole sum, once all pieces are there. It is returned once.
    pub(super) fn finish(&mut self) -> Option<Vec<f32>> {
        (self.open.is_empty() && !self.whole.is_empty()).then(|| std::mem::take(&mut self.whole))
    }

    /// Whether all pieces are there.
    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty()
    }
}

/// The sums of several parameters over each node, in the order of the parameters.
pub(super) fn by_node(of_parameters: impl Iterator<Item = Vec<(Node, Vec<f32>)>>) -> Vec<(Node, Vec<Vec<f32>>)> {
    let mut by_start: BTreeMap<usize, (Node, Vec<Vec<f32>>)> = BTreeMap::new();
    for (node, sum) in of_parameters.flatten() {
        by_start.entry(node.start).or_insert_with(|| (node, Vec::new())).1.push(sum);
    }
    by_start.into_values().collect()
}

/// Fills `into` with floats of `parts`, one part after the other, beginning with float `start` of them all.
///
/// # Panics
/// When the parts are too short.
pub(super) fn copy_joined(parts: &[Vec<f32>], start: usize, into: &mut [f32]) {
    let (mut skipped, mut filled) = (start, 0);
    for part in parts {
        let own = &part[skipped.min(part.len())..];
        let own = &own[..own.len().min(into.len() - filled)];
        into[filled..filled + own.len()].copy_from_slice(own);
        (skipped, filled) = (skipped.saturating_sub(part.len()), filled + own.len());
    }
    assert_eq!(filled, into.len(), "a piece is longer than the gradients of its bundle");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_cut_from_parts_of_any_length() {
        let parts = [vec![0.0, 1.0, 2.0], vec![], vec![3.0], vec![4.0, 5.0, 6.0, 7.0]];
        for start in 0..8 {
            for length in 0..=8 - start {
                let mut piece = vec![-1.0; length];
                copy_joined(&parts, start, &mut piece);
                let expected: Vec<f32> = (start..start + length).map(|value| value as f32).collect();
                assert_eq!(piece, expected);
            }
        }
        let too_long = std::panic::catch_unwind(|| copy_joined(&parts, 2, &mut [0.0; 7]));
        assert!(too_long.is_err());
    }

    #[test]
    fn sums_are_grouped_by_their_nodes() {
        let sums = |value: f32| vec![(4..6, vec![value]), (0..4, vec![-value])];
        let grouped = by_node([sums(1.0), sums(2.0)].into_iter());
        assert_eq!(grouped, [(0..4, vec![vec![-1.0], vec![-2.0]]), (4..6, vec![vec![1.0], vec![2.0]])]);
    }
}
