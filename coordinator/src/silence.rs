//! Which workers have not answered, and for how long. Pure: the caller passes the time.
//!
//! Not here: asking them (`crew`), and what follows from silence (`recovery`).

use std::time::{Duration, Instant};

use convoy_common::index::{PerWorker, WorkerIndex};

use crate::deadlines::{ASK_EVERY, SUSPECTED_AFTER};

/// A longer time between two looks does not count: the coordinator itself was busy or stopped.
const LOOK_MAX: Duration = Duration::from_millis(200);

/// A wait of the coordinator. Time in which the coordinator did not look does not count.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    looked: Instant,
    lasted: Duration,
}

impl Wait {
    /// A wait that begins at `now`.
    pub fn starting(now: Instant) -> Self {
        Self { looked: now, lasted: Duration::ZERO }
    }

    /// The coordinator looks at `now`. Returns the time since the last look.
    pub fn look(&mut self, now: Instant) -> Duration {
        let time = now.saturating_duration_since(std::mem::replace(&mut self.looked, now)).min(LOOK_MAX);
        self.lasted += time;
        time
    }

    /// How long it has lasted.
    pub fn lasted(&self) -> Duration {
        self.lasted
    }
}

/// What a worker's silence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It should be asked.
    Ask,
    /// It has not answered for long enough to be reported. Said once.
    Suspect,
    /// It has not answered for too long.
    GiveUp,
}

/// How long a worker has been silent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet {
    /// Time since the worker was last heard.
    lasted: Duration,
    /// Part of it during which a question was unanswered.
    unanswered: Option<Duration>,
    is_suspected: bool,
}

impl Quiet {
    /// A question was sent.
    pub fn asked(&mut self) {
        self.unanswered = Some(Duration::ZERO);
    }

    /// The worker was heard. Returns whether it was suspected.
    pub fn heard(&mut self) -> bool {
        std::mem::take(self).is_suspected
    }

    /// The worker has not read for `lasted`. Returns whether it is suspected from now on.
    fn has_not_read(&mut self, lasted: Duration) -> bool {
        self.lasted = self.lasted.max(lasted);
        lasted >= SUSPECTED_AFTER && !std::mem::replace(&mut self.is_suspected, true)
    }

    /// Whether the worker is suspected.
    pub fn is_suspected(&self) -> bool {
        self.is_suspected
    }

    /// Time has passed.
    pub fn passed(&mut self, time: Duration) {
        self.lasted += time;
        self.unanswered.iter_mut().for_each(|unanswered| *unanswered += time);
    }

    /// What to do about the silence, if anything. A worker is given up after `given_up`.
    pub fn verdict(&mut self, given_up: Duration) -> Option<Verdict> {
        match self.unanswered {
            None => (self.lasted >= ASK_EVERY).then_some(Verdict::Ask),
            Some(unanswered) if unanswered + ASK_EVERY >= given_up => Some(Verdict::GiveUp),
            Some(unanswered) if unanswered >= ASK_EVERY && self.lasted >= SUSPECTED_AFTER => {
                (!std::mem::replace(&mut self.is_suspected, true)).then_some(Verdict::Suspect)
            }
            Some(_) => None,
        }
    }
}

/// How long each worker of a crew has been silent.
#[derive(Debug)]
pub struct Silence {
    wait: Wait,
    workers: PerWorker<Quiet>,
}

impl Silence {
    /// The workers of a crew that begins. Those who were silent already are not given more time.
    pub fn starting(workers: PerWorker<Quiet>, now: Instant) -> Self {
        Self { wait: Wait::starting(now), workers }
    }

