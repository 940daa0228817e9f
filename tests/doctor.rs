//! `convoy doctor` against real processes: each thing that it finds is really so. Workers are as they were afterwards.
//!
//! Not here: what figures mean (the tests of `convoy_doctor`).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Process, Start as _, end, finish, free_address, hash, run, said, succeed};
use tempfile::TempDir;

/// What it has found.
struct Found {
    code: i32,
    findings: Vec<Value>,
    /// Everything that it has printed.
    text: String,
}

impl Found {
    /// Asserts that there is a finding with this verdict about this subject that says this.
    fn has(&self, verdict: &str, subject: &str, part: &str) -> &Self {
        let is_it = |finding: &&Value| {
            finding["verdict"] == verdict
                && finding["subject"] == subject
                && finding["found"].as_str().unwrap().contains(part)
        };
        let found = self.findings.iter().find(is_it);
        let found = found.unwrap_or_else(|| panic!("no {verdict} about {subject} with \"{part}\" in {}", self.text));
        assert_eq!(found.get("advice").is_some(), verdict != "ok", "{found}");
        self
    }

    /// Asserts that the connection to a worker was measured. On a busy machine, it may be slow.
    fn is_measured(&self, worker: &str) -> &Self {
        let is_it = |finding: &Value| finding["subject"] == worker && finding["verdict"] != "wrong";
        assert!(self.findings.iter().any(is_it), "{}", self.text);
        for direction in [" Mbit/s to it", " Mbit/s from it"] {
            assert!(self.number(worker, direction) > 10.0, "{}", self.text);
        }
        self
    }

    fn ends_with(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }

    /// Numbers before a word in the finding about a subject.
    fn number(&self, subject: &str, after: &str) -> f64 {
        let finding = self.findings.iter().find(|finding| finding["subject"] == subject);
        let text = finding.unwrap_or_else(|| panic!("{}", self.text))["found"].as_str().unwrap();
        let before = text.split_once(after).unwrap_or_else(|| panic!("no \"{after}\" in {text}")).0;
        before.rsplit([' ', ';']).find(|word| !word.is_empty()).unwrap().parse().unwrap()
    }
}

fn doctor(arguments: &str) -> Found {
    found(&run(&format!("doctor --json {arguments}"), &[]))
}

fn found(output: &std::process::Output) -> Found {
    let text = said(output);
    let findings = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON in {text}"));
    Found { code: output.status.code().unwrap(), findings, text }
}

