//! Recovery from faults, with real processes and real signals: whatever happens to its workers, a job ends with the same bits as a
//! job without faults. Every test asserts that its fault happened. Three negative controls break recovery on purpose, and assert
//! that this is noticed.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{
    Process, Start as _, finish, free_address, hash, is_alive, line_with, listening_at, losses, newest_checkpoint,
    record, run, said, signal, succeed, wait_for, worker_processes,
};
use tempfile::TempDir;

/// The job of all tests.
const JOB: &str = "train --data bundled --batch 16 --schedule constant --lr 0.01 --steps 40 --snapshot-every 7";

/// A job without faults: its hash, and its losses.
fn calm() -> &'static (String, Vec<(u64, u64)>) {
    static CALM: OnceLock<(String, Vec<(u64, u64)>)> = OnceLock::new();
    CALM.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("run");
        succeed(JOB, &[("--out", &out)]);
        assert_eq!(record(&out)["incidents"].as_array().map(Vec::len), Some(0));
        (hash(&out), losses(&out))
    })
}

/// The run ended in the bits of the calm one, each step is in its records once, and it recovered from some incidents.
fn ended_like_the_calm_one(out: &Path, output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", said(output));
    assert!(!said(output).contains("panicked"), "{}", said(output));
    assert_eq!((&hash(out), &losses(out)), (&calm().0, &calm().1), "{}", said(output));
    let incidents = record(out)["incidents"].as_array().cloned().unwrap();
    assert!(!incidents.is_empty(), "the fault fired: {}", said(output));
    assert!(said(output).contains("recovered in"), "{}", said(output));
    incidents
}

/// The same job with more steps, for faults that need time.
fn long_job() -> String {
    JOB.replace("--steps 40", "--steps 600")
}

fn start(arguments: &str, out: &Path) -> Process {
    start_job(JOB, arguments, out)
}

fn start_job(job: &str, arguments: &str, out: &Path) -> Process {
    let mut command = support::convoy();
    command.args(job.split_whitespace()).args(arguments.split_whitespace()).arg("--out").arg(out);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

fn worker(join: &str, arguments: &str) -> Process {
    let mut command = support::convoy();
    command.args(["worker", "--join", join, "--threads", "1"]).args(arguments.split_whitespace());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

fn end(workers: impl IntoIterator<Item = Process>) {
    for worker in workers {
        signal(worker.id(), "TERM");
        finish(worker);
    }
}

fn wait_for_steps(out: &Path, steps: usize) {
    wait_for("steps to be recorded", || (losses(out).len() >= steps).then_some(()));
}

/// Processes whose parent is `parent`.
fn children_of(parent: u32) -> BTreeSet<u32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, found) = (fields.next(), fields.next().and_then(|ppid| ppid.parse::<u32>().ok()));
        state != Some("Z") && found == Some(parent)
    })
    .collect()
}

/// A local worker gets the signal in the middle of the job, and another one takes its place.
fn a_local_worker_gets(signals: &str, expected: &str) -> String {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let child = start("", &out);
    wait_for_steps(&out, 10);
    let before = worker_processes(&out);
    signal(before[1], signals);
    let output = finish(child);
    let incidents = ended_like_the_calm_one(&out, &output);
    let incident = &incidents[0];
    let what = incident["what"].as_str().unwrap();
    for part in ["worker 1", "tower 1", "was lost at step", &before[1].to_string(), expected] {
        assert!(what.contains(part), "no \"{part}\" in {what}");
    }
    assert_eq!((&incident["worker"], &incident["kind"]), (&Value::from(1), &Value::from("lost")));
    let (step, snapshot) = (incident["step"].as_u64().unwrap(), incident["rewound_to"].as_u64().unwrap());
    assert!(snapshot <= step && snapshot.is_multiple_of(7) && step - snapshot < 14, "{incident}");
    let after = worker_processes(&out);
    assert!(after[0] == before[0] && after[1] != before[1], "only the lost one is replaced: {before:?} {after:?}");
    let holds =
        |line: &str| line.starts_with("worker 1 tower 1 on ") && line.contains(&format!("(process {} ", after[1]));
    assert!(said(&output).lines().any(holds), "who holds the tower now: {}", said(&output));
    wait_for("all workers to be gone", || before.iter().chain(&after).all(|p| !is_alive(*p)).then_some(()));
    let part = |name: &str| incident[name].as_f64().unwrap();
    let silent = if signals == "STOP" { 9000.0..60_000.0 } else { 0.0..5000.0 };
    assert!(silent.contains(&part("detect_ms")), "{incident}");
    assert!(part("replace_ms") > 0.0 && part("restore_ms") > 0.0, "{incident}");
    assert_eq!(part("replay_ms") > 0.0, snapshot < step, "{incident}");
    said(&output)
}

#[test]
fn a_killed_local_worker_is_replaced() {
    a_local_worker_gets("KILL", "signal 9");
}

#[test]
fn a_stopped_local_worker_is_given_up_and_replaced() {
    let said = a_local_worker_gets("STOP", "it did not answer for 10 s");
    assert!(said.contains("does not answer; it will be given up after 10 s of silence"), "{said}");
}

/// Stops a worker of a job for some seconds, which is less than the patience. Returns what the job said.
fn a_worker_is_stopped_for(seconds: u64) -> String {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let child = start("", &out);
    wait_for_steps(&out, 10);
    let process = worker_processes(&out)[1];
    signal(process, "STOP");
    let (began, steps) = (Instant::now(), losses(&out).len());
    while began.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(losses(&out).len() <= steps + 1, "the fault fired: the job stood still");
    signal(process, "CONT");
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((&hash(&out), &losses(&out)), (&calm().0, &calm().1));
    assert_eq!(record(&out)["incidents"].as_array().map(Vec::len), Some(0), "{}", said(&output));
    said(&output)
}

#[test]
fn a_worker_that_is_stopped_for_a_second_is_not_suspected() {
    let said = a_worker_is_stopped_for(1);
    assert!(!said.contains("does not answer"), "{said}");
}

#[test]
fn a_worker_that_is_stopped_for_five_seconds_is_suspected_and_not_lost() {
    let said = a_worker_is_stopped_for(5);
    for part in
        ["worker 1 (process ", " does not answer; it will be given up after 10 s of silence", " answers again, after "]
    {
        assert!(said.contains(part), "no \"{part}\" in {said}");
    }
}

