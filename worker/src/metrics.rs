//! A worker's metrics: jobs, steps, bytes, and the time of its compute thread by activity. Not here: the HTTP endpoint, which
//! the program serves at `--metrics`.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Activities of the compute thread in a job, measurements on test images included.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Doing {
    /// Running layers.
    Computing,
    /// Accepting tensors that have arrived.
    TakingIn,
    /// Passing results to the network thread.
    HandingOut,
    /// Applying gradients, or reading weights for a checkpoint.
    Committing,
    /// Waiting for the network thread.
    Waiting,
}

impl Doing {
    /// The value of the metric's label.
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
    /// Metrics that are registered in `registry`.
    pub fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("convoy_worker");
        registry.register("jobs", "Jobs that were assigned to this worker", metrics.jobs.clone());
        registry.register("in_job", "1 during a job, 0 otherwise", metrics.in_job.clone());
        registry.register("steps", "Steps committed", metrics.steps.clone());
        registry.register("step", "The last committed step of the current job", metrics.step.clone());
        registry.register(
            "sent_bytes",
            "Bytes of tensors sent to the coordinator and to other workers",
            metrics.sent_bytes.clone(),
        );
        registry.register(
            "received_bytes",
            "Bytes of tensors received from the coordinator and from other workers",
            metrics.received_bytes.clone(),
        );
        let help = "Seconds of the compute thread in jobs, by activity";
        registry.register("seconds", help, metrics.seconds.clone());
        let all = [Doing::Computing, Doing::TakingIn, Doing::HandingOut, Doing::Committing, Doing::Waiting];
        all.iter().for_each(|doing| drop(metrics.seconds.get_or_create(&[("doing", doing.name())])));
        metrics
    }

    /// How long the compute thread has computed in jobs so far.
    pub(crate) fn computed(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.get_or_create(&[("doing", Doing::Computing.name())]).get())
    }
}

/// Adds up the time of a thread by activity, without gaps.
#[derive(Debug)]
pub(crate) struct Stopwatch<'a> {
    metrics: &'a Metrics,
    since: Instant,
}

impl<'a> Stopwatch<'a> {
    /// A stopwatch that starts now.
    pub(crate) fn starting(metrics: &'a Metrics) -> Self {
        Self { metrics, since: Instant::now() }
    }

    /// Counts the time since the last call as `doing`.
    pub(crate) fn spent(&mut self, doing: Doing) {
        let now = Instant::now();
        self.metrics.seconds.get_or_create(&[("doing", doing.name())]).inc_by((now - self.since).as_secs_f64());
        self.since = now;
    }

    /// Counts a committed step.
    pub(crate) fn committed(&self, step: u64) {
        self.metrics.steps.inc();
        self.metrics.step.set(step as i64);
    }

    /// Discards the time since the last call.
    pub(crate) fn restart(&mut self) {
        self.since = Instant::now();
    }
}
