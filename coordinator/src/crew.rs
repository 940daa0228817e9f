//! The crew: one generation of a job, which is a plan, its placement, its exchanges, and the workers that hold its towers. It has
//! the only loop that reads the workers' messages. Training, measurements and checkpoints all go through it.
//!
//! Not here: who is connected (`cluster`), and what a step decides (`step`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use convoy_common::batch::{MicroBatch, MicroBatchId};
use convoy_common::index::{PerWorker, SegmentIndex, WorkerIndex};
use convoy_common::plan::Plan;
use convoy_common::trace::Activity;
use convoy_common::wire::{
    Assignment, Chunk, Direction, Doing, FailureKind, FromWorker, Generation, Numbered, Payload, Peer, PeerFailed,
    PeerFailure, Pong, Tally, TensorKey, ToWorker, WireError, chunk_to_frame, frames,
};
use convoy_proto::v1::Frame;

use crate::cluster::member::{Heard, Undelivered};
use crate::cluster::{Cluster, News};
use crate::deadlines::{ASK_EVERY, LOOK_EVERY, STOP_PATIENCE};
use crate::error::JobError;
use crate::exchange::Exchanges;
use crate::fault::Fault;
use crate::lateness::Lateness;
use crate::observe::{Event, Observer, WorkerRecord};
use crate::recovery::hangs;
use crate::silence::{Silence, Verdict, Wait};
use crate::state::{Gathering, JobState};
use crate::stop::Stop;
use crate::trace::Recorder;
use convoy_dataset::Feeder;

/// Pings before the first step, while workers are idle. The best of them counts.
const FIRST_PINGS: usize = 4;
/// Shorter waits, in nanoseconds, aren't recorded.
const IDLE_MIN: u64 = 50_000;
/// A wait for images that lasts so long is told.
const IMAGES_PATIENCE: Duration = Duration::from_secs(5);

/// A message of a worker that the job has to handle.
#[derive(Debug)]
pub enum Received {
    /// A control message.
    Said(FromWorker),
    /// A part of a tensor, and when it arrived, by the coordinator's clock.
    Chunk(Chunk, u64),
    /// A part of the state that is being gathered. The crew keeps it.
    State,
}

/// A connection between two workers that one of them has reported as failed.
struct Broken {
    worker: WorkerIndex,
    peer: WorkerIndex,
    why: String,
    /// When the other one was asked, by the coordinator's clock.
    asked: u64,
}

impl Broken {
    /// Whether the reported worker is still there, by its answer to that question or a later one.
    fn is_refuted_by(&self, worker: WorkerIndex, pong: &Pong) -> bool {
        self.peer == worker && pong.ping_sent >= self.asked
    }
}

/// One generation of a job.
pub struct Crew<'a> {
    cluster: &'a mut Cluster,
    /// The recording of the job.
    pub recorder: &'a mut Recorder,
    /// Who gets the news.
    pub observer: &'a mut dyn Observer,
    /// Which worker holds which towers, and what they exchange.
    pub plan: Arc<Plan>,
    /// Connections between workers that were reported as failed, until the reported worker answers.
    broken: Vec<Broken>,
    /// What is exchanged.
    pub exchanges: Exchanges,
    generation: Generation,
    silence: Silence,
    /// Which worker the others wait for.
    lateness: Lateness,
    /// What was heard while the job waited for images.
    kept: VecDeque<News>,
    /// The state that the workers were asked for.
    gathering: Option<Gathering>,
    /// Bytes of weights and momentum that each worker was given.
    state_bytes: PerWorker<u64>,
    stop: &'a AtomicBool,
    /// Whether messages of earlier generations are let through, to test whether that is found.
    pub rehearses_no_fence: bool,
}

impl<'a> Crew<'a> {
    /// A crew of all workers of the cluster. Its micro-batches have at most `samples_max` samples.
    pub fn new(
        cluster: &'a mut Cluster,
        recorder: &'a mut Recorder,
        observer: &'a mut dyn Observer,
        plan: Arc<Plan>,
        samples_max: usize,
        generation: Generation,
        stop: &'a AtomicBool,
    ) -> Self {
        let exchanges = Exchanges::new(plan.clone(), samples_max);
        let state_bytes = vec![0; plan.workers].into();
        let silence = Silence::starting(cluster.quiets(), Instant::now());
        let lateness = Lateness::starting(&plan);
        Self {
            cluster,
            recorder,
            observer,
            plan,
            broken: Vec::new(),
            exchanges,
            generation,
            silence,
            lateness,
            kept: VecDeque::new(),
            gathering: None,
            state_bytes,
            stop,
            rehearses_no_fence: false,
        }
    }