#[test]
fn both_local_workers_may_be_killed_at_once() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let child = start("", &out);
    wait_for_steps(&out, 10);
    let before = worker_processes(&out);
    before.iter().for_each(|process| signal(*process, "KILL"));
    let output = finish(child);
    let incidents = ended_like_the_calm_one(&out, &output);
    assert!(worker_processes(&out).iter().all(|process| !before.contains(process)));
    assert!(!said(&output).contains("before it connected"), "both had connected: {}", said(&output));
    assert!(incidents.iter().all(|incident| incident["kind"] == "lost"), "{incidents:?}");
}

/// Two replicas of two towers. Workers die that hold a tower of one replica, a slice of the head, or everything of a replica.
#[test]
fn a_worker_of_a_replica_may_be_killed() {
    let folder = TempDir::new().unwrap();
    let calm = folder.path().join("calm");
    let job = "train --data bundled --batch 16 --slots 2 --steps 150 --schedule constant --lr 0.01 --trace off --snapshot-every 10";
    succeed(&format!("{job} --workers 1"), &[("--out", &calm)]);
    for killed in [vec![3], vec![0], vec![2, 3], vec![0, 1, 2, 3]] {
        let out = folder.path().join(format!("{killed:?}"));
        let child = start_job(&format!("{job} --workers 4"), "", &out);
        wait_for_steps(&out, 30);
        let before = worker_processes(&out);
        killed.iter().for_each(|worker: &usize| signal(before[*worker], "KILL"));
        let output = finish(child);
        assert!(output.status.success(), "{killed:?}: {}", said(&output));
        assert!(!record(&out)["incidents"].as_array().unwrap().is_empty(), "{killed:?}: the fault fired");
        assert_eq!((hash(&out), losses(&out)), (hash(&calm), losses(&calm)), "{killed:?}");
    }
}

/// Two replicas of two towers, on workers that are connected directly. One of them is killed, stopped until it is given up, closes all its
/// connections, or closes those to the other workers, in every phase of a step.
fn a_worker_of_a_replica_at(phase: &str) {
    static CALM: OnceLock<(String, Vec<(u64, u64)>)> = OnceLock::new();
    let folder = TempDir::new().unwrap();
    let job = "train --data bundled --batch 16 --slots 2 --steps 60 --schedule constant --lr 0.01 --trace off --snapshot-every 10";
    let calm = CALM.get_or_init(|| {
        let out = folder.path().join("calm");
        succeed(&format!("{job} --workers 1"), &[("--out", &out)]);
        (hash(&out), losses(&out))
    });
    for (deed, kind) in [("kill", "lost"), ("stop", "lost"), ("reconnect", "lost"), ("unlink", "link")] {
        let out = folder.path().join(deed);
        let mut child = start_job(&format!("{job} --workers 4"), "--listen 127.0.0.1:0 --patience 2", &out);
        let join = listening_at(&mut child);
        let doomed = worker(&join, &format!("--rehearse {deed}@{phase}:15"));
        let others: Vec<_> = (0..3).map(|_| worker(&join, "")).collect();
        let output = finish(child);
        assert!(output.status.success(), "{deed}@{phase}: {}", said(&output));
        let incidents = record(&out)["incidents"].as_array().unwrap().clone();
        // On a busy machine, a generation may need a further attempt.
        let of_doomed = |incident: &Value| {
            let what = incident["what"].as_str().unwrap();
            incident["kind"] == kind && (kind == "link" || what.contains(&format!("(process {} ", doomed.id())))
        };
        assert!(incidents.first().is_some_and(of_doomed), "{deed}@{phase}: the fault fired: {incidents:?}");
        assert!(incidents.len() <= 3, "{deed}@{phase}: {incidents:?}");
        let planned = &record(&out)["planned_step_traffic"];
        assert!(deed == "unlink" || planned["across"].as_u64() > Some(0), "{deed}@{phase}: direct links: {planned}");
        assert_eq!(&(hash(&out), losses(&out)), calm, "{deed}@{phase}");
        signal(doomed.id(), "CONT");
        end(others.into_iter().chain([doomed]));
    }
}

#[test]
fn faults_of_a_replica_in_a_forward_pass_change_no_bits() {
    a_worker_of_a_replica_at("forward");
}

#[test]
fn faults_of_a_replica_in_an_exchange_change_no_bits() {
    a_worker_of_a_replica_at("exchange");
}

#[test]
fn faults_of_a_replica_in_a_backward_pass_change_no_bits() {
    a_worker_of_a_replica_at("backward");
}

#[test]
fn faults_of_a_replica_in_a_reduction_change_no_bits() {
    a_worker_of_a_replica_at("reduce");
}

#[test]
fn faults_of_a_replica_before_a_commit_change_no_bits() {
    a_worker_of_a_replica_at("commit");
}

/// Of two replicas over workers by hand, one worker is killed and not replaced: the others take over, as one replica and a half.
#[test]
fn survivors_take_over_what_a_replica_has_lost() {
    let folder = TempDir::new().unwrap();
    let (calm, out) = (folder.path().join("calm"), folder.path().join("run"));
    let job = "train --data bundled --batch 16 --slots 2 --steps 400 --schedule constant --lr 0.01 --trace off --snapshot-every 10";
    succeed(&format!("{job} --workers 2"), &[("--out", &calm)]);
    let mut child = start_job(&format!("{job} --workers 4"), "--listen 127.0.0.1:0 --patience 0", &out);
    let join = listening_at(&mut child);
    let mut workers: Vec<_> = (0..4).map(|_| worker(&join, "")).collect();
    wait_for_steps(&out, 30);
    let dead = workers.remove(1);
    signal(dead.id(), "KILL");
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(record(&out)["workers"].as_array().unwrap().len(), 3, "the survivors");
    assert_eq!((hash(&out), losses(&out)), (hash(&calm), losses(&calm)));
    end(workers);
}

/// Each replacement is killed as soon as it is there, three times.
#[test]
fn a_worker_may_be_killed_again_while_it_is_restored() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let child = start("", &out);
    wait_for_steps(&out, 10);
    let mut seen = children_of(child.id());
    assert_eq!(seen.len(), 2);
    signal(worker_processes(&out)[1], "KILL");
    for _ in 0..3 {
        let new = wait_for("a replacement", || children_of(child.id()).difference(&seen).next().copied());
        seen.insert(new);
        signal(new, "KILL");
    }
    let incidents = ended_like_the_calm_one(&out, &finish(child));
    assert!(incidents.len() >= 4, "each of them is recorded: {incidents:?}");
    assert!(!worker_processes(&out).iter().all(|process| seen.contains(process)), "a fourth replacement did it");
}

