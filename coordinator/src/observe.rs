//! What a job tells whoever watches it. The program prints; the coordinator never does.

use std::path::PathBuf;

use serde::Serialize;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A word about the data that the user should read.
    Notice {
        /// One line.
        text: String,
    },
    /// Where workers are to dial, and how many are wanted.
    Waiting {
        /// The address.
        address: String,
        /// How many have come.
        have: usize,
        /// How many are wanted.
        want: usize,
    },
    /// A worker that might have come serves another coordinator.
    Elsewhere {
        /// Its machine.
        host: String,
        /// Where it sees that coordinator.
        coordinator: String,
        /// The model of its job, if it has one yet.
        model: Option<String>,
    },
    /// A worker was refused.
    Refused {
        /// Where it dialled in from.
        address: String,
        /// What it was told.
        reason: String,
    },
    /// All workers are there; the job begins.
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
        /// Images of the batch.
        images: usize,
        /// How long it took: from the commit before it to its own, or from its images where something other than a step
        /// came before it.
        seconds: f64,
        /// Bytes of tensors that have come from workers since the step before.
        received_bytes: u64,
    },
    /// An epoch, or the whole job, was measured on the test images.
    Epoch(EpochRecord),
    /// A checkpoint was written.
    Checkpoint {
        /// As of which step.
        step: u64,
        /// Where.
        path: PathBuf,
    },
    /// The job is over.
    Ended(Box<Ended>),
}

/// What is about to run.
#[derive(Clone, Debug, Serialize)]
pub struct Started {
    /// The model's name.
    pub model: String,
    /// Its parameters.
    pub parameters: usize,
    /// Multiply-adds of an image forward.
    pub multiply_adds: u64,
    /// What the data are and where they come from.
    pub data: String,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// The first step of this run, counted from 1.
    pub first_step: u64,
    /// The last one.
    pub last_step: u64,
    /// Steps an epoch.
    pub steps_per_epoch: u64,
    /// Images a step.
    pub batch: usize,
    /// Bytes over sockets a step.
    pub step_bytes: u64,
    /// Who computes.
    pub workers: Vec<WorkerRecord>,
    /// Where the run is kept.
    pub out: PathBuf,
}

/// A worker of the run.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerRecord {
    /// Its number.
    pub worker: usize,
    /// Its towers.
    pub towers: Vec<usize>,
    /// Its process.
    pub process_id: u32,
    /// Its machine.
    pub host: String,
    /// Where it dialled in from.
    pub address: String,
    /// Threads of its pool.
    pub threads: usize,
    /// Threads that did any work, known at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_threads: Option<usize>,
    /// What its kernels used.
    pub instruction_set: String,
    /// Bytes of weights and momentum that it was given.
    pub state_bytes: u64,
}

/// An epoch, as `metrics.jsonl` keeps it.
#[derive(Clone, Debug, Serialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: u64,
    /// The last step that it holds.
    pub through_step: u64,
    /// The mean loss of its images.
    pub train_loss: f64,
    /// Of the test images, the share that was classified rightly.
    pub test_accuracy: f64,
    /// The mean loss of the test images.
    pub test_loss: f64,
    /// Seconds of training in this run, without evaluation.
    pub seconds: f64,
    /// Training images a second.
    pub images_per_second: f64,
}

/// How a job ended.
#[derive(Clone, Debug, Serialize)]
pub struct Ended {
    /// Whether it was interrupted before its end.
    pub interrupted: bool,
    /// Steps committed in all.
    pub steps: u64,
    /// Mean loss of the last epoch's images.
    pub train_loss: Option<f64>,
    /// On the test images.
    pub test_accuracy: Option<f64>,
    /// Over all weights.
    pub weights_sha256: String,
    /// Training images a second, in this run.
    pub images_per_second: f64,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// The run's folder.
    pub out: PathBuf,
}

/// Whoever watches a job.
pub trait Observer {
    /// Something happened.
    fn on(&mut self, event: Event);

    /// Whether the observer will take its time when it hears of `step`. Then the next step's images aren't sent ahead, so that
    /// workers rest meanwhile, and the time counts for no step.
    fn pauses_after(&self, _step: u64) -> bool {
        false
    }
}
