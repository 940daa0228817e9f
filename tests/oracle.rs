//! The oracle: a second trainer, written only from `docs/NUMERICS.md`, that must reach the same bits as `convoy train`.
//!
//! It shares no code with the project's crates: plain loops over one sample at a time, no workers, no exchanges, no
//! micro-batches, no SIMD. It knows towers only where the page says that they change the bits: in the windows of LRN, and in
//! input gradients, which are computed per tower and then added in tower order. A small net with every kind of
//! layer is trained under several schedules, orders, slots and clusters; every step's loss, every epoch's accuracy and the
//! hash of the final weights must be equal. Nothing here has a tolerance but the last tests, which ask whether the oracle
//! itself can be trusted: are its gradients the slopes of its loss, and its random numbers Philox's?
//!
//! `oracle/random.rs`, `layers.rs` and `trainer.rs` follow the page's sections, so that they can be read side by side.
#![allow(missing_docs, reason = "a test has no readers of its interface")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on should panic")]
#![allow(clippy::needless_range_loop, reason = "the index loops spell out the order of each sum, as the page does")]

use std::process::Command;

use model::{Net, Tensors, model_file, test_data, training_data, write_split};
use random::{Place, fnv1a, philox};
use trainer::{
    BATCH, Case, MOMENTUM, RATE, Run, STEPS, WEIGHT_DECAY, forward, gradients, initial_weights, softmax_cross_entropy,
    train,
};

#[path = "oracle/layers.rs"]
mod layers;
#[path = "oracle/model.rs"]
mod model;
#[path = "oracle/random.rs"]
mod random;
#[path = "oracle/trainer.rs"]
mod trainer;

/// Runs the job with the built binary, and reads what it recorded.
fn convoy(case: Case) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("oracle.toml"), model_file(&Net::new(case.towers, case.slices))).unwrap();
    std::fs::create_dir(path("data")).unwrap();
    write_split(&path("data"), "train", &training_data());
    write_split(&path("data"), "t10k", &test_data());
    let flags = format!(
        "train --model oracle.toml --data data --out out --json --steps {STEPS} --batch {BATCH} --lr {RATE} \
         --momentum {MOMENTUM} --weight-decay {WEIGHT_DECAY} --schedule {} --order {} --seed {} --slots {} \
         --micro-batches {} --workers {}",
        case.schedule, case.order, case.seed, case.slots, case.micro_batches, case.workers
    );
    let seeds = case
        .seeds
        .map(|[init, order, dropout]| format!(" --init-seed {init} --order-seed {order} --dropout-seed {dropout}"));
    let selection = case
        .selection
        .map(|(seed, holdout, images)| format!(" --split-seed {seed} --holdout {holdout} --train-images {images}"));
    let flags = flags + &seeds.unwrap_or_default() + &selection.unwrap_or_default();
    let output = Command::new(env!("CARGO_BIN_EXE_convoy"))
        .args(flags.split_whitespace())
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "convoy {flags}: {}\n{}\n{}", output.status, said.0, said.1);

    let read = |name: &str| std::fs::read_to_string(path("out").join(name)).unwrap();
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let mut run = Run { steps: Vec::new(), accuracies: Vec::new(), weights_sha256: String::new() };
    for line in read("metrics.jsonl").lines() {
        let line = parse(line);
        if let Some(accuracy) = line["test_accuracy"].as_f64() {
            run.accuracies.push(accuracy);
            assert_eq!(line["epoch"], run.accuracies.len(), "epochs count from 1: {line}");
        } else if let Some(loss) = line["loss"].as_f64() {
            run.steps.push((loss, line["lr"].as_f64().unwrap()));
            assert_eq!(line["step"], run.steps.len(), "steps count from 1: {line}");
            assert_eq!(line["epoch"], run.accuracies.len() + 1, "epochs count from 1: {line}");
        }
    }
    let last = &parse(&read("run.json"))["final"];
    assert_eq!(last["steps"], STEPS);
    assert_eq!(last["test_accuracy"].as_f64(), run.accuracies.last().copied());
    run.weights_sha256 = last["weights_sha256"].as_str().unwrap().into();
    run
}

