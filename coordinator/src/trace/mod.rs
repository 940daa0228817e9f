//! Where the time goes: what all processes recorded, on one clock ([`alignment`]), collected while a job runs
//! ([`Recorder`]), kept in `trace.json` ([`mod@file`]), accounted for ([`account`]),
//! drawn ([`page`]), and sent to those who want it live ([`otlp`]).
//!
//! Not here: what is recorded, which `convoy-common` says, and what the account looks like, which the program prints.

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

/// The coordinator's clock: nanoseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub fn starting() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since it was made.
    pub fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}
