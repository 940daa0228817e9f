//! An event of the file, and the conversion between events and activities.

use std::borrow::Cow;

use convoy_common::batch::{MicroBatch, MicroBatchId, Phase};
use convoy_common::index::{ExchangeIndex, SegmentIndex, TowerIndex};
use convoy_common::model::Network;
use convoy_common::trace::{Activity, SegmentRun, Transfer};
use convoy_common::wire::{Direction, TensorKey};
use serde::{Deserialize, Serialize};

/// A line of the file, by the names of Chrome's format.
#[derive(Serialize, Deserialize)]
pub(super) struct Event<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) cat: Cow<'a, str>,
    /// X: a span. i: an instant. s, t, f: a flow's start, step and end. C: a counter. M: a name.
    pub(super) ph: Cow<'a, str>,
    pub(super) pid: u64,
    pub(super) tid: u64,
    /// Microseconds.
    pub(super) ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<u64>,
    /// How to draw a flow's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bp: Option<Cow<'a, str>>,
    /// The scope of an instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) s: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(super) args: Args<'a>,
}

impl<'a> Event<'a> {
    /// An event on track (process, track) at `at` nanoseconds.
    pub(super) fn new(
        ph: &'static str,
        cat: &'static str,
        name: impl Into<Cow<'a, str>>,
        (pid, tid): (u64, u64),
        at: u64,
    ) -> Self {
        let (name, cat, ph) = (name.into(), cat.into(), ph.into());
        Event { name, cat, ph, pid, tid, ts: micros(at), dur: None, id: None, bp: None, s: None, args: Args::default() }
    }
}

/// Details of an event.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Args<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) step: Option<u64>,
    /// A micro-batch: step, slot and place in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) of: Option<(u64, u32, u32)>,
    /// The first sample, and the first one after the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) samples: Option<(usize, usize)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) segment: Option<SegmentIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) layer: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exchange: Option<ExchangeIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) direction: Option<Way>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tower: Option<TowerIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from_tower: Option<TowerIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to_tower: Option<TowerIndex>,
    /// The parameter of a gradient that is summed over replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gradient: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) piece: Option<usize>,
    /// The first slot of a node, and the first one after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) slots: Option<(usize, usize)>,
    /// The step that a commit applies, or that a gradient belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) commit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) busy_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) images: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) is_slow: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resident_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offset_ns: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uncertainty_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) correction_ns: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dropped: Option<u64>,
    /// The value of a counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<f64>,
    /// The name of a process or a track.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sort_index: Option<u64>,
}

/// A direction, as the file spells it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Way {
    Forward,
    Backward,
}

impl From<Direction> for Way {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Forward => Way::Forward,
            Direction::Backward => Way::Backward,
        }
    }
}

impl From<Way> for Direction {
    fn from(way: Way) -> Self {
        match way {
            Way::Forward => Direction::Forward,
            Way::Backward => Direction::Backward,
        }
    }
}

pub(super) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

pub(super) fn nanos(micros: f64) -> u64 {
    (micros * 1e3).round().max(0.0) as u64
}

/// The category and name of an activity.
pub(in crate::trace) fn described<'a>(network: &Network, activity: &Activity) -> (&'static str, Cow<'a, str>) {
    match activity {
        Activity::Segment(SegmentRun { segment, tower, direction, .. }) => {
            ("segment", format!("segment {segment} {} of tower {tower}", word(*direction)).into())
        }
        Activity::Layer { layer, direction } => {
            let name = network.layers.get(*layer).map_or("?", |layer| layer.name.as_str());
            ("layer", format!("{name} {}", word(*direction)).into())
        }
        Activity::Commit { .. } => ("commit", "commit".into()),
        Activity::Take(tensor) => ("take", format!("take {tensor}").into()),
        Activity::AwaitTensor(tensor) => ("await", format!("wait for {tensor}").into()),
        Activity::AwaitOrder => ("await_order", "wait for an order".into()),
        Activity::HandOut => ("hand_out", "hand out".into()),
        Activity::ReadState => ("read_state", "read weights".into()),
        Activity::Send(transfer) => ("send", format!("send {}", transfer.tensor).into()),
        Activity::Receive(transfer) => ("receive", format!("receive {}", transfer.tensor).into()),
        Activity::Relay(transfer) => ("relay", format!("relay {}", transfer.tensor).into()),
        Activity::Step { step } => ("step", format!("step {step}").into()),
        Activity::AwaitImages(_) => ("await_images", "wait for images".into()),
        Activity::SendImages(_) => ("send_images", "send images".into()),
        Activity::Loss(_) => ("loss", "loss".into()),
        Activity::Idle => ("idle", "wait for workers".into()),
        Activity::Measure => ("measure", "measure".into()),
        Activity::Checkpoint => ("checkpoint", "checkpoint".into()),
    }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Backward => "backward",
    }
}

