//! Connections that are accepted from the network: how many may stay, for how long, and how much they may send before they have proved
//! what they are.
//!
//! Everybody who can reach an address can open connections to it. A *stranger* is a connection that has proved nothing yet. It may send a
//! few kilobytes, and is closed after some seconds, or earlier if too many others come. So strangers never use up the memory or the
//! descriptors of the process, and they never keep others out for long.
//!
//! Not here: what proves that a connection belongs to a job (the coordinator and the worker decide), and connections to others.
#![forbid(unsafe_code)]

pub mod grpc;
mod guest;
pub mod listening;
pub mod reception;
mod room;
mod socket;

pub use guest::Guest;
pub use socket::Socket;
