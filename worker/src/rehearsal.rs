//! Deliberate faults of a worker, so that tests and `convoy chaos` can check how a job finds them and recovers from them.
//!
//! Not here: how a misdeed is written (`convoy_common::misdeed`), and faults that only another process can cause, such as bytes that are held back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use convoy_common::misdeed::{Deed, Misdeed, Moment, announced};
use convoy_common::wire::FRAME_BYTES_MAX;
use convoy_proto::v1;
use rustix::process::{Signal, getpid, kill_process};
use tokio::sync::Notify;

use crate::probe::Slow;

/// A process that has sent itself SIGSTOP stops within this time. The signal may reach another thread first.
const STOPS_WITHIN: Duration = Duration::from_millis(20);

/// Deliberate faults.
#[derive(Clone, Debug, Default)]
pub struct Rehearsal {
    /// A layer that is slowed down.
    pub slow: Option<Slow>,
    /// An offset of this worker's clock.
    pub clock_ahead: Duration,
    /// What the worker does to itself and to its messages. Clones share what is left.
    pub misdeeds: Misdeeds,
    /// Which connections the network thread must close. Clones share them.
    pub to_close: Arc<ToClose>,
}

/// Tells the network thread to close connections.
#[derive(Debug, Default)]
pub struct ToClose {
    coordinator: Flag,
    peers: Flag,
}

/// A request to the network thread.
#[derive(Debug, Default)]
struct Flag {
    is_given: AtomicBool,
    given: Notify,
}

impl Flag {
    fn give(&self) {
        self.is_given.store(true, Ordering::Release);
        self.given.notify_one();
    }

    /// Completes when it is given, or was given since it was last taken.
    async fn taken(&self) {
        while !self.is_given.swap(false, Ordering::AcqRel) {
            self.given.notified().await;
        }
    }
}

/// Misdeeds in order. Only the first one of the list can happen; then it is removed.
#[derive(Clone, Debug, Default)]
pub struct Misdeeds(Option<Arc<Mutex<VecDeque<Misdeed>>>>);

impl FromIterator<Misdeed> for Misdeeds {
    fn from_iter<T: IntoIterator<Item = Misdeed>>(misdeeds: T) -> Self {
        let list: VecDeque<_> = misdeeds.into_iter().collect();
        Self((!list.is_empty()).then(|| Arc::new(Mutex::new(list))))
    }
}

impl Misdeeds {
    /// Takes the first misdeed of the list, if its moment has come and it is of the right kind.
    fn due(&self, reached: Moment, is_of_kind: impl Fn(Deed) -> bool) -> Option<Misdeed> {
        let mut list = self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let first = list.front()?;
        let is_due = first.moment.has_come(reached) && is_of_kind(first.deed);
        if !is_due {
            return None;
        }
        let misdeed = list.pop_front()?;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        tracing::warn!("{}", announced(misdeed, reached, at));
        if misdeed.deed == Deed::Stop {
            // Meanwhile no other thread announces the next misdeed, which would then happen after the process is continued.
            // A process may always signal itself.
            let _ = kill_process(getpid(), Signal::STOP);
            std::thread::sleep(STOPS_WITHIN);
        }
        Some(misdeed)
    }
}

impl Rehearsal {
    /// The worker has reached a moment.
    pub(crate) fn reached(&self, moment: Moment) {
        match self.misdeeds.due(moment, Deed::is_about_itself).map(|misdeed| misdeed.deed) {
            // A process may always signal itself. It does not return from SIGKILL.
            Some(Deed::Kill) => drop(kill_process(getpid(), Signal::KILL)),
            Some(Deed::Limp(milliseconds)) => std::thread::sleep(Duration::from_millis(milliseconds)),
            Some(Deed::Reconnect) => self.to_close.coordinator.give(),
            Some(Deed::Unlink) => self.to_close.peers.give(),
            _ => {}
        }
    }

    /// The rate at which a step is committed.
    pub(crate) fn rate(&self, step: u64, rate: f32) -> f32 {
        let doubles = self.misdeeds.due(Moment::Commit(step), |deed| deed == Deed::Double).is_some();
        if doubles { 2.0 * rate } else { rate }
    }

    /// A generation begins. What was to be closed in an earlier one is closed.
    pub(crate) fn begins(&self) {
        self.to_close.coordinator.is_given.store(false, Ordering::Release);
        self.to_close.peers.is_given.store(false, Ordering::Release);
    }

