//! Who holds what: which worker holds each tower of each replica of the trunk, and each slice of the head. Pure.
//!
//! The trunk is divided by data and by channels: a replica computes some of the slots, and each of its towers some of the channels. The
//! head is divided by units alone, and sees the whole batch.
//!
//! Not here: what they exchange (`plan`).

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::batch::{MicroBatchId, Phase, part};
use crate::index::{PerTower, PerWorker, TowerIndex, WorkerIndex};
use crate::model::Network;

/// The most replicas of a placement, and the most towers of all replicas together. Placements also arrive over the network, so all is limited.
const REPLICAS_MAX: usize = 1 << 10;
const UNITS_MAX: usize = 1 << 14;

/// One of the two parts of a network. Their weights are held separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Half {
    /// Everything before the head.
    Trunk,
    /// The final linear layers, with what stands between them.
    Head,
}

/// Which worker holds what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Slots of a batch, which are divided among the replicas.
    pub slots: usize,
    /// Tower t of replica r is held by worker `trunk[r][t]`.
    pub trunk: Vec<PerTower<WorkerIndex>>,
    /// Slice t of the head is held by worker `head[t]`.
    pub head: PerTower<WorkerIndex>,
}

/// A placement that can't be made, or doesn't fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum PlacementError {
    /// Some workers would have nothing to do.
    #[error(
        "--workers {workers}: must be at most {units}, one for each tower of each replica: \"{model}\" has {towers} tower{}, and {limit}",
        s(*.towers)
    )]
    TooManyWorkers { workers: usize, units: usize, towers: usize, limit: Limit, model: String },
    /// No workers at all.
    #[error("--workers 0: must be at least 1")]
    NoWorkers,
    /// More replicas than are allowed, or none.
    #[error("--replicas {replicas}: must be 1{}: {limit}", match .limit.replicas() { 1 => String::new(), most => format!(" to {most}") })]
    Replicas { replicas: usize, limit: Limit },
    /// Some workers would have nothing to do with that many replicas.
    #[error(
        "--replicas {replicas}: {workers} workers need at least {least} replicas of {}",
        if *.towers == 1 { "the only tower".to_owned() } else { format!("the {towers} towers") }
    )]
    TooFewReplicas { replicas: usize, workers: usize, least: usize, towers: usize },
    /// A placement that doesn't fit the network.
    #[error(
        "a placement (towers of each replica: {trunk:?}; slices: {head}; slots: {slots}; workers: {workers}) does not fit the model, which has \
         {towers} tower{} and {slices} slice{}", s(*.towers), s(*.slices)
    )]
    Unfit { trunk: Vec<usize>, head: usize, slots: usize, workers: usize, towers: usize, slices: usize },
}

/// What limits the number of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Each replica needs a slot of its own.
    Slots(usize),
    /// The network consists of the head alone, which is not replicated.
    NoTrunk,
    /// Convoy allows no more replicas of this network.
    Most(usize),
}

impl Limit {
    fn of(network: &Network, slots: usize) -> Self {
        let most = REPLICAS_MAX.min(UNITS_MAX / network.towers).max(1);
        if network.head() == 0 {
            Self::NoTrunk
        } else if slots < most {
            Self::Slots(slots)
        } else {
            Self::Most(most)
        }
    }

    /// The most replicas.
    fn replicas(self) -> usize {
        match self {
            Self::Slots(most) | Self::Most(most) => most,
            Self::NoTrunk => 1,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slots(slots) => write!(
                f,
                "--slots {slots} allows {slots} replica{}. A new job can have up to one slot for each image of a batch (--slots, --batch); other \
                 numbers change the result",
                s(*slots)
            ),
            Self::NoTrunk => f.write_str("a network of final linear layers alone can have only 1 replica"),
            Self::Most(1) => f.write_str("a job can have 1 replica of this network"),
            Self::Most(most) => write!(f, "a job can have at most {most} replicas of this network"),
        }
    }
}

