//! The coordinator: it forms the cluster, drives steps, relays exchanges, loads data, computes the loss, and writes checkpoints
//! and records.
//!
//! Not here: computing activations (the worker), and printing (the program). Events go to an [`observe::Observer`].
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod cluster;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod exchange;
pub mod files;
pub mod job;
pub mod loss;
pub mod measure;
pub mod metrics;
pub mod observe;
pub mod order;
pub mod record;
pub mod state;
pub mod step;
pub mod trace;
pub mod train;
mod unguessable;

pub use error::JobError;
