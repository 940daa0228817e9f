//! The fixed binary tree along which the gradients of slots are added. It depends on the number of slots alone, so the sum has the
//! same bits, whoever holds which slots. docs/NUMERICS.md defines it.
//!
//! Not here: the addition of tensors (the worker's `gradients`).

use std::ops::Range;

/// A node of the tree: a range of neighbouring slots. The leaves are single slots.
pub type Node = Range<usize>;

/// The tree over the slots of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotTree {
    slots: usize,
}

impl SlotTree {
    /// The tree over `slots` slots, at least one.
    pub fn new(slots: usize) -> Self {
        Self { slots }
    }

    /// The largest nodes that consist only of these slots, which must ascend.
    pub fn nodes(self, slots: impl Iterator<Item = usize>) -> Vec<Node> {
        let mut sums = NodeSums::new();
        slots.for_each(|slot| sums.push(self, slot, (), |(), ()| {}));
        sums.0.into_iter().map(|(node, ())| node).collect()
    }

    /// All slots.
    pub fn root(&self) -> Node {
        0..self.slots
    }

    /// The two halves of a node. A leaf has none.
    ///
    /// The first half of n slots has as many as the largest power of two below n.
    pub fn halves(node: &Node) -> Option<[Node; 2]> {
        if node.len() < 2 {
            return None;
        }
        let middle = node.start + node.len().next_power_of_two() / 2;
        Some([node.start..middle, middle..node.end])
    }

    /// Whether two neighbouring ranges are the halves of one node.
    pub fn are_halves(&self, first: &Node, second: &Node) -> bool {
        let mut node = self.root();
        while let Some([left, right]) = Self::halves(&node) {
            if (&left, &right) == (first, second) {
                return true;
            }
            node = if first.start < right.start { left } else { right };
        }
        false
    }
}

/// An unfinished sum over slots: the sums of the largest complete nodes so far, in the order of their slots. `S` is the type of a
/// sum.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSums<S>(Vec<(Node, S)>);

impl<S> NodeSums<S> {
    /// Without any slot.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds the sum over a slot that comes after all others. `add` adds the second sum to the first one, which has the earlier slots.
    pub fn push(&mut self, tree: SlotTree, slot: usize, sum: S, mut add: impl FnMut(&mut S, S)) {
        self.0.push((slot..slot + 1, sum));
        while let [.., (first, _), (second, _)] = &self.0[..]
            && tree.are_halves(first, second)
        {
            let (Some((second, sum)), Some((first, held))) = (self.0.pop(), self.0.last_mut()) else { return };
            add(held, sum);
            first.end = second.end;
        }
    }

    /// Adds the sum over a node that no other sum overlaps.
    pub fn insert(&mut self, node: Node, sum: S) {
        self.0.push((node, sum));
    }

    /// The nodes, and their sums.
    pub fn drain(&mut self) -> Vec<(Node, S)> {
        std::mem::take(&mut self.0)
    }

    /// The sum over the whole tree. Slots that were not added have no samples and are left out; without any slot, there is no sum.
    pub fn finish(&mut self, tree: SlotTree, mut add: impl FnMut(&mut S, S)) -> Option<S> {
        let sum = self.sum_of(&tree.root(), &mut add);
        self.0.clear();
        sum
    }

    /// The sum over one node, which is taken.
    fn sum_of(&mut self, node: &Node, add: &mut impl FnMut(&mut S, S)) -> Option<S> {
        if let Some(index) = self.0.iter().position(|(held, _)| held == node) {
            return Some(self.0.remove(index).1);
        }
        let [left, right] = SlotTree::halves(node)?;
        match (self.sum_of(&left, add), self.sum_of(&right, add)) {
            (Some(mut sum), Some(other)) => {
                add(&mut sum, other);
                Some(sum)
            }
            (one, other) => one.or(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum that shows the order in which it was formed.
    fn summed(slots: usize, held: impl IntoIterator<Item = usize>) -> Option<String> {
        let tree = SlotTree::new(slots);
        let add = |sum: &mut String, other: String| *sum = format!("({sum}+{other})");
        let mut sums = NodeSums::new();
        held.into_iter().for_each(|slot| sums.push(tree, slot, slot.to_string(), add));
        sums.finish(tree, add)
    }

    /// The definition, as docs/NUMERICS.md has it.
    fn defined(slots: Range<usize>, last: usize) -> Option<String> {
        if slots.len() == 1 {
            return (slots.start < last).then(|| slots.start.to_string());
        }
        let first = (0..).map(|power| 1 << power).take_while(|power| *power < slots.len()).last().unwrap();
        let cut = slots.start + first;
        match (defined(slots.start..cut, last), defined(cut..slots.end, last)) {
            (Some(sum), Some(other)) => Some(format!("({sum}+{other})")),
            (one, other) => one.or(other),
        }
    }

    #[test]
    fn the_sum_over_slots_is_that_of_the_definition() {
        assert_eq!(summed(3, 0..3).as_deref(), Some("((0+1)+2)"));
        assert_eq!(summed(6, 0..6).as_deref(), Some("(((0+1)+(2+3))+(4+5))"));
        for slots in 1..40 {
            for last in 0..=slots {
                assert_eq!(summed(slots, 0..last), defined(0..slots, last), "{last} of {slots} slots have samples");
            }
        }
    }

    #[test]
    fn as_few_sums_are_kept_as_the_tree_allows() {
        for slots in 1..70_usize {
            let tree = SlotTree::new(slots);
            let mut sums = NodeSums::new();
            for slot in 0..slots {
                sums.push(tree, slot, (), |(), ()| {});
                assert!(sums.0.len() <= slots.ilog2() as usize + 1, "slot {slot} of {slots}");
            }
            assert_eq!(sums.0.len(), 1);
        }
    }
}
