//! The deliberate faults of a worker, as its `--rehearse` takes them: `DEED@PHASE:STEP`. `convoy chaos` writes them, and workers read
//! them.
//!
//! Not here: carrying them out (the worker's `rehearsal`), and planning them (the `storm` of `convoy chaos`).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A deed and its moment, as `DEED@PHASE:STEP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misdeed {
    /// What is done.
    pub deed: Deed,
    /// When: at the first moment of this phase, in this step or a later one.
    pub moment: Moment,
}

/// Announces a misdeed: the line that a worker logs just before it happens, at a time since 1970.
pub fn announced(misdeed: Misdeed, reached: Moment, at: Duration) -> String {
    format!("{ANNOUNCES}{misdeed}, at {reached}, {:.6} s after 1970", at.as_secs_f64())
}

/// The misdeed that a line announces, and when it happens.
pub fn announcement_in(line: &str) -> Option<(Misdeed, Duration)> {
    // The name of the module that logs it may end in the same word.
    let (_, announcement) = line.rsplit_once(ANNOUNCES)?;
    let [misdeed, _, at] = <[&str; 3]>::try_from(announcement.splitn(3, ", ").collect::<Vec<_>>()).ok()?;
    let at = at.split_once(" s after 1970")?.0.parse().ok()?;
    Some((misdeed.parse().ok()?, Duration::try_from_secs_f64(at).ok()?))
}

const ANNOUNCES: &str = "rehearsal: ";

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It kills itself, as by SIGKILL.
    Kill,
    /// It stops itself, as by SIGSTOP. Another process must continue it.
    Stop,
    /// It sleeps for this many milliseconds.
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
    /// It closes its connections to other workers.
    Unlink,
    /// It closes all its connections, and then connects to the coordinator again.
    Reconnect,
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
    /// It sends a piece of a gradient to another replica, or has just sent one.
    Reduce(u64),
    /// It was told to commit a step, and has not done so.
    Commit(u64),
    /// It sends a part of its state after a step, or has just sent one.
    State(u64),
    /// It begins a segment of a measurement.
    Measure,
}

impl Moment {
    /// Whether this moment has come when the worker reaches `reached`.
    pub fn has_come(self, reached: Moment) -> bool {
        use Moment::{Backward, Commit, Exchange, Forward, Reduce, State};
        match (self, reached) {
            (Forward(planned), Forward(step))
            | (Exchange(planned), Exchange(step))
            | (Backward(planned), Backward(step))
            | (Reduce(planned), Reduce(step))
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
            Moment::Reduce(step) => write!(f, "reduce:{step}"),
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
                "\"{text}\" is neither join, assign or measure, nor forward, exchange, backward, reduce, commit or state with :STEP"
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
            "reduce" => Ok(Moment::Reduce(step)),
            "commit" => Ok(Moment::Commit(step)),
            "state" => Ok(Moment::State(step)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Misdeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.deed, self.moment)
    }
}

impl FromStr for Misdeed {
    type Err = String;

    /// Parses `DEED@PHASE` or `DEED@PHASE:STEP`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (deed, moment) = text
            .split_once('@')
            .ok_or_else(|| format!("\"{text}\" is neither DEED@PHASE nor DEED@PHASE:STEP, where DEED is {DEEDS}"))?;
        let moment = moment.parse()?;
        let deed: Deed = deed.parse()?;
        let sends = matches!(moment, Moment::Exchange(_) | Moment::Reduce(_) | Moment::State(_));
        if deed.is_about_messages() && !sends {
            return Err(format!(
                "\"{text}\": a worker sends tensors at exchange:STEP, reduce:STEP and state:STEP only"
            ));
        }
        if matches!(deed, Deed::Unlink | Deed::Reconnect) && matches!(moment, Moment::Join | Moment::Assign) {
            return Err(format!("\"{text}\": a worker has no connections of a job at join and assign"));
        }
        if deed == Deed::Double && !matches!(moment, Moment::Commit(_)) {
            return Err(format!("\"{text}\": a worker commits at commit:STEP only"));
        }
        Ok(Self { deed, moment })
    }
}

