//! An accepted socket.
//!
//! Not here: whether it may stay open (`reception`).

use tokio::net::{TcpStream, UnixStream};

/// An accepted socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}
