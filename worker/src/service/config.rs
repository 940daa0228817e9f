//! The configuration of a worker, and the state of its process that outlives a session.

use convoy_common::address::Address;
use convoy_net::secrets::Secrets;
use tokio::sync::watch;

use super::peers::Door;
use crate::metrics::Metrics;
use crate::probe::Clock;
use crate::rehearsal::Rehearsal;
use crate::vitals::Vitals;
use convoy_kernels::isa::Isa;

/// The configuration of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Addresses of coordinators, at least one. The worker serves one that waits for workers.
    pub join: Vec<Address>,
    /// Threads of the compute pool, at least 1.
    pub threads: usize,
    /// The instruction set of the kernels; by default the best that the machine has.
    pub isa: Option<Isa>,
    /// What tells the coordinator and the workers of this cluster from others.
    pub secrets: Secrets,
    /// Where to listen for other workers. None: at a free port of the network interface that leads to the coordinator.
    pub exchange_listen: Option<Address>,
    /// Address for health checks, if any.
    pub health: Option<Address>,
    /// Deliberate faults, for tests.
    pub rehearsal: Rehearsal,
    /// The metrics to update.
    pub metrics: Metrics,
}

/// State that outlives a session, and what the process needs to know about the current one.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) clock: Clock,
    /// The door at the configured address, if there is one.
    pub(super) door: Option<Door>,
    /// Signs of life of the compute thread.
    pub(super) vitals: Vitals,
    /// Whether there is a job.
    pub(super) in_job: watch::Sender<bool>,
    /// Whether this worker was asked to stop.
    pub(super) leaving: watch::Sender<bool>,
}
