//! `convoy bench` measures what it reports, and `convoy plan` predicts the memory of a worker. No test asserts a speed.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use serde_json::Value;
use support::{convoy, output_of, said, succeed};

fn json(arguments: &str) -> Value {
    serde_json::from_str(&succeed(arguments, &[])).unwrap()
}

#[test]
fn every_pass_of_every_layer_is_timed_beside_the_peak() {
    let found = json("bench kernels --model alexnet-fashion --batch 3 --repeats 2 --json");
    for yardstick in ["peak_gflops", "memory_gb_per_second"] {
        assert!(found[yardstick].as_f64().unwrap() > 0.0, "{yardstick}");
    }
    let plan = json("plan --model alexnet-fashion --json");
    let passes = found["passes"].as_array().unwrap();
    let of = |layer: &str, pass: &str| passes.iter().find(|p| p["layer"] == layer && p["pass"] == pass);
    for (index, layer) in plan["layers"].as_array().unwrap().iter().enumerate() {
        let name = layer["name"].as_str().unwrap();
        let of_a_tower = layer["multiply_adds_a_tower"].as_u64().unwrap();
        let expected: &[&str] = match (of_a_tower, index) {
            (0, _) => &["forward", "backward"],
            (_, 0) => &["forward", "weight gradient"],
            _ => &["forward", "weight gradient", "input gradient"],
        };
        for pass in expected {
            let timing = of(name, pass).unwrap_or_else(|| panic!("{name} {pass} is not among {passes:?}"));
            assert!(timing["median_ms"].as_f64() >= timing["best_ms"].as_f64());
            let flops = (of_a_tower > 0).then_some(2 * 3 * of_a_tower);
            assert_eq!(timing["flops"].as_u64(), flops, "{name} {pass}");
            assert_eq!(timing["share_of_peak"].as_f64().is_some(), of_a_tower > 0);
            // A ReLU behind a product is done by that.
            let moves = of_a_tower == 0 && !name.starts_with("relu");
            assert_eq!(timing["share_of_memory"].as_f64().is_some(), moves, "{name} {pass}");
        }
    }
    assert!(of("conv1", "input gradient").is_none(), "no job computes it");
}

#[test]
fn whole_steps_are_timed_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = convoy();
    command.args(["bench", "--model", "alexnet-fashion", "--batch", "8", "--steps", "3", "--warm-up", "1", "--json"]);
    let output = output_of(command.env("TMPDIR", folder.path()));
    assert!(output.status.success(), "{}", said(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["steps_ms"].as_array().unwrap().len(), 3);
    assert_eq!(["slots", "micro_batches", "replicas"].map(|what| found[what].as_u64()), [2, 1, 1].map(Some));
    assert_eq!(
        found["account"]["steps"],
        serde_json::json!([2, 3, 4]),
        "the steps that count are those in the account"
    );
    assert!(found["best"]["ms"].as_f64() <= found["median"]["ms"].as_f64());
    for yardstick in ["peak_gflops", "memory_gb_per_second"] {
        assert!(found[yardstick].as_f64().unwrap() > 0.0, "{yardstick}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Within 15 % of what the system says of each worker at the end of its steps.
#[test]
fn a_plan_knows_how_much_memory_workers_will_hold() {
    // The memory of a job is that of its largest step. A small network's first steps may be smaller by a sixth.
    let jobs = [
        ("alexnet-fashion", 64, 20),
        ("alexnet-fashion", 256, 20),
        ("alexnet-fashion-dense", 128, 20),
        ("alexnet", 32, 3),
    ];
    for (model, batch, steps) in jobs {
        let plan = json(&format!("plan --model {model} --batch {batch} --json"));
        let bench = json(&format!("bench --model {model} --batch {batch} --steps {steps} --threads 1 --json"));
        for (worker, predicted) in plan["memory_bytes_a_worker"].as_array().unwrap().iter().enumerate() {
            let held = bench["account"]["workers"][worker]["resident_bytes"].as_f64().unwrap();
            let ratio = predicted.as_f64().unwrap() / held;
            assert!(
                (0.85..1.15).contains(&ratio),
                "{model}, {batch} images, worker {worker}: {predicted} bytes predicted, {held} held"
            );
        }
    }
}
