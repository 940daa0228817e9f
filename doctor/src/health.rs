//! Asks a process how it is, by gRPC's standard health protocol.
//!
//! Not here: what the answer means (`addresses`, `convoy health`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use convoy_common::address::Address;
use convoy_common::wire::description_from;
use convoy_net::dial::{DialError, dial};
use convoy_net::fault::Fault;
use convoy_net::grpc;
use convoy_net::secrets::Secrets;
use convoy_net::tls::{Protocol, Role, Tls};
use convoy_proto::WORKER_SERVICE;
use convoy_proto::v1::FromWorker;
use convoy_proto::v1::coordinator_client::CoordinatorClient;
use convoy_proto::v1::coordinator_server::SERVICE_NAME as COORDINATOR_SERVICE;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// What a process has answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asked {
    /// What it is.
    pub role: Role,
    /// Whether it makes progress.
    pub is_alive: bool,
    /// Whether it has what it needs: a coordinator its workers.
    pub is_ready: bool,
    /// From a question to its answer.
    pub round_trip: Duration,
    /// The clock of its machine less that of this one, in seconds; the clock of the answer has whole seconds. None: it does not say.
    pub clock_ahead: Option<i64>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Unanswered {
    /// Its name can't be looked up.
    #[error("cannot look up {address}: {reason}")]
    Name { address: Address, reason: String },
    /// There is no connection.
    #[error(
        "cannot connect to {address}: {reason}; the process has not started, has ended, or uses another address (--health, --listen)"
    )]
    Nobody { address: Address, reason: String },
    /// TLS fails.
    #[error("cannot trust the process at {address}: {reason}")]
    Untrusted { address: Address, reason: Fault },
    /// There is no answer in time.
    #[error("{address} did not answer within {within:?}: it hangs, can't be reached, or is not Convoy")]
    Silent { address: Address, within: Duration },
    /// It is something else.
    #[error("the process at {address} is not a worker or a coordinator of Convoy: {reason}")]
    Stranger { address: Address, reason: String },
}

/// Asks a process. Returns within `within` for any address.
///
/// # Errors
/// When it does not answer, or not as a process of Convoy.
pub async fn ask(address: &Address, tls: Option<&Tls>, within: Duration) -> Result<Asked, Unanswered> {
    let until = Instant::now() + within;
    let place = timeout_at(until, dialled(address)).await;
    let place = place.unwrap_or_else(|_| Err(format!("no answer within {within:?}")));
    let place = place.map_err(|reason| Unanswered::Name { address: address.clone(), reason })?;
    let asked = timeout_at(until, ask_at(&place, address, tls)).await;
    asked.unwrap_or_else(|_| Err(Unanswered::Silent { address: address.clone(), within }))
}

/// Why the coordinator at an address would refuse a worker with these secrets. None: it would not, or does not say within `within`.
///
/// This begins a call as a worker does, and ends it without a word, so that the coordinator takes nobody in.
pub async fn refusal(address: &Address, secrets: &Secrets, within: Duration) -> Option<String> {
    let asked = timeout_at(Instant::now() + within, call_as_a_worker(address, secrets)).await.ok()??;
    matches!(asked.code(), Code::Unauthenticated | Code::FailedPrecondition).then(|| description_from(asked.message()))
}

/// How the call of a worker that says nothing ends, if there is a connection.
async fn call_as_a_worker(address: &Address, secrets: &Secrets) -> Option<Status> {
    let (socket, _) = dial(address, &[Role::Coordinator], Protocol::Grpc, secrets.tls.as_ref()).await.ok()?;
    let mut client = CoordinatorClient::new(grpc::channel(socket, |endpoint| endpoint).await.ok()?);
    let mut request = Request::new(tokio_stream::empty::<FromWorker>());
    if let Some(token) = &secrets.token {
        request.metadata_mut().insert("authorization", token.header().parse().ok()?);
    }
    match client.control(request).await {
        Err(status) => Some(status),
        Ok(answer) => answer.into_inner().message().await.err(),
    }
}

/// The address to connect to, with its name looked up.
async fn dialled(address: &Address) -> Result<Address, String> {
    match address {
        Address::Unix(_) => Ok(address.clone()),
        Address::Tcp(host) => {
            let mut found = tokio::net::lookup_host(host.as_str()).await.map_err(|error| error.to_string())?;
            let first = found.next().map(|found| Address::Tcp(found.to_string()));
            first.ok_or_else(|| "the name has no address".to_owned())
        }
    }
}

async fn ask_at(place: &Address, address: &Address, tls: Option<&Tls>) -> Result<Asked, Unanswered> {
    let dialled = dial(place, &[Role::Worker, Role::Coordinator], Protocol::Grpc, tls).await;
    let untrusted = |reason| Unanswered::Untrusted { address: address.clone(), reason };
    let (socket, fate) = dialled.map_err(|error| match error {
        DialError::Tls(fault) => untrusted(fault),
        DialError::Network(error) => Unanswered::Nobody { address: address.clone(), reason: error.to_string() },
    })?;
    let stranger = |reason: String| match fate.fault() {
        Some(fault) => untrusted(fault.clone()),
        None => Unanswered::Stranger { address: address.clone(), reason },
    };
    let channel = grpc::channel(socket, |endpoint| endpoint).await;
    let mut client = HealthClient::new(channel.map_err(|error| stranger(error.to_string()))?);
    let alive = check(&mut client, "").await.map_err(|status| stranger(described(&status)))?;
    let began = Instant::now();
    let (role, ready) = match check(&mut client, COORDINATOR_SERVICE).await {
        Ok(ready) => (Role::Coordinator, ready),
        Err(_) => match check(&mut client, WORKER_SERVICE).await {
            Ok(ready) => (Role::Worker, ready),
            Err(status) => return Err(stranger(described(&status))),
        },
    };
    let clock_ahead = alive.date.map(ahead_of_now);
    Ok(Asked { role, is_alive: alive.serves, is_ready: ready.serves, round_trip: began.elapsed(), clock_ahead })
}

/// An answer about one service.
struct Answer {
    serves: bool,
    /// When the other machine sent it, by its own clock.
    date: Option<SystemTime>,
}

async fn check(client: &mut HealthClient<Channel>, service: &str) -> Result<Answer, Status> {
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await?;
    let date = answer.metadata().get("date").and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Ok(Answer { serves: answer.into_inner().status == ServingStatus::Serving as i32, date })
}

fn ahead_of_now(date: SystemTime) -> i64 {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    seconds(date) - seconds(SystemTime::now())
}

fn described(status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => "it speaks gRPC but does not answer health checks".to_owned(),
        Code::NotFound => "it answers health checks of another service".to_owned(),
        _ => "it does not speak gRPC".to_owned(),
    }
}
