//! `trace.json`: Chrome's trace format, as Perfetto reads it, with one event per line, so that a file that was cut short loads up
//! to its last complete line. It has a process for the coordinator and one per worker, spans on named tracks, tensors as flows
//! between processes, counters, and incidents.
//!
//! Times are microseconds since the recording began, on the coordinator's clock. For each step and worker, an event holds the
//! offset that was added to the worker's clock, its uncertainty and its correction.

use std::collections::BTreeMap;

use convoy_common::batch::MicroBatchId;
use convoy_common::index::PerWorker;
use convoy_common::links::Links;
use convoy_common::placement::Placement;
use convoy_common::plan::Plan;
use convoy_common::trace::{Activity, Span};
use convoy_common::wire::TensorKey;
use serde::{Deserialize, Serialize};

use super::alignment::Offset;

mod event;
mod reader;
mod writer;

pub(super) use event::described;
pub use reader::{TraceError, read};
pub use writer::Writer;

/// Version of the file's format. Raise it when an older reader would misread the file.
const FORMAT: u32 = 4;
/// Process numbers. Perfetto needs small ones, and 0 is special.
const COORDINATOR: u64 = 1;
const FIRST_WORKER: u64 = 2;

/// The head of a trace: which job it is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Version of the program that wrote it.
    pub convoy: String,
    /// Version of the file's format.
    pub format: u32,
    /// When the recording began, in nanoseconds since 1970, by the coordinator's machine.
    pub epoch_unix_ns: u64,
    /// The model file, word for word.
    pub model: String,
    /// Who holds what.
    pub placement: Placement,
    /// Which workers are connected directly.
    pub links: Links,
    /// Machine of each worker.
    pub hosts: PerWorker<String>,
    /// Images per step.
    pub batch: usize,
}

impl About {
    /// The head of a trace that this program writes.
    pub fn new(epoch_unix_ns: u64, model: String, plan: &Plan, hosts: PerWorker<String>, batch: usize) -> Self {
        Self {
            convoy: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            epoch_unix_ns,
            model,
            placement: plan.placement.clone(),
            links: plan.links.clone(),
            hosts,
            batch,
        }
    }
}

/// One process's part in a step, on the coordinator's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Spans, in the order of their ends.
    pub spans: Vec<Span>,
    /// The offset that was added to its clock.
    pub offset: Option<Offset>,
    /// Spans that are missing because a buffer was full.
    pub dropped: u64,
    /// Memory that the process held at the end of the step. 0 if unknown.
    pub resident_bytes: u64,
}

/// A step, as all processes recorded it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTrace {
    /// The coordinator.
    pub coordinator: Part,
    /// The workers, by number.
    pub workers: PerWorker<Part>,
    /// Loss and images, if the step was committed.
    pub figures: Option<Figures>,
    /// Whether it was kept because it was slow, and is no part of the sample.
    pub is_slow: bool,
}

/// Figures of a committed step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// The batch's mean loss.
    pub loss: f64,
    /// Images in the batch.
    pub images: usize,
}

/// A trace that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Its head.
    pub about: About,
    /// Its steps, by number.
    pub steps: BTreeMap<u64, StepTrace>,
    /// Incidents, and when they happened.
    pub incidents: Vec<(u64, String)>,
    /// Whether the file has no end: its job is still running, or was killed.
    pub is_cut: bool,
    /// Number of invalid lines.
    pub unreadable: usize,
}

/// Where a tensor is made. The coordinator makes images and gradients of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Images(MicroBatchId),
    Loss(MicroBatchId),
    Worker,
}

/// Where a tensor is made.
pub(super) fn source_of(tensor: &TensorKey) -> Source {
    match tensor {
        TensorKey::Images(micro_batch) => Source::Images(micro_batch.id),
        // A tower keeps its partial gradient for itself. What it receives under its own name is the gradient of its logits. With replicas,
        // it may also come from the slice of the head with the same number, on another worker, which then has a span of sending it.
        TensorKey::Activations { micro_batch, from_tower, to_tower: Some(to), .. } if from_tower == to => {
            Source::Loss(micro_batch.id)
        }
        _ => Source::Worker,
    }
}

/// What the coordinator sends in a span, and when it begins to.
pub(super) fn sent_by(span: &Span) -> Option<(Source, u64)> {
    match span.activity {
        Activity::SendImages(id) => Some((Source::Images(id), span.start)),
        Activity::Loss(id) => Some((Source::Loss(id), span.start)),
        _ => None,
    }
}

/// Whether an activity is a transfer, which may overlap with others.
pub(super) fn is_transfer(activity: &Activity) -> bool {
    matches!(activity, Activity::Send(_) | Activity::Receive(_) | Activity::Relay(_))
}

/// The coordinator's span of the step itself.
pub(super) fn step_span(coordinator: &Part) -> Option<&Span> {
    coordinator.spans.iter().find(|span| matches!(span.activity, Activity::Step { .. }))
}
