//! `convoy chaos`: a short storm of real faults leaves no trace in the result; a storm over a broken recovery is reported; and
//! nothing is left behind.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use support::{hash, record, run, said};
use tempfile::TempDir;

fn chaos(arguments: &str, out: &Path) -> Output {
    run(&format!("chaos {arguments}"), &[("--out", out)])
}

fn report(out: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(out.join("report.json")).unwrap()).unwrap()
}

/// Processes that were started for a storm in this folder, and files that were not finished.
fn remains(out: &Path) -> Vec<String> {
    // Every process of a storm has the folder of its run in its environment.
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let environment = String::from_utf8_lossy(&std::fs::read(path.join("environ")).ok()?).into_owned();
        environment.contains(&format!("CHAOS_RUN={}", out.display())).then(|| path.display().to_string())
    });
    let mut folders = vec![out.to_owned()];
    let mut found: Vec<String> = processes.collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with('.') {
                found.push(path.display().to_string());
            }
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

/// Twenty faults, at least one of each kind: each happens, each that loses something is found and named, and the bits are those of the
/// calm run. The same storm can be repeated from its file.
#[test]
fn a_short_storm_changes_no_bits_and_every_fault_is_found() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("storm");
    let output = chaos("--faults 20 --seed 3 --batch 4", &out);
    assert!(output.status.success(), "{}", said(&output));
    for part in ["weights      equal", "losses       equal", "goodput", "kill ", "coordinator "] {
        assert!(said(&output).contains(part), "no \"{part}\" in {}", said(&output));
    }
    let report = report(&out);
    assert_eq!((&report["survived"], &report["flat_memory"]), (&true.into(), &true.into()), "{report:#}");
    let kinds = report["kinds"].as_object().unwrap();
    assert_eq!(kinds.len(), 13, "{kinds:?}");
    let sum = |key: &str| kinds.values().map(|tally| tally[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("planned"), sum("fired"), sum("missed")), (20, 20, 0), "the faults fired: {kinds:?}");
    assert!(sum("named") >= 8, "{kinds:?}");
    assert_eq!(hash(&out.join("calm")), hash(&out.join("stormy")));
    assert_eq!(record(&out.join("calm"))["incidents"], json!([]));
    assert_eq!(remains(&out), Vec::<String>::new());
}

/// A worker closes its connections to the other one: that is found, nobody is given up, and the bits are those of the calm run. A second
/// time, there is nothing to close.
#[test]
fn closed_connections_between_workers_are_found_once() {
    let folder = TempDir::new().unwrap();
    let (out, storm) = (folder.path().join("storm"), folder.path().join("storm.json"));
    let fault =
        |step: u64| json!({ "kind": "unlink", "worker": 1, "step": step, "phase": "exchange", "milliseconds": 0 });
    let text = json!({ "seed": 0, "steps": 120, "workers": 2, "faults": [fault(30), fault(80)] }).to_string();
    std::fs::write(&storm, text).unwrap();
    let output = run("chaos", &[("--storm", &storm), ("--out", &out)]);
    assert!(output.status.success(), "{}", said(&output));
    let report = report(&out);
    let tally = &report["kinds"]["unlink"];
    let counts = ["fired", "named", "nothing", "missed"].map(|key| tally[key].as_u64().unwrap());
    assert_eq!(counts, [2, 1, 1, 0], "{report:#}");
    let incidents = record(&out.join("stormy"))["incidents"].as_array().unwrap().clone();
    assert!(incidents.len() == 1 && incidents[0]["kind"] == "link", "{incidents:?}");
    assert!(said(&output).contains("no links     1 "), "{}", said(&output));
}

/// Two replicas of two towers, each on a worker of its own.
#[test]
fn a_storm_over_replicas_changes_no_bits() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("storm");
    let output = chaos("--faults 16 --seed 4 --batch 8 --workers 4", &out);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(hash(&out.join("calm")), hash(&out.join("stormy")));
    for run in ["calm", "stormy"] {
        assert_eq!(record(&out.join(run))["configuration"]["slots"], 2);
    }
    let record = record(&out.join("calm"));
    assert_eq!((&record["running"]["replicas"], record["workers"].as_array().unwrap().len()), (&json!(2), 4));
    assert_eq!(remains(&out), Vec::<String>::new());
}

/// The negative control: workers get a wrong state after a fault. Chaos reports that the job does not survive.
#[test]
fn a_broken_recovery_does_not_survive_a_storm() {
    let folder = TempDir::new().unwrap();
    let (out, storm) = (folder.path().join("storm"), folder.path().join("storm.json"));
    let fault = json!({ "kind": "kill", "worker": 1, "step": 30, "phase": "backward", "milliseconds": 0 });
    let text = json!({ "seed": 0, "steps": 40, "workers": 2, "faults": [fault] }).to_string();
    std::fs::write(&storm, text).unwrap();
    let run = |more: &str, out: &Path| run(&format!("chaos {more}"), &[("--storm", &storm), ("--out", out)]);
    let broken = run("--rehearse-stale-snapshot", &out);
    assert_eq!(broken.status.code(), Some(1), "{}", said(&broken));
    assert!(said(&broken).contains("a machine of this job computes differently"), "{}", said(&broken));
    assert_eq!(remains(&out), Vec::<String>::new());
    let whole = run("--json", &folder.path().join("whole"));
    assert!(whole.status.success(), "the same storm over the true recovery: {}", said(&whole));
    let report: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!((&report["kinds"]["kill"]["named"], &report["recovered"]), (&1.into(), &1.into()), "{report:#}");
}

