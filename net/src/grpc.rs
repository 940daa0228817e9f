//! The two ends of gRPC: the server of an address, which limits the requests of a connection, with the standard health service; and a channel
//! over one connection.
//!
//! Not here: the services of Convoy, and what is healthy (the coordinator and the worker decide).

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

use crate::Socket;
use crate::reception::Visit;

/// The most requests of a connection at once. A worker has one on each of its connections.
pub(crate) const REQUESTS_MAX: u32 = 4;
/// The longest message of a health check, which holds the name of a service.
pub(crate) const HEALTH_BYTES_MAX: usize = 1 << 10;

/// The host that requests name. The connection is open already, so nobody looks it up.
const AUTHORITY: &str = "convoy.internal";

/// A server with these limits.
pub fn server() -> Server {
    Server::builder().max_concurrent_streams(REQUESTS_MAX)
}

/// The health service, and who tells it what is healthy. Everybody may ask.
pub fn health() -> (HealthReporter, HealthServer<impl Health>) {
    let reporter = HealthReporter::new();
    let service = Visited(HealthService::from_health_reporter(reporter.clone()));
    (reporter, HealthServer::new(service).max_decoding_message_size(HEALTH_BYTES_MAX))
}

/// A channel over one connection. It ends with the connection.
///
/// # Errors
/// When the first bytes can't be sent.
pub async fn channel(
    socket: Socket,
    tune: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, tonic::transport::Error> {
    let scheme = if socket.is_encrypted() { "https" } else { "http" };
    let origin = Endpoint::from_shared(format!("{scheme}://{AUTHORITY}"))?;
    // The connection is open already, so the scheme of this address means nothing.
    let endpoint = Endpoint::from_shared(format!("http://{AUTHORITY}"))?.origin(origin.uri().clone());
    let mut socket = Some(socket);
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
        async move { socket.map(TokioIo::new) }
    });
    tune(endpoint).connect_with_connector(connector).await
}

/// A health service that notes who has asked a whole question. Such a connection has no deadline.
struct Visited<H>(H);

fn note<T>(request: &Request<T>) {
    if let Some(visit) = request.extensions().get::<Visit>() {
        visit.visits();
    }
}

#[tonic::async_trait]
impl<H: Health> Health for Visited<H> {
    type WatchStream = H::WatchStream;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        note(&request);
        self.0.check(request).await
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        note(&request);
        self.0.watch(request).await
    }
}
