//! Converts between generated messages and domain values, and checks every message that arrives. No other module uses
//! generated message types together with domain types.
//!
//! Not here: sockets, and whether a message fits the current state of the job, which its receiver checks.

mod control;
mod fit;
mod peer;
mod tensor;
mod trace;

pub use control::{Assignment, Doing, Failure, FailureKind, FromWorker, Hello, Numbered, Pong, ToWorker};
pub use fit::expected_shape;
pub use peer::{Carried, Peer, PeerFailed, PeerFailure, PeerHello, Secret, Tally};
pub use tensor::{
    Assembler, CHUNK_BYTES, CONTROL_BYTES_MAX, Chunk, Direction, Elements, FRAME_BYTES_MAX, Generation, Payload, State,
    TensorKey,
};
pub use tensor::{chunk_from_frame, chunk_to_frame, frames, open_frame, session_from_frame};
pub use trace::{Recorded, SPANS_MAX};

/// HTTP/2 windows and frames, the same on both sides, because the receiver's setting limits the sender. Measured: larger
/// frames without larger windows gain nothing.
pub mod tuning {
    use std::time::Duration;

    /// Flow-control window of a stream, in bytes.
    pub const STREAM_WINDOW: u32 = 16 << 20;
    /// Flow-control window of a connection, in bytes.
    pub const CONNECTION_WINDOW: u32 = 64 << 20;
    /// Bytes of an HTTP/2 frame.
    pub const FRAME: u32 = 256 << 10;
    /// Send buffer of a Unix socket, in bytes. The system's default is smaller than a chunk.
    pub const SOCKET_BUFFER: usize = 4 << 20;
    /// Interval of the coordinator's HTTP/2 pings to a silent worker. Workers send none: servers of other gRPC libraries close connections
    /// whose clients ping more often than every five minutes.
    pub const PING_EVERY: Duration = Duration::from_millis(500);
    /// The coordinator sends a worker a message at least this often.
    pub const MESSAGE_EVERY: Duration = Duration::from_secs(10);
    /// A worker leaves a coordinator that sends it no message for this long. A busy host can stall a virtual machine for several seconds,
    /// which must not end a connection.
    pub const SILENCE_MAX: Duration = Duration::from_secs(30);
}

use crate::address::Address;
use crate::text::{DESCRIPTION_MAX, NAME_MAX, brief};

/// A malformed message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum WireError {
    /// A required field is missing.
    #[error("the message lacks \"{0}\"")]
    Missing(&'static str),
    /// A field has a value that is not allowed.
    #[error("the message's \"{field}\" is {value}; {expected}")]
    Value { field: &'static str, value: String, expected: &'static str },
    /// A chunk was damaged in transit.
    #[error("a chunk of {key} at byte {offset} has checksum {found:#010x}; its header says {stated:#010x}")]
    Checksum { key: String, offset: u64, found: u32, stated: u32 },
    /// The chunk does not start where the previous one ended, or it exceeds the tensor.
    #[error(
        "a chunk of {key} has {length} bytes at byte {offset}; must start at byte {expected} and end at byte {total} or before"
    )]
    Offset { key: String, offset: u64, length: usize, expected: usize, total: usize },
    /// The tensor's shape differs from the plan's.
    #[error("{key} has shape {found:?}; the plan requires {expected:?}")]
    Shape { key: String, found: Vec<usize>, expected: Vec<usize> },
    /// More bytes arrive at once than any job of this plan sends.
    #[error("{key} of {bytes} bytes would exceed the limit of {limit} bytes for all incomplete tensors")]
    Flood { key: String, bytes: usize, limit: usize },
    /// The system refused to allocate memory for a tensor.
    #[error("cannot allocate {bytes} bytes for {key}")]
    Memory { key: String, bytes: usize },
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing(field))
}

/// The number of a step. With this limit, no arithmetic on steps overflows.
fn step_from(step: u64) -> Result<u64, WireError> {
    const STEPS_MAX: u64 = 1 << 48;
    if step <= STEPS_MAX {
        return Ok(step);
    }
    Err(WireError::Value { field: "step", value: step.to_string(), expected: "it must be at most 2^48" })
}

/// Zero means "not set" in proto3.
fn nonzero(field: &'static str, value: u64) -> Result<u64, WireError> {
    if value == 0 { Err(WireError::Missing(field)) } else { Ok(value) }
}

/// Where a worker listens.
fn address_from(field: &'static str, text: &str) -> Result<Address, WireError> {
    let expected = "it must be HOST:PORT or unix:PATH";
    text.parse().map_err(|_| WireError::Value { field, value: name_from(text), expected })
}

/// A short text of another process, such as the name of its machine.
pub fn name_from(text: &str) -> String {
    brief(text, NAME_MAX)
}

/// A longer text of another process, such as the reason why it ends a job.
pub fn description_from(text: &str) -> String {
    brief(text, DESCRIPTION_MAX)
}
