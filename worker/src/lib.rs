//! The worker: kernels, towers with their state and segments, and the service that computes for a coordinator.
//!
//! Not here: decisions. A worker does not know the data set or the schedule, and does not choose the workers to which it connects.

#![deny(unsafe_code)]

mod engine;
mod kernels;
mod machine;
mod metrics;
mod pixels;
mod probe;
mod rehearsal;
pub mod service;
mod tower;
mod vitals;

pub use kernels::isa::Isa;
pub use metrics::Metrics;
pub use probe::Slow;
pub use rehearsal::Rehearsal;
pub use tower::{activations, bench, forecast};
