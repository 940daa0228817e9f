//! Metrics and logs during a job. Prometheus' own parser reads the metrics. A client that sends malformed requests must not
//! slow down the job.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use support::{Process, Start as _, finish, hash, run, said, signal, skip, succeed, wait_for};
use tempfile::TempDir;

/// By name and labels.
type Samples = BTreeMap<String, BTreeMap<String, Option<f64>>>;

/// Lines that have come so far.
type Lines = Arc<Mutex<Vec<String>>>;

/// A program under way, and what it has printed so far.
struct Watched {
    program: Process,
    output: Lines,
    errors: Lines,
    readers: Vec<JoinHandle<()>>,
}

impl Watched {
    /// Starts it with its metrics on a port of their own, and its log as JSON.
    fn start(arguments: &str, paths: &[(&str, &Path)]) -> Self {
        let mut command = support::convoy();
        command.args(arguments.split_whitespace()).args(["--metrics", "127.0.0.1:0", "--log-format", "json"]);
        for (flag, path) in paths {
            command.arg(flag).arg(path);
        }
        command.env("RUST_LOG", "convoy=debug").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut program = command.start();
        let (output, errors) = (Lines::default(), Lines::default());
        let readers = vec![
            read(program.stdout.take().unwrap(), output.clone()),
            read(program.stderr.take().unwrap(), errors.clone()),
        ];
        Self { program, output, errors, readers }
    }

    /// What stands between two words of a line, once there is such a line.
    fn told(&self, before: &str, after: &str) -> String {
        let between = |line: &String| {
            Some(line.split_once(before)?.1.split_once(after).map_or("", |(between, _)| between).to_owned())
        };
        let in_lines = |lines: &Lines| lines.lock().unwrap().iter().find_map(between);
        wait_for(before, || in_lines(&self.output).or_else(|| in_lines(&self.errors)))
    }

    fn metrics_address(&self) -> String {
        self.told("metrics at http://", "/metrics")
    }

    /// Its log once it has ended: every line of standard error, each an object.
    fn log(mut self) -> Vec<Value> {
        wait_for("the program to end", || self.program.try_wait().unwrap());
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        objects(&self.errors.lock().unwrap().join("\n"))
    }
}

fn read(pipe: impl Read + Send + 'static, lines: Lines) -> JoinHandle<()> {
    let read = BufReader::new(pipe).lines().map_while(Result::ok);
    std::thread::spawn(move || read.for_each(|line| lines.lock().unwrap().push(line)))
}

/// A log as programs read it.
fn objects(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no object: {line}"))).collect()
}

