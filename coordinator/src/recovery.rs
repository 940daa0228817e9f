//! What follows from a fault: how often a job may try again, and whether a replayed step gives what it gave the first time. Pure.
//!
//! Not here: forming the next generation (`crew`), and the snapshot (`state`).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use convoy_common::wire::Doing;

use crate::deadlines::{FIRST_WORK, WORK_LONGER, WORK_MIN};
use crate::error::JobError;
use crate::fault::Fault;

/// After this many generations without a committed step, the job ends.
const FRUITLESS_MAX: u32 = 20;

/// Counts generations.
#[derive(Debug, Default)]
pub struct Generations {
    number: u64,
    /// The highest step that was ever committed.
    furthest: u64,
    fruitless: u32,
}

impl Generations {
    /// Begins the next generation. Its number, counted from 1.
    pub fn begin(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// The number of the last generation that began.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How long to wait before the next generation. After a generation with progress there is no reason to.
    pub fn pause(&self) -> Duration {
        (0..self.fruitless).fold(Duration::ZERO, |pause, _| (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX))
    }

    /// Takes the fault that ended a generation, whose last committed step was `step`.
    ///
    /// # Errors
    /// When too many generations in a row made no progress.
    pub fn ended(&mut self, fault: Fault, step: u64) -> Result<Fault, JobError> {
        self.fruitless = if step > self.furthest { 0 } else { self.fruitless + 1 };
        self.furthest = self.furthest.max(step);
        if self.fruitless < FRUITLESS_MAX {
            return Ok(fault);
        }
        Err(JobError::Fruitless { generations: FRUITLESS_MAX, step: self.furthest, fault })
    }
}

/// Whether a worker's computation hangs: its current piece of work, a layer for example, takes more than ten times as long as the
/// longest one before it. The limit is at least 30 and at most 240 seconds.
pub fn hangs(doing: &Doing) -> bool {
    let allowed = if doing.longest.is_zero() { FIRST_WORK } else { (doing.longest * WORK_LONGER).max(WORK_MIN) };
    doing.busy > allowed.min(FIRST_WORK)
}

/// By default, snapshots may cost the time divided by this number, as the job counts the cost. The count is not exact:
/// `benches/cost.py` measures that a sixtieth is 1.3 to 1.7 % of `alexnet`'s time. A fiftieth would be up to 2.05 %.
const SHARE: u32 = 60;
/// Steps whose median is the usual length of a step. The first step of a job, and one of another cause, can take far longer.
const USUAL_STEPS: usize = 9;
/// A step during which a snapshot arrives counts as longer by at most this many times its usual length.
const EXCESS_MAX: u32 = 3;
/// Snapshots are at least this far apart by default, however cheap they are. On a slow machine whose cores are all busy, a snapshot of
/// `alexnet-fashion` cost 20 ms, which is 2 % of one second, and the job had counted 9 ms.
const APART_MIN: Duration = Duration::from_secs(2);

/// How often snapshots are taken. A snapshot costs the time for which the job waits for it, and the time by which steps are longer while
/// it arrives.
#[derive(Debug)]
pub struct Pace {
    last: Instant,
    /// What the last snapshot cost.
    cost: Duration,
    /// The last steps during which no snapshot arrived.
    steps: VecDeque<Duration>,
    /// By how much the steps were longer during which the present snapshot arrives.
    excess: Duration,
}

impl Pace {
    /// A job that starts at `now`, with a snapshot.
    pub fn starting(now: Instant) -> Self {
        Self { last: now, cost: Duration::ZERO, steps: VecDeque::new(), excess: Duration::ZERO }
    }

    /// Whether a snapshot is due after `step`: every `every` steps, if that is given. Otherwise, when the time since the last
    /// snapshot is sixty times what that one cost, and at least two seconds.
    pub fn is_due(&self, step: u64, every: Option<u64>, now: Instant) -> bool {
        match every {
            Some(every) => step.is_multiple_of(every.max(1)),
            None => now.saturating_duration_since(self.last) >= (self.cost * SHARE).max(APART_MIN),
        }
    }

    /// A step took this long. A snapshot may have been arriving meanwhile.
    pub fn stepped(&mut self, took: Duration, snapshot_arrives: bool) {
        if snapshot_arrives {
            let usual = self.usual().unwrap_or(took);
            // What takes longer is something else: a worker that was stopped, for example.
            self.excess += took.saturating_sub(usual).min(usual * EXCESS_MAX);
        } else {
            self.steps.truncate(USUAL_STEPS - 1);
            self.steps.push_front(took);
        }
    }

    /// The median of the last steps during which no snapshot arrived.
    fn usual(&self) -> Option<Duration> {
        let mut sorted: Vec<Duration> = self.steps.iter().copied().collect();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied()
    }

