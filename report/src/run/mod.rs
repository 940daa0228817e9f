//! The report of a single run: how it was trained, what it gets right and wrong, what its layers became, where its time went, and which
//! faults it survived. [`compare`] puts two runs side by side.
//!
//! Not here: measuring test images and adding up a trace, whose results come in as they are.

pub mod classes;
pub mod compare;
mod curves;
pub mod layers;
mod page;
pub mod records;
mod text;

use serde::Serialize;

use classes::Classes;
use layers::Layers;
use records::Records;

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// The run's folder, as it was given.
    pub folder: String,
    /// What the run wrote.
    pub records: Records,
    /// What is known of its newest checkpoint. None if it has none.
    pub trained: Option<Trained>,
    /// Where its time went. None if it has no trace.
    pub time: Option<Time>,
    /// What is missing in this report, and why.
    pub missing: Vec<String>,
}

/// The newest checkpoint of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Trained {
    /// Its step.
    pub step: u64,
    /// SHA-256 over its weights.
    pub weights_sha256: String,
    /// Its results on the test images. None if they could not be measured.
    pub classes: Option<Classes>,
    /// Its parameters.
    pub layers: Layers,
}

/// Where the time of a mean step went.
#[derive(Clone, Debug, Serialize)]
pub struct Time {
    /// Steps of the trace.
    pub steps: usize,
    /// Milliseconds of a step.
    pub step_ms: f64,
    /// The bottleneck, in words.
    pub bottleneck: String,
    /// A table: first a line of heads, and then activities with the milliseconds of each worker.
    pub rows: Vec<Vec<String>>,
}
