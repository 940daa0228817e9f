//! The deadlines of a job, and their order. `--patience` is the only setting; every other deadline follows from it, or is a constant
//! here.
//!
//! Not here: who has been silent for how long (`silence`), and how long a piece of work may take (`recovery`).

use std::time::Duration;

use convoy_common::wire::tuning::PING_TIMEOUT;

/// How often a wait checks for a request to stop, for silent workers, and for processes that have ended.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A worker that has said nothing for this long is asked what it is doing.
pub const ASK_EVERY: Duration = Duration::from_millis(500);
/// A worker that does not answer for this long is reported.
pub const SUSPECTED_AFTER: Duration = Duration::from_secs(2);
/// After a request to stop, a wait for a worker that neither says nor reads anything ends after this.
pub const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// No worker is given up for its silence before this, however short `--patience` is: a busy host can stall a process for seconds.
const GIVEN_UP_MIN: Duration = Duration::from_secs(5);
/// The first piece of work of a worker may take this long, and no piece may take longer.
pub const FIRST_WORK: Duration = Duration::from_secs(240);
/// A job whose workers answer, but which gets no further for this long, ends. A step of the largest model on the slowest supported
/// machine takes far less.
pub const PROGRESS_MIN: Duration = Duration::from_secs(300);
/// Time between a deadline and the one that must come after it.
const MARGIN: Duration = Duration::from_secs(20);

const _: () = {
    assert!(LOOK_EVERY.as_millis() < ASK_EVERY.as_millis() && ASK_EVERY.as_millis() < SUSPECTED_AFTER.as_millis());
    assert!(SUSPECTED_AFTER.as_millis() < GIVEN_UP_MIN.as_millis());
    // A worker that hangs is found before the job is given up.
    assert!(FIRST_WORK.as_secs() + MARGIN.as_secs() < PROGRESS_MIN.as_secs());
};

/// The deadlines that follow from `--patience`.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// How long a job waits for another worker in the place of a lost one.
    pub replaced: Duration,
    /// A worker that does not answer, or does not read, for this long is given up.
    pub given_up: Duration,
    /// A connection whose other end does not answer pings for this long is closed. It is the last resort, for connections of which
    /// nothing else is expected.
    pub connection: Duration,
    /// A job that gets no further for this long ends, although its workers answer.
    pub progress: Duration,
}

impl Deadlines {
    /// The deadlines for `--patience`.
    pub fn of(patience: Duration) -> Self {
        let given_up = patience.max(GIVEN_UP_MIN);
        let later = given_up.saturating_add(MARGIN);
        Self { replaced: patience, given_up, connection: later.max(PING_TIMEOUT), progress: later.max(PROGRESS_MIN) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_keep_their_order_for_every_patience() {
        for seconds in [0, 1, 5, 10, 60, 300, 86_400] {
            let patience = Duration::from_secs(seconds);
            let Deadlines { replaced, given_up, connection, progress } = Deadlines::of(patience);
            assert_eq!(replaced, patience);
            assert!(SUSPECTED_AFTER < given_up && given_up >= patience, "{seconds}");
            assert!(given_up < connection && given_up < progress, "{seconds}");
            assert!(connection >= PING_TIMEOUT, "{seconds}");
        }
        assert_eq!(Deadlines::of(Duration::from_secs(10)).given_up, Duration::from_secs(10));
    }
}
