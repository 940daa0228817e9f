//! Random numbers that others cannot guess: for sessions, jobs, and names that must be unique across processes and containers.
//!
//! Not here: the random numbers of training, which follow from the job's seed (`convoy_common::random`).

use std::hash::{BuildHasher, Hasher, RandomState};

/// A number that others cannot guess. The system seeds the standard library's hasher.
pub(crate) fn unguessable() -> u64 {
    RandomState::new().build_hasher().finish()
}
