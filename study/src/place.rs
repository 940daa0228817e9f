//! Where runs are carried out: how many at a time, and on which workers. Nothing here changes a result.
//!
//! Not here: starting processes (`process`).

use std::ffi::OsString;
use std::path::PathBuf;

use convoy_common::address::Address;

/// Exit code of a command that waited for workers, and too few connected.
pub const TOO_FEW_WORKERS: u8 = 3;

/// Where and how runs are carried out.
#[derive(Clone, Debug)]
pub struct Place {
    /// The program.
    pub program: PathBuf,
    /// Workers of each run.
    pub workers: usize,
    /// Each computes one run after another. At least one.
    pub lanes: Vec<Lane>,
}

/// Who computes the runs of a lane.
#[derive(Clone, Debug)]
pub enum Lane {
    /// Each run starts its workers, with this many compute threads.
    Own {
        /// Compute threads of a worker.
        threads: usize,
    },
    /// Each run waits for workers.
    Listening {
        /// Where they connect.
        at: Address,
        /// The flags for the secrets that they must have.
        credentials: Vec<OsString>,
    },
}