fn assert_equal(case: Case) {
    let (ours, theirs) = (train(case), convoy(case));
    assert_eq!(ours.steps.len(), theirs.steps.len(), "number of steps");
    for (i, (ours, theirs)) in ours.steps.iter().zip(&theirs.steps).enumerate() {
        assert_eq!(ours.1.to_bits(), theirs.1.to_bits(), "rate of step {}: {} or {}", i + 1, ours.1, theirs.1);
        assert_eq!(ours.0.to_bits(), theirs.0.to_bits(), "loss of step {}: {} or {}", i + 1, ours.0, theirs.0);
    }
    assert_eq!(ours.accuracies, theirs.accuracies);
    assert_eq!(ours.weights_sha256, theirs.weights_sha256);
}

const CASE: Case = Case {
    towers: 2,
    slices: 2,
    schedule: "one-cycle",
    order: "shuffled",
    seed: 7,
    seeds: None,
    selection: None,
    slots: 1,
    micro_batches: 2,
    workers: 2,
};

const SEQUENTIAL: Case =
    Case { schedule: "cosine", order: "sequential", slots: 2, micro_batches: 3, workers: 1, ..CASE };

#[test]
fn one_slot_on_two_workers() {
    assert_equal(CASE);
}

#[test]
fn two_slots_and_a_rate_that_steps() {
    assert_equal(Case { slots: 2, schedule: "step:1:0.5", ..CASE });
}

#[test]
fn two_towers_on_one_worker() {
    assert_equal(SEQUENTIAL);
}

/// Twelve samples in slots of 3, 3, 2, 2 and 2, and the epoch's last two in slots of 1, 1 and nothing; a seed that needs
/// both words of the key; a rate whose factors must be multiplied one by one.
#[test]
fn uneven_and_empty_slots() {
    assert_equal(Case { schedule: "step:1:0.7", seed: 0x2_0000_0007, slots: 5, ..CASE });
}

/// The tree of four, six and eight slots differs from a sum in their order. The workers hold replicas; five workers hold six units of three.
#[test]
fn trees_of_slots_over_replicas() {
    assert_equal(Case { slots: 4, workers: 8, micro_batches: 1, ..CASE });
    assert_equal(Case { slots: 6, micro_batches: 2, workers: 5, ..SEQUENTIAL });
    assert_equal(Case { slots: 8, micro_batches: 2, workers: 3, ..SEQUENTIAL });
    assert_equal(Case { towers: 4, slices: 4, slots: 3, workers: 7, ..SEQUENTIAL });
}

/// The order in which partial gradients are added shows only with more than two of them. One worker holds two towers, and
/// must not add up theirs first.
#[test]
fn four_towers_on_three_workers() {
    assert_equal(Case { towers: 4, slices: 4, workers: 3, ..SEQUENTIAL });
}

/// The head is divided otherwise than the trunk: more slices than towers, and fewer. One tower has a whole trunk without exchanges.
#[test]
fn heads_of_another_number_of_slices() {
    assert_equal(Case { slices: 3, ..SEQUENTIAL });
    assert_equal(Case { slices: 5, slots: 4, workers: 7, ..SEQUENTIAL });
    assert_equal(Case { towers: 4, slices: 1, workers: 3, ..CASE });
    assert_equal(Case { towers: 1, slices: 2, workers: 2, ..SEQUENTIAL });
}

