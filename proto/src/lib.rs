//! What is said between coordinator and workers: the generated messages and services, and the protocol's version.
//! Nothing else: whether a message makes sense is for `convoy-common`'s wire module to say.
#![forbid(unsafe_code)]

/// Both sides must name the same version before anything else is said. Raise it with any change that an older program
/// would misread or miss.
pub const PROTOCOL_VERSION: u32 = 2;

/// What a worker is called in health checks. A coordinator goes by its service's name; a worker has no service of its own.
pub const WORKER_SERVICE: &str = "convoy.v1.Worker";

/// Version 1 of the messages, generated.
pub mod v1 {
    tonic::include_proto!("convoy.v1");
}
