//! The computing side of a worker: takes commands from the network side, works, and hands back what comes out. It blocks
//! only when there is nothing to compute.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvError, TryRecvError};

use convoy_common::chain::chain;
use convoy_common::trace::Activity;
use convoy_common::wire::{Elements, Failure, FailureKind, FromWorker, TensorKey};
use tokio::sync::mpsc::Sender;

use super::health::Vitals;
use crate::engine::{Engine, EngineError, Out};
use crate::kernels::Compute;
use crate::probe::Probe;
use crate::tower::Means;

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
}

/// Works until the network side is gone.
pub(super) fn serve(compute: &Compute, inbox: &Receiver<Command>, vitals: &Vitals) {
    let mut job: Option<Box<Job>> = None;
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
            let began = job.as_ref().map_or(0, |job| job.probe.now());
            let command = match inbox.recv() {
                Ok(command) => command,
                Err(RecvError) => return,
            };
            if let Some((job, activity)) = job.as_ref().zip(awaited(&command)) {
                job.probe.ended(began, || activity);
            }
            Some(command)
        };
        vitals.beat();
        job = match (command, job) {
            (Some(Command::Begin(new)), _) => Some(new),
            (Some(Command::Forget), _) | (_, None) => None,
            (Some(Command::End), Some(job)) => {
                job.hand_over(job.engine.committed() + 1);
                // Nobody may be left to hear it, and then nobody needs to.
                let _ = job.out.blocking_send(Out::Say(FromWorker::Finished { busy_threads: compute.busy_threads() }));
                None
            }
            (command, Some(job)) => advance(compute, job, command),
        };
    }
}

/// What a wait was for, which a command has ended. A measurement's waits are no part of a step.
fn awaited(command: &Command) -> Option<Activity> {
    match command {
        Command::Tensor(key, _) => key.training_step().map(|_| Activity::AwaitTensor(key.clone())),
        _ => Some(Activity::AwaitOrder),
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
    /// Hands over what was recorded up to the commit of `step`. Whether anybody is there to take it.
    fn hand_over(&self, step: u64) -> bool {
        let began = self.probe.now();
        let heard = self.say_recorded(step);
        self.probe.ended(began, || Activity::HandOut);
        heard
    }

    fn say_recorded(&self, step: u64) -> bool {
        let recorded = self.probe.hand_over(step, true).into_iter().map(Out::Say);
        recorded.chain([Out::HandedOver { step }]).all(|out| self.out.blocking_send(out).is_ok())
    }
}

/// One command, or one piece of work. No job comes back when it can't go on.
fn advance(compute: &Compute, mut job: Box<Job>, command: Option<Command>) -> Option<Box<Job>> {
    if matches!(command, Some(Command::Commit { .. } | Command::SendState { .. })) {
        job.orders.fetch_sub(1, Ordering::Relaxed);
    }
    let Job { engine, probe, queued, .. } = &mut *job;
    let began = probe.now();
    let mut committed = None;
    let result = match command {
        Some(Command::Tensor(key, elements)) => {
            queued.fetch_sub(elements.bytes(), Ordering::Relaxed);
            let name = key.training_step().map(|_| key.clone());
            let result = engine.accept(key, elements);
            if let Some(key) = name {
                probe.ended(began, || Activity::Take(key));
            }
            result
        }
        Some(Command::Commit { step, rate, hand_over }) => {
            committed = Some((step, hand_over));
            let result = engine.commit(compute, step, rate);
            probe.ended(began, || Activity::Commit { step });
            result
        }
        Some(Command::SendState { step }) => {
            let result = engine.state(step);
            probe.ended(began, || Activity::ReadState);
            result
        }
        _ => engine.work(Means { compute, probe }).map(Option::unwrap_or_default),
    };
    match result {
        Ok(out) => {
            let began = job.probe.now();
            let of_a_step = out.iter().any(is_of_a_step);
            let heard = out.into_iter().all(|out| job.out.blocking_send(out).is_ok());
            if of_a_step {
                job.probe.ended(began, || Activity::HandOut);
            }
            let handed_over = match committed {
                Some((step, true)) => job.hand_over(step),
                Some((step, false)) => {
                    job.probe.forget(step);
                    true
                }
                None => true,
            };
            (heard && handed_over).then_some(job)
        }
        Err(error) => {
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
