//! The estimate of a step, on plans and links for which the right duration is known.

use proptest::prelude::*;

use super::*;
use crate::index::{TowerIndex, WorkerIndex};
use crate::links::Links;
use crate::model::{Network, presets};

const OPERATIONS: f64 = 1e11;

fn plan(model: &str, workers: usize, slots: usize) -> Plan {
    let network = Network::parse(presets::text(model).unwrap()).unwrap();
    Plan::new(network, workers, slots, None).unwrap().linked(Links::direct())
}

fn estimated(plan: &Plan, batch: usize, bits: f64) -> Estimate {
    let division = Division { slots: plan.placement.slots, micro_batches: 2 };
    step(plan, batch, division, Rates { operations: OPERATIONS, bits })
}

/// Operations of a step: forward, weight gradients, and input gradients of all layers but the first one.
fn operations(plan: &Plan, batch: usize) -> f64 {
    let network = &plan.network;
    (2 * batch as u64 * (3 * network.multiply_adds() - network.layers[0].multiply_adds())) as f64
}

fn is_close(one: f64, other: f64) -> bool {
    (one / other - 1.0).abs() < 1e-4
}

#[test]
fn without_a_limit_of_links_a_worker_computes_all_the_time_and_two_share_the_work() {
    for (model, batch) in [("alexnet", 128), ("alexnet-fashion", 64), ("alexnet-fashion-dense", 7)] {
        let one = plan(model, 1, 1);
        let whole = operations(&one, batch) / OPERATIONS;
        let alone = estimated(&one, batch, f64::INFINITY);
        assert!(is_close(alone.seconds, whole) && is_close(alone.computing, whole), "{model}: {alone:?}, not {whole}");
        assert_eq!(alone.carrying, 0.0);
        let both = estimated(&plan(model, 2, 1), batch, f64::INFINITY);
        assert!(is_close(both.seconds, whole / 2.0), "{model}: {both:?}");
    }
}

/// Where links are the limit, the busiest one is busy for as long as it carries what the plan says.
#[test]
fn links_carry_the_bytes_of_the_plan() {
    let bits = 1e6;
    for (workers, slots) in [(1, 1), (2, 1), (3, 2), (4, 2), (8, 4)] {
        let direct = plan("alexnet-fashion", workers, slots);
        let relayed = direct.clone().linked(Links::relayed());
        let traffic = relayed.step_traffic(64);
        let estimate = estimated(&relayed, 64, bits);
        let expected = traffic.up.max(traffic.down) as f64 * 8.0 / bits;
        assert!(is_close(estimate.carrying, expected), "{workers} workers: {estimate:?}, not {expected}");
        assert_eq!(estimate.busiest, End::Coordinator);
        assert!(estimate.seconds >= estimate.carrying * 0.99, "{estimate:?}");

        let sent = |worker| {
            let pairs = direct.pair_bytes(64).into_iter().filter(|((from, _), _)| *from == worker);
            pairs.map(|(_, bytes)| bytes).sum::<u64>() as f64
        };
        let estimate = estimated(&direct, 64, bits);
        for worker in direct.all_workers() {
            assert!(estimate.carrying >= sent(worker) * 8.0 / bits * 0.9999, "worker {worker} of {workers}");
        }
        assert!(estimate.seconds < estimated(&relayed, 64, bits).seconds || workers == 1, "{workers} workers");
    }
}

/// Each of two replicas waits for both slices of the head. If a worker finished its pass of the trunk first, the other one would wait for
/// most of it, and the step would take 0.8 times as long as with one worker.
#[test]
fn replicas_hardly_wait_for_a_fast_network() {
    let text = presets::text("alexnet-fashion").unwrap().replace("towers = 2", "towers = 1\nhead = 2");
    let plan = Plan::new(Network::parse(&text).unwrap(), 2, 2, None).unwrap().linked(Links::direct());
    let division = Division { slots: 2, micro_batches: 1 };
    let two = step(&plan, 64, division, Rates { operations: OPERATIONS, bits: 1e10 });
    let one = operations(&plan, 64) / OPERATIONS;
    assert!((0.5 * one..0.6 * one).contains(&two.seconds), "{two:?}, and {one} s on one worker");
}

/// Twice the images take twice as long, whatever limits them.
#[test]
fn time_is_proportional_to_the_batch() {
    for bits in [1e6, 1e9, f64::INFINITY] {
        let plan = plan("alexnet-fashion", 2, 1);
        let [one, two] = [64, 128].map(|batch| estimated(&plan, batch, bits).seconds);
        assert!((1.9..2.1).contains(&(two / one)), "{one} and {two} at {bits}");
    }
}

