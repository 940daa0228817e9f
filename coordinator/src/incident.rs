//! The record of a fault: what, whom, when, how it was found, how it was repaired, and how long each part took.

use std::time::Instant;

use convoy_common::chain::chain;
use serde::Serialize;

use crate::fault::Fault;

/// A fault from which the job recovered, for records and people. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Incident {
    /// `lost`, `ended`, `left`, `hangs`, `failed` or `invalid`.
    pub kind: &'static str,
    /// The worker that the fault is attributed to.
    pub worker: usize,
    /// The last committed step when the fault was detected.
    pub step: u64,
    /// What happened.
    pub what: String,
    /// The generation that the fault ended.
    pub generation: u64,
    /// The step of the snapshot that the job went back to.
    pub rewound_to: u64,
    /// From the detection of the fault until the next generation had all its workers.
    pub replace_ms: f64,
    /// From then on until all workers had their weights again.
    pub restore_ms: f64,
}

/// A fault whose repair is under way.
#[derive(Debug)]
pub struct Underway {
    incident: Incident,
    detected: Instant,
    replaced: Option<Instant>,
}

impl Underway {
    /// A fault that was just detected.
    pub fn begin(fault: &Fault, generation: u64, step: u64, rewound_to: u64) -> Self {
        let (kind, worker, what) = (fault.kind(), fault.worker(), chain(fault));
        let incident = Incident { kind, worker, step, what, generation, rewound_to, replace_ms: 0.0, restore_ms: 0.0 };
        Self { incident, detected: Instant::now(), replaced: None }
    }

    /// All workers are there.
    pub fn replaced(&mut self) {
        self.replaced.get_or_insert_with(Instant::now);
    }

    /// All workers have their weights.
    pub fn restored(self) -> Incident {
        let now = Instant::now();
        let replaced = self.replaced.unwrap_or(now);
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        Incident { replace_ms: ms(self.detected, replaced), restore_ms: ms(replaced, now), ..self.incident }
    }
}
