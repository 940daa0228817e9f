//! `convoy health` against the built programs in every state: its exit code, its message, and that it takes less than a
//! second. Also tests settings from environment variables.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{Process, Start as _, finish, free_address, output_of, record, run, said, signal, succeed, wait_for};
use tempfile::TempDir;

/// No answer takes nearly as long. How long the program itself waits for one, its message says.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks. The program must not hang with the process that it asks.
fn ask(arguments: &str) -> (i32, String) {
    let began = Instant::now();
    let output = run(&format!("health {arguments}"), &[]);
    let took = began.elapsed();
    assert!(took < LIMIT, "health {arguments} took {took:?}");
    (output.status.code().unwrap(), said(&output))
}

fn answers(arguments: &str, code: i32, part: &str) {
    let (found, text) = ask(arguments);
    assert!(found == code && text.contains(part), "health {arguments}: {found}, no \"{part}\" in {text}");
}

/// Starts a program that prints nothing.
fn quietly(command: &mut Command) -> Process {
    command.stdout(Stdio::null()).stderr(Stdio::null()).start()
}

fn worker(join: &str, health: &str) -> Process {
    quietly(support::convoy().args(["worker", "--threads", "1", "--join", join, "--health", health]))
}

fn wait_ready(address: &str) {
    wait_for("a healthy process", || (ask(address).0 == 0).then_some(()));
}

#[test]
fn a_worker_is_ready_without_a_coordinator_and_one_that_hangs_is_not() {
    let (nobody, health) = (free_address(), free_address());
    answers(&health, 1, "Connection refused");
    let worker = worker(&nobody, &health);
    wait_ready(&health);
    answers(&health, 0, "the worker at");
    answers(&format!("{health} --live"), 0, "alive");
    signal(worker.id(), "STOP");
    answers(&health, 1, "it hangs");
    answers(&format!("{health} --live"), 1, "it hangs");
    signal(worker.id(), "CONT");
    wait_ready(&health);
}

#[test]
fn a_coordinator_is_starting_until_its_workers_have_come() {
    let folder = TempDir::new().unwrap();
    let (listen, health) = (free_address(), free_address());
    let mut train = support::convoy();
    train.args(["train", "--data", "bundled", "--steps", "2000", "--listen", &listen, "--out"]);
    let coordinator = quietly(train.arg(folder.path().join("run")));
    wait_for("the coordinator", || (ask(&format!("{listen} --live")).0 == 0).then_some(()));
    answers(&listen, 1, "is not ready: it is waiting for workers");
    let _workers = [worker(&listen, &health), worker(&listen, &free_address())];
    wait_ready(&listen);
    answers(&listen, 0, "the coordinator at");
    answers(&health, 0, "the worker at");
    signal(coordinator.id(), "STOP");
    answers(&listen, 1, "it hangs");
}

#[test]
fn other_programs_are_not_taken_for_convoy() {
    answers("nowhere", 2, "HOST:PORT");
    answers("::1:80", 2, "HOST:PORT");
    answers("nowhere.invalid:80", 1, "look up nowhere.invalid:80");
    // Something that listens and never answers; something that answers HTTP/1; something that hangs up.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    answers(&silent.local_addr().unwrap().to_string(), 1, "did not answer");
    for reply in [&b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..], b""] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(reply);
        });
        answers(&address, 1, "is not a worker or a coordinator of Convoy");
        server.join().unwrap();
    }
}

/// gRPC, health checks and all, of another program; and of a worker of ours whose work doesn't get on.
#[tokio::test]
async fn another_programs_health_is_not_taken_for_ours_and_work_that_stands_still_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (reporter, health) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming));
    let ask = async |arguments: &str, part: &'static str| {
        let arguments = arguments.to_owned();
        tokio::task::spawn_blocking(move || answers(&arguments, 1, part)).await.unwrap();
    };
    ask(&address, "of another service").await;
    for service in ["", convoy_proto::WORKER_SERVICE] {
        reporter.set_service_status(service, tonic_health::ServingStatus::NotServing).await;
    }
    for arguments in [address.clone(), format!("{address} --live")] {
        ask(&arguments, "hangs: it has made no progress").await;
    }
}

#[test]
fn a_health_address_that_is_taken_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&format!("worker --join 127.0.0.1:1 --health {address}"), &[]);
    assert_eq!(output.status.code(), Some(1));
    for part in ["cannot serve health checks at", &address, "in use"] {
        assert!(said(&output).contains(part), "no \"{part}\" in {}", said(&output));
    }
}

/// A worker is told what listens where it looks for a coordinator.
#[test]
fn a_worker_says_that_another_program_is_no_coordinator() {
    let other = free_address();
    let _other = worker(&free_address(), &other);
    wait_ready(&other);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let of_http = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            // A connection with unread data would be reset, and the answer could be lost.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    for (join, why) in [(other, "it has no service for workers"), (of_http, "its answer is not gRPC")] {
        let mut command = support::convoy();
        let mut lost = command.args(["worker", "--join", &join]).stdout(Stdio::null()).stderr(Stdio::piped()).start();
        let line = support::line_with(lost.stderr.as_mut().unwrap(), "the process at");
        let said = format!("the process at {join} does not answer like a coordinator of Convoy: {why}");
        assert!(line.contains(&said), "{line}");
    }
}

