//! One session with a coordinator: the greeting, a job, and its end.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::batch::{Batches, Division, EVALUATIONS_UNDER_WAY, MicroBatch, Phase};
use convoy_common::chain::with_causes;
use convoy_common::index::{TowerIndex, WorkerIndex};
use convoy_common::misdeed::Moment;
use convoy_common::placement::Half;
use convoy_common::plan::Plan;
use convoy_common::route::{Moved, route};
use convoy_common::trace::{Activity, Transfer};
use convoy_common::wire::tuning::SILENCE_MAX;
use convoy_common::wire::{
    Assembler, Assignment, Carried, Chunk, Doing, Elements, Failure, FailureKind, FromWorker, Generation, Hello,
    Numbered, Payload, Peer, PeerFailed, PeerFailure, Pong, Tally, TensorKey, ToWorker, WireError, chunk_from_frame,
    description_from, expected_shape, frames, open_frame,
};
use convoy_net::Fate;
use convoy_net::dial::DialError;
use convoy_proto::{PROTOCOL_VERSION, v1};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tracing::Instrument;

use super::compute::{Job, Message};
use super::config::{Presence, WorkerConfig};
use super::connection::{Place, connect, places};
use super::elsewhere::Whereabouts;
use super::links::{Arrived, OpenLinks};
use super::peers::{Door, Opened};
use crate::engine::{Engine, Out, Received};
use crate::memory;
use crate::metrics::Metrics;
use crate::probe::Probe;
use convoy_kernels::isa::Isa;

/// Capacity of the queues between two tasks: large enough that neither waits until the other is scheduled.
const QUEUE: usize = 32;
/// The pause before a worker moves to another coordinator. Two that send it to each other must not keep it busy.
const MOVES_AFTER: Duration = Duration::from_millis(10);
/// How long a worker waits for the answer to its greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// The most messages that may wait for the compute thread. A step has one, and a checkpoint has one.
const BACKLOG_MAX: usize = 64;

/// How long a worker that reported a failure waits for the end of the job.
const FAREWELL: Duration = Duration::from_secs(2);

/// The most towers that a log line names.
const TOWERS_SHOWN: usize = 16;

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("cannot look up {0}")]
    Name(Address, #[source] std::io::Error),
    #[error("cannot connect to a coordinator at {0}")]
    Connect(Place, #[source] DialError),
    #[error("the process at {place} does not answer like a coordinator of Convoy: {why}", place = .0, why = stranger(.1))]
    Stranger(Place, #[source] Answer),
    #[error("another coordinator behind this name comes first")]
    Moved(Place),
    #[error("the coordinator did not answer within {GREETING_TIMEOUT:?}")]
    Greeting,
    #[error("this worker requires a token (--token-file), but the coordinator was started without one")]
    NoToken,
    #[error("{0}")]
    Full(String),
    #[error("refused: {reason}")]
    Refused { reason: String },
    #[error("lost the connection to the coordinator: {0}")]
    Broken(Answer),
    #[error("the coordinator sent nothing for {SILENCE_MAX:?}")]
    Silent,
    #[error("the coordinator closed the connection during a job")]
    Left,
    #[error("this worker closed its connections to rehearse a fault")]
    Reconnects,
    #[error("invalid message from the coordinator")]
    Wire(#[from] WireError),
    #[error("unexpected message from the coordinator: {found}; expected {expected}")]
    OutOfTurn { found: &'static str, expected: &'static str },
    #[error("{queued} bytes of tensors wait for the compute thread; the plan allows at most {limit}")]
    Flood { queued: usize, limit: usize },
    #[error("more than {BACKLOG_MAX} messages wait for the compute thread")]
    Backlog,
    #[error("this worker reported a failure, but the coordinator did not end the job within {FAREWELL:?}")]
    Failed,
    #[error("the compute thread has ended")]
    NoCompute,
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::FailedPrecondition | Code::Unauthenticated => {
                SessionError::Refused { reason: description_from(status.message()) }
            }
            // The coordinator itself sent this status: a transport error would have a source.
            Code::Unavailable if std::error::Error::source(&status).is_none() => {
                SessionError::Full(description_from(status.message()))
            }
            _ => SessionError::Broken(Answer::from(status)),
        }
    }
}

impl SessionError {
    /// Whether the session failed after the greeting, other than by a broken connection.
    pub(super) fn was_in_a_job(&self) -> bool {
        use SessionError::{Broken, Connect, Full, Greeting, Name, NoToken, Silent, Stranger};
        !matches!(self, Name(..) | Connect(..) | Stranger(..) | Greeting | NoToken | Full(_) | Broken(_) | Silent)
    }

    /// The error before the first answer. A coordinator answers with neither of these codes.
    fn before_welcome(self, place: &Place, fate: &Fate) -> Self {
        match (self, fate.fault()) {
            (SessionError::Broken(_), Some(fault)) if fault.is_refusal() => {
                SessionError::Refused { reason: fault.to_string() }
            }
            (SessionError::Broken(_), Some(fault)) => SessionError::Connect(place.clone(), fault.clone().into()),
            (SessionError::Broken(answer), None) if matches!(answer.code, Code::Unimplemented | Code::Internal) => {
                SessionError::Stranger(place.clone(), answer)
            }
            (other, _) => other,
        }
    }

    /// Whether this coordinator has no place for the worker, and another one may have.
    fn is_turned_away(&self) -> bool {
        use SessionError::{Broken, Connect, Full, NoToken, Silent, Stranger};
        match self {
            Connect(..) | Stranger(..) | NoToken | Full(_) | Silent => true,
            Broken(answer) => answer.code == Code::Unavailable,
            _ => false,
        }
    }
}

/// How a call ended: the status of the other side, or of the transport, as far as people may see it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Answer {
    code: Code,
    /// What the status says, with its causes.
    text: String,
    /// Whether the transport failed, so the status is not of the other side.
    is_of_transport: bool,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        let is_of_transport = std::error::Error::source(&status).is_some();
        let text = description_from(&with_causes(status.message(), &status));
        Self { code: status.code(), text, is_of_transport }
    }
}

