//! `convoy plan` and the model files of the repository: they load, and the plan says what a step costs, also on other numbers of workers.
//!
//! Not here: whether real jobs send as many bytes and need as much memory as planned (`trace`, `defaults`).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use serde_json::Value;

/// Every model file of the repository loads, and the plan says of AlexNet what Krizhevsky's own numbers are.
#[test]
fn every_preset_loads_and_alexnet_costs_what_it_should() {
    for entry in std::fs::read_dir("models").unwrap() {
        let path = entry.unwrap().path();
        let by_file = support::succeed("plan --json", &[("--model", &path)]);
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            by_file,
            support::succeed(&format!("plan --json --model {name}"), &[]),
            "embedded as it is in the repository"
        );
    }
    let plan: Value = serde_json::from_str(&support::succeed("plan --json --model alexnet --batch 128", &[])).unwrap();
    assert_eq!(plan["parameters"], 60_965_224);
    assert_eq!(plan["multiply_adds"], 724_406_816);
    let leaving = |part: &str| plan[format!("floats_leaving_a_{part}_an_image")][0].as_u64().unwrap();
    assert_eq!(leaving("tower") + leaving("slice"), 30_336);
    let table = support::succeed("plan --model alexnet --workers 2", &[]);
    for part in [
        "conv3",
        "exchanged: one group: each filter sees all channels",
        "local: each group is within a tower",
        "by each tower of the trunk 26240, 26240; by each slice of the head, without logits, 4096, 4096",
    ] {
        assert!(table.contains(part), "no \"{part}\" in\n{table}");
    }
}

/// The estimate of a step: a slow link makes it longer, more workers make it shorter, and the table says where that ends.
#[test]
fn the_plan_estimates_a_step_on_other_numbers_of_workers() {
    let estimate = |arguments: &str| -> Value {
        let text = support::succeed(&format!("plan --json --model alexnet --batch 128 --slots 8 {arguments}"), &[]);
        serde_json::from_str::<Value>(&text).unwrap()["estimate"].clone()
    };
    assert_eq!(estimate(""), Value::Null, "without a rate there is nothing to estimate");
    let (fast, slow) = (estimate("--replicas 1 --gflops 100"), estimate("--replicas 1 --gflops 100 --link-mbit 100"));
    let workers = |estimate: &Value| -> Vec<u64> {
        estimate["steps"].as_array().unwrap().iter().map(|row| row["workers"].as_u64().unwrap()).collect()
    };
    assert_eq!((workers(&fast), workers(&slow)), (vec![1, 2, 4, 8, 16], vec![1, 2, 4, 8, 16]));
    let ms = |estimate: &Value, row: usize| estimate["steps"][row]["step_ms"].as_f64().unwrap();
    // 2 x 128 x (3 x 724.4 M multiply-adds, less conv1's input gradient) at 100 GFLOP/s.
    assert!((5200.0..5500.0).contains(&ms(&fast, 0)), "{fast}");
    assert!((0..4).all(|row| ms(&fast, row + 1) < ms(&fast, row)), "{fast}");
    assert!((0..5).all(|row| ms(&slow, row) >= ms(&fast, row)), "{slow}");
    assert!(ms(&slow, 4) > 2.0 * ms(&fast, 4), "{slow}");
    assert_eq!(fast["pays_up_to_workers"], 16, "{fast}");
    assert!(slow["pays_up_to_workers"].as_u64() < Some(16), "{slow}");
    assert_eq!((&fast["fastest_workers"], &fast["steps"][1]["requested"]), (&16.into(), &true.into()), "{fast}");

    let table = support::succeed("plan --gflops 50 --link-mbit 100 --slots 2 --workers 4", &[]);
    for part in [
        "estimate of a step with 50 GFLOP/s per worker and links of 100 Mbit/s",
        "4 *",
        "the shortest step of the table is on 4 workers with 2 replicas",
    ] {
        assert!(table.contains(part), "no \"{part}\" in\n{table}");
    }
    // By default, three workers hold two replicas of two towers, and one of them computes twice as much of the trunk as each of the others. Of four
    // replicas, each computes the same.
    let uneven = "plan --slots 6 --workers 3 --gflops 60 --link-mbit 1000";
    let json = |command: &str| serde_json::from_str::<Value>(&support::succeed(command, &[])).unwrap();
    let (table, planned) = (support::succeed(uneven, &[]), json(&format!("{uneven} --json")));
    assert!(table.contains("\nwith --replicas 4, a step on 3 workers takes "), "{table}");
    assert_eq!(planned["estimate"]["better_replicas"], 4, "{planned}");
    let asked = json(&format!("{uneven} --replicas 2 --json"));
    assert_eq!(asked["estimate"]["better_replicas"], serde_json::Value::Null, "{asked}");

    // The estimates of other numbers of workers, which have more micro-batches, are left out.
    let most = json("plan --slots 600 --batch 1200 --gflops 50 --json");
    assert_eq!(most["estimate"]["steps"].as_array().unwrap().last().unwrap()["workers"], 512, "{most}");

    let thousand = support::succeed(
        "plan --model alexnet --workers 1000 --slots 500 --batch 1000 --gflops 50 --link-mbit 1000",
        &[],
    );
    assert!(thousand.contains("1000 *"), "{thousand}");
}
