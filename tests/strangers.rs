//! Hostile and broken peers on the network: clients that are not workers, servers that are not coordinators, and either of
//! them with invalid messages. The built program must refuse them with a clear message, must not crash or hang, and must
//! continue its work.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use convoy_proto::v1::coordinator_client::CoordinatorClient;
use convoy_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use convoy_proto::{PROTOCOL_VERSION, v1};
use support::{Process, Start as _, finish, free_address, hash, is_alive, said, signal, succeed};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

const JOB: &str = "train --data bundled --batch 16 --steps 4 --schedule constant";

/// No answer takes nearly as long.
const SOON: Duration = Duration::from_secs(20);

fn coordinator(address: &str, out: &Path) -> Process {
    let mut command = support::convoy();
    command.args(JOB.split_whitespace()).args(["--workers", "2", "--listen", address]).arg("--out").arg(out);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

fn worker(address: &str) -> Process {
    let mut command = support::convoy();
    command.args(["worker", "--join", address, "--threads", "1"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

async fn dial(address: &str) -> CoordinatorClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let began = std::time::Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return CoordinatorClient::new(channel),
            Err(error) => assert!(began.elapsed() < SOON, "nobody at {address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn hello(protocol_version: u32) -> v1::FromWorker {
    let hello = v1::Hello {
        protocol_version,
        convoy_version: "77.7".to_owned(),
        process_id: 1,
        threads: 1,
        instruction_set: "abacus".to_owned(),
        host: "elsewhere".to_owned(),
        exchange_address: String::new(),
    };
    v1::FromWorker { generation: 0, message: Some(v1::from_worker::Message::Hello(hello)) }
}

/// What the coordinator answers to a first word.
async fn answer_to(address: &str, first: v1::FromWorker) -> Status {
    let stream = tokio_stream::once(first).chain(tokio_stream::pending());
    let answer = tokio::time::timeout(SOON, async { dial(address).await.control(stream).await });
    answer.await.expect("an answer in time").expect_err("a refusal")
}

/// Garbage, silence, browsers and workers of another version, all before the real ones: the job doesn't notice.
#[tokio::test]
async fn strangers_at_the_coordinators_door_are_refused_and_the_job_goes_on() {
    let folder = TempDir::new().unwrap();
    let (out, embedded) = (folder.path().join("run"), folder.path().join("embedded"));
    let address = free_address();
    let child = coordinator(&address, &out);

    let status = answer_to(&address, hello(PROTOCOL_VERSION + 98)).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    let (theirs, ours) = (PROTOCOL_VERSION + 98, PROTOCOL_VERSION);
    let versions = [format!("version {theirs}"), format!("version {ours} (convoy")];
    for part in [&versions[0], &versions[1], "convoy 77.7", "same version of the program"] {
        assert!(status.message().contains(part), "no \"{part}\" in {status}");
    }
    let status = answer_to(&address, v1::FromWorker { generation: 1, message: None }).await;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "the message lacks \"message\""));
    let ready = v1::FromWorker { generation: 1, message: Some(v1::from_worker::Message::Ready(v1::Ready {})) };
    let status = answer_to(&address, ready).await;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "a worker's first message must be Hello"));
    let mut endless = hello(PROTOCOL_VERSION);
    if let Some(v1::from_worker::Message::Hello(hello)) = &mut endless.message {
        hello.host = "x".repeat(16 << 20);
    }
    // The connection is closed after 64 KB.
    let status = answer_to(&address, endless).await;
    assert!([Code::Unknown, Code::Unavailable, Code::Internal].contains(&status.code()), "{status}");

    let forged = v1::Frame { frame: Some(v1::frame::Frame::Open(12345)) };
    let stream = tokio_stream::once(forged).chain(tokio_stream::pending());
    let status = dial(&address).await.tensors(stream).await.expect_err("a refusal");
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "the tensor connection names an unknown session")
    );

    let silent = TcpStream::connect(&address).unwrap();
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff"]
    {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(garbage).unwrap();
        // Whatever comes back, the connection ends; it may have ended by now.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }

    let mut workers = [worker(&address), worker(&address)];
    let output = finish(child);
    drop(silent);
    for worker in &mut workers {
        signal(worker.id(), "TERM");
        worker.wait().unwrap();
    }
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(!said(&output).contains("panicked"), "{}", said(&output));
    succeed(JOB, &[("--out", &embedded)]);
    assert_eq!(hash(&out), hash(&embedded));
}