/// What a program does that is no coordinator.
fn stranger(answer: &Answer) -> &'static str {
    match answer.code {
        Code::Unimplemented => "it has no service for workers",
        // The transport itself failed, or the answer was plain HTTP.
        _ if answer.is_of_transport || answer.text.starts_with("grpc-status header missing") => {
            "its answer is not gRPC"
        }
        _ => "it answers with an error",
    }
}

/// What the tasks of a session share.
pub(super) struct Session<'a> {
    messages: &'a mpsc::Sender<Message>,
    control: Sender<v1::FromWorker>,
    /// The number of the last generation that was assigned; 0 before the first.
    generation: Arc<AtomicU64>,
    presence: &'a Presence,
    config: &'a WorkerConfig,
}

/// Marks the worker as in a job until it is dropped.
struct InJob<'a> {
    presence: &'a Presence,
    metrics: &'a Metrics,
}

impl<'a> InJob<'a> {
    fn begin(presence: &'a Presence, metrics: &'a Metrics) -> Self {
        presence.in_job.send_replace(true);
        metrics.jobs.inc();
        metrics.in_job.set(1);
        Self { presence, metrics }
    }
}

impl Drop for InJob<'_> {
    fn drop(&mut self) {
        self.presence.in_job.send_replace(false);
        self.metrics.in_job.set(0);
    }
}

/// Incomplete tensors: when their first chunk arrived, and the time spent on their chunks.
#[derive(Default)]
struct Arriving(HashMap<TensorKey, (u64, u64)>);

impl Arriving {
    /// Counts a chunk of `tensor` that was processed since `began`. With `bytes`, the tensor is complete.
    fn add(&mut self, probe: &Probe, tensor: TensorKey, began: u64, bytes: Option<usize>) {
        if tensor.training_step().is_none() {
            return;
        }
        let (first, busy) = self.0.get(&tensor).copied().unwrap_or((began, 0));
        let busy = busy + (probe.now() - began);
        match bytes {
            None => drop(self.0.insert(tensor, (first, busy))),
            Some(bytes) => {
                self.0.remove(&tensor);
                probe.ended(first, || Activity::Receive(Transfer { tensor, bytes: bytes as u64, busy }));
            }
        }
    }
}

/// What the network thread knows about a generation of a job.
struct Terms {
    generation: Generation,
    plan: Arc<Plan>,
    /// Bytes of tensors that wait for the compute thread.
    queued: Arc<AtomicUsize>,
    /// Control messages that wait for it.
    waiting: Arc<AtomicUsize>,
    /// Samples of the largest micro-batch.
    samples_max: usize,
    /// The most bytes of tensors that may wait for the compute thread.
    queue_limit: usize,
    /// This worker.
    worker: WorkerIndex,
    /// The workers to which it is connected directly.
    peers: Vec<Peer>,
    batches: Batches,
    division: Division,
    /// What it has received from other workers since its last report: tensors and bytes.
    carried: RefCell<BTreeMap<(WorkerIndex, Moved), (u64, u64)>>,
    /// How long the compute thread had computed when that was reported.
    computed: Cell<Duration>,
    /// Spans of the network thread.
    probe: Probe,
    /// Whether the coordinator has ended the job. It then closes the connections.
    is_over: Cell<bool>,
}

/// How a generation ends.
enum Ended {
    /// The job is over.
    Job,
    /// The coordinator has begun the next generation.
    Generation(Box<Numbered<Assignment>>),
}

/// A worker's tensor connection, and its door for other workers.
struct Tensors<'a> {
    incoming: Streaming<v1::Frame>,
    outgoing: Sender<v1::Frame>,
    /// A chunk that overtook the assignment of its generation, which uses the other connection. Nothing else is read meanwhile.
    ahead: Option<Chunk>,
    /// Where other workers connect.
    door: Option<&'a Door>,
}

