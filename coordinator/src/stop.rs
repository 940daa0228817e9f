//! Why the driving of a job stops: a fault, which recovery handles; a request to stop; or an error that ends the job.

use crate::checkpoint::CheckpointError;
use crate::error::JobError;
use crate::fault::Fault;

/// Why a generation stops before the job is done.
#[derive(Debug)]
pub enum Stop {
    /// A fault: the job continues in the next generation.
    Fault(Fault),
    /// The user asked for it: a checkpoint is written, and the job ends.
    InOrder,
    /// A worker is about to stop: a checkpoint is written, and the job continues without it.
    Leaves(Fault),
    /// A spare can join a crew that is smaller than requested: a snapshot was just taken, and the towers are spread out again.
    Grows,
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
            Stop::Fault(fault) | Stop::Leaves(fault) => JobError::Fault(fault),
            Stop::InOrder | Stop::Grows | Stop::Abrupt => JobError::Interrupted,
            Stop::Fatal(error) => error,
        }
    }
}