/// A worker that says what a test wants.
struct Fake {
    say: mpsc::Sender<v1::FromWorker>,
    orders: Streaming<v1::ToWorker>,
    send: mpsc::Sender<v1::Frame>,
    incoming: Streaming<v1::Frame>,
}

impl Fake {
    async fn join(address: &str) -> Self {
        let (say, words) = mpsc::channel(8);
        let (send, chunks) = mpsc::channel(64);
        say.send(hello(PROTOCOL_VERSION)).await.unwrap();
        let mut orders = dial(address).await.control(ReceiverStream::new(words)).await.unwrap().into_inner();
        let welcome = orders.next().await.unwrap().unwrap();
        let Some(v1::to_worker::Message::Welcome(welcome)) = welcome.message else { panic!("{welcome:?}") };
        send.send(v1::Frame { frame: Some(v1::frame::Frame::Open(welcome.session)) }).await.unwrap();
        let incoming = dial(address).await.tensors(ReceiverStream::new(chunks)).await.unwrap().into_inner();
        Self { say, orders, send, incoming }
    }

    /// Is assigned, and says that it has its weights. The job's number.
    async fn ready(mut self) -> (Self, u64) {
        let order = self.orders.next().await.unwrap().unwrap();
        let Some(v1::to_worker::Message::Assign(assign)) = order.message else { panic!("{order:?}") };
        let ready = v1::FromWorker { generation: 1, message: Some(v1::from_worker::Message::Ready(v1::Ready {})) };
        self.say.send(ready).await.unwrap();
        (self, assign.job)
    }
}

/// What a coordinator says up to the first fault. Then it is interrupted, which ends it although no worker says anything.
fn fault_of(mut child: Process) -> String {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut text = String::new();
    for line in lines.by_ref() {
        text = text + &line + "\n";
        if ["; going back to step", "; no step is lost"].iter().any(|end| line.contains(end)) {
            break;
        }
    }
    signal(child.id(), "INT");
    lines.for_each(|line| text = text.clone() + &line + "\n");
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{text}{}", said(&output));
    text + &said(&output)
}

/// Two fake workers that take their towers, and then one of them sends `frames`.
async fn towers_taken_then(frames: impl FnOnce(u64, &v1::Chunk) -> Vec<v1::Frame>) -> String {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let address = free_address();
    let child = coordinator(&address, &out);
    let fakes = [Fake::join(&address).await, Fake::join(&address).await];
    let [first, second] = fakes;
    let (_first, (mut fake, job)) = (first.ready().await, second.ready().await);
    // Images show that the first step has begun, and what its micro-batches are called.
    let images = loop {
        let frame = fake.incoming.next().await.unwrap().unwrap();
        if let Some(v1::frame::Frame::Chunk(chunk)) = frame.frame
            && matches!(chunk.tensor, Some(v1::chunk::Tensor::Images(_)))
        {
            break chunk;
        }
    };
    for frame in frames(job, &images) {
        // The coordinator may have hung up on an earlier one.
        let _ = fake.send.send(frame).await;
    }
    let text = tokio::task::spawn_blocking(|| fault_of(child)).await.unwrap();
    assert!(!text.contains("panicked") && text.contains("worker 1"), "{text}");
    text
}

/// Workers that answer every micro-batch's images with `BackwardDone` and never send logits: no step is committed.
#[tokio::test]
async fn a_backward_pass_without_logits_commits_nothing() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let address = free_address();
    let child = coordinator(&address, &out);
    let fakes = [Fake::join(&address).await, Fake::join(&address).await];
    let mut ready = Vec::new();
    for fake in fakes {
        ready.push(fake.ready().await);
    }
    let mut micro_batches = Vec::new();
    while micro_batches.len() < 2 {
        let frame = ready[0].0.incoming.next().await.unwrap().unwrap();
        if let Some(v1::frame::Frame::Chunk(v1::Chunk { tensor: Some(v1::chunk::Tensor::Images(images)), .. })) =
            frame.frame
        {
            micro_batches.extend(images.micro_batch);
        }
    }
    for (fake, tower) in ready.iter().zip(0..) {
        for micro_batch in &micro_batches {
            let done = v1::BackwardDone { micro_batch: Some(*micro_batch), tower };
            // The coordinator may have hung up on an earlier one.
            let _ = fake
                .0
                .say
                .send(v1::FromWorker { generation: 1, message: Some(v1::from_worker::Message::BackwardDone(done)) })
                .await;
        }
    }
    let text = tokio::task::spawn_blocking(|| fault_of(child)).await.unwrap();
    assert!(text.contains("BackwardDone"), "the fault fired: {text}");
    assert_eq!(std::fs::read_to_string(out.join("metrics.jsonl")).unwrap(), "", "nothing was committed");
}

