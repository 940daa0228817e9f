//! An address on which this process listens, and the connections that arrive there. With TLS, each of them first completes a handshake.
//!
//! Not here: which of them may stay (`reception`), and which certificates are trusted (`tls`).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use convoy_common::address::Address;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use crate::dial::tuned;
use crate::fault::Fault;
use crate::guest::Guest;
use crate::reception::{Reception, Stay};
use crate::socket::{Buffered, Socket, buffered};
use crate::tls::{Protocol, Tls};

/// How often strangers whose time is over are closed.
const CLOSE_EVERY: Duration = Duration::from_millis(250);
/// The pause after a connection could not be accepted, for example because there are too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// A failure to accept connections is logged again after this.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// After a failed handshake, the connection stays open for this long, so that the other end can read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// What the other end may send meanwhile, in bytes.
const FAREWELL_BYTES: u64 = 64 << 10;

/// Connections that the system completes before this process accepts them, if its own limit allows as many. If there are more, the other
/// end tries again only after a second, so that a burst of strangers would keep others out. This many are accepted within a tenth of a second.
pub(crate) const BACKLOG: u32 = 1024;

/// A bound address.
#[derive(Debug)]
pub enum Listening {
    /// TCP, and the address with the real port.
    Tcp(TcpListener, String),
    /// A Unix socket.
    Unix(UnixListener, String),
}

impl Listening {
    /// Binds the address.
    ///
    /// # Errors
    /// When it is in use, or doesn't belong to this machine.
    pub async fn open(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(host) => {
                let listener = bound_to(host).await?;
                let bound = listener.local_addr()?.to_string();
                Ok(Listening::Tcp(listener, bound))
            }
            Address::Unix(path) => Ok(Listening::Unix(private_socket(path)?, address.to_string())),
        }
    }

    /// The address to connect to.
    pub fn address(&self) -> &str {
        match self {
            Listening::Tcp(_, address) | Listening::Unix(_, address) => address,
        }
    }

    /// The connections that arrive and that `reception` lets in, until the stream is dropped. Those over TCP use TLS if there is an
    /// identity. Must be called in a runtime.
    pub fn arrivals(
        self,
        reception: Reception,
        protocol: Protocol,
        tls: Option<&Tls>,
    ) -> ReceiverStream<(Socket, Stay)> {
        let (arrivals, arriving) = channel(1);
        let acceptor = tls.map(|tls| tls.acceptor(protocol));
        if acceptor.is_some() {
            reception.expect_handshakes();
        }
        tokio::spawn(async move {
            let mut complained = None::<Instant>;
            // Connections that the server does not have yet. They end with the address.
            let mut guided = JoinSet::new();
            let mut watch = interval(CLOSE_EVERY);
            watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                while guided.try_join_next().is_some() {}
                let accepted = tokio::select! {
                    () = arrivals.closed() => return,
                    _ = watch.tick() => {
                        reception.close_overdue();
                        continue;
                    }
                    accepted = self.accept(&reception) => accepted,
                };
                match accepted {
                    // Neither a handshake nor a slow server keeps the next connection waiting.
                    Ok(accepted) => drop(guided.spawn(guide(accepted, &reception, acceptor.clone(), arrivals.clone()))),
                    Err(error) => {
                        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
                            complained = Some(Instant::now());
                            tracing::warn!("cannot accept a connection at {}: {error}; trying again", self.address());
                        }
                        sleep(ACCEPT_AGAIN).await;
                    }
                }
            }
        });
        ReceiverStream::new(arriving)
    }

    /// The same connections, for a gRPC server.
    pub fn guests(
        self,
        reception: Reception,
        tls: Option<&Tls>,
    ) -> impl Stream<Item = Result<Guest, Infallible>> + Send + use<> {
        self.arrivals(reception, Protocol::Grpc, tls).map(|(socket, stay)| Ok(Guest::new(socket, stay)))
    }

    async fn accept(&self, reception: &Reception) -> io::Result<Accepted> {
        reception.has_room().await;
        match self {
            Listening::Tcp(listener, _) => {
                let (stream, peer) = listener.accept().await?;
                // Without this, a connection is slower but still works.
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tcp(stream, peer))
            }
            Listening::Unix(listener, _) => Ok(Accepted::Unix(Socket::unix(tuned(listener.accept().await?.0))?)),
        }
    }
}

