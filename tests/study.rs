//! Studies, end to end: the built-in `quick`, its numbers and its page in a browser; studies whose processes are killed; and studies that
//! must be refused.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use convoy_common::model::Network;
use convoy_coordinator::checkpoint::read_weights;
use convoy_dataset::{DataSource, Places, Reading, Wanted, load};
use convoy_worker::activations::activations;
use serde_json::Value;
use support::{Process, Start, convoy, look_at, output_of, said, signal, succeed, wait_for};
use support::{newest_checkpoint, read_tensor};
use tempfile::TempDir;

/// A study of nine short runs.
const SMALL: &str = r#"
name = "small"
question = "Is a linear net as good as one with a hidden layer?"
data = "bundled"
epochs = 1
runs = 3
exploratory = true
train = { batch = 50, slots = 1 }

[[arm]]
name = "hidden"
model = "hidden.toml"

[[arm]]
name = "masked"
model = "hidden.toml"
changes = { fc1 = { mask = { kind = "random", groups = 2 } } }
"#;

const HIDDEN: &str = r#"
name = "hidden"
towers = 2
input = { channels = 1, height = 28, width = 28 }
layer = [
  { kind = "conv", name = "conv1", filters = 4, kernel = 5, stride = 2 },
  { kind = "relu" },
  { kind = "linear", name = "fc1", units = 64 },
  { kind = "relu" },
  { kind = "linear", name = "fc2", units = 10 },
]
"#;

/// A folder with the file of a study, which replaces parts of [`SMALL`].
fn files(replaced: &[(&str, &str)]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let mut text = SMALL.to_owned();
    for (old, new) in replaced {
        assert!(text.contains(old), "{old}");
        text = text.replace(old, new);
    }
    let file = folder.path().join("small.toml");
    std::fs::write(&file, text).unwrap();
    std::fs::write(folder.path().join("hidden.toml"), HIDDEN).unwrap();
    (folder, file)
}

fn study(file: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = convoy();
    command.arg("study").arg(file).arg("--out").arg(out).args(more);
    command
}

fn json_in(path: &Path) -> Value {
    serde_json::from_slice(&read(path)).unwrap()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn quick_has_its_numbers_and_its_page() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("quick");
    let text = succeed("study quick", &[("--out", &out)]);
    let report = json_in(&out.join("report.json"));
    let correct = |arm: usize| -> Vec<u64> {
        let runs = report["arms"][arm]["runs"].as_array().unwrap();
        runs.iter().map(|run| run["correct"].as_u64().unwrap()).collect()
    };
    // Of 1,000 test images. The same on every machine.
    assert_eq!(correct(0), [865, 877, 863, 869, 855, 864, 870, 864], "dense");
    assert_eq!(correct(1), [873, 871, 866, 868, 868, 860, 878, 867], "dense, with other seeds");
    assert_eq!(correct(2), [867, 873, 853, 855, 863, 864, 857, 861], "grouped");
    assert_eq!(correct(3), [879, 862, 845, 839, 864, 864, 857, 857], "narrow");
    let said = |index: usize| report["comparisons"][index]["said"].as_str().unwrap().to_owned();
    assert_eq!(said(0), "these 8 pairs of runs can't tell grouped from dense; about one more pair would");
    assert!(said(1).starts_with("these 8 pairs of runs can't tell narrow from dense"), "{}", said(1));
    for part in [
        said(0),
        said(1),
        "dense with other seeds is not found to differ".to_owned(),
        "of two equal nets, one or the other wins".to_owned(),
    ] {
        assert!(text.contains(&part), "{text}");
    }
    // A run is an ordinary run.
    let run = out.join("runs/grouped/seed-3");
    assert!(output_of(convoy().arg("verify").arg(&run)).status.success());
    let hash = json_in(&run.join("run.json"))["final"]["weights_sha256"].clone();
    assert_eq!(hash, report["arms"][2]["runs"][2]["weights_sha256"]);
    page(&out.join("report.html"), 2);
    outputs_are_those_of_a_job(&run);
}

