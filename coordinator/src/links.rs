//! Which workers of a generation are connected directly, and what each is told about its peers. Pure.
//!
//! Not here: the connections (the worker's `service/peers`), and what follows when one fails (`train/generations`).

use std::fmt;
use std::str::FromStr;

use convoy_common::address::Address;
use convoy_common::index::{PerWorker, WorkerIndex};
use convoy_common::links::Links;
use convoy_common::plan::Plan;
use convoy_common::wire::{Peer, Secret};

use crate::unguessable::unguessable;

/// How workers send each other tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Directly where they can connect, and otherwise through the coordinator.
    #[default]
    Auto,
    /// Directly. A pair that can't connect is an error.
    Direct,
    /// Through the coordinator.
    Relay,
}

impl FromStr for Transport {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Transport::Auto),
            "direct" => Ok(Transport::Direct),
            "relay" => Ok(Transport::Relay),
            _ => Err("it must be auto, direct or relay"),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Auto => "auto",
            Transport::Direct => "direct",
            Transport::Relay => "relay",
        })
    }
}

/// The links of `plan`, and the peers of each worker. A pair is connected if it exchanges anything, both workers listen somewhere, and it
/// is not one of those that must be relayed.
pub fn arranged(
    plan: &Plan,
    transport: Transport,
    address_of: impl Fn(WorkerIndex) -> Option<Address>,
    must_be_relayed: impl Fn(WorkerIndex, WorkerIndex) -> bool,
) -> (Links, PerWorker<Vec<Peer>>) {
    let mut peers: PerWorker<Vec<Peer>> = vec![Vec::new(); plan.workers].into();
    if transport == Transport::Relay {
        return (Links::relayed(), peers);
    }
    let mut links = Links::direct();
    for one in plan.all_workers() {
        for other in plan.partners(one).into_iter().filter(|other| *other > one) {
            let addresses = (address_of(one), address_of(other));
            let (Some(of_one), Some(of_other)) = addresses else {
                links = links.without(one, other);
                continue;
            };
            if must_be_relayed(one, other) {
                links = links.without(one, other);
                continue;
            }
            let secret = Secret::of([(); 4].map(|()| unguessable()));
            peers[one].push(Peer { worker: other, address: of_other, secret });
            peers[other].push(Peer { worker: one, address: of_one, secret });
        }
    }
    (links, peers)
}

#[cfg(test)]
mod tests {
    use convoy_common::model::{Network, presets};

    use super::*;

    fn plan(workers: usize) -> Plan {
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        Plan::new(network, workers, workers.div_ceil(2), None).unwrap()
    }

    fn everywhere(worker: WorkerIndex) -> Option<Address> {
        format!("10.0.0.{worker}:80").parse().ok()
    }

    #[test]
    fn partners_are_told_of_each_other_with_one_secret_for_each_pair() {
        let plan = plan(8);
        let (links, peers) = arranged(&plan, Transport::Auto, everywhere, |_, _| false);
        for (worker, told) in peers.iter_enumerated() {
            let others: Vec<_> = told.iter().map(|peer| peer.worker).collect();
            assert_eq!(others, plan.partners(worker));
            for peer in told {
                assert!(links.is_direct(worker, peer.worker));
                assert_eq!(Some(&peer.address), everywhere(peer.worker).as_ref());
                let back = peers[peer.worker].iter().find(|other| other.worker == worker).unwrap();
                assert_eq!(back.secret, peer.secret);
            }
        }
        let secrets: Vec<_> = peers.iter().flatten().map(|peer| peer.secret.question().to_vec()).collect();
        let mut distinct = secrets.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len() * 2, secrets.len(), "each pair has its own secret");
    }

    #[test]
    fn a_pair_without_an_address_or_with_a_broken_link_is_relayed() {
        let plan = plan(4);
        let of = |address: &dyn Fn(WorkerIndex) -> Option<Address>, relayed: bool| {
            let first = |one: WorkerIndex, other: WorkerIndex| relayed && (one.0, other.0) == (0, 1);
            arranged(&plan, Transport::Auto, address, first)
        };
        let (links, peers) = of(&|worker| everywhere(worker).filter(|_| worker.0 != 2), false);
        assert!(!links.is_direct(WorkerIndex(2), WorkerIndex(0)) && links.is_direct(WorkerIndex(0), WorkerIndex(1)));
        assert!(peers[WorkerIndex(2)].is_empty());
        let (links, peers) = of(&everywhere, true);
        assert!(!links.is_direct(WorkerIndex(0), WorkerIndex(1)) && links.is_direct(WorkerIndex(0), WorkerIndex(2)));
        assert!(peers[WorkerIndex(1)].iter().all(|peer| peer.worker.0 != 0));
        let (links, peers) = arranged(&plan, Transport::Relay, everywhere, |_, _| false);
        assert!(links == Links::relayed() && peers.iter().all(Vec::is_empty));
    }
}
