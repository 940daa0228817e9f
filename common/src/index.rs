//! Indices as types: of towers, workers, segments and exchanges. A tower's index cannot be taken for a worker's, and a vector with
//! something for each worker ([`PerWorker`]) can be indexed by workers alone.
//!
//! Not here: layers and samples, which are ranges of plain numbers, and slots and micro-batches (`batch`).

use std::fmt;

use serde::{Deserialize, Serialize};
use typed_index_collections::TiVec;

/// Something for each worker, in order.
pub type PerWorker<T> = TiVec<WorkerIndex, T>;
/// Something for each tower, in order.
pub type PerTower<T> = TiVec<TowerIndex, T>;
/// Something for each segment, in order.
pub type PerSegment<T> = TiVec<SegmentIndex, T>;

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(
            /// As a plain number.
            pub usize,
        );

        impl $name {
            /// The first `count`, in order.
            pub fn all(count: usize) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator + Clone {
                (0..count).map(Self)
            }
        }

        // The vectors below need this conversion and the next one.
        impl From<usize> for $name {
            fn from(index: usize) -> Self {
                Self(index)
            }
        }

        impl From<$name> for usize {
            fn from(index: $name) -> Self {
                index.0
            }
        }

        /// From a message.
        impl From<u32> for $name {
            fn from(index: u32) -> Self {
                Self(index as usize)
            }
        }

        /// For a message.
        impl From<$name> for u32 {
            fn from(index: $name) -> Self {
                u32::try_from(index.0).expect("no plan has so many")
            }
        }

        /// The bare number, because log lines contain lists of these.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

index! {
    /// A tower of a network, counted from 0.
    TowerIndex
}
index! {
    /// A worker of a generation, counted from 0.
    WorkerIndex
}
index! {
    /// A segment of a plan, counted from 0.
    SegmentIndex
}
index! {
    /// An exchange of a plan, counted from 0.
    ExchangeIndex
}

impl SegmentIndex {
    /// The exchange before this segment, which carries its input. The first segment, which reads images, has none.
    pub fn exchange_before(self) -> Option<ExchangeIndex> {
        self.0.checked_sub(1).map(ExchangeIndex)
    }

    /// The exchange after this segment, which carries its output.
    pub fn exchange_after(self) -> ExchangeIndex {
        ExchangeIndex(self.0)
    }
}

impl ExchangeIndex {
    /// The segment before this exchange, whose output it carries.
    pub fn segment_before(self) -> SegmentIndex {
        SegmentIndex(self.0)
    }

    /// The segment after this exchange, whose input it carries. The plan has no such segment after the last exchange, which carries logits.
    pub fn segment_after(self) -> SegmentIndex {
        SegmentIndex(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_lies_between_two_segments() {
        assert_eq!(SegmentIndex(0).exchange_before(), None);
        for segment in SegmentIndex::all(3) {
            assert_eq!(segment.exchange_after().segment_before(), segment);
            assert!(segment.exchange_before().is_none_or(|exchange| exchange.segment_after() == segment));
        }
        assert_eq!(format!("{:?}", TowerIndex::all(2).collect::<Vec<_>>()), "[0, 1]", "as log lines have it");
    }
}
