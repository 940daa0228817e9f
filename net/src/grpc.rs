//! The gRPC server of an address: how many requests a connection may have at once, and the standard health service, whose messages are tiny.
//!
//! Not here: the services of Convoy, and what is healthy (the coordinator and the worker decide).

use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

use crate::reception::Visit;

/// The most requests of a connection at once. A worker has one on each of its connections.
pub(crate) const REQUESTS_MAX: u32 = 4;
/// The longest message of a health check, which holds the name of a service.
pub(crate) const HEALTH_BYTES_MAX: usize = 1 << 10;

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
