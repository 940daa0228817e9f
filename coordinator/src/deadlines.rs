//! The deadlines of a job, and their order. `--patience` is the only setting; every other deadline follows from it, or is a constant
//! here. [`table`] describes them for help texts.
//!
//! Not here: who has been silent for how long (`silence`), and how long a piece of work takes (`recovery`).

use std::time::Duration;

use convoy_common::links;
use convoy_common::wire::tuning::SILENCE_MAX;

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
/// A piece of work is allowed to take this much longer than the longest one before it.
pub const WORK_LONGER: u32 = 10;
/// A piece of work may always take this long.
pub const WORK_MIN: Duration = Duration::from_secs(30);
/// The first piece of work of a worker may take this long, and no piece may take longer.
pub const FIRST_WORK: Duration = Duration::from_secs(240);
/// A job whose workers answer, but which makes no progress for this long, ends. A step of the largest model on the slowest supported
/// machine takes far less.
pub const PROGRESS_MIN: Duration = Duration::from_secs(300);
/// Workers that the coordinator starts must connect within this.
pub const LOCAL_CONNECTS: Duration = Duration::from_secs(30);
/// Remote workers must connect within this. The time starts again when a worker reports that it is busy with another job.
pub const REMOTE_CONNECTS: Duration = Duration::from_secs(600);
/// Time between a deadline and the one that must come after it.
const MARGIN: Duration = Duration::from_secs(20);

const _: () = {
    assert!(LOOK_EVERY.as_millis() < ASK_EVERY.as_millis() && ASK_EVERY.as_millis() < SUSPECTED_AFTER.as_millis());
    assert!(SUSPECTED_AFTER.as_millis() < GIVEN_UP_MIN.as_millis());
    assert!(GIVEN_UP_MIN.as_millis() < WORK_MIN.as_millis() && WORK_MIN.as_millis() < FIRST_WORK.as_millis());
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
    /// A job that makes no progress for this long ends, although its workers answer.
    pub progress: Duration,
}

impl Deadlines {
    /// The deadlines for `--patience`.
    pub fn of(patience: Duration) -> Self {
        let given_up = patience.max(GIVEN_UP_MIN);
        let later = given_up.saturating_add(MARGIN);
        Self { replaced: patience, given_up, connection: later.max(SILENCE_MAX), progress: later.max(PROGRESS_MIN) }
    }
}

/// Each deadline: what ends the wait or follows it, and when.
pub fn table() -> Vec<(&'static str, String)> {
    let seconds = |duration: Duration| format!("{} s", duration.as_secs_f64());
    let after = |duration| format!("after {}", seconds(duration));
    let (margin, silence) = (seconds(MARGIN), seconds(SILENCE_MAX));
    let hung = format!(
        "after {WORK_LONGER} times its longest computation so far, at least {} and at most {}",
        seconds(WORK_MIN),
        seconds(FIRST_WORK)
    );
    vec![
        ("a worker that says nothing is asked what it is doing", after(ASK_EVERY)),
        ("a worker that does not answer is reported as suspected", after(SUSPECTED_AFTER)),
        ("a worker that does not answer is given up", format!("after P, at least {}", seconds(GIVEN_UP_MIN))),
        ("a worker whose current computation does not end is given up", hung),
        ("with --listen, the remaining workers take over the towers of a lost one", "after P".to_owned()),
        (
            "with --resume auto and --listen, a run continues without the workers that are missing",
            format!("P (at least {}) after the first worker has connected", seconds(GIVEN_UP_MIN)),
        ),
        ("the coordinator relays between two workers that do not connect", after(links::CONNECTED_WITHIN)),
        (
            "a direct connection counts as broken if the other machine acknowledges nothing",
            after(links::ACKNOWLEDGED_WITHIN),
        ),
        ("the job ends if a worker process that it started does not connect", after(LOCAL_CONNECTS)),
        ("the job ends if too few remote workers connect", after(REMOTE_CONNECTS)),
        ("a worker leaves a coordinator that sends nothing", after(SILENCE_MAX)),
        (
            "the coordinator closes a connection whose other end does not answer pings",
            format!("after P + {margin}, at least {silence}"),
        ),
        (
            "the job ends if it makes no progress although its workers answer",
            format!("after P + {margin}, at least {}", seconds(PROGRESS_MIN)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_say_every_deadline() {
        let docs = include_str!("../../docs/RELIABILITY.md").replace('`', "");
        for (what, when) in table() {
            let line = format!("| {what} | {when} |");
            assert!(docs.lines().any(|found| found == line), "docs/RELIABILITY.md lacks: {line}");
        }
    }

    #[test]
    fn deadlines_keep_their_order_for_every_patience() {
        for seconds in [0, 1, 5, 10, 60, 300, 86_400] {
            let patience = Duration::from_secs(seconds);
            let Deadlines { replaced, given_up, connection, progress } = Deadlines::of(patience);
            assert_eq!(replaced, patience);
            assert!(SUSPECTED_AFTER < given_up && given_up >= patience, "{seconds}");
            assert!(given_up < connection && given_up < progress, "{seconds}");
            assert!(connection >= SILENCE_MAX, "{seconds}");
        }
        assert_eq!(Deadlines::of(Duration::from_secs(10)).given_up, Duration::from_secs(10));
    }
}
