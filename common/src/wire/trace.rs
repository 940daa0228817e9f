//! A worker's recorded spans, as messages. Activities of the coordinator have no message.

use convoy_proto::v1;

use super::tensor::{TensorKey, direction_from, direction_to, key_from, key_to, micro_batch_from, micro_batch_to};
use super::{WireError, required};
use crate::batch::MicroBatch;
use crate::trace::{Activity, SegmentRun, Span, Transfer};

/// The most spans in one message, which keeps it far below the size limit of control messages.
pub const SPANS_MAX: usize = 2048;

/// Spans that a worker has recorded since its last report, or a part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The step just committed, or the step in progress when the job ended.
    pub step: u64,
    /// Spans that were dropped because the buffer was full.
    pub dropped: u64,
    /// Whether another message with spans of this step follows.
    pub more: bool,
    /// The spans, at most [`SPANS_MAX`].
    pub spans: Vec<Span>,
    /// Resident memory of the process at the end of the step, in bytes; 0 where the system does not report it.
    pub resident_bytes: u64,
}

impl TryFrom<v1::Recorded> for Recorded {
    type Error = WireError;

    fn try_from(m: v1::Recorded) -> Result<Self, WireError> {
        if m.spans.len() > SPANS_MAX {
            let (field, value) = ("spans", m.spans.len().to_string());
            return Err(WireError::Value { field, value, expected: "it must be at most 2048 per message" });
        }
        let spans = m.spans.into_iter().map(span_from).collect::<Result<_, _>>()?;
        Ok(Self { step: m.step, dropped: m.dropped, more: m.more, spans, resident_bytes: m.resident_bytes })
    }
}

impl From<Recorded> for v1::Recorded {
    fn from(recorded: Recorded) -> Self {
        let Recorded { step, dropped, more, spans, resident_bytes } = recorded;
        let spans = spans.into_iter().filter_map(span_to).collect();
        Self { step, dropped, more, spans, resident_bytes }
    }
}

fn span_from(m: v1::Span) -> Result<Span, WireError> {
    use v1::span::Activity as Wire;
    let activity = match required("activity", m.activity)? {
        Wire::Segment(run) => Activity::Segment(SegmentRun {
            direction: direction_from(run.direction())?,
            micro_batch: micro_batch_from(run.micro_batch)?.id,
            segment: run.segment.into(),
            tower: run.tower.into(),
        }),
        Wire::Layer(run) => Activity::Layer { direction: direction_from(run.direction())?, layer: run.layer as usize },
        Wire::Commit(step) => Activity::Commit { step },
        Wire::Take(name) => Activity::Take(tensor_from(Some(name))?),
        Wire::AwaitTensor(name) => Activity::AwaitTensor(tensor_from(Some(name))?),
        Wire::AwaitOrder(_) => Activity::AwaitOrder,
        Wire::HandOut(_) => Activity::HandOut,
        Wire::ReadState(_) => Activity::ReadState,
        Wire::Send(transfer) => Activity::Send(transfer_from(transfer)?),
        Wire::Receive(transfer) => Activity::Receive(transfer_from(transfer)?),
    };
    let end = m.start_ns.checked_add(m.length_ns).ok_or_else(|| WireError::Value {
        field: "length_ns",
        value: m.length_ns.to_string(),
        expected: "the span's end must fit in 64 bits",
    })?;
    Ok(Span { start: m.start_ns, end, activity })
}

/// `None` for activities of the coordinator.
fn span_to(span: Span) -> Option<v1::Span> {
    use v1::span::Activity as Wire;
    let (start_ns, length_ns) = (span.start, span.length());
    let activity = match span.activity {
        Activity::Segment(run) => Wire::Segment(v1::SegmentRun {
            // The samples are not sent again: the span of the images names them.
            micro_batch: Some(micro_batch_to(&MicroBatch { id: run.micro_batch, samples: 0..1 })),
            segment: run.segment.into(),
            tower: run.tower.into(),
            direction: direction_to(run.direction).into(),
        }),
        Activity::Layer { layer, direction } => {
            Wire::Layer(v1::LayerRun { layer: layer as u32, direction: direction_to(direction).into() })
        }
        Activity::Commit { step } => Wire::Commit(step),
        Activity::Take(key) => Wire::Take(tensor_to(key)?),
        Activity::AwaitTensor(key) => Wire::AwaitTensor(tensor_to(key)?),
        Activity::AwaitOrder => Wire::AwaitOrder(v1::Nothing {}),
        Activity::HandOut => Wire::HandOut(v1::Nothing {}),
        Activity::ReadState => Wire::ReadState(v1::Nothing {}),
        Activity::Send(transfer) => Wire::Send(transfer_to(transfer)?),
        Activity::Receive(transfer) => Wire::Receive(transfer_to(transfer)?),
        Activity::Relay(_)
        | Activity::Step { .. }
        | Activity::AwaitImages(_)
        | Activity::SendImages(_)
        | Activity::Loss(_)
        | Activity::Idle
        | Activity::Measure
        | Activity::Checkpoint => return None,
    };
    Some(v1::Span { start_ns, length_ns, activity: Some(activity) })
}