impl<'a> Session<'a> {
    /// Finds a coordinator that accepts this worker, serves one job, and returns when the coordinator has ended it. Returns whether it was
    /// assigned to a job.
    pub(super) async fn run(
        config: &'a WorkerConfig,
        isa: Isa,
        messages: &'a mpsc::Sender<Message>,
        presence: &'a Presence,
    ) -> Result<bool, SessionError> {
        let found = places(&config.join).await.map_err(|(address, error)| SessionError::Name(address, error))?;
        let are_several = found.len() > 1;
        let mut places = VecDeque::from(found);
        let (mut turned_away, mut refused) = (None, None);
        while let Some(place) = places.pop_front() {
            match Self::serve_at(config, isa, messages, presence, &place).await {
                // The coordinator that it has left would take it again.
                Err(SessionError::Moved(other)) => {
                    sleep(MOVES_AFTER).await;
                    places.push_front(other);
                }
                // That nobody listens at one of several addresses says the least.
                Err(error) if error.is_turned_away() => {
                    let says_more = !matches!(error, SessionError::Connect(..));
                    turned_away = turned_away.filter(|_| !says_more).or(Some(error));
                }
                Err(SessionError::Refused { reason }) if are_several => {
                    refused = Some(SessionError::Refused { reason: format!("{reason} (at {place})") });
                }
                ended => return ended,
            }
        }
        // A coordinator without a place for it may have one later. One that refuses it never will.
        turned_away.or(refused).map_or(Ok(false), Err)
    }

    async fn serve_at(
        config: &'a WorkerConfig,
        isa: Isa,
        messages: &'a mpsc::Sender<Message>,
        presence: &'a Presence,
        place: &Place,
    ) -> Result<bool, SessionError> {
        let (control, requests) = channel(QUEUE);
        let session = Session { messages, control, generation: Arc::default(), presence, config };
        // Without a door, the coordinator relays what other workers send.
        let complain = |error: &std::io::Error| {
            tracing::warn!("cannot listen for other workers: {error}; the coordinator relays what they send");
        };
        let own = match presence.door {
            Some(_) => None,
            None => Door::towards(place, config.secrets.tls.clone()).await.inspect_err(complain).ok(),
        };
        let door = presence.door.as_ref().or(own.as_ref());
        let exchange_address = door.and_then(|door| door.address(place).inspect_err(complain).ok());
        session.say(FromWorker::Hello(Hello { exchange_address, ..hello(config, isa) })).await?;
        let unreachable = |error| SessionError::Connect(place.clone(), error);
        let (mut client, fate) = connect(place, &config.secrets).await.map_err(unreachable)?;
        let greeting = async {
            let mut orders = client.control(ReceiverStream::new(requests)).await?.into_inner();
            let first = next(&mut orders).await?;
            Ok::<_, SessionError>((orders, first))
        };
        let greeted = timeout(GREETING_TIMEOUT, greeting).await.map_err(|_| SessionError::Greeting)?;
        let (orders, first) = greeted.map_err(|error| error.before_welcome(place, &fate))?;
        let Some(Numbered { message: ToWorker::Welcome { session: number, requires_token }, .. }) = first else {
            return Err(SessionError::OutOfTurn { found: name(first.as_ref()), expected: "Welcome" });
        };
        config.rehearsal.reached(Moment::Join);
        if config.secrets.token.is_some() && !requires_token {
            return Err(SessionError::NoToken);
        }
        let (frames, outgoing) = channel(QUEUE);
        let _ = frames.send(open_frame(number)).await;
        let (mut tensors, _) = connect(place, &config.secrets).await.map_err(unreachable)?;
        let incoming = timeout(GREETING_TIMEOUT, tensors.tensors(ReceiverStream::new(outgoing)));
        let incoming = incoming.await.map_err(|_| SessionError::Greeting)??.into_inner();
        let whereabouts = Whereabouts {
            config,
            here: place,
            host: hostname(),
            session: number,
            model: String::new(),
            is_spare: false,
        };
        let tensors = Tensors { incoming, outgoing: frames, ahead: None, door };
        let result = session.serve(orders, tensors, whereabouts).await;
        // What is still being computed is dropped before its next layer.
        session.generation.store(u64::MAX, Ordering::Relaxed);
        session.messages.send(Message::Forget).map_err(|_| SessionError::NoCompute)?;
        result
    }

    async fn serve(
        &self,
        mut orders: Streaming<v1::ToWorker>,
        mut tensors: Tensors<'_>,
        mut whereabouts: Whereabouts<'_>,
    ) -> Result<bool, SessionError> {
        // It goes on through the coordinator's pings.
        let mut telling = Box::pin(whereabouts.tell());
        let first = loop {
            tokio::select! {
                order = next(&mut orders) => match order? {
                    Some(Numbered { message: ToWorker::Standby, .. }) if whereabouts.is_spare => {}
                    Some(Numbered { message: ToWorker::Standby, .. }) => {
                        let text = "the job already has all its workers; this worker is a spare";
                        // With several addresses, that is how workers find the next job.
                        if self.config.join.len() > 1 { tracing::info!("{text}") } else { tracing::warn!("{text}") }
                        drop(telling);
                        whereabouts.is_spare = true;
                        telling = Box::pin(whereabouts.tell());
                    }
                    Some(Numbered { message: ToWorker::Ping { sent }, .. }) => self.answer(sent).await?,
                    order => break order,
                },
                other = &mut telling => return Err(SessionError::Moved(other)),
            }
        };
        drop(telling);
        let mut assignment = match first {
            Some(Numbered { generation, message: ToWorker::Assign(message) }) => Numbered { generation, message },
            Some(Numbered { message: ToWorker::EndJob { .. }, .. }) | None => return Ok(false),
            other => return Err(SessionError::OutOfTurn { found: name(other.as_ref()), expected: "Assign" }),
        };
        whereabouts.is_spare = false;
        let _in_job = InJob::begin(self.presence, &self.config.metrics);
        loop {
            let span = span_of(&assignment);
            let generation = self.serve_generation(assignment, &mut orders, &mut tensors, &mut whereabouts);
            match generation.instrument(span).await? {
                Ended::Job => return Ok(true),
                Ended::Generation(next) => assignment = *next,
            }
        }
    }