/// What is wrong with a storm, or with the folder, is said before anything runs.
#[test]
fn an_impossible_storm_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("storm.json");
    let fault = |kind: &str, worker: Value, step: u64, phase: &str| json!({ "kind": kind, "worker": worker, "step": step, "phase": phase, "milliseconds": 0 });
    let storm = |faults: Value| json!({ "seed": 0, "steps": 40, "workers": 2, "faults": faults }).to_string();
    let cases = [
        ("{".to_owned(), "EOF"),
        ("7".to_owned(), "expected an object with seed, steps, workers and faults"),
        (storm(json!([7])), "expected an object with kind, worker, step, phase and milliseconds"),
        (storm(json!([{ "kind": "quake" }])), "\"kind\" is \"quake\", and must be one of kill, stop, freeze"),
        (storm(json!([fault("kill", json!(2), 3, "forward")])), "fault 1: \"worker\" is 2; must be from 0 to 1"),
        (storm(json!([fault("kill", json!(null), 3, "forward")])), "fault 1: \"worker\" is missing or null"),
        (storm(json!([fault("coordinator", json!(1), 3, "reported")])), "must be null"),
        (
            storm(json!([fault("flip", json!(1), 3, "forward")])),
            "fault 1: flip can happen at [exchange, reduce, state]",
        ),
        (
            storm(json!([fault("kill", json!(1), 3, "reduce")])),
            "fault 1: \"phase\" is reduce; the job has a single replica",
        ),
        (storm(json!([fault("stop", json!(1), 3, "forward")])), "fault 1: \"milliseconds\" is 0"),
        (storm(json!([fault("kill", json!(1), 41, "forward")])), "fault 1: \"step\" is 41; must be from 1 to 40"),
        (
            storm(json!([fault("kill", json!(1), 9, "forward"), fault("kill", json!(1), 3, "forward")])),
            "not in the order",
        ),
        (r#"{ "seed": 0, "steps": 0, "workers": 2, "faults": [] }"#.to_owned(), "at least 1"),
    ];
    for (text, expected) in cases {
        std::fs::write(&path, &text).unwrap();
        let output = run("chaos", &[("--storm", &path), ("--out", &folder.path().join("out"))]);
        assert_eq!(output.status.code(), Some(2), "{text}: {}", said(&output));
        for part in [expected, "storm.json"] {
            assert!(said(&output).contains(part), "no \"{part}\" in {}", said(&output));
        }
    }
    let text = storm(json!([fault("kill", json!(1), 3, "forward")])).replace("\"workers\":2", "\"workers\":40");
    std::fs::write(&path, text).unwrap();
    let output = run("chaos", &[("--storm", &path), ("--out", &folder.path().join("out"))]);
    assert!(said(&output).contains("storm.json: \"workers\" is 40; it must be at most 32"), "{}", said(&output));
    let output = chaos("--faults 1", folder.path());
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("must be an empty folder"), "{}", said(&output));
    let out = folder.path().join("containers");
    for (arguments, expected) in [
        ("--compose nope.yml", "--compose nope.yml: there is no such file"),
        ("--compose docker-compose.yml --data ./pictures", "--data ./pictures: must be bundled or synthetic"),
        ("--data auto", "--data auto: must be bundled, synthetic or a folder"),
        (
            "--workers 40",
            "--workers 40; it must be at most 32: the 2 towers times the 16 images of a batch; a larger --batch allows more",
        ),
    ] {
        let output = chaos(arguments, &out);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {}", said(&output));
        assert!(said(&output).contains(expected), "no \"{expected}\" in {}", said(&output));
    }
    std::fs::write(&path, storm(json!([fault("kill", json!(1), 3, "forward")]))).unwrap();
    let output = run("chaos --compose docker-compose.yml", &[("--storm", &path), ("--out", &out)]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let expected = "fault 1: kill at forward can't happen to a container; its \"kind\" must be one of [kill, stop, freeze, cut, coordinator], and its \"phase\" reported";
    assert!(said(&output).contains(expected), "no \"{expected}\" in {}", said(&output));
    let output = chaos("--data ./pictures", &out);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("./pictures") && !said(&output).contains("calm"), "{}", said(&output));
    let mut command = support::convoy();
    command.args("chaos --compose docker-compose.yml --out".split_whitespace()).arg(&out);
    let output = support::output_of(command.env("COMPOSE_PROJECT_NAME", "Mine"));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("COMPOSE_PROJECT_NAME is \"Mine\""), "{}", said(&output));
    let mut command = support::convoy();
    command.args("chaos --compose docker-compose.yml --out".split_whitespace()).arg(&out);
    let output = support::output_of(command.env("PATH", folder.path()));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("--compose needs a Docker Engine and docker-compose"), "{}", said(&output));
    assert!(!out.exists());
    let output = chaos("--faults 1 --batch 4 --workers 9", &folder.path().join("nine"));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("--workers 9") && said(&output).contains("must be at most 8"), "{}", said(&output));
    assert!(!folder.path().join("nine").exists());
}