/// A listener on the first address of `host` that can be bound.
async fn bound_to(host: &str) -> io::Result<TcpListener> {
    let mut failed = None;
    for address in tokio::net::lookup_host(host).await? {
        match listener(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A process that has just ended leaves connections in the system that would block its port for a minute.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A connection that has just been accepted.
enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(Socket),
}

/// A listening Unix socket to which only this user can connect.
fn private_socket(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    // Set before it has a path, so that there is no moment in which others could connect.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RWXU)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    socket.listen(BACKLOG as i32)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

/// Brings a connection from its acceptance to the server.
fn guide(
    accepted: Accepted,
    reception: &Reception,
    acceptor: Option<TlsAcceptor>,
    arrivals: Sender<(Socket, Stay)>,
) -> impl Future<Output = ()> + Send + use<> {
    let peer = if let Accepted::Tcp(_, peer) = &accepted { Some(*peer) } else { None };
    // Admitted before the next one is accepted, so that the limits count it.
    let stay = reception.admit(peer);
    async move {
        match (accepted, acceptor) {
            (Accepted::Unix(socket), _) => hand_over(&arrivals, socket, stay).await,
            (Accepted::Tcp(stream, _), None) => hand_over(&arrivals, Socket::tcp(stream), stay).await,
            (Accepted::Tcp(stream, _), Some(acceptor)) => secure(acceptor, stream, stay, &arrivals).await,
        }
    }
}

/// Hands a connection to the server, unless its stay ends before the server takes it.
async fn hand_over(arrivals: &Sender<(Socket, Stay)>, socket: Socket, mut stay: Stay) {
    let place = tokio::select! {
        () = stay.ended() => return,
        place = arrivals.reserve() => place,
    };
    // The server may have ended.
    if let Ok(place) = place {
        place.send((socket, stay));
    }
}

/// Completes the handshake of a connection, and hands it over. A connection that has not completed it is a stranger.
async fn secure(acceptor: TlsAcceptor, stream: TcpStream, mut stay: Stay, arrivals: &Sender<(Socket, Stay)>) {
    let finished = tokio::select! {
        () = stay.ended() => return,
        finished = handshake(acceptor, stream) => finished,
    };
    match finished {
        Ok(socket) => hand_over(arrivals, socket, stay).await,
        Err((fault, stream)) => {
            stay.visit().fails(fault);
            tokio::select! {
                () = stay.ended() => {}
                () = part(stream) => {}
            }
        }
    }
}

/// The handshake of this end. If it fails: why, unless the network did, and the connection.
pub(crate) async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> Result<Socket, (Option<Fault>, Buffered)> {
    match acceptor.accept(buffered(stream)).into_fallible().await {
        Ok(stream) => Ok(Socket::tls(stream)),
        Err((error, stream)) => Err((Fault::of_handshake(&error), stream)),
    }
}

/// Ends a connection in such a way that what was sent last is not lost: a socket that is closed with unread bytes is reset.
pub(crate) async fn part(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if stream.shutdown().await.is_ok() {
        let _ = tokio::time::timeout(FAREWELL, discard(stream.take(FAREWELL_BYTES))).await;
    }
}

async fn discard(mut stream: impl AsyncRead + Unpin) {
    let mut sink = tokio::io::sink();
    let _ = tokio::io::copy(&mut stream, &mut sink).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as 500 connections come at once, and nobody accepts any.
    #[tokio::test]
    async fn a_burst_of_connections_is_not_turned_away() {
        const PATIENCE: Duration = Duration::from_millis(900);
        let listening = Listening::open(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listening.address().parse().unwrap();
        let connect = |number| {
            let connected = std::net::TcpStream::connect_timeout(&address, PATIENCE);
            connected.unwrap_or_else(|error| panic!("connection {number} has to come again: {error}"))
        };
        let held: Vec<_> = (1..=500).map(connect).collect();
        assert_eq!(held.len(), 500);
    }
}
