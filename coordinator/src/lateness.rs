//! Which worker the others wait for, step after step. Pure: times come in.
//!
//! Every worker delivers tensors to every exchange. The *lateness* of the last one is the time since the last but one delivered. A worker
//! is slow if it was late for a third of the time in most of the recent steps. A single long wait, for a worker that is suspended for
//! example, does not count as slow.
//!
//! Not here: workers that do not answer (`silence`), and where the time of a step goes (`trace`).

use std::collections::HashMap;
use std::time::Duration;

use convoy_common::batch::MicroBatchId;
use convoy_common::wire::{Direction, TensorKey};

/// A verdict takes at least so many steps, and so much time.
const STEPS_MIN: u32 = 10;
const TIME_MIN: Duration = Duration::from_secs(5);
/// In a slow step, a worker is late for more than one part in so many of the step.
const SLOW_SHARE: u32 = 3;

/// An exchange of a micro-batch, in one direction.
type Place = (MicroBatchId, usize, Direction);

/// Who delivered to an exchange: each worker, and when the last one did, in nanoseconds.
#[derive(Debug, Default)]
struct Delivered {
    by: Vec<usize>,
    last: u64,
}

/// The lateness of the workers of a generation.
#[derive(Debug)]
pub struct Lateness {
    deliveries: HashMap<Place, Delivered>,
    /// Of each worker, in the present step.
    late: Vec<Duration>,
    /// Steps since the last verdict in which each worker was late for long.
    slow_steps: Vec<u32>,
    steps: u32,
    time: Duration,
    /// The worker that was called slow, until it no longer is.
    slow: Option<usize>,
}

impl Lateness {
    /// Nobody of `workers` workers has been late.
    pub fn starting(workers: usize) -> Self {
        Self {
            deliveries: HashMap::new(),
            late: vec![Duration::ZERO; workers],
            slow_steps: vec![0; workers],
            steps: 0,
            time: Duration::ZERO,
            slow: None,
        }
    }

    /// A tensor of a worker has arrived whole, at a time in nanoseconds.
    pub fn delivered(&mut self, worker: usize, tensor: &TensorKey, at: u64) {
        let TensorKey::Activations { micro_batch, exchange, direction, .. } = tensor else { return };
        let workers = self.late.len();
        let delivered = self.deliveries.entry((micro_batch.id, *exchange, *direction)).or_default();
        // For its second tensor of an exchange, it was late before.
        if delivered.by.contains(&worker) {
            return;
        }
        delivered.by.push(worker);
        let before = std::mem::replace(&mut delivered.last, at);
        if delivered.by.len() == workers && workers > 1 {
            self.late[worker] += Duration::from_nanos(at.saturating_sub(before));
        }
    }

    /// A step has ended that took `time`. Returns the worker that turns out to be slow, once.
    pub fn stepped(&mut self, time: Duration) -> Option<usize> {
        self.deliveries.clear();
        for (late, slow_steps) in self.late.iter_mut().zip(&mut self.slow_steps) {
            *slow_steps += u32::from(std::mem::take(late) > time / SLOW_SHARE);
        }
        (self.steps, self.time) = (self.steps + 1, self.time + time);
        if self.steps < STEPS_MIN || self.time < TIME_MIN {
            return None;
        }
        let slow = self.slow_steps.iter().position(|slow_steps| *slow_steps > self.steps / 2);
        (self.steps, self.time) = (0, Duration::ZERO);
        self.slow_steps.fill(0);
        let before = std::mem::replace(&mut self.slow, slow);
        slow.filter(|_| before != slow)
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::batch::{MicroBatch, Phase};

    use super::*;

    /// `steps` steps of 100 ms with two exchanges, to which workers deliver after so many milliseconds.
    fn verdicts(lateness: &mut Lateness, steps: u64, delivered_after: &[u64]) -> Vec<usize> {
        let mut found = Vec::new();
        for step in 1..=steps {
            for exchange in 0..2 {
                let id = MicroBatchId { step, phase: Phase::Train, slot: 0, micro_batch: 0 };
                let tensor = |from_tower| TensorKey::Activations {
                    micro_batch: MicroBatch { id, samples: 0..4 },
                    exchange,
                    direction: Direction::Forward,
                    from_tower,
                    to_tower: None,
                };
                let mut order: Vec<_> = delivered_after.iter().enumerate().collect();
                order.sort_by_key(|(_, after)| **after);
                for (worker, after) in order {
                    lateness.delivered(worker, &tensor(worker), after * 1_000_000);
                    // A worker with two towers delivers twice.
                    lateness.delivered(worker, &tensor(worker), 99_000_000);
                }
            }
            found.extend(lateness.stepped(Duration::from_millis(100)));
        }
        found
    }

    #[test]
    fn a_worker_that_others_wait_for_most_of_the_time_is_slow_and_is_named_once() {
        let mut lateness = Lateness::starting(3);
        assert_eq!(verdicts(&mut lateness, 49, &[10, 40, 12]), [0usize; 0], "not yet");
        assert_eq!(verdicts(&mut lateness, 101, &[10, 40, 12]), [1], "named once, although it stays slow");
        assert_eq!(verdicts(&mut lateness, 50, &[10, 12, 14]), [0usize; 0], "it is no longer slow");
        assert_eq!(verdicts(&mut lateness, 50, &[50, 12, 14]), [0]);
    }

    #[test]
    fn workers_that_are_slow_together_or_once_are_not_named() {
        let mut lateness = Lateness::starting(2);
        assert_eq!(verdicts(&mut lateness, 200, &[80, 81]), [0usize; 0]);
        for _ in 0..10 {
            assert_eq!(verdicts(&mut lateness, 20, &[10, 95]), [0usize; 0]);
            assert_eq!(verdicts(&mut lateness, 30, &[10, 11]), [0usize; 0]);
        }
        let mut alone = Lateness::starting(1);
        assert_eq!(verdicts(&mut alone, 200, &[90]), [0usize; 0]);
    }
}
