//! Everything that can stop a job, in one enum: fields rather than formatted text, so that whoever decides can look.

use std::path::PathBuf;

use convoy_common::model::ModelError;
use convoy_common::plan::PlanError;
use convoy_common::wire::WireError;

use crate::checkpoint::CheckpointError;
use crate::data::DataError;

/// Why a job can't start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A setting has a value that can't be.
    #[error("{flag} {value}: must be {expected}")]
    Setting {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A resumed job can't have other settings than it had.
    #[error("{key} is {asked}, and the checkpoint's job has {before}; a resumed job must keep it")]
    ResumeDiffers {
        /// Which setting.
        key: &'static str,
        /// As asked for now.
        asked: String,
        /// As in the checkpoint.
        before: String,
    },
    /// The end lies before the checkpoint.
    #[error("the job is to end after step {end}, and the checkpoint is of step {step}; give a later end")]
    EndsBeforeItStarts {
        /// The last step asked for.
        end: u64,
        /// The checkpoint's.
        step: u64,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The folder belongs to another run.
    #[error("{path} holds a run already; go on with it by --resume {path}, or give another --out")]
    OutTaken {
        /// Which.
        path: PathBuf,
    },
    /// Another process is at work in the folder.
    #[error("{path} is in use by a run that goes on; wait for its end, or give another --out")]
    OutBusy {
        /// Which.
        path: PathBuf,
    },
    /// It was told to stop before anything had begun.
    #[error("interrupted before there was anything to keep")]
    Interrupted,
    /// A weights file says nothing of its model.
    #[error("{path} is no checkpoint's folder; to read it as a weights file, say which model's with --model")]
    ModelWanted {
        /// Which.
        path: PathBuf,
    },
    /// A checkpoint is of another model than the one that was named.
    #[error("{path} is a checkpoint of \"{own}\", and --model says \"{asked}\", which differs; leave --model out")]
    OtherModel {
        /// Which.
        path: PathBuf,
        /// Its model.
        own: String,
        /// The one asked for.
        asked: String,
    },
    /// The test images that the checkpoint names have changed since.
    #[error(
        "the test images of {origin} are not those that the job of {path} was measured on; give --data to measure other \
         images"
    )]
    OtherTestImages {
        /// The checkpoint.
        path: PathBuf,
        /// What was loaded.
        origin: String,
    },
    /// The cluster.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint or a weights file.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file of the run can't be written.
    #[error("write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The address can't be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Traced steps can't be sent where they are to go.
    #[error("{0}")]
    Otlp(String),
    /// The system gives no runtime.
    #[error("start the coordinator's network threads")]
    Runtime(#[source] std::io::Error),
    /// A worker process can't be started.
    #[error("start a worker process, {program}")]
    Spawn {
        /// What was to be started.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Too few workers came in time.
    #[error("{have} of {want} workers came within {seconds} s; start more with: convoy worker --join {address}")]
    TooFewWorkers {
        /// How many came.
        have: usize,
        /// How many are wanted.
        want: usize,
        /// How long was waited.
        seconds: u64,
        /// Where they are to dial.
        address: String,
    },
    /// A worker is gone.
    #[error("worker {worker} (process {process_id} on {host}), which held {towers}, was lost at step {step}: {why}")]
    WorkerLost {
        /// Which.
        worker: usize,
        /// Its process.
        process_id: u32,
        /// Its machine.
        host: String,
        /// Its towers, as a list for a person.
        towers: String,
        /// The step at hand.
        step: u64,
        /// How it was noticed.
        why: String,
    },
    /// A worker was told to leave.
    #[error(
        "worker {worker} on {host} was told to leave after step {step}; a checkpoint was written, and --resume goes on \
         from it"
    )]
    WorkerLeaves {
        /// Which.
        worker: usize,
        /// Its machine.
        host: String,
        /// Steps committed.
        step: u64,
    },
    /// A worker said that it can't go on.
    #[error("worker {worker} can't go on at step {step}: {message}")]
    WorkerFailed {
        /// Which.
        worker: usize,
        /// The step at hand.
        step: u64,
        /// As it said.
        message: String,
    },
    /// A worker sent something that its part in the job doesn't have.
    #[error("worker {worker} sent what makes no sense at step {step}")]
    Desync {
        /// Which.
        worker: usize,
        /// The step at hand.
        step: u64,
        /// What.
        source: WireError,
    },
    /// Nothing was heard for too long.
    #[error("nothing was heard for {seconds} s at step {step}, waiting for {waiting_for}")]
    Silence {
        /// How long.
        seconds: u64,
        /// The step at hand.
        step: u64,
        /// Who owes what.
        waiting_for: String,
    },
    /// A number is no longer finite.
    #[error("{what}. A smaller --lr is the usual cure; the last checkpoint, if there is one, is still good")]
    NotFinite {
        /// Which, and where it began.
        what: String,
    },
}

impl JobError {
    /// Whether the command line asks for what can't be, rather than something having gone wrong.
    pub fn is_misuse(&self) -> bool {
        matches!(
            self,
            JobError::Setting { .. }
                | JobError::ResumeDiffers { .. }
                | JobError::EndsBeforeItStarts { .. }
                | JobError::OutTaken { .. }
                | JobError::OutBusy { .. }
                | JobError::ModelWanted { .. }
                | JobError::OtherModel { .. }
                | JobError::OtherTestImages { .. }
                | JobError::Otlp(_)
                | JobError::Plan(_)
        )
    }
}
