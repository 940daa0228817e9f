//! Why a run did not end well.

use std::path::PathBuf;
use std::time::Duration;

/// A coordinator that reports nothing for this long hangs: a job that makes no progress ends after 300 seconds.
pub(crate) const HANG: Duration = Duration::from_secs(330);
/// Workers have this long to leave at the end.
pub(crate) const LEAVE_MAX: Duration = Duration::from_secs(10);

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ChaosError {
    /// A process can't be started, or a port not be bound.
    #[error("cannot start {what}")]
    Start { what: String, source: std::io::Error },
    /// A command of the container engine failed.
    #[error("\"{command}\" failed: {said}")]
    Engine { command: String, said: String },
    /// The engine has not the containers that a storm needs.
    #[error("the project has {found} containers of the service \"{service}\"; {needed} are needed")]
    Containers { service: &'static str, found: usize, needed: usize },
    /// There is no docker-compose.
    #[error(
        "--compose needs a Docker Engine and docker-compose: neither \"docker-compose version\" nor \"docker compose version\" succeeds"
    )]
    NoCompose,
    /// A folder can't be made.
    #[error("cannot create {}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    /// The coordinator ended with an error.
    #[error("the coordinator ended with {status}: {said}")]
    Failed { status: String, said: String },
    /// Nothing happens any more.
    #[error("the job hangs: the coordinator reported nothing for {} s; its last event was {last}", HANG.as_secs())]
    Hangs { last: String },
    /// A process did not leave.
    #[error("{process} did not exit within {} s of SIGTERM", LEAVE_MAX.as_secs())]
    Remains { process: String },
    /// The user asked for it.
    #[error("interrupted")]
    Interrupted,
    /// The job ended without a result.
    #[error("the coordinator ended without reporting the end of the job")]
    NoResult,
}
