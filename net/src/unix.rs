//! A Unix socket that wakes its thread only for what it waits for. The system reports such a socket as writable whenever the other end
//! reads, and each report wakes the thread that has asked for it. So the socket is registered for reading, and for writing only while a
//! write waits.
//!
//! Not here: who may connect to it (`dial`, `listening`).

use std::io::{ErrorKind, IoSlice, Read, Result, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::task::coop::poll_proceed;

/// The most bytes that are read at once. They are set to zero first, because safe code can't read into memory that is not.
const READ_MAX: usize = 64 << 10;

/// A connected Unix socket.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    reader: UnixReader,
    writer: UnixWriter,
}

/// The half that reads.
#[derive(Debug)]
pub(crate) struct UnixReader(AsyncFd<UnixStream>);

/// The half that writes. The other end learns when it is dropped.
#[derive(Debug)]
pub(crate) struct UnixWriter {
    /// The same socket under a descriptor of its own, because a descriptor can be registered only once.
    socket: Arc<UnixStream>,
    /// Its registration, while a write waits.
    waiting: Option<AsyncFd<Arc<UnixStream>>>,
}

impl UnixSocket {
    /// From a socket of tokio. Must be called in a runtime.
    ///
    /// # Errors
    /// When there are too many open files.
    pub(crate) fn new(stream: tokio::net::UnixStream) -> Result<Self> {
        let stream = stream.into_std()?;
        let writer = UnixWriter { socket: Arc::new(stream.try_clone()?), waiting: None };
        Ok(Self { reader: UnixReader(registered(stream, Interest::READABLE)?), writer })
    }

    /// The two halves, for two tasks.
    pub(crate) fn into_split(self) -> (UnixReader, UnixWriter) {
        (self.reader, self.writer)
    }
}

/// Asks the system to report what happens on a socket.
#[expect(
    deprecated,
    reason = "what replaces this is unsafe, for types whose descriptor may change; that of a socket never does"
)]
fn registered<S: AsRawFd>(socket: S, interest: Interest) -> Result<AsyncFd<S>> {
    AsyncFd::with_interest(socket, interest)
}

impl UnixWriter {
    /// Writes, and waits for room if there is none.
    fn poll_with(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> Result<usize>,
    ) -> Poll<Result<usize>> {
        let turn = ready!(poll_proceed(context));
        loop {
            let written = match &self.waiting {
                None => write(&self.socket),
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
                    self.waiting = Some(registered(self.socket.clone(), Interest::WRITABLE)?);
                }
                written => {
                    self.waiting = None;
                    turn.made_progress();
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn shutdown(&self) -> Result<()> {
        self.socket.shutdown(Shutdown::Write)
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
        loop {
            let mut socket = ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled_to(buffer.remaining().min(READ_MAX));
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
        self.get_mut().poll_with(context, |mut socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.get_mut().poll_with(context, |mut socket| socket.write_vectored(bytes))
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
    use std::sync::atomic::{AtomicUsize, Ordering};
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

    /// How often a thread wakes up that sends a byte and waits for the answer, so many times.
    fn wakes<S: AsyncRead + AsyncWrite + Unpin>(
        rounds: usize,
        open: impl FnOnce(tokio::net::UnixStream) -> S,
    ) -> usize {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let answering = std::thread::spawn(move || {
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() {
                // Meanwhile, the system could report that there is room again.
                std::thread::sleep(Duration::from_millis(1));
                far.write_all(&byte).unwrap();
            }
        });
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let unparked = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        builder.enable_io().on_thread_unpark(unparked);
        builder.build().unwrap().block_on(async {
            let mut socket = open(tokio::net::UnixStream::from_std(near).unwrap());
            for _ in 0..rounds {
                socket.write_all(&[7]).await.unwrap();
                assert_eq!(socket.read_u8().await.unwrap(), 7);
            }
        });
        answering.join().unwrap();
        woken.load(Ordering::Relaxed)
    }

    #[test]
    fn a_thread_does_not_wake_up_when_the_other_end_reads() {
        const ROUNDS: usize = 200;
        let ours = wakes(ROUNDS, |stream| UnixSocket::new(stream).unwrap());
        assert!(ours <= ROUNDS + 5, "{ours} times for {ROUNDS} answers");
        // A socket of tokio is always registered for both.
        let others = wakes(ROUNDS, |stream| stream);
        assert!(others > ROUNDS + 5, "{others} times for {ROUNDS} answers");
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
        let mut piece = [0; 1 << 10];
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