/// What a study looks at has the same bits as what workers compute.
fn outputs_are_those_of_a_job(run: &Path) {
    let logits = run.join("logits.safetensors");
    succeed("eval", &[("--logits", &logits), ("--", run)]);
    let network = Network::parse(&std::fs::read_to_string(run.join("../../../models/grouped.toml")).unwrap()).unwrap();
    let set = load(&DataSource::Bundled, &Wanted::by(&network, 1), &Places::of_this_machine(true), &Reading::default());
    let set = set.unwrap();
    let bytes: Vec<u8> = (0..set.test.len())
        .flat_map(|image| set.test.image(image, convoy_dataset::View::Centre).unwrap().to_vec())
        .collect();
    let weights = read_weights(&newest_checkpoint(run).unwrap().join("weights.safetensors"), &network).unwrap();
    let last = network.layers.len() - 1;
    let ours = std::thread::spawn(move || activations(&network, &weights, &bytes, &[0, last]).unwrap()).join().unwrap();
    let (shape, theirs) = read_tensor(&logits, "logits");
    assert_eq!(shape, [set.test.len(), 10]);
    assert!(ours[&last] == theirs, "the logits differ");
    assert_eq!(ours[&0].len(), set.test.len() * 28 * 28 * 16);
}

/// Looks at the page of a study.
fn page(path: &Path, verdicts: usize) {
    let Some(seen) = look_at(path) else { return };
    for screen in [&seen["wide"], &seen["narrow"]] {
        assert_eq!(screen["overlaps"], Value::Array(Vec::new()));
        assert_eq!(screen["requests"], Value::Array(Vec::new()), "the page needs no network");
        assert_eq!(screen["wider_than_screen"], false);
        assert_eq!(screen["verdicts"].as_array().unwrap().len(), verdicts);
        assert_eq!(screen["pictures"], 15, "five of the study, and a figure and four histograms of each of two layers");
        assert_eq!(screen["images"], 16, "the correlations of four arms in two layers, and the filters of two groups");
        let all = |key: &str, least: f64| screen[key].as_array().unwrap().iter().all(|v| v.as_f64().unwrap() >= least);
        assert!(all("marks", 3.0) && all("heights", 50.0), "{screen}");
    }
}

/// A process that was started by `parent`, and whose command line has this argument.
fn child(parent: u32, argument: &str) -> u32 {
    let is_child = |id: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{parent}")) && line.split('\0').any(|part| part == argument)
    };
    wait_for(&format!("a process with the argument {argument}"), || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_child)
    })
}

/// Starts a study, and waits for the first line with `part`.
fn started(command: &mut Command, part: &str) -> (Process, BufReader<std::process::ChildStdout>) {
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).start();
    let mut lines = BufReader::new(process.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(part) {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the study ended without a line with {part:?}");
    }
    (process, lines)
}

#[test]
fn a_study_whose_processes_are_killed_ends_in_the_same_report() {
    let (folder, file) = files(&[("epochs = 1", "epochs = 4")]);
    let [calm, stormy] = ["calm", "stormy"].map(|name| folder.path().join(name));
    let output = output_of(&mut study(&file, &calm, &[]));
    assert!(output.status.success(), "{}", said(&output));

    // First a run, and then a worker of a run, and then the study itself.
    let (process, mut lines) = started(&mut study(&file, &stormy, &["--at-once", "1"]), "folder");
    signal(child(process.id(), "train"), "KILL");
    let mut line = String::new();
    while !line.contains("was lost, and continues") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "nothing was lost");
    }
    signal(child(child(process.id(), "train"), "worker"), "KILL");
    while !line.contains("of 9 runs") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "no run has ended");
    }
    drop(process);
    assert!(!stormy.join("report.json").exists(), "it was killed before its end");

    let output = output_of(&mut study(&file, &stormy, &[]));
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("of 9 runs have ended"), "it continues: {}", said(&output));
    for name in ["report.json", "report.html", "measurements.json"] {
        assert!(read(&calm.join(name)) == read(&stormy.join(name)), "{name} differs");
    }
    // Measurements are enough for the report, without any run and without images.
    std::fs::remove_dir_all(stormy.join("runs")).unwrap();
    std::fs::remove_file(stormy.join("report.html")).unwrap();
    let output = output_of(&mut study(&file, &stormy, &["--report-only"]));
    assert!(output.status.success(), "{}", said(&output));
    assert!(read(&calm.join("report.html")) == read(&stormy.join("report.html")));
    // All of them are needed.
    let all = read(&stormy.join("measurements.json"));
    let fewer: Vec<Value> = serde_json::from_slice::<Vec<Value>>(&all).unwrap().split_off(1);
    std::fs::write(stormy.join("measurements.json"), serde_json::to_vec(&fewer).unwrap()).unwrap();
    let output = output_of(&mut study(&file, &stormy, &["--report-only"]));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("8 of 9 runs have ended"), "{}", said(&output));
    std::fs::write(stormy.join("measurements.json"), all).unwrap();
    // Measurements that contradict themselves are refused.
    let mut measured: Value = serde_json::from_slice(&read(&stormy.join("measurements.json"))).unwrap();
    measured[0]["trained"]["test"]["correct"] = Value::from(2000);
    std::fs::write(stormy.join("measurements.json"), measured.to_string()).unwrap();
    let output = output_of(&mut study(&file, &stormy, &["--at-once", "1024"]));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("is damaged") && said(&output).contains("2000 of 1000"), "{}", said(&output));
    // The control: another seed is another report.
    let (_other, file) = files(&[("epochs = 1", "epochs = 4\nfirst_seed = 2")]);
    let other = folder.path().join("other");
    assert!(output_of(&mut study(&file, &other, &[])).status.success());
    assert!(read(&calm.join("report.json")) != read(&other.join("report.json")));
}

