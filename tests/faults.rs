//! How jobs end, with real processes and real signals: requests to stop, killed coordinators, numbers that are not finite. The last
//! checkpoint stays valid, and nothing is left behind. Every test asserts that its fault happened. Lost workers: `recovery.rs`.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{
    Process, Start as _, checkpoint, finish, hash, is_alive, line_with, losses, record, said, signal, succeed,
    wait_for, worker_processes,
};
use tempfile::TempDir;

/// Found, told and cleaned up within this.
const SOON: Duration = Duration::from_secs(5);

/// What the jobs of this file have in common.
const JOB: &str = "--batch 16 --schedule constant --lr 0.01";

/// A job that would go on for long, under way.
fn start(out: &Path, arguments: &str) -> Process {
    let mut command = support::convoy();
    command.args("train --data bundled --epochs 50".split_whitespace());
    command.args(JOB.split_whitespace()).args(arguments.split_whitespace()).arg("--out").arg(out);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

fn wait_for_steps(out: &Path, steps: usize) {
    wait_for("steps to be recorded", || (losses(out).len() >= steps).then_some(()));
}

fn none_is_left(processes: &[u32]) {
    wait_for("every worker process to be gone", || (!processes.iter().any(|p| is_alive(*p))).then_some(()));
}

/// The control of all comparisons here: what an undisturbed job ends in depends on its seed.
#[test]
fn another_seed_has_other_bits_and_losses() {
    let folder = TempDir::new().unwrap();
    let [one, other] = ["1", "2"].map(|seed| {
        let out = folder.path().join(seed);
        succeed(&format!("train --data bundled {JOB} --steps 3 --seed {seed}"), &[("--out", &out)]);
        (hash(&out), losses(&out))
    });
    assert!(one.0 != other.0 && one.1 != other.1, "{one:?} {other:?}");
}

/// A job over workers that were started by hand, as containers' are.
struct ByHand {
    coordinator: Process,
    workers: [Process; 2],
    out: PathBuf,
}

impl ByHand {
    fn start(folder: &Path, arguments: &str) -> Self {
        let out = folder.join("run");
        let join = support::free_address();
        let worker = |program: Command| {
            let mut command = program;
            command.args(["worker", "--join", &join, "--threads", "1"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
        };
        let by = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).arg(env!("CARGO_BIN_EXE_convoy")).stdin(Stdio::null());
            command
        };
        // Whoever runs these tests may have been started by nohup, which is inherited.
        let workers = [worker(by("env", &["--default-signal=HUP"])), worker(by("nohup", &[]))];
        Self { coordinator: start(&out, &format!("--listen {join} {arguments}")), workers, out }
    }
}

/// A worker that is stopped during a job stays until a checkpoint is written. The job continues with another worker.
#[test]
fn a_worker_that_is_stopped_stays_for_a_checkpoint() {
    let folder = TempDir::new().unwrap();
    let ByHand { coordinator, workers: [leaves, stays], out } =
        ByHand::start(folder.path(), "--checkpoint-every 100000 --patience 0");
    wait_for_steps(&out, 4);
    signal(leaves.id(), "TERM");
    assert_eq!(finish(leaves).status.code(), Some(0));
    let incident = || record(&out)["incidents"].as_array().and_then(|all| all.first().cloned());
    let incident = wait_for("the incident", incident);
    let step = incident["step"].as_u64().unwrap();
    assert_eq!((&incident["kind"], &incident["rewound_to"]), (&"left".into(), &step.into()), "nothing is replayed");
    assert!(checkpoint(&out).ends_with(format!("step-{step:06}")), "{}", checkpoint(&out).display());
    wait_for_steps(&out, step as usize + 4);
    signal(coordinator.id(), "INT");
    let output = finish(coordinator);
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let line = format!("was asked to stop, and left after step {step}; no step is lost");
    assert!(said(&output).contains(&line), "no \"{line}\" in {}", said(&output));
    signal(stays.id(), "TERM");
    assert_eq!(finish(stays).status.code(), Some(0));
    goes_on(&out, folder.path());
}

/// An engine that goes down tells all processes at once: there is a checkpoint all the same.
#[test]
fn all_stopped_at_once_write_a_checkpoint() {
    let folder = TempDir::new().unwrap();
    let ByHand { coordinator, workers, out } = ByHand::start(folder.path(), "--checkpoint-every 100000");
    wait_for_steps(&out, 4);
    let began = Instant::now();
    workers.iter().for_each(|worker| signal(worker.id(), "TERM"));
    signal(coordinator.id(), "TERM");
    let output = finish(coordinator);
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    workers.into_iter().for_each(|worker| assert_eq!(finish(worker).status.code(), Some(0)));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    goes_on(&out, folder.path());
}

/// The only checkpoint is of the last recorded step, and ends in the bits of an undisturbed job.
fn goes_on(out: &Path, folder: &Path) {
    let steps = losses(out).len() as u64;
    assert!(checkpoint(out).ends_with(format!("step-{steps:06}")), "{}", checkpoint(out).display());
    let (end, whole) = (steps + 3, folder.join("whole"));
    succeed(&format!("train --data bundled --steps {end}"), &[("--resume", out)]);
    succeed(&format!("train --data bundled {JOB} --steps {end} --workers 1"), &[("--out", &whole)]);
    assert_eq!((hash(&whole), losses(&whole)), (hash(out), losses(out)));
}

/// nohup keeps a worker when its terminal goes, and one without leaves.
#[test]
fn a_terminal_that_goes_takes_no_worker_with_it_that_was_started_by_nohup() {
    let folder = TempDir::new().unwrap();
    let ByHand { coordinator, workers: [plain, unhung], out } = ByHand::start(folder.path(), "--checkpoint-every 3");
    wait_for_steps(&out, 2);
    signal(unhung.id(), "HUP");
    let steps = losses(&out).len();
    wait_for_steps(&out, steps + 2);
    signal(plain.id(), "HUP");
    assert_eq!(finish(plain).status.code(), Some(0), "the fault fires where there is no nohup");
    assert!(is_alive(unhung.id()));
    signal(coordinator.id(), "INT");
    assert_eq!(finish(coordinator).status.code(), Some(130));
    signal(unhung.id(), "TERM");
    assert_eq!(finish(unhung).status.code(), Some(0));
}

/// Ctrl-C in a measurement doesn't wait for its end: the checkpoint remembers that it is owed.
#[test]
fn an_interrupted_measurement_is_repeated_after_resume() {
    let folder = TempDir::new().unwrap();
    let (data, out, whole) = (folder.path().join("data"), folder.path().join("run"), folder.path().join("whole"));
    std::fs::create_dir(&data).unwrap();
    let images = |count: usize| support::Images {
        pixels: (0..count * 784).map(|i| (i * 7 % 251) as u8).collect(),
        shape: [1, 28, 28],
        labels: (0..count).map(|i| (i % 10) as u8).collect(),
    };
    // An epoch of one step, and a measurement that takes seconds.
    support::write_data(&data, &images(10), &images(20_000));
    let job = "train --epochs 2 --batch 10";
    let mut command = support::convoy();
    command.args(job.split_whitespace()).arg("--data").arg(&data).arg("--out").arg(&out);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    wait_for_steps(&out, 1);
    signal(child.id(), "INT");
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let epochs = |out: &Path| -> Vec<String> {
        let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let parsed = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let of_epochs = parsed.filter(|line| line["through_step"].is_u64());
        of_epochs.map(|line| format!("{} {} {}", line["epoch"], line["test_loss"], line["train_loss"])).collect()
    };
    assert_eq!(epochs(&out), Vec::<String>::new(), "the fault fired: nothing was measured");
    assert!(checkpoint(&out).ends_with("step-000001"));
    succeed("train", &[("--resume", &out)]);
    succeed(&format!("{job} --workers 1"), &[("--data", &data), ("--out", &whole)]);
    assert_eq!((hash(&out), epochs(&out)), (hash(&whole), epochs(&whole)));
    assert_eq!(epochs(&out).len(), 2);
}

/// Worker processes that a coordinator has started notice when it is killed, and leave.
#[test]
fn no_worker_outlives_a_killed_coordinator() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut child = start(&out, "--checkpoint-every 3");
    wait_for_steps(&out, 2);
    let processes = worker_processes(&out);
    assert!(processes.iter().all(|process| is_alive(*process)));
    child.kill().unwrap();
    child.wait().unwrap();
    let began = Instant::now();
    none_is_left(&processes);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// A second Ctrl-C doesn't wait for anything.
#[test]
fn a_second_interrupt_ends_at_once_and_leaves_no_worker() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut child = start(&out, "--checkpoint-every 3");
    wait_for_steps(&out, 2);
    let processes = worker_processes(&out);
    // A stopped worker keeps the first interrupt from taking effect.
    signal(processes[0], "STOP");
    signal(child.id(), "INT");
    line_with(child.stderr.as_mut().unwrap(), "press Ctrl-C again to quit immediately");
    signal(child.id(), "INT");
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    // After the first one alone, the job would have given the worker up and recorded its end.
    assert_eq!(record(&out)["status"], "running");
    signal(processes[0], "CONT");
    none_is_left(&processes);
}

