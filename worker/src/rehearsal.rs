//! Deliberate faults of a worker, so that tests and `convoy chaos` can check how a job finds them and recovers from them.
//!
//! Not here: faults that only another process can cause, such as a connection that is cut.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use convoy_common::wire::FRAME_BYTES_MAX;
use convoy_proto::v1;
use rustix::process::{Signal, getpid, kill_process};

use crate::probe::Slow;

/// Deliberate faults.
#[derive(Clone, Debug, Default)]
pub struct Rehearsal {
    /// A layer that is slowed down.
    pub slow: Option<Slow>,
    /// An offset of this worker's clock.
    pub clock_ahead: Duration,
    /// What the worker does to itself and to its messages. Clones share what is left.
    pub misdeeds: Misdeeds,
}

/// Misdeeds in order. Only the first one of the list can happen; then it is removed.
#[derive(Clone, Debug, Default)]
pub struct Misdeeds(Option<Arc<Mutex<VecDeque<Misdeed>>>>);

/// A deed and its moment, as `DEED@PHASE:STEP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misdeed {
    /// What is done.
    pub deed: Deed,
    /// When: at the first moment of this phase, in this step or a later one.
    pub moment: Moment,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It kills itself, as by SIGKILL.
    Kill,
    /// It stops itself, as by SIGSTOP. Another process must continue it.
    Stop,
    /// It sleeps for so many milliseconds.
    Limp(u64),
    /// It commits a step at twice the rate.
    Double,
    /// It sends a part of a tensor with a bit flipped.
    Flip,
    /// It sends a part of a tensor without its second half.
    Truncate,
    /// It sends a part of a tensor twice.
    Replay,
    /// It sends the halves of a part of a tensor in the wrong order.
    Reorder,
    /// It sends a part of a tensor of the generation before, which must have no effect, and then the part itself.
    Stale,
    /// It sends a message that is larger than any may be.
    Oversize,
}

/// A moment of a worker's part in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It was let in, and has not opened its tensor connection.
    Join,
    /// It was assigned its towers, and has not received their weights.
    Assign,
    /// It begins a segment of a step, forward.
    Forward(u64),
    /// It sends a part of a tensor to other towers, or has just sent one.
    Exchange(u64),
    /// It begins a segment of a step, backward.
    Backward(u64),
    /// It was told to commit a step, and has not done so.
    Commit(u64),
    /// It sends a part of its state after a step, or has just sent one.
    State(u64),
    /// It begins a segment of a measurement.
    Measure,
}

impl Moment {
    /// Whether this moment has come when the worker reaches `reached`.
    fn has_come(self, reached: Moment) -> bool {
        use Moment::{Backward, Commit, Exchange, Forward, State};
        match (self, reached) {
            (Forward(planned), Forward(step))
            | (Exchange(planned), Exchange(step))
            | (Backward(planned), Backward(step))
            | (Commit(planned), Commit(step))
            | (State(planned), State(step)) => step >= planned,
            _ => self == reached,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Moment::Join => write!(f, "join"),
            Moment::Assign => write!(f, "assign"),
            Moment::Measure => write!(f, "measure"),
            Moment::Forward(step) => write!(f, "forward:{step}"),
            Moment::Exchange(step) => write!(f, "exchange:{step}"),
            Moment::Backward(step) => write!(f, "backward:{step}"),
            Moment::Commit(step) => write!(f, "commit:{step}"),
            Moment::State(step) => write!(f, "state:{step}"),
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    /// Parses `PHASE`, or `PHASE:STEP` for phases of a step.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is neither join, assign or measure, nor forward, exchange, backward, commit or state with :STEP"
            )
        };
        let Some((phase, step)) = text.split_once(':') else {
            return match text {
                "join" => Ok(Moment::Join),
                "assign" => Ok(Moment::Assign),
                "measure" => Ok(Moment::Measure),
                _ => Err(wrong()),
            };
        };
        let step = step.parse().map_err(|_| wrong())?;
        match phase {
            "forward" => Ok(Moment::Forward(step)),
            "exchange" => Ok(Moment::Exchange(step)),
            "backward" => Ok(Moment::Backward(step)),
            "commit" => Ok(Moment::Commit(step)),
            "state" => Ok(Moment::State(step)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Misdeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.deed {
            Deed::Limp(milliseconds) => write!(f, "limp:{milliseconds}@{}", self.moment),
            deed => write!(f, "{}@{}", format!("{deed:?}").to_lowercase(), self.moment),
        }
    }
}

impl FromStr for Misdeed {
    type Err = String;