fn worker(arguments: &str) -> Process {
    let mut command = support::convoy();
    command.args(["worker", "--threads", "1"]).args(arguments.split_whitespace());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

#[test]
fn a_machine_alone_is_fit_and_the_text_says_what_the_json_says() {
    let found = doctor("");
    for subject in ["version", "processor", "memory", "descriptors", "clock", "local workers", "disk"] {
        assert!(found.findings.iter().any(|finding| finding["subject"] == subject), "{subject}: {}", found.text);
    }
    found.ends_with(0);
    let text = succeed("doctor", &[]);
    assert_eq!(text.lines().filter(|line| !line.starts_with(' ')).count(), found.findings.len() + 1, "{text}");
    assert!(text.ends_with(" 0 wrong\n"), "{text}");
}

/// The workers wait for a job. They serve it afterwards as if nothing had happened.
#[test]
fn workers_are_examined_and_then_serve_a_job_with_the_same_bits() {
    const JOB: &str = "train --data bundled --batch 16 --steps 10 --schedule constant";
    let (folder, address) = (TempDir::new().unwrap(), free_address());
    let [alone, after] = ["alone", "after"].map(|name| folder.path().join(name));
    succeed(JOB, &[("--out", &alone)]);
    let workers: Vec<_> = (0..3).map(|_| worker(&format!("--join {address}"))).collect();
    // Twice: the first examination leaves the workers as they were.
    for _ in 0..2 {
        let found = doctor(&format!("--listen {address} --workers 3"));
        found.ends_with(0).has("ok", "links", "all workers can connect to each other");
        for subject in ["worker 0", "worker 1", "worker 2"] {
            found.is_measured(subject);
            assert!(found.text.contains("1 thread, ") && found.number(subject, " ms;") < 1000.0, "{}", found.text);
        }
    }
    succeed(&format!("{JOB} --workers 2 --listen {address}"), &[("--out", &after)]);
    assert_eq!(hash(&after), hash(&alone));
    let said = end(workers);
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn workers_that_are_missing_or_that_die_are_named() {
    let address = free_address();
    let lonely = worker(&format!("--join {address}"));
    let found = doctor(&format!("--listen {address} --workers 2 --wait 5"));
    found.ends_with(1).has("wrong", "workers", "1 of 2 have connected").is_measured("worker 0");
    end([lonely]);
    let doomed = worker(&format!("--join {address} --rehearse kill@assign"));
    let found = doctor(&format!("--listen {address} --workers 1"));
    found.ends_with(1).has("wrong", "worker 0", "its connection was lost");
    assert!(!finish(doomed).status.success(), "the rehearsed fault did not happen");
}

#[test]
fn workers_without_the_token_are_refused() {
    let (folder, address) = (TempDir::new().unwrap(), free_address());
    let token = folder.path().join("token");
    std::fs::write(&token, "correct-horse-battery\n").unwrap();
    let stranger = worker(&format!("--join {address}"));
    let found = doctor(&format!("--listen {address} --workers 1 --wait 5 --token-file {}", token.display()));
    found.ends_with(1).has("warning", "worker", "was refused").has("wrong", "workers", "0 of 1 have connected");
    drop(stranger);
    let secret = format!("--token-file {}", token.display());
    let other = folder.path().join("other");
    std::fs::write(&other, "another-secret-word\n").unwrap();
    let mut command = support::convoy();
    command.args(["train", "--data", "bundled", "--workers", "1", "--listen", &address]);
    command.arg("--out").arg(folder.path().join("run")).args(secret.split(' '));
    let coordinator = command.stdout(Stdio::null()).stderr(Stdio::null()).start();
    support::wait_for("the coordinator", || TcpStream::connect(&address).ok());
    doctor(&format!("--join {address} {secret}")).ends_with(0).has("ok", "coordinator", "waits for workers");
    for wrong in [String::new(), format!("--token-file {}", other.display())] {
        let found = doctor(&format!("--join {address} {wrong}"));
        found.ends_with(1).has("wrong", "coordinator", "would refuse a worker with these secrets");
    }
    drop(coordinator);
}

/// The file of a worker's socket is removed, so that nobody can connect to it.
#[test]
fn workers_that_cannot_connect_to_each_other_are_named() {
    let (folder, address) = (TempDir::new().unwrap(), free_address());
    let paths = ["a", "b"].map(|name| folder.path().join(name));
    let workers =
        paths.each_ref().map(|path| worker(&format!("--join {address} --exchange-listen unix:{}", path.display())));
    for path in &paths {
        support::wait_for("the worker's socket", || path.exists().then_some(()));
        std::fs::remove_file(path).unwrap();
    }
    let found = doctor(&format!("--listen {address} --workers 2"));
    found.ends_with(0).has("warning", "links", "workers 0 and 1 can't connect to each other");
    found.is_measured("worker 0").is_measured("worker 1");
    end(workers);
}

/// Carries bytes both ways between whoever connects and an address, at most so many in a second and direction.
fn narrow_way_to(address: String, bytes_per_second: usize) -> String {
    const IDLE: Duration = Duration::from_millis(50);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().to_string();
    let carry = move |mut from: TcpStream, mut to: TcpStream| {
        let mut buffer = vec![0; bytes_per_second / 200];
        let mut due = Instant::now();
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            // A way that was idle for long does not make up for it.
            due = due.max(Instant::now() - IDLE) + Duration::from_secs_f64(count as f64 / bytes_per_second as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    };
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(&address) else { continue };
            let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || carry(near, far));
            std::thread::spawn(move || carry(far_too, near_too));
        }
    });
    here
}

#[test]
fn a_slow_connection_is_measured_and_named() {
    const BYTES: usize = 4_000_000;
    let address = free_address();
    let slow = worker(&format!("--join {}", narrow_way_to(address.clone(), BYTES)));
    let found = doctor(&format!("--listen {address} --workers 1"));
    found.ends_with(0).has("warning", "worker 0", "Mbit/s");
    for direction in [" Mbit/s to it", " Mbit/s from it"] {
        let measured = found.number("worker 0", direction) * 1e6 / 8.0;
        // Buffers on the way take some bytes at once.
        let ratio = measured / BYTES as f64;
        assert!((0.25..2.0).contains(&ratio), "{ratio} {}", found.text);
    }
    end([slow]);
}

