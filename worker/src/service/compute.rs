//! The computing side of a worker: takes commands from the network side, works, and hands back what comes out. It blocks
//! only when there is nothing to compute.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvError, TryRecvError};

use convoy_common::chain::chain;
use convoy_common::wire::{Elements, Failure, FailureKind, FromWorker, TensorKey};
use tokio::sync::mpsc::Sender;

use super::health::Vitals;
use crate::engine::{Engine, EngineError, Out};
use crate::kernels::Compute;

/// What the network side asks for.
pub(super) enum Command {
    /// A new job; what was left of an old one is dropped.
    Begin(Box<Job>),
    /// A tensor has arrived.
    Tensor(TensorKey, Elements),
    /// Apply the gradients.
    Commit { step: u64, rate: f32 },
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
            match inbox.recv() {
                Ok(command) => Some(command),
                Err(RecvError) => return,
            }
        };
        vitals.beat();
        job = match (command, job) {
            (Some(Command::Begin(new)), _) => Some(new),
            (Some(Command::Forget), _) | (_, None) => None,
            (Some(Command::End), Some(job)) => {
                // Nobody may be left to hear it, and then nobody needs to.
                let _ = job.out.blocking_send(Out::Say(FromWorker::Finished { busy_threads: compute.busy_threads() }));
                None
            }
            (command, Some(job)) => advance(compute, job, command),
        };
    }
}

/// One command, or one piece of work. No job comes back when it can't go on.
fn advance(compute: &Compute, mut job: Box<Job>, command: Option<Command>) -> Option<Box<Job>> {
    if matches!(command, Some(Command::Commit { .. } | Command::SendState { .. })) {
        job.orders.fetch_sub(1, Ordering::Relaxed);
    }
    let engine = &mut job.engine;
    let result = match command {
        Some(Command::Tensor(key, elements)) => {
            job.queued.fetch_sub(elements.bytes(), Ordering::Relaxed);
            engine.accept(key, elements)
        }
        Some(Command::Commit { step, rate }) => engine.commit(compute, step, rate),
        Some(Command::SendState { step }) => engine.state(step),
        _ => engine.work(compute).map(Option::unwrap_or_default),
    };
    match result {
        Ok(out) => {
            let heard = out.into_iter().all(|out| job.out.blocking_send(out).is_ok());
            heard.then_some(job)
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
