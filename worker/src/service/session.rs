//! One visit to a coordinator: hello, a job, and the end of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::batch::EVALUATIONS_UNDER_WAY;
use convoy_common::plan::Plan;
use convoy_common::trace::{Activity, Transfer};
use convoy_common::wire::{
    Assembler, Assignment, Failure, FailureKind, FromWorker, Hello, Pong, TensorKey, ToWorker, WireError,
    chunk_from_frame, expected_shape, frames, open_frame,
};
use convoy_proto::{PROTOCOL_VERSION, v1};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tracing::Instrument;

use super::compute::{Command, Job};
use super::connection::{Place, dial, places};
use super::elsewhere::Whereabouts;
use super::{Presence, WorkerConfig};
use crate::engine::{Engine, Out};
use crate::kernels::isa::Isa;
use crate::machine;
use crate::metrics::Metrics;
use crate::probe::Probe;

/// Messages and frames between two tasks: enough that neither waits for the other's next turn.
const QUEUE: usize = 32;
/// A coordinator answers a greeting within this.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Orders that may wait to be carried out: a step has one, and a checkpoint.
const ORDERS_MAX: usize = 64;

/// A coordinator that has heard of a failure ends the job within this.
const FAREWELL: Duration = Duration::from_secs(2);

/// A visit that ended badly.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("look up {0}")]
    Name(Address, #[source] std::io::Error),
    #[error("no coordinator at the address given")]
    Dial(#[from] tonic::transport::Error),
    #[error("another coordinator of this name comes first")]
    Moved,
    #[error("the coordinator gave no answer within {GREETING_TIMEOUT:?}")]
    Greeting,
    #[error("the coordinator wants no token, and this worker serves those alone that do (--token-file)")]
    NoToken,
    #[error("{0}")]
    Full(String),
    #[error("refused: {reason}")]
    Refused { reason: String },
    #[error("the connection to the coordinator broke: {}", .0.message())]
    Broken(Status),
    #[error("the coordinator left in the middle of a job")]
    Left,
    #[error("a message from the coordinator")]
    Wire(#[from] WireError),
    #[error("{0} came before the job was assigned")]
    Early(&'static str),
    #[error("more tensors wait to be computed than a step has: {queued} bytes of {limit}")]
    Flood { queued: usize, limit: usize },
    #[error("more than {ORDERS_MAX} orders wait to be carried out")]
    Orders,
    #[error("this worker couldn't go on with the job, and the coordinator didn't end it within {FAREWELL:?}")]
    Failed,
    #[error("the computing thread is gone")]
    NoCompute,
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::FailedPrecondition | Code::Unauthenticated => {
                SessionError::Refused { reason: status.message().to_owned() }
            }
            // Said by the coordinator itself: a connection that breaks has a source.
            Code::Unavailable if std::error::Error::source(&status).is_none() => {
                SessionError::Full(status.message().to_owned())
            }
            _ => SessionError::Broken(status),
        }
    }
}

impl SessionError {
    /// Whether it ended after a greeting for another reason than a broken connection.
    pub(super) fn was_in_a_job(&self) -> bool {
        use SessionError::{Broken, Dial, Full, Greeting, Name, NoToken};
        !matches!(self, Name(..) | Dial(_) | Greeting | NoToken | Full(_) | Broken(_))
    }

    /// Whether there was no place for this worker, and another coordinator may have one.
    fn is_turned_away(&self) -> bool {
        use SessionError::{Broken, Dial, Full, NoToken};
        match self {
            Dial(_) | NoToken | Full(_) => true,
            Broken(status) => status.code() == Code::Unavailable,
            _ => false,
        }
    }
}

/// What the tasks of a visit share.
pub(super) struct Session<'a> {
    commands: &'a mpsc::Sender<Command>,
    control: Sender<v1::FromWorker>,
    queued: Arc<AtomicUsize>,
    orders: Arc<AtomicUsize>,
    presence: &'a Presence,
    config: &'a WorkerConfig,
}

/// Says that there is a job, for as long as it lives.
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

/// Tensors of which a part has come: since when, and how long they have been worked on.
#[derive(Default)]
struct Arriving(HashMap<TensorKey, (u64, u64)>);

