//! An address on which this process listens, and the connections that arrive there.
//!
//! Not here: which of them may stay (`reception`).

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::wire::tuning;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::channel;
use tokio::time::{Instant, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;

use crate::guest::{Guest, Socket};
use crate::reception::Reception;

/// How often strangers are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
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
    pub fn guests(self, reception: Reception) -> ReceiverStream<Result<Guest, Infallible>> {
        let (guests, arriving) = channel(1);
        tokio::spawn(async move {
            let (mut look, mut complained) = (interval(LOOK_EVERY), None::<Instant>);
            loop {
                let accepted = tokio::select! {
                    () = guests.closed() => return,
                    _ = look.tick() => {
                        reception.look();
                        continue;
                    }
                    accepted = self.accept(&reception) => accepted,
                };
                match accepted {
                    Ok(socket) => {
                        if guests.send(Ok(Guest::new(socket, &reception))).await.is_err() {
                            return;
                        }
                    }
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

    async fn accept(&self, reception: &Reception) -> io::Result<Socket> {
        reception.has_room().await;
        // Without these settings, a connection is slower but still works.
        match self {
            Listening::Tcp(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok(Socket::Tcp(stream))
            }
            Listening::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let _ = socket2::SockRef::from(&stream).set_send_buffer_size(tuning::SOCKET_BUFFER);
                Ok(Socket::Unix(stream))
            }
        }
    }
}
