//! Defaults of the program: the data of a checkpoint, the folder of a run, the folder for sockets, the size of
//! micro-batches. A wrong default gives a wrong number without an error, so the built program is tested.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Images, Start as _, checkpoint, finish, output_of, run, said, signal, succeed, write_data};
use tempfile::TempDir;

/// Images in which one row of pixels tells the class, so that a net learns them at once.
fn images(count: usize) -> Images {
    let labels: Vec<u8> = (0..count).map(|image| (image % 10) as u8).collect();
    let mut pixels = vec![0; count * 784];
    for (image, label) in labels.iter().enumerate() {
        pixels[image * 784 + usize::from(*label) * 56..][..56].fill(255);
    }
    Images { pixels, shape: [1, 28, 28], labels }
}

const MODEL: &str = "name = \"linear\"\ntowers = 1\ninput = { channels = 1, height = 28, width = 28 }\n\
                     [[layer]]\nkind = \"linear\"\nname = \"fc\"\nunits = 10\n";

/// A run that was trained on a folder of its own, which has Fashion-MNIST's shape.
struct Trained {
    folder: TempDir,
    data: PathBuf,
    out: PathBuf,
}

impl Trained {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let (data, model, out) =
            (folder.path().join("mine"), folder.path().join("net.toml"), folder.path().join("run"));
        fs::create_dir(&data).unwrap();
        write_data(&data, &images(100), &images(60));
        fs::write(&model, MODEL).unwrap();
        let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &out)];
        succeed("train --epochs 5 --batch 10 --trace off", paths);
        Self { folder, data, out }
    }

    fn eval(&self, rest: &[(&str, &Path)]) -> Value {
        serde_json::from_str(&succeed(&format!("eval {} --json", self.out.display()), rest)).unwrap()
    }

    /// `convoy eval` has to refuse, in words that hold every one of `parts`.
    fn refused(&self, code: i32, parts: &[&str]) {
        let output = run(&format!("eval {}", self.out.display()), &[]);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        parts.iter().for_each(|part| assert!(said(&output).contains(part), "no \"{part}\" in {}", said(&output)));
    }
}

/// It measures the data that the checkpoint names, as its own job did, and needs no training files for that.
#[test]
fn eval_measures_the_data_of_the_checkpoint() {
    let trained = Trained::new();
    let own = support::record(&trained.out)["final"]["test_accuracy"].clone();
    let found = trained.eval(&[]);
    assert_eq!((&found["images"], &found["accuracy"]), (&60.into(), &own), "{found}");
    assert!(found["data"].as_str().unwrap().contains(trained.data.to_str().unwrap()), "it says which: {found}");
    assert_eq!(trained.eval(&[("--data", Path::new("bundled"))])["images"], 1000, "--data wins");
    for file in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"] {
        fs::remove_file(trained.data.join(file)).unwrap();
    }
    assert_eq!(trained.eval(&[]), found, "test images alone are measured");
    let step = checkpoint(&trained.out);
    let of_step: Value = serde_json::from_str(&succeed(&format!("eval {} --json", step.display()), &[])).unwrap();
    assert_eq!(of_step["accuracy"], own, "a checkpoint's folder says the same as its run's");
    let bare = output_of(support::convoy().args(["eval", "weights.safetensors", "--json"]).current_dir(&step));
    assert!(bare.status.success(), "a bare file name: {}", said(&bare));
    assert_eq!(serde_json::from_slice::<Value>(&bare.stdout).unwrap()["accuracy"], own);
}

/// A run keeps the path of its data without the folder in which it was started.
#[test]
fn data_are_found_after_the_folder_of_the_run_is_renamed() {
    let trained = Trained::new();
    let [started, renamed] = ["started", "renamed"].map(|name| trained.folder.path().join(name));
    fs::create_dir(&started).unwrap();
    let mut command = support::convoy();
    command.args("train --model ../net.toml --data ../mine --steps 1 --batch 10 --out run".split(' '));
    let output = output_of(command.current_dir(&started));
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("done after 1 step at"), "{}", said(&output));
    fs::rename(&started, &renamed).unwrap();
    succeed(&format!("eval {}", renamed.join("run").display()), &[]);
}

/// Data that are gone, or have changed since, are never replaced by others in silence.
#[test]
fn eval_refuses_data_that_are_gone_or_have_changed() {
    let trained = Trained::new();
    write_data(&trained.data, &images(100), &images(50));
    trained.refused(2, &["the test images are not those", trained.data.to_str().unwrap(), "--data"]);
    assert_eq!(trained.eval(&[("--data", &trained.data)])["images"], 50, "unless they are asked for by name");
    fs::rename(&trained.data, trained.folder.path().join("moved")).unwrap();
    trained.refused(1, &["that the checkpoint names", trained.data.to_str().unwrap(), "does not exist", "--data"]);
    let output = run("train --steps 60", &[("--resume", &trained.out)]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("that the checkpoint names"), "a resumed job says so too: {}", said(&output));
}

/// Of jobs that start in the same second each gets a folder of its own.
#[test]
fn jobs_that_start_at_once_claim_a_folder_each() {
    let folder = TempDir::new().unwrap();
    let children: Vec<_> = (1..=6)
        .map(|seed| {
            let mut command = support::convoy();
            command.args("train --data bundled --steps 2 --batch 2 --threads 1 --trace off --seed".split_whitespace());
            command.arg(seed.to_string()).current_dir(folder.path());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
        })
        .collect();
    for child in children {
        let output = finish(child);
        assert!(output.status.success(), "{}", said(&output));
    }
    let runs: Vec<PathBuf> = fs::read_dir(folder.path().join("runs")).unwrap().map(|run| run.unwrap().path()).collect();
    let seeds: BTreeSet<u64> =
        runs.iter().map(|run| support::record(run)["configuration"]["seed"].as_u64().unwrap()).collect();
    assert_eq!((runs.len(), seeds), (6, (1..=6).collect()), "{runs:?}");
}

