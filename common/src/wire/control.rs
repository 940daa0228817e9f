//! Control messages as domain values.

use std::time::Duration;

use convoy_proto::v1;

use super::peer::{Peer, PeerFailed, Tally, tally_from, tally_to};
use super::tensor::{Direction, direction_from, direction_to, micro_batch_from, micro_batch_to};
use super::trace::Recorded;
use super::{WireError, address_from, description_from, name_from, nonzero, required, step_from};
use crate::address::Address;
use crate::batch::{BATCH_MAX, Batches, Division, MicroBatch};
use crate::index::{TowerIndex, WorkerIndex};
use crate::placement::Placement;

/// The most training images of a job.
const IMAGES_MAX: u64 = 1 << 40;

/// A control message, and the number of the generation that it belongs to: 0 before the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered<T> {
    /// The generation.
    pub generation: u64,
    /// The message.
    pub message: T,
}

/// A message from a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    /// The first message: the worker introduces itself.
    Hello(Hello),
    /// All weights have arrived.
    Ready,
    /// A tower's backward pass of a micro-batch is done.
    BackwardDone {
        /// The micro-batch.
        micro_batch: MicroBatch,
        /// The tower.
        tower: TowerIndex,
    },
    /// All gradients of this worker's towers are complete for a step.
    StepDone {
        /// The step.
        step: u64,
        /// What it has done since its last report.
        tally: Tally,
    },
    /// The step's gradients are applied.
    Committed {
        /// The step.
        step: u64,
    },
    /// The worker cannot continue.
    Failure(Failure),
    /// The last message of a job.
    Finished {
        /// Threads of its compute pool that did any work.
        busy_threads: usize,
        /// What it has done since its last report.
        tally: Tally,
    },
    /// The worker was asked to stop. It stays until a checkpoint is written.
    Leaving,
    /// The answer to a ping.
    Pong(Pong),
    /// The spans that it recorded.
    Recorded(Recorded),
    /// It cannot exchange tensors with another worker.
    PeerFailed(PeerFailed),
}

impl FromWorker {
    /// The message's name in the protocol.
    pub fn name(&self) -> &'static str {
        match self {
            FromWorker::Hello(_) => "Hello",
            FromWorker::Ready => "Ready",
            FromWorker::BackwardDone { .. } => "BackwardDone",
            FromWorker::StepDone { .. } => "StepDone",
            FromWorker::Committed { .. } => "Committed",
            FromWorker::Failure(_) => "Failure",
            FromWorker::Finished { .. } => "Finished",
            FromWorker::Leaving => "Leaving",
            FromWorker::Pong(_) => "Pong",
            FromWorker::Recorded(_) => "Recorded",
            FromWorker::PeerFailed(_) => "PeerFailed",
        }
    }
}

impl ToWorker {
    /// The message's name in the protocol.
    pub fn name(&self) -> &'static str {
        match self {
            ToWorker::Welcome { .. } => "Welcome",
            ToWorker::Standby => "Standby",
            ToWorker::Assign(_) => "Assign",
            ToWorker::Commit { .. } => "Commit",
            ToWorker::SendState { .. } => "SendState",
            ToWorker::EndJob { .. } => "EndJob",
            ToWorker::Ping { .. } => "Ping",
        }
    }
}

/// The answer to a ping: a worker's clock, in nanoseconds, and what it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// When the ping was sent, by the coordinator's clock.
    pub ping_sent: u64,
    /// When the ping arrived, by the worker's clock.
    pub received: u64,
    /// When the answer was sent, by the worker's clock.
    pub replied: u64,
    /// What its compute thread is doing.
    pub doing: Doing,
}

/// What a worker's compute thread is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doing {
    /// How long it has been busy with its current piece of work. Zero if it has nothing to do.
    pub busy: Duration,
    /// How long the longest piece of work took that has ended.
    pub longest: Duration,
    /// The layer at hand.
    pub layer: Option<(usize, Direction)>,
}

/// A message from the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum ToWorker {
    /// The worker is accepted.
    Welcome {
        /// Identifies its tensor connection.
        session: u64,
        /// Whether the coordinator requires a token.
        requires_token: bool,
    },
    /// This worker is a spare.
    Standby,
    /// The job, and the towers that this worker holds.
    Assign(Assignment),
    /// Apply the step's gradients.
    Commit {
        /// The step.
        step: u64,
        /// The learning rate.
        rate: f32,
        /// Whether to send the step's recorded spans.
        hand_over: bool,
    },
    /// Send weights and momentum of every tower.
    SendState {
        /// The step after which they are read.
        step: u64,
    },
    /// The job is over.
    EndJob {
        /// The reason, for the log.
        reason: String,
    },
    /// Asks for the worker's clock.
    Ping {
        /// The coordinator's clock, in nanoseconds.
        sent: u64,
    },
}

