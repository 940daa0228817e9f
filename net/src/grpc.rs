//! The gRPC server of an address: how many requests a connection may have at once, and the standard health service, whose messages are tiny.
//!
//! Not here: the services of Convoy, and what is healthy (the coordinator and the worker decide).

use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::reception::Visit;

/// The most requests of a connection at once. A worker has one on each of its connections.
pub const REQUESTS_MAX: u32 = 4;
/// The longest message of a health check, which holds the name of a service.
pub const HEALTH_BYTES_MAX: usize = 1 << 10;

/// A server with these limits.
pub fn server() -> Server {
    Server::builder().max_concurrent_streams(REQUESTS_MAX)
}

/// The health service, and who tells it what is healthy. Everybody may ask.
pub fn health() -> (HealthReporter, InterceptedService<HealthServer<impl Health>, Visiting>) {
    let (reporter, service) = health_reporter();
    (reporter, InterceptedService::new(service.max_decoding_message_size(HEALTH_BYTES_MAX), Visiting))
}

/// Notes that a connection asks for the health: it has no deadline.
#[derive(Clone, Copy, Debug)]
pub struct Visiting;

impl Interceptor for Visiting {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(visit) = request.extensions().get::<Visit>() {
            visit.visits();
        }
        Ok(request)
    }
}
