//! Why a run did not end well.

use std::path::PathBuf;
use std::time::Duration;

use crate::role::Role;

/// A coordinator that reports nothing for this long hangs: a job that makes no progress ends after 300 seconds. It may wait longer for a
/// worker, but every process that ends is started again.
pub(crate) const HANG: Duration = Duration::from_secs(330);
/// Workers have this long to leave at the end. One that is cut off does not learn that the job is over. It waits 45 seconds for that at
/// most, and ends earlier if it notices that the connection is dead. A minute is also what docker-compose.yml allows.
pub(crate) const LEAVE_MAX: Duration = Duration::from_secs(60);

/// A container whose log has ended has this long to end.
pub(crate) const ENDED_MAX: Duration = Duration::from_secs(10);
/// A command of the container engine has this long.
pub(crate) const COMMAND_MAX: Duration = Duration::from_secs(120);

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
    /// A command of the container engine takes too long.
    #[error("\"{command}\" did not end within {} s", COMMAND_MAX.as_secs())]
    Slow { command: String },
    /// The engine does not have the containers that a storm needs.
    #[error("containers of the service \"{service}\" in the project: {found}; {needed} are needed")]
    Containers { service: &'static str, found: usize, needed: usize },
    /// The engine has containers of this project already.
    #[error(
        "the compose project {project} has containers already; remove them, or set COMPOSE_PROJECT_NAME to another name"
    )]
    Taken { project: String },
    /// A process that was never started.
    #[error("{role} was not started")]
    Absent { role: Role },
    /// A container's log can't be followed.
    #[error(
        "the log of {role} ended, but its container is still running: its log driver must be one that \"docker logs\" can read"
    )]
    Unheard { role: Role },
    /// The coordinator does not print events.
    #[error(
        "the coordinator printed \"{line}\" instead of an event in JSON: the service \"coordinator\" must pass on CONVOY_JSON"
    )]
    NoEvents { line: String },
    /// The events name processes that the conductor does not know.
    #[error(
        "the job began with {found}, and none of them is a worker of this run: the service \"worker\" must not set a hostname"
    )]
    Unknown { found: String },
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
    /// After an error, something remains.
    #[error("{error}; and what is left of the run could not be removed: {remains}")]
    Abandoned { error: Box<ChaosError>, remains: Box<ChaosError> },
    /// How a process ended can't be found out.
    #[error("cannot wait for {role}")]
    Wait { role: Role, source: std::io::Error },
    /// The user asked for it.
    #[error("interrupted")]
    Interrupted,
    /// The job ended without a result.
    #[error("the coordinator ended without reporting the end of the job")]
    NoResult,
}
