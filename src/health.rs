//! `convoy health`: checks one process by gRPC's standard health protocol. The exit code is the answer.

use std::error::Error;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_net::dial::{DialError, dial};
use convoy_net::fault::Fault;
use convoy_net::grpc;
use convoy_net::tls::{Protocol, Role, Tls};
use convoy_proto::WORKER_SERVICE;
use convoy_proto::v1::coordinator_server::SERVICE_NAME as COORDINATOR_SERVICE;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::credentials::TlsArguments;
use crate::{Outcome, output};

/// The command line of `convoy health`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Address of a worker's --health or a coordinator's --listen: HOST:PORT or unix:PATH
    #[arg(value_name = "ADDRESS", env = "CONVOY_HEALTH", default_value = "127.0.0.1:7979")]
    address: Address,
    /// Check only that the process is alive. A coordinator that is still waiting for its first workers is alive but not ready
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    tls: TlsArguments,
}

/// A health check that takes longer has failed. Orchestrators allow one second by default, part of which a busy machine needs
/// to start this program.
const LIMIT: Duration = Duration::from_millis(500);

/// Why a process isn't healthy.
#[derive(Debug, thiserror::Error)]
enum Unwell {
    #[error("cannot look up {address}: {reason}")]
    Name { address: Address, reason: String },
    #[error(
        "cannot connect to {address}: {reason}; the process has not started, has ended, or uses another address (--health, --listen)"
    )]
    Nobody { address: Address, reason: String },
    #[error("cannot trust the process at {address}: {reason}")]
    Untrusted { address: Address, reason: Fault },
    #[error("{0} did not answer within {LIMIT:?}: it hangs, can't be reached, or is not Convoy")]
    Silent(Address),
    #[error("the process at {address} is not a worker or a coordinator of Convoy: {reason}")]
    Stranger { address: Address, reason: String },
    #[error("the {role} at {address} hangs: it has made no progress for minutes")]
    Wedged { role: &'static str, address: Address },
    #[error("the {role} at {address} is not ready: it is waiting for workers")]
    Starting { role: &'static str, address: Address },
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tls = arguments.tls.identity(None)?;
    let asked = runtime.block_on(ask(&arguments.address, tls.as_ref(), arguments.live));
    // A name lookup can't be cancelled, and must not be waited for.
    runtime.shutdown_background();
    let role = asked?;
    let how = if arguments.live { "alive" } else { "ready" };
    output::print(&format!("the {role} at {} is {how}\n", arguments.address))?;
    Ok(Outcome::Done)
}

/// The role of the process if it is healthy. Returns within [`LIMIT`] for any address.
async fn ask(address: &Address, tls: Option<&Tls>, live: bool) -> Result<&'static str, Unwell> {
    let began = Instant::now();
    let place = timeout_at(began + LIMIT, dialled(address)).await;
    let place = place.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
    let place = place.map_err(|reason| Unwell::Name { address: address.clone(), reason })?;
    let asked = timeout_at(began + LIMIT, ask_at(&place, address, tls, live)).await;
    asked.unwrap_or_else(|_| Err(Unwell::Silent(address.clone())))
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

async fn ask_at(place: &Address, address: &Address, tls: Option<&Tls>, live: bool) -> Result<&'static str, Unwell> {
    let dialled = dial(place, &[Role::Worker, Role::Coordinator], Protocol::Grpc, tls).await;
    let untrusted = |reason| Unwell::Untrusted { address: address.clone(), reason };
    let (socket, fate) = dialled.map_err(|error| match error {
        DialError::Tls(fault) => untrusted(fault),
        DialError::Network(error) => Unwell::Nobody { address: address.clone(), reason: error.to_string() },
    })?;
    let stranger = |reason: String| match fate.fault() {
        Some(fault) => untrusted(fault.clone()),
        None => Unwell::Stranger { address: address.clone(), reason },
    };
    let channel = grpc::channel(socket, |endpoint| endpoint).await;
    let mut client = HealthClient::new(channel.map_err(|error| stranger(error.to_string()))?);
    let alive = check(&mut client, "").await.map_err(|status| stranger(described(&status)))?;
    let (role, ready) = match check(&mut client, COORDINATOR_SERVICE).await {
        Ok(ready) => ("coordinator", ready),
        Err(_) => match check(&mut client, WORKER_SERVICE).await {
            Ok(ready) => ("worker", ready),
            Err(status) => return Err(stranger(described(&status))),
        },
    };
    match (alive, ready || live) {
        (false, _) => Err(Unwell::Wedged { role, address: address.clone() }),
        (true, false) => Err(Unwell::Starting { role, address: address.clone() }),
        (true, true) => Ok(role),
    }
}

async fn check(client: &mut HealthClient<Channel>, service: &str) -> Result<bool, Status> {
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await?;
    Ok(answer.into_inner().status == ServingStatus::Serving as i32)
}

fn described(status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => "it speaks gRPC but does not answer health checks".to_owned(),
        Code::NotFound => "it answers health checks of another service".to_owned(),
        _ => "it does not speak gRPC".to_owned(),
    }
}
