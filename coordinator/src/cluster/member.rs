//! A connected worker, and what is heard from it.
//!
//! Not here: what a message means, and which place a worker takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use convoy_common::wire::{Chunk, FromWorker, Hello, Numbered, ToWorker};
use convoy_proto::v1;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::deadlines::{LOOK_EVERY, STOP_PATIENCE};
use crate::silence::{Quiet, Wait};

/// What the doors report.
#[derive(Debug)]
pub enum Report {
    /// Both connections of a worker are there.
    Joined(Box<Member>),
    /// The worker of a session was heard.
    Heard(u64, Heard),
    /// A worker without a session serves another coordinator.
    Elsewhere(Elsewhere),
    /// A worker was refused: its address, and why.
    Refused(String, String),
}

/// What is heard from a worker.
#[derive(Debug)]
pub enum Heard {
    /// A control message, and when it arrived, by the coordinator's clock.
    Said(Numbered<FromWorker>, u64),
    /// A part of a tensor, and when it arrived, by the coordinator's clock.
    Chunk(Chunk, u64),
    /// It is gone: why.
    Lost(String),
}

/// A worker that serves another coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its machine.
    pub host: String,
    /// Address of that coordinator, as the worker sees it.
    pub coordinator: String,
    /// The model of its job. None while that coordinator waits for more workers.
    pub model: Option<String>,
}

/// What keeps the connections of a worker open. When it is dropped, they are closed.
#[derive(Debug)]
pub(super) struct Lease(watch::Sender<()>);

/// Tells one connection when the lease of its worker ends.
#[derive(Debug)]
pub(super) struct LeaseEnd(watch::Receiver<()>);

impl Lease {
    pub(super) fn new() -> (Self, LeaseEnd) {
        let (lease, end) = watch::channel(());
        (Self(lease), LeaseEnd(end))
    }

    /// Tells when the lease ends.
    pub(super) fn end(&self) -> LeaseEnd {
        LeaseEnd(self.0.subscribe())
    }
}

impl LeaseEnd {
    /// Completes when the lease has ended.
    pub(super) async fn comes(&mut self) {
        // Nothing is ever sent.
        let _ = self.0.changed().await;
    }
}

/// A connected worker.
#[derive(Debug)]
pub struct Member {
    pub(super) session: u64,
    /// Its own description.
    pub hello: Hello,
    /// Where it connected from.
    pub address: String,
    pub(super) control: Sender<v1::ToWorker>,
    pub(super) frames: Sender<v1::Frame>,
    /// Whether it has announced that it will stop.
    pub(super) is_leaving: bool,
    /// Whether it was told that it is a spare.
    pub(super) is_spare: bool,
    /// How long it has been silent, while it is a spare, and between two crews.
    pub(super) quiet: Quiet,
    /// Whether it has reported a failure.
    pub(super) has_failed: bool,
    /// Sessions of the workers to which it can't be connected directly.
    pub(super) relayed: Vec<u64>,
    /// Whether it may send tensors: it has, or had, a seat.
    pub(super) may_send: Arc<AtomicBool>,
    pub(super) lease: Lease,
}

impl Member {
    /// Closes the control connection after the orders that are queued. A worker that has failed waits for this.
    pub(super) fn hang_up(&mut self) {
        self.control = channel(1).0;
    }

    /// Whether this spare can take a seat: it answers, and its connection is open.
    pub(super) fn is_available(&self) -> bool {
        !self.quiet.is_suspected() && !self.control.is_closed()
    }

    /// Sends an order, if it can be queued at once.
    pub(super) fn try_tell(&self, generation: u64, message: ToWorker) -> bool {
        self.control.try_send(Numbered { generation, message }.into()).is_ok()
    }
}

/// Why a message can't be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The connection is closed.
    Gone,
    /// The worker does not read.
    Unread,
    /// The worker does not read, and a stop was requested.
    Stopped,
}

/// Queues a message. Waits up to `patience` while the worker does not read, but not for long once `stop` is set. Meanwhile `waits` is
/// called again and again with how long that has lasted.
pub(super) fn deliver<T>(
    runtime: &Runtime,
    to: &Sender<T>,
    message: T,
    (patience, mut waits): (Duration, impl FnMut(Duration)),
    stop: &AtomicBool,
) -> Result<(), Undelivered> {
    let message = match to.try_send(message) {
        Ok(()) => return Ok(()),
        Err(TrySendError::Closed(_)) => return Err(Undelivered::Gone),
        Err(TrySendError::Full(message)) => message,
    };
    let mut wait = Wait::starting(Instant::now());
    loop {
        waits(wait.lasted());
        let reserved = runtime.block_on(async { timeout(LOOK_EVERY, to.reserve()).await });
        wait.look(Instant::now());
        match reserved {
            Ok(Ok(place)) => {
                place.send(message);
                return Ok(());
            }
            Ok(Err(_)) => return Err(Undelivered::Gone),
            Err(_) if wait.lasted() > patience => return Err(Undelivered::Unread),
            Err(_) if stop.load(Ordering::Relaxed) && wait.lasted() > STOP_PATIENCE => {
                return Err(Undelivered::Stopped);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What waits learns how long it waits, and the message arrives once the worker reads.
    #[test]
    fn a_message_waits_until_the_worker_reads() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (sender, mut reader) = channel(1);
        sender.try_send(1).unwrap();
        let mut waited = Vec::new();
        let enough = Duration::from_millis(250);
        let waits = |lasted| {
            waited.push(lasted);
            if lasted >= enough && reader.len() == 1 {
                assert_eq!(reader.try_recv(), Ok(1));
            }
        };
        let patience = Duration::from_secs(600);
        assert_eq!(deliver(&runtime, &sender, 2, (patience, waits), &AtomicBool::new(false)), Ok(()));
        assert!(waited.is_sorted() && waited.last() >= Some(&enough), "{waited:?}");
        assert_eq!(reader.try_recv(), Ok(2));
        drop(reader);
        let ended = deliver(&runtime, &sender, 3, (patience, |_| ()), &AtomicBool::new(false));
        assert_eq!(ended, Err(Undelivered::Gone));
    }
}
