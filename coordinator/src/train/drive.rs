//! What changes from step to step (`Drive`), and the cluster and the recorder of a job (`Site`).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use convoy_common::index::WorkerIndex;
use convoy_common::plan::Plan;
use convoy_common::wire::Tally;

use super::prefetch::{Prefetch, StepImages};
use crate::cluster::Cluster;
use crate::crew::Crew;
use crate::exchange::{Counts, check_tally};
use crate::incident::Underway;
use crate::order::DataOrder;
use crate::recovery::Pace;
use crate::state::Progress;
use crate::trace::Recorder;

/// Where a job runs.
pub(super) struct Site<'a> {
    pub(super) job: u64,
    pub(super) cluster: &'a mut Cluster,
    pub(super) recorder: &'a mut Recorder,
}

/// A snapshot whose state arrives while the job goes on.
pub(super) struct Arriving {
    pub(super) progress: Progress,
    /// Whether it is written to disk.
    pub(super) is_checkpoint: bool,
    /// How long the job has waited for it so far.
    pub(super) waited: Duration,
}

/// What changes from step to step.
pub(super) struct Drive {
    /// Whether a generation has had all its weights.
    pub(super) has_begun: bool,
    /// The furthest step from which the run went back to a snapshot.
    pub(super) reached: u64,
    /// Faults after which the job has not caught up yet.
    pub(super) underway: Vec<Underway>,
    /// How long the worker of the last fault had been silent.
    pub(super) silence: Duration,
    pub(super) order: DataOrder,
    /// The images of the next steps.
    pub(super) prefetch: Prefetch,
    /// How long the job has waited for images to be decoded, and how much of that has been reported.
    pub(super) image_wait: Duration,
    reported_wait: Duration,
    /// The next step's images, if they have been sent already.
    pub(super) sent: Option<StepImages>,
    /// When the last commit was decided, by the system's clock and by the recorder's. None after a measurement, or after the job has
    /// waited for a snapshot or for the disk.
    pub(super) last_commit: Option<(Instant, u64)>,
    pub(super) pace: Pace,
    /// The snapshot whose state arrives while the job goes on.
    pub(super) arriving: Option<Arriving>,
    /// Seconds of training in this run, without measurements and waits for snapshots.
    pub(super) seconds: f64,
    pub(super) epoch_seconds: f64,
    pub(super) epoch_images: u64,
    pub(super) images: u64,
    /// What workers of earlier generations have sent.
    pub(super) counted: Counts,
    /// Bytes received in this generation that have been reported.
    pub(super) received_bytes: u64,
    pub(super) checkpoint: Option<PathBuf>,
}

impl Drive {
    /// Before the first step.
    pub(super) fn new(order: DataOrder, prefetch: Prefetch) -> Self {
        Self {
            has_begun: false,
            reached: 0,
            underway: Vec::new(),
            silence: Duration::ZERO,
            order,
            prefetch,
            image_wait: Duration::ZERO,
            reported_wait: Duration::ZERO,
            sent: None,
            last_commit: None,
            pace: Pace::starting(Instant::now()),
            arriving: None,
            seconds: 0.0,
            epoch_seconds: 0.0,
            epoch_images: 0,
            images: 0,
            counted: Counts::default(),
            received_bytes: 0,
            checkpoint: None,
        }
    }

    /// When the next step begins: at the last commit, so that no time is lost between two steps. After something other than a
    /// step, it begins now.
    pub(super) fn step_begins(&mut self, recorder: &Recorder) -> (Instant, u64) {
        self.last_commit.take().unwrap_or_else(|| (Instant::now(), recorder.now()))
    }

    /// Counts what the workers of a generation have sent.
    pub(super) fn add_counted(&mut self, crew: &Crew) {
        self.counted.add_all(crew.exchanges.counted());
        self.received_bytes = 0;
    }

    /// Counts what a worker has received since its last report, when the job is over.
    pub(super) fn add_tally(&mut self, plan: &Plan, worker: WorkerIndex, tally: &Tally) {
        if check_tally(plan, worker, tally).is_ok() {
            self.counted.add_tally(worker, tally);
        }
    }

    /// Counts the images of a step.
    pub(super) fn count(&mut self, images: usize, time: Duration) {
        self.seconds += time.as_secs_f64();
        self.epoch_seconds += time.as_secs_f64();
        self.images += images as u64;
        self.epoch_images += images as u64;
    }

    /// Seconds of waiting for images since the last call.
    pub(super) fn new_image_wait(&mut self) -> f64 {
        let reported = std::mem::replace(&mut self.reported_wait, self.image_wait);
        (self.image_wait - reported).as_secs_f64()
    }

    /// Bytes that workers have sent since the last call.
    pub(super) fn newly_received_bytes(&mut self, crew: &Crew) -> u64 {
        let received = crew.exchanges.counted().bytes();
        received.saturating_sub(std::mem::replace(&mut self.received_bytes, received))
    }
}
