//! Why the driving of a job stops: a fault, which recovery handles; a request to stop; or an error that ends the job.
//!
//! Not here: what follows from a fault (`recovery`), and its record (`incident`).

use convoy_common::wire::WireError;

use crate::checkpoint::CheckpointError;
use crate::error::JobError;

/// A worker or a link that stopped doing its part.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Fault {
    /// A worker was lost.
    #[error("worker {worker} (process {process_id} on {host}), which held {towers}, was lost at step {step}: {why}")]
    Lost { worker: usize, process_id: u32, host: String, towers: String, step: u64, why: String },
    /// A worker reported a failure, or did not follow the protocol.
    #[error("worker {worker} failed at step {step}: {message}")]
    Failed { worker: usize, step: u64, message: String },
    /// A worker sent something that it has no part in.
    #[error("worker {worker} sent an invalid message at step {step}")]
    Invalid { worker: usize, step: u64, source: WireError },
}

impl Fault {
    /// The worker that the fault is attributed to.
    pub fn worker(&self) -> usize {
        match self {
            Fault::Lost { worker, .. } | Fault::Failed { worker, .. } | Fault::Invalid { worker, .. } => *worker,
        }
    }

    /// Its kind, as records name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Lost { .. } => "lost",
            Fault::Failed { .. } => "failed",
            Fault::Invalid { .. } => "invalid",
        }
    }
}

/// Why a generation stops before the job is done.
#[derive(Debug)]
pub enum Stop {
    /// A fault: the job continues in the next generation.
    Fault(Fault),
    /// The user asked for it, or a worker is about to stop: a checkpoint is written, and the job ends with this error, if any.
    InOrder(Option<JobError>),
    /// The user asked for it while no worker says anything: the job ends with its last snapshot.
    Abrupt,
    /// Nothing can be done.
    Fatal(JobError),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

impl From<JobError> for Stop {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Fault(fault) => Stop::Fault(fault),
            error => Stop::Fatal(error),
        }
    }
}

impl From<CheckpointError> for Stop {
    fn from(error: CheckpointError) -> Self {
        Stop::Fatal(error.into())
    }
}

/// For commands that do not recover.
impl From<Stop> for JobError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Fault(fault) => JobError::Fault(fault),
            Stop::InOrder(error) => error.unwrap_or(JobError::Interrupted),
            Stop::Abrupt => JobError::Interrupted,
            Stop::Fatal(error) => error,
        }
    }
}
