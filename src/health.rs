//! `convoy health`: asks one process how it is, by the standard protocol of gRPC, and says so in its exit code.

use std::error::Error;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_proto::WORKER_SERVICE;
use convoy_proto::v1::coordinator_server::SERVICE_NAME as COORDINATOR_SERVICE;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::{Outcome, output};

/// Ask a worker or a coordinator how it is: exit code 0 if it is ready, 1 if not. For health checks and probes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where it answers: a worker's --health, or a coordinator's --listen
    #[arg(value_name = "HOST:PORT", env = "CONVOY_HEALTH", default_value = "127.0.0.1:7979")]
    address: Address,
    /// Only whether it is alive: a coordinator that waits for its workers is, and isn't ready
    #[arg(long)]
    live: bool,
}

/// A health check that takes longer has failed. Orchestrators allow a second by default, and a busy machine takes its
/// share of that to start the program.
const LIMIT: Duration = Duration::from_millis(500);

/// What is wrong.
#[derive(Debug, thiserror::Error)]
enum Unwell {
    #[error("look up {address}: {reason}")]
    Name { address: Address, reason: String },
    #[error("nothing listens at {0}: it hasn't started yet, has ended, or is elsewhere (--health, --listen)")]
    Nobody(Address),
    #[error("what listens at {0} didn't answer within {LIMIT:?}: it hangs, or isn't Convoy")]
    Silent(Address),
    #[error("what listens at {address} isn't a worker or a coordinator of Convoy: {reason}")]
    Stranger { address: Address, reason: String },
    #[error("the {role} at {address} hangs: its work hasn't got on for minutes")]
    Wedged { role: &'static str, address: Address },
    #[error("the {role} at {address} is starting: it waits for its workers")]
    Starting { role: &'static str, address: Address },
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(ask(&arguments.address, arguments.live));
    // A name that is still being looked up can't be called off, and must not be waited for.
    runtime.shutdown_background();
    let role = asked?;
    let how = if arguments.live { "alive" } else { "ready" };
    output::print(&format!("the {role} at {} is {how}\n", arguments.address))?;
    Ok(Outcome::Done)
}

/// Who answers, if all is well. Within [`LIMIT`], whatever the address is.
async fn ask(address: &Address, live: bool) -> Result<&'static str, Unwell> {
    let began = Instant::now();
    let place = timeout_at(began + LIMIT, dialled(address)).await;
    let place = place.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
    let place = place.map_err(|reason| Unwell::Name { address: address.clone(), reason })?;
    let asked = timeout_at(began + LIMIT, ask_at(&place, address, live)).await;
    asked.unwrap_or_else(|_| Err(Unwell::Silent(address.clone())))
}

/// The address as it is dialled, its name looked up.
async fn dialled(address: &Address) -> Result<String, String> {
    match address {
        Address::Unix(_) => Ok(address.to_string()),
        Address::Tcp(host) => {
            let mut found = tokio::net::lookup_host(host.as_str()).await.map_err(|error| error.to_string())?;
            found.next().map(|found| format!("http://{found}")).ok_or_else(|| "it has no address".to_owned())
        }
    }
}

async fn ask_at(place: &str, address: &Address, live: bool) -> Result<&'static str, Unwell> {
    let stranger = |reason: String| Unwell::Stranger { address: address.clone(), reason };
    let endpoint = Endpoint::from_shared(place.to_owned()).map_err(|error| stranger(error.to_string()))?;
    let channel = endpoint.connect().await.map_err(|_| Unwell::Nobody(address.clone()))?;
    let mut client = HealthClient::new(channel);
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
        Code::Unimplemented => "it speaks gRPC, and answers no health checks".to_owned(),
        Code::NotFound => "it answers health checks, of something else".to_owned(),
        _ => "it doesn't speak gRPC".to_owned(),
    }
}