    /// Parses `DEED@PHASE` or `DEED@PHASE:STEP`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (deed, moment) = text.split_once('@').ok_or_else(|| format!("\"{text}\" is not DEED@PHASE:STEP"))?;
        let moment = moment.parse()?;
        let deed = match deed.split_once(':').map_or((deed, None), |(deed, number)| (deed, Some(number))) {
            ("kill", None) => Deed::Kill,
            ("stop", None) => Deed::Stop,
            ("limp", Some(number)) => Deed::Limp(number.parse().map_err(|_| format!("\"{deed}\" is not limp:MS"))?),
            ("double", None) => Deed::Double,
            ("flip", None) => Deed::Flip,
            ("truncate", None) => Deed::Truncate,
            ("replay", None) => Deed::Replay,
            ("reorder", None) => Deed::Reorder,
            ("stale", None) => Deed::Stale,
            ("oversize", None) => Deed::Oversize,
            _ => {
                let known = "kill, stop, limp:MS, double, flip, truncate, replay, reorder, stale or oversize";
                return Err(format!("\"{deed}\" is not {known}"));
            }
        };
        let sends = matches!(moment, Moment::Exchange(_) | Moment::State(_));
        if deed.is_about_messages() && !sends {
            return Err(format!("\"{text}\": a worker sends tensors at exchange:STEP and state:STEP only"));
        }
        if deed == Deed::Double && !matches!(moment, Moment::Commit(_)) {
            return Err(format!("\"{text}\": a worker commits at commit:STEP only"));
        }
        Ok(Self { deed, moment })
    }
}

impl Deed {
    /// Whether the worker does it to its own process.
    fn is_about_itself(self) -> bool {
        matches!(self, Deed::Kill | Deed::Stop | Deed::Limp(_))
    }

    /// Whether the worker does it to a message.
    fn is_about_messages(self) -> bool {
        !self.is_about_itself() && self != Deed::Double
    }
}

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
        let misdeed = if is_due { list.pop_front() } else { None };
        drop(list);
        misdeed.inspect(|misdeed| tracing::warn!("rehearsal: {misdeed}, at {reached}"))
    }
}

impl Rehearsal {
    /// The worker has reached a moment.
    pub(crate) fn reached(&self, moment: Moment) {
        match self.misdeeds.due(moment, Deed::is_about_itself).map(|misdeed| misdeed.deed) {
            // A process may always signal itself. It does not return from SIGKILL.
            Some(Deed::Kill) => drop(kill_process(getpid(), Signal::KILL)),
            Some(Deed::Stop) => drop(kill_process(getpid(), Signal::STOP)),
            Some(Deed::Limp(milliseconds)) => std::thread::sleep(Duration::from_millis(milliseconds)),
            _ => {}
        }
    }

    /// The rate at which a step is committed.
    pub(crate) fn rate(&self, step: u64, rate: f32) -> f32 {
        let doubles = self.misdeeds.due(Moment::Commit(step), |deed| deed == Deed::Double).is_some();
        if doubles { 2.0 * rate } else { rate }
    }

    /// What is sent instead of a frame at a moment.
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
        Deed::Kill | Deed::Stop | Deed::Limp(_) | Deed::Double => (frame, None),
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
    fn what_is_no_misdeed_is_refused() {
        for text in
            ["kill", "kill@", "kill@forward", "eat@forward:1", "limp@forward:1", "limp:x@forward:1", "flip@forward:1"]
        {
            assert!(text.parse::<Misdeed>().is_err(), "{text}");
        }
        for text in ["limp:5@forward:3", "flip@state:2", "kill@join", "double@commit:4"] {
            assert_eq!(text.parse::<Misdeed>().unwrap().to_string(), text);
        }
        let moments = ["join", "assign", "measure", "forward:1", "exchange:2", "backward:3", "commit:4", "state:5"];
        for text in moments {
            assert_eq!(text.parse::<Moment>().unwrap().to_string(), text);
        }
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
