//! What a worker's threads record of themselves: a clock, and a bounded buffer of spans for each of the two threads.
//!
//! Not here: what becomes of it (the session hands it to the coordinator).

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use convoy_common::trace::{Activity, Buffer, Span};
use convoy_common::wire::{Direction, FromWorker, Recorded, SPANS_MAX};

/// Spans that one thread keeps between two hand-overs: several times what a step of the largest preset has.
const SPANS_KEPT: usize = 16 * 1024;

/// A worker's clock, which only goes forward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
    ahead: Duration,
}

impl Clock {
    /// A clock that starts now, already showing `ahead`.
    pub(crate) fn starting(ahead: Duration) -> Self {
        Self { began: Instant::now(), ahead }
    }

    /// Nanoseconds since it began.
    pub(crate) fn now(&self) -> u64 {
        (self.began.elapsed() + self.ahead).as_nanos() as u64
    }
}

/// A layer that is made slow on purpose, to see whether a trace finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Its name.
    pub layer: String,
    /// There or back.
    pub direction: Direction,
    /// How much longer it takes, each time.
    pub by: Duration,
}

/// What one thread records. It costs next to nothing where it is off.
#[derive(Debug)]
pub(crate) struct Probe {
    clock: Option<Clock>,
    buffer: RefCell<Buffer>,
    /// When the last of what is done one thing after another ended.
    last: Cell<u64>,
    slow: Option<Slow>,
}

impl Probe {
    /// One that records nothing unless there is a clock to record by.
    pub(crate) fn new(clock: Option<Clock>, slow: Option<Slow>) -> Self {
        Self { clock, buffer: RefCell::new(Buffer::new(SPANS_KEPT)), last: Cell::new(0), slow }
    }

    /// Whether anything is recorded.
    pub(crate) fn is_on(&self) -> bool {
        self.clock.is_some()
    }

    /// When something begins.
    pub(crate) fn now(&self) -> u64 {
        self.clock.map_or(0, |clock| clock.now())
    }

    /// Something that began at `start` has ended.
    pub(crate) fn ended(&self, start: u64, activity: impl FnOnce() -> Activity) {
        if let Some(clock) = self.clock {
            self.buffer.borrow_mut().push(Span { start, end: clock.now(), activity: activity() });
        }
    }

    /// What has taken all the time since [`Probe::next`] or [`Probe::skip`] was last called has ended. No time falls between
    /// two such spans, not even where a thread loses its core.
    pub(crate) fn next(&self, activity: impl FnOnce() -> Activity) {
        if let Some(clock) = self.clock {
            let (start, end) = (self.last.get(), clock.now());
            self.buffer.borrow_mut().push(Span { start, end, activity: activity() });
            self.last.set(end);
        }
    }

    /// What has taken the time since then is no part of a step.
    pub(crate) fn skip(&self) {
        self.last.set(self.now());
    }

    /// Takes as long as the rehearsal says, where it means this layer.
    pub(crate) fn rehearse(&self, layer: &str, direction: Direction) {
        if let Some(slow) = self.slow.as_ref().filter(|slow| slow.layer == layer && slow.direction == direction) {
            std::thread::sleep(slow.by);
        }
    }

    /// Nobody wants to know of `step`, nor of those before it. What has come of the next one already stays.
    pub(crate) fn forget(&self, step: u64) {
        let is_later = |activity: &Activity| match activity {
            Activity::Send(transfer) | Activity::Receive(transfer) => transfer.tensor.training_step() > Some(step),
            _ => false,
        };
        self.buffer.borrow_mut().keep(is_later);
    }

    /// What was recorded since the last hand-over, as messages. Another thread's of the same step follow where there is
    /// `more`.
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
