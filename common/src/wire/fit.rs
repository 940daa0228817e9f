//! Checks that a tensor belongs to the job, and returns the shape that the plan gives it. Both sides check before they
//! allocate memory for a tensor.

use super::{Direction, TensorKey, WireError};
use crate::batch::MicroBatch;
use crate::plan::Plan;

/// The shape of the tensor that `key` names, in a job on `plan` whose micro-batches have at most `samples_max` samples.
///
/// # Errors
/// When the job has no such tensor.
pub fn expected_shape(plan: &Plan, samples_max: usize, key: &TensorKey) -> Result<Vec<usize>, WireError> {
    match key {
        TensorKey::Images(micro_batch) => {
            let input = plan.network.input.shape;
            Ok(vec![samples(micro_batch, samples_max)?, input.channels, input.height, input.width])
        }
        TensorKey::Activations { micro_batch, exchange, direction, from_tower, to_tower } => {
            below("exchange", exchange.0, plan.segments.len())?;
            below("from_tower", from_tower.0, plan.senders(*exchange, *direction).count())?;
            let owner = match (direction, to_tower) {
                (Direction::Forward, None) => *from_tower,
                (Direction::Backward, Some(to)) => *to,
                (Direction::Forward, Some(to)) => {
                    return Err(unfit("to_tower", to, "it must not be set in the forward direction"));
                }
                (Direction::Backward, None) => return Err(WireError::Missing("to_tower")),
            };
            below("to_tower", owner.0, plan.parts(exchange.segment_before()).count())?;
            let output = plan.exchanged(*exchange);
            let channels = plan.contribution(*exchange, owner).len();
            Ok(vec![samples(micro_batch, samples_max)?, output.height, output.width, channels])
        }
        TensorKey::Parameter { name, tower, .. } => {
            let parameter = plan
                .network
                .parameter(name)
                .ok_or_else(|| unfit("name", name, "it must be a parameter of the model"))?;
            below("tower", tower.0, plan.network.parts(parameter.layer))?;
            Ok(parameter.slice_shape(&plan.network, *tower))
        }
        TensorKey::Gradient { name, tower, piece, .. } => {
            below("tower", tower.0, plan.network.towers)?;
            let bundle = plan.bundle(name);
            let bundle = bundle.ok_or_else(|| unfit("name", name, "it must be a bundle of the plan"))?;
            let pieces = plan.pieces(bundle, *tower);
            let piece = pieces.get(*piece).filter(|piece| !piece.floats.is_empty());
            let piece = piece.ok_or_else(|| unfit("piece", &key, "the plan has no such piece"))?;
            Ok(vec![piece.floats.len()])
        }
    }
}

fn samples(micro_batch: &MicroBatch, samples_max: usize) -> Result<usize, WireError> {
    let count = micro_batch.samples.len();
    if count == 0 || count > samples_max || micro_batch.samples.end > u32::MAX as usize {
        return Err(unfit("samples", &count, "it must be at least 1, and at most the largest micro-batch"));
    }
    Ok(count)
}

fn below(field: &'static str, value: usize, limit: usize) -> Result<(), WireError> {
    if value < limit { Ok(()) } else { Err(unfit(field, &value, "out of range for this plan")) }
}

fn unfit(field: &'static str, value: &dyn std::fmt::Display, expected: &'static str) -> WireError {
    WireError::Value { field, value: value.to_string(), expected }
}
