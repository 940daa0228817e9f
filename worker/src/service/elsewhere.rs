//! Several coordinators, behind one name as in a compose network, or at several addresses. A worker can serve only one of them, and tells the others.
//! While its coordinator still waits for workers, it moves to a waiting one with a lower address. So workers gather at one
//! coordinator, instead of being spread over several that all wait forever. A spare moves to any coordinator that waits.

use std::time::Duration;

use convoy_proto::v1;
use tokio::time::{sleep, timeout};

use super::config::WorkerConfig;
use super::connection::{Place, connect, places};

/// How often a worker looks whether another coordinator waits.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A spare is idle, and a run of a study soon follows another one. So it looks at once, again after this time, and then less and less often.
const SPARE_LOOKS_AFTER: Duration = Duration::from_millis(10);
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The coordinator that a worker serves, and how to describe it to others.
pub(super) struct Whereabouts<'a> {
    /// The worker's configuration, with the addresses that it joins.
    pub(super) config: &'a WorkerConfig,
    /// The coordinator that it serves.
    pub(super) here: &'a Place,
    /// The worker's host name.
    pub(super) host: String,
    /// The session with that coordinator.
    pub(super) session: u64,
    /// The model of the job; empty before there is one.
    pub(super) model: String,
    /// Whether the coordinator has all the workers that it needs without this one.
    pub(super) is_spare: bool,
}

impl Whereabouts<'_> {
    /// Tells all other coordinators periodically. Returns the one that this worker should move to; never during a job.
    pub(super) async fn tell(&self) -> Place {
        let (first, mut pause) =
            if self.is_spare { (Duration::ZERO, SPARE_LOOKS_AFTER) } else { (LOOK_EVERY, LOOK_EVERY) };
        sleep(first).await;
        loop {
            let found = places(&self.config.join).await.unwrap_or_default();
            for other in found.iter().filter(|place| *place != self.here) {
                // A coordinator that does not answer in time is not a candidate.
                let wanted = timeout(ANSWER_MAX, self.tell_one(other)).await.ok().flatten().unwrap_or(false);
                if wanted && self.model.is_empty() && (self.is_spare || other < self.here) {
                    return other.clone();
                }
            }
            sleep(pause).await;
            pause = (2 * pause).min(LOOK_EVERY);
        }
    }

    async fn tell_one(&self, other: &Place) -> Option<bool> {
        let notice = v1::WorkerElsewhere {
            host: self.host.clone(),
            coordinator: self.here.to_string(),
            model: self.model.clone(),
            session: self.session,
        };
        let (mut client, _) = connect(other, &self.config.secrets).await.ok()?;
        let answer = client.elsewhere(notice).await.ok()?;
        Some(answer.into_inner().wanted)
    }
}
