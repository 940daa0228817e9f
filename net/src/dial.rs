//! Opens connections to other processes.
//!
//! Not here: which process to connect to, how often and for how long to try (the worker decides), and what is said.

use std::io;

use convoy_common::address::Address;
use convoy_common::wire::tuning;
use tokio::net::{TcpStream, UnixStream};

use crate::fault::Fault;
use crate::socket::{Fate, Socket, buffered};
use crate::tls::{Protocol, Role, Tls};

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The network failed, or nobody listens there.
    #[error(transparent)]
    Network(#[from] io::Error),
    /// The other end can't be trusted, or does not use TLS.
    #[error(transparent)]
    Tls(#[from] Fault),
}

/// Connects to a process with one of these roles. Connections over TCP use TLS if there is an identity; Unix sockets never do.
///
/// # Errors
/// When nobody listens there, or the other end has no certificate that this process trusts. The other end checks the certificate of this
/// process later: then reading fails, and the `Fate` tells why.
pub async fn dial(
    address: &Address,
    roles: &[Role],
    protocol: Protocol,
    tls: Option<&Tls>,
) -> Result<(Socket, Fate), DialError> {
    let host = match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            check_owner(&stream)?;
            return Ok(Socket::unix(tuned(stream))?.watched());
        }
        Address::Tcp(host) => host,
    };
    let stream = TcpStream::connect(host.as_str()).await?;
    stream.set_nodelay(true)?;
    match tls {
        None => Ok(Socket::tcp(stream).watched()),
        Some(tls) => Ok(secured(stream, roles, protocol, tls).await?.watched()),
    }
}

/// Whoever can write to a folder can put a socket there, so the process that listens must be one of this user's, or the system's.
fn check_owner(stream: &UnixStream) -> io::Result<()> {
    const ROOT: u32 = 0;
    let (owner, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if owner == own || owner == ROOT {
        return Ok(());
    }
    let why = format!(
        "the process there belongs to user {owner}; it must belong to user {own}, as this one does, or to root"
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// A Unix socket with a larger buffer. Without it, transfers are slower but still correct.
pub(crate) fn tuned(stream: UnixStream) -> UnixStream {
    let _ = socket2::SockRef::from(&stream).set_send_buffer_size(tuning::SOCKET_BUFFER);
    stream
}

async fn secured(stream: TcpStream, roles: &[Role], protocol: Protocol, tls: &Tls) -> Result<Socket, DialError> {
    let failed = |error| Fault::of_handshake(&error).map_or(DialError::Network(error), DialError::Tls);
    // The name is only for servers with several certificates. The connector knows the roles.
    let name = roles.first().copied().unwrap_or(Role::Coordinator).server_name().map_err(io::Error::other)?;
    let handshake = tls.connector(protocol, roles).connect(name, buffered(stream));
    Ok(Socket::tls(handshake.await.map_err(failed)?))
}
