//! The cluster of a run: its workers, the messages to each, and the messages from all of them, in one place and with a limit
//! on every wait. [`formation`] forms it, [`doors`] accepts connections, [`local`] starts workers on this machine, and
//! [`health`] answers health checks.
//!
//! Not here: what a message means for the job.

pub mod doors;
pub mod formation;
pub mod health;
pub mod local;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use convoy_common::batch::MicroBatch;
use convoy_common::plan::Plan;
use convoy_common::trace::Activity;
use convoy_common::wire::{
    Assignment, Chunk, FailureKind, FromWorker, Hello, Payload, Pong, TensorKey, ToWorker, chunk_to_frame, frames,
};
use convoy_proto::v1;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::data::Split;
use crate::error::JobError;
use crate::state::{Gathering, JobState};
use crate::trace::Recorder;
use health::Vitals;
use local::LocalWorkers;

/// A worker that owes something and stays silent for this long hangs. A step of the largest model on the slowest supported
/// machine takes far less.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// How often a wait for workers checks for processes that have ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Pings before the first step, while workers are idle. The best of them counts.
const FIRST_PINGS: usize = 4;
/// Shorter waits, in nanoseconds, aren't recorded.
const IDLE_MIN: u64 = 50_000;
/// How long a worker may take for its last message.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// An event of a worker.
#[derive(Debug)]
pub enum Heard {
    /// Both of its connections are there.
    Joined(Box<Member>),
    /// A control message.
    Said(FromWorker),
    /// An answer to a ping, and when it arrived, by the coordinator's clock.
    Pong(Pong, u64),
    /// A part of a tensor, and when it arrived, by the coordinator's clock.
    Chunk(Chunk, u64),
    /// It is gone: why.
    Lost(String),
    /// A worker without a session serves another coordinator.
    Elsewhere(Elsewhere),
    /// A worker was refused: its address, and why.
    Refused(String, String),
}

/// A worker that serves another coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its machine.
    pub host: String,
    /// Address of that coordinator, as the worker sees it.
    pub coordinator: String,
    /// The model of its job. None while that coordinator waits for more workers.
    pub model: Option<String>,
}

/// A session and an event of its worker.
pub type Message = (u64, Heard);

/// A connected worker.
#[derive(Debug)]
pub struct Member {
    session: u64,
    /// Its own description.
    pub hello: Hello,
    /// Where it connected from.
    pub address: String,
    control: Sender<v1::ToWorker>,
    frames: Sender<v1::Frame>,
}

impl Member {
    /// Closes the control connection after the orders that are queued. A worker that has failed waits for this.
    fn hang_up(&mut self) {
        self.control = channel(1).0;
    }
}

/// The workers of a run.
pub struct Cluster {
    job: u64,
    plan: Arc<Plan>,
    members: Vec<Member>,
    heard: Receiver<Message>,
    local: Option<LocalWorkers>,
    /// Bytes of weights and momentum that each worker was given.
    state_bytes: Vec<u64>,
    runtime: Runtime,
    vitals: Vitals,
    /// The first worker that has announced that it will stop.
    leaving: Option<usize>,
    /// Workers that have reported a failure.
    failed: HashSet<usize>,
    /// The recording of the job.
    pub recorder: Recorder,
}

/// What workers report at the end of a job.
pub struct Farewell {
    /// Number of threads of each worker that did any work, if it reported that in time.
    pub busy_threads: Vec<Option<usize>>,
    /// The recording, with everything that workers have handed over.
    pub recorder: Recorder,
}

impl Cluster {
    /// Which worker holds which towers.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The workers, by number.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Bytes of weights and momentum that `worker` was given.
    pub fn state_bytes(&self, worker: usize) -> u64 {
        self.state_bytes[worker]
    }

