//! What could go wrong with a job, found before it begins: on this machine, at the addresses that it listens on or connects to, and on
//! the way to each worker.
//!
//! Each check returns [`Finding`]s: what was looked at, what was found, and what to do. No check changes anything.
//!
//! Not here: printing (the program), and measuring the connections to workers (`convoy_coordinator::examine`).
#![forbid(unsafe_code)]

pub mod addresses;
mod finding;
pub mod health;
pub mod machine;
pub mod names;
pub mod tls;
pub mod workers;

pub use finding::{Finding, Verdict};
