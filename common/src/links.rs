//! The links between workers: which pairs are connected directly. The coordinator relays what all other pairs send each other.
//!
//! Not here: connecting (the worker's `service/peers`), and which pairs exchange anything (`plan`).

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::index::WorkerIndex;

/// A pair that is not connected after this time is relayed.
pub const CONNECTED_WITHIN: Duration = Duration::from_secs(2);
/// A connection of a pair counts as broken if the other machine acknowledges nothing for this long.
pub const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);

/// Which pairs of workers are connected directly. Both directions of a pair are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// Whether pairs are connected directly, but for the exceptions.
    are_direct: bool,
    /// Pairs whose tensors are relayed all the same, the smaller index first.
    exceptions: BTreeSet<[WorkerIndex; 2]>,
}

impl Links {
    /// Everything is relayed.
    pub fn relayed() -> Self {
        Self::default()
    }

    /// All pairs are connected directly.
    pub fn direct() -> Self {
        Self { are_direct: true, exceptions: BTreeSet::new() }
    }

    /// The same, with one more pair that is relayed.
    #[must_use]
    pub fn without(mut self, one: WorkerIndex, other: WorkerIndex) -> Self {
        if self.are_direct {
            self.exceptions.insert(pair(one, other));
        }
        self
    }

    /// Whether two workers are connected directly.
    pub fn is_direct(&self, one: WorkerIndex, other: WorkerIndex) -> bool {
        self.are_direct && (self.exceptions.is_empty() || !self.exceptions.contains(&pair(one, other)))
    }
}

fn pair(one: WorkerIndex, other: WorkerIndex) -> [WorkerIndex; 2] {
    [one.min(other), one.max(other)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_counts_in_both_directions_and_for_no_other_pair() {
        let [a, b, c] = [0, 1, 2].map(WorkerIndex);
        let links = Links::direct().without(c, a);
        assert!(!links.is_direct(a, c) && !links.is_direct(c, a));
        assert!(links.is_direct(a, b) && links.is_direct(c, b));
        assert!(!Links::relayed().without(a, b).is_direct(a, b));
        assert!(!Links::relayed().is_direct(a, b));
    }
}
