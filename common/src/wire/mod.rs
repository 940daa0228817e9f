//! The boundary between what travels and what we mean: every message as a domain value, checked on the way in. The only
//! place that names generated types beside domain types.
//!
//! Not here: sockets, and whether a message fits the job at hand (its receiver knows).

mod control;
mod fit;
mod tensor;
mod trace;

pub use control::{Assignment, Failure, FailureKind, FromWorker, Hello, Pong, ToWorker};
pub use fit::expected_shape;
pub use tensor::{
    Assembler, CHUNK_BYTES, CONTROL_BYTES_MAX, Chunk, Direction, Elements, FRAME_BYTES_MAX, Payload, State, TensorKey,
};
pub use tensor::{chunk_from_frame, chunk_to_frame, frames, open_frame, session_from_frame};
pub use trace::{Recorded, SPANS_MAX};

/// HTTP/2 windows and frames, the same on both sides: the receiver's setting governs the sender. Measured: larger frames
/// without larger windows gain nothing.
pub mod tuning {
    use std::time::Duration;

    /// Bytes that one stream may have on the way.
    pub const STREAM_WINDOW: u32 = 16 << 20;
    /// Bytes that one connection may have on the way.
    pub const CONNECTION_WINDOW: u32 = 64 << 20;
    /// Bytes of an HTTP/2 frame.
    pub const FRAME: u32 = 256 << 10;
    /// Send buffer of a Unix socket: the system's default is smaller than a chunk.
    pub const SOCKET_BUFFER: usize = 4 << 20;
    /// A silent peer is asked this often whether it lives,
    pub const PING_EVERY: Duration = Duration::from_millis(500);
    /// and is given up after so long without an answer: a stopped process is found within five seconds.
    pub const PING_TIMEOUT: Duration = Duration::from_secs(3);
}

/// A message that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum WireError {
    /// A field that must be there isn't.
    #[error("a message without \"{0}\"")]
    Missing(&'static str),
    /// A field has a value that can't be.
    #[error("a message whose \"{field}\" is {value}; {expected}")]
    Value {
        field: &'static str,
        value: String,
        expected: &'static str,
    },
    /// The bytes of a chunk aren't those that were sent.
    #[error("a chunk of {key} at byte {offset} has checksum {found:#010x}, and its header says {stated:#010x}")]
    Checksum {
        key: String,
        offset: u64,
        found: u32,
        stated: u32,
    },
    /// The chunk doesn't go on where the last one ended, or runs over the tensor's end.
    #[error("a chunk of {key} at byte {offset} of {length} bytes, where {expected} of {total} had come")]
    Offset {
        key: String,
        offset: u64,
        length: usize,
        expected: usize,
        total: usize,
    },
    /// The tensor has another shape than the plan says.
    #[error("{key} came with shape {found:?}; the plan says {expected:?}")]
    Shape {
        key: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    /// More tensors are under way at once than the job has.
    #[error("{key} of {bytes} bytes came while others were under way; together at most {limit} bytes may be")]
    Flood {
        key: String,
        bytes: usize,
        limit: usize,
    },
    /// The system has no memory for a tensor.
    #[error("no memory for {key} of {bytes} bytes")]
    Memory {
        key: String,
        bytes: usize,
    },
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing(field))
}

/// Zero is proto3's "not set".
fn nonzero(field: &'static str, value: u64) -> Result<u64, WireError> {
    if value == 0 { Err(WireError::Missing(field)) } else { Ok(value) }
}

/// What somebody else says, for a person to read: a line without control characters, which a terminal would obey.
pub fn printable(text: &str) -> String {
    let shown = |character: char| match character {
        '\n' | '\t' => ' ',
        other if other.is_control() => char::REPLACEMENT_CHARACTER,
        other => other,
    };
    text.chars().map(shown).collect()
}
