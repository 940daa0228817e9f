//! The generated messages and services of the protocol between coordinator and workers, and the protocol's version.
//! Not here: checks of messages, which belong to the `wire` module of `convoy-common`.
#![forbid(unsafe_code)]

/// Version of the protocol. Both sides must have the same one. Raise it with any change that an older program would
/// misread or miss.
pub const PROTOCOL_VERSION: u32 = 12;

/// The name of a worker in health checks. A coordinator uses the name of its gRPC service; a worker has no service.
pub const WORKER_SERVICE: &str = "convoy.v1.Worker";

/// Version 1 of the messages, generated.
pub mod v1 {
    tonic::include_proto!("convoy.v1");
}