    /// Assigns its towers to every worker, tells it of its peers, sends its state as of `step`, and waits until all have that.
    ///
    /// # Errors
    /// When a worker is lost or can't hold its towers.
    pub fn assign(
        &mut self,
        assignment: &Assignment,
        peers: PerWorker<Vec<Peer>>,
        state: &JobState,
        step: u64,
    ) -> Result<(), Stop> {
        let plan = self.plan.clone();
        // First of all, because a worker without a job may still move to another coordinator.
        for (worker, peers) in peers.into_iter_enumerated() {
            self.tell(worker, ToWorker::Assign(Assignment { worker, peers, ..assignment.clone() }), step)?;
        }
        for worker in plan.all_workers() {
            for payload in state.slices(&plan, worker, step) {
                self.state_bytes[worker] += payload.data.len() as u64;
                self.send(worker, payload, step)?;
            }
        }
        let mut waits: Vec<_> = plan.all_workers().collect();
        while let Some(first) = waits.first() {
            match self.next(step, || format!("worker {first} to receive its weights"))? {
                (worker, Received::Said(FromWorker::Ready)) if waits.contains(&worker) => {
                    waits.retain(|other| *other != worker);
                }
                (worker, other) => return Err(out_of_turn(worker, step, &other).into()),
            }
        }
        (0..FIRST_PINGS).try_for_each(|_| self.ask_for_clocks(step))
    }

    /// Asks every worker for its clock, if anything is recorded.
    ///
    /// # Errors
    /// When one is lost.
    pub fn ask_for_clocks(&mut self, step: u64) -> Result<(), Stop> {
        if !self.recorder.is_on() {
            return Ok(());
        }
        self.plan
            .all_workers()
            .try_for_each(|worker| self.tell(worker, ToWorker::Ping { sent: self.recorder.now() }, step))
    }

    /// Waits until the oldest batch of a feeder is prepared: the images of this micro-batch. Returns how long that took, if it was
    /// prepared by other threads.
    ///
    /// # Errors
    /// When an image can't be had any more, when no batch comes for too long, or when a stop is requested and the batch does not come.
    pub fn await_images(&mut self, feeder: &mut Feeder, of: MicroBatchId) -> Result<(Vec<u8>, Duration), Stop> {
        let (began, recorded) = (Instant::now(), self.recorder.now());
        let (mut wait, limit) = (Wait::starting(began), self.cluster.deadlines().progress);
        loop {
            self.cluster.beat();
            if let Some(images) = feeder.take(LOOK_EVERY) {
                let images = images.map_err(|error| Stop::Fatal(error.into()))?;
                if !feeder.is_ahead() {
                    return Ok((images, Duration::ZERO));
                }
                if self.recorder.now() - recorded > IDLE_MIN {
                    self.recorder.ended(recorded, || Activity::AwaitImages(of));
                }
                return Ok((images, began.elapsed()));
            }
            if self.stop.load(Ordering::Relaxed) && began.elapsed() > STOP_PATIENCE {
                return Err(Stop::Abrupt);
            }
            self.look_while_waiting(of.step)?;
            let before = wait.lasted();
            wait.look(Instant::now());
            if before < IMAGES_PATIENCE && wait.lasted() >= IMAGES_PATIENCE {
                let text = format!("step {} waits for image files that are read and decoded", of.step);
                self.observer.on(Event::Notice { text });
            }
            if wait.lasted() > limit {
                let waiting_for = "image files that do not come".to_owned();
                return Err(Stop::Fatal(JobError::NoProgress { seconds: limit.as_secs(), step: of.step, waiting_for }));
            }
        }
    }

    /// Finds lost workers while the job waits for something else than a message. All other messages are kept for later.
    fn look_while_waiting(&mut self, step: u64) -> Result<(), Stop> {
        while let Some(news) = self.cluster.poll(Duration::ZERO) {
            match news {
                News::Heard(worker, Heard::Lost(why)) => return Err(self.lost(worker, step, why).into()),
                other => self.kept.push_back(other),
            }
        }
        Ok(())
    }