/// All deeds, for errors.
const DEEDS: &str =
    "kill, stop, limp:MS, double, flip, truncate, replay, reorder, stale, oversize, unlink or reconnect";
/// The deeds that need no number.
const PLAIN: [Deed; 11] = [
    Deed::Kill,
    Deed::Stop,
    Deed::Double,
    Deed::Flip,
    Deed::Truncate,
    Deed::Replay,
    Deed::Reorder,
    Deed::Stale,
    Deed::Oversize,
    Deed::Unlink,
    Deed::Reconnect,
];

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Deed::Kill => write!(f, "kill"),
            Deed::Stop => write!(f, "stop"),
            Deed::Limp(milliseconds) => write!(f, "limp:{milliseconds}"),
            Deed::Double => write!(f, "double"),
            Deed::Flip => write!(f, "flip"),
            Deed::Truncate => write!(f, "truncate"),
            Deed::Replay => write!(f, "replay"),
            Deed::Reorder => write!(f, "reorder"),
            Deed::Stale => write!(f, "stale"),
            Deed::Oversize => write!(f, "oversize"),
            Deed::Unlink => write!(f, "unlink"),
            Deed::Reconnect => write!(f, "reconnect"),
        }
    }
}

impl FromStr for Deed {
    type Err = String;

    /// Parses `DEED`, or `limp:MS`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(milliseconds) = text.strip_prefix("limp:") {
            return milliseconds.parse().map(Deed::Limp).map_err(|_| format!("\"{text}\" is not limp:MS"));
        }
        PLAIN.into_iter().find(|deed| deed.to_string() == text).ok_or_else(|| format!("\"{text}\" is not {DEEDS}"))
    }
}

impl Deed {
    /// Whether the worker does it to its own process or to its connections.
    pub fn is_about_itself(self) -> bool {
        matches!(self, Deed::Kill | Deed::Stop | Deed::Limp(_) | Deed::Unlink | Deed::Reconnect)
    }

    /// Whether the worker does it to a message.
    pub fn is_about_messages(self) -> bool {
        !self.is_about_itself() && self != Deed::Double
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_understood_wherever_it_stands_in_a_line() {
        let (misdeed, at) = ("limp:5@forward:3".parse().unwrap(), Duration::from_micros(1_764_000_000_123_456));
        let line = format!(
            "2026-11-27 WARN job{{job=7}}: convoy_worker::rehearsal: {} job=7",
            announced(misdeed, Moment::Forward(4), at)
        );
        let (found, found_at) = announcement_in(&line).unwrap();
        assert_eq!(found, misdeed);
        assert!(found_at.abs_diff(at) < Duration::from_micros(2), "{found_at:?}");
        for line in
            ["", "rehearsal: ", "rehearsal: eat@forward:1, at join, 1.0 s after 1970", "rehearsal: kill@join, at x, y"]
        {
            assert_eq!(announcement_in(line), None, "{line}");
        }
    }

    #[test]
    fn what_is_no_misdeed_is_refused() {
        for text in [
            "kill",
            "kill@",
            "kill@forward",
            "eat@forward:1",
            "limp@forward:1",
            "limp:x@forward:1",
            "flip@forward:1",
            "reconnect@join",
        ] {
            assert!(text.parse::<Misdeed>().is_err(), "{text}");
        }
        for text in ["limp:5@forward:3", "flip@state:2", "kill@join", "double@commit:4"] {
            assert_eq!(text.parse::<Misdeed>().unwrap().to_string(), text);
        }
        for deed in PLAIN {
            assert_eq!(deed.to_string().parse(), Ok(deed));
        }
        let moments =
            ["join", "assign", "measure", "forward:1", "exchange:2", "backward:3", "reduce:3", "commit:4", "state:5"];
        for text in moments {
            assert_eq!(text.parse::<Moment>().unwrap().to_string(), text);
        }
    }
}