/// A remote worker kills itself at the given moment. Another one, which has waited for a place, takes over.
fn a_remote_worker_dies_at(moment: &str) {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut child = start("--listen 127.0.0.1:0 --checkpoint-every 20 --patience 60", &out);
    let join = listening_at(&mut child);
    let doomed = worker(&join, &format!("--rehearse kill@{moment}"));
    let doomed_id = doomed.id();
    let other = worker(&join, "");
    // It comes when the doomed one is gone: it must not have its place first.
    let gone = wait_for_death(doomed);
    assert_eq!(gone.status.signal(), Some(9), "{moment}: the fault fired: {}", said(&gone));
    assert!(said(&gone).contains(&format!("rehearsal: kill@{moment}, at ")), "{moment}: {}", said(&gone));
    let spare = worker(&join, "");
    let output = finish(child);
    // A worker that dies before it has a place is no incident.
    if moment == "join" {
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!((&hash(&out), &losses(&out)), (&calm().0, &calm().1), "{moment}");
    } else {
        let incidents = ended_like_the_calm_one(&out, &output);
        let what = incidents[0]["what"].as_str().unwrap();
        assert!(what.contains(&doomed_id.to_string()), "{moment}: {what}");
    }
    end([other, spare]);
}

fn wait_for_death(mut child: Process) -> Output {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < support::LIMIT, "the worker lives");
        std::thread::sleep(Duration::from_millis(5));
    }
    finish(child)
}

#[test]
fn a_worker_may_die_while_it_joins() {
    a_remote_worker_dies_at("join");
}

#[test]
fn a_worker_may_die_while_it_is_assigned_its_towers() {
    a_remote_worker_dies_at("assign");
}

#[test]
fn a_worker_may_die_in_a_forward_pass() {
    a_remote_worker_dies_at("forward:11");
}

#[test]
fn a_worker_may_die_in_the_middle_of_an_exchange() {
    a_remote_worker_dies_at("exchange:12");
}

#[test]
fn a_worker_may_die_in_a_backward_pass() {
    a_remote_worker_dies_at("backward:13");
}

#[test]
fn a_worker_may_die_before_it_commits_a_step() {
    a_remote_worker_dies_at("commit:15");
}

#[test]
fn a_worker_may_die_in_the_middle_of_a_snapshot() {
    a_remote_worker_dies_at("state:14");
}

#[test]
fn a_worker_may_die_in_the_middle_of_a_checkpoint() {
    a_remote_worker_dies_at("state:20");
}

#[test]
fn a_worker_may_die_in_a_measurement() {
    a_remote_worker_dies_at("measure");
}

/// A layer that never ends: the worker answers pings, and is found by what it says it is doing.
#[test]
fn a_worker_whose_computation_hangs_is_named_with_its_layer_and_replaced() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut child = start("--listen 127.0.0.1:0 --patience 60", &out);
    let join = listening_at(&mut child);
    let mut hanging = worker(&join, "--rehearse-slow conv4:backward:3600000");
    let other = worker(&join, "");
    let id = wait_for("the job to begin", || record(&out)["workers"].as_array().map(Vec::len).filter(|all| *all == 2));
    assert_eq!(id, 2);
    let spare = worker(&join, "");
    let output = finish(child);
    let incidents = ended_like_the_calm_one(&out, &output);
    assert_eq!((incidents.len(), &incidents[0]["kind"]), (1, &Value::from("hangs")));
    let what = incidents[0]["what"].as_str().unwrap();
    assert!(what.contains("the backward pass of layer \"conv4\" for 3"), "{what}");
    assert!(hanging.try_wait().unwrap().is_none(), "it lives, and joins no job");
    hanging.kill().unwrap();
    hanging.wait().unwrap();
    end([other, spare]);
}

/// Nobody comes in place of a lost worker: the other one takes its tower over.
#[test]
fn the_remaining_worker_takes_the_towers_over() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut child = start("--listen 127.0.0.1:0 --patience 1", &out);
    let join = listening_at(&mut child);
    let doomed = worker(&join, "--rehearse kill@backward:17");
    let other = worker(&join, "");
    let output = finish(child);
    ended_like_the_calm_one(&out, &output);
    assert!(
        said(&output).contains("no other worker connected in time; the remaining workers (1 of 2) hold all towers now"),
        "{}",
        said(&output)
    );
    let workers = record(&out)["workers"].as_array().cloned().unwrap();
    assert!(workers.len() == 1 && workers[0]["towers"] == json!([0, 1]), "{workers:?}");
    assert_eq!(wait_for_death(doomed).status.signal(), Some(9));
    end([other]);
}

/// A worker that connects while the job has all its workers is a spare. It takes the place of a lost worker at once.
#[test]
fn a_spare_takes_the_place_of_a_lost_worker() {
    let (folder, job) = (TempDir::new().unwrap(), long_job());
    let (out, calm) = (folder.path().join("run"), folder.path().join("calm"));
    succeed(&job, &[("--out", &calm)]);
    let mut child = start_job(&job, "--listen 127.0.0.1:0 --patience 60", &out);
    let join = listening_at(&mut child);
    let seated = [worker(&join, ""), worker(&join, "")];
    wait_for_steps(&out, 1);
    let mut spare = worker(&join, "");
    let log = support::line_with(spare.stderr.as_mut().unwrap(), "this worker is a spare");
    assert!(log.contains("the job already has all its workers"), "{log}");
    signal(seated[0].id(), "KILL");
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((hash(&out), losses(&out)), (hash(&calm), losses(&calm)), "{}", said(&output));
    let incidents = record(&out)["incidents"].as_array().cloned().unwrap();
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    assert!(incidents[0]["replace_ms"].as_f64().unwrap() < 5000.0, "nobody was waited for: {incidents:?}");
    assert!(worker_processes(&out).contains(&spare.id()), "the spare holds towers");
    end(seated.into_iter().chain([spare]));
}

