//! The computing side of a worker: takes commands from the network side, works, and hands back what comes out. When
//! there is nothing to compute it sleeps; within a job only after having looked for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvError, TryRecvError};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use convoy_common::batch::Phase;
use convoy_common::chain::chain;
use convoy_common::trace::{Activity, SegmentRun};
use convoy_common::wire::{Elements, Failure, FailureKind, FromWorker, TensorKey};
use tokio::sync::mpsc::Sender;

use super::health::Vitals;
use crate::engine::{Engine, EngineError, Out};
use crate::kernels::Compute;
use crate::metrics::{Doing, Metrics, Stopwatch};
use crate::probe::Probe;
use crate::tower::Means;

/// Within a job, what is waited for is looked for so long before this thread sleeps: most exchanges of a small net take less, and
/// a core that has gone to sleep wakes late, a virtual one above all. Other threads of the same control group go first.
const LOOK_MAX: Duration = Duration::from_micros(200);

/// What the network side asks for.
pub(super) enum Command {
    /// A new job; what was left of an old one is dropped.
    Begin(Box<Job>),
    /// A tensor has arrived.
    Tensor(TensorKey, Elements),
    /// Apply the gradients.
    Commit { step: u64, rate: f32, hand_over: bool },
    /// Send all weights and momentum, as of a step.
    SendState { step: u64 },
    /// The job is over.
    End,
    /// The coordinator is gone.
    Forget,
}

/// A job on its way to the computing side.
pub(super) struct Job {
    pub(super) engine: Engine,
    pub(super) out: Sender<Out>,
    /// Bytes of tensors that the network side has queued and this side hasn't taken.
    pub(super) queued: Arc<AtomicUsize>,
    /// Likewise, orders.
    pub(super) orders: Arc<AtomicUsize>,
    /// What this side records.
    pub(super) probe: Probe,
    /// What its lines in the log say.
    pub(super) span: tracing::Span,
}

/// Works until the network side is gone.
pub(super) fn serve(compute: &Compute, inbox: &Receiver<Command>, vitals: &Vitals, metrics: &Metrics) {
    let mut job: Option<Box<Job>> = None;
    let mut stopwatch = Stopwatch::starting(metrics);
    loop {
        let busy = job.as_ref().is_some_and(|job| job.engine.has_work());
        let command = if busy {
            match inbox.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            }
        } else {
            vitals.rest();
            let look = if job.is_some() { LOOK_MAX } else { Duration::ZERO };
            let command = match wait(inbox, look) {
                Ok(command) => command,
                Err(RecvError) => return,
            };
            match &job {
                Some(job) => job.spent(&mut stopwatch, Doing::Waiting, awaited(&job.engine, &command)),
                None => stopwatch.restart(),
            }
            Some(command)
        };
        vitals.beat();
        job = match (command, job) {
            (Some(Command::Begin(new)), _) => {
                new.probe.skip();
                metrics.step.set(0);
                Some(new)
            }
            (Some(Command::Forget), job) => {
                drop(job);
                compute.job_ended();
                None
            }
            (_, None) => None,
            (Some(Command::End), Some(job)) => {
                job.hand_over(job.engine.committed() + 1, &mut stopwatch);
                // Nobody may be left to hear it, and then nobody needs to.
                let _ = job.out.blocking_send(Out::Say(FromWorker::Finished { busy_threads: compute.busy_threads() }));
                drop(job);
                compute.job_ended();
                None
            }
            (command, Some(job)) => {
                let span = job.span.clone();
                span.in_scope(|| advance(compute, job, command, &mut stopwatch))
            }
        };
    }
}

/// The next command, which is looked for before it is slept for.
fn wait(inbox: &Receiver<Command>, look: Duration) -> Result<Command, RecvError> {
    let start = Instant::now();
    while start.elapsed() < look {
        match inbox.try_recv() {
            Ok(command) => return Ok(command),
            Err(TryRecvError::Empty) => yield_now(),
            Err(TryRecvError::Disconnected) => return Err(RecvError),
        }
    }
    inbox.recv()
}

/// What a stretch of time belongs to.
enum Of {
    /// A step, which spent it on this.
    Step(Activity),
    /// The wait for a commit that was going on, while something that overtook it was set aside.
    Wait,
    /// A measurement, or the job's beginning: no step.
    Else,
}

/// What a wait was for, which a command has ended. A measurement's waits are no part of a step.
fn awaited(engine: &Engine, command: &Command) -> Of {
    match command {
        Command::Tensor(key, _) => match key.training_step() {
            Some(_) => Of::Step(Activity::AwaitTensor(key.clone())),
            None if engine.is_early(key) => Of::Wait,
            None => Of::Else,
        },
        _ => Of::Step(Activity::AwaitOrder),
    }
}