/// What a worker tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Version of the protocol that it speaks.
    pub protocol_version: u32,
    /// The program's version.
    pub convoy_version: String,
    /// Its process id.
    pub process_id: u32,
    /// Threads of its compute pool.
    pub threads: usize,
    /// The instruction set of its kernels.
    pub instruction_set: String,
    /// The machine's name.
    pub host: String,
    /// Where other workers can connect to it. None: nowhere.
    pub exchange_address: Option<Address>,
}

/// What a worker needs to know about a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Identifies the job in every chunk of a tensor.
    pub job: u64,
    /// The model file.
    pub model: String,
    /// Who holds what.
    pub placement: Placement,
    /// The index of the worker that receives this.
    pub worker: WorkerIndex,
    /// The job's seed, which decides random masks.
    pub seed: u64,
    /// The seed of dropout.
    pub dropout_seed: u64,
    /// SGD's momentum.
    pub momentum: f64,
    /// SGD's weight decay.
    pub weight_decay: f64,
    /// The batches. No micro-batch is larger than a batch.
    pub batches: Batches,
    /// Slots and micro-batches.
    pub division: Division,
    /// Whether the job trains, or only measures.
    pub train: bool,
    /// Whether the worker records spans.
    pub trace: bool,
    /// The workers to which the receiver is connected directly.
    pub peers: Vec<Peer>,
}

/// Why a worker cannot continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure.
    pub kind: FailureKind,
    /// The description, for a person.
    pub message: String,
    /// The layer at which it began, if known.
    pub layer: Option<String>,
    /// The tower, if known.
    pub tower: Option<TowerIndex>,
    /// The step, if known.
    pub step: Option<u64>,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// A number is no longer finite.
    NotFinite,
    /// A message was malformed, or did not fit the job.
    BadMessage,
    /// A bug.
    Internal,
}

impl TryFrom<v1::FromWorker> for Numbered<FromWorker> {
    type Error = WireError;

    fn try_from(envelope: v1::FromWorker) -> Result<Self, WireError> {
        let message = required("message", envelope.message)?.try_into()?;
        Ok(Numbered { generation: envelope.generation, message })
    }
}

impl TryFrom<v1::from_worker::Message> for FromWorker {
    type Error = WireError;

    fn try_from(message: v1::from_worker::Message) -> Result<Self, WireError> {
        use v1::from_worker::Message;
        Ok(match message {
            Message::Hello(m) => FromWorker::Hello(Hello {
                protocol_version: m.protocol_version,
                convoy_version: name_from(&m.convoy_version),
                process_id: m.process_id,
                threads: m.threads as usize,
                instruction_set: name_from(&m.instruction_set),
                host: name_from(&m.host),
                exchange_address: Some(&m.exchange_address)
                    .filter(|address| !address.is_empty())
                    .map(|address| address_from("exchange_address", address))
                    .transpose()?,
            }),
            Message::Ready(_) => FromWorker::Ready,
            Message::BackwardDone(m) => {
                FromWorker::BackwardDone { micro_batch: micro_batch_from(m.micro_batch)?, tower: m.tower.into() }
            }
            Message::StepDone(m) => FromWorker::StepDone {
                step: nonzero("step", step_from(m.step)?)?,
                tally: tally_from(m.carried, m.busy_ns)?,
            },
            Message::Committed(m) => FromWorker::Committed { step: nonzero("step", step_from(m.step)?)? },
            Message::Failure(m) => FromWorker::Failure(m.try_into()?),
            Message::Finished(m) => {
                FromWorker::Finished { busy_threads: m.busy_threads as usize, tally: tally_from(m.carried, 0)? }
            }
            Message::Leaving(_) => FromWorker::Leaving,
            Message::Pong(m) => FromWorker::Pong(m.try_into()?),
            Message::Recorded(m) => FromWorker::Recorded(m.try_into()?),
            Message::PeerFailed(m) => FromWorker::PeerFailed(m.try_into()?),
        })
    }
}