/// Two workers are stopped together. The patience for the second one begins when it falls silent, not when the first is given up.
#[test]
fn workers_that_are_stopped_together_are_given_up_together() {
    let (folder, job) = (TempDir::new().unwrap(), long_job());
    let (out, calm) = (folder.path().join("run"), folder.path().join("calm"));
    succeed(&job, &[("--out", &calm)]);
    let mut child = start_job(&job, "--listen 127.0.0.1:0 --patience 8", &out);
    let join = listening_at(&mut child);
    let seated = [worker(&join, ""), worker(&join, "")];
    wait_for_steps(&out, 1);
    let mut spares = [worker(&join, ""), worker(&join, "")];
    for spare in &mut spares {
        line_with(spare.stderr.as_mut().unwrap(), "this worker is a spare");
    }
    seated.iter().for_each(|stopped| signal(stopped.id(), "STOP"));
    let mut given_up = || line_with(child.stdout.as_mut().unwrap(), "did not answer for 8 s");
    given_up();
    let first = Instant::now();
    given_up();
    assert!(first.elapsed() < Duration::from_secs(4), "the second one was given up {:?} later", first.elapsed());
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((hash(&out), losses(&out)), (hash(&calm), losses(&calm)), "{}", said(&output));
    seated.iter().for_each(|stopped| signal(stopped.id(), "CONT"));
    end(seated.into_iter().chain(spares));
}

/// A worker that the other one waits for most of the time is named. It is not given up.
#[test]
fn a_slow_worker_is_named_and_stays() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut child = start("--listen 127.0.0.1:0", &out);
    let join = listening_at(&mut child);
    let workers = [worker(&join, ""), worker(&join, "--rehearse-slow conv4:backward:100")];
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    let named: Vec<_> = said(&output).lines().filter(|line| line.contains("is slow")).map(str::to_owned).collect();
    let slow = format!("(process {} on ", workers[1].id());
    assert!(named.len() == 1 && named[0].contains(&slow), "worker process {} is slow: {named:?}", workers[1].id());
    assert_eq!((&hash(&out), &losses(&out)), (&calm().0, &calm().1), "{}", said(&output));
    assert_eq!(record(&out)["incidents"].as_array().map(Vec::len), Some(0));
    end(workers);
}

/// A spare that is stopped gets no seat: another one does, at once. When it continues, it is a spare again.
#[test]
fn a_spare_that_does_not_answer_is_passed_over() {
    let (folder, job) = (TempDir::new().unwrap(), long_job());
    let (out, calm) = (folder.path().join("run"), folder.path().join("calm"));
    succeed(&job, &[("--out", &calm)]);
    let mut command = support::convoy();
    command.args(job.split_whitespace()).args("--listen 127.0.0.1:0 --patience 60 --out".split_whitespace()).arg(&out);
    command.env("RUST_LOG", "convoy=info").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.start();
    let join = listening_at(&mut child);
    let seated = [worker(&join, ""), worker(&join, "")];
    wait_for_steps(&out, 1);
    let spares = [(); 2].map(|()| {
        let mut spare = worker(&join, "");
        support::line_with(spare.stderr.as_mut().unwrap(), "this worker is a spare");
        spare
    });
    signal(spares[0].id(), "STOP");
    support::line_with(child.stderr.as_mut().unwrap(), "a spare does not answer");
    signal(seated[0].id(), "KILL");
    wait_for("the other spare to hold towers", || worker_processes(&out).contains(&spares[1].id()).then_some(()));
    signal(spares[0].id(), "CONT");
    signal(seated[1].id(), "KILL");
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((hash(&out), losses(&out)), (hash(&calm), losses(&calm)), "{}", said(&output));
    let incidents = record(&out)["incidents"].as_array().cloned().unwrap();
    assert_eq!(incidents.len(), 2, "{incidents:?}");
    let replaced: Vec<_> = incidents.iter().map(|incident| incident["replace_ms"].as_f64().unwrap()).collect();
    assert!(replaced.iter().all(|ms| *ms < 5000.0), "nobody was waited for: {incidents:?}");
    let expected: BTreeSet<_> = spares.iter().map(|process| process.id()).collect();
    assert_eq!(worker_processes(&out).into_iter().collect::<BTreeSet<_>>(), expected, "both spares hold towers");
    end(seated.into_iter().chain(spares));
}

/// A worker joins after another one has taken the towers of a lost worker over: at the next snapshot, the towers are spread out
/// again. The new worker then takes part until the end.
#[test]
fn towers_are_spread_out_again_when_a_worker_joins() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let (job, calm) = (long_job(), folder.path().join("calm"));
    succeed(&job, &[("--out", &calm)]);
    let mut child = start_job(&job, "--listen 127.0.0.1:0 --patience 0", &out);
    let join = listening_at(&mut child);
    let doomed = worker(&join, "--rehearse kill@backward:17");
    let other = worker(&join, "");
    assert_eq!(wait_for_death(doomed).status.signal(), Some(9));
    wait_for_steps(&out, 30);
    let new = worker(&join, "");
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((hash(&out), losses(&out)), (hash(&calm), losses(&calm)), "{}", said(&output));
    for part in
        ["remaining workers (1 of 2) hold all towers now", "another worker has joined; 2 workers hold the towers now"]
    {
        assert!(said(&output).contains(part), "no \"{part}\" in {}", said(&output));
    }
    let (mut held, mut ours) = (worker_processes(&out), vec![other.id(), new.id()]);
    held.sort_unstable();
    ours.sort_unstable();
    assert_eq!(held, ours);
    assert_eq!(record(&out)["incidents"].as_array().map(Vec::len), Some(1), "that a worker joins is no fault");
    end([other, new]);
}

/// All workers are lost: the job waits, and continues with new ones.
#[test]
fn a_job_without_any_worker_waits_for_new_ones() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let address = free_address();
    let child = start(&format!("--listen {address} --patience 0"), &out);
    let doomed = [worker(&address, "--rehearse kill@forward:9"), worker(&address, "--rehearse kill@forward:9")];
    for worker in doomed {
        assert_eq!(wait_for_death(worker).status.signal(), Some(9));
    }
    let workers = [worker(&address, ""), worker(&address, "")];
    let output = finish(child);
    ended_like_the_calm_one(&out, &output);
    end(workers);
}

