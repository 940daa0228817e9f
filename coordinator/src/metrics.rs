//! The coordinator's counters for Prometheus, made from the events that its observer gets. Not here: serving them (the program,
//! with `--metrics`).

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::incident::Incident;
use crate::observe::{Event, Observer, WorkerRecord};

/// Steps take from a millisecond to two minutes. Each bucket reaches twice as far as the one before.
const STEP_BUCKETS: (f64, f64, u16) = (0.001, 2.0, 18);

/// NaN until the number is known.
type Known = Gauge<f64, AtomicU64>;

/// A job's counters. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    workers: Gauge,
    workers_wanted: Gauge,
    workers_refused: Counter,
    step: Gauge,
    last_step: Gauge,
    epoch: Gauge,
    steps: Counter,
    faults: Counter,
    suspicions: Counter,
    slow_workers: Counter,
    images: Counter,
    received_bytes: Counter,
    image_wait: Counter<f64, AtomicU64>,
    step_seconds: Histogram,
    loss: Known,
    learning_rate: Known,
    test_loss: Known,
    test_accuracy: Known,
    snapshots: Counter,
    checkpoints: Counter,
    checkpoint_step: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let (first, factor, buckets) = STEP_BUCKETS;
        let unknown = || {
            let gauge = Known::default();
            gauge.set(f64::NAN);
            gauge
        };
        Self {
            workers: Gauge::default(),
            workers_wanted: Gauge::default(),
            workers_refused: Counter::default(),
            step: Gauge::default(),
            last_step: Gauge::default(),
            epoch: Gauge::default(),
            steps: Counter::default(),
            faults: Counter::default(),
            suspicions: Counter::default(),
            slow_workers: Counter::default(),
            images: Counter::default(),
            received_bytes: Counter::default(),
            image_wait: Counter::default(),
            step_seconds: Histogram::new(exponential_buckets(first, factor, buckets)),
            loss: unknown(),
            learning_rate: unknown(),
            test_loss: unknown(),
            test_accuracy: unknown(),
            snapshots: Counter::default(),
            checkpoints: Counter::default(),
            checkpoint_step: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Counters that are registered in `registry`.
    pub fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("convoy");
        registry.register("workers", "Workers that are connected", metrics.workers.clone());
        registry.register("workers_wanted", "Workers that the job needs", metrics.workers_wanted.clone());
        registry.register("workers_refused", "Workers that were refused", metrics.workers_refused.clone());
        registry.register("step", "The last step committed", metrics.step.clone());
        registry.register("last_step", "The last step of the job", metrics.last_step.clone());
        registry.register("epoch", "The current epoch, counted from 1", metrics.epoch.clone());
        registry.register("steps", "Steps committed by this process", metrics.steps.clone());
        registry.register("faults", "Faults from which the job recovered, or tried to", metrics.faults.clone());
        let help = "Times that a worker did not answer, or did not read, for two seconds";
        registry.register("suspicions", help, metrics.suspicions.clone());
        let help = "Number of times that a worker turned out to be slow: it computed much longer than the others";
        registry.register("slow_workers", help, metrics.slow_workers.clone());
        registry.register("images", "Training images of the steps committed by this process", metrics.images.clone());
        let help = "Bytes of tensors that the coordinator or workers received from workers, up to the last step, without the state for snapshots";
        registry.register("received_bytes", help, metrics.received_bytes.clone());
        let help = "How long steps waited for image files to be decoded";
        registry.register_with_unit("image_wait", help, Unit::Seconds, metrics.image_wait.clone());
        let help = "Duration of a step, from the previous commit to its own";
        registry.register_with_unit("step", help, Unit::Seconds, metrics.step_seconds.clone());
        registry.register("loss", "Mean loss of the last step's images", metrics.loss.clone());
        registry.register("learning_rate", "Learning rate of the last step", metrics.learning_rate.clone());
        registry.register(
            "test_loss",
            "Mean loss of the test images in the last measurement",
            metrics.test_loss.clone(),
        );
        let help = "Share of the test images classified correctly in the last measurement";
        registry.register("test_accuracy", help, metrics.test_accuracy.clone());
        registry.register("snapshots", "Snapshots taken by this process", metrics.snapshots.clone());
        registry.register("checkpoints", "Checkpoints written by this process", metrics.checkpoints.clone());
        registry.register("checkpoint_step", "The step of the newest checkpoint", metrics.checkpoint_step.clone());
        metrics
    }

    fn count(&self, event: &Event) {
        match event {
            Event::Waiting { have, want, .. } => {
                self.workers.set(*have as i64);
                self.workers_wanted.set(*want as i64);
            }
            Event::Refused { .. } => {
                self.workers_refused.inc();
            }
            Event::Started(started) => {
                let workers = started.workers.len() as i64;
                self.workers.set(workers);
                self.workers_wanted.set(workers);
                self.step.set(started.first_step as i64 - 1);
                self.last_step.set(started.last_step as i64);
            }
            Event::Step { step, replayed: true, .. } => {
                self.step.set(*step as i64);
            }
            Event::Step {
                step,
                epoch,
                loss,
                lr,
                images,
                seconds,
                received_bytes,
                image_wait_seconds,
                replayed: false,
            } => {
                self.step.set(*step as i64);
                self.epoch.set(*epoch as i64);
                self.steps.inc();
                self.images.inc_by(*images as u64);
                self.received_bytes.inc_by(*received_bytes);
                self.image_wait.inc_by(*image_wait_seconds);
                self.step_seconds.observe(*seconds);
                self.loss.set(*loss);
                self.learning_rate.set(*lr);
            }
            Event::Epoch(epoch) => {
                self.test_loss.set(epoch.test_loss);
                self.test_accuracy.set(epoch.test_accuracy);
            }
            Event::Snapshot { .. } => {
                self.snapshots.inc();
            }
            Event::Checkpoint { step, .. } => {
                self.checkpoints.inc();
                self.checkpoint_step.set(*step as i64);
            }
            Event::Ended(_) => {
                self.workers.set(0);
            }
            Event::Fault { .. } => {
                self.faults.inc();
            }
            Event::Suspected { .. } => {
                self.suspicions.inc();
            }
            Event::Slow { .. } => {
                self.slow_workers.inc();
            }
            Event::Regrouped { workers } => {
                self.workers.set(workers.len() as i64);
            }
            Event::Notice { .. }
            | Event::Elsewhere { .. }
            | Event::Gone { .. }
            | Event::Answered { .. }
            | Event::Recovered(_) => {}
        }
    }
}