    async fn serve_generation(
        &self,
        assignment: Numbered<Assignment>,
        orders: &mut Streaming<v1::ToWorker>,
        tensors: &mut Tensors<'_>,
        whereabouts: &mut Whereabouts<'_>,
    ) -> Result<Ended, SessionError> {
        tracing::info!("assigned");
        let (out, computed) = channel(QUEUE);
        let terms = match self.begin(assignment, out) {
            Ok(terms) => terms,
            Err(failure) => return self.give_up(failure, orders).await,
        };
        whereabouts.model = terms.plan.network.name.clone();
        let Tensors { incoming, outgoing, ahead, door } = tensors;
        // Reading must not wait for writing: both peers could wait for each other forever.
        let ended = tokio::select! {
            result = self.follow(orders, &terms) => result,
            result = self.receive(incoming, ahead, &terms) => result,
            result = self.exchange(computed, outgoing, *door, &terms) => result,
            other = whereabouts.tell() => Err(SessionError::Moved(other)),
            result = self.take_leave() => result,
            () = self.config.rehearsal.reconnects() => Err(SessionError::Reconnects),
        };
        match ended {
            // After the end, the state of the connections does not matter.
            Err(_) if terms.is_over.get() => Ok(Ended::Job),
            ended => ended,
        }
    }

    /// Answers a ping: what this worker computes, and its clock.
    async fn answer(&self, ping_sent: u64) -> Result<(), SessionError> {
        let received = self.presence.clock.now();
        let replied = self.presence.clock.now();
        let vitals = &self.presence.vitals;
        let doing = Doing { busy: vitals.busy_for(), longest: vitals.longest(), layer: vitals.layer() };
        self.say(FromWorker::Pong(Pong { ping_sent, received, replied, doing })).await
    }

    /// Tells the coordinator when this worker is asked to stop. The coordinator then writes a checkpoint, and continues without it.
    async fn take_leave(&self) -> Result<Ended, SessionError> {
        let mut leaving = self.presence.leaving.subscribe();
        if leaving.wait_for(|leaving| *leaving).await.is_ok() {
            self.say(FromWorker::Leaving).await?;
        }
        std::future::pending().await
    }

    fn begin(&self, assignment: Numbered<Assignment>, out: Sender<Out>) -> Result<Terms, Failure> {
        let Numbered { generation: number, message: assignment } = assignment;
        let (worker, peers) = (assignment.worker, assignment.peers.clone());
        let (batches, division) = (assignment.batches, assignment.division);
        // From here on, the compute thread drops an earlier generation, and messages carry the new number.
        self.generation.store(number, Ordering::Relaxed);
        let (generation, batch) = (Generation { job: assignment.job, number }, assignment.batches.batch);
        self.config.rehearsal.begins();
        self.config.rehearsal.reached(Moment::Assign);
        let samples_max = assignment.division.largest_micro_batch(batch);
        let engine = Engine::new(assignment, memory::most_bytes()).map_err(|error| super::compute::failure(&error))?;
        let plan = engine.plan();
        let clock = engine.traces().then_some(self.presence.clock);
        let slow = self.config.rehearsal.slow.clone();
        let queue_limit = queue_limit(&plan, batch, samples_max);
        let (queued, waiting) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let begun = self.messages.send(Message::Begin(Box::new(Job {
            engine,
            out,
            later: Vec::new(),
            generation: number,
            current: self.generation.clone(),
            queued: queued.clone(),
            waiting: waiting.clone(),
            probe: Probe::new(clock, slow, Some(self.presence.vitals.clone())),
            rehearsal: self.config.rehearsal.clone(),
            span: tracing::Span::current(),
        })));
        begun.map_err(|_| internal("the compute thread has ended"))?;
        Ok(Terms {
            generation,
            plan,
            queued,
            waiting,
            samples_max,
            queue_limit,
            worker,
            peers,
            batches,
            division,
            carried: RefCell::default(),
            computed: Cell::new(self.config.metrics.computed()),
            probe: Probe::new(clock, None, None),
            is_over: Cell::new(false),
        })
    }