    /// Sends the images of a micro-batch, (image, channel, row, column), once to every worker that computes its first segment.
    ///
    /// # Errors
    /// When a worker is lost.
    pub fn send_images(&mut self, micro_batch: &MicroBatch, images: Vec<u8>) -> Result<(), Stop> {
        let input = self.plan.network.input.shape;
        let shape = vec![micro_batch.samples.len(), input.channels, input.height, input.width];
        let payload = Payload::bytes(TensorKey::Images(micro_batch.clone()), shape, images);
        let computing = self.plan.holders(SegmentIndex(0), micro_batch.id);
        computing.into_iter().try_for_each(|worker| self.send(worker, payload.clone(), micro_batch.id.step))
    }

    /// Sends a tensor.
    ///
    /// # Errors
    /// When the worker is lost.
    pub fn send(&mut self, worker: WorkerIndex, payload: Payload, step: u64) -> Result<(), Stop> {
        frames(self.generation, payload).try_for_each(|frame| self.send_frame(worker, frame, step))
    }

    /// Relays a chunk to other workers.
    ///
    /// # Errors
    /// When a worker is lost.
    pub fn relay(&mut self, to: &[WorkerIndex], chunk: Chunk, step: u64) -> Result<(), Stop> {
        let frame = chunk_to_frame(chunk);
        to.iter().try_for_each(|worker| self.send_frame(*worker, frame.clone(), step))
    }

    /// Sends a frame. A worker that does not read for long is reported as if it did not answer.
    fn send_frame(&mut self, worker: WorkerIndex, frame: Frame, step: u64) -> Result<(), Stop> {
        let Self { cluster, silence, observer, stop, .. } = self;
        let given_up_after = cluster.deadlines().given_up.as_secs();
        let delivered = cluster.send(worker, frame, stop, |member, lasted| {
            if silence.has_not_read(worker, lasted) {
                let (process_id, host) = (member.hello.process_id, member.hello.host.clone());
                observer.on(Event::Suspected { worker, process_id, host, step, given_up_after });
            }
        });
        delivered.map_err(|why| self.undelivered(worker, step, why))
    }

    /// Sends a control message to all workers.
    ///
    /// # Errors
    /// When one is lost.
    pub fn tell_all(&mut self, message: &ToWorker, step: u64) -> Result<(), Stop> {
        self.plan.all_workers().try_for_each(|worker| self.tell(worker, message.clone(), step))
    }

    /// The next message of any worker that the job has to handle. `waiting_for` says what is owed.
    ///
    /// # Errors
    /// When a worker is lost or fails, when all are silent for too long, or when a stop is requested and nothing is heard.
    pub fn next(&mut self, step: u64, waiting_for: impl Fn() -> String) -> Result<(WorkerIndex, Received), Stop> {
        let (now, mut began) = (Instant::now(), self.recorder.now());
        let (mut wait, mut attended, mut quiet_since) = (Wait::starting(now), now, now);
        let limit = self.cluster.deadlines().progress;
        loop {
            self.cluster.beat();
            let news = self.kept.pop_front().or_else(|| self.cluster.poll(LOOK_EVERY));
            let now = Instant::now();
            wait.look(now);
            let time = self.silence.passed(now);
            self.cluster.attend_to_spares(time);
            // Messages of strangers and about clocks don't count: they don't get the job any further.
            if wait.lasted() > limit {
                let error = JobError::NoProgress { seconds: limit.as_secs(), step, waiting_for: waiting_for() };
                return Err(Stop::Fatal(error));
            }
            let Some(News::Heard(worker, heard)) = news else {
                if let Some(News::Refused(address, reason)) = news {
                    self.cluster.report_refused(address, reason, self.observer);
                }
                if self.stop.load(Ordering::Relaxed) && quiet_since.elapsed() > STOP_PATIENCE {
                    return Err(Stop::Abrupt);
                }
                self.attend_to_the_silent(step)?;
                attended = now;
                continue;
            };
            if !matches!(heard, Heard::Lost(_)) {
                self.end_silence(worker);
            }
            // Others may have much to say while a worker is silent.
            if now - attended > ASK_EVERY {
                self.attend_to_the_silent(step)?;
                attended = now;
            }
            if !matches!(&heard, Heard::Said(Numbered { message: FromWorker::Pong(_), .. }, _)) {
                quiet_since = Instant::now();
            }
            if self.recorder.now() - began > IDLE_MIN {
                self.recorder.ended(began, || Activity::Idle);
            }
            if let Some(received) = self.sorted(worker, heard, step)? {
                return Ok((worker, received));
            }
            began = self.recorder.now();
        }
    }

