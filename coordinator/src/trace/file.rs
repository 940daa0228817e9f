//! `trace.json`: Chrome's trace format as Perfetto reads it, an event a line, so that a file that was cut short loads up to
//! its last whole line. One process for the coordinator and one a worker; spans on named tracks; tensors as flows from
//! process to process; counters; incidents.
//!
//! Times are microseconds since the recording began, on the coordinator's clock. What was added to a worker's clock stands in
//! an event of its own for each step, with its uncertainty and what of it is a correction.

use std::collections::BTreeMap;

use convoy_common::batch::MicroBatchId;
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

/// Of the file's form. Raise it when an older reader would misread it.
const FORMAT: u32 = 1;
/// Perfetto wants small numbers, and 0 is special.
const COORDINATOR: u64 = 1;
const FIRST_WORKER: u64 = 2;

/// What a trace is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The program that wrote it.
    pub convoy: String,
    /// The file's form.
    pub format: u32,
    /// When the recording began, in nanoseconds since 1970, by the coordinator's machine.
    pub epoch_unix_ns: u64,
    /// The model file, word for word.
    pub model: String,
    /// Tower t is on worker `placement[t]`.
    pub placement: Vec<usize>,
    /// Machines, by worker.
    pub hosts: Vec<String>,
    /// Images a step.
    pub batch: usize,
}

impl About {
    /// For a trace that this program writes.
    pub fn new(epoch_unix_ns: u64, model: String, placement: Vec<usize>, hosts: Vec<String>, batch: usize) -> Self {
        Self {
            convoy: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            epoch_unix_ns,
            model,
            placement,
            hosts,
            batch,
        }
    }
}

/// One process's part in a step, on the coordinator's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// As they ended.
    pub spans: Vec<Span>,
    /// What its clock was moved by.
    pub offset: Option<Offset>,
    /// Spans for which there was no room.
    pub dropped: u64,
    /// Memory that the process held at its end; 0 where the system didn't say.
    pub resident_bytes: u64,
}

/// What all processes recorded of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTrace {
    /// The coordinator.
    pub coordinator: Part,
    /// The workers, by number.
    pub workers: Vec<Part>,
    /// Loss and images a second, where the step was finished.
    pub figures: Option<Figures>,
    /// Whether it was kept because it took longer than others, which makes it no sample of them.
    pub is_slow: bool,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// The batch's mean loss.
    pub loss: f64,
    /// Images that it held.
    pub images: usize,
}

/// A trace that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What it is of.
    pub about: About,
    /// By step.
    pub steps: BTreeMap<u64, StepTrace>,
    /// What went wrong, and when.
    pub incidents: Vec<(u64, String)>,
    /// Whether the file lacks its end: its job goes on, or was killed.
    pub is_cut: bool,
    /// Lines in its midst that make no sense.
    pub unreadable: usize,
}

/// What the coordinator itself sends: images, and gradients of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Images(MicroBatchId),
    Loss(MicroBatchId),
    Worker,
}

/// Where a tensor begins its way.
pub(super) fn source_of(tensor: &TensorKey) -> Source {
    match tensor {
        TensorKey::Images(micro_batch) => Source::Images(micro_batch.id),
        // A tower's partial gradient for itself stays at home: what comes to it under its own name is of its logits.
        TensorKey::Activations { micro_batch, from_tower, to_tower: Some(to), .. } if from_tower == to => {
            Source::Loss(micro_batch.id)
        }
        _ => Source::Worker,
    }
}

/// What a span of the coordinator's sends, and since when.
pub(super) fn sent_by(span: &Span) -> Option<(Source, u64)> {
    match span.activity {
        Activity::SendImages(id) => Some((Source::Images(id), span.start)),
        Activity::Loss(id) => Some((Source::Loss(id), span.start)),
        _ => None,
    }
}

/// Whether it is a tensor on its way, which may overlap with others.
pub(super) fn is_transfer(activity: &Activity) -> bool {
    matches!(activity, Activity::Send(_) | Activity::Receive(_) | Activity::Relay(_))
}

/// The coordinator's span of the step itself.
pub(super) fn step_span(coordinator: &Part) -> Option<&Span> {
    coordinator.spans.iter().find(|span| matches!(span.activity, Activity::Step { .. }))
}
