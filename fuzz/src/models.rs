//! Model files: from a text to the plan of a job.

use convoy_common::model::Network;
use convoy_common::plan::Plan;

use crate::checked;

/// Makes plans of the network that `text` describes, for one worker and for several.
pub fn plan_of(text: &str) {
    let Some(network) = checked(Network::parse(text)) else { return };
    for (workers, slots, replicas) in [(1, 1, None), (network.towers.min(8), 2, None), (2, 2, Some(2))] {
        if let Some(plan) = checked(Plan::new(network.clone(), workers, slots, replicas)) {
            assert!(plan.workers >= 1 && !plan.segments.is_empty());
        }
    }
}