/// Sends `request` and reads all of the answer.
fn http(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // What is refused in the midst of a request may come as a reset.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn get(address: &str) -> String {
    let answer = http(address, format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"), "{head}");
    body.to_owned()
}

/// As Prometheus reads it.
fn parsed(python: &str, text: &str) -> Samples {
    let parser = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/live/openmetrics.py");
    let mut command = Command::new(python);
    command.arg(parser).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.start();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = finish(child);
    assert!(output.status.success(), "{}\n{text}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A Python that has Prometheus' parser.
fn python() -> Option<String> {
    let python = std::env::var("CONVOY_PYTHON").unwrap_or("python3".to_owned());
    let has_it = Command::new(&python).args(["-c", "import prometheus_client"]).output();
    if has_it.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    skip("prometheus_client isn't there: pip install prometheus_client, and set CONVOY_PYTHON to that Python");
    None
}

/// The names that the documentation lists, of the coordinator and of workers.
fn documented(heading: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/TRACING.md")).unwrap();
    let table = text.split_once(heading).unwrap_or_else(|| panic!("no {heading}")).1;
    let rows = table.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| Some(row.split('`').nth(1)?.split('{').next()?.to_owned())).collect()
}

/// Names without what a histogram adds to its own.
fn families(samples: &Samples) -> BTreeSet<String> {
    let family = |name: &String| {
        let histogram = name.strip_suffix("_bucket").or(name.strip_suffix("_count")).or(name.strip_suffix("_sum"));
        histogram.unwrap_or(name).to_owned()
    };
    samples.keys().map(family).collect()
}

fn value(samples: &Samples, name: &str) -> f64 {
    samples[name][""].unwrap_or(f64::NAN)
}

/// Coordinator and workers are read in the midst of a job and after it; the names are those of the documentation; what
/// was counted is what the job did.
#[test]
fn prometheus_reads_a_job_while_it_runs() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let steps = 300;
    let coordinator = Watched::start(
        &format!("train --data bundled --batch 16 --steps {steps} --snapshot-every 1000 --listen 127.0.0.1:0"),
        &[("--out", &out)],
    );
    let listen = coordinator.told("waiting for workers at ", ": ");
    let metrics = coordinator.metrics_address();
    let before = parsed(&python, &get(&metrics));
    assert_eq!(families(&before), documented("### Metrics of the coordinator"));
    assert_eq!((value(&before, "convoy_workers"), value(&before, "convoy_workers_wanted")), (0.0, 2.0));
    assert!(value(&before, "convoy_loss").is_nan(), "it isn't known yet");
    let worker = || Watched::start(&format!("worker --threads 1 --join {listen}"), &[]);
    let workers = [worker(), worker()];
    let during = wait_for("a step", || {
        let now = parsed(&python, &get(&metrics));
        (value(&now, "convoy_steps_total") > 0.0).then_some(now)
    });
    assert_eq!((value(&during, "convoy_workers"), value(&during, "convoy_last_step")), (2.0, f64::from(steps)));
    assert!(value(&during, "convoy_loss") > 0.0 && value(&during, "convoy_learning_rate") > 0.0);
    // One number is read after another while the job goes on: what each comes to, `coordinator/src/metrics.rs` tests.
    let committed = value(&during, "convoy_steps_total");
    assert!((committed - value(&during, "convoy_images_total") / 16.0).abs() <= 2.0);
    assert!(during["convoy_step_seconds_bucket"]["le=+Inf"].unwrap() >= 1.0);
    assert!(value(&during, "process_resident_memory_bytes") > 1e6);

    coordinator.told("done after ", " steps");
    for worker in &workers {
        let address = worker.metrics_address();
        let found = wait_for("the job to be over", || {
            let now = parsed(&python, &get(&address));
            (value(&now, "convoy_worker_in_job") == 0.0).then_some(now)
        });
        assert_eq!(families(&found), documented("### Metrics of a worker"));
        assert_eq!(value(&found, "convoy_worker_jobs_total"), 1.0);
        assert_eq!(value(&found, "convoy_worker_steps_total"), f64::from(steps));
        let spent = &found["convoy_worker_seconds_total"];
        let doing: Vec<_> = spent.keys().map(String::as_str).collect();
        let all = ["doing=committing", "doing=computing", "doing=handing_out", "doing=taking_in", "doing=waiting"];
        assert_eq!(doing, all);
        assert!(spent.values().all(|seconds| seconds.unwrap() > 0.0), "{spent:?}");
        assert!(value(&found, "convoy_worker_received_bytes_total") > value(&found, "convoy_worker_sent_bytes_total"));
    }
    // What workers have sent is what the coordinator has counted, but for the weights of the last checkpoint.
    let record = support::record(&out);
    let counted: f64 = record["exchanges"].as_array().unwrap().iter().map(|e| e["bytes"].as_f64().unwrap()).sum();
    let state: f64 = record["workers"].as_array().unwrap().iter().map(|w| w["state_bytes"].as_f64().unwrap()).sum();
    let sent =
        |worker: &Watched| value(&parsed(&python, &get(&worker.metrics_address())), "convoy_worker_sent_bytes_total");
    assert_eq!(workers.iter().map(sent).sum::<f64>(), counted + state);

    // Every line of the log is an object, and says of which job it is and on whose behalf.
    let of_job = |event: &&Value| event["span"]["job"].is_string();
    let log = coordinator.log();
    assert!(log.len() > steps as usize);
    let committed: Vec<_> = log.iter().filter(|event| event["message"] == "committed").filter(of_job).collect();
    assert_eq!(committed.len(), steps as usize);
    assert!(committed.iter().zip(1..).all(|(event, step)| event["step"] == step));
    let job = committed[0]["span"]["job"].clone();
    let mut towers = BTreeSet::new();
    for worker in workers {
        signal(worker.program.id(), "TERM");
        let log = worker.log();
        let committed: Vec<_> = log.iter().filter(|event| event["message"] == "committed").collect();
        assert_eq!(committed.len(), steps as usize);
        assert!(committed.iter().all(|event| event["span"]["job"] == job && event["span"]["worker"].is_u64()));
        assert!(committed.iter().zip(1..).all(|(event, step)| event["step"] == step));
        towers.insert(committed[0]["span"]["towers"].to_string());
    }
    assert_eq!(towers, BTreeSet::from(["\"[0]\"".to_owned(), "\"[1]\"".to_owned()]));
}

/// Strangers at the metrics' door get an answer or none, and the job its bits.
#[test]
fn malformed_requests_for_metrics_do_not_disturb_the_job() {
    let folder = TempDir::new().unwrap();
    let (out, undisturbed) = (folder.path().join("run"), folder.path().join("undisturbed"));
    let job = "train --data bundled --batch 16 --steps 10";
    let coordinator = Watched::start(&format!("{job} --listen 127.0.0.1:0"), &[("--out", &out)]);
    let address = coordinator.metrics_address();
    let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(&address).unwrap()).collect();
    for (request, answer) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n", "405"),
        ("\u{0}\u{1}\u{2} nonsense\r\n\r\n", "400"),
        (&format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(1 << 20)), "431"),
    ] {
        let answered = http(&address, request.as_bytes());
        let is_right = answered.starts_with(&format!("HTTP/1.1 {answer} "));
        // A request that is far too long may be cut off before its answer is read.
        assert!(is_right || (answer == "431" && answered.is_empty()), "{request:.40}: {answered:.200}");
    }
    let listen = coordinator.told("waiting for workers at ", ": ");
    let worker = || Watched::start(&format!("worker --threads 1 --join {listen}"), &[]);
    let _workers = [worker(), worker()];
    coordinator.told("done after ", " steps");
    drop(silent);
    succeed(job, &[("--out", &undisturbed)]);
    assert_eq!(hash(&out), hash(&undisturbed));
}