    /// A message that the job has to handle. None for those that are handled here, or that belong to an earlier generation.
    fn sorted(&mut self, worker: WorkerIndex, heard: Heard, step: u64) -> Result<Option<Received>, Stop> {
        match heard {
            Heard::Lost(why) => Err(self.lost(worker, step, why).into()),
            Heard::Chunk(chunk, _) if chunk.generation != self.generation && !self.rehearses_no_fence => {
                drop_stale(worker)
            }
            Heard::Chunk(chunk, at) => match (&mut self.gathering, &chunk.key) {
                (Some(gathering), TensorKey::Parameter { .. }) => {
                    gathering.accept(worker, chunk).map_err(|source| invalid(worker, step, source))?;
                    Ok(Some(Received::State))
                }
                _ => Ok(Some(Received::Chunk(chunk, at))),
            },
            // The cluster has noted that; it concerns the worker, and no generation.
            Heard::Said(Numbered { message: FromWorker::Leaving, .. }, _) => Ok(None),
            Heard::Said(Numbered { generation, .. }, _) if generation != self.generation.number => drop_stale(worker),
            Heard::Said(Numbered { message, .. }, at) => match message {
                FromWorker::Failure(failure) if failure.kind == FailureKind::NotFinite => {
                    let what = format!("{} (worker {worker})", failure.message);
                    Err(Stop::Fatal(JobError::NotFinite { what, updates: step.saturating_sub(1) }))
                }
                FromWorker::Failure(failure) => Err(Fault::Failed { worker, step, message: failure.message }.into()),
                FromWorker::PeerFailed(failed) => self.peer_failed(worker, step, failed),
                FromWorker::Pong(pong) if self.broken.iter().any(|broken| broken.is_refuted_by(worker, &pong)) => {
                    Err(self.link_failed(worker, step).into())
                }
                // Nobody waits for this: the next tensors show that the commit arrived.
                FromWorker::Committed { .. } => Ok(None),
                FromWorker::Pong(pong) if hangs(&pong.doing) => Err(self.hangs(worker, step, pong.doing).into()),
                FromWorker::Pong(pong) => {
                    self.recorder.on_pong(worker, pong, at);
                    Ok(None)
                }
                FromWorker::Recorded(recorded) => {
                    self.recorder.on_recorded(worker, recorded);
                    Ok(None)
                }
                message => Ok(Some(Received::Said(message))),
            },
        }
    }

    /// Checks that no worker is about to stop.
    ///
    /// # Errors
    /// When one is. It stays for as long as a checkpoint takes.
    pub fn check_all_stay(&self, step: u64) -> Result<(), Stop> {
        match self.cluster.leaving() {
            Some((worker, host)) => Err(Stop::Leaves(Fault::Left { worker, host, step })),
            None => Ok(()),
        }
    }

    /// Whether a spare waits while the crew is smaller than requested.
    pub fn can_grow(&self) -> bool {
        self.cluster.can_grow()
    }

    /// Asks every worker for the weights and momentum of its towers, as of `step`. They arrive while the job goes on, in the memory of
    /// `outdated`.
    ///
    /// # Errors
    /// When a worker is lost.
    pub fn begin_gathering(&mut self, step: u64, outdated: Option<JobState>) -> Result<(), Stop> {
        self.tell_all(&ToWorker::SendState { step }, step)?;
        self.gathering = Some(Gathering::new(self.plan.clone(), step, outdated));
        Ok(())
    }

    /// The state that the workers were asked for, once it is whole.
    pub fn gathered(&mut self) -> Option<JobState> {
        self.gathering.take_if(|gathering| gathering.owed() == 0).map(Gathering::finish)
    }

    /// Waits for the state that the workers were asked for. Results of images that were sent ahead are dropped.
    ///
    /// # Errors
    /// When a worker is lost, or sends something else.
    pub fn finish_gathering(&mut self, step: u64) -> Result<Option<JobState>, Stop> {
        while let Some(owed) = self.gathering.as_ref().map(Gathering::owed).filter(|owed| *owed > 0) {
            match self.next(step, || format!("{owed} tensors of the state"))? {
                (_, Received::State | Received::Chunk(Chunk { key: TensorKey::Activations { .. }, .. }, _)) => {}
                (worker, other) => return Err(out_of_turn(worker, step, &other).into()),
            }
        }
        Ok(self.gathered())
    }

