//! Coordinators that go by one name, as in a compose network: a worker can serve one of them, tells the others so, and
//! goes over to another that comes before its own in the order of addresses, as long as its own hasn't all its workers
//! either. So workers gather at one coordinator instead of being shared out among several that all wait for ever.

use std::time::Duration;

use convoy_proto::v1;
use tokio::time::{sleep, timeout};

use super::WorkerConfig;
use super::connection::{Place, dial, places};

const LOOK_EVERY: Duration = Duration::from_secs(2);
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Where a worker is, and for whom.
pub(super) struct Whereabouts<'a> {
    /// The name that it joins by, and what it says there.
    pub(super) config: &'a WorkerConfig,
    /// The coordinator that it serves.
    pub(super) here: &'a Place,
    /// Its own machine.
    pub(super) host: String,
    /// The model of the job; empty before there is one.
    pub(super) model: String,
}

impl Whereabouts<'_> {
    /// Tells all others, again and again. Returns when this worker should go over to another, and never when it has a job.
    pub(super) async fn tell(&self) {
        loop {
            sleep(LOOK_EVERY).await;
            let found = places(&self.config.join).await.unwrap_or_default();
            for other in found.iter().filter(|place| *place != self.here) {
                // One that doesn't answer in time is no coordinator to go to.
                let wanted = timeout(ANSWER_MAX, self.tell_one(other)).await.ok().flatten().unwrap_or(false);
                if wanted && self.model.is_empty() && other < self.here {
                    return;
                }
            }
        }
    }

    async fn tell_one(&self, other: &Place) -> Option<bool> {
        let notice = v1::WorkerElsewhere {
            host: self.host.clone(),
            coordinator: self.here.to_string(),
            model: self.model.clone(),
        };
        let answer = dial(other, self.config.token.as_ref()).await.ok()?.elsewhere(notice).await.ok()?;
        Some(answer.into_inner().wanted)
    }
}
