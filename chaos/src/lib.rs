//! Runs a job under a storm of faults, and compares it with a calm run: the same job without faults. Both run as real processes of
//! the program.
//!
//! [`storm`] plans the faults. [`conductor`] runs a job and makes the faults happen. Its processes live at a [`place`]: this machine
//! ([`local`], with a [`proxy`] for each worker) or a container engine ([`compose`]). [`report`] compares the two runs, and says for each
//! fault whether it was found and named.
//!
//! Not here: recovery (the coordinator), what a worker does to itself (its rehearsal), and printing (the program).
#![forbid(unsafe_code)]

pub mod compose;
pub mod conductor;
mod engine;
pub mod error;
pub mod local;
pub mod place;
pub mod proxy;
pub mod report;
pub mod role;
pub mod storm;
