//! What decides: who is in the cluster, what a step does, the exchanges, the data, the loss, checkpoints, and the run's
//! records.
//!
//! Not here: computing on activations (the worker), and printing (the program): what happens is told to an
//! [`observe::Observer`].
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod cluster;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod exchange;
pub mod job;
pub mod loss;
pub mod measure;
pub mod metrics;
pub mod observe;
pub mod order;
pub mod record;
pub mod step;
pub mod trace;
pub mod train;

pub use error::JobError;