    /// Follows the control connection until the generation ends.
    async fn follow(&self, orders: &mut Streaming<v1::ToWorker>, terms: &Terms) -> Result<Ended, SessionError> {
        let own = terms.generation.number;
        loop {
            let order = match next(orders).await {
                Ok(Some(order)) => order,
                Ok(None) if terms.is_over.get() => return Ok(Ended::Job),
                Ok(None) => return Err(SessionError::Left),
                Err(error) => return Err(error),
            };
            let Numbered { generation, message } = order;
            let message = match message {
                ToWorker::EndJob { reason } => {
                    tracing::info!(reason, "the job is over");
                    terms.is_over.set(true);
                    Message::End
                }
                ToWorker::Ping { sent } => {
                    self.answer(sent).await?;
                    continue;
                }
                ToWorker::Assign(message) if generation > own => {
                    return Ok(Ended::Generation(Box::new(Numbered { generation, message })));
                }
                ToWorker::Commit { .. } | ToWorker::SendState { .. } if generation != own => continue,
                ToWorker::Commit { step, rate, hand_over } => {
                    if !hand_over {
                        terms.probe.forget(step);
                    }
                    Message::Commit { step, rate, hand_over }
                }
                ToWorker::SendState { step } => Message::SendState { step },
                other @ (ToWorker::Welcome { .. } | ToWorker::Standby | ToWorker::Assign(_)) => {
                    let expected = "Commit, SendState, Ping, EndJob or the Assign of a later generation";
                    return Err(SessionError::OutOfTurn { found: other.name(), expected });
                }
            };
            if terms.waiting.fetch_add(1, Ordering::Relaxed) >= BACKLOG_MAX {
                return Err(SessionError::Backlog);
            }
            self.messages.send(message).map_err(|_| SessionError::NoCompute)?;
        }
    }

    /// Reassembles tensors and passes them to the compute thread.
    async fn receive(
        &self,
        incoming: &mut Streaming<v1::Frame>,
        ahead: &mut Option<Chunk>,
        terms: &Terms,
    ) -> Result<Ended, SessionError> {
        let mut assembler = Assembler::new(terms.queue_limit);
        let mut arriving = Arriving::default();
        loop {
            let (began, chunk) = match ahead.take() {
                Some(chunk) => (terms.probe.now(), chunk),
                None => {
                    let frame = match incoming.message().await {
                        Ok(Some(frame)) => frame,
                        Ok(None) => break,
                        Err(status) => return Err(after_farewell(status.into()).await),
                    };
                    (terms.probe.now(), chunk_from_frame(frame)?)
                }
            };
            if chunk.generation != terms.generation {
                if chunk.generation.job == terms.generation.job && chunk.generation.number > terms.generation.number {
                    *ahead = Some(chunk);
                    break;
                }
                continue; // A late chunk of an earlier job or generation.
            }
            let shape = expected_shape(&terms.plan, terms.samples_max, &chunk.key)?;
            let name = terms.probe.is_on().then(|| chunk.key.clone());
            let whole = assembler.accept(chunk, &shape)?;
            if let Some(name) = name {
                arriving.add(&terms.probe, name, began, whole.as_ref().map(|(_, elements)| elements.bytes()));
            }
            if let Some((key, elements)) = whole {
                self.pass_on(key, elements, None, terms)?;
            }
        }
        // The control connection tells whether this is the end of the job or of the generation.
        std::future::pending().await
    }

    /// Passes a whole tensor to the compute thread: one of another worker, or of the coordinator.
    fn pass_on(
        &self,
        key: TensorKey,
        elements: Elements,
        from: Option<WorkerIndex>,
        terms: &Terms,
    ) -> Result<(), SessionError> {
        self.config.metrics.received_bytes.inc_by(elements.bytes() as u64);
        let queued = terms.queued.fetch_add(elements.bytes(), Ordering::Relaxed) + elements.bytes();
        if queued > terms.queue_limit {
            return Err(SessionError::Flood { queued, limit: terms.queue_limit });
        }
        let received = Received { key, elements, from };
        self.messages.send(Message::Tensor(received)).map_err(|_| SessionError::NoCompute)
    }

    /// Connects to the peers, and then sends and receives until the generation ends.
    async fn exchange(
        &self,
        computed: Receiver<Out>,
        frames_out: &Sender<v1::Frame>,
        door: Option<&Door>,
        terms: &Terms,
    ) -> Result<Ended, SessionError> {
        let Opened { links, failed } = match door {
            Some(door) => door.connect(terms.worker, terms.generation, &terms.peers).await,
            None => Opened::nothing(&terms.peers),
        };
        if !failed.is_empty() {
            for failed in failed {
                self.say(FromWorker::PeerFailed(failed)).await?;
            }
            // The coordinator begins another generation. Until then, the other links stay open: their peers would report them as broken.
            let _open = links;
            return std::future::pending().await;
        }
        let OpenLinks { outgoing, incoming, tasks } = OpenLinks::over(links);
        tokio::select! {
            result = self.send(computed, frames_out, &outgoing, terms) => result,
            result = self.receive_from_peers(incoming, terms) => result,
            result = self.unlink(tasks) => result,
        }
    }

    /// Holds the tasks that move bytes to other workers and from them, until a misdeed closes these connections. Never ends.
    async fn unlink(&self, mut tasks: JoinSet<()>) -> Result<Ended, SessionError> {
        self.config.rehearsal.unlinks().await;
        tasks.abort_all();
        std::future::pending().await
    }