/// A pool of workers computes the runs, whichever address they come from, and a worker that dies is missed by nobody.
#[test]
fn workers_that_connect_compute_the_same_report() {
    let (folder, file) = files(&[("epochs = 1", "epochs = 2")]);
    let [alone, pooled] = ["alone", "pooled"].map(|name| folder.path().join(name));
    assert!(output_of(&mut study(&file, &alone, &[])).status.success());

    let [one, other] = ["one", "other"].map(|name| format!("unix:{}", folder.path().join(name).display()));
    let (addresses, reversed) = (format!("{one},{other}"), format!("{other},{one}"));
    let token = folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef").unwrap();
    let worker = |join: &str| {
        let mut command = convoy();
        command.args(["worker", "--threads", "1", "--join", join, "--token-file"]).arg(&token);
        command.stderr(Stdio::null()).start()
    };
    let (doomed, _steady) = (worker(&addresses), worker(&reversed));
    let mut command = study(&file, &pooled, &["--listen", &addresses, "--token-file"]);
    let (mut process, mut lines) = started(command.arg(&token), "of 9 runs");
    signal(doomed.id(), "KILL");
    let mut text = String::new();
    lines.read_to_string(&mut text).unwrap();
    assert!(process.wait().unwrap().success(), "{text}");
    assert!(text.contains("9 of 9 runs"), "{text}");
    for name in ["report.json", "report.html", "measurements.json"] {
        assert!(read(&alone.join(name)) == read(&pooled.join(name)), "{name} differs");
    }
}