fn activations(images: &v1::Chunk, exchange: u32, from_tower: u32) -> v1::chunk::Tensor {
    let Some(v1::chunk::Tensor::Images(images)) = &images.tensor else { panic!("images") };
    v1::chunk::Tensor::Activations(v1::Activations {
        micro_batch: images.micro_batch,
        exchange,
        direction: v1::Direction::Forward.into(),
        from_tower,
        to_tower: None,
    })
}

fn frame(job: u64, tensor: v1::chunk::Tensor, shape: &[u32], offset: u64, data: &[u8]) -> v1::Frame {
    let chunk = v1::Chunk {
        job,
        generation: 1,
        tensor: Some(tensor),
        shape: shape.to_vec(),
        offset,
        crc32c: crc32c::crc32c(data),
        data: data.to_vec().into(),
    };
    v1::Frame { frame: Some(v1::frame::Frame::Chunk(chunk)) }
}

/// What a hostile worker answers to the first images, given the number of the job.
type Answer = Box<dyn FnOnce(u64, &v1::Chunk) -> Vec<v1::Frame>>;

/// A place is kept for a greeted worker's second connection for ten seconds, and not for ever. There is room for two workers and
/// sixteen spares.
#[tokio::test]
async fn silent_connections_keep_no_place() {
    let folder = TempDir::new().unwrap();
    let address = free_address();
    let child = coordinator(&address, &folder.path().join("run"));
    let mut lines = Vec::new();
    for _ in 0..18 {
        let stream = tokio_stream::once(hello(PROTOCOL_VERSION)).chain(tokio_stream::pending());
        let mut orders = dial(&address).await.control(stream).await.unwrap().into_inner();
        let welcome = orders.next().await.unwrap().unwrap();
        assert!(matches!(welcome.message, Some(v1::to_worker::Message::Welcome(_))), "{welcome:?}");
        lines.push(orders);
    }
    let stream = tokio_stream::once(hello(PROTOCOL_VERSION)).chain(tokio_stream::pending());
    let status = dial(&address).await.control(stream).await.expect_err("all places are taken");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let workers = [worker(&address), worker(&address)];
    let output = tokio::task::spawn_blocking(|| finish(child)).await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    for worker in workers {
        signal(worker.id(), "TERM");
        finish(worker);
    }
}

/// Who doesn't know the token is refused for good, by name of what is missing; who does gets a job. Nobody prints it.
#[tokio::test]
async fn workers_without_the_token_are_refused() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, word: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, word).unwrap();
        path
    };
    let (right, wrong) = (file("right", "correct-horse\n"), file("wrong", "wrong-horse\n"));
    let (address, out) = (free_address(), folder.path().join("run"));
    let mut command = support::convoy();
    command.args(JOB.split_whitespace()).args(["--listen", &address, "--token-file"]).arg(&right);
    command.arg("--out").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.start();
    let worker = |token: Option<&Path>| {
        let mut command = support::convoy();
        command.args(["worker", "--threads", "1", "--join", &address]);
        token.map(|token| command.arg("--token-file").arg(token));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
    };
    let mut all = String::new();
    for (token, why) in [(None, "requires a token"), (Some(&*wrong), "the worker's token differs")] {
        let child = worker(token);
        let output = tokio::task::spawn_blocking(|| finish(child)).await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(why), "no \"{why}\" in {}", said(&output));
        all += &said(&output);
    }
    let frame = v1::Frame { frame: Some(v1::frame::Frame::Open(1)) };
    let status = dial(&address).await.tensors(tokio_stream::once(frame)).await.expect_err("a refusal");
    assert_eq!(status.code(), Code::Unauthenticated, "every call is asked");
    let workers = [worker(Some(&right)), worker(Some(&right))];
    let output = tokio::task::spawn_blocking(|| finish(child)).await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    for why in ["a worker at 127.0.0.1:", "refused: the coordinator requires a token", "the worker's token differs"] {
        assert!(said(&output).contains(why), "the coordinator says so too: no \"{why}\" in {}", said(&output));
    }
    all += &said(&output);
    for worker in workers {
        signal(worker.id(), "TERM");
        all += &said(&finish(worker));
    }
    all += &std::fs::read_to_string(out.join("run.json")).unwrap();
    assert!(!all.contains("horse"), "{all}");
}

