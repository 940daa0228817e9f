//! Network traffic, counted by a proxy between coordinator and workers that knows nothing of gRPC. The bytes of a step must
//! match the plan's prediction, and no worker may receive another tower's weights.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::Value;
use support::{Start as _, finish, hash, record, said, signal, succeed};
use tempfile::TempDir;

/// Headers, checksums, acknowledgements and pings, as a share of what they carry.
const TOLERANCE: f64 = 0.02;

/// What one worker and the coordinator may say to each other in a step beside tensors, in bytes each way: chunk headers,
/// reports, commits, acknowledgements and pings. It counts only where the tensors between workers don't hide it.
const CONTROL: f64 = 4096.0;

/// Bytes that went through a proxy.
#[derive(Default)]
struct Counted {
    up: AtomicU64,
    down: AtomicU64,
}

/// Listens on a port of its own and passes everything on to `coordinator`, counting.
fn proxy(coordinator: String) -> (String, Arc<Counted>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let counted = Arc::new(Counted::default());
    let all = counted.clone();
    thread::spawn(move || {
        for worker in listener.incoming() {
            let worker = worker.unwrap();
            // A worker that comes before its coordinator is hung up on, and tries again.
            let Ok(coordinator) = TcpStream::connect(&coordinator) else { continue };
            for stream in [&worker, &coordinator] {
                stream.set_nodelay(true).unwrap();
            }
            let (up, down) = (all.clone(), all.clone());
            pass(worker.try_clone().unwrap(), coordinator.try_clone().unwrap(), move |n| {
                up.up.fetch_add(n, Ordering::SeqCst)
            });
            pass(coordinator, worker, move |n| down.down.fetch_add(n, Ordering::SeqCst));
        }
    });
    (address, counted)
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: impl Fn(u64) -> u64 + Send + 'static) {
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            count(length as u64);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        // The other side may be gone already.
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// What a job of `steps` steps moved through the proxy, up and down, and its record.
fn moved(model: &str, exchange: &str, steps: u64) -> ([u64; 2], Value) {
    let folder = TempDir::new().unwrap();
    let (out, embedded) = (folder.path().join("run"), folder.path().join("embedded"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (door, counted) = proxy(address.clone());
    let mut workers = [(); 2].map(|()| {
        let mut command = support::convoy();
        command.args(["worker", "--join", &door, "--threads", "1"]).stderr(Stdio::null()).start()
    });
    let job = format!(
        "train --model {model} --data bundled --batch 64 --schedule constant --snapshot-every 1000 --steps {steps} \
         --exchange {exchange}"
    );
    let mut command = support::convoy();
    command.args(job.split_whitespace()).args(["--listen", &address]).arg("--out").arg(&out);
    let output = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).start());
    for worker in &mut workers {
        signal(worker.id(), "TERM");
        worker.wait().unwrap();
    }
    assert!(output.status.success(), "{}", said(&output));
    succeed(&job, &[("--out", &embedded)]);
    assert_eq!(hash(&out), hash(&embedded));
    ([&counted.up, &counted.down].map(|bytes| bytes.load(Ordering::SeqCst)), record(&out))
}

#[test]
fn a_step_moves_the_bytes_that_the_plan_foretells() {
    for model in ["alexnet-fashion", "alexnet-fashion-dense"] {
        let plan = planned(model, "relay");
        let ([up, down], record) = moved_each_step(model, "relay");
        for (way, found) in [("up", up), ("down", down)] {
            let planned = plan["step"][way].as_u64().unwrap() as f64;
            let off = found / planned - 1.0;
            eprintln!("{model}, {way}: {found:.0} bytes a step counted, {planned:.0} planned, {:+.2} %", off * 100.0);
            assert!(planned > 1e6 && off.abs() < TOLERANCE, "{model}, {way}");
        }
        let parameters = plan["parameters"].as_u64().unwrap();
        let given: Vec<_> = record["workers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|worker| worker["state_bytes"].as_u64().unwrap())
            .collect();
        // Weights and momentum of four bytes each, and both towers' slices are the same size.
        assert_eq!(given, [parameters / 2 * 8; 2], "each worker holds its own tower's state and no other's");
    }
}

#[test]
fn with_direct_exchange_the_coordinator_receives_logits_and_control_alone() {
    for model in ["alexnet-fashion", "alexnet-fashion-dense"] {
        let plan = planned(model, "auto");
        let (found, record) = moved_each_step(model, "auto");
        for (way, found) in ["up", "down"].into_iter().zip(found) {
            let planned = plan["step"][way].as_u64().unwrap() as f64;
            eprintln!("{model}, {way}: {found:.0} bytes a step counted, {planned:.0} planned, the rest is control");
            // The coordinator sends images and the gradients of the logits, and receives logits.
            assert!(planned < 150e3, "{model}, {way}: the plan has tensors between workers on this path");
            assert!(found >= planned && found <= planned * (1.0 + TOLERANCE) + 2.0 * CONTROL, "{model}, {way}");
        }
        let across = plan["step"]["across"].as_u64().unwrap();
        assert!(across > 1_000_000, "{model}: {across}");
        let pairs = &record["sent"];
        assert_eq!(pairs.as_array().unwrap().len(), 2, "{model}: {pairs}");
        let gradients: u64 = record["exchanges"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|exchange| exchange["direction"] == "backward")
            .map(|exchange| exchange["bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(gradients, across / 2 * 22, "{model}: gradients that workers sent to each other in 22 steps");
    }
}

fn planned(model: &str, exchange: &str) -> Value {
    let plan = succeed(&format!("plan --json --model {model} --batch 64 --exchange {exchange}"), &[]);
    serde_json::from_str(&plan).unwrap()
}

/// Bytes of one step, up and down, and the record of a job of 22 steps. Weights, measurements and farewells are the same in a
/// job of two steps, and cancel.
fn moved_each_step(model: &str, exchange: &str) -> ([f64; 2], Value) {
    let ((short, _), (long, record)) = (moved(model, exchange, 2), moved(model, exchange, 22));
    ([0, 1].map(|way| (long[way] - short[way]) as f64 / 20.0), record)
}

/// What each worker sends to each other one, with two replicas of two towers and of one tower, directly and relayed.
#[test]
fn each_pair_of_workers_sends_what_the_plan_foretells() {
    let folder = TempDir::new().unwrap();
    for (workers, exchange) in [(2, "auto"), (4, "auto"), (4, "relay"), (3, "auto")] {
        let job = format!("--model alexnet-fashion --batch 64 --slots 2 --workers {workers} --exchange {exchange}");
        let plan: Value = serde_json::from_str(&succeed(&format!("plan --json {job}"), &[])).unwrap();
        let sent_in = |steps: u64| {
            let out = folder.path().join(format!("{workers}-{exchange}-{steps}"));
            succeed(&format!("train {job} --data bundled --schedule constant --steps {steps}"), &[("--out", &out)]);
            by_pair(&record(&out)["sent"])
        };
        // Measurements are the same in both, and cancel.
        let (short, long) = (sent_in(2), sent_in(12));
        let planned = by_pair(&plan["sent"]);
        let each_step: BTreeMap<_, _> = long.iter().map(|(pair, bytes)| (*pair, (bytes - short[pair]) / 10)).collect();
        assert!(planned.len() >= workers, "{planned:?}");
        assert_eq!(each_step, planned, "{workers} workers, --exchange {exchange}");
    }
}

/// Bytes by sender and receiver.
fn by_pair(sent: &Value) -> BTreeMap<(u64, u64), u64> {
    let number = |entry: &Value, key: &str| entry[key].as_u64().unwrap();
    let pair = |entry: &Value| ((number(entry, "from"), number(entry, "to")), number(entry, "bytes"));
    sent.as_array().unwrap().iter().map(pair).collect()
}