/// Every arm tries the same rates on held-out images, and the runs have the rate that was best there.
#[test]
fn learning_rates_are_chosen_on_held_out_images() {
    let tune = "runs = 3\ntune = { rates = [1e-6, 0.02, 1e30], holdout = 500, runs = 2 }";
    let (folder, file) = files(&[("runs = 3", tune)]);
    let out = folder.path().join("out");
    let output = output_of(&mut study(&file, &out, &[]));
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("learning rates: hidden 0.02, masked 0.02"), "{}", said(&output));
    let report = json_in(&out.join("report.json"));
    for (arm, name) in [(0, "hidden"), (1, "masked")] {
        let tuned = &report["tuned"][arm];
        assert_eq!((&tuned["arm"], &tuned["lr"]), (&Value::from(name), &Value::from(0.02)));
        let tried = tuned["tried"].as_array().unwrap();
        assert!(tried[0]["accuracy"].as_f64() < tried[1]["accuracy"].as_f64(), "{tuned}");
        assert_eq!((&tried[2]["diverged"], &tried[2]["accuracy"]), (&Value::from(2), &Value::from(0.1)));
    }
    // Held-out images are no test images: the job of a run that tries a rate trains on the others.
    let tuning = out.join("tuning/runs/hidden-lr-0.02/seed-3000002");
    let job = json_in(&tuning.join("run.json"))["configuration"].clone();
    assert_eq!((&job["selection"]["holdout"], &job["lr"]), (&Value::from(500), &Value::from(0.02)), "{job}");
    let measured = json_in(&tuning.join("measured.json"));
    assert_eq!(measured["trained"]["test"]["images"], 500);
    assert_eq!(measured["trained"]["train"]["images"], 4500);
    // The runs of the study train on all images, and those of the control with other seeds have the control's rate.
    for run in ["hidden/seed-1", "hidden-again/seed-1000001"] {
        let job = json_in(&out.join("runs").join(run).join("run.json"))["configuration"].clone();
        assert_eq!((&job["selection"], &job["lr"]), (&Value::Null, &Value::from(0.02)), "{job}");
    }
    // What was measured is enough to write the report again.
    let before = read(&out.join("report.json"));
    ["runs", "tuning/runs"].iter().for_each(|runs| std::fs::remove_dir_all(out.join(runs)).unwrap());
    std::fs::remove_file(out.join("report.json")).unwrap();
    assert!(output_of(&mut study(&file, &out, &[])).status.success());
    assert!(before == read(&out.join("report.json")));
    std::fs::remove_file(out.join("report.json")).unwrap();
    assert!(output_of(&mut study(&file, &out, &["--report-only"])).status.success());
    assert!(before == read(&out.join("report.json")), "without images");
    std::fs::remove_dir_all(out.join("tuning")).unwrap();
    let output = output_of(&mut study(&file, &out, &["--report-only"]));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("tuning/study.json") && !out.join("tuning").exists(), "{}", said(&output));
}

/// A series in which only one source varies has runs that share everything else.
#[test]
fn the_variation_of_runs_is_measured_by_source() {
    let variance = "runs = 3\nvariance = { sources = [\"initial\", \"order\", \"split\"], runs = 3 }";
    let (folder, file) = files(&[("runs = 3", variance), ("slots = 1", "slots = 1, images = 1000")]);
    let out = folder.path().join("out");
    let output = output_of(&mut study(&file, &out, &[]));
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("3 runs that differ only in the initial weights have"), "{}", said(&output));
    let report = json_in(&out.join("report.json"));
    let variation = report["variation"].as_array().unwrap();
    let named: Vec<_> = variation.iter().map(|variation| variation["arm"].as_str().unwrap()).collect();
    assert_eq!(named, ["hidden", "hidden-initial", "hidden-order", "hidden-split"]);
    for variation in variation {
        let value = |key: &Value| key.as_f64().unwrap();
        let (low, high) = (value(&variation["interval"]["low"]), value(&variation["interval"]["high"]));
        assert!(low < value(&variation["deviation"]) && value(&variation["deviation"]) < high, "{variation}");
    }
    assert_eq!(report["comparisons"].as_array().unwrap().len(), 1, "series are no comparisons");
    let hashes = |arm: &str| -> BTreeSet<String> {
        let all = report["arms"].as_array().unwrap().iter();
        let runs = all.filter(|found| found["name"] == arm).flat_map(|arm| arm["runs"].as_array().unwrap());
        runs.map(|run| run["weights_sha256"].as_str().unwrap().to_owned()).collect()
    };
    for (series, key) in
        [("hidden-initial", "/init_seed"), ("hidden-order", "/order_seed"), ("hidden-split", "/selection/seed")]
    {
        assert_eq!(hashes(series).len(), 3, "{series}: runs differ");
        let job = json_in(&out.join("runs").join(series).join("seed-2000002/run.json"))["configuration"].clone();
        assert_eq!((&job["seed"], job.pointer(key)), (&Value::from(1), Some(&Value::from(2_000_002))), "{job}");
    }
}

/// What a step costs depends on the machine, so the report does not have it.
#[test]
fn costs_are_measured_beside_the_report() {
    let (folder, file) = files(&[]);
    let out = folder.path().join("out");
    assert!(output_of(&mut study(&file, &out, &[])).status.success());
    let before = read(&out.join("report.json"));
    let output = output_of(&mut study(&file, &out, &["--costs"]));
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("cost      masked") && said(&output).contains("ms per step of 50 images"),
        "{}",
        said(&output)
    );
    let costs = json_in(&out.join("costs.json"));
    let names: Vec<_> = costs.as_array().unwrap().iter().map(|cost| cost["arm"].as_str().unwrap()).collect();
    assert_eq!(names, ["hidden", "masked"], "series of the control cost what it costs");
    assert_eq!(costs[0]["relative"], 1.0);
    for cost in costs.as_array().unwrap() {
        assert_eq!(cost["ms"].as_array().unwrap().len(), 5);
        assert!(cost["ms"][0].as_f64().unwrap() > 0.0 && cost["memory_bytes"].as_u64().unwrap() > 1 << 20, "{cost}");
    }
    assert!(before == read(&out.join("report.json")));
}