impl Placement {
    /// Deals the towers of `replicas` replicas and the slices of the head to `workers` workers as evenly as possible, by what they cost.
    /// Neighbouring towers stay together. If no number of replicas is given, it is the smallest one that gives every worker something.
    ///
    /// # Errors
    /// When a worker would have nothing to do, or a number is out of range.
    pub fn dealt(
        network: &Network,
        workers: usize,
        slots: usize,
        replicas: Option<usize>,
    ) -> Result<Self, PlacementError> {
        let towers = network.towers;
        let limit = Limit::of(network, slots);
        let units = towers.saturating_mul(limit.replicas());
        if workers == 0 {
            return Err(PlacementError::NoWorkers);
        }
        if workers > units {
            let model = network.name.clone();
            return Err(PlacementError::TooManyWorkers { workers, units, towers, limit, model });
        }
        let least = workers.div_ceil(towers);
        let replicas = replicas.unwrap_or(least);
        if !(1..=limit.replicas()).contains(&replicas) {
            return Err(PlacementError::Replicas { replicas, limit });
        }
        if replicas < least {
            return Err(PlacementError::TooFewReplicas { replicas, workers, least, towers });
        }
        // A tower of a replica costs as much as the replica has slots.
        let costs = (0..replicas).flat_map(|replica| vec![part(slots, replicas, replica).len(); towers]);
        let units = neighbours_dealt(&costs.collect::<Vec<_>>(), workers);
        let trunk: Vec<PerTower<WorkerIndex>> =
            units.chunks(towers).map(|held| held.iter().copied().collect()).collect();
        let may_be_alike = replicas == 1 && network.slices == towers;
        let head = if may_be_alike { trunk[0].clone() } else { head_beside(network, (&trunk, slots), workers) };
        Ok(Self { slots, trunk, head })
    }

    /// Checks a placement that came from elsewhere. Returns the number of its workers.
    ///
    /// # Errors
    /// When it does not fit the network, or when a worker gets nothing.
    pub fn check(&self, network: &Network) -> Result<usize, PlacementError> {
        let all = || self.trunk.iter().flatten().chain(&self.head);
        let workers = all().max().map_or(0, |last| last.0.saturating_add(1));
        let units = self.trunk.len().saturating_mul(network.towers).saturating_add(self.head.len());
        let is_whole = (1..=self.slots.min(REPLICAS_MAX)).contains(&self.trunk.len())
            && (self.trunk.len() == 1 || units <= UNITS_MAX + network.slices)
            && self.trunk.iter().all(|held| held.len() == network.towers)
            && self.head.len() == network.slices;
        let mut is_used = vec![false; if workers <= units { workers } else { 0 }];
        all().for_each(|worker| is_used.get_mut(worker.0).into_iter().for_each(|used| *used = true));
        if is_whole && !is_used.is_empty() && is_used.iter().all(|used| *used) {
            return Ok(workers);
        }
        let trunk = self.trunk.iter().take(10).map(|held| held.len()).collect();
        let (towers, slices) = (network.towers, network.slices);
        Err(PlacementError::Unfit { trunk, head: self.head.len(), slots: self.slots, workers, towers, slices })
    }

    /// Number of replicas.
    pub fn replicas(&self) -> usize {
        self.trunk.len()
    }

    /// The slots that a replica computes.
    pub fn slots_of(&self, replica: usize) -> Range<usize> {
        part(self.slots, self.replicas(), replica)
    }

    /// The replica that computes a micro-batch. The micro-batches of a measurement go to the replicas in turn.
    pub fn replica_of(&self, id: MicroBatchId) -> usize {
        let replicas = self.replicas();
        match id.phase {
            Phase::Evaluate => id.micro_batch as usize % replicas,
            Phase::Train => {
                let slot = (id.slot as usize).min(self.slots - 1);
                // The first replicas have one slot more where they don't divide evenly.
                let (each, more) = (self.slots / replicas, self.slots % replicas);
                let in_larger = more * (each + 1);
                if slot < in_larger { slot / (each + 1) } else { more + (slot - in_larger) / each }
            }
        }
    }

    /// The worker of a tower, or of a slice of the head, for a micro-batch.
    pub fn holder(&self, half: Half, tower: TowerIndex, id: MicroBatchId) -> WorkerIndex {
        self.towers(half, id)[tower]
    }

    /// The worker of each tower, or of each slice of the head, for a micro-batch.
    pub fn towers(&self, half: Half, id: MicroBatchId) -> &PerTower<WorkerIndex> {
        match half {
            Half::Trunk => &self.trunk[self.replica_of(id)],
            Half::Head => &self.head,
        }
    }

    /// The workers that hold the weights of a tower or of a slice, each once, in the order of the replicas. The first one answers for them.
    pub fn sharers(&self, half: Half, tower: TowerIndex) -> Vec<WorkerIndex> {
        match half {
            Half::Head => vec![self.head[tower]],
            Half::Trunk => {
                let mut seen = HashSet::new();
                self.trunk.iter().map(|held| held[tower]).filter(|worker| seen.insert(*worker)).collect()
            }
        }
    }