    /// The silence of each worker.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerIndex, Quiet)> {
        self.workers.iter_enumerated().map(|(worker, quiet)| (worker, *quiet))
    }

    /// A question was sent to a worker.
    pub fn asked(&mut self, worker: WorkerIndex) {
        self.workers[worker].asked();
    }

    /// A worker was heard. Returns whether it was suspected.
    pub fn heard(&mut self, worker: WorkerIndex) -> bool {
        self.workers.get_mut(worker).is_some_and(Quiet::heard)
    }

    /// A worker has not read for `lasted`. Returns whether it is suspected from now on.
    pub fn has_not_read(&mut self, worker: WorkerIndex, lasted: Duration) -> bool {
        self.workers.get_mut(worker).is_some_and(|quiet| quiet.has_not_read(lasted))
    }

    /// How long a worker has been silent.
    pub fn of(&self, worker: WorkerIndex) -> Duration {
        self.workers.get(worker).map_or(Duration::ZERO, |quiet| quiet.lasted)
    }

    /// Time has passed. Returns how much of it counts.
    pub fn passed(&mut self, now: Instant) -> Duration {
        let time = self.wait.look(now);
        self.workers.iter_mut().for_each(|quiet| quiet.passed(time));
        time
    }

    /// The next worker whose silence needs attention, if there is any. A worker is given up after `given_up`.
    pub fn verdict(&mut self, given_up: Duration) -> Option<(WorkerIndex, Verdict)> {
        self.workers.iter_mut_enumerated().find_map(|(worker, quiet)| Some((worker, quiet.verdict(given_up)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN_UP: Duration = Duration::from_secs(10);

    /// Milliseconds, a worker, and what was found out about it then.
    type Found = (u64, WorkerIndex, Verdict);

    /// All of `workers` workers were just heard.
    fn heard(workers: usize, now: Instant) -> Silence {
        Silence::starting(vec![Quiet::default(); workers].into(), now)
    }

    /// Looks every 100 ms for `milliseconds`. Questions are sent, and answered by the workers in `answering`.
    fn look(silence: &mut Silence, now: &mut Instant, milliseconds: u64, answering: &[WorkerIndex]) -> Vec<Found> {
        let mut found = Vec::new();
        for at in (100..=milliseconds).step_by(100) {
            *now += Duration::from_millis(100);
            silence.passed(*now);
            while let Some((worker, verdict)) = silence.verdict(GIVEN_UP) {
                match verdict {
                    Verdict::Ask => {
                        silence.asked(worker);
                        if answering.contains(&worker) {
                            assert!(!silence.heard(worker));
                        }
                    }
                    Verdict::Suspect => found.push((at, worker, verdict)),
                    Verdict::GiveUp => {
                        found.push((at, worker, verdict));
                        return found;
                    }
                }
            }
        }
        found
    }

    #[test]
    fn a_silent_worker_is_suspected_after_two_seconds_and_given_up_after_the_patience() {
        let mut now = Instant::now();
        let mut silence = heard(2, now);
        let found = look(&mut silence, &mut now, 20_000, &[WorkerIndex(0)]);
        assert_eq!(found, [(2000, WorkerIndex(1), Verdict::Suspect), (10_000, WorkerIndex(1), Verdict::GiveUp)]);
        assert_eq!(silence.of(WorkerIndex(1)), GIVEN_UP);
    }

    /// Two workers fall silent together. The first is given up. The next crew gives up the other one at once, unless it is heard.
    #[test]
    fn a_silent_worker_gets_no_more_time_from_the_next_crew() {
        let mut now = Instant::now();
        let mut first = heard(2, now);
        look(&mut first, &mut now, 300, &[WorkerIndex(0)]);
        assert!(!first.heard(WorkerIndex(0)));
        assert_eq!(look(&mut first, &mut now, 20_000, &[]).last().unwrap().1, WorkerIndex(1));
        let left: PerWorker<Quiet> = first.workers().take(1).map(|(_, quiet)| quiet).collect();
        let mut next = Silence::starting(left.clone(), now);
        assert_eq!(look(&mut next, &mut now, 20_000, &[]), [(300, WorkerIndex(0), Verdict::GiveUp)]);
        let mut next = Silence::starting(left, now);
        assert!(next.heard(WorkerIndex(0)), "it was suspected");
        assert_eq!(look(&mut next, &mut now, 20_000, &[WorkerIndex(0)]), []);
    }

    /// Others may say so much that nobody is asked for long. A worker that was not asked is not given up.
    #[test]
    fn a_worker_is_asked_before_it_is_given_up() {
        let mut now = Instant::now();
        let mut silence = heard(1, now);
        for _ in 0..300 {
            now += Duration::from_millis(100);
            silence.passed(now);
        }
        assert_eq!(look(&mut silence, &mut now, 1000, &[WorkerIndex(0)]), []);
        assert_eq!(look(&mut silence, &mut now, 12_000, &[]).len(), 2, "suspected and given up");
    }

    #[test]
    fn an_answer_ends_the_suspicion() {
        let mut now = Instant::now();
        let mut silence = heard(1, now);
        assert_eq!(look(&mut silence, &mut now, 9900, &[]), [(2000, WorkerIndex(0), Verdict::Suspect)]);
        assert!(silence.heard(WorkerIndex(0)) && !silence.heard(WorkerIndex(0)));
        assert_eq!(look(&mut silence, &mut now, 1900, &[]), []);
    }

    #[test]
    fn a_worker_that_does_not_read_is_suspected_once_until_it_is_heard() {
        let mut silence = heard(2, Instant::now());
        let mut suspected = |milliseconds| silence.has_not_read(WorkerIndex(1), Duration::from_millis(milliseconds));
        assert_eq!([100, 1900, 2000, 2100].map(&mut suspected), [false, false, true, false]);
        assert_eq!(silence.of(WorkerIndex(1)), Duration::from_millis(2100));
        assert!(silence.heard(WorkerIndex(1)) && !silence.heard(WorkerIndex(0)));
        assert!(silence.has_not_read(WorkerIndex(1), SUSPECTED_AFTER));
    }

    /// A coordinator that was stopped for a minute has heard nobody for a minute. That is not the workers' silence.
    #[test]
    fn time_in_which_the_coordinator_did_not_look_does_not_count() {
        let mut now = Instant::now();
        let mut silence = heard(3, now);
        silence.asked(WorkerIndex(0));
        now += Duration::from_secs(60);
        assert_eq!(look(&mut silence, &mut now, 500, &[]), []);
    }
}
