//! Traces: what all processes recorded, on one clock ([`alignment`]). It is collected while a job runs ([`Recorder`]), written to
//! `trace.json` ([`mod@file`]), summed up in an account ([`account`]), drawn as a page ([`page`]), and sent to receivers of the
//! OpenTelemetry protocol ([`otlp`]).
//!
//! Not here: what is recorded (`convoy-common`), and printing the account (the program).

pub mod account;
pub mod alignment;
pub mod file;
pub mod otlp;
pub mod page;
mod recorder;
mod sampling;

use std::time::Instant;

pub use recorder::{Recorder, Recording};
pub use sampling::Sampling;

/// The coordinator's clock: nanoseconds since its start.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub fn starting() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the clock started.
    pub fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}