    /// The slots for which `worker` holds a tower of the trunk, in ascending order.
    pub fn slots_at(&self, worker: WorkerIndex, tower: TowerIndex) -> impl Iterator<Item = usize> {
        let replicas = (0..self.replicas()).filter(move |replica| self.trunk[*replica][tower] == worker);
        replicas.flat_map(|replica| self.slots_of(replica))
    }

    /// Whether there is a single replica, and the head is placed like the trunk: then a tower is all layers.
    pub fn is_alike(&self) -> bool {
        self.replicas() == 1 && self.head == self.trunk[0]
    }

    /// The name of a tower of the trunk, or of a slice of the head, for a person: "slice 0 of the head". If [`is_alike`](Self::is_alike)
    /// holds, it is a tower in both cases.
    pub fn part_name(&self, half: Half, index: TowerIndex) -> String {
        match half {
            Half::Head if !self.is_alike() => format!("slice {index} of the head"),
            _ => format!("tower {index}"),
        }
    }

    /// What `worker` holds, for a person: "tower 0 of replica 1 and slice 0 of the head". If [`is_alike`](Self::is_alike)
    /// holds, only the towers are named.
    pub fn described(&self, worker: WorkerIndex) -> String {
        let of_trunk = self.trunk.iter().enumerate().flat_map(|(replica, held)| {
            let own = held.iter_enumerated().filter(move |(_, holder)| **holder == worker);
            own.map(move |(tower, _)| match self.replicas() {
                1 => self.part_name(Half::Trunk, tower),
                _ => format!("tower {tower} of replica {replica}"),
            })
        });
        let own = |(_, holder): &(TowerIndex, &WorkerIndex)| !self.is_alike() && **holder == worker;
        let of_head = self.head.iter_enumerated().filter(own);
        let of_head = of_head.map(|(slice, _)| self.part_name(Half::Head, slice));
        of_trunk.chain(of_head).collect::<Vec<_>>().join(" and ")
    }

    /// The towers of the trunk, and the slices of the head, that `worker` holds, each once.
    pub fn held_by(&self, worker: WorkerIndex) -> Vec<(Half, TowerIndex)> {
        let of_trunk = self.trunk.first().into_iter().flat_map(|held| held.keys()).map(|tower| (Half::Trunk, tower));
        let all = of_trunk.chain(self.head.keys().map(|slice| (Half::Head, slice)));
        all.filter(|(half, tower)| self.sharers(*half, *tower).contains(&worker)).collect()
    }
}