    /// Reassembles the tensors of other workers, and passes them to the compute thread. Ends only with an error.
    async fn receive_from_peers(&self, mut incoming: Receiver<Arrived>, terms: &Terms) -> Result<Ended, SessionError> {
        // Each peer has its own, so that none uses up the room of another one.
        let mut assemblers: HashMap<WorkerIndex, Assembler> = HashMap::new();
        let mut arriving = Arriving::default();
        let mut failed = false;
        while let Some(Arrived { from, chunk }) = incoming.recv().await {
            let began = terms.probe.now();
            let name = chunk.as_ref().ok().filter(|_| terms.probe.is_on()).map(|chunk| chunk.key.clone());
            let whole = match chunk {
                Ok(chunk) if chunk.generation != terms.generation => continue,
                Ok(chunk) => {
                    let assembler = assemblers.entry(from).or_insert_with(|| Assembler::new(terms.queue_limit));
                    let whole = self.accept_from_peer(from, chunk, assembler, terms);
                    let kind = PeerFailure::Invalid;
                    whole.map_err(|error| PeerFailed { peer: from, kind, message: error.to_string() })
                }
                Err(failed) => Err(failed),
            };
            match whole {
                Ok(whole) => {
                    if let Some(name) = name {
                        arriving.add(&terms.probe, name, began, whole.as_ref().map(|(_, elements)| elements.bytes()));
                    }
                    if let Some((key, elements)) = whole {
                        self.pass_on(key, elements, Some(from), terms)?;
                    }
                }
                // The first report ends the generation.
                Err(report) if !std::mem::replace(&mut failed, true) => {
                    self.say(FromWorker::PeerFailed(report)).await?
                }
                Err(_) => {}
            }
        }
        std::future::pending().await
    }

    /// Accepts a chunk of a tensor that `from` has to send to this worker. Returns the tensor when this was its last chunk.
    fn accept_from_peer(
        &self,
        from: WorkerIndex,
        chunk: Chunk,
        assembler: &mut Assembler,
        terms: &Terms,
    ) -> Result<Option<(TensorKey, Elements)>, WireError> {
        let shape = expected_shape(&terms.plan, terms.samples_max, &chunk.key)?;
        let route = route(&terms.plan, terms.samples_of(&chunk.key), &chunk.key)?;
        route.check_sender(&terms.plan, from, &chunk.key)?;
        if !route.to.contains(&terms.worker) || !terms.has(&chunk.key) {
            let (field, value) = ("tensor", chunk.key.to_string());
            return Err(WireError::Value { field, value, expected: "it is not for this worker" });
        }
        let bytes = chunk.data.len() as u64;
        let whole = assembler.accept(chunk, &shape)?;
        let mut carried = terms.carried.borrow_mut();
        let (tensors, all_bytes) = carried.entry((from, route.moved)).or_default();
        *tensors += u64::from(whole.is_some());
        *all_bytes += bytes;
        Ok(whole)
    }

    /// Sends what the compute thread puts out. A snapshot's state is sent while there is nothing else to send.
    async fn send(
        &self,
        mut computed: Receiver<Out>,
        frames_out: &Sender<v1::Frame>,
        links: &HashMap<WorkerIndex, Sender<v1::Frame>>,
        terms: &Terms,
    ) -> Result<Ended, SessionError> {
        let mut state = StateFrames::default();
        loop {
            let out = match computed.try_recv() {
                Ok(out) => out,
                Err(TryRecvError::Empty) => match state.next() {
                    Some((moment, frame)) => {
                        self.send_frame(moment, frame, &Receivers::coordinator(frames_out)).await?;
                        continue;
                    }
                    None => match computed.recv().await {
                        Some(out) => out,
                        None => break,
                    },
                },
                Err(TryRecvError::Disconnected) => break,
            };
            match out {
                Out::Say(FromWorker::Failure(failure)) => {
                    self.say(FromWorker::Failure(failure)).await?;
                    sleep(FAREWELL).await;
                    return Err(SessionError::Failed);
                }
                Out::HandedOver { step } => {
                    for message in terms.probe.hand_over(step, false) {
                        self.say(message).await?;
                    }
                }
                Out::Say(FromWorker::StepDone { step, .. }) => {
                    self.say(FromWorker::StepDone { step, tally: self.tally(terms) }).await?;
                }
                Out::Say(FromWorker::Finished { busy_threads, .. }) => {
                    self.say(FromWorker::Finished { busy_threads, tally: self.tally(terms) }).await?;
                }
                Out::Say(message) => self.say(message).await?,
                Out::Tensor(payload) if matches!(payload.key, TensorKey::Parameter { .. }) => {
                    self.config.metrics.sent_bytes.inc_by(payload.data.len() as u64);
                    state.0.push_back((moment_of(&payload.key), Box::new(frames(terms.generation, payload))));
                }
                Out::Tensor(payload) => self.send_tensor(payload, frames_out, links, terms).await?,
            }
        }
        // The job is over; the coordinator closes.
        std::future::pending().await
    }