/// Nor does a worker that knows a token serve a coordinator that wants none: it waits for one that does.
#[tokio::test]
async fn a_worker_with_a_token_waits_for_a_coordinator_that_wants_it() {
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "correct-horse\n").unwrap();
    let address = free_address();
    let coordinator = coordinator(&address, &folder.path().join("open"));
    let mut command = support::convoy();
    command.args(["worker", "--threads", "1", "--join", &address, "--token-file"]).arg(&token);
    let mut worker = command.stderr(Stdio::piped()).start();
    let mut complaints = std::io::BufRead::lines(std::io::BufReader::new(worker.stderr.take().unwrap()));
    let refusal = complaints.find_map(|line| line.ok().filter(|line| line.contains("was started without one")));
    assert!(refusal.is_some(), "it says why it waits");
    signal(coordinator.id(), "INT");
    let output = tokio::task::spawn_blocking(|| finish(coordinator)).await.unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    signal(worker.id(), "TERM");
    assert_eq!(worker.wait().unwrap().code(), Some(0));
}

/// A worker that sends what isn't its to send ends the job, by name, at once.
#[tokio::test]
async fn a_worker_that_sends_nonsense_is_named_with_what_it_sent() {
    // conv2's output after its pool: 8 samples of 7x7, 32 channels of the tower's own.
    let shape = [8, 7, 7, 32];
    let wrong: Vec<(&str, Answer)> = vec![
        (
            "the plan requires [8, 7, 7, 32]",
            Box::new(|job, images| vec![frame(job, activations(images, 0, 1), &[8, 7, 7, 33], 0, &[0; 4])]),
        ),
        (
            "the plan requires [8, 7, 7, 32]",
            Box::new(|job, images| vec![frame(job, activations(images, 0, 1), &[u32::MAX; 8], 0, &[0; 4])]),
        ),
        (
            "it must have at most 8 axes",
            Box::new(|job, images| vec![frame(job, activations(images, 0, 1), &[u32::MAX; 9], 0, &[0; 4])]),
        ),
        (
            "decoded message length too large",
            Box::new(move |job, images| vec![frame(job, activations(images, 0, 1), &shape, 0, &[0; 1 << 20])]),
        ),
        (
            "3 bytes of activations",
            Box::new(move |job, images| vec![frame(job, activations(images, 0, 1), &shape, 0, &[0; 3])]),
        ),
        ("at byte 4", Box::new(move |job, images| vec![frame(job, activations(images, 0, 1), &shape, 4, &[0; 4])])),
        (
            "does not hold this tower",
            Box::new(move |job, images| vec![frame(job, activations(images, 0, 0), &shape, 0, &[0; 4])]),
        ),
        ("out of range", Box::new(move |job, images| vec![frame(job, activations(images, 99, 1), &shape, 0, &[0; 4])])),
        (
            "checksum",
            Box::new(move |job, images| {
                let mut forged = frame(job, activations(images, 0, 1), &shape, 0, &[0; 4]);
                if let Some(v1::frame::Frame::Chunk(chunk)) = &mut forged.frame {
                    chunk.crc32c ^= 1;
                }
                vec![forged]
            }),
        ),
        ("\"chunk\"", Box::new(|_, _| vec![v1::Frame { frame: None }])),
        (
            "is not being computed",
            Box::new(move |job, images| {
                let mut other = activations(images, 0, 1);
                if let v1::chunk::Tensor::Activations(activations) = &mut other {
                    activations.micro_batch.as_mut().unwrap().step = 77;
                }
                vec![frame(job, other, &shape, 0, &[0; 4])]
            }),
        ),
    ];
    for (part, frames) in wrong {
        let text = towers_taken_then(frames).await;
        assert!(text.contains(part), "no \"{part}\" in {text}");
    }
}

/// A coordinator that answers each visit with the next of its scripts, and tells how far it came.
struct Impostor {
    scripts: tokio::sync::Mutex<std::collections::VecDeque<Script>>,
    visits: mpsc::Sender<Option<v1::FromWorker>>,
}

