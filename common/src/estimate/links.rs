//! The links as a model: each end sends one message after another, and receives one after another, at the rate of the link.

use super::events::{Time, time};
use crate::index::WorkerIndex;

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// The coordinator's.
    Coordinator,
    /// A worker's.
    Worker(WorkerIndex),
}

impl End {
    /// Its place in a list of all ends.
    fn place(self) -> usize {
        match self {
            End::Coordinator => 0,
            End::Worker(worker) => worker.0 + 1,
        }
    }
}

/// When each end of a link is free again, and how long it was busy.
#[derive(Debug)]
pub(super) struct Links {
    seconds_a_byte: f64,
    /// The coordinator's, and then those of the workers.
    sending: Vec<Side>,
    receiving: Vec<Side>,
}

/// One direction of a link's end.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    free: Time,
    busy: Time,
}

impl Side {
    /// Takes it for `duration`, from `now` or as soon as it is free. Returns the beginning.
    fn take(&mut self, now: Time, duration: Time) -> Time {
        let begins = now.max(self.free);
        self.free = begins.saturating_add(duration);
        self.busy = self.busy.saturating_add(duration);
        begins
    }
}

impl Links {
    /// Links of the coordinator and of `workers` workers that carry `bits` bits per second in each direction.
    pub(super) fn new(workers: usize, bits: f64) -> Self {
        let sides = vec![Side::default(); workers + 1];
        Self { seconds_a_byte: 8.0 / bits, sending: sides.clone(), receiving: sides }
    }

    /// How long a link takes to carry `bytes` bytes.
    pub(super) fn duration(&self, bytes: u64) -> Time {
        time(bytes as f64 * self.seconds_a_byte)
    }

    /// `from` sends `bytes` bytes, as soon as it has sent everything before. Returns the beginning.
    pub(super) fn send(&mut self, from: End, bytes: u64, now: Time) -> Time {
        let duration = self.duration(bytes);
        self.sending[from.place()].take(now, duration)
    }

    /// `to` receives `bytes` bytes whose first one may arrive at `now`. Returns when it receives the first one, and when the last one.
    pub(super) fn receive(&mut self, to: End, bytes: u64, now: Time) -> (Time, Time) {
        let duration = self.duration(bytes);
        let begins = self.receiving[to.place()].take(now, duration);
        (begins, begins.saturating_add(duration))
    }

    /// The end that was busy longest in one direction, and how long.
    pub(super) fn busiest(&self) -> (End, Time) {
        let busy = |place: usize| self.sending[place].busy.max(self.receiving[place].busy);
        let workers = (1..self.sending.len()).map(|place| (End::Worker(WorkerIndex(place - 1)), busy(place)));
        workers.fold((End::Coordinator, busy(0)), |busiest, other| if other.1 > busiest.1 { other } else { busiest })
    }
}