#[test]
fn the_file_of_a_unix_socket_stays_no_longer_than_it_is_used() {
    let folder = TempDir::new().unwrap();
    let [listen, health] = ["listen", "health"].map(|name| folder.path().join(name));
    let [at_listen, at_health] = [&listen, &health].map(|path| format!("unix:{}", path.display()));
    let killed = worker(&at_listen, &at_health);
    wait_ready(&at_health);
    let second = run(&format!("worker --join {at_listen} --health {at_health}"), &[]);
    assert!(second.status.code() == Some(1) && said(&second).contains("in use"), "{}", said(&second));
    signal(killed.id(), "KILL");
    finish(killed);
    assert!(health.exists(), "it could not remove it");
    let workers = [worker(&at_listen, &at_health), worker(&at_listen, &free_address())];
    wait_ready(&at_health);
    let wait = |job: &str| format!("{job} --listen {at_listen} --data bundled");
    let out = folder.path().join("run");
    for job in ["train --batch 16 --steps 3".to_owned(), format!("eval {}", out.display())] {
        drop(UnixListener::bind(&listen).unwrap());
        let to: &[(&str, &Path)] = if job.starts_with("train") { &[("--out", &out)] } else { &[] };
        succeed(&wait(&job), to);
        assert!(!listen.exists(), "the coordinator has ended: {job}");
    }
    for worker in workers {
        signal(worker.id(), "TERM");
        finish(worker);
    }
    assert!(!health.exists(), "the worker has ended");
}

fn with(variables: &[(&str, &str)], arguments: &[&str], out: Option<&Path>) -> std::process::Output {
    let mut command = support::convoy();
    command.args(arguments).envs(variables.iter().copied());
    if let Some(out) = out {
        command.arg("--out").arg(out);
    }
    output_of(&mut command)
}

#[test]
fn the_environment_says_what_the_line_leaves_out_and_the_line_wins() {
    let folder = TempDir::new().unwrap();
    let variables = [("CONVOY_STEPS", "3"), ("CONVOY_BATCH", "16"), ("CONVOY_SEED", "5"), ("CONVOY_DATA", "bundled")];
    let cases: [(&[&str], [u64; 3]); 3] = [
        (&["train"], [3, 16, 5]),
        (&["train", "--seed", "7", "--batch=8"], [3, 8, 7]),
        // What excludes a variable's flag outdoes it too. An epoch of 5,000 images.
        (&["train", "--epochs", "1", "--batch", "2500"], [2, 2500, 5]),
    ];
    for (index, (arguments, [steps, batch, seed])) in cases.into_iter().enumerate() {
        let out = folder.path().join(format!("run-{index}"));
        // Embedded workers have a health address from nobody: two can't have the same.
        let variables = [&variables[..], &[("CONVOY_HEALTH", "127.0.0.1:1"), ("CONVOY_JSON", "")]].concat();
        let output = with(&variables, arguments, Some(&out));
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        let configuration = &record(&out)["configuration"];
        assert_eq!(record(&out)["final"]["steps"], steps);
        assert_eq!((configuration["batch"].as_u64(), configuration["seed"].as_u64()), (Some(batch), Some(seed)));
    }
    let json = with(&[("CONVOY_JSON", "1")], &["plan"], None);
    assert!(said(&json).starts_with('{'), "{}", said(&json));
    let wrong = with(&[("CONVOY_OFFLINE", "perhaps")], &["train"], None);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong).contains("CONVOY_OFFLINE=perhaps"), "{}", said(&wrong));
    let wrong = with(&[("CONVOY_BATCH", "many")], &["plan"], None);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong).contains("CONVOY_BATCH=many"), "{}", said(&wrong));
    let slip = with(&[("CONVOY_BATHC", "3")], &["plan"], None);
    assert!(
        said(&slip).contains("CONVOY_BATHC") && said(&slip).contains("did you mean CONVOY_BATCH?"),
        "{}",
        said(&slip)
    );
    for known in ["CONVOY_IMAGE", "CONVOY_USER", "CONVOY_MOUNT_RUNS", "CONVOY_TOKEN", "CONVOY_SOMETHING"] {
        let output = with(&[(known, "x")], &["plan"], None);
        assert!(output.stderr.is_empty(), "{known}: {}", said(&output));
    }
    let unset = with(&[("CONVOY_HEALTH", "")], &["health"], None);
    assert!(said(&unset).contains("127.0.0.1:7979"), "{}", said(&unset));
    assert!(succeed("train --help", &[]).contains("CONVOY_CHECKPOINT_EVERY"));
}

/// A worker that was told its health address by the environment answers there.
#[test]
fn a_worker_takes_its_settings_from_the_environment() {
    let (join, health) = (free_address(), free_address());
    let mut command = support::convoy();
    command.arg("worker").env("CONVOY_JOIN", &join).env("CONVOY_HEALTH", &health).env("CONVOY_THREADS", "1");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    wait_for("the worker", || with(&[("CONVOY_HEALTH", &health)], &["health"], None).status.success().then_some(()));
    signal(child.id(), "TERM");
    assert_eq!(finish(child).status.code(), Some(0));
}