#[test]
fn identity_holds_claim_by_claim() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("identity");
    let text = succeed("study identity", &[("--out", &out)]);
    assert_eq!((text.matches("holds  ").count(), text.matches("FAILS").count()), (6, 0), "{text}");
    for part in [
        "640000 of 640000 outputs are equal to the bit",
        "640000 of 640000 outputs differ, by up to 3.450",
        "1024 with groups, 2048 without",
        "461962 of 461962 weights are equal to the bit, and so are 5 of 5 losses",
        "88101 of 94720 weights between groups change",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let seen = look_at(&out.join("identity.html"));
    for screen in seen.iter().flat_map(|seen| [&seen["wide"], &seen["narrow"]]) {
        assert_eq!((&screen["images"], &screen["requests"]), (&Value::from(1), &Value::Array(Vec::new())));
        assert_eq!(screen["wider_than_screen"], false);
    }
    // The control: models that differ in more than their groups are refused, and so is a folder of somebody else.
    let models = ["study", "identity", "--models", "alexnet-fashion", "alexnet"];
    let refused = output_of(convoy().args(models).arg("--out").arg(folder.path().join("other")));
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("must differ in their groups alone"), "{}", said(&refused));
    let refused = output_of(convoy().args(["study", "identity", "--out"]).arg(folder.path()));
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
}

#[test]
fn arms_with_the_same_job_have_runs_of_their_own_and_differ_in_nothing() {
    let (folder, file) = files(&[("changes = { fc1 = { mask = { kind = \"random\", groups = 2 } } }", "")]);
    let out = folder.path().join("out");
    assert!(output_of(&mut study(&file, &out, &[])).status.success());
    let before = read(&out.join("report.json"));
    let report = json_in(&out.join("report.json"));
    assert_eq!(report["comparisons"][0]["differences"], serde_json::json!([0.0, 0.0, 0.0]));
    assert_eq!(report["comparisons"][0]["verdict"], "same");
    std::fs::remove_dir_all(out.join("runs")).unwrap();
    assert!(output_of(&mut study(&file, &out, &[])).status.success());
    assert!(before == read(&out.join("report.json")), "measurements alone give the same report");
}

#[test]
fn if_all_runs_diverge_nothing_is_called_the_same() {
    let (folder, file) = files(&[("slots = 1", "slots = 1, lr = 1e30")]);
    let out = folder.path().join("out");
    let output = output_of(&mut study(&file, &out, &[]));
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output) + &String::from_utf8(read(&out.join("report.html"))).unwrap();
    assert!(text.contains("runs of both masked and hidden diverged") && !text.contains("NaN"), "{text}");
    assert_eq!(json_in(&out.join("report.json"))["comparisons"][0]["verdict"], "unclear");
}

#[test]
fn a_run_that_diverges_is_reported_and_kept() {
    let (folder, file) = files(&[("name = \"masked\"", "name = \"masked\"\nlr = 1e30")]);
    let out = folder.path().join("out");
    let output = output_of(&mut study(&file, &out, &[]));
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("masked, seed 1: diverged after step") && text.contains("3 runs diverged"), "{text}");
    let report = json_in(&out.join("report.json"));
    let masked = &report["arms"][2];
    assert_eq!((&masked["diverged"], &masked["runs"][0]["test_accuracy"]), (&Value::from(3), &Value::from(0.1)));
    assert!(masked["runs"][0]["diverged_after"].is_u64() && masked["train_accuracy"].is_null());
    let html = String::from_utf8(read(&out.join("report.html"))).unwrap();
    assert!(html.contains("3 diverged") && html.contains("diverged after step") && !html.contains("NaN"));
}

