//! The compute thread of a worker. It takes messages from the network thread, computes, and passes the results back. When
//! there is nothing to compute it sleeps; during a job it polls for a short time first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvError, TryRecvError};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use convoy_common::batch::Phase;
use convoy_common::chain::chain;
use convoy_common::misdeed::Moment;
use convoy_common::trace::{Activity, SegmentRun};
use convoy_common::wire::{Direction, Failure, FailureKind, FromWorker, PeerFailed, PeerFailure, Tally};
use tokio::sync::mpsc::Sender;

use crate::engine::{Engine, EngineError, Out, Received};
use crate::metrics::{Doing, Metrics, Stopwatch};
use crate::probe::Probe;
use crate::rehearsal::Rehearsal;
use crate::tower::{Means, Stopped};
use crate::vitals::Vitals;
use convoy_kernels::Compute;

/// During a job, this thread polls for this long before it sleeps. Most exchanges of a small network take less, and a sleeping core
/// wakes up late, a virtual one above all. Other threads of the same control group take precedence.
const LOOK_MAX: Duration = Duration::from_micros(200);

/// A message from the network thread.
pub(super) enum Message {
    /// Start a job, and drop an unfinished one.
    Begin(Box<Job>),
    /// A tensor has arrived.
    Tensor(Received),
    /// Apply the gradients.
    Commit { step: u64, rate: f32, hand_over: bool },
    /// Send all weights and momentum after a step.
    SendState { step: u64 },
    /// The job is over.
    End,
    /// The coordinator is gone.
    Forget,
}

/// A job, as the compute thread holds it.
pub(super) struct Job {
    pub(super) engine: Engine,
    pub(super) out: Sender<Out>,
    /// Messages that nobody waits for. They go out with the next other result, or when there is nothing left to compute.
    pub(super) later: Vec<Out>,
    /// The number of its generation.
    pub(super) generation: u64,
    /// The number of the last generation that was assigned. A job of an earlier one is dropped before its next layer.
    pub(super) current: Arc<AtomicU64>,
    /// Bytes of tensors that wait for this thread.
    pub(super) queued: Arc<AtomicUsize>,
    /// Control messages that wait for this thread.
    pub(super) waiting: Arc<AtomicUsize>,
    /// Spans of this thread.
    pub(super) probe: Probe,
    /// Deliberate faults.
    pub(super) rehearsal: Rehearsal,
    /// The context of its log lines.
    pub(super) span: tracing::Span,
}

/// Computes until the network thread ends.
pub(super) fn serve(compute: &Compute, inbox: &Receiver<Message>, vitals: &Vitals, metrics: &Metrics) {
    let mut job: Option<Box<Job>> = None;
    let mut stopwatch = Stopwatch::starting(metrics);
    loop {
        let busy = job.as_ref().is_some_and(|job| job.engine.has_work());
        let message = if busy {
            match inbox.try_recv() {
                Ok(message) => Some(message),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            }
        } else {
            vitals.rest();
            let look = if job.is_some() { LOOK_MAX } else { Duration::ZERO };
            let message = match wait(inbox, look) {
                Ok(message) => message,
                Err(RecvError) => return,
            };
            match &job {
                Some(job) => job.spent(&mut stopwatch, Doing::Waiting, awaited(&job.engine, &message)),
                None => stopwatch.restart(),
            }
            Some(message)
        };
        vitals.beat();
        let job_at_hand = job.filter(|job| job.generation == job.current.load(Ordering::Relaxed));
        job = match (message, job_at_hand) {
            (Some(Message::Begin(new)), _) => {
                new.probe.skip();
                metrics.step.set(0);
                Some(new)
            }
            (Some(Message::Forget), job) => {
                drop(job);
                compute.job_ended();
                None
            }
            (_, None) => None,
            (Some(Message::End), Some(job)) => {
                job.hand_over(job.engine.committed() + 1, &mut stopwatch);
                // The network thread may have ended; then nobody needs this message.
                let _ = job.out.blocking_send(Out::Say(FromWorker::Finished {
                    busy_threads: compute.busy_threads(),
                    tally: Tally::default(),
                }));
                drop(job);
                compute.job_ended();
                None
            }
            (message, Some(job)) => {
                let span = job.span.clone();
                span.in_scope(|| advance(compute, job, message, &mut stopwatch))
            }
        };
    }
}

