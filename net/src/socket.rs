//! A socket: TCP, TLS over TCP, or a Unix socket. Errors of TLS say what to change.
//!
//! Not here: whether an accepted socket may stay open (`reception`), and how sockets are opened (`dial`, `listening`).

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use crate::fault::Fault;
use crate::unix::UnixSocket;

/// The first byte of an alert of TLS (RFC 8446, section 5.1). No protocol of Convoy begins with it.
const ALERT: u8 = 21;

/// Bytes below TLS that are read together: two of its records.
const READ_TOGETHER: usize = 32 << 10;

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    /// For sockets that this process has opened.
    watch: Option<Watch>,
}

/// A TCP connection below TLS. The TLS library reads four kilobytes at a time, which would be as many calls to the system.
pub(crate) type Buffered = BufReader<TcpStream>;

/// A TCP connection for TLS.
pub(crate) fn buffered(stream: TcpStream) -> Buffered {
    BufReader::with_capacity(READ_TOGETHER, stream)
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<Buffered>>),
    Unix(UnixSocket),
}

/// Why TLS failed at the other end of a socket, as soon as it is known: after the handshake of this end.
#[derive(Clone, Debug, Default)]
pub struct Fate(Arc<OnceLock<Fault>>);

impl Fate {
    /// Why TLS failed, if it did.
    pub fn fault(&self) -> Option<&Fault> {
        self.0.get()
    }
}

#[derive(Debug, Default)]
struct Watch {
    fate: Fate,
    has_read: bool,
}

impl Watch {
    /// Looks at bytes that have arrived without TLS. A server that requires TLS answers plain bytes with an alert.
    fn look(&mut self, bytes: &[u8]) -> Result<()> {
        if !std::mem::replace(&mut self.has_read, true) && bytes.first() == Some(&ALERT) {
            return Err(self.failed(Fault::RequiresTls));
        }
        Ok(())
    }

    fn failed(&self, fault: Fault) -> Error {
        // The first reason counts.
        let _ = self.fate.0.set(fault.clone());
        Error::other(fault)
    }
}

/// Carries out an operation on the stream of a socket, whatever its kind.
macro_rules! on_stream {
    ($socket:expr, $stream:ident => $operation:expr) => {
        match $socket {
            Stream::Tcp($stream) => $operation,
            Stream::Tls($stream) => $operation,
            Stream::Unix($stream) => $operation,
        }
    };
}

impl Socket {
    /// A TCP connection.
    pub(crate) fn tcp(stream: TcpStream) -> Self {
        Self { stream: Stream::Tcp(stream), watch: None }
    }

    /// A TLS connection, after the handshake.
    pub(crate) fn tls(stream: impl Into<TlsStream<Buffered>>) -> Self {
        Self { stream: Stream::Tls(Box::new(stream.into())), watch: None }
    }

    /// A connection over a Unix socket. Must be called in a runtime.
    ///
    /// # Errors
    /// When the system can't report what happens on it.
    pub fn unix(stream: UnixStream) -> Result<Self> {
        Ok(Self { stream: Stream::Unix(UnixSocket::new(stream)?), watch: None })
    }

    /// The same socket, and how TLS fares at its other end.
    pub(crate) fn watched(self) -> (Self, Fate) {
        let watch = Watch::default();
        let fate = watch.fate.clone();
        (Self { watch: Some(watch), ..self }, fate)
    }

    /// The TCP connection below, if there is one.
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Tcp(stream) => Some(stream),
            Stream::Tls(stream) => Some(stream.get_ref().0.get_ref()),
            Stream::Unix(_) => None,
        }
    }

    /// Whether it is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// The two halves of a socket, for two tasks.
    pub fn split(self) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>) {
        match self.stream {
            Stream::Tcp(stream) => {
                let (input, output) = stream.into_split();
                match self.watch {
                    None => (Box::new(input), Box::new(output)),
                    Some(watch) => (Box::new(Watched { input, watch }), Box::new(output)),
                }
            }
            Stream::Unix(stream) => {
                let (input, output) = stream.into_split();
                (Box::new(input), Box::new(output))
            }
            tls @ Stream::Tls(_) => {
                let (input, output) = tokio::io::split(Self { stream: tls, watch: self.watch });
                (Box::new(input), Box::new(output))
            }
        }
    }

    /// What to make of an error of this socket; one of TLS says what to change.
    fn told(&self, error: Error) -> Error {
        match (Fault::of_io(&error), &self.watch) {
            (None, _) => error,
            (Some(fault), None) => Error::other(fault),
            (Some(fault), Some(watch)) => watch.failed(fault),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let socket = self.get_mut();
        let before = buffer.filled().len();
        let read = ready!(on_stream!(&mut socket.stream, stream => Pin::new(stream).poll_read(context, buffer)));
        match (read, &socket.stream) {
            (Ok(()), _) => {}
            // A process that is killed ends TCP and not TLS. Whatever TLS carries here has messages that tell whether they are whole.
            (Err(error), Stream::Tls(_)) if error.kind() == ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
            (Err(error), _) => return Poll::Ready(Err(socket.told(error))),
        }
        match (&socket.stream, &mut socket.watch) {
            (Stream::Tcp(_), Some(watch)) => Poll::Ready(watch.look(&buffer.filled()[before..])),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// The incoming half of a TCP connection that this process has opened.
struct Watched<I> {
    input: I,
    watch: Watch,
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let half = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut half.input).poll_read(context, buffer))?;
        Poll::Ready(half.watch.look(&buffer.filled()[before..]))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        on_stream!(&mut self.get_mut().stream, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        on_stream!(&mut self.get_mut().stream, stream => Pin::new(stream).poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        on_stream!(&self.stream, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        on_stream!(&mut self.get_mut().stream, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        on_stream!(&mut self.get_mut().stream, stream => Pin::new(stream).poll_shutdown(context))
    }
}
