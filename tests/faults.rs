//! Faults with real processes and real signals. Until recovery is built a lost worker ends the job, at once, with a name,
//! and with its last checkpoint good; nothing is left behind. Every test asserts that its fault fired.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use support::{checkpoint, finish, hash, is_alive, losses, record, said, signal, succeed, wait_for, worker_processes};
use tempfile::TempDir;

/// Found, told and cleaned up within this.
const SOON: Duration = Duration::from_secs(5);

/// What the jobs of this file have in common.
const JOB: &str = "--batch 16 --schedule constant --lr 0.01";

/// A job that would go on for long, under way.
fn start(out: &Path, arguments: &str) -> Child {
    let mut command = support::convoy();
    command.args("train --data bundled --epochs 50 --checkpoint-every 3".split_whitespace());
    command.args(JOB.split_whitespace()).args(arguments.split_whitespace()).arg("--out").arg(out);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for_steps(out: &Path, steps: usize) {
    wait_for("steps to be recorded", || (losses(out).len() >= steps).then_some(()));
}

fn none_is_left(processes: &[u32]) {
    wait_for("every worker process to be gone", || (!processes.iter().any(|p| is_alive(*p))).then_some(()));
}

/// The signal ends the job within five seconds, by name; the checkpoint goes on to the bits of an undisturbed job.
fn losing_a_worker_by(with: &str) {
    let folder = TempDir::new().unwrap();
    let (out, whole) = (folder.path().join("run"), folder.path().join("whole"));
    let child = start(&out, "");
    wait_for_steps(&out, 4);
    let processes = worker_processes(&out);
    assert!(processes.len() == 2 && processes.iter().all(|process| is_alive(*process)));
    let began = Instant::now();
    signal(processes[1], with);
    let output = finish(child);
    let took = began.elapsed();
    assert!(took < SOON, "{with}: took {took:?}");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in ["worker 1", "tower 1", "was lost at step", &processes[1].to_string()] {
        assert!(error.contains(part), "{with}: no \"{part}\" in {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
    assert!(with != "KILL" || error.contains("signal 9"), "the fault fired: {error}");
    none_is_left(&processes);
    assert_eq!(record(&out)["status"], "failed");
    let step: u64 = checkpoint(&out).file_name().unwrap().to_str().unwrap()[5..].parse().unwrap();
    let end = step + 3;
    succeed(&format!("train --data bundled --steps {end}"), &[("--resume", &out)]);
    succeed(&format!("train --data bundled {JOB} --steps {end} --workers 1"), &[("--out", &whole)]);
    assert_eq!((hash(&whole), losses(&whole)), (hash(&out), losses(&out)), "{with}");
}

#[test]
fn a_killed_worker_ends_the_job_by_name_and_leaves_a_good_checkpoint() {
    losing_a_worker_by("KILL");
}

#[test]
fn a_stopped_worker_is_noticed_and_ends_the_job_by_name() {
    losing_a_worker_by("STOP");
}

/// Worker processes that a coordinator has started notice when it is killed, and leave.
#[test]
fn no_worker_outlives_a_killed_coordinator() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut child = start(&out, "");
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
    let child = start(&out, "");
    wait_for_steps(&out, 2);
    let processes = worker_processes(&out);
    // A stopped worker keeps the first interrupt from taking effect.
    signal(processes[0], "STOP");
    let began = Instant::now();
    signal(child.id(), "INT");
    let process = child.id();
    let again = std::thread::spawn(move || {
        while began.elapsed() < Duration::from_millis(400) {
            std::thread::sleep(Duration::from_millis(10));
        }
        signal(process, "INT");
    });
    let output = finish(child);
    again.join().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    signal(processes[0], "CONT");
    none_is_left(&processes);
}

/// Workers may come first: they wait for a coordinator. One too many waits on, and doesn't disturb.
#[test]
fn workers_wait_for_a_coordinator_and_one_too_many_waits_on() {
    let folder = TempDir::new().unwrap();
    let (out, embedded) = (folder.path().join("run"), folder.path().join("embedded"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let join = format!("127.0.0.1:{port}");
    let worker = || {
        let mut command = support::convoy();
        command.args(["worker", "--join", &join, "--threads", "1"]).stderr(Stdio::null()).spawn().unwrap()
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