/// The details of an activity.
pub(super) fn args_of(activity: &Activity) -> Args<'static> {
    match activity {
        Activity::Segment(SegmentRun { micro_batch, segment, tower, direction }) => Args {
            of: Some(of(micro_batch)),
            segment: Some(*segment),
            tower: Some(*tower),
            direction: Some((*direction).into()),
            ..Args::default()
        },
        Activity::Layer { layer, direction } => {
            Args { layer: Some(*layer), direction: Some((*direction).into()), ..Args::default() }
        }
        Activity::Commit { step } => Args { commit: Some(*step), ..Args::default() },
        Activity::Take(tensor) | Activity::AwaitTensor(tensor) => args_of_tensor(tensor),
        Activity::Send(transfer) | Activity::Receive(transfer) | Activity::Relay(transfer) => {
            let Transfer { tensor, bytes, busy } = transfer;
            Args { bytes: Some(*bytes), busy_ns: Some(*busy), ..args_of_tensor(tensor) }
        }
        Activity::AwaitImages(id) | Activity::SendImages(id) | Activity::Loss(id) => {
            Args { of: Some(of(id)), ..Args::default() }
        }
        Activity::AwaitOrder
        | Activity::HandOut
        | Activity::ReadState
        | Activity::Step { .. }
        | Activity::Idle
        | Activity::Measure
        | Activity::Checkpoint => Args::default(),
    }
}

fn of(id: &MicroBatchId) -> (u64, u32, u32) {
    (id.step, id.slot, id.micro_batch)
}

fn args_of_tensor(tensor: &TensorKey) -> Args<'static> {
    match tensor {
        TensorKey::Images(MicroBatch { id, samples }) => {
            Args { of: Some(of(id)), samples: Some((samples.start, samples.end)), ..Args::default() }
        }
        TensorKey::Activations {
            micro_batch: MicroBatch { id, samples },
            exchange,
            direction,
            from_tower,
            to_tower,
        } => Args {
            of: Some(of(id)),
            samples: Some((samples.start, samples.end)),
            exchange: Some(*exchange),
            direction: Some((*direction).into()),
            from_tower: Some(*from_tower),
            to_tower: *to_tower,
            ..Args::default()
        },
        TensorKey::Gradient { step, name, tower, piece, node } => Args {
            gradient: Some(Cow::Owned(name.clone())),
            commit: Some(*step),
            tower: Some(*tower),
            piece: Some(*piece),
            slots: node.as_ref().map(|node| (node.start, node.end)),
            ..Args::default()
        },
        TensorKey::Parameter { .. } => Args::default(),
    }
}

/// The activity of an event. None if it isn't one, or if details are missing.
pub(super) fn activity_of(category: &str, args: &Args) -> Option<Activity> {
    let direction = || args.direction.map(Direction::from);
    let id = || {
        let (step, slot, micro_batch) = args.of?;
        Some(MicroBatchId { step, phase: Phase::Train, slot, micro_batch })
    };
    let tensor = || {
        if let Some(name) = &args.gradient {
            let (step, name) = (args.commit?, name.clone().into_owned());
            let node = args.slots.map(|(start, end)| start..end);
            return Some(TensorKey::Gradient { step, name, tower: args.tower?, piece: args.piece?, node });
        }
        let (start, end) = args.samples?;
        let micro_batch = MicroBatch { id: id()?, samples: start..end };
        let Some(exchange) = args.exchange else { return Some(TensorKey::Images(micro_batch)) };
        let (from_tower, to_tower) = (args.from_tower?, args.to_tower);
        Some(TensorKey::Activations { micro_batch, exchange, direction: direction()?, from_tower, to_tower })
    };
    let transfer = || Some(Transfer { tensor: tensor()?, bytes: args.bytes?, busy: args.busy_ns? });
    Some(match category {
        "segment" => Activity::Segment(SegmentRun {
            micro_batch: id()?,
            segment: args.segment?,
            tower: args.tower?,
            direction: direction()?,
        }),
        "layer" => Activity::Layer { layer: args.layer?, direction: direction()? },
        "commit" => Activity::Commit { step: args.commit? },
        "take" => Activity::Take(tensor()?),
        "await" => Activity::AwaitTensor(tensor()?),
        "await_order" => Activity::AwaitOrder,
        "hand_out" => Activity::HandOut,
        "read_state" => Activity::ReadState,
        "send" => Activity::Send(transfer()?),
        "receive" => Activity::Receive(transfer()?),
        "relay" => Activity::Relay(transfer()?),
        "step" => Activity::Step { step: args.step? },
        "await_images" => Activity::AwaitImages(id()?),
        "send_images" => Activity::SendImages(id()?),
        "loss" => Activity::Loss(id()?),
        "idle" => Activity::Idle,
        "measure" => Activity::Measure,
        "checkpoint" => Activity::Checkpoint,
        _ => return None,
    })
}
