//! What processes record of a job: spans of time, each with what it was spent on, in a bounded buffer.
//!
//! Not here: clocks (whoever records brings the time), how spans travel (`wire`), and what is made of them (the
//! coordinator's `trace`).

use crate::batch::MicroBatchId;
use crate::wire::{Direction, TensorKey};

/// A stretch of time of one thread, in nanoseconds of its process's clock.
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
    /// How long it took.
    pub fn length(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// What time is spent on. Tensors are those of a step: placement and checkpoints are no part of its account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// A worker's computing thread goes through a segment; its layers lie within.
    Segment(SegmentRun),
    /// A layer of the segment around it.
    Layer {
        /// Its index in the network.
        layer: usize,
        /// There or back.
        direction: Direction,
    },
    /// Gradients are applied.
    Commit {
        /// Of which step.
        step: u64,
    },
    /// A tensor that has come is put where it belongs.
    Take(TensorKey),
    /// There is nothing to compute until this tensor comes.
    AwaitTensor(TensorKey),
    /// There is nothing to compute until the coordinator says what is next.
    AwaitOrder,
    /// What was computed is handed to the network thread; long when that has much to send.
    HandOut,
    /// Weights are read for a checkpoint.
    ReadState,
    /// A worker's network thread sends a tensor: from when it takes it up until the transport has all of it.
    Send(Transfer),
    /// A worker's network thread receives a tensor: from its first chunk until it is whole.
    Receive(Transfer),
    /// The coordinator passes a tensor on, or keeps its logits: from the arrival of its first chunk until the last one is
    /// handed on.
    Relay(Transfer),
    /// The coordinator drives a step, from its images until the commit.
    Step {
        /// Which.
        step: u64,
    },
    /// The coordinator puts a micro-batch's images together and sends them.
    SendImages(MicroBatchId),
    /// The coordinator computes a micro-batch's loss and sends its gradient.
    Loss(MicroBatchId),
    /// The coordinator has nothing to do until somebody says something.
    Idle,
    /// The coordinator measures on the test images.
    Measure,
    /// The coordinator collects and writes a checkpoint.
    Checkpoint,
}

/// Which segment, of which tower, for which micro-batch, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentRun {
    /// Whose samples.
    pub micro_batch: MicroBatchId,
    /// Its index in the plan.
    pub segment: usize,
    /// Whose channels.
    pub tower: usize,
    /// There or back.
    pub direction: Direction,
}

/// A tensor on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Which.
    pub tensor: TensorKey,
    /// Its payload.
    pub bytes: u64,
    /// Nanoseconds of cutting, checking and copying, rather than of waiting for the transport.
    pub busy: u64,
}

/// A buffer of spans with a bound: what doesn't fit is counted, and time goes on.
#[derive(Debug)]
pub struct Buffer {
    spans: Vec<Span>,
    dropped: u64,
    limit: usize,
}

impl Buffer {
    /// A buffer of at most `limit` spans; of none where nothing is to be recorded.
    pub fn new(limit: usize) -> Self {
        Self { spans: Vec::new(), dropped: 0, limit }
    }

    /// Keeps a span, or counts it. The one that ends a step has room in any case: without it the others are nothing.
    pub fn push(&mut self, span: Span) {
        let ends_step = matches!(span.activity, Activity::Commit { .. } | Activity::Step { .. });
        if self.spans.len() < self.limit || ends_step {
            self.spans.push(span);
        } else {
            self.dropped += 1;
        }
    }

    /// Forgets all but what `is_wanted`.
    pub fn keep(&mut self, is_wanted: impl Fn(&Activity) -> bool) {
        self.spans.retain(|span| is_wanted(&span.activity));
        self.dropped = 0;
    }

    /// What was kept since this was last asked, and how many spans weren't.
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