    /// The workers, for the records.
    pub fn records(&self) -> Vec<WorkerRecord> {
        let seated = self.plan.all_workers().filter_map(|worker| Some((worker, self.cluster.member(worker)?)));
        let each = seated.map(|(worker, member)| WorkerRecord {
            worker,
            towers: self.plan.towers_of(worker),
            slices: self.plan.slices_of(worker),
            holds: self.plan.placement.described(worker),
            process_id: member.hello.process_id,
            host: member.hello.host.clone(),
            address: member.address.clone(),
            threads: member.hello.threads,
            busy_threads: None,
            instruction_set: member.hello.instruction_set.clone(),
            state_bytes: self.state_bytes[worker],
            direct: self.direct_partners(worker),
        });
        each.collect()
    }

    /// The workers that `worker` is connected to directly.
    fn direct_partners(&self, worker: WorkerIndex) -> Vec<WorkerIndex> {
        let partners = self.plan.partners(worker).into_iter();
        partners.filter(|partner| self.plan.links.is_direct(worker, *partner)).collect()
    }

    fn tell(&mut self, worker: WorkerIndex, message: ToWorker, step: u64) -> Result<(), Stop> {
        let delivered = self.cluster.tell(worker, Numbered { generation: self.generation.number, message }, self.stop);
        delivered.map_err(|why| self.undelivered(worker, step, why))
    }

    fn undelivered(&mut self, worker: WorkerIndex, step: u64, why: Undelivered) -> Stop {
        let closed = || "its connection closed".to_owned();
        match (why, (why == Undelivered::Gone).then(|| self.cluster.last_words(worker)).flatten()) {
            (Undelivered::Stopped, _) => Stop::Abrupt,
            (Undelivered::Unread, _) => {
                let why = format!("it read no messages for {} s", self.cluster.deadlines().given_up.as_secs());
                self.lost(worker, step, why).into()
            }
            (_, Some(Heard::Said(Numbered { message: FromWorker::Failure(failure), .. }, _))) => {
                Fault::Failed { worker, step, message: failure.message }.into()
            }
            (_, Some(Heard::Lost(why))) => self.lost(worker, step, why).into(),
            _ => self.lost(worker, step, closed()).into(),
        }
    }

    /// Asks silent workers what they are doing, reports those that do not answer, and gives up those that do not answer for too
    /// long. The answer of a worker that hangs is a fault, too.
    fn attend_to_the_silent(&mut self, step: u64) -> Result<(), Stop> {
        let given_up = self.cluster.deadlines().given_up;
        while let Some((worker, verdict)) = self.silence.verdict(given_up) {
            match verdict {
                Verdict::Ask => {
                    let message = ToWorker::Ping { sent: self.cluster.clock().now() };
                    // A worker that does not read has a full queue.
                    self.cluster.try_tell(worker, Numbered { generation: self.generation.number, message });
                    self.silence.asked(worker);
                }
                Verdict::Suspect => {
                    let ((process_id, host), given_up_after) = (self.process_of(worker), given_up.as_secs());
                    self.observer.on(Event::Suspected { worker, process_id, host, step, given_up_after });
                }
                Verdict::GiveUp => {
                    let why = format!("it did not answer for {} s", given_up.as_secs());
                    return Err(self.lost(worker, step, why).into());
                }
            }
        }
        Ok(())
    }

    fn end_silence(&mut self, worker: WorkerIndex) {
        let lasted = self.silence.of(worker);
        if self.silence.heard(worker) {
            let (process_id, host) = self.process_of(worker);
            self.observer.on(Event::Answered { worker, process_id, host, seconds: lasted.as_secs_f64() });
        }
    }

    /// Takes what a worker has done in a step, as it reports it.
    ///
    /// # Errors
    /// When it can't have received what it reports.
    pub fn take_tally(&mut self, worker: WorkerIndex, step: u64, tally: &Tally) -> Result<(), Fault> {
        self.lateness.computed(worker, tally.busy);
        self.exchanges.add(worker, tally).map_err(|source| invalid(worker, step, source))
    }

    /// Test images were measured. The next tallies of the workers include this work.
    pub fn measured(&mut self) {
        self.lateness.skip_next();
    }

    /// A step has ended that took `time`. Reports a worker that turns out to be slow.
    pub fn stepped(&mut self, step: u64, time: Duration) {
        if let Some(worker) = self.lateness.stepped(time) {
            let (process_id, host) = self.process_of(worker);
            self.observer.on(Event::Slow { worker, process_id, host, step });
        }
    }