    /// Assigns its towers to every worker, sends their state as of `step`, and waits until all have it.
    ///
    /// # Errors
    /// When a worker is lost or can't hold its towers.
    pub fn assign(&mut self, assignment: &Assignment, state: &JobState, step: u64) -> Result<(), JobError> {
        let plan = self.plan.clone();
        // First of all, because a worker without a job may still move to another coordinator.
        for worker in 0..plan.workers {
            self.tell(worker, ToWorker::Assign(Assignment { worker, ..assignment.clone() }), step)?;
        }
        for worker in 0..plan.workers {
            for tower in plan.towers_of(worker) {
                for payload in state.slices(&plan, tower, step) {
                    self.state_bytes[worker] += payload.data.len() as u64;
                    self.send(worker, payload, step)?;
                }
            }
        }
        for _ in 0..plan.workers {
            match self.next(step, || "all workers to receive their weights".to_owned())? {
                (_, Heard::Said(FromWorker::Ready)) => {}
                (worker, other) => return Err(self.out_of_turn(worker, step, other)),
            }
        }
        (0..FIRST_PINGS).try_for_each(|_| self.ask_for_clocks(step))
    }

    /// Asks every worker for its clock, if anything is recorded.
    ///
    /// # Errors
    /// When one is lost.
    pub fn ask_for_clocks(&mut self, step: u64) -> Result<(), JobError> {
        if !self.recorder.is_on() {
            return Ok(());
        }
        (0..self.members.len())
            .try_for_each(|worker| self.tell(worker, ToWorker::Ping { sent: self.recorder.now() }, step))
    }

    /// Sends the images of a micro-batch, listed by their index in `split`, once to every worker.
    ///
    /// # Errors
    /// When a worker is lost.
    pub fn send_images(
        &mut self,
        split: &Split,
        micro_batch: &MicroBatch,
        images: impl IntoIterator<Item = usize>,
    ) -> Result<(), JobError> {
        let input = self.plan.network.input.shape;
        let mut bytes = Vec::with_capacity(micro_batch.samples.len() * input.len());
        images.into_iter().for_each(|image| bytes.extend_from_slice(split.image(image)));
        let shape = vec![micro_batch.samples.len(), input.channels, input.height, input.width];
        let payload = Payload::bytes(TensorKey::Images(micro_batch.clone()), shape, bytes);
        (0..self.members.len()).try_for_each(|worker| self.send(worker, payload.clone(), micro_batch.id.step))
    }

    /// Sends a tensor.
    ///
    /// # Errors
    /// When the worker is lost.
    pub fn send(&mut self, worker: usize, payload: Payload, step: u64) -> Result<(), JobError> {
        frames(self.job, payload).try_for_each(|frame| {
            let delivered = deliver(&self.runtime, &self.members[worker].frames, frame);
            delivered.map_err(|why| self.undelivered(worker, step, why))
        })
    }

    /// Relays a chunk to other workers.
    ///
    /// # Errors
    /// When a worker is lost.
    pub fn relay(&mut self, to: &[usize], chunk: Chunk, step: u64) -> Result<(), JobError> {
        let frame = chunk_to_frame(chunk);
        to.iter().try_for_each(|worker| {
            let delivered = deliver(&self.runtime, &self.members[*worker].frames, frame.clone());
            delivered.map_err(|why| self.undelivered(*worker, step, why))
        })
    }

    /// Sends a control message to a worker.
    ///
    /// # Errors
    /// When it is lost.
    pub fn tell(&mut self, worker: usize, message: ToWorker, step: u64) -> Result<(), JobError> {
        let delivered = deliver(&self.runtime, &self.members[worker].control, message.into());
        delivered.map_err(|why| self.undelivered(worker, step, why))
    }

    /// Sends a control message to all workers.
    ///
    /// # Errors
    /// When one is lost.
    pub fn tell_all(&mut self, message: &ToWorker, step: u64) -> Result<(), JobError> {
        (0..self.members.len()).try_for_each(|worker| self.tell(worker, message.clone(), step))
    }

