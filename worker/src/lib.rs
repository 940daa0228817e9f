//! The worker: towers with their state and segments, and the service that computes for a coordinator.
//!
//! Not here: arithmetic, which is in the kernels, and decisions. A worker does not know the data set or the schedule, and does not choose the workers to which it connects.

#![forbid(unsafe_code)]

mod engine;
mod memory;
mod metrics;
mod pixels;
mod probe;
mod rehearsal;
pub mod service;
mod tower;
mod vitals;

pub use convoy_kernels::isa::Isa;
pub use memory::Memory;
pub use metrics::Metrics;
pub use probe::Slow;
pub use rehearsal::Rehearsal;
pub use tower::{activations, bench, forecast};
