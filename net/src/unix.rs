//! A Unix socket that wakes its thread only for what it waits for. The system reports such a socket as writable whenever the other end
//! reads, and each report wakes the thread that has asked for it. So the socket is registered for reading, and for writing only while a
//! write has to wait. In a small network, that is a third of all times that a thread wakes up.
//!
//! Not here: who may connect to it (`dial`, `listening`).

use std::io::{ErrorKind, IoSlice, Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// The most bytes that are read at once. They are set to zero before, as long as they are new.
const READ_MAX: usize = 64 << 10;

/// A connected Unix socket.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    reader: UnixReader,
    writer: UnixWriter,
}

/// The half that reads.
#[derive(Debug)]
pub(crate) struct UnixReader(Arc<AsyncFd<UnixStream>>);

/// The half that writes. The other end learns when it is dropped.
#[derive(Debug)]
pub(crate) struct UnixWriter {
    socket: Arc<AsyncFd<UnixStream>>,
    /// The same socket, registered for writing, while a write waits.
    waiting: Option<AsyncFd<UnixStream>>,
}

impl UnixSocket {
    /// From a socket of tokio. Must be called in a runtime.
    ///
    /// # Errors
    /// When it can't be registered.
    pub(crate) fn new(stream: tokio::net::UnixStream) -> Result<Self> {
        let socket = Arc::new(registered(stream.into_std()?, Interest::READABLE)?);
        let writer = UnixWriter { socket: socket.clone(), waiting: None };
        Ok(Self { reader: UnixReader(socket), writer })
    }

    /// The two halves, for two tasks.
    pub(crate) fn into_split(self) -> (UnixReader, UnixWriter) {
        (self.reader, self.writer)
    }
}

/// Has the system report what happens on a socket.
#[expect(
    deprecated,
    reason = "what replaces this is unsafe, for types whose descriptor may change; that of this one never does"
)]
fn registered(socket: UnixStream, interest: Interest) -> Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(socket, interest)
}

impl UnixWriter {
    /// Writes, and waits for room if there is none.
    fn poll(&mut self, context: &mut Context<'_>, write: impl Fn(&UnixStream) -> Result<usize>) -> Poll<Result<usize>> {
        loop {
            let written = match &self.waiting {
                None => write(self.socket.get_ref()),
                Some(socket) => {
                    match ready!(socket.poll_write_ready(context))?.try_io(|socket| write(socket.get_ref())) {
                        Ok(written) => written,
                        Err(_) => continue,
                    }
                }
            };
            match written {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let socket = self.socket.get_ref().try_clone()?;
                    self.waiting = Some(registered(socket, Interest::WRITABLE)?);
                }
                written => {
                    self.waiting = None;
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn shutdown(&self) -> Result<()> {
        self.socket.get_ref().shutdown(Shutdown::Write)
    }
}

impl Drop for UnixWriter {
    fn drop(&mut self) {
        // The other end may have closed it.
        let _ = self.shutdown();
    }
}

impl AsyncRead for UnixReader {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let room = buffer.initialize_unfilled_to(buffer.remaining().min(READ_MAX));
        loop {
            let mut socket = ready!(self.0.poll_read_ready(context))?;
            match socket.try_io(|socket| socket.get_ref().read(room)) {
                Ok(Ok(count)) => {
                    // The system reports bytes that come later, so there is no need to ask once more.
                    if 0 < count && count < room.len() {
                        socket.clear_ready();
                    }
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for UnixWriter {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.get_mut().poll(context, |mut socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.get_mut().poll(context, |mut socket| socket.write_vectored(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(self.shutdown())
    }
}

impl AsyncRead for UnixSocket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

impl AsyncWrite for UnixSocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.writer).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.writer).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    fn pair() -> (UnixSocket, UnixSocket) {
        let (one, other) = tokio::net::UnixStream::pair().unwrap();
        (UnixSocket::new(one).unwrap(), UnixSocket::new(other).unwrap())
    }

    /// Far more than the system keeps for a socket, so that writes wait again and again, in pieces of many sizes.
    #[tokio::test]
    async fn all_bytes_arrive_in_order_however_often_a_write_waits() {
        let (one, other) = pair();
        let ((mut input, _kept), (_, mut output)) = (one.into_split(), other.into_split());
        let sent: Vec<u8> = (0..8_000_003_u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            let mut rest = &sent[..];
            let mut size = 1;
            while !rest.is_empty() {
                let count = output.write(&rest[..size.min(rest.len())]).await.unwrap();
                rest = &rest[count..];
                size = size * 7 % 300_007 + 1;
            }
            output
        });
        let mut received = Vec::new();
        while received.len() < expected.len() {
            let mut piece = vec![0; 1 + received.len() % 200_000];
            let count = input.read(&mut piece).await.unwrap();
            assert!(count > 0, "the connection ended after {} bytes", received.len());
            received.extend_from_slice(&piece[..count]);
        }
        assert!(received == expected, "bytes were changed on the way");
        // Nothing waits any more, and the end of the other half arrives.
        assert!(writing.await.unwrap().waiting.is_none());
        assert_eq!(input.read(&mut [0; 9]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_write_waits_for_room_and_fails_when_the_other_end_is_gone() {
        let (one, mut other) = pair();
        let (_input, mut output) = one.into_split();
        let block = vec![7; 1 << 20];
        // The system keeps less than this.
        let filled = timeout(Duration::from_millis(100), async {
            for _ in 0..64 {
                output.write_all(&block).await.unwrap();
            }
        });
        assert!(filled.await.is_err() && output.waiting.is_some(), "64 MB fit into the socket");
        let mut piece = vec![0; 1 << 20];
        other.read_exact(&mut piece).await.unwrap();
        drop(other);
        let failed = timeout(Duration::from_secs(600), output.write_all(&vec![7; 64 << 20])).await.unwrap();
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_read_waits_and_sees_what_comes_later() {
        let (mut one, mut other) = pair();
        for round in 0..1000_u32 {
            let mut bytes = [0; 4];
            let reading = async {
                one.read_exact(&mut bytes).await.unwrap();
            };
            let writing = async {
                tokio::task::yield_now().await;
                other.write_all(&round.to_le_bytes()).await.unwrap();
            };
            timeout(Duration::from_secs(600), async { tokio::join!(reading, writing) }).await.unwrap();
            assert_eq!(bytes, round.to_le_bytes());
        }
    }
}
