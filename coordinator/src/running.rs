//! The settings that don't change a job's result: where it runs, how it recovers, and what it records.

use std::ffi::OsString;
use std::io::PipeWriter;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::batch::THREADS_MAX;
use convoy_common::model::Network;
use convoy_common::placement::PlacementError;
use convoy_common::plan::Plan;
use convoy_net::secrets::Secrets;

use crate::job::{SettingError, check};
use crate::links::Transport;
use crate::metrics::Metrics;
use crate::trace::Sampling;

/// Where a job runs and what it records. Nothing here changes its result.
#[derive(Clone, Debug)]
pub struct Running {
    /// Worker processes. None: one per tower.
    pub workers: Option<usize>,
    /// Replicas of the trunk. None: the smallest number that gives every worker something.
    pub replicas: Option<usize>,
    /// How workers send each other tensors.
    pub transport: Transport,
    /// Compute threads of each local worker. None: the cores divided by the workers.
    pub threads: Option<usize>,
    /// Instruction set of each local worker. None: the best that the machine has.
    pub isa: Option<String>,
    /// Address on which to wait for workers, instead of starting them.
    pub listen: Option<Address>,
    /// What tells remote workers of this cluster from others.
    pub secrets: Secrets,
    /// Micro-batches per slot. None: the default (see [`crate::job::micro_batches`]).
    pub micro_batches: Option<usize>,
    /// Steps between checkpoints. None: the steps of one epoch.
    pub checkpoint_every: Option<u64>,
    /// Number of checkpoints to keep.
    pub keep: usize,
    /// Steps between snapshots in memory. None: chosen so that snapshots cost at most 2 % of the time, and are at least two seconds
    /// apart.
    pub snapshot_every: Option<u64>,
    /// How long to wait for another worker after a fault, before the remaining workers take the towers over.
    pub patience: Duration,
    /// Whether the job begins with the remote workers that connect within `patience`, at least 5 s, after the first, and does not wait
    /// for all. A coordinator that is started again needs this, because a worker may have been lost together with it.
    pub begins_with_fewer: bool,
    /// Steps to keep in the trace.
    pub trace: Sampling,
    /// Whether the metrics are also written for TensorBoard.
    pub tensorboard: bool,
    /// Endpoint of a receiver of the OpenTelemetry protocol, if traced steps are sent to one.
    pub otlp: Option<String>,
    /// Deliberate faults of recovery, for tests that must find them.
    pub rehearsal: Rehearsal,
    /// The program to start as a worker.
    pub local: LocalProgram,
    /// The job's counters.
    pub metrics: Metrics,
}

/// Deliberate faults of recovery itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rehearsal {
    /// After a fault, workers get the state that the run began with, instead of the snapshot's.
    pub stale_snapshot: bool,
    /// Messages of earlier generations are not dropped.
    pub no_fence: bool,
}

/// How to start a local worker.
#[derive(Clone, Debug)]
pub struct LocalProgram {
    /// The program's file.
    pub path: PathBuf,
    /// Arguments before the subcommand.
    pub arguments: Vec<OsString>,
    /// Its standard error. None: that of this process.
    pub complaints: Option<Arc<PipeWriter>>,
}

impl Running {
    /// The plan of a job with `slots` slots: with as many workers as requested, or one per tower.
    ///
    /// # Errors
    /// When a worker would have nothing to do, or there are more replicas than slots.
    pub fn plan(&self, network: Network, slots: usize) -> Result<Plan, PlacementError> {
        let workers = self.workers.unwrap_or(network.towers);
        Plan::new(network, workers, slots, self.replicas)
    }

    /// The plan of the same job on another number of workers. If they are too many for the requested replicas, the number of
    /// replicas is the smallest one that gives every worker something.
    ///
    /// # Errors
    /// When a worker would have nothing to do.
    pub fn plan_on(&self, network: Network, slots: usize, workers: usize) -> Result<Plan, PlacementError> {
        Plan::new(network.clone(), workers, slots, self.replicas).or_else(|_| Plan::new(network, workers, slots, None))
    }

    /// Compute threads of each local worker: as requested, or the machine's cores divided by the workers.
    ///
    /// # Errors
    /// When the requested number is out of range.
    pub fn threads_of_each(&self, workers: usize) -> Result<usize, SettingError> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = self.threads.unwrap_or_else(|| (cores() / workers).max(1));
        const { assert!(THREADS_MAX == 1024, "the message below says so") };
        check("--threads", threads, (1..=THREADS_MAX).contains(&threads), "1 to 1024")?;
        Ok(threads)
    }
}
