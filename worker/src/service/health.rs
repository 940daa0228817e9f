//! Answers health checks of the standard protocol grpc.health.v1, on the worker's own address. The service "" stands for
//! liveness, [`WORKER_SERVICE`] for readiness. Not here: the client of health checks.

use std::time::Duration;

use convoy_common::address::Address;
use convoy_net::grpc;
use convoy_net::listening::Listening;
use convoy_net::reception::{LIMITS, Reception};
use convoy_net::tls::Tls;
use convoy_proto::WORKER_SERVICE;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::vitals::Vitals;

/// No task takes nearly as long, so the compute thread hangs.
const WEDGED_AFTER: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The status when the current task has run for `busy`.
fn status_of(busy: Duration) -> ServingStatus {
    if busy > WEDGED_AFTER { ServingStatus::NotServing } else { ServingStatus::Serving }
}

/// Serves health checks at `address` until the runtime ends.
pub(super) async fn serve(address: &Address, tls: Option<&Tls>, vitals: Vitals) -> std::io::Result<()> {
    let (reporter, service) = grpc::health();
    let guests = Listening::open(address).await?.guests(Reception::new("for health checks", LIMITS), tls);
    tokio::spawn(grpc::server().add_service(service).serve_with_incoming(guests));
    tokio::spawn(watch(reporter, vitals));
    Ok(())
}

async fn watch(reporter: HealthReporter, vitals: Vitals) {
    loop {
        for service in ["", WORKER_SERVICE] {
            reporter.set_service_status(service, status_of(vitals.busy_for())).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_goes_on_for_minutes_is_wedged() {
        assert_eq!(status_of(Duration::ZERO), ServingStatus::Serving);
        assert_eq!(status_of(WEDGED_AFTER), ServingStatus::Serving);
        assert_eq!(status_of(WEDGED_AFTER + LOOK_EVERY), ServingStatus::NotServing);
    }
}
