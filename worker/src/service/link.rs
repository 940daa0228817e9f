//! A connection between two workers. Each message is preceded by its length. Before a peer has proved who it is, messages are
//! short.
//!
//! A link does not use gRPC: it needs none of its features, and each limit is one constant here.
//!
//! Not here: who may connect (`peers`), and what is sent (`session`).

use std::io;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::links::ACKNOWLEDGED_WITHIN;
use convoy_common::wire::FRAME_BYTES_MAX;
use convoy_net::Socket;
use convoy_net::dial::{DialError, dial};
use convoy_net::tls::{Protocol, Role, Tls};
use convoy_proto::v1;
use prost::Message;
use prost::bytes::{BufMut, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::Receiver;
use tokio_stream::StreamExt;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

/// The largest message of a peer that has not proved who it is, in bytes.
const GREETING_BYTES_MAX: usize = 128;
/// Frames that wait are written together, up to about this many bytes.
const WRITTEN_TOGETHER: usize = 256 << 10;
/// When the system asks a silent machine whether it is there, and how often after that.
const ASK_AFTER: Duration = Duration::from_secs(2);
const ASK_AGAIN: u32 = 4;

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the connection was closed")]
    Closed,
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    #[error("it sent a message of more than {0} bytes")]
    TooLong(usize),
    #[error("another process listens there")]
    Stranger,
    #[error("it sent bytes that are not a message")]
    NoMessage(#[source] prost::DecodeError),
}

/// A connection to another worker.
pub(super) struct Link {
    pub(super) reading: Reading,
    pub(super) writing: Writing,
}

/// The incoming half of a link.
pub(super) struct Reading(FramedRead<Box<dyn AsyncRead + Send + Unpin>, LengthDelimitedCodec>);

/// The outgoing half of a link.
pub(super) struct Writing(Box<dyn AsyncWrite + Send + Unpin>);

impl Link {
    /// Connects to another worker.
    pub(super) async fn to(address: &Address, tls: Option<&Tls>) -> Result<Self, DialError> {
        let (socket, _) = dial(address, &[Role::Worker], Protocol::Exchange, tls).await?;
        Ok(Self::over(socket)?)
    }

    /// A link over an open connection.
    pub(super) fn over(socket: Socket) -> io::Result<Self> {
        if let Some(stream) = socket.as_tcp() {
            let socket = SockRef::from(stream);
            socket.set_tcp_keepalive(
                &TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_AFTER).with_retries(ASK_AGAIN),
            )?;
            socket.set_tcp_user_timeout(Some(ACKNOWLEDGED_WITHIN))?;
        }
        let (input, output) = socket.split();
        let codec = LengthDelimitedCodec::builder().max_frame_length(GREETING_BYTES_MAX).new_codec();
        Ok(Self { reading: Reading(FramedRead::new(input, codec)), writing: Writing(output) })
    }

    /// The peer has proved who it is, and may send frames.
    pub(super) fn trusted(mut self) -> Self {
        self.reading.0.decoder_mut().set_max_frame_length(FRAME_BYTES_MAX);
        self
    }
}

impl Reading {
    /// The next message.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<M, LinkError> {
        let bytes = match self.0.next().await {
            None => return Err(LinkError::Closed),
            Some(Ok(bytes)) => bytes,
            // The codec itself refuses nothing else.
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(LinkError::TooLong(self.0.decoder().max_frame_length()));
            }
            Some(Err(error)) => return Err(LinkError::Broken(error)),
        };
        // Frozen, a chunk's data stays a slice of this buffer.
        M::decode(bytes.freeze()).map_err(LinkError::NoMessage)
    }
}

impl Writing {
    /// Sends a message.
    pub(super) async fn send(&mut self, message: &impl Message) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        append(&mut buffer, message);
        self.write(&buffer).await
    }

    /// With TLS, bytes wait in a buffer until they are flushed.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// Sends frames until there are no more, or the link ends. The other half then learns why.
    pub(super) async fn send_all(mut self, mut frames: Receiver<v1::Frame>) {
        let mut buffer = BytesMut::new();
        while let Some(frame) = frames.recv().await {
            append(&mut buffer, &frame);
            while buffer.len() < WRITTEN_TOGETHER
                && let Ok(frame) = frames.try_recv()
            {
                append(&mut buffer, &frame);
            }
            if self.write(&buffer).await.is_err() {
                return;
            }
            buffer.clear();
        }
    }
}

fn append(buffer: &mut BytesMut, message: &impl Message) {
    let length = message.encoded_len();
    buffer.reserve(size_of::<u32>() + length);
    buffer.put_u32(length as u32);
    message.encode_raw(buffer);
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (Link, Link) {
        let (one, other) = tokio::net::UnixStream::pair().unwrap();
        (Link::over(Socket::unix(one).unwrap()).unwrap(), Link::over(Socket::unix(other).unwrap()).unwrap())
    }

    fn frame(bytes: usize) -> v1::Frame {
        let chunk = v1::Chunk { job: 1, data: vec![7; bytes].into(), ..v1::Chunk::default() };
        v1::Frame { frame: Some(v1::frame::Frame::Chunk(chunk)) }
    }

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent() {
        let (one, other) = pair().await;
        let (queue, frames) = tokio::sync::mpsc::channel(8);
        let sending = tokio::spawn(one.writing.send_all(frames));
        let mut reading = other.trusted().reading;
        for bytes in [1, 0, 256 << 10, 5] {
            queue.send(frame(bytes)).await.unwrap();
            assert_eq!(reading.next::<v1::Frame>().await.unwrap(), frame(bytes));
        }
        drop(queue);
        sending.await.unwrap();
        assert!(matches!(reading.next::<v1::Frame>().await, Err(LinkError::Closed)));
    }

    /// No length that a stranger claims is allocated, and no more than a frame after it has proved who it is.
    #[tokio::test]
    async fn messages_that_are_too_long_or_no_messages_are_refused() {
        for (length, is_trusted) in [(GREETING_BYTES_MAX + 1, false), (FRAME_BYTES_MAX + 1, true), (usize::MAX, true)] {
            let (mut one, other) = pair().await;
            one.writing.0.write_all(&(length as u32).to_be_bytes()).await.unwrap();
            let mut other = if is_trusted { other.trusted() } else { other };
            assert!(matches!(other.reading.next::<v1::Frame>().await, Err(LinkError::TooLong(_))), "{length}");
        }
        let (mut one, mut other) = pair().await;
        one.writing.0.write_all(&[0, 0, 0, 2, 255, 255]).await.unwrap();
        assert!(matches!(other.reading.next::<v1::Frame>().await, Err(LinkError::NoMessage(_))));
    }
}