    /// Sends a tensor of a step or of a measurement.
    async fn send_tensor(
        &self,
        payload: Payload,
        frames_out: &Sender<v1::Frame>,
        links: &HashMap<WorkerIndex, Sender<v1::Frame>>,
        terms: &Terms,
    ) -> Result<(), SessionError> {
        let receivers = Receivers::of(&payload.key, frames_out, links, terms)?;
        let (bytes, moment) = (payload.data.len() as u64, moment_of(&payload.key));
        let name = terms.probe.is_on().then(|| payload.key.clone());
        let (began, mut busy) = (terms.probe.now(), 0);
        let mut at = began;
        for frame in frames(terms.generation, payload) {
            busy += terms.probe.now() - at;
            self.send_frame(moment, frame, &receivers).await?;
            at = terms.probe.now();
        }
        self.config.metrics.sent_bytes.inc_by(bytes * receivers.count());
        if let Some(tensor) = name.filter(|tensor| tensor.training_step().is_some()) {
            terms.probe.ended(began, || Activity::Send(Transfer { tensor, bytes, busy }));
        }
        Ok(())
    }

    async fn send_frame(
        &self,
        moment: Option<Moment>,
        frame: v1::Frame,
        receivers: &Receivers<'_>,
    ) -> Result<(), SessionError> {
        for frame in self.config.rehearsal.tampered(moment, frame) {
            for peer in &receivers.peers {
                // If the link has ended, its other half reports that.
                let _ = peer.send(frame.clone()).await;
            }
            if let Some(coordinator) = receivers.coordinator
                && coordinator.send(frame).await.is_err()
            {
                return Err(after_farewell(SessionError::Left).await);
            }
        }
        if let Some(moment) = moment {
            self.config.rehearsal.reached(moment);
        }
        Ok(())
    }

    /// Reports why this worker cannot take part in the generation, and waits until the coordinator ends it.
    async fn give_up(&self, failure: Failure, orders: &mut Streaming<v1::ToWorker>) -> Result<Ended, SessionError> {
        tracing::info!("cannot continue: {}", description_from(&failure.message));
        self.say(FromWorker::Failure(failure)).await?;
        let own = self.generation.load(Ordering::Relaxed);
        let ended = async {
            loop {
                match next(orders).await {
                    Ok(Some(Numbered { message: ToWorker::EndJob { reason }, .. })) => {
                        tracing::info!(reason, "the job is over");
                        return Ended::Job;
                    }
                    Ok(Some(Numbered { generation, message: ToWorker::Assign(message) })) if generation > own => {
                        return Ended::Generation(Box::new(Numbered { generation, message }));
                    }
                    Ok(None) | Err(_) => return Ended::Job,
                    Ok(Some(_)) => {}
                }
            }
        };
        timeout(FAREWELL, ended).await.map_err(|_| SessionError::Failed)
    }

    /// What this worker has done since its last report.
    fn tally(&self, terms: &Terms) -> Tally {
        let carried = std::mem::take(&mut *terms.carried.borrow_mut()).into_iter();
        let computed = self.config.metrics.computed();
        let busy = computed.saturating_sub(terms.computed.replace(computed));
        let carried = carried.map(|((from, moved), (tensors, bytes))| Carried { from, moved, tensors, bytes });
        Tally { carried: carried.collect(), busy }
    }

    async fn say(&self, message: FromWorker) -> Result<(), SessionError> {
        let generation = self.generation.load(Ordering::Relaxed);
        self.control.send(Numbered { generation, message }.into()).await.map_err(|_| SessionError::Left)
    }
}

/// To whom a tensor is sent.
struct Receivers<'a> {
    /// Workers that are connected directly.
    peers: Vec<&'a Sender<v1::Frame>>,
    /// The coordinator, if it keeps the tensor or relays it to workers that are not.
    coordinator: Option<&'a Sender<v1::Frame>>,
}

impl<'a> Receivers<'a> {
    fn coordinator(frames_out: &'a Sender<v1::Frame>) -> Self {
        Self { peers: Vec::new(), coordinator: Some(frames_out) }
    }

    /// The receivers of a tensor of a step or of a measurement.
    fn of(
        key: &TensorKey,
        frames_out: &'a Sender<v1::Frame>,
        peers: &'a HashMap<WorkerIndex, Sender<v1::Frame>>,
        terms: &Terms,
    ) -> Result<Self, WireError> {
        if peers.is_empty() {
            return Ok(Self::coordinator(frames_out));
        }
        let to = route(&terms.plan, terms.samples_of(key), key)?.to;
        let direct: Vec<_> = to.iter().filter_map(|worker| peers.get(worker)).collect();
        let is_whole = !to.is_empty() && direct.len() == to.len();
        Ok(Self { peers: direct, coordinator: (!is_whole).then_some(frames_out) })
    }

    fn count(&self) -> u64 {
        self.peers.len() as u64 + u64::from(self.coordinator.is_some())
    }
}

impl Terms {
    /// Whether a step, or a measurement, has the micro-batch of a tensor, with these samples.
    fn has(&self, key: &TensorKey) -> bool {
        let Some(MicroBatch { id, samples }) = key.micro_batch() else { return true };
        match id.phase {
            Phase::Train => self
                .division
                .of(id.step, self.samples_of(key))
                .iter()
                .any(|known| known.id == *id && known.samples == *samples),
            // Micro-batches of a measurement are as large as those of training, but for the last one.
            Phase::Evaluate => samples.start == id.micro_batch as usize * self.samples_max,
        }
    }

    /// Samples of the step of a gradient.
    fn samples_of(&self, key: &TensorKey) -> usize {
        key.training_step().map_or(0, |step| self.batches.positions(step.max(1)).len())
    }
}

