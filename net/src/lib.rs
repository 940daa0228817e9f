//! Connections between processes: opened, accepted, and encrypted. How many accepted ones may stay, for how long, and how much they may send
//! before they have proved what they are.
//!
//! Everybody who can reach an address can open connections to it. A *stranger* is a connection that has proved nothing yet. It may send a
//! few kilobytes, and is closed after some seconds, or earlier if too many others come. So strangers never use up the memory or the
//! descriptors of the process, and they never keep others out for long.
//!
//! With TLS, both ends of a connection show a certificate. Without it, bytes are plain.
//!
//! Not here: what proves that a connection belongs to a job (the coordinator and the worker decide), and what is said.
#![forbid(unsafe_code)]

pub mod authority;
pub mod dial;
pub mod fault;
pub mod grpc;
mod guest;
pub mod listening;
pub mod reception;
mod room;
pub mod secrets;
mod socket;
pub mod tls;
mod unix;

pub use guest::Guest;
pub use socket::{Fate, Socket};