/// If only the gradients of the trunk matter, a step has three phases of equal length. In each, a link carries R - 1 of R pieces.
/// First, the worker that holds the head sends its partial sums. It sends the gradients that the other replicas wait for after
/// these, so then the others send their partial sums, all at the same time. At last, all workers send the sums of the pieces that
/// they own. The estimate may be up to 15 % longer: a small message may arrive behind a large one of another worker, because a link
/// receives one message after another.
#[test]
fn sums_over_replicas_keep_all_links_busy() {
    let model = r#"
        name = "weights-alone"
        towers = 1
        input = { channels = 1, height = 24, width = 24, mean = [0.0], std = [1.0] }
        layer = [{ kind = "conv", filters = 768, kernel = 24 }, { kind = "linear", units = 2 }]
    "#;
    let bits = 1e6;
    for replicas in [2, 3, 4, 8, 16] {
        let network = Network::parse(model).unwrap();
        let gradient =
            (network.parameters_of(0).iter().map(|parameter| parameter.len()).sum::<usize>() * 32) as f64 / bits;
        let plan = Plan::new(network, replicas, replicas, None).unwrap().linked(Links::direct());
        let division = Division { slots: replicas, micro_batches: 1 };
        let estimate = step(&plan, replicas, division, Rates { operations: 1e18, bits });
        let expected = 3.0 * (replicas - 1) as f64 / replicas as f64 * gradient;
        let ratio = estimate.seconds / expected;
        assert!((0.99..1.15).contains(&ratio), "{replicas} replicas: {estimate:?}, not {expected}");
    }
}

/// Two layers with weights in one segment. Almost all weights are in the second one, and their gradients are in transit while the worker
/// computes the first one, which takes twice as long.
#[test]
fn the_gradients_of_a_layer_are_hidden_behind_the_layers_before_it() {
    let model = r#"
        name = "two-layers"
        towers = 1
        input = { channels = 1, height = 24, width = 24, mean = [0.0], std = [1.0] }
        layer = [
            { kind = "conv", filters = 8, kernel = 9, pad = 4 },
            { kind = "conv", filters = 64, kernel = 24 },
            { kind = "linear", units = 2 },
        ]
    "#;
    let (samples, operations) = (64, 1e9);
    let network = Network::parse(model).unwrap();
    let gradient = network.parameters_of(1).iter().map(|parameter| parameter.len()).sum::<usize>() as f64 * 32.0;
    let first_layer = (samples as u64 * network.multiply_adds_of(0, TowerIndex(0))) as f64 / operations;
    let plan = Plan::new(network, 2, 2, None).unwrap().linked(Links::direct());
    let step_with =
        |bits| step(&plan, samples, Division { slots: 2, micro_batches: 1 }, Rates { operations, bits }).seconds;
    // Half of it as partial sums, half as sums.
    let transit = first_layer / 2.0;
    let longer = step_with(gradient / transit) - step_with(f64::INFINITY);
    assert!(longer < 0.25 * transit, "the step is {longer} s longer, and the transit takes {transit} s");
    assert!(longer > 0.0, "links take time");
}

#[test]
fn a_thousand_workers_are_estimated() {
    let plan = plan("alexnet", 1000, 500);
    let estimate = estimated(&plan, 1000, 1e9);
    assert!(estimate.seconds.is_finite() && estimate.seconds >= estimate.computing, "{estimate:?}");
    assert!(estimate.seconds < operations(&plan, 1000) / OPERATIONS, "faster than one worker: {estimate:?}");
}

proptest! {
    /// Every plan ends its steps, in no less time than the busiest worker computes, and not much less than the busiest link carries: the mean
    /// of that is over all steps, with the images of the first one.
    #[test]
    fn every_plan_ends(workers in 1_usize..9, slots in 1_usize..7, micro_batches in 1_usize..4, batch in 1_usize..40, bits in 1e5..1e10_f64) {
        prop_assume!(workers <= 2 * slots);
        let plan = plan("alexnet-fashion", workers, slots);
        let rates = Rates { operations: OPERATIONS, bits };
        for links in [Links::relayed(), Links::direct(), Links::direct().without(WorkerIndex(0), WorkerIndex(1))] {
            let plan = plan.clone().linked(links);
            let estimate = step(&plan, batch, Division { slots, micro_batches }, rates);
            prop_assert!(estimate.seconds >= estimate.computing * 0.999, "{estimate:?}");
            prop_assert!(estimate.seconds >= estimate.carrying * 0.8, "{estimate:?}");
            prop_assert!(estimate.seconds > 0.0 && estimate.seconds.is_finite(), "{estimate:?}");
        }
    }
}