fn transfer_from(m: v1::Transfer) -> Result<Transfer, WireError> {
    Ok(Transfer { tensor: tensor_from(m.tensor)?, bytes: m.bytes, busy: m.busy_ns })
}

fn transfer_to(transfer: Transfer) -> Option<v1::Transfer> {
    Some(v1::Transfer { tensor: Some(tensor_to(transfer.tensor)?), bytes: transfer.bytes, busy_ns: transfer.busy })
}

fn tensor_from(name: Option<v1::TensorName>) -> Result<TensorKey, WireError> {
    use v1::tensor_name::Tensor;
    key_from(match required("tensor", required("tensor", name)?.tensor)? {
        Tensor::Images(images) => v1::chunk::Tensor::Images(images),
        Tensor::Activations(activations) => v1::chunk::Tensor::Activations(activations),
        Tensor::Gradient(gradient) => v1::chunk::Tensor::Gradient(gradient),
    })
}

/// `None` for parameters, which do not belong to a step.
fn tensor_to(key: TensorKey) -> Option<v1::TensorName> {
    use v1::tensor_name::Tensor;
    let tensor = match key_to(key) {
        v1::chunk::Tensor::Images(images) => Tensor::Images(images),
        v1::chunk::Tensor::Activations(activations) => Tensor::Activations(activations),
        v1::chunk::Tensor::Gradient(gradient) => Tensor::Gradient(gradient),
        v1::chunk::Tensor::Parameter(_) => return None,
    };
    Some(v1::TensorName { tensor: Some(tensor) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{MicroBatchId, Phase};
    use crate::index::{ExchangeIndex, SegmentIndex, TowerIndex};
    use crate::wire::Direction;

    #[test]
    fn recorded_spans_survive_a_round_trip() {
        let id = MicroBatchId { step: 3, phase: Phase::Train, slot: 1, micro_batch: 2 };
        let micro_batch = MicroBatch { id, samples: 8..12 };
        let tensor = TensorKey::Activations {
            micro_batch: micro_batch.clone(),
            exchange: ExchangeIndex(1),
            direction: Direction::Backward,
            from_tower: TowerIndex(0),
            to_tower: Some(TowerIndex(1)),
        };
        let transfer = Transfer { tensor: tensor.clone(), bytes: 77, busy: 5 };
        let run = SegmentRun {
            micro_batch: id,
            segment: SegmentIndex(2),
            tower: TowerIndex(1),
            direction: Direction::Forward,
        };
        let activities = [
            Activity::Segment(run),
            Activity::Layer { layer: 4, direction: Direction::Backward },
            Activity::Commit { step: 3 },
            Activity::Take(TensorKey::Images(micro_batch)),
            Activity::AwaitTensor(tensor),
            Activity::AwaitOrder,
            Activity::HandOut,
            Activity::ReadState,
            Activity::Send(transfer.clone()),
            Activity::Receive(transfer),
        ];
        let spans: Vec<_> = activities.into_iter().map(|activity| Span { start: 10, end: 25, activity }).collect();
        let recorded = Recorded { step: 3, dropped: 1, more: true, spans, resident_bytes: 7 };
        assert_eq!(Recorded::try_from(v1::Recorded::from(recorded.clone())), Ok(recorded.clone()));
        let mut endless = v1::Recorded::from(recorded.clone());
        endless.spans[0].length_ns = u64::MAX;
        assert!(Recorded::try_from(endless).is_err());
        let many = Recorded { spans: vec![recorded.spans[2].clone(); SPANS_MAX + 1], ..recorded };
        assert!(Recorded::try_from(v1::Recorded::from(many)).is_err());
        let empty = v1::Recorded { spans: vec![v1::Span::default()], ..v1::Recorded::default() };
        assert_eq!(Recorded::try_from(empty), Err(WireError::Missing("activity")));
    }
}