/// All workers are lost, and one comes back: the job does not wait for the others longer than its patience.
#[test]
fn a_job_without_any_worker_continues_with_the_first_that_connects() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let address = free_address();
    let mut child = start(&format!("--listen {address} --patience 0"), &out);
    let doomed = [worker(&address, "--rehearse kill@forward:9"), worker(&address, "--rehearse kill@forward:9")];
    for worker in doomed {
        assert_eq!(wait_for_death(worker).status.signal(), Some(9));
    }
    // A worker that connects before is a spare, which takes a place at once.
    line_with(child.stdout.as_mut().unwrap(), "no worker is left");
    let first = worker(&address, "");
    let output = finish(child);
    ended_like_the_calm_one(&out, &output);
    assert!(said(&output).contains("remaining workers (1 of 2) hold all towers now"), "{}", said(&output));
    assert_eq!(worker_processes(&out), [first.id()]);
    end([first]);
}

/// A stopped worker is replaced. When it is continued, it is told that it is no longer needed, and serves the next job.
#[test]
fn a_stopped_remote_worker_is_fenced_and_serves_the_next_job() {
    let folder = TempDir::new().unwrap();
    let (out, next) = (folder.path().join("run"), folder.path().join("next"));
    let address = free_address();
    let child = start(&format!("--listen {address}"), &out);
    let workers = [worker(&address, ""), worker(&address, "")];
    wait_for_steps(&out, 10);
    let stopped = &workers[0];
    signal(stopped.id(), "STOP");
    let spare = worker(&address, "");
    let output = finish(child);
    let incidents = ended_like_the_calm_one(&out, &output);
    assert!(incidents[0]["what"].as_str().unwrap().contains(&stopped.id().to_string()), "{incidents:?}");
    signal(stopped.id(), "CONT");
    let mut of_next = support::convoy();
    of_next.args(JOB.split_whitespace()).args(["--listen", &address, "--workers", "2", "--out"]).arg(&next);
    end([spare]);
    let output = support::output_of(of_next.stdout(Stdio::piped()).stderr(Stdio::piped()));
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(hash(&next), calm().0);
    assert!(worker_processes(&next).contains(&workers[0].id()), "it is useful again");
    end(workers);
}

/// Ctrl-C is heard although a worker is stopped: the job ends with its last snapshot, and continues to the same bits.
#[test]
fn an_interrupt_is_heard_while_a_worker_says_nothing() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let child = start("", &out);
    wait_for_steps(&out, 10);
    let processes = worker_processes(&out);
    signal(processes[0], "STOP");
    let began = Instant::now();
    signal(child.id(), "INT");
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(losses(&out).len() < 40, "the fault fired");
    let output = run("train", &[("--resume", &out)]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((&hash(&out), &losses(&out)), (&calm().0, &calm().1));
}

/// The incidents of a job stay in its record when another process continues it.
#[test]
fn a_resumed_job_keeps_its_incidents() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let child = start_job(&long_job(), "", &out);
    wait_for_steps(&out, 10);
    signal(worker_processes(&out)[0], "KILL");
    let incidents = || record(&out)["incidents"].as_array().cloned().filter(|incidents| !incidents.is_empty());
    let before = wait_for("the incident to be recorded", incidents);
    signal(child.id(), "INT");
    assert_eq!(finish(child).status.code(), Some(130));
    assert!(losses(&out).len() < 600, "the job goes on");
    let output = run("train", &[("--resume", &out)]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(incidents(), Some(before));
}

/// The negative control: workers get the state of another step after a fault. The replay finds it.
#[test]
fn a_wrong_snapshot_is_found_by_the_replay() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let child = start("--rehearse-stale-snapshot", &out);
    wait_for_steps(&out, 12);
    signal(worker_processes(&out)[0], "KILL");
    let output = finish(child);
    let text = said(&output);
    if text.contains("done after") {
        // The fault struck right after a snapshot: nothing was replayed, and the bits tell.
        assert_ne!(hash(&out), calm().0, "{text}");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("when it was replayed: a machine of this job computes differently"), "{text}");
}

/// The connection between two workers breaks while both reach the coordinator: it relays what they send each other from then on, and no
/// worker is given up. Without a relay, they connect again.
#[test]
fn a_link_that_breaks_is_replaced_by_the_coordinator() {
    let folder = TempDir::new().unwrap();
    for exchange in ["auto", "direct"] {
        let out = folder.path().join(exchange);
        let mut child = start(&format!("--listen 127.0.0.1:0 --exchange {exchange}"), &out);
        let join = listening_at(&mut child);
        let workers = [worker(&join, ""), worker(&join, "--rehearse unlink@exchange:20")];
        let output = finish(child);
        let incidents = ended_like_the_calm_one(&out, &output);
        assert!(incidents.len() == 1 && incidents[0]["kind"] == "link", "{incidents:?}");
        let planned = &record(&out)["planned_step_traffic"];
        assert_eq!(planned["across"] == 0, exchange == "auto", "{exchange}: {planned}");
        let direct = &record(&out)["workers"][0]["direct"];
        assert_eq!(*direct, if exchange == "auto" { json!([]) } else { json!([1]) }, "{exchange}");
        let ends = said(&output).contains("the trace ends at step");
        assert_eq!(ends, exchange == "auto", "a trace is of one set of links: {}", said(&output));
        let traced: Value = serde_json::from_str(&succeed(&format!("trace --json {}", out.display()), &[])).unwrap();
        let last = traced["steps"].as_array().unwrap().iter().filter_map(Value::as_u64).max();
        assert_eq!(last > Some(25), exchange == "direct", "the last step of the trace: {last:?}");
        end(workers);
    }
}

