//! Everything that can stop a job, in one enum. Variants have fields instead of formatted text, so that callers can decide.

use std::path::PathBuf;

use convoy_common::model::{ModelError, Shape};
use convoy_common::placement::PlacementError;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::correspondence::CorrespondenceError;
use crate::fault::Fault;
use crate::files::quoted;
use crate::job::SettingError;
use convoy_dataset::{DataError, Part};

/// Why a job can't start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum JobError {
    /// A setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The end lies before the checkpoint.
    #[error(
        "the job would end after step {end}, before the checkpoint's step {step}; give a larger --epochs or --steps"
    )]
    EndsBeforeItStarts { end: u64, step: u64 },
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The folder belongs to another run.
    #[error("{path} already holds a run; continue it with --resume {}, or give another --out", quoted(path))]
    OutTaken { path: PathBuf },
    /// Another process uses the folder.
    #[error("{path} is in use by another process; wait until its run ends, or give another --out")]
    OutBusy { path: PathBuf },
    /// It was asked to stop before the first step.
    #[error("interrupted before there was a result")]
    Interrupted,
    /// A weights file doesn't name its model.
    #[error(
        "{path} is not the folder of a checkpoint or a run; to read it as a weights file, give its model with --model"
    )]
    ModelWanted { path: PathBuf },
    /// A checkpoint is of another model than the one that was named.
    #[error(
        "{path} is a checkpoint of {}; omit --model",
        if own == asked { format!("another version of model \"{own}\" than --model") } else { format!("model \"{own}\", and --model is \"{asked}\"") }
    )]
    OtherModel { path: PathBuf, own: String, asked: String },
    /// The test images that the checkpoint names have changed since.
    #[error(
        "the {part} images are not those that the job of {path} used: they are now {origin}; to use them anyway, give --data"
    )]
    OtherImages { part: Part, path: PathBuf, origin: String },
    /// The classes of other images are not those that the job learned.
    #[error(
        "class {label} is \"{learned}\" in {path}, and \"{found}\" in the images, which are {origin}; they must have the same classes in the same order"
    )]
    OtherClasses { label: usize, learned: String, found: String, path: PathBuf, origin: String },
    /// All ten views of an image would be the same, but for the mirror images.
    #[error(
        "--ten-crop takes the corners of images that are larger than the model's input of {shape}, and {}; set the input's `resize` to more",
        resize.map_or("the model says no size".to_owned(), |side| format!("the model scales them to {side}"))
    )]
    NoMargins { shape: Shape, resize: Option<usize> },
    /// The cluster.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Layers that were named for `--init` are wrong.
    #[error(transparent)]
    Correspondence(#[from] CorrespondenceError),
    /// A checkpoint or a weights file.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file of the run can't be written.
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    /// The address can't be listened on.
    #[error("cannot listen on {address}")]
    Listen { address: String, source: std::io::Error },
    /// The receiver of traces can't be used.
    #[error("{0}")]
    Otlp(String),
    /// The system provides no threads.
    #[error("cannot start the coordinator's network threads")]
    Runtime(#[source] std::io::Error),
    /// A worker process can't be started.
    #[error("cannot start a worker process with the program {program}")]
    Spawn { program: PathBuf, source: std::io::Error },
    /// Too few workers came in time.
    #[error(
        "{have} of {want} worker{} connected before the wait of {seconds} s was over; {advice}",
        if *.want == 1 { "" } else { "s" }
    )]
    TooFewWorkers { have: usize, want: usize, seconds: u64, advice: String },
    /// A fault, in a command that does not recover, or in the first formation of a cluster.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Two workers can't connect, and must.
    #[error("{why}; --exchange auto lets the coordinator relay what they send each other")]
    NoLink { why: String },
    /// The job makes no progress, although it recovers from each fault.
    #[error("{generations} generations in a row made no progress beyond step {step}; the last one ended with a fault")]
    Fruitless {
        generations: u32,
        step: u64,
        #[source]
        fault: Fault,
    },
    /// A replayed step gave another loss.
    #[error(
        "step {step} had the loss {first} at first and {again} when it was replayed: a machine of this job computes \
         differently, or its memory is faulty"
    )]
    ReplayDiffers { step: u64, first: f64, again: f64 },
    /// A step made no progress for too long, although its workers answer.
    #[error("step {step} made no progress for {seconds} s; the coordinator waited for {waiting_for}")]
    NoProgress { seconds: u64, step: u64, waiting_for: String },
    /// A number is no longer finite.
    #[error("{what}; {}", what_helps(*.updates))]
    NotFinite { what: String, updates: u64 },
    /// The weights to measure give numbers that are not finite.
    #[error("{what}: the values in {path} are too large")]
    NotMeasurable { what: String, path: PathBuf },
}

/// What helps against numbers that are not finite, after `updates` updates of the weights.
fn what_helps(updates: u64) -> &'static str {
    match updates {
        0 => {
            "no weight has been updated yet, so check the initial weights (init in the model file, or --init), and mean and std of the input"
        }
        _ => {
            "start a new job with a smaller --lr; to begin with the weights of a checkpoint, use --init FOLDER/weights.safetensors"
        }
    }
}

impl JobError {
    /// Whether what failed during the job leaves its last snapshot sound: the cluster, or an image file.
    pub fn leaves_a_sound_snapshot(&self) -> bool {
        self.is_about_workers() || matches!(self, JobError::Data(_))
    }

    /// Whether the cluster has failed, so that the job could continue on another one.
    pub fn is_about_workers(&self) -> bool {
        use JobError::{Fault, Fruitless, NoLink, NoProgress, Spawn, TooFewWorkers};
        matches!(
            self,
            Fault(_) | Fruitless { .. } | NoLink { .. } | NoProgress { .. } | Spawn { .. } | TooFewWorkers { .. }
        )
    }

    /// Whether the command was used wrongly, rather than something having failed.
    pub fn is_misuse(&self) -> bool {
        matches!(
            self,
            JobError::Setting(_)
                | JobError::EndsBeforeItStarts { .. }
                | JobError::OutTaken { .. }
                | JobError::OutBusy { .. }
                | JobError::ModelWanted { .. }
                | JobError::OtherModel { .. }
                | JobError::OtherImages { .. }
                | JobError::OtherClasses { .. }
                | JobError::NoMargins { .. }
                | JobError::Otlp(_)
                | JobError::Placement(_)
                | JobError::Correspondence(_)
        )
    }
}