impl From<Numbered<FromWorker>> for v1::FromWorker {
    fn from(numbered: Numbered<FromWorker>) -> Self {
        use v1::from_worker::Message;
        let message = match numbered.message {
            FromWorker::Hello(hello) => Message::Hello(v1::Hello {
                protocol_version: hello.protocol_version,
                convoy_version: hello.convoy_version,
                process_id: hello.process_id,
                threads: hello.threads as u32,
                instruction_set: hello.instruction_set,
                host: hello.host,
                exchange_address: hello.exchange_address.map_or_else(String::new, |address| address.to_string()),
            }),
            FromWorker::Ready => Message::Ready(v1::Ready {}),
            FromWorker::BackwardDone { micro_batch, tower } => Message::BackwardDone(v1::BackwardDone {
                micro_batch: Some(micro_batch_to(&micro_batch)),
                tower: tower.into(),
            }),
            FromWorker::StepDone { step, tally } => {
                let (carried, busy_ns) = tally_to(tally);
                Message::StepDone(v1::StepDone { step, carried, busy_ns })
            }
            FromWorker::Committed { step } => Message::Committed(v1::Committed { step }),
            FromWorker::Failure(failure) => Message::Failure(failure.into()),
            FromWorker::Finished { busy_threads, tally } => {
                let (carried, _) = tally_to(tally);
                Message::Finished(v1::Finished { busy_threads: busy_threads as u32, carried })
            }
            FromWorker::Leaving => Message::Leaving(v1::Leaving {}),
            FromWorker::Pong(pong) => Message::Pong(pong.into()),
            FromWorker::Recorded(recorded) => Message::Recorded(recorded.into()),
            FromWorker::PeerFailed(failed) => Message::PeerFailed(failed.into()),
        };
        Self { generation: numbered.generation, message: Some(message) }
    }
}

impl TryFrom<v1::ToWorker> for Numbered<ToWorker> {
    type Error = WireError;

    fn try_from(envelope: v1::ToWorker) -> Result<Self, WireError> {
        let message = required("message", envelope.message)?.try_into()?;
        if matches!(message, ToWorker::Assign(_)) {
            nonzero("generation", envelope.generation)?;
        }
        Ok(Numbered { generation: envelope.generation, message })
    }
}

impl TryFrom<v1::to_worker::Message> for ToWorker {
    type Error = WireError;

    fn try_from(message: v1::to_worker::Message) -> Result<Self, WireError> {
        use v1::to_worker::Message;
        Ok(match message {
            Message::Welcome(m) => {
                ToWorker::Welcome { session: nonzero("session", m.session)?, requires_token: m.requires_token }
            }
            Message::Standby(v1::Standby {}) => ToWorker::Standby,
            Message::Assign(m) => ToWorker::Assign(m.try_into()?),
            Message::Commit(m) => {
                ToWorker::Commit { step: nonzero("step", step_from(m.step)?)?, rate: m.rate, hand_over: m.hand_over }
            }
            Message::SendState(m) => ToWorker::SendState { step: step_from(m.step)? },
            Message::EndJob(m) => ToWorker::EndJob { reason: description_from(&m.reason) },
            Message::Ping(m) => ToWorker::Ping { sent: m.sent_ns },
        })
    }
}

impl From<Numbered<ToWorker>> for v1::ToWorker {
    fn from(numbered: Numbered<ToWorker>) -> Self {
        use v1::to_worker::Message;
        let message = match numbered.message {
            ToWorker::Welcome { session, requires_token } => Message::Welcome(v1::Welcome { session, requires_token }),
            ToWorker::Standby => Message::Standby(v1::Standby {}),
            ToWorker::Assign(assignment) => Message::Assign(assignment.into()),
            ToWorker::Commit { step, rate, hand_over } => Message::Commit(v1::Commit { step, rate, hand_over }),
            ToWorker::SendState { step } => Message::SendState(v1::SendState { step }),
            ToWorker::EndJob { reason } => Message::EndJob(v1::EndJob { reason: description_from(&reason) }),
            ToWorker::Ping { sent } => Message::Ping(v1::Ping { sent_ns: sent }),
        };
        Self { generation: numbered.generation, message: Some(message) }
    }
}

impl TryFrom<v1::Pong> for Pong {
    type Error = WireError;

    fn try_from(m: v1::Pong) -> Result<Self, WireError> {
        let layer = m.layer.map(|layer| Ok((layer as usize, direction_from(m.direction())?))).transpose()?;
        let (busy, longest) = (Duration::from_millis(m.busy_ms), Duration::from_millis(m.longest_ms));
        let doing = Doing { busy, longest, layer };
        Ok(Pong { ping_sent: m.ping_sent_ns, received: m.received_ns, replied: m.replied_ns, doing })
    }
}

impl From<Pong> for v1::Pong {
    fn from(pong: Pong) -> Self {
        let Doing { busy, longest, layer } = pong.doing;
        Self {
            ping_sent_ns: pong.ping_sent,
            received_ns: pong.received,
            replied_ns: pong.replied,
            busy_ms: busy.as_millis() as u64,
            longest_ms: longest.as_millis() as u64,
            layer: layer.map(|(layer, _)| layer as u32),
            direction: layer.map_or(0, |(_, direction)| direction_to(direction).into()),
        }
    }
}

impl TryFrom<v1::Assign> for Assignment {
    type Error = WireError;

