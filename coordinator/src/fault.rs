//! Faults: what happened to which worker.
//!
//! Not here: what follows from a fault (`recovery`), and its record (`incident`).

use convoy_common::index::WorkerIndex;
use convoy_common::wire::WireError;

/// A worker or a link that stopped doing its part.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Fault {
    /// A worker was lost.
    #[error("worker {worker} (process {process_id} on {host}), which held {towers}, was lost at step {step}: {why}")]
    Lost { worker: WorkerIndex, process_id: u32, host: String, towers: String, step: u64, why: String },
    /// A worker's process ended before it connected.
    #[error("worker {worker} ended before it connected: {why}")]
    Ended { worker: WorkerIndex, why: String, was_killed: bool },
    /// A worker was asked to stop.
    #[error("worker {worker} on {host} was asked to stop, and left after step {step}")]
    Left { worker: WorkerIndex, host: String, step: u64 },
    /// A worker's computation hangs, while its network thread answers pings.
    #[error("worker {worker} on {host} hangs at step {step}: it has been busy with {what} for {seconds} s")]
    Hangs { worker: WorkerIndex, host: String, step: u64, what: String, seconds: u64 },
    /// A worker reported a failure, or did not follow the protocol.
    #[error("worker {worker} failed at step {step}: {message}")]
    Failed { worker: WorkerIndex, step: u64, message: String },
    /// A worker sent a message that is malformed, or that the plan does not allow.
    #[error("worker {worker} sent an invalid message at step {step}")]
    Invalid { worker: WorkerIndex, step: u64, source: WireError },
    /// A worker sent another one an invalid message, as the other one reports it.
    #[error("worker {worker} sent worker {to} an invalid message at step {step}: {message}")]
    InvalidToPeer { worker: WorkerIndex, to: WorkerIndex, step: u64, message: String },
    /// The connection between two workers failed. Both are there.
    #[error("the connection between worker {worker} and worker {peer} failed at step {step}: {why}")]
    Link { worker: WorkerIndex, peer: WorkerIndex, step: u64, why: String },
}

impl Fault {
    /// The worker that the fault is attributed to. Of two workers whose connection failed, the one that reported it.
    pub fn worker(&self) -> WorkerIndex {
        match self {
            Fault::Lost { worker, .. }
            | Fault::Ended { worker, .. }
            | Fault::Left { worker, .. }
            | Fault::Hangs { worker, .. }
            | Fault::Failed { worker, .. }
            | Fault::Invalid { worker, .. }
            | Fault::InvalidToPeer { worker, .. }
            | Fault::Link { worker, .. } => *worker,
        }
    }

    /// The other worker, if the connection between two workers failed.
    pub fn peer(&self) -> Option<WorkerIndex> {
        match self {
            Fault::Link { peer, .. } => Some(*peer),
            _ => None,
        }
    }

    /// Whether it concerns the connection between two workers, both of which are there.
    pub fn is_of_a_link(&self) -> bool {
        matches!(self, Fault::Link { .. } | Fault::InvalidToPeer { .. })
    }

    /// The process of that worker and its machine, if the fault knows them.
    pub fn process(&self) -> Option<(u32, String)> {
        match self {
            Fault::Lost { process_id, host, .. } => Some((*process_id, host.clone())),
            _ => None,
        }
    }

    /// Its kind, as records name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Lost { .. } => "lost",
            Fault::Ended { .. } => "ended",
            Fault::Left { .. } => "left",
            Fault::Hangs { .. } => "hangs",
            Fault::Failed { .. } => "failed",
            Fault::Invalid { .. } | Fault::InvalidToPeer { .. } => "invalid",
            Fault::Link { .. } => "link",
        }
    }
}
