//! Which worker is slow: the one that computes much longer than the others, step after step. Pure: the caller passes the times.
//!
//! The *lateness* of a step's slowest worker is how much longer it computes than the second slowest one. The other workers wait for
//! it during that time. A worker is slow if its lateness was more than a third of the step, in most of the recent steps. So a
//! single long step does not make a worker slow.
//!
//! Not here: workers that do not answer (`silence`), and slow connections, which a trace shows (`trace`).

use std::time::Duration;

use convoy_common::index::{PerTower, PerWorker, WorkerIndex};
use convoy_common::placement::Placement;
use convoy_common::plan::Plan;

/// A verdict takes at least this many steps, and at least [`TIME_MIN`].
const STEPS_MIN: u32 = 10;
const TIME_MIN: Duration = Duration::from_secs(5);
/// In a slow step, the lateness of a worker is more than the step divided by this number.
const SLOW_SHARE: u32 = 3;

/// The lateness of the workers of a generation.
#[derive(Debug)]
pub struct Lateness {
    /// Whether all workers hold as much. If not, one that holds more computes longer because of the placement.
    is_even: bool,
    /// How long each worker has computed in the present step.
    busy: PerWorker<Duration>,
    /// Steps since the last verdict in which each worker was late for long.
    slow_steps: PerWorker<u32>,
    steps: u32,
    time: Duration,
    /// The worker that was called slow, until it is much faster.
    slow: Option<WorkerIndex>,
    /// Whether the present step does not count.
    skips: bool,
}

impl Lateness {
    /// Nobody has been late.
    pub fn starting(plan: &Plan) -> Self {
        let workers = plan.workers;
        Self {
            is_even: is_even(plan),
            busy: vec![Duration::ZERO; workers].into(),
            slow_steps: vec![0; workers].into(),
            steps: 0,
            time: Duration::ZERO,
            slow: None,
            skips: false,
        }
    }

    /// A worker has computed for `busy` in the present step.
    pub fn computed(&mut self, worker: WorkerIndex, busy: Duration) {
        self.busy[worker] = self.busy[worker].saturating_add(busy);
    }

    /// The time that workers report with the next step includes something else.
    pub fn skip_next(&mut self) {
        self.skips = true;
    }

    /// The step has ended, and has taken `time`. Returns the worker that turns out to be slow, once.
    pub fn stepped(&mut self, time: Duration) -> Option<WorkerIndex> {
        if std::mem::take(&mut self.skips) {
            self.busy.fill(Duration::ZERO);
            return None;
        }
        let late = self.latest().filter(|(_, late)| *late > time / SLOW_SHARE);
        late.into_iter().for_each(|(worker, _)| self.slow_steps[worker] += 1);
        self.busy.fill(Duration::ZERO);
        (self.steps, self.time) = (self.steps + 1, self.time + time);
        if self.steps < STEPS_MIN || self.time < TIME_MIN {
            return None;
        }
        let (steps, slow_steps) = (self.steps, self.slow_steps.clone());
        (self.steps, self.time) = (0, Duration::ZERO);
        self.slow_steps.fill(0);
        // Without the margin, a worker near the limit would be named again and again.
        self.slow = self.slow.filter(|slow| slow_steps[*slow] > steps / 4);
        if !self.is_even || self.slow.is_some() {
            return None;
        }
        self.slow = slow_steps.position(|slow_steps| *slow_steps > steps / 2);
        self.slow
    }

    /// The worker that has computed longest, and how much longer than the next one. None if there is no other worker.
    fn latest(&self) -> Option<(WorkerIndex, Duration)> {
        let (worker, longest) = self.busy.iter_enumerated().max_by_key(|(_, busy)| **busy)?;
        let others = self.busy.iter_enumerated().filter(|(other, _)| *other != worker);
        let next = others.map(|(_, busy)| *busy).max()?;
        Some((worker, *longest - next))
    }
}

fn is_even(plan: &Plan) -> bool {
    let Placement { trunk, head, .. } = &plan.placement;
    let count = |worker, held: &PerTower<WorkerIndex>| held.iter().filter(|holder| **holder == worker).count();
    let held = |worker| (trunk.iter().map(|held| count(worker, held)).sum::<usize>(), count(worker, head));
    plan.all_workers().all(|worker| held(worker) == held(WorkerIndex(0)))
}

#[cfg(test)]
mod tests {
    use convoy_common::model::{Network, presets};

    use super::*;

    fn lateness(workers: usize, slots: usize) -> Lateness {
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        Lateness::starting(&Plan::new(network, workers, slots, None).unwrap())
    }

    /// `steps` steps in which the workers compute for the milliseconds of `each`. Another third passes without any computation.
    fn verdicts(lateness: &mut Lateness, steps: u64, each: &[u64]) -> Vec<usize> {
        let mut found = Vec::new();
        for _ in 0..steps {
            for (worker, busy) in each.iter().enumerate() {
                lateness.computed(WorkerIndex(worker), Duration::from_millis(*busy));
            }
            let time = Duration::from_millis(each.iter().max().unwrap() * 4 / 3);
            found.extend(lateness.stepped(time).map(usize::from));
        }
        found
    }

    #[test]
    fn a_worker_that_computes_much_longer_is_slow_and_is_named_once() {
        let mut lateness = lateness(2, 1);
        assert_eq!(verdicts(&mut lateness, 5, &[400, 1200]), [0usize; 0], "not yet");
        assert_eq!(verdicts(&mut lateness, 100, &[400, 1200]), [1], "once, although it stays slow");
        assert_eq!(verdicts(&mut lateness, 100, &[400, 400]), [0usize; 0]);
        assert_eq!(verdicts(&mut lateness, 100, &[1600, 400]), [0]);
        let mut four = self::lateness(4, 2);
        four.is_even = true;
        assert_eq!(verdicts(&mut four, 100, &[400, 380, 1300, 410]), [2]);
    }

    #[test]
    fn a_worker_that_is_a_little_slower_is_not_named() {
        let mut lateness = lateness(2, 1);
        assert_eq!(verdicts(&mut lateness, 200, &[1000, 1100]), [0usize; 0]);
    }

    #[test]
    fn a_single_long_step_a_lone_worker_and_an_uneven_placement_name_nobody() {
        let mut lateness = lateness(2, 1);
        for _ in 0..20 {
            assert_eq!(verdicts(&mut lateness, 3, &[100, 1000]), [0usize; 0]);
            assert_eq!(verdicts(&mut lateness, 20, &[1000, 1100]), [0usize; 0]);
        }
        let mut alone = self::lateness(1, 1);
        assert_eq!(verdicts(&mut alone, 100, &[1000]), [0usize; 0]);
        let mut uneven = self::lateness(3, 2);
        assert!(!uneven.is_even);
        assert_eq!(verdicts(&mut uneven, 100, &[400, 400, 2000]), [0usize; 0]);
    }
}