/// A worker damages a message to another one. Nobody knows which of the two is at fault, so both stay, and the coordinator relays between
/// them from then on: the second damaged message is proof. Without a relay, the sender is given up at once.
#[test]
fn a_damaged_message_between_workers_is_relayed_before_anybody_is_given_up() {
    let folder = TempDir::new().unwrap();
    for (exchange, found) in [("auto", ["invalid", "lost"].as_slice()), ("direct", ["invalid"].as_slice())] {
        let out = folder.path().join(exchange);
        let mut child = start(&format!("--listen 127.0.0.1:0 --exchange {exchange}"), &out);
        let join = listening_at(&mut child);
        // It waits for the spare, which must be there when it lies.
        let misdeeds = if exchange == "auto" {
            "--rehearse limp:3000@forward:2 --rehearse flip@exchange:20 --rehearse flip@exchange:40"
        } else {
            "--rehearse limp:3000@forward:2 --rehearse flip@exchange:20"
        };
        let workers = [worker(&join, ""), worker(&join, misdeeds)];
        wait_for_steps(&out, 1);
        let before = support::worker_processes(&out);
        let mut spare = worker(&join, "");
        support::line_with(spare.stderr.as_mut().unwrap(), "this worker is a spare");
        let output = finish(child);
        let incidents = ended_like_the_calm_one(&out, &output);
        let kinds: Vec<_> = incidents.iter().map(|incident| incident["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, found, "{exchange}: {incidents:?}");
        assert_ne!(
            before,
            support::worker_processes(&out),
            "{exchange}: the spare has the place of the worker that lies"
        );
        let what = |incident: &Value| incident["what"].as_str().unwrap().to_owned();
        assert!(
            what(&incidents[0]).contains("sent worker") && what(&incidents[0]).contains("an invalid message"),
            "{incidents:?}"
        );
        assert!(incidents.iter().all(|incident| what(incident).contains("checksum")), "{incidents:?}");
        end(workers);
        end([spare]);
    }
}

/// A message of an earlier generation has no effect, whether it goes to the coordinator or to another worker. As a negative control, the
/// coordinator lets it through: then the worker's own message is one too many.
#[test]
fn a_message_of_an_earlier_generation_is_dropped() {
    for fence in ["--exchange direct", "--exchange relay", "--exchange relay --rehearse-no-fence"] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("run");
        let mut child = start(&format!("--listen 127.0.0.1:0 {fence}"), &out);
        let join = listening_at(&mut child);
        // The death of the other worker begins the second generation.
        let mut tardy = worker(&join, "--rehearse stale@exchange:20");
        let doomed = worker(&join, "--rehearse kill@forward:9");
        wait_for_steps(&out, 1);
        let spare = worker(&join, "");
        support::line_with(tardy.stderr.as_mut().unwrap(), "rehearsal: stale@exchange:20");
        let output = finish(child);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!((&hash(&out), &losses(&out)), (&calm().0, &calm().1), "{}", said(&output));
        let incidents = record(&out)["incidents"].as_array().cloned().unwrap();
        let found: Vec<_> = incidents.iter().map(|incident| incident["kind"].as_str().unwrap()).collect();
        // Without the fence, chunks of the other worker that are really late may be let through, too.
        let is_right = if !fence.ends_with("fence") { found == ["lost"] } else { found.contains(&"invalid") };
        assert!(is_right, "{fence}: {incidents:?}");
        assert_eq!(wait_for_death(doomed).status.signal(), Some(9));
        end([tardy, spare]);
    }
}

/// The negative control: a worker applies a step's gradients at twice the rate. The bits tell, and after a fault the replay does.
#[test]
fn a_gradient_that_counts_twice_is_found() {
    let folder = TempDir::new().unwrap();
    let (silent, replayed) = (folder.path().join("silent"), folder.path().join("replayed"));
    let run = |out: &Path, misdeeds: &str| {
        let mut child = start("--listen 127.0.0.1:0", out);
        let join = listening_at(&mut child);
        let seated = [worker(&join, ""), worker(&join, &format!("--rehearse {misdeeds}"))];
        wait_for_steps(out, 1);
        let spare = worker(&join, "");
        let output = finish(child);
        end(seated.into_iter().chain([spare]));
        output
    };
    let output = run(&silent, "double@commit:9");
    assert!(output.status.success(), "{}", said(&output));
    assert!(hash(&silent) != calm().0 && losses(&silent) != calm().1);
    let output = run(&replayed, "double@commit:9,kill@forward:12");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("a machine of this job computes differently"), "{}", said(&output));
}

/// The control of all comparisons here: what a job ends in depends on its seed.
#[test]
fn another_seed_has_other_bits() {
    let folder = TempDir::new().unwrap();
    let out: PathBuf = folder.path().join("run");
    succeed(&format!("{JOB} --seed 2"), &[("--out", &out)]);
    assert!(hash(&out) != calm().0 && losses(&out) != calm().1);
}

/// A checkpoint that can't be written is reported. The job goes on, and writes the next one.
#[test]
fn a_checkpoint_that_cannot_be_written_does_not_stop_the_job() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut child = start_job(&long_job(), "--checkpoint-every 200", &out);
    wait_for_steps(&out, 1);
    let (checkpoints, aside) = (out.join("checkpoints"), out.join("aside"));
    std::fs::rename(&checkpoints, &aside).unwrap();
    std::fs::write(&checkpoints, "in the way").unwrap();
    let line = support::line_with(child.stdout.as_mut().unwrap(), "tries again at the next checkpoint");
    assert!(line.contains("cannot write") && line.contains("step-000200"), "{line}");
    std::fs::remove_file(&checkpoints).unwrap();
    std::fs::rename(&aside, &checkpoints).unwrap();
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    let verify = support::output_of(support::convoy().args(["verify", "--json"]).arg(&out));
    assert_eq!(said(&verify).matches("\"sound\":true").count(), 2, "{}", said(&verify));
}

/// The newest checkpoint is damaged: `verify` says so, and `--resume` uses the one before it, with a note.
#[test]
fn a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    succeed(&format!("{JOB} --checkpoint-every 6 --keep 2"), &[("--out", &out)]);
    let verify = || support::output_of(support::convoy().args(["verify", "--json"]).arg(&out));
    let sound = verify();
    assert!(sound.status.success(), "{}", said(&sound));
    assert_eq!(said(&sound).matches("\"sound\":true").count(), 2, "{}", said(&sound));
    let newest = support::checkpoint(&out);
    let file = newest.join("optimizer.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let checked = support::output_of(support::convoy().arg("verify").arg(&out));
    assert_eq!(checked.status.code(), Some(1), "{}", said(&checked));
    for part in
        ["sound    ", "damaged  ", "step-000040", "optimizer.safetensors is damaged", "damaged checkpoints: 1 of 2"]
    {
        assert!(said(&checked).contains(part), "no \"{part}\" in {}", said(&checked));
    }
    let output = run("train", &[("--resume", &out)]);
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("optimizer.safetensors is damaged") && text.contains("step-000036 instead"), "{text}");
    assert_eq!((&hash(&out), &losses(&out)), (&calm().0, &calm().1));
    assert!(verify().status.success(), "the damaged one was replaced");
}

