//! Runs a job under a storm of faults, and compares it with a calm twin: the same job without faults. Both run as real processes of
//! the program.
//!
//! [`storm`] plans the faults. [`conductor`] runs a job with its processes, through a [`proxy`] for each worker, and makes the faults
//! happen. [`report`] compares the two runs, and says for each fault whether it was found and named.
//!
//! Not here: recovery (the coordinator), what a worker does to itself (its rehearsal), and printing (the program).
#![forbid(unsafe_code)]

pub mod conductor;
pub mod proxy;
pub mod report;
pub mod storm;