    fn try_from(m: v1::Assign) -> Result<Self, WireError> {
        for (field, value) in [("momentum", m.momentum), ("weight_decay", m.weight_decay)] {
            if !value.is_finite() || value < 0.0 {
                return Err(WireError::Value {
                    field,
                    value: value.to_string(),
                    expected: "it must be finite and not negative",
                });
            }
        }
        at_most("batch", m.batch.into(), BATCH_MAX as u64, "it must be at most 1048576")?;
        at_most("images", m.images, IMAGES_MAX, "it must be at most 2^40")?;
        at_most("slots", m.slots.into(), m.batch.into(), "it must be at most \"batch\"")?;
        let largest_slot = m.batch.div_ceil(m.slots.max(1));
        at_most(
            "micro_batches",
            m.micro_batches.into(),
            largest_slot.into(),
            "it must be at most the images of the largest slot",
        )?;
        let placement = placement_from(&m, nonzero("slots", m.slots.into())? as usize)?;
        Ok(Assignment {
            job: nonzero("job", m.job)?,
            model: m.model,
            placement,
            worker: m.worker.into(),
            seed: m.seed,
            dropout_seed: m.dropout_seed,
            momentum: m.momentum,
            weight_decay: m.weight_decay,
            batches: Batches {
                images: nonzero("images", m.images)? as usize,
                batch: nonzero("batch", m.batch.into())? as usize,
            },
            division: Division {
                slots: nonzero("slots", m.slots.into())? as usize,
                micro_batches: nonzero("micro_batches", m.micro_batches.into())? as usize,
            },
            train: m.train,
            trace: m.trace,
            peers: m.peers.into_iter().map(Peer::try_from).collect::<Result<_, _>>()?,
        })
    }
}

fn at_most(field: &'static str, value: u64, limit: u64, expected: &'static str) -> Result<(), WireError> {
    if value <= limit { Ok(()) } else { Err(WireError::Value { field, value: value.to_string(), expected }) }
}

/// A placement, which the plan checks further.
fn placement_from(m: &v1::Assign, slots: usize) -> Result<Placement, WireError> {
    let v1::Assign { trunk, head, towers, .. } = m;
    let towers = nonzero("towers", (*towers).into())? as usize;
    let workers = |held: &[u32]| held.iter().copied().map(WorkerIndex::from).collect();
    if !trunk.len().is_multiple_of(towers) {
        let (value, expected) = (format!("a list of {}", trunk.len()), "its length must be a multiple of \"towers\"");
        return Err(WireError::Value { field: "trunk", value, expected });
    }
    Ok(Placement { slots, trunk: trunk.chunks(towers).map(workers).collect(), head: workers(head) })
}

impl From<Assignment> for v1::Assign {
    fn from(assignment: Assignment) -> Self {
        Self {
            job: assignment.job,
            model: assignment.model,
            towers: assignment.placement.trunk.first().map_or(0, |held| held.len() as u32),
            trunk: assignment.placement.trunk.into_iter().flatten().map(u32::from).collect(),
            head: assignment.placement.head.into_iter().map(u32::from).collect(),
            worker: assignment.worker.into(),
            seed: assignment.seed,
            dropout_seed: assignment.dropout_seed,
            momentum: assignment.momentum,
            weight_decay: assignment.weight_decay,
            images: assignment.batches.images as u64,
            batch: assignment.batches.batch as u32,
            slots: assignment.division.slots as u32,
            micro_batches: assignment.division.micro_batches as u32,
            train: assignment.train,
            trace: assignment.trace,
            peers: assignment.peers.into_iter().map(v1::Peer::from).collect(),
        }
    }
}

impl TryFrom<v1::Failure> for Failure {
    type Error = WireError;

    fn try_from(m: v1::Failure) -> Result<Self, WireError> {
        let kind = match m.kind() {
            v1::FailureKind::NotFinite => FailureKind::NotFinite,
            v1::FailureKind::BadMessage => FailureKind::BadMessage,
            v1::FailureKind::Internal => FailureKind::Internal,
            v1::FailureKind::Unspecified => return Err(WireError::Missing("kind")),
        };
        Ok(Failure {
            kind,
            message: description_from(&m.message),
            layer: m.layer.as_deref().map(name_from),
            tower: m.tower.map(TowerIndex::from),
            step: m.step,
        })
    }
}

impl From<Failure> for v1::Failure {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind {
            FailureKind::NotFinite => v1::FailureKind::NotFinite,
            FailureKind::BadMessage => v1::FailureKind::BadMessage,
            FailureKind::Internal => v1::FailureKind::Internal,
        };
        Self {
            kind: kind.into(),
            message: description_from(&failure.message),
            layer: failure.layer.as_deref().map(name_from),
            tower: failure.tower.map(u32::from),
            step: failure.step,
        }
    }
}