#[test]
fn two_studies_at_once_and_the_same_study_twice() {
    let ((folder, file), (_other, other)) = (files(&[]), files(&[("name = \"small\"", "name = \"other\"")]));
    let outs = ["a", "b"].map(|name| folder.path().join(name));
    let (mut first, _lines) = started(&mut study(&file, &outs[0], &[]), "folder");
    let twice = output_of(&mut study(&file, &outs[0], &[]));
    assert_eq!(twice.status.code(), Some(2), "{}", said(&twice));
    assert!(said(&twice).contains("another process uses"), "{}", said(&twice));
    assert!(output_of(&mut study(&other, &outs[1], &[])).status.success());
    assert!(first.wait().unwrap().success());
    let [a, b] = outs.map(|out| json_in(&out.join("report.json")));
    assert_eq!(a["arms"], b["arms"]);
}

#[test]
fn what_is_wrong_with_a_study_is_said_before_anything_runs() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("epochs = 1", "epoch = 1", &["unknown key \"epoch\"", "did you mean \"epochs\"?"]),
        ("epochs = 1", "epochs = 0", &["epochs = 0", "1 to"]),
        ("epochs = 1", "epochs = \"many\"", &["epochs = \"many\"", "a whole number"]),
        ("runs = 3", "runs = 1", &["runs = 1", "must be 2 to"]),
        (
            "exploratory = true",
            "exploratory = false",
            &["can't show a difference", "needs 6 pairs", "exploratory = true"],
        ),
        ("name = \"small\"", "name = \"../small\"", &["name = \"../small\"", "letters"]),
        ("name = \"masked\"", "name = \"hidden\"", &["two arms are named \"hidden\""]),
        ("name = \"masked\"", "name = \"Hidden\"", &["two arms are named \"Hidden\"", "case"]),
        ("Is a linear", "Is\\u001b[2J a linear", &["question", "control characters"]),
        ("name = \"masked\"", "name = \"masked\"\nruns = 9", &["arm \"masked\"", "runs = 9", "at most 3"]),
        ("fc1 = {", "fc9 = {", &["arm \"masked\"", "no layer named \"fc9\"", "conv1, fc1, fc2"]),
        ("groups = 2 } }", "groups = 5 } }", &["arm \"masked\"", "groups = 5", "must divide"]),
        ("kind = \"random\"", "kind = \"block\"", &["unknown kind of mask \"block\"", "did you mean \"blocks\"?"]),
        ("model = \"hidden.toml\"", "model = \"none.toml\"", &["cannot read", "none.toml"]),
        ("data = \"bundled\"", "data = \"nowhere\"", &["nowhere"]),
        ("data = \"bundled\"", "data = \"bundled\"\ntrain_images = 60000", &["needs 60000", "there are 5000"]),
        ("batch = 50", "lr = inf", &["arm \"hidden\"", "--lr inf", "above 0"]),
        ("batch = 50", "momentum = 1.5", &["arm \"hidden\"", "momentum 1.5", "below 1"]),
        ("slots = 1", "slots = 51", &["slots 51", "1 to 50"]),
        ("batch = 50", "schedule = \"cosin\"", &["schedule", "did you mean \"cosine\"?"]),
        ("epochs = 1", "margin = -1\nepochs = 1", &["margin = -1", "above 0"]),
        ("question", "question = ", &["is not valid TOML"]),
        (
            "runs = 3",
            "runs = 3\nvariance = { sources = [\"luck\"], runs = 3 }",
            &["unknown source \"luck\"", "initial"],
        ),
        ("runs = 3", "runs = 3\nvariance = { sources = [\"dropout\"], runs = 3 }", &["hidden has no dropout"]),
        ("runs = 3", "runs = 3\nvariance = { sources = [\"split\"], runs = 3 }", &["train = { images = N }"]),
        ("slots = 1", "slots = 1, images = 0", &["train, images = 0", "at least 1"]),
        ("runs = 3", "runs = 3\nexpected_deviation = inf", &["expected_deviation = inf", "finite"]),
        ("runs = 3", "runs = 3\ntune = { rates = [0.1, 0.10000000001], holdout = 5 }", &["0.10000000001", "differ"]),
        ("runs = 3", "runs = 3\nvariance = { sources = [\"order\"], runs = 1 }", &["variance, runs = 1", "2 to"]),
        ("runs = 3", "runs = 3\ntune = { rates = [0.1], holdout = 5 }", &["tune, rates", "2 to"]),
        ("runs = 3", "runs = 3\ntune = { rates = [0.2, 0.1], holdout = 5 }", &["ascending"]),
        (
            "runs = 3",
            "runs = 3\ntune = { rates = [0.1, 1e60], holdout = 5 }",
            &["tune, rates: arm \"hidden\"", "fits into f32"],
        ),
        ("runs = 3", "runs = 3\ntune = { rates = [0.1, 0.2], holdout = 0 }", &["tune, holdout = 0"]),
        ("runs = 3", "runs = 3\ntune = { rates = [0.1, 0.2], holdout = 5000 }", &["needs 5001", "there are 5000"]),
        (
            "train = {",
            "tune = { rates = [0.1, 0.2], holdout = 5 }\ntrain = { lr = 0.1,",
            &["train, lr", "tune chooses"],
        ),
    ];
    for (old, new, expected) in cases {
        let (folder, file) = files(&[(old, new)]);
        let out = folder.path().join("out");
        let output = output_of(&mut study(&file, &out, &[]));
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{new}: {text}");
        expected.iter().for_each(|part| assert!(text.contains(part), "{new}: {text}"));
        assert!(!out.exists(), "{new}: nothing is written");
    }
    // So are workers and addresses that can't be.
    let (folder, file) = files(&[]);
    let (held, out) = (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), folder.path().join("out"));
    let address = held.local_addr().unwrap().to_string();
    for (arguments, expected) in [
        (["--workers", "3"], "--workers 3: must be at most 2"),
        (["--listen", &address], "must be an address of this machine that is free"),
        (["--listen", "127.0.0.1:0"], "must have a port above 0"),
        (["--listen", "unix:/nowhere/socket"], "its folder does not exist"),
        (["--listen", "unix:a,unix:a"], "unix:a is there twice"),
    ] {
        let output = output_of(&mut study(&file, &out, &arguments));
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(expected) && !out.exists(), "{}", said(&output));
    }
    for (name, expected) in
        [("quik", "did you mean \"quick\"?"), ("none.toml", "cannot read"), ("/dev/zero", "regular")]
    {
        let output = output_of(convoy().args(["study", name]));
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
}

