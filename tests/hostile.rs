//! Peers that were written from the .proto file alone, in another language, and that mean harm: conversations in both roles, floods of
//! connections, and connections that say nothing. They are Python programs in `hostile/`. No stranger may cost much memory, keep a worker
//! out, or change a bit of a job.
//!
//! Not here: hostile peers in Rust (`strangers`), and mere faults (`recovery`).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use convoy_proto::PROTOCOL_VERSION;
use serde_json::Value;
use support::{Process, Start as _, finish, free_address, hash, line_with, listening_at, said, signal, skip, succeed};
use tempfile::TempDir;

const JOB: &str = "train --data bundled --batch 16 --steps 12 --schedule constant";
/// What all connections of strangers may cost a process, in megabytes.
const COST_MAX: f64 = 64.0;
/// Connections of each kind of stranger.
const CONNECTIONS: usize = 1000;
/// More connections of strangers than a process keeps.
const ROOM: usize = 250;

/// A Python that has gRPC and its compiler, if there is one.
fn python() -> Option<String> {
    let python = std::env::var("CONVOY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has =
        Command::new(&python).args(["-c", "import grpc_tools"]).output().is_ok_and(|found| found.status.success());
    if !has {
        skip(&format!("{python} has no grpcio-tools"));
    }
    has.then_some(python)
}

/// Runs one of the Python programs to its end. Its last line.
fn talk(python: &str, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(python);
    command.arg(format!("tests/hostile/{program}")).args(arguments);
    support::forget_settings(&mut command);
    let output = support::output_of(command.env("CONVOY_OFFLINE", "1"));
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned()
}

/// The hash of a job that nobody disturbs.
fn undisturbed(job: &str, folder: &Path) -> String {
    let out = folder.join("undisturbed");
    succeed(job, &[("--out", &out)]);
    hash(&out)
}

fn number_in(line: &str) -> u32 {
    line.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn hostile_workers_are_named_and_the_job_ends_in_the_same_bits() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let last = talk(&python, "as_worker.py", &[env!("CARGO_BIN_EXE_convoy"), folder.path().to_str().unwrap()]);
    assert!(number_in(&last) > 100, "{last}");
    let runs: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let expected = undisturbed(JOB, folder.path());
    assert!(runs.len() > 5);
    for run in runs {
        assert_eq!(hash(&run), expected, "{}", run.display());
    }
}

#[test]
fn a_worker_leaves_hostile_coordinators_says_why_and_comes_again() {
    let Some(python) = python() else { return };
    let last = talk(&python, "as_coordinator.py", &[env!("CARGO_BIN_EXE_convoy")]);
    assert!(number_in(&last) > 100, "{last}");
}

/// Floods a process, and checks what that costs.
fn flood(python: &str, address: &str, process: u32, service: &str) {
    let mut command = Command::new(python);
    let (process, version, count) = (process.to_string(), PROTOCOL_VERSION.to_string(), CONNECTIONS.to_string());
    command.args(["tests/hostile/floods.py", address, &process, &version, &count, service]);
    let output = support::output_of(&mut command);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let kinds: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(kinds.len() > 10, "{text}");
    let before = kinds[0]["before"].as_f64().unwrap();
    for kind in &kinds {
        let cost = kind["most"].as_f64().unwrap() - before;
        assert!(cost < COST_MAX, "{cost} MB: {text}");
        // Those that stay are no more than there is room for.
        assert!(kind["closed"].as_u64().unwrap() as usize >= CONNECTIONS - ROOM, "{text}");
        assert!((kind["descriptors"].as_u64().unwrap() as usize) < ROOM + 50, "{text}");
    }
}

fn worker(address: &str, more: &[&str]) -> Process {
    let mut command = support::convoy();
    command.args(["worker", "--join", address, "--threads", "1"]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

/// Ends workers in order, and fails if one of them had panicked.
fn end(workers: impl IntoIterator<Item = Process>) {
    for worker in workers {
        signal(worker.id(), "TERM");
        let output = finish(worker);
        assert!(!said(&output).contains("panicked"), "{}", said(&output));
    }
}

#[test]
fn floods_cost_a_coordinator_little_with_and_without_a_token_and_with_tls() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "correct-horse-battery\n").unwrap();
    let (token, expected) = (token.to_str().unwrap(), undisturbed(JOB, folder.path()));
    let certs = folder.path().join("certs").display().to_string();
    succeed(&format!("certs {certs}"), &[]);
    let [ca, cert, key, worker_cert, worker_key] =
        ["ca", "coordinator", "coordinator-key", "worker-1", "worker-1-key"].map(|name| format!("{certs}/{name}.pem"));
    let own = ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let of_workers = ["--tls-ca", &ca, "--tls-cert", &worker_cert, "--tls-key", &worker_key];
    let secret = &["--token-file", token][..];
    for (name, secret, of_workers, service) in [
        ("open", &[][..], &[][..], "coordinator"),
        ("closed", secret, secret, "coordinator"),
        ("encrypted", &own, &of_workers, "encrypted"),
    ] {
        let out = folder.path().join(name);
        let mut command = support::convoy();
        command.args(JOB.split_whitespace()).args(["--workers", "2", "--listen", "127.0.0.1:0"]).args(secret);
        command.arg("--out").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut coordinator = command.start();
        let address = listening_at(&mut coordinator);
        flood(&python, &address, coordinator.id(), service);
        let workers = [worker(&address, of_workers), worker(&address, of_workers)];
        let output = finish(coordinator);
        assert!(output.status.success(), "{}", said(&output));
        let lines = said(&output).lines().count();
        assert!(lines < 200 && !said(&output).contains("panicked"), "strangers fill the log: {}", said(&output));
        assert_eq!(hash(&out), expected);
        end(workers);
    }
}

#[test]
fn floods_cost_a_worker_little() {
    let Some(python) = python() else { return };
    let address = free_address();
    let nobody = free_address();
    let worker = worker(&nobody, &["--health", &address]);
    support::wait_for("the worker's health", || TcpStream::connect(&address).ok());
    flood(&python, &address, worker.id(), "health");
    // Whoever asks for the health while others come gets an answer in time.
    let silent = Silent::at(&python, &address, 500);
    for _ in 0..3 {
        let healthy = support::run(&format!("health {address}"), &[]);
        assert!(healthy.status.success(), "{}", said(&healthy));
    }
    assert!(silent.end() > 500);
    end([worker]);
}

/// Connections that say nothing and come back whenever they are closed.
struct Silent(Process);

impl Silent {
    fn at(python: &str, address: &str, count: usize) -> Self {
        let mut command = Command::new(python);
        command.args(["tests/hostile/silent.py", address, &count.to_string()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).start();
        line_with(process.stdout.as_mut().unwrap(), "ready");
        Self(process)
    }

    /// How many there were in all.
    fn end(mut self) -> usize {
        drop(self.0.stdin.take());
        let output = finish(self.0);
        said(&output).lines().last().unwrap().parse().unwrap()
    }
}

/// A coordinator may have 1,024 descriptors. Before its workers come, and as long as the job lasts, 2,000 connections say nothing.
#[test]
fn silent_connections_keep_no_worker_out_and_change_no_bit() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let job = "train --data bundled --batch 16 --steps 100 --schedule constant --checkpoint-every 20";
    let (out, address) = (folder.path().join("run"), free_address());
    let mut command = Command::new("bash");
    support::forget_settings(&mut command);
    command.args(["-c", "ulimit -n 1024; exec \"$@\"", "bash", env!("CARGO_BIN_EXE_convoy")]);
    command.args(job.split_whitespace()).args(["--workers", "2", "--listen", &address]).arg("--out").arg(&out);
    command.env("CONVOY_OFFLINE", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    let coordinator = command.start();
    support::wait_for("the coordinator", || TcpStream::connect(&address).ok());
    let silent = Silent::at(&python, &address, 2000);
    let workers = [worker(&address, &[]), worker(&address, &[])];
    let output = finish(coordinator);
    let text = said(&output);
    assert!(silent.end() > 2000, "no connection was closed");
    assert!(output.status.success(), "{text}");
    assert!(text.contains("connections to the address for workers: silent, too slow, or too many"), "{text}");
    assert_eq!(hash(&out), undisturbed(job, folder.path()));
    end(workers);
}

fn scrape(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whoever opens connections to the address of metrics and is slow makes room for a scrape.
#[test]
fn metrics_are_served_beside_slow_connections() {
    let Some(python) = python() else { return };
    let (address, nobody) = (free_address(), free_address());
    let worker = worker(&nobody, &["--metrics", &address]);
    support::wait_for("the worker's metrics", || TcpStream::connect(&address).ok());
    let silent = Silent::at(&python, &address, 300);
    for _ in 0..5 {
        let began = Instant::now();
        // The flood may close a scrape, too. Then it is repeated, within the time that it has.
        let answer = support::wait_for("an answer", || scrape(&address).ok().filter(|answer| !answer.is_empty()));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("convoy_build_info"), "{answer}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    assert!(silent.end() > 300);
    end([worker]);
}
