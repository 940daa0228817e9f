//! Reports of runs: their figures, their page in a browser, two runs side by side, and runs of which parts are missing.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{convoy, hash, look_at, output_of, record, run, said, succeed};
use tempfile::TempDir;

/// A short run on the bundled images, in `folder`.
fn trained(folder: &Path, name: &str, more: &str) -> PathBuf {
    let out = folder.join(name);
    succeed(&format!("train --data bundled --epochs 2 --batch 100 {more}"), &[("--out", &out)]);
    out
}

fn report(run: &Path, more: &[&str]) -> Value {
    let output = output_of(convoy().arg("report").arg(run).arg("--json").args(more));
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_has_figures_and_a_page() {
    let folder = TempDir::new().unwrap();
    let out = trained(folder.path(), "run", "--trace all");
    let found = report(&out, &[]);
    let (trained, classes) = (&found["trained"], &found["trained"]["classes"]);
    assert_eq!(trained["weights_sha256"], hash(&out).as_str());
    // The figures are those of the run itself and of `convoy eval`.
    let accuracy = classes["correct"].as_f64().unwrap() / classes["images"].as_f64().unwrap();
    assert_eq!(record(&out)["final"]["test_accuracy"], accuracy);
    let eval: Value = serde_json::from_str(&succeed("eval --json", &[("--", &out)])).unwrap();
    assert_eq!((&eval["correct"], &eval["loss"]), (&classes["correct"], &classes["loss"]));
    let confusion: Vec<(u64, u64, u64)> = serde_json::from_value(classes["confusion"].clone()).unwrap();
    assert_eq!(confusion.iter().map(|(.., count)| count).sum::<u64>(), 1000);
    let right: u64 = confusion.iter().filter(|(label, taken, _)| label == taken).map(|(.., count)| count).sum();
    assert_eq!(right, classes["correct"].as_u64().unwrap());
    let in_top = classes["in_top"].as_u64().unwrap();
    assert!(right < in_top && in_top <= 1000, "{in_top}");
    let parameters = trained["layers"]["parameters"].as_array().unwrap();
    assert_eq!((parameters.len(), &parameters[0]["name"]), (16, &Value::from("conv1.weight")));
    assert!(parameters.iter().all(|parameter| parameter["moved"].as_f64().unwrap() > 0.0));
    assert_eq!(found["records"]["epochs"].as_array().unwrap().len(), 2);
    assert_eq!(found["time"]["steps"], 100);
    assert_eq!(found["missing"], Value::Array(Vec::new()));

    let Some(seen) = look_at(&out.join("report.html")) else { return };
    for screen in [&seen["wide"], &seen["narrow"]] {
        assert_eq!((&screen["overlaps"], &screen["requests"]), (&Value::Array(Vec::new()), &Value::Array(Vec::new())));
        assert_eq!(
            (&screen["pictures"], &screen["images"]),
            (&Value::from(4), &Value::from(2)),
            "curves; two towers' filters"
        );
        assert_eq!(screen["wider_than_screen"], false);
        let headings: Vec<&str> = screen["headings"].as_array().unwrap().iter().map(|h| h.as_str().unwrap()).collect();
        let expected = [
            "Learning",
            "Right and wrong",
            "What the layers became",
            "Where the time went",
            "Faults",
            "What decides the result",
        ];
        assert_eq!(headings, expected);
    }
}

#[test]
fn two_runs_are_compared() {
    let folder = TempDir::new().unwrap();
    let first = trained(folder.path(), "first", "");
    let same = trained(folder.path(), "same", "--workers 1");
    let other = trained(folder.path(), "other", "--seed 2 --lr 0.03");
    let compared = |second: &Path| succeed("report", &[("--compare", second), ("--", &first)]);
    let text = compared(&same);
    assert!(text.contains("equal to the bit") && text.contains("all that decide the result are the same"), "{text}");
    let text = compared(&other);
    for part in
        ["seed            1  |  2", "lr              0.02  |  0.03", "by only one of them", "not about their networks"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let found = report(&first, &["--compare", other.to_str().unwrap()]);
    let results = &found["results"];
    let [a, b] = [0, 1].map(|run| found["runs"][run]["trained"]["classes"]["correct"].as_i64().unwrap());
    let [only_a, only_b] = [0, 1].map(|run| results["only"][run].as_i64().unwrap());
    assert_eq!(b - a, only_b - only_a);
    let Some(seen) = look_at(&first.join("compare.html")) else { return };
    assert_eq!((&seen["wide"]["overlaps"], &seen["wide"]["pictures"]), (&Value::Array(Vec::new()), &Value::from(4)));
}

#[test]
fn what_is_missing_is_said_and_nothing_else_is_replaced() {
    let folder = TempDir::new().unwrap();
    let out = trained(folder.path(), "run", "--trace off");
    let text = succeed("report", &[("--", &out)]);
    assert!(text.contains("note: there is no trace"), "{text}");
    // A damaged line of the metrics, and a checkpoint that is not sound.
    let metrics = out.join("metrics.jsonl");
    std::fs::write(&metrics, [b"noise\n".to_vec(), std::fs::read(&metrics).unwrap()].concat()).unwrap();
    let text = succeed("report", &[("--", &out)]);
    assert!(
        text.contains("note: lines of the metrics that are damaged and left out: 1") && text.contains("test accuracy"),
        "{text}"
    );
    std::fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let text = succeed("report", &[("--", &out)]);
    assert!(text.contains("note: the run has no checkpoint") && !text.contains("test accuracy "), "{text}");
    let refused = |paths: &[(&str, &Path)], part: &str| {
        let output = run("report", paths);
        assert!(!output.status.success() && said(&output).contains(part), "{part}: {}", said(&output));
    };
    refused(&[("--", folder.path())], "holds no run");
    refused(&[("--", &folder.path().join("none"))], "holds no run");
    refused(&[("--html", &metrics), ("--", &out)], "not a page");
    std::fs::write(out.join("report.html"), "<!doctype html><p>somebody's own").unwrap();
    refused(&[("--", &out)], "not a page of convoy");
    std::fs::write(out.join("run.json"), "{}").unwrap();
    refused(&[("--", &out)], "run.json is damaged");
    assert!(std::fs::read(&metrics).unwrap().starts_with(b"noise"));
}