    /// Completes when the connections to the coordinator are to be closed.
    pub(crate) async fn reconnects(&self) {
        self.to_close.coordinator.taken().await;
    }

    /// Completes when the connections to other workers are to be closed.
    pub(crate) async fn unlinks(&self) {
        self.to_close.peers.taken().await;
    }

    /// The frames that are sent in place of one at a moment.
    pub(crate) fn tampered(&self, moment: Option<Moment>, frame: v1::Frame) -> impl Iterator<Item = v1::Frame> {
        let deed =
            moment.and_then(|moment| self.misdeeds.due(moment, Deed::is_about_messages)).map(|misdeed| misdeed.deed);
        let (first, second) = match deed {
            None => (frame, None),
            Some(deed) => tampered(deed, frame),
        };
        std::iter::once(first).chain(second)
    }
}

fn tampered(deed: Deed, frame: v1::Frame) -> (v1::Frame, Option<v1::Frame>) {
    let Some(v1::frame::Frame::Chunk(chunk)) = &frame.frame else { return (frame, None) };
    let length = chunk.data.len();
    let with = |offset: u64, data: Vec<u8>, crc32c: u32| v1::Frame {
        frame: Some(v1::frame::Frame::Chunk(v1::Chunk { offset, data: data.into(), crc32c, ..chunk.clone() })),
    };
    let (data, half) = (chunk.data.to_vec(), (length / 2) & !3);
    match deed {
        Deed::Flip => {
            let mut data = data;
            data.get_mut(length / 3).into_iter().for_each(|byte| *byte ^= 1);
            (with(chunk.offset, data, chunk.crc32c), None)
        }
        Deed::Truncate => (with(chunk.offset, data[..half].to_vec(), chunk.crc32c), None),
        Deed::Replay => (frame.clone(), Some(frame)),
        Deed::Reorder => {
            let (first, second) = data.split_at(half);
            let [first, second] = [(0, first), (half as u64, second)]
                .map(|(at, part)| with(chunk.offset + at, part.to_vec(), crc32c::crc32c(part)));
            (second, Some(first))
        }
        Deed::Stale => {
            let generation = chunk.generation.saturating_sub(1);
            let before = v1::Chunk { generation, ..chunk.clone() };
            (v1::Frame { frame: Some(v1::frame::Frame::Chunk(before)) }, Some(frame))
        }
        Deed::Oversize => {
            let data = vec![0; FRAME_BYTES_MAX + 1];
            let sum = crc32c::crc32c(&data);
            (with(chunk.offset, data, sum), None)
        }
        Deed::Kill | Deed::Stop | Deed::Limp(_) | Deed::Double | Deed::Unlink | Deed::Reconnect => (frame, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misdeeds_happen_in_order_and_once_each() {
        let list = ["limp:1@forward:3", "flip@exchange:2", "limp:1@measure"].map(|text| text.parse().unwrap());
        let misdeeds: Misdeeds = list.into_iter().collect();
        assert_eq!(misdeeds.due(Moment::Measure, Deed::is_about_itself), None, "not yet");
        assert_eq!(misdeeds.due(Moment::Forward(2), Deed::is_about_itself), None);
        assert_eq!(
            misdeeds.clone().due(Moment::Forward(4), Deed::is_about_itself),
            Some(list[0]),
            "a later step will do"
        );
        assert_eq!(misdeeds.due(Moment::Exchange(4), Deed::is_about_itself), None, "it is about a message");
        assert_eq!(misdeeds.due(Moment::Exchange(4), Deed::is_about_messages), Some(list[1]));
        assert_eq!(misdeeds.due(Moment::Measure, Deed::is_about_itself), Some(list[2]));
        assert_eq!(misdeeds.due(Moment::Measure, Deed::is_about_itself), None);
    }

    #[test]
    fn a_tampered_frame_differs_from_the_frame() {
        let data: Vec<u8> = (0..64).collect();
        let chunk = v1::Chunk { job: 1, crc32c: crc32c::crc32c(&data), data: data.into(), ..v1::Chunk::default() };
        let frame = v1::Frame { frame: Some(v1::frame::Frame::Chunk(chunk)) };
        for deed in [Deed::Flip, Deed::Truncate, Deed::Replay, Deed::Reorder, Deed::Stale, Deed::Oversize] {
            let (first, second) = tampered(deed, frame.clone());
            assert!(first != frame || second.is_some(), "{deed:?}");
        }
        assert_eq!(tampered(Deed::Kill, frame.clone()), (frame, None));
    }
}