impl Arriving {
    /// A chunk of `tensor` was worked on since `began`; it is whole now where its `bytes` are known.
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

/// A job, as the network side knows it.
struct Terms {
    job: u64,
    plan: Arc<Plan>,
    /// Samples of the largest micro-batch.
    samples_max: usize,
    /// Bytes of tensors that may wait to be computed.
    queue_limit: usize,
    /// What this side records.
    probe: Probe,
}

impl<'a> Session<'a> {
    /// Finds a coordinator that wants this worker, serves one job, and returns when the coordinator has ended it.
    pub(super) async fn run(
        config: &'a WorkerConfig,
        isa: Isa,
        commands: &'a mpsc::Sender<Command>,
        presence: &'a Presence,
    ) -> Result<(), SessionError> {
        let found = places(&config.join).await.map_err(|error| SessionError::Name(config.join.clone(), error))?;
        let mut ended = Ok(());
        for place in &found {
            ended = Self::visit(config, isa, commands, presence, place).await;
            if !ended.as_ref().is_err_and(SessionError::is_turned_away) {
                break;
            }
        }
        match ended {
            // The next visit begins with the coordinator that comes first.
            Err(SessionError::Moved) => Ok(()),
            ended => ended,
        }
    }

    async fn visit(
        config: &'a WorkerConfig,
        isa: Isa,
        commands: &'a mpsc::Sender<Command>,
        presence: &'a Presence,
        place: &Place,
    ) -> Result<(), SessionError> {
        let (control, requests) = channel(QUEUE);
        let session = Session { commands, control, queued: Arc::default(), orders: Arc::default(), presence, config };
        session.say(FromWorker::Hello(hello(config, isa))).await?;
        let mut client = dial(place, config.token.as_ref()).await?;
        let greeting = async {
            let mut orders = client.control(ReceiverStream::new(requests)).await?.into_inner();
            let first = next(&mut orders).await?;
            Ok::<_, SessionError>((orders, first))
        };
        let (orders, first) = timeout(GREETING_TIMEOUT, greeting).await.map_err(|_| SessionError::Greeting)??;
        let Some(ToWorker::Welcome { session: number, wants_token }) = first else {
            return Err(SessionError::Early("no welcome"));
        };
        if config.token.is_some() && !wants_token {
            return Err(SessionError::NoToken);
        }
        let (frames, outgoing) = channel(QUEUE);
        let _ = frames.send(open_frame(number)).await;
        let mut tensors = dial(place, config.token.as_ref()).await?;
        let incoming = timeout(GREETING_TIMEOUT, tensors.tensors(ReceiverStream::new(outgoing)));
        let incoming = incoming.await.map_err(|_| SessionError::Greeting)??.into_inner();
        let whereabouts = Whereabouts { config, here: place, host: hostname(), model: String::new() };
        let result = session.serve(orders, incoming, frames, whereabouts).await;
        session.commands.send(Command::Forget).map_err(|_| SessionError::NoCompute)?;
        result
    }

    async fn serve(
        &self,
        mut orders: Streaming<v1::ToWorker>,
        incoming: Streaming<v1::Frame>,
        frames: Sender<v1::Frame>,
        mut whereabouts: Whereabouts<'_>,
    ) -> Result<(), SessionError> {
        let first = tokio::select! {
            order = next(&mut orders) => order?,
            () = whereabouts.tell() => return Err(SessionError::Moved),
        };
        let assignment = match first {
            Some(ToWorker::Assign(assignment)) => assignment,
            Some(ToWorker::EndJob { .. }) | None => return Ok(()),
            Some(_) => return Err(SessionError::Early("an order")),
        };
        let span = span_of(&assignment);
        let job = async move {
            tracing::info!("assigned");
            let _in_job = InJob::begin(self.presence, &self.config.metrics);
            let (out, computed) = channel(QUEUE);
            let terms = match self.begin(assignment, out) {
                Ok(terms) => terms,
                Err(failure) => return self.give_up(failure, &mut orders).await,
            };
            whereabouts.model = terms.plan.network.name.clone();
            // They must not wait for each other: a worker that reads only when it has written could wait for ever.
            tokio::select! {
                result = self.follow(orders, &terms) => result,
                result = self.receive(incoming, &terms) => result,
                result = self.send(computed, frames, &terms) => result,
                () = whereabouts.tell() => Err(SessionError::Moved),
                result = self.take_leave() => result,
            }
        };
        job.instrument(span).await
    }

