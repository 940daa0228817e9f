//! The plan: a network on a cluster. It says which layers form a segment, where exchanges are, which worker holds which tower,
//! and how many bytes a step moves. Pure.
//!
//! Not here: time. Traces record how long a step takes.

use std::ops::Range;

use serde::Serialize;

use crate::batch::part;
use crate::index::{ExchangeIndex, PerSegment, PerTower, TowerIndex, WorkerIndex};
use crate::model::{Layer, Network, Shape};

/// A network, divided into segments and placed on workers.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The network.
    pub network: Network,
    /// The segments, first to last.
    pub segments: PerSegment<Segment>,
    /// Worker `placement[t]` holds tower t.
    pub placement: PerTower<WorkerIndex>,
    /// Number of workers.
    pub workers: usize,
}

/// The longest run of layers that a tower computes without hearing of another tower.
///
/// Exchange i comes after segment i. The last exchange carries logits to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Indices of its layers.
    pub layers: Range<usize>,
    /// Shape of the input: the whole image for the first segment, all channels for the others.
    pub input: Shape,
    /// Shape of the output, all towers together.
    pub output: Shape,
}

/// A cluster that can't hold a network.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum PlanError {
    /// Some workers would have nothing to do.
    #[error("--workers {workers}: must be at most {towers}, the number of towers of \"{model}\"")]
    MoreWorkersThanTowers { workers: usize, towers: usize, model: String },
    /// No workers at all.
    #[error("--workers 0: must be at least 1")]
    NoWorkers,
    /// A placement that doesn't fit the network.
    #[error("a placement of {given} towers on {workers} workers does not fit the {towers} towers of the model")]
    Placement { given: usize, workers: usize, towers: usize },
}

/// Payload bytes over sockets. A byte counts once for each socket that it crosses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// From workers to the coordinator.
    pub up: u64,
    /// From the coordinator to workers.
    pub down: u64,
}

impl Traffic {
    /// Bytes in both directions.
    pub fn total(&self) -> u64 {
        self.up + self.down
    }

    /// The one with more bytes in all.
    pub fn max(self, other: Traffic) -> Traffic {
        if other.total() > self.total() { other } else { self }
    }

    fn plus(self, other: Traffic) -> Traffic {
        Traffic { up: self.up.saturating_add(other.up), down: self.down.saturating_add(other.down) }
    }

    fn floats(up: usize, down: usize, samples: usize) -> Traffic {
        let bytes = |floats: usize| (floats * samples * size_of::<f32>()) as u64;
        Traffic { up: bytes(up), down: bytes(down) }
    }
}

impl Plan {
    /// Places the towers of `network` on `workers` workers as evenly as possible. Neighbouring towers stay together.
    ///
    /// # Errors
    /// When there are more workers than towers, or none.
    pub fn new(network: Network, workers: usize) -> Result<Self, PlanError> {
        let towers = network.towers;
        if workers == 0 {
            return Err(PlanError::NoWorkers);
        }
        if workers > towers {
            return Err(PlanError::MoreWorkersThanTowers { workers, towers, model: network.name });
        }
        let held = |worker: WorkerIndex| part(towers, workers, worker.0).map(move |_| worker);
        let placement = WorkerIndex::all(workers).flat_map(held).collect();
        Self::placed(network, placement)
    }

    /// A plan with the given placement, which workers get from the coordinator.
    ///
    /// # Errors
    /// When the placement and the network differ in the number of towers, or when a worker gets no tower.
    pub fn placed(network: Network, placement: PerTower<WorkerIndex>) -> Result<Self, PlanError> {
        let workers = placement.iter().max().map_or(0, |last| last.0.saturating_add(1));
        let all_used = workers <= placement.len() && WorkerIndex::all(workers).all(|w| placement.contains(&w));
        if placement.len() != network.towers || !all_used {
            return Err(PlanError::Placement { given: placement.len(), workers, towers: network.towers });
        }
        let segments = segments(&network);
        Ok(Self { network, segments, placement, workers })
    }

