//! Which worker the others wait for, step after step. Pure: the caller passes the times.
//!
//! In a step, the towers deliver to one exchange after another, forward and then backward, for each micro-batch. An exchange is ready as
//! soon as the one before it is complete. A worker *owes* what is ready and not delivered by its towers. It is *late* for as long as it is
//! the only one that owes anything: then all others wait for it.
//!
//! A worker is slow if it was late for a third of the time, in most of the recent steps. So a single long wait, for a worker that is
//! stopped for example, does not make it slow.
//!
//! Not here: workers that do not answer (`silence`), and where the time of a step goes (`trace`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use convoy_common::batch::{MicroBatch, MicroBatchId};
use convoy_common::index::{ExchangeIndex, PerTower, PerWorker, SegmentIndex, TowerIndex, WorkerIndex};
use convoy_common::placement::Placement;
use convoy_common::plan::Plan;
use convoy_common::wire::Direction;

/// A verdict takes at least so many steps, and so much time.
const STEPS_MIN: u32 = 10;
const TIME_MIN: Duration = Duration::from_secs(5);
/// In a slow step, a worker is late for more than one part in so many of the step.
const SLOW_SHARE: u32 = 3;

/// What a tower delivers for a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Its tensor of an exchange.
    Exchange(ExchangeIndex, Direction),
    /// The end of its backward pass.
    BackwardDone,
}

/// The lateness of the workers of a generation.
#[derive(Debug)]
pub struct Lateness {
    plan: Arc<Plan>,
    /// Number of exchanges. The last one carries logits.
    exchanges: usize,
    /// The towers that have delivered to a stage of a micro-batch. Stages count the deliveries of a step in order.
    delivered: HashMap<(MicroBatchId, usize), HashSet<TowerIndex>>,
    /// Number of deliveries that each worker owes.
    owed: PerWorker<usize>,
    /// The time up to which lateness has been counted, in nanoseconds.
    counted_to: u64,
    /// Of each worker, in the present step.
    late: PerWorker<Duration>,
    /// Steps since the last verdict in which each worker was late for long.
    slow_steps: PerWorker<u32>,
    steps: u32,
    time: Duration,
    /// The worker that was called slow, until it is much faster.
    slow: Option<WorkerIndex>,
}

impl Lateness {
    /// Nobody has been late.
    pub fn starting(plan: Arc<Plan>) -> Self {
        let workers = plan.workers;
        Self {
            exchanges: plan.segments.len(),
            plan,
            delivered: HashMap::new(),
            owed: vec![0; workers].into(),
            counted_to: 0,
            late: vec![Duration::ZERO; workers].into(),
            slow_steps: vec![0; workers].into(),
            steps: 0,
            time: Duration::ZERO,
            slow: None,
        }
    }

    /// A step of these micro-batches begins at a time in nanoseconds.
    pub fn begin(&mut self, micro_batches: &[MicroBatch], at: u64) {
        self.delivered.clear();
        self.owed.fill(0);
        self.late.fill(Duration::ZERO);
        self.counted_to = at;
        micro_batches.iter().for_each(|micro_batch| self.ready(micro_batch.id, 0));
    }

    /// A tower has delivered, at a time in nanoseconds. Of several tensors for one exchange, the first counts.
    pub fn delivered(&mut self, micro_batch: MicroBatchId, tower: TowerIndex, delivery: Delivery, at: u64) {
        let Some(stage) = self.stage(delivery) else { return };
        let Some(towers) = self.delivered.get_mut(&(micro_batch, stage)) else { return };
        if !towers.insert(tower) {
            return;
        }
        let is_complete = towers.len() == self.plan.network.towers;
        self.count_to(at);
        let worker = self.holders(micro_batch, stage)[tower];
        self.owed[worker] -= 1;
        if is_complete && stage + 1 < 2 * self.exchanges {
            self.ready(micro_batch, stage + 1);
        }
    }

    /// The step has ended, and has taken `time`. Returns the worker that turns out to be slow, once.
    pub fn stepped(&mut self, time: Duration) -> Option<WorkerIndex> {
        for (late, slow_steps) in self.late.iter().zip(&mut self.slow_steps) {
            *slow_steps += u32::from(*late > time / SLOW_SHARE);
        }
        (self.steps, self.time) = (self.steps + 1, self.time + time);
        if self.steps < STEPS_MIN || self.time < TIME_MIN {
            return None;
        }
        let (steps, slow_steps) = (self.steps, self.slow_steps.clone());
        (self.steps, self.time) = (0, Duration::ZERO);
        self.slow_steps.fill(0);
        // Without the margin, a worker near the limit would be named again and again.
        self.slow = self.slow.filter(|slow| slow_steps[*slow] > steps / 4);
        if !self.is_even() || self.slow.is_some() {
            return None;
        }
        self.slow = slow_steps.position(|slow_steps| *slow_steps > steps / 2);
        self.slow
    }

    /// Whether all workers hold as much. If not, one that holds more is late because of the placement.
    fn is_even(&self) -> bool {
        let Placement { trunk, head, .. } = &self.plan.placement;
        let count = |worker, held: &PerTower<WorkerIndex>| held.iter().filter(|holder| **holder == worker).count();
        let held = |worker| (trunk.iter().map(|held| count(worker, held)).sum::<usize>(), count(worker, head));
        self.owed.keys().all(|worker| held(worker) == held(WorkerIndex(0)))
    }

    /// The worker of each tower that delivers to a stage.
    fn holders(&self, id: MicroBatchId, stage: usize) -> &PerTower<WorkerIndex> {
        // Forward, segment after segment, and then backward.
        let segment = if stage < self.exchanges { stage } else { 2 * self.exchanges - 1 - stage };
        self.plan.placement.towers(self.plan.segments[SegmentIndex(segment)].half, id)
    }