    /// Says so once this worker is told to leave. The coordinator ends the job.
    async fn take_leave(&self) -> Result<(), SessionError> {
        let mut leaving = self.presence.leaving.subscribe();
        if leaving.wait_for(|leaving| *leaving).await.is_ok() {
            self.say(FromWorker::Leaving).await?;
        }
        std::future::pending().await
    }

    fn begin(&self, assignment: Assignment, out: Sender<Out>) -> Result<Terms, Failure> {
        let (job, batch) = (assignment.job, assignment.batch);
        let samples_max = assignment.division.largest_micro_batch(batch);
        let engine =
            Engine::new(assignment, machine::memory_bytes()).map_err(|error| super::compute::failure(&error))?;
        let plan = engine.plan();
        let clock = engine.traces().then_some(self.presence.clock);
        let slow = self.config.rehearsal.slow.clone();
        let queue_limit = queue_limit(&plan, batch, samples_max);
        let begun = self.commands.send(Command::Begin(Box::new(Job {
            engine,
            out,
            queued: self.queued.clone(),
            orders: self.orders.clone(),
            probe: Probe::new(clock, slow),
            span: tracing::Span::current(),
        })));
        begun.map_err(|_| internal("the computing thread is gone"))?;
        Ok(Terms { job, plan, samples_max, queue_limit, probe: Probe::new(clock, None) })
    }

    /// Orders, until the job ends.
    async fn follow(&self, mut orders: Streaming<v1::ToWorker>, terms: &Terms) -> Result<(), SessionError> {
        let mut ended = false;
        loop {
            let command = match next(&mut orders).await {
                Ok(Some(ToWorker::Commit { step, rate, hand_over })) => {
                    if !hand_over {
                        terms.probe.forget(step);
                    }
                    Command::Commit { step, rate, hand_over }
                }
                Ok(Some(ToWorker::SendState { step })) => Command::SendState { step },
                Ok(Some(ToWorker::EndJob { reason })) => {
                    tracing::info!(reason, "the job is over");
                    ended = true;
                    Command::End
                }
                Ok(Some(ToWorker::Ping { sent })) => {
                    let received = self.presence.clock.now();
                    let replied = self.presence.clock.now();
                    self.say(FromWorker::Pong(Pong { ping_sent: sent, received, replied })).await?;
                    continue;
                }
                Ok(Some(ToWorker::Welcome { .. } | ToWorker::Assign(_))) => {
                    return Err(SessionError::Early("a second welcome"));
                }
                // After the end nothing more is owed, however the connection goes.
                _ if ended => return Ok(()),
                Ok(None) => return Err(SessionError::Left),
                Err(error) => return Err(error),
            };
            if self.orders.fetch_add(1, Ordering::Relaxed) >= ORDERS_MAX {
                return Err(SessionError::Orders);
            }
            self.commands.send(command).map_err(|_| SessionError::NoCompute)?;
        }
    }

    /// Tensors, put together and handed to the computing side.
    async fn receive(&self, mut incoming: Streaming<v1::Frame>, terms: &Terms) -> Result<(), SessionError> {
        let mut assembler = Assembler::new(terms.queue_limit);
        let mut arriving = Arriving::default();
        while let Some(frame) = incoming.message().await? {
            let began = terms.probe.now();
            let chunk = chunk_from_frame(frame)?;
            if chunk.job != terms.job {
                continue; // What is left of an earlier job concerns nobody any more.
            }
            let shape = expected_shape(&terms.plan, terms.samples_max, &chunk.key)?;
            let name = terms.probe.is_on().then(|| chunk.key.clone());
            let whole = assembler.accept(chunk, &shape)?;
            if let Some(name) = name {
                arriving.add(&terms.probe, name, began, whole.as_ref().map(|(_, elements)| elements.bytes()));
            }
            if let Some((key, elements)) = whole {
                self.config.metrics.received_bytes.inc_by(elements.bytes() as u64);
                let queued = self.queued.fetch_add(elements.bytes(), Ordering::Relaxed) + elements.bytes();
                if queued > terms.queue_limit {
                    return Err(SessionError::Flood { queued, limit: terms.queue_limit });
                }
                self.commands.send(Command::Tensor(key, elements)).map_err(|_| SessionError::NoCompute)?;
            }
        }
        // The control connection tells whether this was the end; it follows at once.
        std::future::pending().await
    }

