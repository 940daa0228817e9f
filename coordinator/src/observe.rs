//! The events of a job, for an observer. The program prints; the coordinator never does.

use std::path::PathBuf;

use convoy_common::index::{TowerIndex, WorkerIndex};
use serde::Serialize;

use crate::incident::Incident;

/// An event of a job.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Something that the user should know.
    Notice {
        /// One line.
        text: String,
    },
    /// The coordinator waits for workers.
    Waiting {
        /// The address that workers connect to.
        address: String,
        /// The command that starts a worker for this job, with names of files that are to be replaced.
        start: String,
        /// Number of connected workers.
        have: usize,
        /// Number of workers that the job needs.
        want: usize,
    },
    /// A worker serves another coordinator.
    Elsewhere {
        /// The worker's machine.
        host: String,
        /// Address of that coordinator, as the worker sees it.
        coordinator: String,
        /// The model of its job, if the job has begun.
        model: Option<String>,
    },
    /// A worker was refused.
    Refused {
        /// The worker's address.
        address: String,
        /// The reason that it was given.
        reason: String,
    },
    /// All workers are ready, and the job begins.
    Started(Box<Started>),
    /// A step was committed.
    Step {
        /// Counted from 1.
        step: u64,
        /// Counted from 1.
        epoch: u64,
        /// The batch's mean loss.
        loss: f64,
        /// The learning rate.
        lr: f64,
        /// Images in the batch.
        images: usize,
        /// How long it took, from the previous commit to its own. After a measurement or a wait for a snapshot, it is counted from
        /// when the coordinator begins to send the step's images.
        seconds: f64,
        /// Bytes of tensors received from workers since the previous step.
        received_bytes: u64,
        /// How long the job has waited for images to be decoded since the previous step.
        image_wait_seconds: f64,
        /// Whether the step was committed before, and was computed again after a fault.
        replayed: bool,
    },
    /// A fault: the job goes back to a snapshot and continues with another worker.
    Fault {
        /// The worker that it is attributed to.
        worker: WorkerIndex,
        /// Its process, if it was connected.
        process_id: Option<u32>,
        /// Its machine, if it was connected.
        host: Option<String>,
        /// The other worker, if the connection between the two failed and both are there.
        peer: Option<WorkerProcess>,
        /// What happened.
        what: String,
        /// The last committed step.
        step: u64,
        /// The step of the snapshot.
        rewound_to: u64,
    },
    /// A worker was lost while the job waited for workers.
    Gone {
        /// Its number.
        worker: WorkerIndex,
        /// Its process.
        process_id: u32,
        /// Its machine.
        host: String,
        /// How.
        why: String,
    },
    /// A worker does not answer, or does not read.
    Suspected {
        /// Its number.
        worker: WorkerIndex,
        /// Its process.
        process_id: u32,
        /// Its machine.
        host: String,
        /// The step at hand.
        step: u64,
        /// Seconds of silence after which it is given up.
        given_up_after: u64,
    },
    /// A suspected worker answers again.
    Answered {
        /// Its number.
        worker: WorkerIndex,
        /// Its process.
        process_id: u32,
        /// Its machine.
        host: String,
        /// How long it was silent.
        seconds: f64,
    },
    /// The other workers wait for this one more than a third of the time. Sent once, and again only if the worker has not been slow
    /// meanwhile.
    Slow {
        /// Its number.
        worker: WorkerIndex,
        /// Its process.
        process_id: u32,
        /// Its machine.
        host: String,
        /// The last committed step.
        step: u64,
    },
    /// Another generation has begun, after a fault or because another worker has joined. These are all workers, with their towers.
    Regrouped {
        /// The workers.
        workers: Vec<WorkerRecord>,
    },
    /// The job has caught up after a fault: every step that was lost has been computed again.
    Recovered(Incident),
    /// The test images were measured, at the end of an epoch or of the job.
    Epoch(EpochRecord),
    /// A snapshot was taken, in memory.
    Snapshot {
        /// The step that it holds.
        step: u64,
        /// What it cost: the time that the job waited, and the time by which steps took longer.
        seconds: f64,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// The step that it holds.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// The job has ended.
    Ended(Box<Ended>),
}

