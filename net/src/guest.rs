//! An accepted connection: a socket whose bytes count as long as it is a stranger, and which fails when its stay is over.
//!
//! Not here: who is a stranger (`reception`), and what the bytes mean.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::fault::Fault;
use crate::reception::{Stay, Visit};
use crate::socket::Socket;

/// What a stranger may send at once, in bytes: an introduction, with what HTTP/2 needs, has at most a quarter of that.
pub(crate) const ALLOWANCE: usize = 64 << 10;
/// What it may send later, in bytes per second: a few health checks.
pub(crate) const ALLOWANCE_PER_SECOND: usize = 4 << 10;

/// The first byte of a client of TLS (RFC 8446, section 5.1). No protocol of Convoy begins with it.
const HANDSHAKE: u8 = 22;

/// An accepted connection.
#[derive(Debug)]
pub struct Guest {
    socket: Socket,
    stay: Stay,
    allowance: Allowance,
    has_read: bool,
}

/// How many bytes a stranger may still send.
#[derive(Debug)]
struct Allowance {
    left: usize,
    since: Instant,
}

impl Allowance {
    fn whole(now: Instant) -> Self {
        Self { left: ALLOWANCE, since: now }
    }

    /// Takes bytes. Returns whether they were allowed.
    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.since).as_millis() as usize * ALLOWANCE_PER_SECOND / 1000;
        if earned > 0 {
            *self = Self { left: self.left.saturating_add(earned).min(ALLOWANCE), since: now };
        }
        let left = self.left.checked_sub(bytes);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

impl Guest {
    /// A connection for as long as its stay lasts.
    pub(crate) fn new(socket: Socket, stay: Stay) -> Self {
        Self { socket, stay, allowance: Allowance::whole(Instant::now()), has_read: false }
    }

    /// Fails if the connection must be closed. Reading and writing both ask this: a peer that does not read can keep the server from reading,
    /// and then only the attempt to write can end the connection.
    fn check(&mut self, context: &mut Context<'_>) -> Result<()> {
        match self.stay.poll_ended(context) {
            Poll::Ready(()) => Err(Error::new(ErrorKind::ConnectionAborted, "it did not prove what it is")),
            Poll::Pending => Ok(()),
        }
    }

    /// Looks at the first bytes. A client of TLS at an address without TLS could only guess why its connection is closed, and this process tells.
    fn look(&mut self, bytes: &[u8]) {
        if !std::mem::replace(&mut self.has_read, true)
            && bytes.first() == Some(&HANDSHAKE)
            && !self.socket.is_encrypted()
        {
            self.stay.visit().fails(Some(Fault::Unexpected));
        }
    }

    /// Counts bytes that have arrived.
    fn count(&mut self, bytes: usize) -> Result<()> {
        let now = Instant::now();
        if self.stay.visit().is_member() {
            self.allowance = Allowance::whole(now);
        } else if !self.allowance.take(bytes, now) {
            return Err(Error::new(ErrorKind::ConnectionAborted, "it sent too much before it proved what it is"));
        }
        Ok(())
    }
}

impl Connected for Guest {
    type ConnectInfo = Visit;

    fn connect_info(&self) -> Visit {
        self.stay.visit().clone()
    }
}

impl AsyncRead for Guest {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let guest = self.get_mut();
        guest.check(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut guest.socket).poll_read(context, buffer))?;
        guest.look(&buffer.filled()[before..]);
        Poll::Ready(guest.count(buffer.filled().len() - before))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let guest = self.get_mut();
        guest.check(context)?;
        Pin::new(&mut guest.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let guest = self.get_mut();
        guest.check(context)?;
        Pin::new(&mut guest.socket).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let guest = self.get_mut();
        guest.check(context)?;
        Pin::new(&mut guest.socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let guest = self.get_mut();
        guest.check(context)?;
        Pin::new(&mut guest.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stranger_may_send_an_introduction_and_then_little() {
        let began = Instant::now();
        let mut allowance = Allowance::whole(began);
        assert!(allowance.take(ALLOWANCE / 2, began) && allowance.take(ALLOWANCE / 2, began));
        assert!(!allowance.take(1, began));
        assert!(allowance.take(ALLOWANCE_PER_SECOND, began + Duration::from_secs(1)));
        assert!(!allowance.take(1, began + Duration::from_secs(1)));
        assert!(!allowance.take(ALLOWANCE + 1, began + Duration::from_secs(3600)), "it does not grow without limit");
    }
}