    /// All workers, in order.
    pub fn all_workers(&self) -> impl DoubleEndedIterator<Item = WorkerIndex> + ExactSizeIterator + Clone + use<> {
        WorkerIndex::all(self.workers)
    }

    /// All towers, in order.
    pub fn all_towers(&self) -> impl DoubleEndedIterator<Item = TowerIndex> + ExactSizeIterator + Clone + use<> {
        TowerIndex::all(self.network.towers)
    }

    /// All exchanges, in order.
    pub fn all_exchanges(&self) -> impl DoubleEndedIterator<Item = ExchangeIndex> + ExactSizeIterator + Clone + use<> {
        ExchangeIndex::all(self.segments.len())
    }

    /// The towers of `worker`, in ascending order.
    pub fn towers_of(&self, worker: WorkerIndex) -> Vec<TowerIndex> {
        self.all_towers().filter(|tower| self.placement[*tower] == worker).collect()
    }

    /// The last exchange, which carries logits.
    pub fn logits_exchange(&self) -> ExchangeIndex {
        ExchangeIndex(self.segments.len() - 1)
    }

    /// The shape that all towers together contribute to `exchange`: the output of the segment before it.
    pub fn exchanged(&self, exchange: ExchangeIndex) -> Shape {
        self.segments[exchange.segment_before()].output
    }

    /// The channels that `tower` contributes to `exchange`, forward.
    pub fn contribution(&self, exchange: ExchangeIndex, tower: TowerIndex) -> Range<usize> {
        self.network.slice(self.exchanged(exchange).channels, tower)
    }

    /// Floats per image that `tower` contributes to `exchange`, forward.
    pub fn slice_floats(&self, exchange: ExchangeIndex, tower: TowerIndex) -> usize {
        self.contribution(exchange, tower).len() * self.exchanged(exchange).pixels()
    }

    /// Traffic of sending images to every worker.
    pub fn image_traffic(&self, samples: usize) -> Traffic {
        Traffic { up: 0, down: (self.network.input.shape.len() * samples * self.workers) as u64 }
    }

    /// Traffic of `exchange` forward, for `samples` images.
    pub fn forward_traffic(&self, exchange: ExchangeIndex, samples: usize) -> Traffic {
        let (mut up, mut down) = (0, 0);
        for tower in self.all_towers() {
            let floats = self.slice_floats(exchange, tower);
            if exchange == self.logits_exchange() {
                up += floats;
            } else if self.workers > 1 {
                up += floats;
                down += floats * (self.workers - 1);
            }
        }
        Traffic::floats(up, down, samples)
    }

    /// Traffic of `exchange` backward, for `samples` images.
    pub fn backward_traffic(&self, exchange: ExchangeIndex, samples: usize) -> Traffic {
        let (mut up, mut down) = (0, 0);
        for to in self.all_towers() {
            let floats = self.slice_floats(exchange, to);
            if exchange == self.logits_exchange() {
                down += floats;
            } else {
                let strangers = self.placement.iter().filter(|worker| **worker != self.placement[to]).count();
                up += floats * strangers;
                down += floats * strangers;
            }
        }
        Traffic::floats(up, down, samples)
    }

    /// Traffic of a training step: images, and every exchange forward and backward.
    pub fn step_traffic(&self, samples: usize) -> Traffic {
        self.all_exchanges()
            .flat_map(|exchange| [self.forward_traffic(exchange, samples), self.backward_traffic(exchange, samples)])
            .fold(self.image_traffic(samples), Traffic::plus)
    }

    /// Traffic of measuring `samples` images: images, and every exchange forward.
    pub fn measurement_traffic(&self, samples: usize) -> Traffic {
        let forward = self.all_exchanges().map(|exchange| self.forward_traffic(exchange, samples));
        forward.fold(self.image_traffic(samples), Traffic::plus)
    }

    /// Floats per image that leave `tower` over a socket, forward, without logits.
    pub fn floats_leaving(&self, tower: TowerIndex) -> usize {
        if self.workers == 1 {
            return 0;
        }
        let between_towers = self.all_exchanges().filter(|exchange| *exchange != self.logits_exchange());
        between_towers.map(|exchange| self.slice_floats(exchange, tower)).sum()
    }

