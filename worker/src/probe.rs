//! Records the spans of a worker's threads: a clock, and a bounded buffer for each of the two threads.
//!
//! Not here: how spans reach the coordinator (`service::session`).

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use convoy_common::trace::{Activity, Buffer, Span};
use convoy_common::wire::{Direction, FromWorker, Recorded, SPANS_MAX};

use crate::vitals::Vitals;

/// Capacity of the buffer in spans: several times what a step of the largest preset has.
const SPANS_KEPT: usize = 16 * 1024;

/// A worker's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
    ahead: Duration,
}

impl Clock {
    /// A clock that starts now at `ahead`.
    pub(crate) fn starting(ahead: Duration) -> Self {
        Self { began: Instant::now(), ahead }
    }

    /// Nanoseconds since the clock started.
    pub(crate) fn now(&self) -> u64 {
        (self.began.elapsed() + self.ahead).as_nanos() as u64
    }
}

/// A layer that is slowed down on purpose, so that a test can find it in the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slow {
    /// The name of the layer.
    pub layer: String,
    /// The direction that is slow.
    pub direction: Direction,
    /// The delay of each pass.
    pub by: Duration,
}

/// Records the spans of one thread. Its cost is negligible when it is off.
#[derive(Debug)]
pub(crate) struct Probe {
    clock: Option<Clock>,
    buffer: RefCell<Buffer>,
    /// The end of the last span that [`Probe::next`] recorded.
    last: Cell<u64>,
    slow: Option<Slow>,
    /// Told of each layer.
    vitals: Option<Vitals>,
}

impl Probe {
    /// A probe that records only if there is a clock.
    pub(crate) fn new(clock: Option<Clock>, slow: Option<Slow>, vitals: Option<Vitals>) -> Self {
        Self { clock, buffer: RefCell::new(Buffer::new(SPANS_KEPT)), last: Cell::new(0), slow, vitals }
    }

    /// Whether spans are recorded.
    pub(crate) fn is_on(&self) -> bool {
        self.clock.is_some()
    }

    /// A layer begins. The time now, as [`Probe::now`] gives it.
    pub(crate) fn layer_begins(&self, layer: usize, direction: Direction) -> u64 {
        self.vitals.iter().for_each(|vitals| vitals.layer_begins(layer, direction));
        self.now()
    }

    /// The time now, for the start of a span; 0 when off.
    pub(crate) fn now(&self) -> u64 {
        self.clock.map_or(0, |clock| clock.now())
    }

    /// Records a span from `start` to now.
    pub(crate) fn ended(&self, start: u64, activity: impl FnOnce() -> Activity) {
        if let Some(clock) = self.clock {
            self.buffer.borrow_mut().push(Span { start, end: clock.now(), activity: activity() });
        }
    }

    /// Records a span from the last call of [`Probe::next`] or [`Probe::skip`] to now. There is no gap between such spans,
    /// even if the thread loses its core.
    pub(crate) fn next(&self, activity: impl FnOnce() -> Activity) {
        if let Some(clock) = self.clock {
            let (start, end) = (self.last.get(), clock.now());
            self.buffer.borrow_mut().push(Span { start, end, activity: activity() });
            self.last.set(end);
        }
    }

    /// Discards the time since the last call: it does not belong to a step.
    pub(crate) fn skip(&self) {
        self.last.set(self.now());
    }

    /// Delays the pass if this layer and direction are slowed down.
    pub(crate) fn rehearse(&self, layer: &str, direction: Direction) {
        if let Some(slow) = self.slow.as_ref().filter(|slow| slow.layer == layer && slow.direction == direction) {
            std::thread::sleep(slow.by);
        }
    }

    /// Discards spans of `step` and earlier ones. Transfers of later steps are kept.
    pub(crate) fn forget(&self, step: u64) {
        let is_later = |activity: &Activity| match activity {
            Activity::Send(transfer) | Activity::Receive(transfer) => transfer.tensor.training_step() > Some(step),
            _ => false,
        };
        self.buffer.borrow_mut().keep(is_later);
    }

    /// The spans since the last report, as messages. `more` says that the other thread's spans of the step follow.
    pub(crate) fn hand_over(&self, step: u64, more: bool) -> Vec<FromWorker> {
        if !self.is_on() {
            return Vec::new();
        }
        let (spans, dropped) = self.buffer.borrow_mut().take();
        let mut parts: Vec<_> = spans.chunks(SPANS_MAX).map(<[Span]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let last = parts.len() - 1;
        let resident_bytes = memory_stats::memory_stats().map_or(0, |memory| memory.physical_mem as u64);
        let message = |(index, spans)| {
            let is_last = index == last;
            let dropped = if is_last { dropped } else { 0 };
            FromWorker::Recorded(Recorded { step, dropped, more: more || !is_last, spans, resident_bytes })
        };
        parts.into_iter().enumerate().map(message).collect()
    }
}