/// Records that were damaged between two processes of a run: the run continues, and says what is missing.
#[test]
fn damaged_records_are_reported() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    succeed(&format!("{JOB} --checkpoint-every 6"), &[("--out", &out)]);
    std::fs::remove_dir_all(support::checkpoint(&out)).unwrap();
    std::fs::write(out.join("run.json"), "{ \"incidents\"").unwrap();
    let whole = losses(&out);
    let mut metrics = std::fs::read(out.join("metrics.jsonl")).unwrap();
    metrics[0] = 0xff; // Not even UTF-8. The first line is that of step 1.
    let metrics = [br#"{"step":500}"#, &b"\n"[..], &metrics].concat();
    std::fs::write(out.join("metrics.jsonl"), &metrics).unwrap();
    let output = run("train", &[("--resume", &out)]);
    assert!(output.status.success(), "{}", said(&output));
    let lines = [
        "metrics.jsonl: 2; the job continues without them",
        "run.json: EOF while",
        "are now run-1.json and metrics-1.jsonl",
    ];
    for part in lines {
        assert!(said(&output).contains(part), "no \"{part}\" in {}", said(&output));
    }
    assert_eq!(std::fs::read(out.join("metrics-1.jsonl")).unwrap(), metrics);
    assert_eq!((&hash(&out), &losses(&out)[..]), (&calm().0, &whole[1..]));
    let again = run("train", &[("--resume", &out)]);
    assert!(!said(&again).contains("run.json: "), "it was replaced: {}", said(&again));
}

/// The coordinator is killed at twenty moments, while it trains, takes snapshots and writes checkpoints. Each time it is started
/// again with `--resume auto`, and the job ends in the same bits.
#[test]
fn a_coordinator_that_is_killed_at_twenty_moments_ends_in_the_same_bits() {
    let folder = TempDir::new().unwrap();
    let [calm, out] = ["calm", "run"].map(|name| folder.path().join(name));
    let job = JOB.replace("--steps 40", "--steps 300");
    succeed(&job, &[("--out", &calm)]);
    let arguments = "--checkpoint-every 1 --resume auto";
    let mut random = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(std::process::id());
    eprintln!("seed {random:#x}");
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    for killed in 0..20 {
        let mut child = start_job(&job, arguments, &out);
        // The first time it trains for a while, so that there is something to continue.
        let trains_for = if killed == 0 { 3 } else { below(4) };
        wait_for_steps(&out, losses(&out).len() + trains_for as usize);
        // Without a step, it is killed at some moment of its start.
        std::thread::sleep(Duration::from_millis(below(if trains_for == 0 { 400 } else { 40 })));
        assert!(child.try_wait().unwrap().is_none(), "the fault fired {killed} times, and then the job was done");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = finish(start_job(&job, arguments, &out));
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((hash(&out), losses(&out)), (hash(&calm), losses(&calm)));
    assert!(support::output_of(support::convoy().arg("verify").arg(&out)).status.success());
    let entries = std::fs::read_dir(out.join("checkpoints")).unwrap().map(|entry| entry.unwrap().file_name());
    let hidden: Vec<_> = entries.filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert!(hidden.is_empty(), "half-written: {hidden:?}");
}

/// A worker is lost together with the coordinator. The coordinator that is started again does not wait for it longer than its patience.
#[test]
fn a_coordinator_that_is_started_again_continues_with_the_workers_that_are_left() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let address = free_address();
    let arguments = format!("--listen {address} --checkpoint-every 1 --resume auto");
    // It waits for another worker when it is killed.
    let mut first = start(&format!("{arguments} --patience 600"), &out);
    let (lost, left) = (worker(&address, "--rehearse kill@backward:17"), worker(&address, ""));
    assert_eq!(wait_for_death(lost).status.signal(), Some(9));
    first.kill().unwrap();
    first.wait().unwrap();
    let output = finish(start(&format!("{arguments} --patience 1"), &out));
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((&hash(&out), &losses(&out)), (&calm().0, &calm().1), "{}", said(&output));
    for part in
        ["the run continues without those that are still missing", "remaining workers (1 of 2) hold all towers now"]
    {
        assert!(said(&output).contains(part), "no \"{part}\" in {}", said(&output));
    }
    assert!(record(&out)["running"]["resumed"][1].as_u64().is_some_and(|step| step >= 10), "it was continued");
    assert_eq!(worker_processes(&out), [left.id()]);
    end([left]);
}

/// `--resume auto` in a folder without a run: the job has nothing to continue, so that it waits for all workers, however short its patience.
#[test]
fn a_first_start_with_resume_auto_waits_for_all_workers() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut child = start("--listen 127.0.0.1:0 --resume auto --patience 0", &out);
    let mut began = String::new();
    while !began.contains(": 0 of 2 workers") {
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        began.push(char::from(byte[0]));
    }
    let join = began.split_once("waiting for workers at ").unwrap().1.split_once(": 0 of").unwrap().0;
    let first = worker(join, "");
    line_with(child.stdout.as_mut().unwrap(), "1 of 2 workers connected");
    let second = worker(join, "");
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!began.contains("without the workers that are missing"), "{began}");
    assert_eq!((&hash(&out), &losses(&out)), (&calm().0, &calm().1));
    assert_eq!(BTreeSet::from_iter(worker_processes(&out)), BTreeSet::from([first.id(), second.id()]));
    assert_eq!(record(&out)["incidents"], Value::Array(Vec::new()));
    end([first, second]);
}

/// A finished run is to be continued, and no worker comes: its records stay as they are.
#[test]
fn an_attempt_that_never_begins_leaves_the_records_of_the_run() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    succeed(JOB, &[("--out", &out)]);
    let records = || ["run.json", "metrics.jsonl"].map(|name| std::fs::read_to_string(out.join(name)).unwrap());
    let before = records();
    let mut attempt = start_job(&JOB.replace("--steps 40", "--steps 50"), "--resume auto --listen 127.0.0.1:0", &out);
    listening_at(&mut attempt);
    signal(attempt.id(), "INT");
    let output = finish(attempt);
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(said(&output).contains("is unchanged; to continue it: convoy train --resume"), "{}", said(&output));
    assert_eq!(records(), before);
    let again = finish(start("--resume auto", &out));
    assert!(again.status.success() && said(&again).contains("the job has ended already"), "{}", said(&again));
    let more = finish(start_job(&JOB.replace("--steps 40", "--steps 50"), "--resume auto", &out));
    assert!(more.status.success() && losses(&out).len() == 50, "{}", said(&more));
}

