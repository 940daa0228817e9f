//! The record of a fault: what happened, to which worker, when, how it was detected, how it was repaired, and how long each part
//! took.

use std::time::{Duration, Instant};

use convoy_common::chain::chain;
use convoy_common::index::WorkerIndex;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// A fault from which the job recovered, for records and people. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// `lost`, `ended`, `left`, `hangs`, `failed`, `invalid` or `link`.
    pub kind: String,
    /// The worker that the fault is attributed to.
    pub worker: WorkerIndex,
    /// The last committed step when the fault was detected.
    pub step: u64,
    /// What happened.
    pub what: String,
    /// The generation that the fault ended.
    pub generation: u64,
    /// The step of the snapshot that the job went back to.
    pub rewound_to: u64,
    /// From the worker's last message until the fault was detected.
    pub detect_ms: f64,
    /// From then on until the next generation had all its workers.
    pub replace_ms: f64,
    /// From then on until all workers had their weights again.
    pub restore_ms: f64,
    /// From then on until the steps since the snapshot had been computed again.
    pub replay_ms: f64,
}

/// A fault whose repair is under way.
#[derive(Debug)]
pub struct Underway {
    incident: Incident,
    detected: Instant,
    replaced: Option<Instant>,
    restored: Option<Instant>,
}

impl Underway {
    /// A fault that was just detected in `generation`, `silence` after the worker's last message. The last committed step was
    /// `step`.
    pub fn begin(fault: &Fault, generation: u64, step: u64, rewound_to: u64, silence: Duration) -> Self {
        let incident = Incident {
            kind: fault.kind().to_owned(),
            worker: fault.worker(),
            step,
            what: chain(fault),
            generation,
            rewound_to,
            detect_ms: silence.as_secs_f64() * 1e3,
            replace_ms: 0.0,
            restore_ms: 0.0,
            replay_ms: 0.0,
        };
        Self { incident, detected: Instant::now(), replaced: None, restored: None }
    }

    /// All workers are there.
    pub fn replaced(&mut self) {
        self.replaced.get_or_insert_with(Instant::now);
    }

    /// All workers have their weights.
    pub fn restored(&mut self) {
        self.restored.get_or_insert_with(Instant::now);
    }

    /// Whether the job is as far as it was, once `step` is committed.
    pub fn has_caught_up(&self, step: u64) -> bool {
        self.restored.is_some() && step >= self.incident.step
    }

    /// The record, when the job has caught up or has ended.
    pub fn end(self) -> Incident {
        let now = Instant::now();
        let (replaced, restored) = (self.replaced.unwrap_or(now), self.restored.unwrap_or(now));
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        let (replace_ms, restore_ms) = (ms(self.detected, replaced), ms(replaced, restored));
        let replay_ms = if self.incident.rewound_to < self.incident.step { ms(restored, now) } else { 0.0 };
        Incident { replace_ms, restore_ms, replay_ms, ..self.incident }
    }
}