/// The ending of a noun.
fn s(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// The worker of each unit. Each of `workers` workers, of which there are at most as many as units, gets neighbouring units, and the one with the
/// most to compute gets as little as possible. If all units cost the same, the first workers get one more.
fn neighbours_dealt(costs: &[usize], workers: usize) -> Vec<WorkerIndex> {
    let each = |worker: WorkerIndex| part(costs.len(), workers, worker.0).map(move |_| worker);
    if costs.iter().all(|cost| *cost == costs[0]) {
        return WorkerIndex::all(workers).flat_map(each).collect();
    }
    let [mut least, mut most] = [costs.iter().copied().max().unwrap_or(0), costs.iter().sum()];
    while least < most {
        let middle = least + (most - least) / 2;
        let needed = filled(costs, middle, workers).last().map_or(0, |last| last.0 + 1);
        if needed <= workers { most = middle } else { least = middle + 1 }
    }
    filled(costs, least, workers)
}

/// The worker of each unit if workers are filled one after the other, up to `capacity`. A unit is left for each of the later ones of `workers`. If
/// the capacity is too small, more workers are needed.
fn filled(costs: &[usize], capacity: usize, workers: usize) -> Vec<WorkerIndex> {
    let (mut worker, mut load) = (0, 0);
    let dealt = costs.iter().enumerate().map(|(index, cost)| {
        let is_left_for_later = costs.len() - index < workers.saturating_sub(worker);
        if index > 0 && (load + cost > capacity || is_left_for_later) {
            (worker, load) = (worker + 1, 0);
        }
        load += cost;
        WorkerIndex(worker)
    });
    dealt.collect()
}

/// The placement of the head's slices if it is not that of the trunk: each slice goes to the worker with the least to compute so
/// far.
fn head_beside(
    network: &Network,
    (trunk, slots): (&[PerTower<WorkerIndex>], usize),
    workers: usize,
) -> PerTower<WorkerIndex> {
    let cost = |layers: Range<usize>| network.layers[layers].iter().map(|layer| layer.multiply_adds()).sum::<u64>();
    let head = network.head();
    // A unit of the trunk is one of `towers` parts, for the slots of one replica. A slice is one of `slices` parts, for all slots. Both costs are
    // multiplied by towers, slices and slots, to be whole numbers.
    let of_slot = cost(0..head).saturating_mul(network.slices as u64);
    let of_slice =
        cost(head..network.layers.len()).saturating_mul((network.towers as u64).saturating_mul(slots as u64));
    let mut load: PerWorker<u64> = vec![0; workers].into();
    for (replica, held) in trunk.iter().enumerate() {
        let of_unit = of_slot.saturating_mul(part(slots, trunk.len(), replica).len() as u64);
        held.iter().for_each(|worker| load[*worker] = load[*worker].saturating_add(of_unit));
    }
    let deal = |_| {
        let worker = WorkerIndex::all(workers).min_by_key(|worker| load[*worker]).expect("there are workers");
        load[worker] = load[worker].saturating_add(of_slice);
        worker
    };
    TowerIndex::all(network.slices).map(deal).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::Division;
    use crate::model::presets;

    fn network() -> Network {
        Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap()
    }

    #[test]
    fn towers_alone_are_placed_as_neighbours_with_the_head_beside_them() {
        let placement = Placement::dealt(&network(), 2, 4, None).unwrap();
        let both: PerTower<_> = [0, 1].map(WorkerIndex).into_iter().collect();
        assert_eq!(placement, Placement { slots: 4, trunk: vec![both.clone()], head: both });
    }

    /// Of AlexNet, a twelfth of the multiply-adds are in the head. Four slices beside one tower are light: the worker of the other replica does
    /// not get them all.
    #[test]
    fn slices_are_dealt_by_what_they_cost() {
        let text = presets::text("alexnet").unwrap().replace("towers = 2", "towers = 1\nhead = 4");
        let network = Network::parse(&text).unwrap();
        let head = |slots, replicas| Placement::dealt(&network, 2, slots, Some(replicas)).unwrap().head;
        let held = |workers: [usize; 4]| workers.into_iter().map(WorkerIndex).collect::<PerTower<_>>();
        assert_eq!(head(4, 2), held([0, 1, 0, 1]));
        // Worker 0 has two replicas, worker 1 has one: all four slices are less than a replica.
        assert_eq!(head(3, 3), held([1, 1, 1, 1]));
        // Worker 0 has one replica of two slots, worker 1 has two of one slot each.
        assert_eq!(head(4, 3), held([0, 1, 0, 1]));
    }

    /// Of three slots, the first of two replicas has two. The worker with two towers is one of the other replica.
    #[test]
    fn replicas_with_more_slots_cost_more() {
        let trunk = |workers, slots, replicas| {
            let placement = Placement::dealt(&network(), workers, slots, Some(replicas)).unwrap();
            placement.trunk.iter().flatten().map(|worker| worker.0).collect::<Vec<_>>()
        };
        assert_eq!(trunk(3, 3, 2), [0, 1, 2, 2]);
        assert_eq!(trunk(5, 4, 3), [0, 1, 2, 2, 3, 4]);
        assert_eq!(trunk(3, 4, 2), [0, 0, 1, 2], "all cost the same");
    }

    proptest! {
        /// Compared with the best of all ways to cut a row of units, found by trying each capacity.
        #[test]
        fn the_most_loaded_worker_gets_as_little_as_possible(costs in proptest::collection::vec(1..5_usize, 1..12), workers in 1..12_usize) {
            let workers = workers.min(costs.len());
            let dealt = neighbours_dealt(&costs, workers);
            let mut loads = vec![0; workers];
            dealt.iter().zip(&costs).for_each(|(worker, cost)| loads[worker.0] += cost);
            prop_assert!(dealt.is_sorted() && loads.iter().all(|load| *load > 0), "{dealt:?}");
            let needed = |capacity: usize| {
                let step = |(count, load), cost: &usize| {
                    if load + cost > capacity { (count + 1, *cost) } else { (count, load + cost) }
                };
                costs.iter().fold((1, 0), step).0
            };
            let best = (*costs.iter().max().unwrap()..).find(|capacity| needed(*capacity) <= workers).unwrap();
            prop_assert_eq!(*loads.iter().max().unwrap(), best);
        }
    }

    #[test]
    fn errors_say_the_most_workers_and_what_raises_it() {
        let dealt = |workers, replicas| Placement::dealt(&network(), workers, 3, replicas).unwrap_err().to_string();
        let error = dealt(7, None);
        assert!(error.contains("--workers 7: must be at most 6") && error.contains("--slots"), "{error}");
        assert!(dealt(2, Some(4)).contains("--replicas 4: must be 1 to 3: --slots 3 allows 3 replicas"));
        assert!(dealt(5, Some(2)).contains("need at least 3 replicas"));
        assert!(dealt(0, None).contains("at least 1"));
    }

    #[test]
    fn more_slots_are_recommended_only_where_they_allow_more_workers() {
        let error = |network: &Network, slots| {
            let with = |workers, replicas| Placement::dealt(network, workers, slots, replicas).unwrap_err().to_string();
            with(1 << 20, None) + "\n" + &with(2, Some(1025))
        };
        let capped = error(&network(), 1024);
        for part in [
            "--workers 1048576: must be at most 2048,",
            "--replicas 1025: must be 1 to 1024: a job can have at most 1024 replicas",
        ] {
            assert!(capped.contains(part), "no \"{part}\" in {capped}");
        }
        assert!(error(&network(), 1023).contains("A new job can have up to one slot for each image"));
        let text = r#"
            name = "flat"
            towers = 2
            input = { channels = 1, height = 4, width = 4, mean = [0.0], std = [1.0] }
            layer = [{ kind = "linear", name = "fc", units = 10 }]
        "#;
        let flat = error(&Network::parse(text).unwrap(), 8);
        for part in ["must be at most 2,", "final linear layers alone", "--replicas 1025: must be 1: "] {
            assert!(flat.contains(part), "no \"{part}\" in {flat}");
        }
        assert!(![capped, flat].iter().any(|error| error.contains("--slots")));
    }

    proptest! {
        /// Every worker has something, towers are spread evenly, and every slot of every tower has one holder, also if a worker holds
        /// several replicas.
        #[test]
        fn every_number_of_workers_has_a_placement(slots in 1_usize..9, workers in 1_usize..17, more in 0_usize..3) {
            let network = network();
            prop_assume!(workers <= 2 * slots);
            let replicas = (workers.div_ceil(2) + more).min(slots);
            let placement = Placement::dealt(&network, workers, slots, Some(replicas)).unwrap();
            prop_assert_eq!(placement.check(&network), Ok(workers));
            prop_assert_eq!(placement.replicas(), replicas);
            let units = |worker| placement.trunk.iter().flatten().filter(|holder| **holder == worker).count();
            let counts: Vec<usize> = WorkerIndex::all(workers).map(units).collect();
            let are_even = counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1;
            prop_assert!(are_even || !slots.is_multiple_of(replicas), "{counts:?}");
            for micro_batch in (Division { slots, micro_batches: 1 }).of(1, 64) {
                let (id, slot) = (micro_batch.id, micro_batch.id.slot as usize);
                prop_assert!(placement.slots_of(placement.replica_of(id)).contains(&slot));
                for tower in TowerIndex::all(2) {
                    let holds = |worker| placement.slots_at(worker, tower).any(|held| held == slot);
                    let holders: Vec<_> = WorkerIndex::all(workers).filter(|worker| holds(*worker)).collect();
                    prop_assert_eq!(holders, [placement.holder(Half::Trunk, tower, id)]);
                }
            }
        }
    }

    #[test]
    fn a_placement_that_leaves_a_worker_out_or_does_not_fit_is_refused() {
        let (network, sound) = (network(), Placement::dealt(&network(), 4, 2, None).unwrap());
        let refused = |change: &dyn Fn(&mut Placement)| {
            let mut placement = sound.clone();
            change(&mut placement);
            assert!(placement.check(&network).is_err(), "{placement:?}");
        };
        assert_eq!(sound.check(&network), Ok(4));
        refused(&|placement| placement.trunk[1][TowerIndex(1)] = WorkerIndex(usize::MAX));
        refused(&|placement| placement.trunk[1][TowerIndex(1)] = WorkerIndex(4));
        refused(&|placement| placement.trunk.clear());
        refused(&|placement| placement.slots = 1);
        refused(&|placement| placement.head.truncate(1));
        refused(&|placement| placement.trunk[0].push(WorkerIndex(0)));
        refused(&|placement| placement.head.push(WorkerIndex(0)));
        // As many as fit into a message.
        refused(&|placement| {
            placement.slots = usize::MAX;
            placement.trunk = vec![placement.head.clone(); 1 << 19];
        });
    }
}
