//! The parts that processes have in a run.

use std::fmt;

/// A part in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The coordinator.
    Coordinator,
    /// A worker. Its number is that of its place in the storm, not the one that the coordinator gives it.
    Worker(usize),
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Coordinator => write!(formatter, "the coordinator"),
            Role::Worker(worker) => write!(formatter, "worker {worker}"),
        }
    }
}
