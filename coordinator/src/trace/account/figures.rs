//! The figures of an account, as `convoy trace --json` prints them.

use std::collections::BTreeMap;

use convoy_common::index::{ExchangeIndex, PerWorker, SegmentIndex, WorkerIndex};
use serde::Serialize;

/// What a worker spent its time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum Use {
    /// A layer.
    Layer {
        /// Its index in the network.
        layer: usize,
        /// Whether it is the backward pass.
        backward: bool,
    },
    /// Work around the layers of a segment: gathering, slicing, adding.
    Segments,
    /// Putting received tensors where they belong.
    Taking,
    /// Handing results to the network thread.
    HandingOut,
    /// Applying gradients.
    Committing,
    /// Reading weights for a checkpoint.
    ReadingState,
    /// Waiting for a tensor that another worker had not computed yet.
    WaitingForWorker {
        /// The other worker.
        worker: WorkerIndex,
    },
    /// Waiting for a tensor that was being sent over a worker's link with the coordinator.
    WaitingForLink {
        /// The worker whose link it is.
        worker: WorkerIndex,
    },
    /// Waiting for a tensor that another worker was sending directly.
    WaitingForPeerLink {
        /// The sender.
        worker: WorkerIndex,
    },
    /// Waiting for something that the coordinator had not sent yet.
    WaitingForCoordinator,
    /// Not recorded.
    Unexplained,
}

/// Nanoseconds by use.
pub type Uses = BTreeMap<Use, u64>;

/// The mean step of one worker.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerAccount {
    /// Its number.
    pub worker: WorkerIndex,
    /// Its length, the sum of all uses.
    pub step_ns: f64,
    /// Its time by use.
    pub uses: Vec<(Use, f64)>,
    /// The largest unexplained share of any step.
    pub unexplained_share_max: f64,
    /// Work of its network thread on sent tensors: dividing them into chunks, checksums.
    pub encoding_ns: f64,
    /// Work of its network thread on received tensors: checking, copying.
    pub decoding_ns: f64,
    /// The largest uncertainty of its clock's offset.
    pub clock_uncertainty_ns: u64,
    /// The largest correction of its clock's offset by messages.
    pub clock_correction_ns: u64,
    /// Spans that are missing because a buffer was full.
    pub dropped: u64,
    /// The most memory that its process held at the end of a step. 0 if unknown.
    pub resident_bytes: u64,
}

/// A kind of stretch of the critical path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "through", rename_all = "snake_case")]
pub enum Stretch {
    /// Work of a worker.
    Work {
        /// The worker.
        worker: WorkerIndex,
        /// What it does.
        doing: Use,
    },
    /// Transfer over a worker's link with the coordinator.
    Link {
        /// The worker whose link it is.
        worker: WorkerIndex,
    },
    /// Transfer from a worker to another one.
    PeerLink {
        /// The sender.
        from: WorkerIndex,
        /// The receiver.
        to: WorkerIndex,
    },
    /// Work of the coordinator.
    Coordinator,
}

/// The share of one kind of stretch in the critical path.
#[derive(Clone, Debug, Serialize)]
pub struct PathShare {
    /// The kind.
    pub stretch: Stretch,
    /// Its length in the mean step.
    pub mean_ns: f64,
    /// Number of steps in which it was the largest share.
    pub bound: usize,
}

/// What an exchange moved in one direction, in the mean step.
#[derive(Clone, Debug, Serialize)]
pub struct ExchangeAccount {
    /// Index of the exchange. The last one carries logits. None: images or, backward, gradients that are summed over replicas.
    pub exchange: Option<ExchangeIndex>,
    /// Whether it moved gradients.
    pub backward: bool,
    /// Planned bytes over sockets, for the images of these steps.
    pub planned_bytes: f64,
    /// Recorded bytes over sockets.
    pub bytes: f64,
    /// Mean time of a tensor, from when its sender begins to send until its receiver has all of it.
    pub mean_ns: f64,
    /// The longest such time.
    pub max_ns: u64,
    /// The share of these times during which the receiver computed. None for images and logits: images are sent one step ahead, and
    /// logits go to the coordinator.
    pub hidden_share: Option<f64>,
}

/// A segment of a worker in one direction, in the mean step.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentAccount {
    /// Index of the segment.
    pub segment: SegmentIndex,
    /// The worker.
    pub worker: WorkerIndex,
    /// Whether it is the backward pass.
    pub backward: bool,
    /// Planned multiply-adds of its towers' layers. A backward pass has twice as many, except in the first layer.
    pub planned_multiply_adds: f64,
    /// Mean time.
    pub mean_ns: f64,
}

/// The bottleneck, if there is one.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "bottleneck", rename_all = "snake_case")]
pub enum Verdict {
    /// A worker takes longer for a layer than the others do for theirs.
    Layer {
        /// The worker.
        worker: WorkerIndex,
        /// The layer's segment.
        segment: SegmentIndex,
        /// The layer's name.
        layer: String,
        /// Whether it is the backward pass.
        backward: bool,
        /// How much longer, in the mean step.
        excess_ns: f64,
    },
    /// A worker's link is on the critical path for longer than the other links.
    Link {
        /// The worker whose link it is.
        worker: WorkerIndex,
        /// How much longer, in the mean step.
        excess_ns: f64,
    },
    /// The link from a worker to another one is on the critical path for longer than the other links between workers.
    PeerLink {
        /// The sender.
        from: WorkerIndex,
        /// The receiver.
        to: WorkerIndex,
        /// How much longer, in the mean step.
        excess_ns: f64,
    },
    /// Steps wait for image files to be decoded.
    Images {
        /// How long, in the mean step.
        excess_ns: f64,
    },
    /// There is none.
    Balanced,
}

/// A step that took longer than the mean.
#[derive(Clone, Debug, Serialize)]
pub struct SlowStep {
    /// Its number.
    pub step: u64,
    /// Its length.
    pub step_ns: u64,
    /// What took longer than in the mean step, largest first: the worker, the use, and by how much.
    pub longer: Vec<(WorkerIndex, Use, f64)>,
}

/// The account of a trace.
#[derive(Clone, Debug, Serialize)]
pub struct Account {
    /// The steps that it is about, each traced to its end.
    pub steps: Vec<u64>,
    /// Length of the mean step, from commit to commit, on the coordinator.
    pub step_ns: f64,
    /// The coordinator's waits in the mean step.
    pub coordinator_idle_ns: f64,
    /// Its waits until images were decoded.
    pub coordinator_awaits_images_ns: f64,
    /// Images of the mean step. The last batch of an epoch may be smaller than the others.
    pub images_a_step: f64,
    /// Images per second in those steps.
    pub images_per_second: f64,
    /// The workers.
    pub workers: PerWorker<WorkerAccount>,
    /// The critical path, largest share first.
    pub path: Vec<PathShare>,
    /// The bottleneck.
    pub verdict: Verdict,
    /// What was sent, compared with the plan.
    pub exchanges: Vec<ExchangeAccount>,
    /// What was computed, beside the plan.
    pub segments: Vec<SegmentAccount>,
    /// The slowest steps.
    pub slowest: Vec<SlowStep>,
    /// Names of the layers.
    pub layers: Vec<String>,
}
