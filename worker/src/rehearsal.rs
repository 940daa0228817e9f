//! Deliberate faults of a worker, so that tests can find them: in the trace, or by recovering from them.

use std::str::FromStr;
use std::time::Duration;

use crate::probe::Slow;

/// Deliberate faults.
#[derive(Clone, Debug, Default)]
pub struct Rehearsal {
    /// A layer that is slowed down.
    pub slow: Option<Slow>,
    /// An offset of this worker's clock.
    pub clock_ahead: Duration,
    /// When the worker kills itself.
    pub death: Option<Moment>,
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
    /// It has sent a part of a tensor to other towers.
    Exchange(u64),
    /// It begins a segment of a step, backward.
    Backward(u64),
    /// It was told to commit a step, and has not done so.
    Commit(u64),
    /// It has sent a part of its state after a step.
    State(u64),
    /// It begins a segment of a measurement.
    Measure,
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

impl Rehearsal {
    /// The worker has reached a moment. If it is the one of its death, the process is killed, as by SIGKILL from outside.
    pub(crate) fn reached(&self, moment: Moment) {
        if self.death == Some(moment) {
            tracing::warn!("rehearsal: this worker kills itself at {moment:?}");
            // A process may always kill itself, and does not return from it.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