    /// What the computing side puts out.
    async fn send(
        &self,
        mut computed: Receiver<Out>,
        frames_out: Sender<v1::Frame>,
        terms: &Terms,
    ) -> Result<(), SessionError> {
        while let Some(out) = computed.recv().await {
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
                Out::Say(message) => self.say(message).await?,
                Out::Tensor(payload) => {
                    let bytes = payload.data.len() as u64;
                    let name = terms.probe.is_on().then(|| payload.key.clone());
                    let (began, mut busy) = (terms.probe.now(), 0);
                    let mut at = began;
                    for frame in frames(terms.job, payload) {
                        busy += terms.probe.now() - at;
                        frames_out.send(frame).await.map_err(|_| SessionError::Left)?;
                        at = terms.probe.now();
                    }
                    self.config.metrics.sent_bytes.inc_by(bytes);
                    if let Some(tensor) = name.filter(|tensor| tensor.training_step().is_some()) {
                        terms.probe.ended(began, || Activity::Send(Transfer { tensor, bytes, busy }));
                    }
                }
            }
        }
        // The job is over; the coordinator closes.
        std::future::pending().await
    }

    /// Says why there can be no job, and waits to be told that there is none.
    async fn give_up(&self, failure: Failure, orders: &mut Streaming<v1::ToWorker>) -> Result<(), SessionError> {
        tracing::info!("can't go on: {}", failure.message);
        self.say(FromWorker::Failure(failure)).await?;
        let ended = async {
            loop {
                match next(orders).await {
                    Ok(Some(ToWorker::EndJob { reason })) => return tracing::info!(reason, "the job is over"),
                    Ok(None) | Err(_) => return,
                    Ok(Some(_)) => {}
                }
            }
        };
        timeout(FAREWELL, ended).await.map_err(|_| SessionError::Failed)
    }

    async fn say(&self, message: FromWorker) -> Result<(), SessionError> {
        self.control.send(message.into()).await.map_err(|_| SessionError::Left)
    }
}

async fn next(orders: &mut Streaming<v1::ToWorker>) -> Result<Option<ToWorker>, SessionError> {
    orders.message().await?.map(ToWorker::try_from).transpose().map_err(SessionError::from)
}

fn hello(config: &WorkerConfig, isa: Isa) -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        convoy_version: env!("CARGO_PKG_VERSION").to_owned(),
        process_id: std::process::id(),
        threads: config.threads,
        instruction_set: isa.to_string(),
        host: hostname(),
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// What every line of the log says of a job.
fn span_of(assignment: &Assignment) -> tracing::Span {
    let Assignment { job, worker, placement, .. } = assignment;
    let towers: Vec<_> = (0..placement.len()).filter(|tower| placement[*tower] == *worker).collect();
    // At the level of errors, so that it is there for whatever is logged.
    tracing::error_span!("job", job = %format_args!("{job:016x}"), worker, ?towers)
}

/// Bytes of tensors that may wait to be computed: two steps', since the next one's images come ahead, the parameters, and as many
/// micro-batches of a measurement as a coordinator has under way.
fn queue_limit(plan: &Plan, batch: usize, samples_max: usize) -> usize {
    let parameters: usize = plan.network.parameters().iter().map(|p| p.len() * size_of::<f32>()).sum();
    let down = |samples| usize::try_from(plan.step_traffic(samples).down).unwrap_or(usize::MAX);
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

    /// In a small net, images are nearly all that a step brings: a measurement's must not be taken for a flood.
    #[test]
    fn as_many_micro_batches_of_a_measurement_may_wait_as_are_under_way() {
        let model = "name = \"small\"\ntowers = 1\ninput = { channels = 1, height = 28, width = 28 }\n\
                     [[layer]]\nkind = \"linear\"\nname = \"fc\"\nunits = 2\n";
        let plan = Plan::new(Network::parse(model).unwrap(), 1).unwrap();
        for (batch, samples_max) in [(1, 1), (12, 12), (128, 64), (1000, 10)] {
            let images = (EVALUATIONS_UNDER_WAY * samples_max + 2 * batch) * 28 * 28;
            assert!(queue_limit(&plan, batch, samples_max) > images, "batches of {batch}");
        }
    }
}