    /// A snapshot was taken at `now`, for which the job waited for `waited`. Returns what it cost.
    pub fn took(&mut self, waited: Duration, now: Instant) -> Duration {
        (self.last, self.cost) = (now, waited + std::mem::take(&mut self.excess));
        self.cost
    }
}

/// The pause after the first generation without progress. It doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The losses of the steps since the snapshot. A replayed step must give the same loss again, to the bit.
#[derive(Debug, Default)]
pub struct Witness {
    losses: BTreeMap<u64, f64>,
}

impl Witness {
    /// Whether a step that is about to be committed is a replay.
    ///
    /// # Errors
    /// When the step gave another loss the first time: a machine computes differently.
    pub fn is_replay(&self, step: u64, loss: f64) -> Result<bool, JobError> {
        match self.losses.get(&step) {
            None => Ok(false),
            Some(first) if first.to_bits() == loss.to_bits() => Ok(true),
            Some(first) => Err(JobError::ReplayDiffers { step, first: *first, again: loss }),
        }
    }

    /// A step was committed and recorded.
    pub fn recorded(&mut self, step: u64, loss: f64) {
        self.losses.insert(step, loss);
    }

    /// Forgets the steps up to a snapshot's. They are not replayed any more.
    pub fn forget_through(&mut self, step: u64) {
        self.losses = self.losses.split_off(&(step + 1));
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::index::WorkerIndex;

    use super::*;

    fn fault() -> Fault {
        Fault::Failed { worker: WorkerIndex(1), step: 7, message: "it broke".to_owned() }
    }

    #[test]
    fn a_job_ends_after_twenty_generations_without_progress_and_names_the_fault() {
        let mut generations = Generations::default();
        for step in 1..100 {
            assert_eq!(generations.begin(), step);
            assert!(generations.ended(fault(), step).is_ok(), "each generation commits a step");
            assert_eq!(generations.pause(), Duration::ZERO);
        }
        for _ in 1..FRUITLESS_MAX {
            assert!(generations.ended(fault(), 99).is_ok());
        }
        assert_eq!(generations.pause(), PAUSE_MAX);
        let error = generations.ended(fault(), 98).unwrap_err();
        let text = convoy_common::chain::chain(&error);
        assert!(text.contains("20") && text.contains("step 99") && text.contains("it broke"), "{text}");
    }

    #[test]
    fn work_hangs_when_it_takes_ten_times_as_long_as_ever_and_half_a_minute() {
        let seconds = Duration::from_secs;
        let doing = |busy, longest| Doing { busy, longest, layer: None };
        assert!(!hangs(&doing(seconds(30), seconds(1))) && hangs(&doing(seconds(31), seconds(1))));
        assert!(!hangs(&doing(seconds(50), seconds(5))) && hangs(&doing(seconds(51), seconds(5))));
        assert!(!hangs(&doing(FIRST_WORK, seconds(0))) && hangs(&doing(FIRST_WORK + seconds(1), seconds(0))));
        assert!(hangs(&doing(FIRST_WORK + seconds(1), seconds(100))), "the coordinator waits no longer for anything");
        assert!(!hangs(&doing(seconds(0), seconds(0))), "an idle worker");
    }

    #[test]
    fn snapshots_cost_at_most_a_fiftieth_of_the_time_unless_a_number_of_steps_is_given() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::starting(start);
        assert!(!pace.is_due(1, None, after(1999)) && pace.is_due(2, None, after(2000)));
        assert_eq!(pace.usual(), None);
        for took in [3000, 50, 50, 50, 700, 50] {
            pace.stepped(Duration::from_millis(took), false);
        }
        assert_eq!(
            pace.usual(),
            Some(Duration::from_millis(50)),
            "the median of the first one, a long one, and others"
        );
        for _ in 0..USUAL_STEPS {
            pace.stepped(Duration::from_millis(50), false);
        }
        pace.stepped(Duration::from_millis(130), true);
        let cost = pace.took(Duration::from_millis(20), after(2000));
        assert_eq!(cost, Duration::from_millis(100), "80 ms of a longer step, and a wait of 20 ms");
        assert!(!pace.is_due(3, None, after(7999)) && pace.is_due(3, None, after(8000)));
        assert!(pace.is_due(6, Some(3), after(2001)) && !pace.is_due(7, Some(3), after(60_000)));
    }

    #[test]
    fn a_replayed_step_must_give_its_loss_again_to_the_bit() {
        let mut witness = Witness::default();
        assert!(!witness.is_replay(1, 0.5).unwrap() && !witness.is_replay(1, 0.5).unwrap(), "it was not committed");
        witness.recorded(1, 0.5);
        witness.recorded(2, 0.25);
        assert!(witness.is_replay(2, 0.25).unwrap());
        let error = witness.is_replay(1, 0.5 + f64::EPSILON).unwrap_err().to_string();
        assert!(error.contains("step 1") && error.contains("0.5"), "{error}");
        witness.forget_through(1);
        assert!(!witness.is_replay(1, 9.0).unwrap(), "it is not replayed any more");
        assert!(witness.is_replay(2, 0.25).unwrap());
    }
}