#[test]
fn the_way_to_a_coordinator_is_checked() {
    let (address, health, folder) = (free_address(), free_address(), TempDir::new().unwrap());
    doctor(&format!("--join {address}")).ends_with(1).has("wrong", "coordinator", "Connection refused");
    let mut command = support::convoy();
    command.args(["train", "--data", "bundled", "--steps", "2", "--workers", "1", "--listen", &address, "--out"]);
    let coordinator = command.arg(folder.path().join("run")).stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    support::wait_for("the coordinator", || TcpStream::connect(&address).ok());
    doctor(&format!("--join {address}")).ends_with(0).has("ok", "coordinator", "waits for workers");
    doctor("--join no-such-host.invalid:7878").ends_with(1).has("wrong", "name", "can't be looked up");
    doctor(&format!("--listen {address}")).ends_with(1).has("wrong", "--listen", "in use");
    let [free, out] = [free_address(), folder.path().join("file").display().to_string()];
    std::fs::write(&out, "").unwrap();
    doctor(&format!("--out {out}/run")).ends_with(1).has("wrong", "disk", "is not a folder");
    let found = doctor(&format!("--join {address} --health {free} --metrics {free}"));
    found.ends_with(1).has("ok", "--health", "can listen").has("wrong", "--metrics", "in use");
    let worker = worker(&format!("--join {address} --health {health}"));
    assert!(finish(coordinator).status.success());
    doctor(&format!("--join {health}")).ends_with(1).has("wrong", "coordinator", "the worker at");
    let found = doctor(&format!("--join {address} --health {health}"));
    found.has("warning", "--health", "a worker of Convoy listens on").has("wrong", "coordinator", "refused");
    end([worker]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let began = Instant::now();
    let found = doctor(&format!("--join {}", silent.local_addr().unwrap()));
    found.ends_with(1).has("wrong", "coordinator", "did not answer within 5s");
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn files_of_tls_are_checked_and_used() {
    let (folder, address) = (TempDir::new().unwrap(), free_address());
    let made = |name: &str, days: u32| {
        let dir = folder.path().join(name);
        succeed(&format!("certs {} --days {days} --workers 1", dir.display()), &[]);
        dir
    };
    let (own, brief, other) = (made("own", 100), made("brief", 3), made("other", 100));
    let files = |dir: &Path, name: &str| {
        let file = |name: &str| dir.join(name).display().to_string();
        let (ca, cert, key) = (file("ca.pem"), file(&format!("{name}.pem")), file(&format!("{name}-key.pem")));
        format!("--tls-ca {ca} --tls-cert {cert} --tls-key {key}")
    };
    doctor(&files(&own, "coordinator")).ends_with(0).has("ok", "TLS", " more days");
    doctor(&files(&brief, "coordinator")).ends_with(0).has("warning", "TLS", " more days");
    doctor(&files(&own, "worker-1")).ends_with(0);
    let found = doctor(&format!("--listen {address} --wait 0 {}", files(&own, "worker-1")));
    found.ends_with(1).has("wrong", "TLS", "must have the DNS name coordinator");
    let mixed = files(&own, "coordinator")
        .replace(&format!("--tls-ca {}", own.display()), &format!("--tls-ca {}", other.display()));
    doctor(&mixed).ends_with(1).has("wrong", "TLS", "no CA in --tls-ca issued this certificate");
    let key = own.join("coordinator-key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    doctor(&files(&own, "coordinator")).ends_with(0).has("warning", "TLS", "other users of this machine can read");
    let worker_files = files(&own, "worker-1");
    let good = worker(&format!("--join {address} {worker_files}"));
    let found = doctor(&format!("--listen {address} --workers 1 {}", files(&own, "coordinator")));
    found.ends_with(0).is_measured("worker 0");
    end([good]);
    let found = doctor(&format!("--join {address} {worker_files}"));
    found.ends_with(1).has("wrong", "coordinator", "Connection refused");
}

#[test]
fn wrong_usage_ends_with_2() {
    for (arguments, part) in [
        ("--workers 2", "--listen"),
        ("--exchange-listen 127.0.0.1:1", "--join"),
        ("--join a:1 --listen b:1", "cannot be used with"),
        ("--listen nonsense", "neither HOST:PORT"),
        ("--tls-cert x", "TLS needs all three files"),
        ("--listen 10.0.0.1:7878 --token-file /dev/null", "the token would cross the network unencrypted"),
    ] {
        let output = run(&format!("doctor {arguments}"), &[]);
        let text = said(&output);
        assert!(output.status.code() == Some(2) && text.contains(part), "{arguments}: {text}");
    }
}

/// What was found before a stop is printed.
#[test]
fn a_doctor_that_is_stopped_says_what_it_has_found() {
    let address = free_address();
    let mut command = support::convoy();
    command.args(["doctor", "--json", "--listen", &address, "--wait", "600"]);
    let process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    support::wait_for("the doctor", || TcpStream::connect(&address).ok());
    support::signal(process.id(), "INT");
    found(&finish(process)).ends_with(130).has("warning", "--listen", "can listen on");
}

/// A worker that hangs makes no other one look bad: answers to pings that only keep a connection open don't count.
#[test]
fn a_worker_that_hangs_is_named_and_no_other_one() {
    let address = free_address();
    let workers = [0, 1].map(|_| worker(&format!("--join {address}")));
    let mut command = support::convoy();
    command.args(["doctor", "--json", "--listen", &address, "--workers", "2"]);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    support::line_with(process.stderr.as_mut().unwrap(), "examining 2 workers");
    support::signal(workers[0].id(), "STOP");
    let found = found(&finish(process));
    support::signal(workers[0].id(), "CONT");
    // It may have been examined before the signal came.
    let wrong: Vec<_> = found.findings.iter().filter(|finding| finding["verdict"] == "wrong").collect();
    assert!(wrong.len() <= 1 && !found.text.contains("Pong"), "{}", found.text);
    end(workers);
}
