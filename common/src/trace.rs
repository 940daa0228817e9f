//! What processes record: spans of time with what they were spent on, in a buffer of limited size.
//!
//! Not here: clocks (the caller passes the time), messages (`wire`), and the analysis (the coordinator's `trace`).

use crate::batch::MicroBatchId;
use crate::index::{SegmentIndex, TowerIndex};
use crate::wire::{Direction, TensorKey};

/// A span of time of one thread, in nanoseconds of its process's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it began.
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// What it was spent on.
    pub activity: Activity,
}

impl Span {
    /// Its length.
    pub fn length(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// What time is spent on. Tensors are those of steps. Assigning weights and checkpoints are not part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// A worker's compute thread computes a segment, which contains its layers.
    Segment(SegmentRun),
    /// A layer within a segment.
    Layer {
        /// Its index in the network.
        layer: usize,
        /// Forward or backward.
        direction: Direction,
    },
    /// A worker applies gradients.
    Commit {
        /// The step.
        step: u64,
    },
    /// A worker's compute thread puts a received tensor where it belongs.
    Take(TensorKey),
    /// A worker has nothing to compute until this tensor arrives.
    AwaitTensor(TensorKey),
    /// A worker has nothing to compute until the next order of the coordinator.
    AwaitOrder,
    /// A worker's compute thread hands results to its network thread, which may be busy sending.
    HandOut,
    /// A worker reads weights for a checkpoint.
    ReadState,
    /// A worker's network thread sends a tensor, until the transport has all of it.
    Send(Transfer),
    /// A worker's network thread receives a tensor, from the first chunk to the last.
    Receive(Transfer),
    /// The coordinator relays a tensor or keeps logits, from the arrival of the first chunk until the last one is handed on.
    Relay(Transfer),
    /// The coordinator drives a step, from the previous commit to its own.
    Step {
        /// Its number.
        step: u64,
    },
    /// The coordinator waits until the images of a micro-batch are decoded.
    AwaitImages(MicroBatchId),
    /// The coordinator collects and sends the images of a micro-batch.
    SendImages(MicroBatchId),
    /// The coordinator computes the loss of a micro-batch and sends the gradients.
    Loss(MicroBatchId),
    /// The coordinator waits for messages.
    Idle,
    /// The coordinator measures the test images.
    Measure,
    /// The coordinator collects and writes a checkpoint.
    Checkpoint,
}

/// The computation of a segment for one tower and one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentRun {
    /// The micro-batch.
    pub micro_batch: MicroBatchId,
    /// The segment.
    pub segment: SegmentIndex,
    /// The tower.
    pub tower: TowerIndex,
    /// Forward or backward.
    pub direction: Direction,
}

/// The transfer of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The tensor.
    pub tensor: TensorKey,
    /// Its payload bytes.
    pub bytes: u64,
    /// Nanoseconds spent on dividing, checking and copying, without waits for the transport.
    pub busy: u64,
}

/// A buffer of spans with a limited size. Spans that don't fit are counted and dropped.
#[derive(Debug)]
pub struct Buffer {
    spans: Vec<Span>,
    dropped: u64,
    limit: usize,
}

impl Buffer {
    /// A buffer of at most `limit` spans.
    pub fn new(limit: usize) -> Self {
        Self { spans: Vec::new(), dropped: 0, limit }
    }

    /// Adds a span, or counts it as dropped. The span that ends a step always fits, because the others need it.
    pub fn push(&mut self, span: Span) {
        let ends_step = matches!(span.activity, Activity::Commit { .. } | Activity::Step { .. });
        if self.spans.len() < self.limit || ends_step {
            self.spans.push(span);
        } else {
            self.dropped += 1;
        }
    }

    /// Drops all spans but those whose activity `is_wanted`.
    pub fn keep(&mut self, is_wanted: impl Fn(&Activity) -> bool) {
        self.spans.retain(|span| is_wanted(&span.activity));
        self.dropped = 0;
    }

    /// Empties the buffer. Returns its spans, and the number of dropped ones.
    pub fn take(&mut self) -> (Vec<Span>, u64) {
        (std::mem::take(&mut self.spans), std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_buffer_counts_what_it_drops_and_starts_anew_when_it_is_emptied() {
        let mut buffer = Buffer::new(2);
        let span = |start| Span { start, end: start + 1, activity: Activity::HandOut };
        (0..5).for_each(|start| buffer.push(span(start)));
        assert_eq!(buffer.take(), (vec![span(0), span(1)], 3));
        buffer.push(span(9));
        let commit = Span { activity: Activity::Commit { step: 1 }, ..span(10) };
        (0..5).for_each(|start| buffer.push(span(start)));
        buffer.push(commit.clone());
        assert_eq!(buffer.take(), (vec![span(9), span(0), commit], 4));
        buffer.push(span(9));
        assert_eq!(buffer.take(), (vec![span(9)], 0));
    }
}