    /// Leaves the record of who is silent to the cluster, which keeps it for the next crew.
    pub fn leave_silence(&mut self) {
        self.silence.workers().for_each(|(worker, quiet)| self.cluster.leave_quiet(worker, quiet));
    }

    /// How long nothing has been heard of a worker.
    pub fn silence_of(&self, worker: WorkerIndex) -> Duration {
        self.silence.of(worker)
    }

    /// A worker's process and machine.
    fn process_of(&self, worker: WorkerIndex) -> (u32, String) {
        let hello = self.cluster.member(worker).map(|member| &member.hello);
        hello.map_or((0, String::new()), |hello| (hello.process_id, hello.host.clone()))
    }

    /// A worker reports that its connection to another one failed. That one may be gone, so it is asked: if it does not answer, it is lost
    /// like any other silent worker.
    fn peer_failed(&mut self, worker: WorkerIndex, step: u64, failed: PeerFailed) -> Result<Option<Received>, Stop> {
        let PeerFailed { peer, kind, message } = failed;
        let is_peer = peer.0 < self.plan.workers && peer != worker && self.plan.links.is_direct(worker, peer);
        let is_repeated = kind != PeerFailure::Invalid
            && self.broken.iter().any(|broken| (broken.worker, broken.peer) == (worker, peer));
        if !is_peer || is_repeated {
            let message = format!("it reported a failed connection to worker {peer}, but it has none");
            return Err(Fault::Failed { worker, step, message }.into());
        }
        if kind == PeerFailure::Invalid {
            // One of the two, or the connection, is at fault. Unless nothing may be relayed, the next message of this pair comes through
            // the coordinator, which checks its shape, order and checksum.
            self.cluster.relay(worker, peer);
            return Err(Fault::InvalidToPeer { worker: peer, to: worker, step, message }.into());
        }
        let asked = self.cluster.clock().now();
        self.tell(peer, ToWorker::Ping { sent: asked }, step)?;
        self.broken.push(Broken { worker, peer, why: message, asked });
        Ok(None)
    }

    /// The fault of a connection between two workers, now that the one that was reported has answered. All pairs that were reported are
    /// relayed from now on.
    fn link_failed(&mut self, peer: WorkerIndex, step: u64) -> Fault {
        let broken = std::mem::take(&mut self.broken);
        broken.iter().for_each(|pair| self.cluster.relay(pair.worker, pair.peer));
        let found = broken.into_iter().find(|pair| pair.peer == peer).expect("the caller has found it");
        Fault::Link { worker: found.worker, peer, step, why: found.why }
    }

    fn hangs(&self, worker: WorkerIndex, step: u64, doing: Doing) -> Fault {
        let (_, host) = self.process_of(worker);
        let named = doing.layer.and_then(|(layer, direction)| Some((self.plan.network.layers.get(layer)?, direction)));
        let what = named.map_or_else(
            || "work between two layers".to_owned(),
            |(layer, direction)| {
                let pass = if direction == Direction::Forward { "forward" } else { "backward" };
                format!("the {pass} pass of layer \"{}\"", layer.name)
            },
        );
        Fault::Hangs { worker, host, step, what, seconds: doing.busy.as_secs() }
    }

    /// The fault of a worker that is gone, or that does not answer or read. Its seat is free afterwards.
    fn lost(&mut self, worker: WorkerIndex, step: u64, why: String) -> Fault {
        let (process_id, host) = self.process_of(worker);
        let ended = self.cluster.give_up(worker, &why);
        let towers = self.plan.placement.described(worker);
        Fault::Lost { worker, process_id, host, towers, step, why: ended.unwrap_or(why) }
    }
}

/// A message of an earlier generation concerns nobody.
fn drop_stale(worker: WorkerIndex) -> Result<Option<Received>, Stop> {
    tracing::debug!(worker = worker.0, "dropped a message of an earlier generation");
    Ok(None)
}

/// The fault of a worker that sent a message that isn't allowed now.
pub fn out_of_turn(worker: WorkerIndex, step: u64, received: &Received) -> Fault {
    let message = match received {
        Received::Said(message) => format!("it sent {}, which is not allowed now", message.name()),
        Received::Chunk(chunk, _) => format!("it sent {}, which are not allowed now", chunk.key),
        Received::State => "it sent its state, which is not allowed now".to_owned(),
    };
    Fault::Failed { worker, step, message }
}

/// The fault of a worker that sent an invalid message.
pub fn invalid(worker: WorkerIndex, step: u64, source: WireError) -> Fault {
    Fault::Invalid { worker, step, source }
}