    /// Why a layer starts a segment, or why it doesn't need to.
    pub fn reason(&self, layer: usize) -> &'static str {
        let described = &self.network.layers[layer];
        if layer == 0 {
            "every worker has the image"
        } else if self.needs_exchange(layer) {
            match described.kind_name() {
                "linear" => "each unit sees all channels",
                _ => "one group: each filter sees all channels",
            }
        } else if self.network.towers == 1 {
            "the only tower holds all channels"
        } else if described.groups() > 1 {
            "each group is within a tower"
        } else {
            "it stays within a tower's channels"
        }
    }

    /// Whether an exchange comes before `layer`.
    pub fn needs_exchange(&self, layer: usize) -> bool {
        self.segments.iter().skip(1).any(|segment| segment.layers.start == layer)
    }
}

/// The shape of `tower`'s part of the output of `layer`.
pub fn tower_output(network: &Network, layer: &Layer, tower: TowerIndex) -> Shape {
    layer.output.with_channels(network.slice(layer.output.channels, tower).len())
}

fn segments(network: &Network) -> PerSegment<Segment> {
    let several = network.towers > 1;
    let starts_one = |index: usize| index == 0 || (several && network.layers[index].sees_all_channels());
    let starts: Vec<usize> = (0..network.layers.len()).filter(|index| starts_one(*index)).collect();
    let ends = starts.iter().skip(1).copied().chain([network.layers.len()]);
    let ranges = starts.iter().copied().zip(ends).map(|(start, end)| start..end);
    ranges
        .map(|layers| Segment {
            input: network.layers[layers.start].input,
            output: network.layers[layers.end - 1].output,
            layers,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::presets;

    fn plan(model: &str, workers: usize) -> Plan {
        Plan::new(Network::parse(presets::text(model).unwrap()).unwrap(), workers).unwrap()
    }

    /// Krizhevsky's figures: conv3 and the three linear layers hear of the other tower, and nothing else does.
    #[test]
    fn alexnet_in_two_towers_exchanges_before_conv3_and_the_linear_layers() {
        let plan = plan("alexnet", 2);
        let firsts: Vec<_> = plan.segments.iter().map(|s| plan.network.layers[s.layers.start].name.as_str()).collect();
        assert_eq!(firsts, ["conv1", "conv3", "fc6", "fc7", "fc8"]);
        assert_eq!(plan.all_towers().map(|tower| plan.floats_leaving(tower)).collect::<Vec<_>>(), [30_336, 30_336]);
        let step = plan.step_traffic(128);
        let images = 227 * 227 * 3 * 128 * 2;
        let exchanged = 30_336 * 2 * 2 * 2 * 4 * 128;
        let logits = 1000 * 4 * 128 * 2;
        assert_eq!(step.total(), images + exchanged + logits);
    }

    #[test]
    fn one_worker_moves_images_and_logits_alone() {
        let plan = plan("alexnet-fashion", 1);
        assert_eq!(plan.step_traffic(10), Traffic { up: 10 * 10 * 4, down: 10 * 784 + 10 * 10 * 4 });
    }

    #[test]
    fn the_dense_twin_exchanges_before_every_convolution_but_the_first() {
        assert_eq!(plan("alexnet-fashion-dense", 2).segments.len(), 8);
        assert_eq!(plan("alexnet-fashion", 2).segments.len(), 5);
    }

    #[test]
    fn more_workers_than_towers_is_an_error_that_says_how_many() {
        let network = Network::parse(presets::text("alexnet").unwrap()).unwrap();
        let error = Plan::new(network.clone(), 3).unwrap_err().to_string();
        assert!(error.contains("--workers 3: must be at most 2, the number of towers of \"alexnet\""), "{error}");
        for second in [2, usize::MAX] {
            let placement = [0, second].map(WorkerIndex::from);
            assert!(Plan::placed(network.clone(), placement.into_iter().collect()).is_err());
        }
    }
}