/// Slots belong to the job, and follow from the batch. Micro-batches belong to the run, and follow from the replicas.
#[test]
fn slots_and_micro_batches_follow_from_the_batch_and_the_replicas() {
    let folder = TempDir::new().unwrap();
    let divided = |job: &str, name: &str, more: &[(&str, &Path)]| {
        let out = folder.path().join(name);
        succeed(&format!("train --data bundled {job}"), &[&[("--out", out.as_path())], more].concat());
        let record = support::record(&out);
        let number = |value: &Value| value.as_u64().unwrap();
        let running = &record["running"];
        [number(&record["configuration"]["slots"]), number(&running["replicas"]), number(&running["micro_batches"])]
    };
    assert_eq!(divided("--batch 1 --steps 2", "single", &[]), [1, 1, 1]);
    assert_eq!(divided("--batch 8 --steps 2", "usual", &[]), [2, 1, 1]);
    assert_eq!(divided("--batch 8 --steps 2 --workers 4", "replicas", &[]), [2, 2, 2]);
    assert_eq!(divided("--batch 8 --steps 2 --slots 1", "one", &[]), [1, 1, 2]);
    for (before, slots, workers, expected) in
        [("one", "", 2, [1, 1, 2]), ("usual", "--slots 2", 4, [2, 2, 2]), ("replicas", "", 1, [2, 1, 1])]
    {
        let run = folder.path().join(before);
        let job = format!("--steps 3 {slots} --workers {workers}");
        assert_eq!(divided(&job, &format!("{before}-more"), &[("--resume", &run)]), expected, "{before}");
    }
}

/// A job that is refused claims no folder.
#[test]
fn a_job_that_is_refused_leaves_no_folder() {
    let folder = TempDir::new().unwrap();
    for arguments in ["train --data ./nowhere", "train --data bundled --lr nan", "train --data bundled --workers 5"] {
        let mut command = support::convoy();
        let output = output_of(command.args(arguments.split_whitespace()).current_dir(folder.path()));
        assert!(!output.status.success(), "{arguments}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{arguments}: {}", said(&output));
    }
}

/// Batch systems give jobs temporary folders whose names are longer than a socket's path may be, or that can't be written.
#[test]
fn a_temporary_folder_that_can_have_no_socket_stops_no_job() {
    let folder = TempDir::new().unwrap();
    let long = folder.path().join("scratch-of-job-4711-".repeat(6));
    fs::create_dir(&long).unwrap();
    assert!(long.as_os_str().len() > 108);
    for (name, temporary) in [("long", long), ("missing", folder.path().join("nowhere"))] {
        let out = folder.path().join(name);
        let mut command = support::convoy();
        command.args("train --data bundled --steps 1 --batch 4 --out".split_whitespace()).arg(&out);
        let output = output_of(command.env("TMPDIR", &temporary));
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoy"));
    let join = format!("unix:/tmp/{}", "x".repeat(120));
    let output = output_of(command.args(["worker", "--join", &join]));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("125 bytes") && said(&output).contains("107"), "{}", said(&output));
}

/// A worker's memory is what the plan says: with micro-batches of 32 in training and in measuring, and with weights so large that the
/// copy for a snapshot counts.
#[test]
fn workers_hold_as_much_memory_as_the_plan_says() {
    plan_predicts_memory("--batch 512 --slots 8 --micro-batches 2", "--data bundled --steps 3");
    plan_predicts_memory("--batch 16 --model alexnet", "--data synthetic --steps 2");
    // Replicas also hold sums of gradients.
    plan_predicts_memory("--batch 16 --model alexnet --slots 2 --workers 4", "--data synthetic --steps 2");
}

/// Runs a job, and compares the most memory that each worker has held with the plan.
fn plan_predicts_memory(job: &str, running: &str) {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let plan: Value = serde_json::from_str(&succeed(&format!("plan {job} --json"), &[])).unwrap();
    let join = support::free_address();
    let workers: Vec<_> = (0..plan["memory_bytes_a_worker"].as_array().unwrap().len())
        .map(|_| {
            let mut command = support::convoy();
            command.args(["worker", "--threads", "1", "--join", &join]).stderr(Stdio::null()).start()
        })
        .collect();
    succeed(&format!("train {job} {running} --listen {join}"), &[("--out", &out)]);
    // Workers are numbered in the order in which they connected.
    let record: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    let processes = record["workers"].as_array().unwrap().iter().map(|worker| worker["process_id"].as_u64().unwrap());
    let held: Vec<f64> = processes.map(|process| peak_memory(process as u32)).collect();
    assert_eq!(held.len(), workers.len());
    for worker in workers {
        signal(worker.id(), "TERM");
        assert_eq!(finish(worker).status.code(), Some(0));
    }
    for (worker, held) in held.into_iter().enumerate() {
        let of = |key: &str| plan[key][worker].as_f64().unwrap();
        let predicted = of("memory_bytes_a_worker") + of("snapshot_bytes_a_worker");
        let ratio = predicted / held;
        assert!((0.85..1.15).contains(&ratio), "{job}: {predicted} bytes predicted, {held} held at most");
    }
}

/// The most bytes that a process has held.
fn peak_memory(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0
}