/// Initial weights, order and dropout have seeds of their own; the mask keeps that of the job.
#[test]
fn seeds_by_purpose_and_selected_images() {
    assert_equal(Case { seeds: Some([11, 12, 13]), ..CASE });
    assert_equal(Case { selection: Some((5, 3, 9)), slots: 2, ..CASE });
    assert_equal(Case { seeds: Some([7, 7, 8]), selection: Some((7, 0, 20)), ..SEQUENTIAL });
    // The control: each seed matters.
    let hash = |seeds: [u64; 3]| train(Case { seeds: Some(seeds), ..CASE }).weights_sha256;
    let same = hash([7, 7, 7]);
    assert_eq!(same, train(CASE).weights_sha256);
    for seeds in [[8, 7, 7], [7, 8, 7], [7, 7, 8]] {
        assert_ne!(hash(seeds), same, "{seeds:?}");
    }
}

/// A control: four slices of the head are added in another order than two.
#[test]
fn another_number_of_slices_is_another_result() {
    let case = Case { slices: 4, ..SEQUENTIAL };
    assert_ne!(train(case).weights_sha256, convoy(SEQUENTIAL).weights_sha256);
}

/// The control: the oracle tells one job from another.
#[test]
fn another_seed_is_another_result() {
    let (ours, theirs) = (train(Case { seed: 8, ..SEQUENTIAL }), convoy(SEQUENTIAL));
    assert_ne!(ours.steps[0].0.to_bits(), theirs.steps[0].0.to_bits());
    assert_ne!(ours.weights_sha256, theirs.weights_sha256);
}

/// Every tensor's gradient must say how fast the loss moves along it, and along a part of it. Larger steps than these
/// cross the bends of the ReLUs.
#[test]
fn gradients_are_slopes() {
    const BY: f64 = 1e-4;
    let data = training_data();
    let batch: Vec<usize> = (0..BATCH).collect();
    let net = Net::new(4, 4);
    let weights = initial_weights(&net, 3, 3);
    let loss = |weights: &Tensors| -> f64 {
        let of_sample = |position: usize| {
            let logits =
                forward(&net, weights, &data.images[position], Some(Place { seed: 3, step: 1, position })).pop();
            softmax_cross_entropy(&logits.unwrap(), data.labels[position], BATCH).0
        };
        batch.iter().map(|&position| of_sample(position)).sum::<f64>() / BATCH as f64
    };
    for (name, gradient) in &gradients(&net, &weights, &data, &batch, (3, 1), 2).1 {
        let part: Vec<f32> = (0..gradient.len()).map(|i| if i * 37 % 23 < 12 { gradient[i] } else { 0.0 }).collect();
        for direction in [gradient, &part] {
            let length = direction.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>().sqrt();
            let moved = |by: f64| {
                let mut moved = weights.clone();
                let tensor = moved.get_mut(name).unwrap();
                for i in 0..tensor.len() {
                    tensor[i] += (by * f64::from(direction[i]) / length) as f32;
                }
                loss(&moved)
            };
            // The gradient times the unit vector along itself, or along a part of it, is the length of that.
            let slope = (moved(BY) - moved(-BY)) / (2.0 * BY);
            assert!((slope / length - 1.0).abs() < 0.02, "{name}: a slope of {slope}, and a gradient of {length}");
        }
    }
}

/// A job whose net died would agree about nothing much.
#[test]
fn the_job_learns() {
    let run = train(SEQUENTIAL);
    let mean = |steps: &[(f64, f64)]| steps.iter().map(|step| step.0).sum::<f64>() / steps.len() as f64;
    let (first, last) = (mean(&run.steps[..5]), mean(&run.steps[15..]));
    assert!(last < 0.8 * first, "a loss of {last} after {first}");
    assert!(run.accuracies.last() > Some(&0.5), "{:?}", run.accuracies);
}

#[test]
fn philox_and_fnv_known_answers() {
    let zero = philox([0; 4], [0; 2]);
    assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let ones = philox([u32::MAX; 4], [u32::MAX; 2]);
    assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    assert_eq!((fnv1a(""), fnv1a("a")), (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c));
}