/// What it says: a refusal, or messages after the welcome and then tensors.
enum Script {
    Refuse(Status),
    Say(Vec<v1::ToWorker>, Vec<v1::Frame>),
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Impostor {
    type ControlStream = Replies<v1::ToWorker>;
    type TensorsStream = Replies<v1::Frame>;

    async fn control(
        &self,
        request: Request<Streaming<v1::FromWorker>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let script = self.scripts.lock().await;
        let words = match script.front() {
            Some(Script::Refuse(status)) => return Err(status.clone()),
            Some(Script::Say(words, _)) => words.clone(),
            None => return Err(Status::unavailable("no more scripts")),
        };
        let visits = self.visits.clone();
        let mut messages = request.into_inner();
        tokio::spawn(async move {
            // A Failure is the worker's last word on what it can't do; otherwise its leaving is.
            let mut last = None;
            while let Some(Ok(message)) = messages.next().await {
                let failed = matches!(message.message, Some(v1::from_worker::Message::Failure(_)));
                last = Some(message);
                if failed {
                    break;
                }
            }
            let _ = visits.send(last).await;
        });
        let welcome = v1::to_worker::Message::Welcome(v1::Welcome { session: 9, requires_token: false });
        let words = std::iter::once(v1::ToWorker { generation: 0, message: Some(welcome) }).chain(words).map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(words.collect::<Vec<_>>()).chain(tokio_stream::pending()))))
    }

    async fn tensors(&self, _: Request<Streaming<v1::Frame>>) -> Result<Response<Self::TensorsStream>, Status> {
        let frames = match self.scripts.lock().await.pop_front() {
            Some(Script::Say(_, frames)) => frames,
            _ => Vec::new(),
        };
        let frames = frames.into_iter().map(Ok).collect::<Vec<_>>();
        Ok(Response::new(Box::pin(tokio_stream::iter(frames).chain(tokio_stream::pending()))))
    }

    async fn elsewhere(&self, _: Request<v1::WorkerElsewhere>) -> Result<Response<v1::ElsewhereAnswer>, Status> {
        Err(Status::unimplemented("an impostor doesn't care"))
    }
}

fn assign(change: impl FnOnce(&mut v1::Assign)) -> v1::ToWorker {
    let mut assign = v1::Assign {
        job: 5,
        model: std::fs::read_to_string("models/alexnet-fashion.toml").unwrap(),
        towers: 2,
        trunk: vec![0, 1],
        head: vec![0, 1],
        worker: 0,
        seed: 1,
        dropout_seed: 1,
        momentum: 0.9,
        weight_decay: 0.0,
        batch: 16,
        images: 16,
        slots: 1,
        micro_batches: 2,
        train: true,
        trace: true,
        peers: Vec::new(),
    };
    change(&mut assign);
    v1::ToWorker { generation: 1, message: Some(v1::to_worker::Message::Assign(assign)) }
}

fn parameter(step: u64, name: &str, tower: u32) -> v1::chunk::Tensor {
    let state = v1::State::Weights.into();
    v1::chunk::Tensor::Parameter(v1::Parameter { step, name: name.to_owned(), tower, state })
}