/// Whether something that was computed belongs to a step, rather than to a measurement or a checkpoint.
fn is_of_a_step(out: &Out) -> bool {
    match out {
        Out::Tensor(payload) => payload.key.training_step().is_some(),
        Out::Say(_) | Out::HandedOver { .. } => true,
    }
}

impl Job {
    /// What the time was spent on since this was last said.
    fn spent(&self, stopwatch: &mut Stopwatch, doing: Doing, of: Of) {
        stopwatch.spent(doing);
        match of {
            Of::Step(activity) => self.probe.next(|| activity),
            Of::Wait => {}
            Of::Else => self.probe.skip(),
        }
    }

    /// Hands over what was recorded up to the commit of `step`. Whether anybody is there to take it.
    fn hand_over(&self, step: u64, stopwatch: &mut Stopwatch) -> bool {
        let heard = self.say_recorded(step);
        self.spent(stopwatch, Doing::HandingOut, Of::Step(Activity::HandOut));
        heard
    }

    fn say_recorded(&self, step: u64) -> bool {
        let recorded = self.probe.hand_over(step, true).into_iter().map(Out::Say);
        recorded.chain([Out::HandedOver { step }]).all(|out| self.out.blocking_send(out).is_ok())
    }

    /// What was computed goes to the network side. Whether anybody is there to take it.
    fn hand_out(&self, out: Vec<Out>, stopwatch: &mut Stopwatch) -> bool {
        if out.is_empty() {
            return true;
        }
        let of = if out.iter().any(is_of_a_step) { Of::Step(Activity::HandOut) } else { Of::Else };
        let heard = out.into_iter().all(|out| self.out.blocking_send(out).is_ok());
        self.spent(stopwatch, Doing::HandingOut, of);
        heard
    }
}

/// One command, or one piece of work. No job comes back when it can't go on.
fn advance(
    compute: &Compute,
    mut job: Box<Job>,
    command: Option<Command>,
    stopwatch: &mut Stopwatch,
) -> Option<Box<Job>> {
    if matches!(command, Some(Command::Commit { .. } | Command::SendState { .. })) {
        job.orders.fetch_sub(1, Ordering::Relaxed);
    }
    let Job { engine, probe, queued, .. } = &mut *job;
    let mut committed = None;
    let (result, doing, of) = match command {
        Some(Command::Tensor(key, elements)) => {
            queued.fetch_sub(elements.bytes(), Ordering::Relaxed);
            let of = match key.training_step() {
                Some(_) => Of::Step(Activity::Take(key.clone())),
                None if engine.is_early(&key) => Of::Wait,
                None => Of::Else,
            };
            (engine.accept(compute, key, elements), Doing::TakingIn, of)
        }
        Some(Command::Commit { step, rate, hand_over }) => {
            committed = Some((step, hand_over));
            (engine.commit(compute, step, rate), Doing::Committing, Of::Step(Activity::Commit { step }))
        }
        Some(Command::SendState { step }) => (engine.state(step), Doing::Committing, Of::Step(Activity::ReadState)),
        _ => {
            let of = match engine.next_run().filter(|run| run.micro_batch.phase == Phase::Train) {
                Some(run) => Of::Step(Activity::Segment(run)),
                None => Of::Else,
            };
            (engine.work(Means { compute, probe }).map(Option::unwrap_or_default), Doing::Computing, of)
        }
    };
    let run = if let Of::Step(Activity::Segment(run)) = &of { Some(*run) } else { None };
    job.spent(stopwatch, doing, of);
    if let Some(SegmentRun { micro_batch, segment, tower, direction }) = run {
        tracing::trace!(step = micro_batch.step, tower, segment, ?direction, "computed");
    }
    match result {
        Ok(out) => {
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
        Err(error) => {
            tracing::info!("can't go on: {}", chain(&error));
            // As above: a coordinator that is gone needs no reason.
            let _ = job.out.blocking_send(Out::Say(FromWorker::Failure(failure(&error))));
            None
        }
    }
}

pub(super) fn failure(error: &EngineError) -> Failure {
    let message = chain(error);
    match error {
        EngineError::NotFinite(found) => Failure {
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

    use super::*;

    /// Far longer than a test may take.
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_command_is_found_while_it_is_looked_for_and_while_it_is_slept_for() {
        for look in [Duration::ZERO, LONG] {
            let (commands, inbox) = channel();
            let sender = std::thread::spawn(move || commands.send(Command::End).unwrap());
            assert!(matches!(wait(&inbox, look), Ok(Command::End)), "{look:?}");
            sender.join().unwrap();
            assert!(wait(&inbox, look).is_err(), "nobody is left to send one");
        }
    }
}