/// A part of a tensor, and the moment at which it is sent.
type AtMoment<T> = (Option<Moment>, T);

/// The tensors of a snapshot that wait to be sent.
#[derive(Default)]
struct StateFrames(VecDeque<AtMoment<Box<dyn Iterator<Item = v1::Frame> + Send>>>);

impl StateFrames {
    fn next(&mut self) -> Option<AtMoment<v1::Frame>> {
        loop {
            let (moment, frames) = self.0.front_mut()?;
            match frames.next() {
                Some(frame) => return Some((*moment, frame)),
                None => self.0.pop_front(),
            };
        }
    }
}

/// The moment at which a part of a tensor has been sent.
fn moment_of(key: &TensorKey) -> Option<Moment> {
    match key {
        TensorKey::Parameter { step, .. } => Some(Moment::State(*step)),
        TensorKey::Gradient { step, .. } => Some(Moment::Reduce(*step)),
        _ => key.training_step().map(Moment::Exchange),
    }
}

/// The name of a message in the protocol.
fn name(order: Option<&Numbered<ToWorker>>) -> &'static str {
    order.map_or("the end of the stream", |order| order.message.name())
}

/// An error of the tensor connection. The coordinator may have closed it, and says why on the other connection.
async fn after_farewell(error: SessionError) -> SessionError {
    sleep(FAREWELL).await;
    error
}

/// The next order. None: the coordinator has closed the connection.
async fn next(orders: &mut Streaming<v1::ToWorker>) -> Result<Option<Numbered<ToWorker>>, SessionError> {
    // A process that was stopped meanwhile has waited for one part only, so it still finds what has arrived.
    for _ in 0..SILENCE_MAX.as_secs() {
        if let Ok(order) = timeout(Duration::from_secs(1), orders.message()).await {
            return order?.map(Numbered::try_from).transpose().map_err(SessionError::from);
        }
    }
    Err(SessionError::Silent)
}

fn hello(config: &WorkerConfig, isa: Isa) -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        convoy_version: env!("CARGO_PKG_VERSION").to_owned(),
        process_id: std::process::id(),
        threads: config.threads,
        instruction_set: isa.to_string(),
        host: hostname(),
        exchange_address: None,
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// The context of every log line in a job.
fn span_of(assignment: &Numbered<Assignment>) -> tracing::Span {
    let Assignment { job, worker, placement, .. } = &assignment.message;
    let in_trunk = |held: &(Half, TowerIndex)| held.0 == Half::Trunk;
    let held = placement.held_by(*worker).into_iter().filter(in_trunk).map(|(_, tower)| tower);
    let towers: Vec<_> = held.take(TOWERS_SHOWN).collect();
    // At error level, so that no log filter removes it.
    tracing::error_span!("job", job = %format_args!("{job:016x}"), worker = worker.0, ?towers)
}

/// The most bytes of tensors that may wait for the compute thread: those of two steps, because the next step's images arrive
/// early; the parameters; and as many micro-batches of a measurement as a coordinator sends ahead.
fn queue_limit(plan: &Plan, batch: usize, samples_max: usize) -> usize {
    let parameters: usize = plan.network.parameters().iter().map(|p| p.len() * size_of::<f32>()).sum();
    let down = |samples| usize::try_from(plan.step_traffic(samples).to_workers()).unwrap_or(usize::MAX);
    let measured = down(samples_max).saturating_mul(EVALUATIONS_UNDER_WAY);
    down(batch).saturating_mul(2).saturating_add(2 * parameters).saturating_add(measured)
}

fn internal(message: &str) -> Failure {
    Failure { kind: FailureKind::Internal, message: message.to_owned(), layer: None, tower: None, step: None }
}

#[cfg(test)]
mod tests {
    use convoy_common::model::Network;

    use super::*;

    /// In a small network, nearly all bytes of a step are images. Those of a measurement must not exceed the limit.
    #[test]
    fn as_many_micro_batches_of_a_measurement_may_wait_as_are_under_way() {
        let model = "name = \"small\"\ntowers = 1\ninput = { channels = 1, height = 28, width = 28 }\n\
                     [[layer]]\nkind = \"linear\"\nname = \"fc\"\nunits = 2\n";
        let plan = Plan::new(Network::parse(model).unwrap(), 1, 1, None).unwrap();
        for (batch, samples_max) in [(1, 1), (12, 12), (128, 64), (1000, 10)] {
            let images = (EVALUATIONS_UNDER_WAY * samples_max + 2 * batch) * 28 * 28;
            assert!(queue_limit(&plan, batch, samples_max) > images, "batches of {batch}");
        }
    }

    /// Each limit stands in docs/SECURITY.md.
    #[test]
    fn the_docs_say_every_limit() {
        let docs = include_str!("../../../docs/SECURITY.md");
        for (what, value) in [
            ("control messages that may wait for a worker's compute thread", BACKLOG_MAX.to_string()),
            ("a message to a worker", format!("{} bytes", convoy_common::wire::CONTROL_BYTES_MAX)),
        ] {
            assert!(docs.contains(&format!("| {what} | {value} |\n")), "docs/SECURITY.md lacks: | {what} | {value} |");
        }
    }
}
