//! The coordinator's health, for gRPC's standard health checks: alive, under the name "", and ready once it has all its workers,
//! under the name of its service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use convoy_common::pulse::Pulse;
use convoy_proto::v1::coordinator_server::SERVICE_NAME;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::deadlines::PROGRESS_MIN;

/// The thread that drives the job reports at least once per wait for workers. After a much longer silence, it hangs.
const WEDGED_AFTER: Duration = PROGRESS_MIN.saturating_add(Duration::from_secs(60));
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

    /// All workers are connected.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }
}

/// Reports the health to `reporter`, again and again.
pub async fn watch(reporter: HealthReporter, vitals: Vitals) {
    loop {
        let silent = vitals.pulse.busy_for(vitals.began.elapsed());
        for (service, status) in statuses(silent, vitals.ready.load(Ordering::Relaxed)) {
            reporter.set_service_status(service, status).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Alive and ready, after `silent` without a sign of life.
fn statuses(silent: Duration, ready: bool) -> [(&'static str, ServingStatus); 2] {
    let status = |well: bool| if well { ServingStatus::Serving } else { ServingStatus::NotServing };
    let alive = silent < WEDGED_AFTER;
    [("", status(alive)), (SERVICE_NAME, status(alive && ready))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_alive_while_it_waits_ready_with_its_workers_and_neither_once_it_hangs() {
        use ServingStatus::{NotServing, Serving};
        let of = |silent, ready| statuses(silent, ready).map(|(_, status)| status);
        assert_eq!(of(PROGRESS_MIN, false), [Serving, NotServing]);
        assert_eq!(of(PROGRESS_MIN, true), [Serving, Serving]);
        assert_eq!(of(WEDGED_AFTER, true), [NotServing, NotServing]);
    }
}