/// A job that begins.
#[derive(Clone, Debug, Serialize)]
pub struct Started {
    /// The model's name.
    pub model: String,
    /// Number of its parameters.
    pub parameters: usize,
    /// Multiply-adds of one image, forward.
    pub multiply_adds: u64,
    /// What the data are and where they come from.
    pub data: String,
    /// Number of training images.
    pub train_images: usize,
    /// Number of test images.
    pub test_images: usize,
    /// The first step of this run, counted from 1.
    pub first_step: u64,
    /// The last step of the job.
    pub last_step: u64,
    /// Steps per epoch.
    pub steps_per_epoch: u64,
    /// Images per step.
    pub batch: usize,
    /// Slots per batch.
    pub slots: usize,
    /// Micro-batches per slot.
    pub micro_batches: usize,
    /// Replicas of the trunk.
    pub replicas: usize,
    /// Bytes over sockets per step.
    pub step_bytes: u64,
    /// The workers.
    pub workers: Vec<WorkerRecord>,
    /// The run's folder.
    pub out: PathBuf,
}

/// A worker of the run.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerRecord {
    /// Its number.
    pub worker: WorkerIndex,
    /// The towers of the trunk that it holds, of any replica.
    pub towers: Vec<TowerIndex>,
    /// The slices of the head that it holds.
    pub slices: Vec<TowerIndex>,
    /// What it holds, for a person.
    pub holds: String,
    /// Its process.
    pub process_id: u32,
    /// Its machine.
    pub host: String,
    /// Where it connected from.
    pub address: String,
    /// Its compute threads.
    pub threads: usize,
    /// Number of its threads that did any work, known at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_threads: Option<usize>,
    /// Instruction set of its kernels.
    pub instruction_set: String,
    /// Bytes of weights and momentum that it was given.
    pub state_bytes: u64,
    /// The workers that it is connected to directly.
    pub direct: Vec<WorkerIndex>,
}

/// A worker and its process.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerProcess {
    /// Its number.
    pub worker: WorkerIndex,
    /// Its process.
    pub process_id: u32,
    /// Its machine.
    pub host: String,
}

/// An epoch, as `metrics.jsonl` records it.
#[derive(Clone, Debug, Serialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: u64,
    /// Its last step.
    pub through_step: u64,
    /// Mean loss of its images.
    pub train_loss: f64,
    /// Share of the test images that were classified correctly.
    pub test_accuracy: f64,
    /// Mean loss of the test images.
    pub test_loss: f64,
    /// Seconds of training in this run, without measurements.
    pub seconds: f64,
    /// Training images per second.
    pub images_per_second: f64,
}

/// How a job ended.
#[derive(Clone, Debug, Serialize)]
pub struct Ended {
    /// Whether it was interrupted.
    pub interrupted: bool,
    /// Steps committed, those of earlier runs included.
    pub steps: u64,
    /// Mean loss of the last epoch's images.
    pub train_loss: Option<f64>,
    /// Accuracy on the test images.
    pub test_accuracy: Option<f64>,
    /// SHA-256 over all weights.
    pub weights_sha256: String,
    /// Training images per second, in this run.
    pub images_per_second: f64,
    /// The folder of the last checkpoint.
    pub checkpoint: PathBuf,
    /// The run's folder.
    pub out: PathBuf,
}

/// Observes a job.
pub trait Observer {
    /// Handles an event.
    fn on(&mut self, event: Event);

    /// Whether handling the event of `step` takes long. If so, the next step's images aren't sent ahead, so that workers are idle
    /// meanwhile, and the time belongs to no step.
    fn pauses_after(&self, _step: u64) -> bool {
        false
    }
}
