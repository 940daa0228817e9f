//! Connections between workers: strangers at a worker's port, pairs that can't connect, and what the coordinator still sees.
//! Whatever happens, the job ends with the same bits as on one worker.
//!
//! Not here: links that break during a job (`recovery`), and the handshake by itself (the worker's `service/peers`).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use convoy_proto::v1;
use prost::Message;
use support::{
    Process, Start as _, end, finish, free_address, hash, listening_at, losses, record, said, succeed, wait_for,
};
use tempfile::TempDir;

const JOB: &str = "train --data bundled --batch 16 --schedule constant --lr 0.01 --slots 2 --steps 60 --trace off";

/// What one worker gives.
fn alone() -> &'static (String, Vec<(u64, u64)>) {
    static ALONE: OnceLock<(String, Vec<(u64, u64)>)> = OnceLock::new();
    ALONE.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("run");
        succeed(&format!("{JOB} --workers 1"), &[("--out", &out)]);
        (hash(&out), losses(&out))
    })
}

fn coordinator(arguments: &str, out: &Path) -> Process {
    let mut command = support::convoy();
    command.args(JOB.split_whitespace()).args(["--listen", "127.0.0.1:0"]).args(arguments.split_whitespace());
    command.arg("--out").arg(out).stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

fn worker(join: &str, exchange: &str) -> Process {
    worker_in(Path::new("."), join, exchange)
}

/// A worker with this working directory.
fn worker_in(folder: &Path, join: &str, exchange: &str) -> Process {
    let mut command = support::convoy();
    command.args(["worker", "--join", join, "--threads", "1", "--exchange-listen", exchange]).current_dir(folder);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

/// A message after its length.
fn framed(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

/// What strangers say at a worker's port.
fn nonsense() -> Vec<Vec<u8>> {
    let hello = |secret: Vec<u8>| v1::PeerHello { job: 1, generation: 1, from: 0, secret: secret.into() };
    let late = v1::PeerHello { generation: u64::MAX, ..hello(vec![7; 16]) };
    let chunk = v1::Chunk { job: 1, data: vec![0; 100].into(), ..v1::Chunk::default() };
    vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        u32::MAX.to_be_bytes().to_vec(),
        [&1_000_000_u32.to_be_bytes()[..], &[0; 5000]].concat(),
        vec![0; 4],
        [&100_u32.to_be_bytes()[..], &[1; 99]].concat(),
        framed(&hello(Vec::new())),
        framed(&hello(vec![7; 16])),
        framed(&late),
        framed(&v1::Frame { frame: Some(v1::frame::Frame::Chunk(chunk)) }),
        Vec::new(),
    ]
}

/// Thousands of strangers connect to a worker's port during a job: they get no answer, cost little memory, and change no bit.
#[test]
fn strangers_at_a_workers_port_are_refused_and_the_job_goes_on() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut job = coordinator("--workers 4 --exchange direct", &out);
    let join = listening_at(&mut job);
    let ports: Vec<_> = (0..4).map(|_| free_address()).collect();
    let workers: Vec<_> = ports.iter().map(|port| worker(&join, port)).collect();
    wait_for("the first step", || (losses(&out).len() > 1).then_some(()));
    let (ended, connected, answers) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let strangers = ports.iter().cloned().map(|port| {
        let (ended, connected, answers) = (ended.clone(), connected.clone(), answers.clone());
        thread::spawn(move || {
            let mut silent = std::collections::VecDeque::new();
            for said in nonsense().iter().cycle() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = TcpStream::connect(&port) else { continue };
                connected.fetch_add(1, Ordering::Relaxed);
                // A worker may close the connection before it has read all.
                let _ = stream.write_all(said);
                stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                answers.fetch_add(stream.read(&mut [0; 1]).unwrap_or(0) as u64, Ordering::Relaxed);
                silent.push_back(stream);
                if silent.len() > 200 {
                    silent.pop_front();
                }
            }
        })
    });
    let strangers: Vec<_> = strangers.collect();
    wait_for("a thousand strangers", || {
        (connected.load(Ordering::Relaxed) > 1000 || !support::is_alive(job.id())).then_some(())
    });
    let peak = |process: &Process| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    let output = finish(job);
    let megabytes: Vec<_> = workers.iter().map(peak).collect();
    ended.store(true, Ordering::Relaxed);
    strangers.into_iter().for_each(|stranger| stranger.join().unwrap());
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((&hash(&out), &losses(&out)), (&alone().0, &alone().1), "{}", said(&output));
    assert_eq!(record(&out)["incidents"].as_array().map(Vec::len), Some(0), "{}", said(&output));
    assert_eq!(answers.load(Ordering::Relaxed), 0, "strangers are told nothing");
    assert!(connected.load(Ordering::Relaxed) > 300, "they were there: {connected:?}");
    assert!(megabytes.iter().all(|megabytes| *megabytes < 250), "{megabytes:?} MB");
    let logged = end(workers);
    assert!(!logged.contains("panicked"), "{logged}");
}

/// One worker of four listens where nobody can connect: what it exchanges is relayed, and the others stay connected directly. Without a
/// relay, the job says what is wrong.
#[test]
fn a_worker_that_nobody_can_reach_is_relayed() {
    let folder = TempDir::new().unwrap();
    // The path is that of another file for workers in another folder. Of a pair, the worker that has joined later is connected to.
    let unreachable = |join: &str| worker_in(folder.path(), join, "unix:hidden");
    let out = folder.path().join("run");
    let mut job = coordinator("--workers 4", &out);
    let join = listening_at(&mut job);
    let mut workers: Vec<_> = (0..3).map(|_| worker(&join, "127.0.0.1:0")).collect();
    support::line_with(job.stdout.as_mut().unwrap(), "3 of 4 workers connected");
    workers.push(unreachable(&join));
    let output = finish(job);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((&hash(&out), &losses(&out)), (&alone().0, &alone().1), "{}", said(&output));
    let planned = &record(&out)["planned_step_traffic"];
    let bytes = |way: &str| planned[way].as_u64().unwrap();
    let all = succeed("plan --json --batch 16 --slots 2 --workers 4 --exchange direct", &[]);
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    let across = all["step"]["across"].as_u64().unwrap();
    assert!(bytes("across") > 0 && bytes("across") < across, "some pairs are relayed, some are not: {planned}");
    assert_eq!(bytes("across") + bytes("down"), across + all["step"]["down"].as_u64().unwrap(), "workers get as much");
    assert!(said(&output).contains("the coordinator relays what worker"), "{}", said(&output));
    end(workers);
    let mut job = coordinator("--workers 2 --exchange direct", &folder.path().join("direct"));
    let join = listening_at(&mut job);
    let reachable = worker(&join, "127.0.0.1:0");
    support::line_with(job.stdout.as_mut().unwrap(), "1 of 2 workers connected");
    let workers = [reachable, unreachable(&join)];
    let output = finish(job);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("; --exchange auto"), "{}", said(&output));
    end(workers);
}

/// An address that this machine does not have (RFC 5737), or that is in use: the worker says so and ends.
#[test]
fn a_worker_that_cannot_listen_for_others_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    for (address, why) in [("192.0.2.1:7", "Cannot assign requested address"), (&taken, "in use")] {
        let output = finish(worker("127.0.0.1:1", address));
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let expected = format!("cannot listen for other workers at {address}");
        assert!(said(&output).contains(&expected) && said(&output).contains(why), "{}", said(&output));
    }
}
