//! Connects to a coordinator: which places its addresses resolve to, and the gRPC client. Not here: sockets and TLS (`convoy_net`).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::token::Token;
use convoy_common::wire::{CONTROL_BYTES_MAX, FRAME_BYTES_MAX, tuning};
use convoy_net::dial::{DialError, dial};
use convoy_net::secrets::Secrets;
use convoy_net::tls::{Protocol, Role};
use convoy_net::{Fate, grpc};
use convoy_proto::v1::coordinator_client::CoordinatorClient;
use tokio::time::timeout;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
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

impl Place {
    fn address(&self) -> Address {
        match self {
            Place::Tcp(address) => Address::Tcp(address.to_string()),
            Place::Unix(path) => Address::Unix(path.clone()),
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

/// Opens a new connection. Control and tensors never share one. The fate tells later whether the coordinator refuses this worker's
/// certificate.
pub(super) async fn connect(place: &Place, secrets: &Secrets) -> Result<(Client, Fate), DialError> {
    let late = |_| DialError::Network(std::io::ErrorKind::TimedOut.into());
    let address = place.address();
    let dialling = dial(&address, &[Role::Coordinator], Protocol::Grpc, secrets.tls.as_ref());
    let (socket, fate) = timeout(CONNECT_TIMEOUT, dialling).await.map_err(late)??;
    let broken = |error| DialError::Network(std::io::Error::other(error));
    let channel = grpc::channel(socket, tuned).await.map_err(broken)?;
    let client = CoordinatorClient::with_interceptor(channel, Introduction(secrets.token.clone()));
    Ok((client.max_decoding_message_size(CONTROL_BYTES_MAX.max(FRAME_BYTES_MAX)), fate))
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(tuning::STREAM_WINDOW)
        .initial_connection_window_size(tuning::CONNECTION_WINDOW)
        .max_frame_size(tuning::FRAME)
}