#[test]
fn an_address_that_cannot_be_had_is_named_before_anything_begins() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (arguments, code, parts) in [
        (format!("--metrics {address}"), 1, vec![address.as_str(), "--metrics", "in use"]),
        ("--metrics unix:/tmp/metrics".to_owned(), 2, vec!["--metrics unix:/tmp/metrics", "HOST:PORT"]),
        ("--metrics nowhere".to_owned(), 2, vec!["nowhere", "HOST:PORT"]),
        ("--log-format xml --metrics 127.0.0.1:0".to_owned(), 2, vec!["xml", "text", "json"]),
    ] {
        let output = run(&format!("train --data bundled --steps 1 {arguments}"), &[("--out", &out)]);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {}", said(&output));
        parts.iter().for_each(|part| assert!(said(&output).contains(part), "{arguments}: {}", said(&output)));
        assert!(!out.exists(), "{arguments}");
    }
}

/// Embedded workers' lines come through the coordinator, whole, to the last one.
#[test]
fn the_log_of_embedded_workers_comes_whole() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut command = support::convoy();
    command.args("train --data bundled --batch 16 --steps 3 --log-format json --out".split_whitespace()).arg(&out);
    let output = support::output_of(command.env("RUST_LOG", "convoy=debug"));
    assert!(output.status.success(), "{}", said(&output));
    let log = objects(&String::from_utf8(output.stderr).unwrap());
    for worker in 0..2 {
        let own: Vec<_> = log.iter().filter(|event| event["span"]["worker"] == worker).collect();
        let saying = |what: &str| own.iter().filter(|event| event["message"] == what).count();
        assert_eq!((saying("assigned"), saying("committed"), saying("the job is over")), (1, 3, 1), "worker {worker}");
    }
}

/// On a terminal, lines of all processes and the progress bar keep apart, and a job that fails leaves no bar behind.
#[test]
fn lines_and_a_progress_bar_keep_apart() {
    let folder = TempDir::new().unwrap();
    let (out, typescript) = (folder.path().join("run"), folder.path().join("typescript"));
    let program = env!("CARGO_BIN_EXE_convoy");
    let job = format!("{program} train --data bundled --batch 16 --steps 40 --out {}", out.display());
    let mut command = Command::new("script");
    support::forget_settings(&mut command);
    command.args(["-qec", &format!("stty cols 120 rows 40; {job}")]).arg(&typescript);
    command.env("CONVOY_OFFLINE", "1").env("RUST_LOG", "convoy=debug").stdin(Stdio::null());
    let output = support::output_of(&mut command);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&std::fs::read(&typescript).unwrap()).into_owned();
    assert!(text.contains("\u{2588}"), "there was a bar: {text}");
    // What follows the last time that a line was cleared is what is to be seen of it.
    let shown: Vec<&str> = text.lines().map(|line| line.rsplit("\u{1b}[2K").next().unwrap_or(line)).collect();
    let committed: Vec<_> = shown.iter().filter(|line| line.contains("committed")).collect();
    assert_eq!(committed.len(), 3 * 40, "the coordinator's and two workers'");
    assert!(committed.iter().all(|line| !line.contains('\u{2588}') && !line.contains('\u{2591}')), "{committed:#?}");
}

/// An error is a line of the log where that is JSON, the same one that a person would read.
#[test]
fn an_error_stands_in_a_log_of_json() {
    let output = run("eval nowhere --log-format json", &[]);
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    let plain = run("eval nowhere", &[]);
    assert_eq!(output.status, plain.status);
    let plain = String::from_utf8(plain.stderr).unwrap();
    assert_eq!(error["level"], "ERROR");
    assert_eq!(plain.trim_end(), format!("error: {}", error["message"].as_str().unwrap()));
    let mut silenced = support::convoy();
    let silenced =
        support::output_of(silenced.args(["eval", "nowhere", "--log-format", "json"]).env("RUST_LOG", "off"));
    assert_eq!(objects(&String::from_utf8(silenced.stderr).unwrap())[0]["message"], error["message"]);
}