/// A worker outlives coordinators that talk nonsense: it gives each up, and is there for the next.
#[tokio::test]
async fn a_worker_survives_a_coordinator_that_talks_nonsense() {
    let giant = "name = \"giant\"\ntowers = 1\ninput = { channels = 1, height = 1, width = 1000000 }\n\
                 [[layer]]\nkind = \"linear\"\nunits = 2000\n"
        .to_owned();
    let commit = v1::to_worker::Message::Commit(v1::Commit { step: 4, rate: f32::NAN, hand_over: true });
    let sound = || vec![assign(|_| ())];
    let replicated = || vec![assign(|a| (a.trunk, a.slots) = (vec![0, 1, 2, 3], 2))];
    let gradient = |name: &str, piece: u32, slots: u32| {
        let name = name.to_owned();
        v1::chunk::Tensor::Gradient(v1::Gradient { step: 1, name, tower: 0, piece, first_slot: 0, slots })
    };
    // Half of the gradients of 16 filters of 25 weights and 32 filters of 400 weights, with a bias each.
    const PIECE: u32 = (16 * 26 + 32 * 401) / 2;
    let tower_0 = |offset: u64| frame(5, parameter(0, "conv1.weight", 0), &[16, 1, 5, 5], offset, &[0; 8]);
    let scripts = [
        Script::Say(vec![v1::ToWorker { generation: 1, message: None }], vec![]),
        Script::Say(vec![v1::ToWorker { generation: 1, message: Some(commit.clone()) }], vec![]),
        Script::Say(vec![assign(|a| a.model = "not TOML".to_owned())], vec![]),
        Script::Say(vec![assign(|a| a.trunk = vec![0, 7])], vec![]),
        Script::Say(vec![assign(|a| a.trunk = vec![u32::MAX; 1000])], vec![]),
        Script::Say(vec![assign(|a| a.trunk = vec![0; 1 << 19])], vec![]),
        Script::Say(vec![assign(|a| (a.trunk, a.slots) = (vec![0; 1 << 19], 1 << 20))], vec![]),
        Script::Say(vec![assign(|a| a.slots = u32::MAX)], vec![]),
        Script::Say(vec![assign(|a| a.head = vec![])], vec![]),
        Script::Say(vec![assign(|a| a.worker = 9)], vec![]),
        Script::Say(vec![assign(|a| a.batch = u32::MAX)], vec![]),
        Script::Say(vec![assign(|a| a.momentum = f64::NAN)], vec![]),
        Script::Say(
            vec![assign(|a| {
                a.model = giant;
                (a.trunk, a.head) = (vec![0], vec![0]);
                a.batch = 1 << 20;
            })],
            vec![],
        ),
        Script::Say([sound(), vec![v1::ToWorker { generation: 1, message: Some(commit) }]].concat(), vec![]),
        Script::Say(sound(), vec![v1::Frame { frame: None }]),
        Script::Say(sound(), vec![tower_0(4)]),
        Script::Say(sound(), vec![frame(5, parameter(0, "conv9.weight", 0), &[1], 0, &[0; 4])]),
        // No other worker holds this worker's tower; and in a job with replicas, a piece that it must not get, and one that comes too soon.
        Script::Say(sound(), vec![frame(5, gradient("conv1 to conv2", 0, 1), &[PIECE], 0, &[0; 4 * PIECE as usize])]),
        Script::Say(replicated(), vec![frame(5, gradient("fc6", 0, 1), &[PIECE], 0, &[0; 4 * PIECE as usize])]),
        Script::Say(
            replicated(),
            vec![frame(5, gradient("conv1 to conv2", 9, 1), &[PIECE], 0, &[0; 4 * PIECE as usize])],
        ),
        Script::Say(
            replicated(),
            vec![frame(5, gradient("conv1 to conv2", 1, 1), &[PIECE], 0, &[0; 4 * PIECE as usize])],
        ),
        Script::Say(sound(), vec![frame(5, parameter(0, "conv1.weight", 1), &[16, 1, 5, 5], 0, &[0; 1600])]),
        // Thousands of tensors begun and never finished: what may be under way has a limit.
        Script::Say(
            sound(),
            (0..40_000u64).map(|step| frame(5, parameter(step, "fc6.weight", 0), &[128, 576], 0, &[0; 4])).collect(),
        ),
        Script::Refuse(Status::failed_precondition("you speak version 1, we speak version 0")),
    ];
    let nonsense = scripts.len() - 1;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (visits, mut heard) = mpsc::channel(64);
    let impostor = Impostor { scripts: tokio::sync::Mutex::new(scripts.into_iter().collect()), visits };
    let router = Server::builder().add_service(CoordinatorServer::new(impostor));
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));

    let child = worker(&address);
    let process = child.id();
    for visit in 0..nonsense {
        let last = tokio::time::timeout(SOON, heard.recv()).await;
        let last = last.unwrap_or_else(|_| panic!("visit {visit} doesn't end"));
        assert!(is_alive(process) || visit == nonsense - 1, "it crashed in visit {visit} after {last:?}");
    }
    let output = tokio::task::spawn_blocking(|| finish(child)).await.unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("refuses this worker: you speak version 1, we speak version 0"), "{text}");
    assert!(text.contains("invalid message from the coordinator"), "it logs why it left: {text}");
    assert!(text.matches("; retrying").count() > 5, "it logs each new reason: {text}");
    assert!(!text.contains("panicked"), "{text}");
}
