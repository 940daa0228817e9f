//! An address on which this process listens, and the connections that arrive there.
//!
//! Not here: which of them may stay (`reception`).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::wire::tuning;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::channel;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use crate::guest::Guest;
use crate::reception::{Reception, Stay};
use crate::socket::Socket;

/// How often strangers whose time is over are closed.
const CLOSE_EVERY: Duration = Duration::from_millis(250);
/// The pause after a connection could not be accepted, for example because there are too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// A failure to accept connections is logged again after this.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

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
                let listener = TcpListener::bind(host.as_str()).await?;
                let bound = listener.local_addr()?.to_string();
                Ok(Listening::Tcp(listener, bound))
            }
            Address::Unix(path) => Ok(Listening::Unix(UnixListener::bind(path)?, address.to_string())),
        }
    }

    /// The address to connect to.
    pub fn address(&self) -> &str {
        match self {
            Listening::Tcp(_, address) | Listening::Unix(_, address) => address,
        }
    }

    /// The connections that arrive and that `reception` lets in, until the stream is dropped. Must be called in a runtime.
    pub fn arrivals(self, reception: Reception) -> ReceiverStream<(Socket, Stay)> {
        let (arrivals, arriving) = channel(1);
        tokio::spawn(async move {
            let mut complained = None::<Instant>;
            let mut watch = interval(CLOSE_EVERY);
            watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let next = async { (arrivals.reserve().await, self.accept(&reception).await) };
                let accepted = tokio::select! {
                    () = arrivals.closed() => return,
                    _ = watch.tick() => {
                        reception.close_overdue();
                        continue;
                    }
                    accepted = next => accepted,
                };
                match accepted {
                    (Ok(place), Ok((socket, peer))) => place.send((socket, reception.admit(peer))),
                    (Err(_), _) => return,
                    (_, Err(error)) => {
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
    pub fn guests(self, reception: Reception) -> impl Stream<Item = Result<Guest, Infallible>> + Send {
        self.arrivals(reception).map(|(socket, stay)| Ok(Guest::new(socket, stay)))
    }

    async fn accept(&self, reception: &Reception) -> io::Result<(Socket, Option<SocketAddr>)> {
        reception.has_room().await;
        // Without these settings, a connection is slower but still works.
        match self {
            Listening::Tcp(listener, _) => {
                let (stream, peer) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok((Socket::Tcp(stream), Some(peer)))
            }
            Listening::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let _ = socket2::SockRef::from(&stream).set_send_buffer_size(tuning::SOCKET_BUFFER);
                Ok((Socket::Unix(stream), None))
            }
        }
    }
}
