//! The coordinator: it forms the cluster, drives steps, relays exchanges, recovers from faults, loads data, computes the loss, and
//! writes checkpoints and records.
//!
//! Not here: computing activations (the worker), and printing (the program). Events go to an [`observe::Observer`].
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod cluster;
pub mod crew;
pub mod deadlines;
pub mod earlier;
pub mod error;
pub mod evaluate;
pub mod examine;
pub mod exchange;
pub mod fault;
pub mod files;
mod forward;
pub mod incident;
pub mod job;
pub mod lateness;
pub mod links;
pub mod loss;
pub mod measure;
pub mod metrics;
pub mod observe;
pub mod order;
pub mod outputs;
pub mod predict;
pub mod record;
pub mod recovery;
pub mod running;
pub mod silence;
pub mod state;
pub mod step;
pub mod stop;
mod tensorboard;
pub mod trace;
pub mod train;
mod unguessable;
pub mod weights;
pub mod wrong;

pub use error::JobError;
