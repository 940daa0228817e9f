//! The coordinator's health, for gRPC's standard health checks: alive, under the name "", and ready once the job has its workers,
//! under the name of its service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use convoy_common::pulse::Pulse;
use convoy_proto::v1::coordinator_server::SERVICE_NAME;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The thread that drives the job reports whenever it waits. It counts as hanging if it reports nothing for the deadline of
/// progress and this margin after it.
const MARGIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Signs of life of the thread that drives the job.
#[derive(Clone, Debug)]
pub struct Vitals {
    pulse: Arc<Pulse>,
    ready: Arc<AtomicBool>,
    began: Instant,
}

impl Vitals {
    /// The signs of a coordinator that is starting.
    pub fn starting() -> Self {
        Self { pulse: Arc::default(), ready: Arc::default(), began: Instant::now() }
    }

    /// The job makes progress.
    pub fn beat(&self) {
        self.pulse.beat(self.began.elapsed());
    }

    /// The job has its workers.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }
}

/// Reports the health of a job that may make no progress for `progress` to `reporter`, again and again.
pub async fn watch(reporter: HealthReporter, vitals: Vitals, progress: Duration) {
    let limit = progress.saturating_add(MARGIN);
    loop {
        let silent = vitals.pulse.busy_for(vitals.began.elapsed());
        for (service, status) in statuses(silent < limit, vitals.ready.load(Ordering::Relaxed)) {
            reporter.set_service_status(service, status).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Alive and ready.
fn statuses(alive: bool, ready: bool) -> [(&'static str, ServingStatus); 2] {
    let status = |well: bool| if well { ServingStatus::Serving } else { ServingStatus::NotServing };
    [("", status(alive)), (SERVICE_NAME, status(alive && ready))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_alive_while_it_waits_ready_with_its_workers_and_neither_once_it_hangs() {
        use ServingStatus::{NotServing, Serving};
        let of = |alive, ready| statuses(alive, ready).map(|(_, status)| status);
        assert_eq!(of(true, false), [Serving, NotServing]);
        assert_eq!(of(true, true), [Serving, Serving]);
        assert_eq!(of(false, true), [NotServing, NotServing]);
    }
}
