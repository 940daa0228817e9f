//! The route of a tensor between workers: who sends it, and who receives it. Senders use it to address a tensor, receivers to check its
//! sender.
//!
//! Not here: whether a tensor goes straight to its receivers or through the coordinator (`links`), and what the coordinator itself sends.

use crate::index::{ExchangeIndex, WorkerIndex};
use crate::placement::Half;
use crate::plan::Plan;
use crate::wire::{Direction, TensorKey, WireError};

/// What is moved between workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moved {
    /// Activations or their gradients at an exchange.
    Exchange(ExchangeIndex, Direction),
    /// Gradients of weights that are summed over replicas.
    Gradients,
}

/// Who sends a tensor, and who receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The worker that computes it.
    pub from: WorkerIndex,
    /// The workers that need it, without the one that computes it. Empty for logits, which only the coordinator needs.
    pub to: Vec<WorkerIndex>,
    /// What it belongs to.
    pub moved: Moved,
}

impl Route {
    /// Checks that `worker` is the sender of `key`, and that another worker or the coordinator needs it.
    ///
    /// # Errors
    /// When it is not, or when nobody does.
    pub fn check_sender(&self, plan: &Plan, worker: WorkerIndex, key: &TensorKey) -> Result<(), WireError> {
        if self.from != worker {
            return Err(match key {
                TensorKey::Gradient { node: Some(_), .. } => unfit("slots", key, "the worker has no such sum"),
                TensorKey::Gradient { .. } => unfit("piece", key, "the worker does not own this piece"),
                _ => unfit("from_tower", key, "the worker does not hold this tower"),
            });
        }
        if self.to.is_empty() && self.moved != Moved::Exchange(plan.logits_exchange(), Direction::Forward) {
            return Err(unfit("tensor", key, "no other worker needs it"));
        }
        Ok(())
    }
}

/// The route of a tensor that has an [expected shape](crate::wire::expected_shape), in a step over `samples` samples.
///
/// # Errors
/// When no worker sends such a tensor: images and parameters come from the coordinator, and gradients of logits, too.
pub fn route(plan: &Plan, samples: usize, key: &TensorKey) -> Result<Route, WireError> {
    match key {
        TensorKey::Activations { micro_batch, exchange, direction, from_tower, to_tower } => {
            if *exchange == plan.logits_exchange() && *direction == Direction::Backward {
                return Err(unfit("direction", key, "only the coordinator sends gradients of logits"));
            }
            let segment = match direction {
                Direction::Forward => exchange.segment_before(),
                Direction::Backward => exchange.segment_after(),
            };
            let from = plan.holder(segment, *from_tower, micro_batch.id);
            let to = match to_tower {
                Some(tower) => vec![plan.holder(exchange.segment_before(), *tower, micro_batch.id)],
                None => plan.receivers(*exchange, *from_tower, micro_batch.id),
            };
            Ok(Route { from, to: without(from, to), moved: Moved::Exchange(*exchange, *direction) })
        }
        TensorKey::Gradient { name, tower, piece, node, .. } => {
            let nothing = || unfit("tensor", key, "the plan has no such piece");
            let bundle = plan.bundle(name).ok_or_else(nothing)?;
            let owner = plan.pieces(bundle, *tower).get(*piece).ok_or_else(nothing)?.owner;
            let sharers = plan.placement.sharers(Half::Trunk, *tower);
            let Some(node) = node else {
                return Ok(Route { from: owner, to: without(owner, sharers), moved: Moved::Gradients });
            };
            let from = sharers.into_iter().find(|worker| plan.nodes(*worker, *tower, samples).contains(node));
            let from = from.ok_or_else(|| unfit("slots", key, "no worker has such a sum"))?;
            Ok(Route { from, to: without(from, vec![owner]), moved: Moved::Gradients })
        }
        TensorKey::Images(_) | TensorKey::Parameter { .. } => {
            Err(unfit("tensor", key, "workers send each other only activations and gradients"))
        }
    }
}

fn without(worker: WorkerIndex, mut all: Vec<WorkerIndex>) -> Vec<WorkerIndex> {
    all.retain(|other| *other != worker);
    all
}

fn unfit(field: &'static str, key: &TensorKey, expected: &'static str) -> WireError {
    WireError::Value { field, value: key.to_string(), expected }
}