#[test]
fn a_study_that_changed_is_refused_under_its_old_name() {
    let (folder, file) = files(&[]);
    let out = folder.path().join("out");
    assert!(output_of(&mut study(&file, &out, &[])).status.success());
    let before = read(&out.join("report.json"));
    for (old, new, part) in [
        ("runs = 3", "runs = 4", "seeds: it has 3 of them, not 4"),
        ("groups = 2", "groups = 4", "arms \"masked\", model"),
        ("epochs = 1", "margin = 0.5\nepochs = 1", "margin"),
    ] {
        let (_folder, changed) = files(&[(old, new)]);
        let output = output_of(&mut study(&changed, &out, &[]));
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains(part) && said(&output).contains("another name"), "{}", said(&output));
    }
    assert!(read(&out.join("report.json")) == before);
    let (_folder, reworded) = files(&[("Is a linear", "Is any linear")]);
    let output = output_of(&mut study(&reworded, &out, &[]));
    assert!(output.status.success(), "a text may change: {}", said(&output));
}

/// The reports in the documentation are those of the studies that are part of the program.
#[test]
fn reports_in_the_documentation_follow_from_their_measurements() {
    let names: BTreeSet<String> = std::fs::read_dir("docs/studies")
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().join("measurements.json").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert!(names.contains("asker") && names.contains("groups"));
    for name in names {
        let (folder, kept) = (TempDir::new().unwrap(), Path::new("docs/studies").join(&name));
        let out = folder.path().join("again");
        copy_files(&kept, &out);
        succeed(&format!("study {name} --report-only"), &[("--out", &out)]);
        for file in ["report.json", "report.html"] {
            assert!(
                read(&kept.join(file)) == read(&out.join(file)),
                "docs/studies/{name}/{file} is not what the program writes"
            );
        }
    }
}

/// Copies a folder without its reports.
fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let is_report = entry.file_name().to_string_lossy().starts_with("report.");
        match path.is_dir() {
            true => copy_files(&path, &to),
            false if is_report => {}
            false => drop(std::fs::copy(&path, &to).unwrap()),
        }
    }
}
