//! Random numbers that others cannot guess: for sessions, jobs, and names that must be unique across processes and containers.
//!
//! Not here: the random numbers of training, which follow from the job's seed (`convoy_common::random`).

/// A number that others cannot guess, from the system's random number generator.
///
/// # Panics
/// When the system has none. Linux always has one.
pub(crate) fn unguessable() -> u64 {
    getrandom::u64().expect("the system has a random number generator")
}
