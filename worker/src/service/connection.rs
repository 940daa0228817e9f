//! Connects to a coordinator over TCP or a Unix socket, with the same settings for both.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::token::Token;
use convoy_common::wire::{CONTROL_BYTES_MAX, FRAME_BYTES_MAX, tuning};
use convoy_proto::v1::coordinator_client::CoordinatorClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The system's own limit is far longer when no DNS server answers.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// One of the places that addresses resolve to. A name may resolve to several coordinators, and both connections of a
/// worker must go to the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp(address) => address.fmt(f),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The places that addresses resolve to, in the same order on every worker.
///
/// # Errors
/// When no address resolves: the first one that does not, and why.
pub(super) async fn places(addresses: &[Address]) -> Result<Vec<Place>, (Address, std::io::Error)> {
    let (mut places, mut unknown) = (Vec::new(), None);
    for address in addresses {
        match resolved(address).await {
            Ok(found) => places.extend(found),
            Err(error) => unknown = unknown.or(Some((address.clone(), error))),
        }
    }
    places.sort();
    places.dedup();
    match unknown {
        Some(unknown) if places.is_empty() => Err(unknown),
        _ => Ok(places),
    }
}

async fn resolved(address: &Address) -> std::io::Result<Vec<Place>> {
    match address {
        Address::Tcp(host) => {
            let found = timeout(LOOK_UP_TIMEOUT, tokio::net::lookup_host(host.as_str()));
            Ok(found.await.map_err(|_| late())??.map(Place::Tcp).collect())
        }
        Address::Unix(path) => Ok(vec![Place::Unix(path.clone())]),
    }
}

fn late() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {LOOK_UP_TIMEOUT:?}"))
}

/// A gRPC client that sends the token with each call.
pub(super) type Client = CoordinatorClient<InterceptedService<Channel, Introduction>>;

/// Adds the token to each call, if there is one.
#[derive(Clone)]
pub(super) struct Introduction(Option<Token>);

impl Interceptor for Introduction {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let header =
                token.header().parse().map_err(|_| Status::internal("the token cannot be sent in an HTTP header"))?;
            request.metadata_mut().insert("authorization", header);
        }
        Ok(request)
    }
}

/// Opens a new connection. Control and tensors never share one.
pub(super) async fn connect(place: &Place, token: Option<&Token>) -> Result<Client, tonic::transport::Error> {
    let channel = match place {
        Place::Tcp(address) => tuned(Endpoint::from_shared(format!("http://{address}"))?).connect().await?,
        Place::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { open_unix(&path).await.map(TokioIo::new) }
            });
            // The connector ignores the URI and uses the path.
            tuned(Endpoint::from_static("http://unix.invalid")).connect_with_connector(connector).await?
        }
    };
    let client = CoordinatorClient::with_interceptor(channel, Introduction(token.cloned()));
    Ok(client.max_decoding_message_size(CONTROL_BYTES_MAX.max(FRAME_BYTES_MAX)))
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(tuning::STREAM_WINDOW)
        .initial_connection_window_size(tuning::CONNECTION_WINDOW)
        .max_frame_size(tuning::FRAME)
}

async fn open_unix(path: &Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(path).await?;
    // With a smaller buffer, transfers are slower but still correct.
    let _ = socket2::SockRef::from(&stream).set_send_buffer_size(tuning::SOCKET_BUFFER);
    Ok(stream)
}