    /// The next control message or chunk of any worker.
    ///
    /// # Errors
    /// When one is lost or fails, or when all are silent for too long. `waiting_for` says what is owed.
    pub fn next(&mut self, step: u64, waiting_for: impl Fn() -> String) -> Result<(usize, Heard), JobError> {
        let asked = Instant::now();
        self.vitals.beat();
        loop {
            let began = self.recorder.now();
            // Messages of strangers and about clocks don't count: they don't get the job any further.
            let left = SILENCE_MAX.saturating_sub(asked.elapsed());
            let received = receive(&self.runtime, &mut self.heard, left).filter(|_| !left.is_zero());
            if self.recorder.now() - began > IDLE_MIN {
                self.recorder.ended(began, || Activity::Idle);
            }
            let Some((session, heard)) = received else {
                return Err(JobError::Silence { seconds: SILENCE_MAX.as_secs(), step, waiting_for: waiting_for() });
            };
            let Some(worker) = self.members.iter().position(|member| member.session == session) else { continue };
            if matches!(heard, Heard::Said(FromWorker::Failure(_))) {
                self.failed.insert(worker);
            }
            return match heard {
                Heard::Lost(why) => Err(self.lost_because(worker, step, why)),
                Heard::Said(FromWorker::Failure(failure)) if failure.kind == FailureKind::NotFinite => {
                    Err(JobError::NotFinite { what: format!("{} (worker {worker})", failure.message) })
                }
                Heard::Said(FromWorker::Failure(failure)) => {
                    Err(JobError::WorkerFailed { worker, step, message: failure.message })
                }
                Heard::Chunk(chunk, _) if chunk.job != self.job => continue,
                // Nobody waits for this: the next tensors show that the commit arrived.
                Heard::Said(FromWorker::Committed { .. }) => continue,
                Heard::Pong(pong, at) => {
                    self.recorder.on_pong(worker, pong, at);
                    continue;
                }
                Heard::Said(FromWorker::Recorded(recorded)) => {
                    self.recorder.on_recorded(worker, recorded);
                    continue;
                }
                Heard::Said(FromWorker::Leaving) => {
                    self.leaving.get_or_insert(worker);
                    continue;
                }
                heard => Ok((worker, heard)),
            };
        }
    }

    /// Checks that no worker is about to stop.
    ///
    /// # Errors
    /// When one is. It stays for as long as a checkpoint takes.
    pub fn check_all_stay(&self, step: u64) -> Result<(), JobError> {
        match self.leaving {
            Some(worker) => {
                let host = self.members[worker].hello.host.clone();
                Err(JobError::WorkerLeaves { worker, host, step })
            }
            None => Ok(()),
        }
    }

    /// Weights and momentum of every tower, as of `step`.
    ///
    /// # Errors
    /// When a worker is lost, or sends something else.
    pub fn collect(&mut self, step: u64) -> Result<JobState, JobError> {
        self.tell_all(&ToWorker::SendState { step }, step)?;
        let mut gathering = Gathering::new(self.plan.clone(), step);
        while gathering.owed() > 0 {
            let (worker, heard) = self.next(step, || format!("{} tensors of the checkpoint", gathering.owed()))?;
            match heard {
                // A job that stops early has already sent the next step's images. Their results are ignored.
                Heard::Chunk(Chunk { key: TensorKey::Activations { .. }, .. }, _) => {}
                Heard::Chunk(chunk, _) => {
                    let accepted = gathering.accept(worker, chunk);
                    accepted.map_err(|source| JobError::Desync { worker, step, source })?;
                }
                other => return Err(self.out_of_turn(worker, step, other)),
            }
        }
        Ok(gathering.finish())
    }

    /// The error for a message that isn't allowed now.
    pub fn out_of_turn(&self, worker: usize, step: u64, heard: Heard) -> JobError {
        let message = match heard {
            Heard::Said(message) => format!("it sent {}, which is not allowed now", message.name()),
            Heard::Chunk(chunk, _) => format!("it sent {}, which are not allowed now", chunk.key),
            Heard::Pong(..) => "it sent its clock, which is not allowed now".to_owned(),
            Heard::Joined(_) | Heard::Lost(_) | Heard::Elsewhere(_) | Heard::Refused(..) => {
                "it connected or disconnected, which is not allowed now".to_owned()
            }
        };
        self.failed(worker, step, &message)
    }

    /// The error for a worker that does not follow the protocol.
    pub fn failed(&self, worker: usize, step: u64, message: &str) -> JobError {
        JobError::WorkerFailed { worker, step, message: message.to_owned() }
    }