/// The coordinator is killed again and again while it writes a checkpoint. What is there afterwards is sound, and the job continues from it
/// to the same bits. `CONVOY_TEST_KILLS` sets how often.
#[test]
fn a_coordinator_that_is_killed_while_it_writes_checkpoints_leaves_only_sound_ones() {
    let kills = std::env::var("CONVOY_TEST_KILLS").map_or(20, |text| text.parse::<usize>().unwrap());
    let folder = TempDir::new().unwrap();
    let (out, whole, model) =
        (folder.path().join("run"), folder.path().join("whole"), folder.path().join("small.toml"));
    let text = "name = \"small\"\ntowers = 1\ninput = { channels = 1, height = 28, width = 28 }\n\
                [[layer]]\nkind = \"linear\"\nname = \"fc1\"\nunits = 512\n\
                [[layer]]\nkind = \"linear\"\nname = \"fc2\"\nunits = 10\n";
    std::fs::write(&model, text).unwrap();
    let job = |steps: u64| {
        format!(
            "train --data bundled --batch 4 --schedule constant --lr 0.01 --trace off --checkpoint-every 1 --steps {steps}"
        )
    };
    let start = |steps: u64| {
        let mut command = support::convoy();
        command.args(job(steps).split_whitespace()).args(["--resume", "auto"]).arg("--model").arg(&model);
        command.arg("--out").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped()).start()
    };
    let count = |is_counted: fn(&str) -> bool| {
        let entries = std::fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
        entries.filter(|entry| is_counted(&entry.file_name().to_string_lossy())).count()
    };
    let unfinished = || count(|name| name.ends_with(".tmp"));
    let (mut killed, mut struck, mut has_any) = (0, 0, false);
    while killed < kills {
        let before = unfinished();
        let mut child = start(1_000_000);
        // What an earlier one has left is removed with the first checkpoint.
        let mut is_clean = before == 0;
        wait_for("a checkpoint that is being written", || {
            let found = unfinished();
            is_clean |= found == 0;
            (is_clean && found > 0).then_some(())
        });
        child.kill().unwrap();
        finish(child);
        killed += 1;
        struck += usize::from(unfinished() > 0);
        // The first checkpoint of the run may be struck more than once before it is complete.
        has_any |= count(|name| name.starts_with("step-")) > 0;
        let verify = support::output_of(support::convoy().arg("verify").arg(&out));
        assert!(verify.status.success() || !has_any, "{}", said(&verify));
    }
    assert!(2 * struck >= kills, "the fault fired: {struck} of {kills} kills left a checkpoint unfinished");
    let last = losses(&out).len() as u64 + 3;
    let output = finish(start(last));
    assert!(output.status.success(), "{}", said(&output));
    succeed(&job(last), &[("--model", &model), ("--out", &whole)]);
    assert_eq!((hash(&out), losses(&out)), (hash(&whole), losses(&whole)), "killed {killed} times");
    assert_eq!(unfinished(), 0);
}

/// `convoy verify` and `convoy eval` while a job writes checkpoints and deletes old ones.
#[test]
fn checkpoints_that_a_job_deletes_meanwhile_are_not_called_damaged() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let job = "--data bundled --batch 16 --steps 1000000 --schedule constant --lr 0.01 --trace off";
    let mut command = support::convoy();
    command.arg("train").args(job.split_whitespace()).args(["--checkpoint-every", "1", "--keep", "1"]);
    let child = command.arg("--out").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    wait_for("a checkpoint", || newest_checkpoint(&out));
    let mut seen = BTreeSet::new();
    wait_for("another twenty checkpoints", || {
        let of = |command: &str| support::output_of(support::convoy().arg(command).arg(&out));
        let verify = of("verify");
        assert!(verify.status.success(), "{}", said(&verify));
        seen.insert(said(&verify));
        if seen.len().is_multiple_of(5) {
            let eval = of("eval");
            assert!(eval.status.success(), "{}", said(&eval));
        }
        (seen.len() > 20).then_some(())
    });
    signal(child.id(), "INT");
    assert_eq!(finish(child).status.code(), Some(130));
}

/// A local worker is killed before the job begins: another one is started.
#[test]
fn a_local_worker_that_is_killed_before_the_job_begins_is_replaced() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let child = start("", &out);
    let first = wait_for("a worker", || children_of(child.id()).first().copied());
    signal(first, "KILL");
    let output = finish(child);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((&hash(&out), &losses(&out)), (&calm().0, &calm().1), "{}", said(&output));
    // A worker that has connected and has no towers yet is no loss for the job: it is replaced without an incident, and the terminal says so.
    let was_seated =
        said(&output).contains(&format!("(process {first} on")) && said(&output).contains("while the job waited");
    let incidents = record(&out)["incidents"].as_array().cloned().unwrap();
    match incidents.as_slice() {
        [] => assert!(was_seated, "the fault fired: {}", said(&output)),
        [incident] => assert!(incident["what"].as_str().unwrap().contains("signal 9"), "{incident}"),
        more => panic!("{more:?}"),
    }
}

/// Doors stay open during a job, and whoever is refused then is reported, too.
#[test]
fn a_worker_that_is_refused_during_a_job_is_reported() {
    let folder = TempDir::new().unwrap();
    let (out, token) = (folder.path().join("run"), folder.path().join("token"));
    std::fs::write(&token, "s3cret\n").unwrap();
    let secret = format!("--token-file {}", token.display());
    let mut child = start_job(&long_job(), &format!("--listen 127.0.0.1:0 {secret}"), &out);
    let join = listening_at(&mut child);
    let workers = [worker(&join, &secret), worker(&join, &secret)];
    wait_for_steps(&out, 1);
    let stranger = finish(worker(&join, ""));
    assert!(said(&stranger).contains("requires a token"), "{}", said(&stranger));
    signal(child.id(), "INT");
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let lines = said(&output).lines().filter(|line| line.contains("was refused")).count();
    assert_eq!(lines, 1, "{}", said(&output));
    end(workers);
}