/// The next message. Polls for `look` before it sleeps.
fn wait(inbox: &Receiver<Message>, look: Duration) -> Result<Message, RecvError> {
    let start = Instant::now();
    while start.elapsed() < look {
        match inbox.try_recv() {
            Ok(message) => return Ok(message),
            Err(TryRecvError::Empty) => yield_now(),
            Err(TryRecvError::Disconnected) => return Err(RecvError),
        }
    }
    inbox.recv()
}

/// What an interval of time is counted as.
enum Of {
    /// An activity of a step.
    Step(Activity),
    /// A part of the wait for a commit, during which an early tensor was stored.
    Wait,
    /// No step: a measurement, or the start of the job.
    NoStep,
}

/// What the wait that `message` has ended is counted as. Waits of a measurement do not belong to a step.
fn awaited(engine: &Engine, message: &Message) -> Of {
    match message {
        Message::Tensor(Received { key, .. }) => match key.training_step() {
            Some(_) => Of::Step(Activity::AwaitTensor(key.clone())),
            None if engine.is_early(key) => Of::Wait,
            None => Of::NoStep,
        },
        _ => Of::Step(Activity::AwaitOrder),
    }
}

/// Whether an output belongs to a step, not to a measurement or a checkpoint.
fn is_of_a_step(out: &Out) -> bool {
    match out {
        Out::Tensor(payload) => payload.key.training_step().is_some(),
        Out::Say(_) | Out::HandedOver { .. } => true,
    }
}

/// Whether outputs may wait for the next other one. Nobody waits for BackwardDone, because a step also needs StepDone, which comes later.
/// Nobody waits for Committed, because the next tensors show as much.
fn can_wait(outputs: &[Out], has_work: bool) -> bool {
    let is_awaited =
        |out: &Out| !matches!(out, Out::Say(FromWorker::BackwardDone { .. } | FromWorker::Committed { .. }));
    has_work && !outputs.iter().any(is_awaited)
}

impl Job {
    /// Counts the time since the last call.
    fn spent(&self, stopwatch: &mut Stopwatch, doing: Doing, of: Of) {
        stopwatch.spent(doing);
        match of {
            Of::Step(activity) => self.probe.next(|| activity),
            Of::Wait => {}
            Of::NoStep => self.probe.skip(),
        }
    }

    /// Puts out the spans up to the commit of `step`. Returns whether the network thread is still there.
    fn hand_over(&self, step: u64, stopwatch: &mut Stopwatch) -> bool {
        let heard = self.say_recorded(step);
        self.spent(stopwatch, Doing::HandingOut, Of::Step(Activity::HandOut));
        heard
    }

    fn say_recorded(&self, step: u64) -> bool {
        let recorded = self.probe.hand_over(step, true).into_iter().map(Out::Say);
        recorded.chain([Out::HandedOver { step }]).all(|out| self.out.blocking_send(out).is_ok())
    }

    /// Passes results to the network thread. Returns whether it is still there.
    ///
    /// Each call wakes the network thread, then the coordinator, and on a machine whose cores all compute, that takes time from the
    /// computation. So results that nobody waits for don't go out alone while there is more to compute.
    fn hand_out(&mut self, out: Vec<Out>, stopwatch: &mut Stopwatch) -> bool {
        self.later.extend(out);
        if self.later.is_empty() || can_wait(&self.later, self.engine.has_work()) {
            return true;
        }
        let of = if self.later.iter().all(is_of_a_step) { Of::Step(Activity::HandOut) } else { Of::NoStep };
        let heard = self.later.drain(..).all(|out| self.out.blocking_send(out).is_ok());
        self.spent(stopwatch, Doing::HandingOut, of);
        heard
    }
}