/// Workers may come first: they wait for a coordinator. One too many waits on, and doesn't disturb.
#[test]
fn workers_wait_for_a_coordinator_and_one_too_many_waits_on() {
    let folder = TempDir::new().unwrap();
    let (out, embedded) = (folder.path().join("run"), folder.path().join("embedded"));
    let join = support::free_address();
    let worker = || {
        let mut command = support::convoy();
        command.args(["worker", "--join", &join, "--threads", "1"]).stderr(Stdio::null()).start()
    };
    let mut workers = [worker(), worker(), worker()];
    succeed(&format!("train --data bundled {JOB} --steps 4 --listen {join}"), &[("--out", &out)]);
    succeed(&format!("train --data bundled {JOB} --steps 4"), &[("--out", &embedded)]);
    assert_eq!(hash(&out), hash(&embedded));
    for worker in &mut workers {
        assert!(is_alive(worker.id()), "it waits for the next job");
        signal(worker.id(), "TERM");
        assert_eq!(worker.wait().unwrap().code(), Some(0));
    }
}

/// A rate that is far too high: the job stops before the commit that would spoil the weights, and says where it began.
#[test]
fn a_number_that_is_no_longer_finite_stops_the_job_before_the_commit() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let arguments = "train --data bundled --batch 16 --schedule constant --lr 1e30 --steps 9 --checkpoint-every 1";
    let output = support::run(arguments, &[("--out", &out)]);
    let error = said(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("no longer finite at step") && error.contains("of layer \"") && error.contains("tower"),
        "{error}"
    );
    assert!(!error.contains("panicked"), "{error}");
    let steps = losses(&out).len() as u64;
    assert!(steps < 9, "the fault fired");
    assert!(checkpoint(&out).ends_with(format!("step-{steps:06}")), "the last commit's checkpoint is the last");
    let bytes = std::fs::read(checkpoint(&out).join("weights.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, tensor) in file.tensors() {
        let values = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        assert!(values.into_iter().all(f32::is_finite), "{name} is good to go on from");
    }
}

/// Nobody else is there whose farewell would be waited for.
#[test]
fn a_worker_that_could_not_continue_learns_that_the_job_is_over() {
    let folder = TempDir::new().unwrap();
    let join = support::free_address();
    let mut command = support::convoy();
    command.args(["worker", "--join", &join, "--threads", "1"]).env("RUST_LOG", "convoy=info");
    let worker = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    let job = "train --data bundled --batch 16 --schedule constant --lr 1e30 --steps 9 --workers 1";
    let output = support::run(&format!("{job} --listen {join}"), &[("--out", &folder.path().join("run"))]);
    assert!(said(&output).contains("no longer finite at step"), "the fault fired: {}", said(&output));
    signal(worker.id(), "TERM");
    let log = said(&finish(worker));
    assert!(
        log.contains("the job is over")
            && !log.contains("lost the connection")
            && !log.contains("closed the connection"),
        "{log}"
    );
}