/// Counts and logs events, and forwards them.
pub(crate) struct Metered<'a> {
    pub(crate) metrics: Metrics,
    pub(crate) observer: &'a mut dyn Observer,
}

impl Observer for Metered<'_> {
    fn on(&mut self, event: Event) {
        self.metrics.count(&event);
        log(&event);
        self.observer.on(event);
    }

    fn pauses_after(&self, step: u64) -> bool {
        self.observer.pauses_after(step)
    }
}

/// Log entries. What people read is printed by the program.
fn log(event: &Event) {
    match event {
        Event::Notice { text } => tracing::info!("{text}"),
        Event::Waiting { address, have, want, .. } => tracing::info!(address, have, want, "workers connected"),
        Event::Elsewhere { host, coordinator, .. } => {
            tracing::info!(host, coordinator, "a worker serves another coordinator")
        }
        Event::Refused { address, reason } => tracing::info!(address, reason, "a worker was refused"),
        Event::Started(started) => {
            tracing::info!(model = started.model, first = started.first_step, last = started.last_step, "started");
        }
        Event::Step { step, loss, seconds, .. } => tracing::debug!(step, loss, seconds, "committed"),
        Event::Epoch(epoch) => {
            let (step, accuracy) = (epoch.through_step, epoch.test_accuracy);
            tracing::info!(epoch = epoch.epoch, step, accuracy, "measured");
        }
        Event::Snapshot { step, seconds } => tracing::debug!(step, seconds, "snapshot"),
        Event::Checkpoint { step, path } => tracing::info!(step, path = %path.display(), "checkpoint"),
        Event::Gone { worker, process_id, host, why } => {
            tracing::info!(worker = worker.0, process_id, host, why, "a worker was lost")
        }
        Event::Fault { worker, what, step, rewound_to, .. } => {
            tracing::info!(worker = worker.0, step, rewound_to, "a fault: {what}");
        }
        Event::Suspected { worker, host, step, .. } => {
            tracing::info!(worker = worker.0, host, step, "a worker does not answer")
        }
        Event::Answered { worker, host, seconds, .. } => {
            tracing::info!(worker = worker.0, host, seconds, "a worker answers again")
        }
        Event::Slow { worker, host, step, .. } => tracing::info!(worker = worker.0, host, step, "a worker is slow"),
        Event::Regrouped { workers } => {
            for WorkerRecord { worker, towers, process_id, host, .. } in workers {
                tracing::info!(worker = worker.0, ?towers, process_id, host, "assigned");
            }
        }
        Event::Recovered(incident) => {
            let Incident { worker, detect_ms, replace_ms, restore_ms, replay_ms, rewound_to, .. } = incident;
            tracing::info!(worker = worker.0, detect_ms, replace_ms, restore_ms, replay_ms, rewound_to, "recovered");
        }
        Event::Ended(ended) => tracing::info!(step = ended.steps, interrupted = ended.interrupted, "ended"),
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::index::WorkerIndex;
    use prometheus_client::encoding::text;

    use super::*;
    use crate::observe::EpochRecord;

    #[test]
    fn each_event_is_counted_under_its_own_name() {
        let mut registry = Registry::default();
        let metrics = Metrics::registered(&mut registry);
        let address = || "here".to_owned();
        metrics.count(&Event::Waiting { address: address(), start: String::new(), have: 3, want: 4 });
        metrics.count(&Event::Refused { address: address(), reason: "no".to_owned() });
        for (step, loss) in [(7, 0.5), (8, 0.25)] {
            metrics.count(&Event::Step {
                step,
                epoch: 2,
                loss,
                lr: 0.125,
                images: 16,
                seconds: 0.003,
                received_bytes: 100,
                image_wait_seconds: 0.25,
                replayed: false,
            });
        }
        metrics.count(&Event::Epoch(EpochRecord {
            epoch: 2,
            through_step: 8,
            train_loss: 9.0,
            test_accuracy: 0.75,
            test_loss: 1.5,
            seconds: 1.0,
            images_per_second: 1.0,
        }));
        metrics.count(&Event::Suspected {
            worker: WorkerIndex(1),
            process_id: 7,
            host: address(),
            step: 8,
            given_up_after: 10,
        });
        metrics.count(&Event::Slow { worker: WorkerIndex(1), process_id: 7, host: address(), step: 8 });
        metrics.count(&Event::Snapshot { step: 8, seconds: 0.5 });
        metrics.count(&Event::Checkpoint { step: 8, path: "there".into() });
        let mut encoded = String::new();
        text::encode(&mut encoded, &registry).unwrap();
        for line in [
            "convoy_workers 3",
            "convoy_workers_wanted 4",
            "convoy_workers_refused_total 1",
            "convoy_step 8",
            "convoy_epoch 2",
            "convoy_steps_total 2",
            "convoy_images_total 32",
            "convoy_received_bytes_total 200",
            "convoy_image_wait_seconds_total 0.5",
            "convoy_step_seconds_sum 0.006",
            "convoy_step_seconds_count 2",
            "convoy_step_seconds_bucket{le=\"0.002\"} 0",
            "convoy_step_seconds_bucket{le=\"0.004\"} 2",
            "convoy_suspicions_total 1",
            "convoy_slow_workers_total 1",
            "convoy_loss 0.25",
            "convoy_learning_rate 0.125",
            "convoy_test_loss 1.5",
            "convoy_test_accuracy 0.75",
            "convoy_snapshots_total 1",
            "convoy_checkpoints_total 1",
            "convoy_checkpoint_step 8",
        ] {
            assert!(encoded.lines().any(|found| found == line), "no {line} in\n{encoded}");
        }
    }
}