/// Handles one message, or computes one task. Returns no job if it cannot continue.
fn advance(
    compute: &Compute,
    mut job: Box<Job>,
    message: Option<Message>,
    stopwatch: &mut Stopwatch,
) -> Option<Box<Job>> {
    if matches!(message, Some(Message::Commit { .. } | Message::SendState { .. })) {
        job.waiting.fetch_sub(1, Ordering::Relaxed);
    }
    let Job { engine, probe, queued, rehearsal, generation, current, .. } = &mut *job;
    let mut committed = None;
    let (result, doing, of) = match message {
        Some(Message::Tensor(received)) => {
            queued.fetch_sub(received.elements.bytes(), Ordering::Relaxed);
            let of = match received.key.training_step() {
                Some(_) => Of::Step(Activity::Take(received.key.clone())),
                None if engine.is_early(&received.key) => Of::Wait,
                None => Of::NoStep,
            };
            (engine.accept(compute, received), Doing::TakingIn, of)
        }
        Some(Message::Commit { step, rate, hand_over }) => {
            rehearsal.reached(Moment::Commit(step));
            let rate = rehearsal.rate(step, rate);
            committed = Some((step, hand_over));
            (engine.commit(compute, step, rate), Doing::Committing, Of::Step(Activity::Commit { step }))
        }
        Some(Message::SendState { step }) => (engine.state(step), Doing::Committing, Of::Step(Activity::ReadState)),
        _ => {
            if let Some(run) = engine.next_run() {
                rehearsal.reached(moment_of(&run));
            }
            let of = match engine.next_run().filter(|run| run.micro_batch.phase == Phase::Train) {
                Some(run) => Of::Step(Activity::Segment(run)),
                None => Of::NoStep,
            };
            let is_dropped = || current.load(Ordering::Relaxed) != *generation;
            let means = Means { compute, probe, is_dropped: &is_dropped };
            (engine.work(means).map(Option::unwrap_or_default), Doing::Computing, of)
        }
    };
    let run = if let Of::Step(Activity::Segment(run)) = &of { Some(*run) } else { None };
    job.spent(stopwatch, doing, of);
    match result {
        Ok(out) => {
            if let Some(SegmentRun { micro_batch, segment, tower, direction }) = run {
                tracing::trace!(step = micro_batch.step, tower = tower.0, segment = segment.0, ?direction, "computed");
            }
            let heard = job.hand_out(out, stopwatch);
            let handed_over = match committed {
                Some((step, hand_over)) => {
                    stopwatch.committed(step);
                    tracing::debug!(step, "committed");
                    if hand_over {
                        job.hand_over(step, stopwatch)
                    } else {
                        job.probe.forget(step);
                        true
                    }
                }
                None => true,
            };
            (heard && handed_over).then_some(job)
        }
        Err(EngineError::Stopped(Stopped::Dropped)) => None,
        Err(error) => {
            tracing::info!("cannot continue: {}", chain(&error));
            let message = match &error {
                EngineError::FromPeer { peer, .. } => FromWorker::PeerFailed(PeerFailed {
                    peer: *peer,
                    kind: PeerFailure::Invalid,
                    message: chain(&error),
                }),
                _ => FromWorker::Failure(failure(&error)),
            };
            // If the network thread has ended, nobody needs the reason.
            let _ = job.out.blocking_send(Out::Say(message));
            None
        }
    }
}

/// The moment at which a segment begins.
fn moment_of(run: &SegmentRun) -> Moment {
    match (run.micro_batch.phase, run.direction) {
        (Phase::Evaluate, _) => Moment::Measure,
        (Phase::Train, Direction::Forward) => Moment::Forward(run.micro_batch.step),
        (Phase::Train, Direction::Backward) => Moment::Backward(run.micro_batch.step),
    }
}

pub(super) fn failure(error: &EngineError) -> Failure {
    let message = chain(error);
    match error {
        EngineError::Stopped(Stopped::NotFinite(found)) => Failure {
            kind: FailureKind::NotFinite,
            message,
            layer: Some(found.layer.clone()),
            tower: Some(found.tower),
            step: Some(found.step),
        },
        _ => Failure { kind: FailureKind::BadMessage, message, layer: None, tower: None, step: None },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use convoy_common::batch::{MicroBatch, MicroBatchId};
    use convoy_common::index::TowerIndex;

    use super::*;

    #[test]
    fn only_what_nobody_needs_waits_and_only_while_there_is_work() {
        let id = MicroBatchId { step: 1, phase: Phase::Train, slot: 0, micro_batch: 0 };
        let micro_batch = MicroBatch { id, samples: 0..1 };
        let backward = || Out::Say(FromWorker::BackwardDone { micro_batch: micro_batch.clone(), tower: TowerIndex(0) });
        let committed = || Out::Say(FromWorker::Committed { step: 1 });
        let step = || Out::Say(FromWorker::StepDone { step: 1, tally: Tally::default() });
        assert!(can_wait(&[committed(), backward(), backward()], true));
        assert!(!can_wait(&[backward()], false) && !can_wait(&[committed()], false));
        assert!(!can_wait(&[backward(), step()], true));
    }

    /// Far longer than a test may take.
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_message_ends_the_wait_while_polling_and_while_sleeping() {
        for look in [Duration::ZERO, LONG] {
            let (messages, inbox) = channel();
            let sender = std::thread::spawn(move || messages.send(Message::End).unwrap());
            assert!(matches!(wait(&inbox, look), Ok(Message::End)), "{look:?}");
            sender.join().unwrap();
            assert!(wait(&inbox, look).is_err(), "no sender is left");
        }
    }
}