    /// Ends the job for every worker, and collects their last messages.
    pub fn dismiss(mut self, reason: &str) -> Farewell {
        let mut busy_threads = vec![None; self.members.len()];
        let mut owed = HashSet::new();
        for (worker, member) in self.members.iter_mut().enumerate() {
            // A worker that is gone gets no message and sends none.
            if member.control.try_send(ToWorker::EndJob { reason: reason.to_owned() }.into()).is_ok() {
                owed.insert(worker);
            }
            if self.failed.contains(&worker) {
                member.hang_up();
            }
        }
        let start = Instant::now();
        while !owed.is_empty() && start.elapsed() < FAREWELL_MAX {
            let left = FAREWELL_MAX.saturating_sub(start.elapsed());
            let Some((session, heard)) = receive(&self.runtime, &mut self.heard, left) else { break };
            let Some(worker) = self.members.iter().position(|member| member.session == session) else { continue };
            match heard {
                Heard::Said(FromWorker::Finished { busy_threads: busy }) => {
                    busy_threads[worker] = Some(busy);
                    owed.remove(&worker);
                }
                Heard::Said(FromWorker::Recorded(recorded)) => self.recorder.on_recorded(worker, recorded),
                Heard::Said(FromWorker::Failure(_)) => self.members[worker].hang_up(),
                Heard::Lost(_) => drop(owed.remove(&worker)),
                _ => {}
            }
        }
        if let Some(local) = self.local.take() {
            local.end();
        }
        // Connections end with the runtime. Without a limit this would wait forever for peers that are gone.
        self.runtime.shutdown_timeout(Duration::from_millis(200));
        Farewell { busy_threads, recorder: self.recorder }
    }

    fn undelivered(&mut self, worker: usize, step: u64, why: Undelivered) -> JobError {
        match why {
            Undelivered::Gone => self.lost(worker, step),
            Undelivered::Unread => {
                let waiting_for = format!("worker {worker} to read its messages");
                JobError::Silence { seconds: SILENCE_MAX.as_secs(), step, waiting_for }
            }
        }
    }

    /// A worker whose connection is closed: why, if a message about that comes soon.
    fn lost(&mut self, worker: usize, step: u64) -> JobError {
        let session = self.members[worker].session;
        let start = Instant::now();
        while start.elapsed() < LOOK_EVERY * 5 {
            match receive(&self.runtime, &mut self.heard, LOOK_EVERY) {
                Some((from, Heard::Lost(why))) if from == session => return self.lost_because(worker, step, why),
                Some((from, Heard::Said(FromWorker::Failure(failure)))) if from == session => {
                    return JobError::WorkerFailed { worker, step, message: failure.message };
                }
                _ => {}
            }
        }
        self.lost_because(worker, step, "its connection closed".to_owned())
    }

    fn lost_because(&mut self, worker: usize, step: u64, why: String) -> JobError {
        let hello = &self.members[worker].hello;
        let ended = self.local.as_mut().and_then(|local| local.give_up(hello.process_id));
        let towers: Vec<_> = self.plan.towers_of(worker).iter().map(|tower| format!("tower {tower}")).collect();
        JobError::WorkerLost {
            worker,
            process_id: hello.process_id,
            host: hello.host.clone(),
            towers: towers.join(" and "),
            step,
            why: ended.unwrap_or(why),
        }
    }
}

/// Why a message can't be delivered.
enum Undelivered {
    Gone,
    Unread,
}

fn deliver<T>(runtime: &Runtime, to: &Sender<T>, message: T) -> Result<(), Undelivered> {
    let message = match to.try_send(message) {
        Ok(()) => return Ok(()),
        Err(TrySendError::Closed(_)) => return Err(Undelivered::Gone),
        Err(TrySendError::Full(message)) => message,
    };
    let sent = runtime.block_on(async { tokio::time::timeout(SILENCE_MAX, to.send(message)).await });
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Undelivered::Gone),
        Err(_) => Err(Undelivered::Unread),
    }
}

fn receive(runtime: &Runtime, heard: &mut Receiver<Message>, patience: Duration) -> Option<Message> {
    if let Ok(message) = heard.try_recv() {
        return Some(message);
    }
    runtime.block_on(async { tokio::time::timeout(patience, heard.recv()).await.ok().flatten() })
}
