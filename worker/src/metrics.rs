//! What a worker counts for those who watch it while it works: jobs, steps, bytes, and what its computing thread spends its
//! time on. Not here: how they are read (the program answers at `--metrics`).

use std::sync::atomic::AtomicU64;
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the computing thread does in a job, measurements on test images included.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Doing {
    /// Layers, and what lies between them.
    Computing,
    /// Putting what has come where it belongs.
    TakingIn,
    /// Giving what was computed to the network thread.
    HandingOut,
    /// Applying gradients, and reading weights for a checkpoint.
    Committing,
    /// Nothing, until something comes.
    Waiting,
}

impl Doing {
    /// The label's value.
    fn name(self) -> &'static str {
        match self {
            Doing::Computing => "computing",
            Doing::TakingIn => "taking_in",
            Doing::HandingOut => "handing_out",
            Doing::Committing => "committing",
            Doing::Waiting => "waiting",
        }
    }
}

type Label = [(&'static str, &'static str); 1];

/// A worker's counters. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(crate) jobs: Counter,
    pub(crate) in_job: Gauge,
    pub(crate) steps: Counter,
    pub(crate) step: Gauge,
    pub(crate) sent_bytes: Counter,
    pub(crate) received_bytes: Counter,
    seconds: Family<Label, Counter<f64, AtomicU64>>,
}

impl Metrics {
    /// Counters that are read through `registry`.
    pub fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("convoy_worker");
        registry.register("jobs", "Jobs that this worker was assigned to", metrics.jobs.clone());
        registry.register("in_job", "1 in a job, 0 between jobs", metrics.in_job.clone());
        registry.register("steps", "Steps committed", metrics.steps.clone());
        registry.register("step", "The last step committed of the job at hand", metrics.step.clone());
        registry.register("sent_bytes", "Bytes of tensors sent to the coordinator", metrics.sent_bytes.clone());
        registry.register("received_bytes", "Bytes of tensors received from it", metrics.received_bytes.clone());
        let help = "What the computing thread spent its time on in jobs";
        registry.register("seconds", help, metrics.seconds.clone());
        let all = [Doing::Computing, Doing::TakingIn, Doing::HandingOut, Doing::Committing, Doing::Waiting];
        all.iter().for_each(|doing| drop(metrics.seconds.get_or_create(&[("doing", doing.name())])));
        metrics
    }
}

/// Tells what a thread spends its time on, one thing after another.
#[derive(Debug)]
pub(crate) struct Stopwatch<'a> {
    metrics: &'a Metrics,
    since: Instant,
}

impl<'a> Stopwatch<'a> {
    /// Time counts from now.
    pub(crate) fn starting(metrics: &'a Metrics) -> Self {
        Self { metrics, since: Instant::now() }
    }

    /// This was what took the time since it was last asked.
    pub(crate) fn spent(&mut self, doing: Doing) {
        let now = Instant::now();
        self.metrics.seconds.get_or_create(&[("doing", doing.name())]).inc_by((now - self.since).as_secs_f64());
        self.since = now;
    }

    /// A step was committed.
    pub(crate) fn committed(&self, step: u64) {
        self.metrics.steps.inc();
        self.metrics.step.set(step as i64);
    }

    /// What took the time since then concerns nobody.
    pub(crate) fn restart(&mut self) {
        self.since = Instant::now();
    }
}
