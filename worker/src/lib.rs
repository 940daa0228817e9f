//! What computes: kernels, a tower's state and segments, and the service that holds towers for a coordinator.
//!
//! Not here: anything that decides. A worker doesn't know the data, the schedule, or the other workers.

#![deny(unsafe_code)]

mod engine;
mod kernels;
mod machine;
mod metrics;
mod probe;
pub mod service;
mod tower;

pub use kernels::isa::Isa;
pub use metrics::Metrics;
pub use probe::Slow;
pub use tower::{bench, forecast};