    /// The place of a delivery in the order of a step.
    fn stage(&self, delivery: Delivery) -> Option<usize> {
        match delivery {
            Delivery::Exchange(exchange, Direction::Forward) => Some(exchange.0),
            // The gradients of the logits, which come first, are the coordinator's.
            Delivery::Exchange(exchange, Direction::Backward) => (2 * self.exchanges).checked_sub(exchange.0 + 2),
            Delivery::BackwardDone => Some(2 * self.exchanges - 1),
        }
    }

    /// From now on, every tower owes its delivery to this stage.
    fn ready(&mut self, id: MicroBatchId, stage: usize) {
        self.delivered.insert((id, stage), HashSet::new());
        for worker in self.holders(id, stage).clone() {
            self.owed[worker] += 1;
        }
    }

    fn count_to(&mut self, at: u64) {
        let mut owing = self.owed.keys().filter(|worker| self.owed[*worker] > 0);
        if let (Some(worker), None) = (owing.next(), owing.next())
            && self.owed.len() > 1
        {
            self.late[worker] += Duration::from_nanos(at.saturating_sub(self.counted_to));
        }
        self.counted_to = self.counted_to.max(at);
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::batch::Division;
    use convoy_common::model::{Network, presets};

    use super::*;

    const MS: u64 = 1_000_000;

    fn lateness(workers: usize) -> Lateness {
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        Lateness::starting(Arc::new(Plan::new(network, workers, 1, None).unwrap()))
    }

    /// `steps` steps of two workers with one tower each, which compute each segment of a micro-batch for so many milliseconds. Micro-batches
    /// are computed one after another, a segment at a time, and nothing takes time in between.
    fn verdicts(lateness: &mut Lateness, steps: u64, micro_batches: usize, each: [u64; 2]) -> Vec<usize> {
        let mut found = Vec::new();
        let stages = 2 * lateness.exchanges;
        for step in 1..=steps {
            let parts = Division { slots: 1, micro_batches }.of(step, 16);
            lateness.begin(&parts, 0);
            let mut deliveries = Vec::new();
            let (mut free, mut complete) = ([0; 2], vec![0; micro_batches]);
            for stage in 0..stages {
                for (part, complete) in complete.iter_mut().enumerate() {
                    for tower in 0..2 {
                        free[tower] = free[tower].max(*complete) + each[tower];
                        deliveries.push((free[tower], part, tower, stage));
                    }
                    *complete = free[0].max(free[1]);
                }
            }
            deliveries.sort();
            for (at, part, tower, stage) in deliveries {
                let delivery = match stage {
                    _ if stage < lateness.exchanges => Delivery::Exchange(ExchangeIndex(stage), Direction::Forward),
                    _ if stage + 1 == stages => Delivery::BackwardDone,
                    _ => Delivery::Exchange(ExchangeIndex(stages - 2 - stage), Direction::Backward),
                };
                // Towers send a tensor to each tower of another worker.
                for _ in 0..2 {
                    lateness.delivered(parts[part].id, TowerIndex(tower), delivery, at * MS);
                }
            }
            assert!(lateness.owed.iter().all(|owed| *owed == 0), "nothing is owed at the end of a step");
            let time = Duration::from_millis(free[0].max(free[1]));
            found.extend(lateness.stepped(time).map(usize::from));
        }
        found
    }

    #[test]
    fn a_worker_that_the_other_one_waits_for_most_of_the_time_is_slow_and_is_named_once() {
        for micro_batches in [1, 2, 4] {
            let mut lateness = lateness(2);
            assert_eq!(verdicts(&mut lateness, 5, micro_batches, [10, 30]), [0usize; 0], "not yet");
            assert_eq!(verdicts(&mut lateness, 100, micro_batches, [10, 30]), [1], "once, although it stays slow");
            assert_eq!(verdicts(&mut lateness, 100, micro_batches, [10, 10]), [0usize; 0]);
            assert_eq!(verdicts(&mut lateness, 100, micro_batches, [40, 10]), [0]);
        }
    }

    /// A worker that is a tenth slower is waited for a tenth of the time, however many micro-batches are under way.
    #[test]
    fn a_worker_that_is_a_little_slower_is_not_named() {
        for micro_batches in [1, 2, 4, 16] {
            let mut lateness = lateness(2);
            assert_eq!(verdicts(&mut lateness, 200, micro_batches, [20, 22]), [0usize; 0]);
            let parts = Division { slots: 1, micro_batches }.of(1, 16);
            lateness.begin(&parts, 0);
            assert_eq!(verdicts(&mut lateness, 1, micro_batches, [20, 22]), [0usize; 0]);
            let step = u32::try_from(micro_batches).unwrap() * 22 * u32::try_from(2 * lateness.exchanges).unwrap();
            let share = lateness.late[WorkerIndex(1)].as_secs_f64() * 1e3 / f64::from(step);
            assert!((0.0..0.1).contains(&share) && lateness.late[WorkerIndex(0)].is_zero(), "{micro_batches}: {share}");
        }
    }

    #[test]
    fn a_single_stall_a_lone_worker_and_an_uneven_placement_name_nobody() {
        let mut lateness = lateness(2);
        for _ in 0..20 {
            assert_eq!(verdicts(&mut lateness, 3, 2, [10, 100]), [0usize; 0]);
            assert_eq!(verdicts(&mut lateness, 20, 2, [10, 11]), [0usize; 0]);
        }
        let mut alone = self::lateness(1);
        assert_eq!(verdicts(&mut alone, 100, 2, [10, 100]), [0usize; 0]);
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        let uneven = Lateness::starting(Arc::new(Plan::new(network, 3, 2, None).unwrap()));
        assert!(!uneven.is_even());
    }
}
