//! Rules for the source code: dependencies point in one direction, `unsafe` appears only in kernels, presets load.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// `proto <- common <- {worker, coordinator} <- convoy`: worker and coordinator never see each other.
#[test]
fn dependencies_point_one_way() {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let output = support::output_of(&mut command);
    assert!(output.status.success(), "{}", support::said(&output));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ours = |package: &Value| -> (String, Vec<String>) {
        let all = package["dependencies"].as_array().unwrap().iter();
        let names = all.map(|dependency| dependency["name"].as_str().unwrap().to_owned());
        (package["name"].as_str().unwrap().to_owned(), names.filter(|name| name.starts_with("convoy")).collect())
    };
    let found: BTreeMap<_, _> = metadata["packages"].as_array().unwrap().iter().map(ours).collect();
    let allowed = [
        ("convoy", vec!["convoy-common", "convoy-coordinator", "convoy-worker", "convoy-proto"]),
        ("convoy-common", vec!["convoy-proto"]),
        ("convoy-coordinator", vec!["convoy-common", "convoy-proto"]),
        ("convoy-proto", vec![]),
        ("convoy-worker", vec!["convoy-common", "convoy-proto"]),
    ];
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), allowed.iter().map(|a| a.0).collect::<Vec<_>>());
    for (package, allowed) in allowed {
        let strangers: Vec<_> = found[package].iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(strangers.is_empty(), "{package} depends on {strangers:?}");
    }
}

/// Only `unsafe` inside the kernels.
#[test]
fn unsafe_code_is_in_the_kernels_alone() {
    let mut folders: Vec<_> =
        ["src", "proto/src", "common/src", "worker/src", "coordinator/src"].map(std::path::PathBuf::from).into();
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.starts_with("worker/src/kernels") {
                let text = std::fs::read_to_string(&path).unwrap();
                looked_at += 1;
                assert!(!text.contains("unsafe {") && !text.contains("unsafe fn"), "{}", path.display());
            }
        }
    }
    assert!(looked_at > 40);
}

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
    assert_eq!(plan["floats_leaving_a_tower_an_image"], serde_json::json!([30_336, 30_336]));
    let table = support::succeed("plan --model alexnet --workers 2", &[]);
    for part in [
        "conv3",
        "exchanged: one group: each filter sees all channels",
        "local: each group is within a tower",
        "30336, 30336",
    ] {
        assert!(table.contains(part), "no \"{part}\" in\n{table}");
    }
}
