//! The plan: a network on a cluster. It says which layers form a segment, where exchanges are, which gradients are summed over replicas, and
//! how many bytes a step moves. Pure.
//!
//! Not here: who holds what (`placement`), and time. `estimate` predicts how long a step takes, and traces record it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Serialize;

use crate::batch::{MicroBatchId, Phase, part};
use crate::bundles::Bundle;
use crate::index::{ExchangeIndex, PerSegment, SegmentIndex, TowerIndex, WorkerIndex};
use crate::links::Links;
use crate::model::{Network, Shape};
use crate::placement::{Half, Placement, PlacementError};
use crate::slots::{Node, SlotTree};
use crate::wire::Direction;

/// A network, divided into segments and placed on workers.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The network.
    pub network: Network,
    /// The segments, first to last.
    pub segments: PerSegment<Segment>,
    /// The parameters of the trunk, in bundles whose gradients are summed together.
    pub bundles: Vec<Bundle>,
    /// Which worker holds what.
    pub placement: Placement,
    /// Number of workers.
    pub workers: usize,
    /// Which pairs of workers are connected directly. By default, none.
    pub links: Links,
}

/// The longest run of layers that a tower computes without the channels of another tower.
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
    /// Whether it belongs to the trunk or to the head.
    pub half: Half,
}

/// A piece of a tower's gradients of a bundle. Worker `owner` sums it over the replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The worker that sums it.
    pub owner: WorkerIndex,
    /// Its range of floats in a tower's gradients of the bundle, one parameter after the other, in the layout of panels.
    pub floats: Range<usize>,
}

/// Payload bytes over sockets. A byte counts once for each socket that it crosses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// From workers to the coordinator.
    pub up: u64,
    /// From the coordinator to workers.
    pub down: u64,
    /// From workers straight to other workers.
    pub across: u64,
}

/// How many workers receive something, by how they are reached.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    direct: usize,
    relayed: usize,
}

/// Floats that a worker sends to others.
struct Sent<'a> {
    from: WorkerIndex,
    to: &'a [WorkerIndex],
    floats: usize,
}

fn bytes(floats: usize) -> u64 {
    (floats * size_of::<f32>()) as u64
}

impl Traffic {
    /// All bytes.
    pub fn total(&self) -> u64 {
        self.up + self.down + self.across
    }

    /// Bytes to workers, from the coordinator and from other workers.
    pub fn to_workers(&self) -> u64 {
        self.down + self.across
    }

    /// The one with more bytes in all.
    pub fn max(self, other: Traffic) -> Traffic {
        if other.total() > self.total() { other } else { self }
    }

    fn plus(self, other: Traffic) -> Traffic {
        Traffic {
            up: self.up.saturating_add(other.up),
            down: self.down.saturating_add(other.down),
            across: self.across.saturating_add(other.across),
        }
    }

    fn floats(up: usize, down: usize) -> Traffic {
        Traffic { up: bytes(up), down: bytes(down), across: 0 }
    }

    /// The traffic of a tensor of `floats` floats that goes directly to each of the `direct` receivers, and through the coordinator
    /// to the `relayed` ones.
    fn sent(floats: usize, Reached { direct, relayed }: Reached) -> Traffic {
        let up = if relayed > 0 { floats } else { 0 };
        Traffic { up: bytes(up), down: bytes(floats * relayed), across: bytes(floats * direct) }
    }
}

impl Plan {
    /// Deals `network` to `workers` workers, for a job with `slots` slots. See [`Placement::dealt`].
    ///
    /// # Errors
    /// When a worker would have nothing to do.
    pub fn new(
        network: Network,
        workers: usize,
        slots: usize,
        replicas: Option<usize>,
    ) -> Result<Self, PlacementError> {
        let placement = Placement::dealt(&network, workers, slots, replicas)?;
        Self::placed(network, placement)
    }

    /// A plan with the given placement, which workers get from the coordinator.
    ///
    /// # Errors
    /// When the placement does not fit the network, or when a worker gets nothing.
    pub fn placed(network: Network, placement: Placement) -> Result<Self, PlacementError> {
        let workers = placement.check(&network)?;
        let (segments, bundles) = (segments(&network), Bundle::all(&network));
        Ok(Self { network, segments, bundles, placement, workers, links: Links::relayed() })
    }

    /// The same plan with these links between workers.
    #[must_use]
    pub fn linked(self, links: Links) -> Self {
        Self { links, ..self }
    }

    /// The workers with which `worker` exchanges tensors, in ascending order: those that compute the segment before or after one of its own
    /// for the same images, and those that sum gradients with it.
    pub fn partners(&self, worker: WorkerIndex) -> Vec<WorkerIndex> {
        let mut partners = BTreeSet::new();
        for slots in (0..self.placement.replicas()).map(|replica| self.placement.slots_of(replica)) {
            let id = MicroBatchId { step: 1, phase: Phase::Train, slot: slots.start as u32, micro_batch: 0 };
            for exchange in self.all_exchanges().filter(|exchange| *exchange != self.logits_exchange()) {
                let [before, after] =
                    [exchange.segment_before(), exchange.segment_after()].map(|segment| self.holders(segment, id));
                for (own, others) in [(&before, &after), (&after, &before)] {
                    if own.contains(&worker) {
                        partners.extend(others);
                    }
                }
            }
        }
        let sharers = self.all_towers().map(|tower| self.placement.sharers(Half::Trunk, tower));
        partners.extend(sharers.filter(|sharers| sharers.contains(&worker)).flatten());
        partners.remove(&worker);
        partners.into_iter().collect()
    }

    /// All workers, in order.
    pub fn all_workers(&self) -> impl DoubleEndedIterator<Item = WorkerIndex> + ExactSizeIterator + Clone + use<> {
        WorkerIndex::all(self.workers)
    }

    /// All towers, in order.
    pub fn all_towers(&self) -> impl DoubleEndedIterator<Item = TowerIndex> + ExactSizeIterator + Clone + use<> {
        TowerIndex::all(self.network.towers)
    }

    /// The parts of a segment, in order: towers in the trunk, slices in the head.
    pub fn parts(&self, segment: SegmentIndex) -> impl DoubleEndedIterator<Item = TowerIndex> + Clone + use<> {
        TowerIndex::all(match self.segments[segment].half {
            Half::Trunk => self.network.towers,
            Half::Head => self.network.slices,
        })
    }

    /// The parts that send something at an exchange. The coordinator sends the gradient of the logits, one for each part.
    pub fn senders(&self, exchange: ExchangeIndex, direction: Direction) -> impl Iterator<Item = TowerIndex> + use<> {
        self.parts(match direction {
            Direction::Backward if exchange != self.logits_exchange() => exchange.segment_after(),
            _ => exchange.segment_before(),
        })
    }

    /// All exchanges, in order.
    pub fn all_exchanges(&self) -> impl DoubleEndedIterator<Item = ExchangeIndex> + ExactSizeIterator + Clone + use<> {
        ExchangeIndex::all(self.segments.len())
    }

    /// The half that a layer belongs to.
    pub fn half_of(&self, layer: usize) -> Half {
        if self.network.is_in_head(layer) { Half::Head } else { Half::Trunk }
    }

    /// The worker that computes a segment of a tower for a micro-batch. In the head, a tower is a slice.
    pub fn holder(&self, segment: SegmentIndex, tower: TowerIndex, id: MicroBatchId) -> WorkerIndex {
        self.placement.holder(self.segments[segment].half, tower, id)
    }

    /// The workers that compute a segment for a micro-batch, each once, in ascending order.
    pub fn holders(&self, segment: SegmentIndex, id: MicroBatchId) -> Vec<WorkerIndex> {
        let mut holders: Vec<_> = self.placement.towers(self.segments[segment].half, id).iter().copied().collect();
        holders.sort();
        holders.dedup();
        holders
    }

    /// The workers to which a tower's output at an exchange goes: all that compute the next segment, except the one that computed
    /// the output.
    pub fn receivers(&self, exchange: ExchangeIndex, tower: TowerIndex, id: MicroBatchId) -> Vec<WorkerIndex> {
        let has_it = self.holder(exchange.segment_before(), tower, id);
        if exchange == self.logits_exchange() {
            return Vec::new();
        }
        self.holders(exchange.segment_after(), id).into_iter().filter(|worker| *worker != has_it).collect()
    }

    /// The towers of the trunk that `worker` holds, in ascending order.
    pub fn towers_of(&self, worker: WorkerIndex) -> Vec<TowerIndex> {
        self.held_in(Half::Trunk, worker)
    }

    /// The slices of the head that `worker` holds, in ascending order.
    pub fn slices_of(&self, worker: WorkerIndex) -> Vec<TowerIndex> {
        self.held_in(Half::Head, worker)
    }

    fn held_in(&self, half: Half, worker: WorkerIndex) -> Vec<TowerIndex> {
        let held = self.placement.held_by(worker).into_iter();
        held.filter(|(of, _)| *of == half).map(|(_, tower)| tower).collect()
    }

    /// The bundle of this name.
    pub fn bundle(&self, name: &str) -> Option<&Bundle> {
        self.bundles.iter().find(|bundle| bundle.name == name)
    }

    /// The range of each parameter in a tower's gradients of a bundle.
    pub fn ranges(&self, bundle: &Bundle, tower: TowerIndex) -> Vec<Range<usize>> {
        let floats = bundle.parameters.iter().map(|parameter| parameter.gradient_floats(&self.network, tower));
        let range = |end: &mut usize, floats| {
            let start = std::mem::replace(end, *end + floats);
            Some(start..*end)
        };
        floats.scan(0, range).collect()
    }

    /// The pieces into which the workers that share a tower cut its gradients of a bundle. None if one worker holds all.
    pub fn pieces(&self, bundle: &Bundle, tower: TowerIndex) -> Vec<Piece> {
        let sharers = self.placement.sharers(Half::Trunk, tower);
        if sharers.len() < 2 {
            return Vec::new();
        }
        let floats = bundle.parameters.iter().map(|parameter| parameter.gradient_floats(&self.network, tower)).sum();
        let count = sharers.len();
        let piece = |(index, owner)| Piece { owner, floats: part(floats, count, index) };
        sharers.into_iter().enumerate().map(piece).collect()
    }

    /// The nodes of the slot tree over which `worker` sums a tower's gradients, and whose sums it sends, in a step over `samples`
    /// samples.
    pub fn nodes(&self, worker: WorkerIndex, tower: TowerIndex, samples: usize) -> Vec<Node> {
        // Only the first slots have samples, and slots ascend.
        let slots = self.placement.slots_at(worker, tower).take_while(|slot| *slot < samples);
        SlotTree::new(self.placement.slots).nodes(slots)
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
        self.network.slice(self.segments[exchange.segment_before()].layers.end - 1, tower)
    }

    /// Floats per image that `tower` contributes to `exchange`, forward.
    pub fn slice_floats(&self, exchange: ExchangeIndex, tower: TowerIndex) -> usize {
        self.contribution(exchange, tower).len() * self.exchanged(exchange).pixels()
    }

    /// For each replica, a micro-batch that stands for all of its own, and its samples of a batch of `samples`.
    fn shares(&self, samples: usize) -> impl Iterator<Item = (MicroBatchId, usize)> {
        let all = self.placement.slots;
        (0..self.placement.replicas()).filter_map(move |replica| {
            let slots = self.placement.slots_of(replica);
            let held = part(samples, all, slots.start).start..part(samples, all, slots.end - 1).end;
            let id = MicroBatchId { step: 1, phase: Phase::Train, slot: slots.start as u32, micro_batch: 0 };
            (!held.is_empty()).then_some((id, held.len()))
        })
    }

    /// The towers of a segment that `worker` computes, each with the number of samples, of a batch of `samples`.
    pub fn work_of(&self, worker: WorkerIndex, segment: SegmentIndex, samples: usize) -> Vec<(TowerIndex, usize)> {
        let of = |(id, count)| {
            let held = self.parts(segment).filter(move |tower| self.holder(segment, *tower, id) == worker);
            held.map(move |tower| (tower, count))
        };
        self.shares(samples).flat_map(of).collect()
    }

    /// Traffic of sending images to the workers that compute the first segment.
    pub fn image_traffic(&self, samples: usize) -> Traffic {
        let image = self.network.input.shape.len();
        let down = self.shares(samples).map(|(id, count)| self.holders(SegmentIndex(0), id).len() * count * image);
        Traffic { down: down.sum::<usize>() as u64, ..Traffic::default() }
    }

    /// Calls `each` for what workers send each other at `exchange` forward, for `samples` images. Logits go to the coordinator alone.
    fn sent_forward(&self, exchange: ExchangeIndex, samples: usize, each: &mut impl FnMut(Sent)) {
        for (id, count) in self.shares(samples) {
            for tower in self.senders(exchange, Direction::Forward) {
                let from = self.holder(exchange.segment_before(), tower, id);
                let (to, floats) = (self.receivers(exchange, tower, id), self.slice_floats(exchange, tower) * count);
                each(Sent { from, to: &to, floats });
            }
        }
    }

    /// The same backward. The coordinator sends the gradients of logits.
    fn sent_backward(&self, exchange: ExchangeIndex, samples: usize, each: &mut impl FnMut(Sent)) {
        for (id, count) in self.shares(samples).filter(|_| exchange != self.logits_exchange()) {
            for tower in self.parts(exchange.segment_before()) {
                let (owner, floats) =
                    (self.holder(exchange.segment_before(), tower, id), self.slice_floats(exchange, tower) * count);
                let senders = self.senders(exchange, Direction::Backward);
                let senders = senders.map(|from| self.holder(exchange.segment_after(), from, id));
                senders.filter(|from| *from != owner).for_each(|from| each(Sent { from, to: &[owner], floats }));
            }
        }
    }

    /// Calls `each` for what workers send each other to sum the trunk's gradients over replicas, in a step over `samples` samples.
    fn sent_to_reduce(&self, samples: usize, each: &mut impl FnMut(Sent)) {
        for tower in self.all_towers() {
            let sharers = self.placement.sharers(Half::Trunk, tower);
            let nodes = sharers.iter().map(|worker| (*worker, self.nodes(*worker, tower, samples).len()));
            let nodes: Vec<_> = nodes.collect();
            for piece in self.bundles.iter().flat_map(|bundle| self.pieces(bundle, tower)) {
                let (owner, floats) = (piece.owner, piece.floats.len());
                for (from, nodes) in nodes.iter().filter(|(worker, _)| *worker != owner) {
                    each(Sent { from: *from, to: &[owner], floats: floats * nodes });
                }
                let others: Vec<_> = sharers.iter().copied().filter(|worker| *worker != owner).collect();
                each(Sent { from: owner, to: &others, floats });
            }
        }
    }

    /// Adds the traffic of what is sent to `traffic`.
    fn add(&self, traffic: &mut Traffic, Sent { from, to, floats }: Sent) {
        let direct = to.iter().filter(|to| self.links.is_direct(from, **to)).count();
        *traffic = traffic.plus(Traffic::sent(floats, Reached { direct, relayed: to.len() - direct }));
    }

    /// Traffic of `exchange` forward, for `samples` images.
    pub fn forward_traffic(&self, exchange: ExchangeIndex, samples: usize) -> Traffic {
        if exchange == self.logits_exchange() {
            return Traffic::floats(self.shared(samples) * self.network.classes(), 0);
        }
        let mut traffic = Traffic::default();
        self.sent_forward(exchange, samples, &mut |sent| self.add(&mut traffic, sent));
        traffic
    }

    /// Traffic of `exchange` backward, for `samples` images.
    pub fn backward_traffic(&self, exchange: ExchangeIndex, samples: usize) -> Traffic {
        if exchange == self.logits_exchange() {
            return Traffic::floats(0, self.shared(samples) * self.network.classes());
        }
        let mut traffic = Traffic::default();
        self.sent_backward(exchange, samples, &mut |sent| self.add(&mut traffic, sent));
        traffic
    }

    /// The samples that the replicas share.
    fn shared(&self, samples: usize) -> usize {
        self.shares(samples).map(|(_, count)| count).sum()
    }

    /// Traffic of summing the trunk's gradients over replicas, in a step over `samples` samples.
    pub fn reduction_traffic(&self, samples: usize) -> Traffic {
        let mut traffic = Traffic::default();
        self.sent_to_reduce(samples, &mut |sent| self.add(&mut traffic, sent));
        traffic
    }

    /// Payload bytes that each worker sends to each other one in a training step over `samples` samples, directly or through the
    /// coordinator. Pairs that send nothing are left out.
    pub fn pair_bytes(&self, samples: usize) -> BTreeMap<(WorkerIndex, WorkerIndex), u64> {
        let mut pairs = BTreeMap::new();
        let mut add = |Sent { from, to, floats }: Sent| {
            for to in to.iter().filter(|_| floats > 0) {
                *pairs.entry((from, *to)).or_default() += bytes(floats);
            }
        };
        for exchange in self.all_exchanges().filter(|exchange| *exchange != self.logits_exchange()) {
            self.sent_forward(exchange, samples, &mut add);
            self.sent_backward(exchange, samples, &mut add);
        }
        self.sent_to_reduce(samples, &mut add);
        pairs
    }

    /// Traffic of a training step: images, every exchange forward and backward, and the sums over replicas.
    pub fn step_traffic(&self, samples: usize) -> Traffic {
        self.all_exchanges()
            .flat_map(|exchange| [self.forward_traffic(exchange, samples), self.backward_traffic(exchange, samples)])
            .fold(self.image_traffic(samples).plus(self.reduction_traffic(samples)), Traffic::plus)
    }

    /// Traffic of measuring `samples` images: images, and every exchange forward.
    pub fn measurement_traffic(&self, samples: usize) -> Traffic {
        let forward = self.all_exchanges().map(|exchange| self.forward_traffic(exchange, samples));
        forward.fold(self.image_traffic(samples), Traffic::plus)
    }

    /// Floats per image that leave a tower, or a slice of the head, over a socket, forward, without logits. If replicas differ, those of the one
    /// with the most.
    pub fn floats_leaving(&self, half: Half, tower: TowerIndex) -> usize {
        let of_half = |exchange: &ExchangeIndex| self.segments[exchange.segment_before()].half == half;
        let of_replica = |(id, _)| -> usize {
            let leaves = |exchange: &ExchangeIndex| !self.receivers(*exchange, tower, id).is_empty();
            let leaving = self.all_exchanges().filter(|exchange| of_half(exchange) && leaves(exchange));
            leaving.map(|exchange| self.slice_floats(exchange, tower)).sum()
        };
        self.shares(self.placement.slots).map(of_replica).max().unwrap_or(0)
    }

    /// Why a layer starts a segment, or why it doesn't need to.
    pub fn reason(&self, layer: usize) -> &'static str {
        let described = &self.network.layers[layer];
        if layer == 0 {
            "every worker has the image"
        } else if self.needs_exchange(layer) {
            match described.kind_name() {
                "linear" if self.network.parts(layer) == 1 => "the head sees the whole batch",
                "linear" => "each unit sees all channels",
                _ => "one group: each filter sees all channels",
            }
        } else if self.network.parts(layer) == 1 {
            if self.network.is_in_head(layer) {
                "the only slice holds all channels"
            } else {
                "the only tower holds all channels"
            }
        } else if described.groups() > 1 {
            "each group is within a tower"
        } else {
            if self.network.is_in_head(layer) {
                "it stays within a slice's channels"
            } else {
                "it stays within a tower's channels"
            }
        }
    }

    /// Whether an exchange comes before `layer`.
    pub fn needs_exchange(&self, layer: usize) -> bool {
        self.segments.iter().skip(1).any(|segment| segment.layers.start == layer)
    }
}

fn segments(network: &Network) -> PerSegment<Segment> {
    let head = network.head();
    let starts_one = |index: usize| {
        index == 0 || index == head || (network.parts(index) > 1 && network.layers[index].sees_all_channels())
    };
    let starts: Vec<usize> = (0..network.layers.len()).filter(|index| starts_one(*index)).collect();
    let ends = starts.iter().skip(1).copied().chain([network.layers.len()]);
    let ranges = starts.iter().copied().zip(ends).map(|(start, end)| start..end);
    ranges
        .map(|layers| Segment {
            input: network.layers[layers.start].input,
            output: network.layers[layers.end - 1].output,
            half: if layers.start >= head { Half::Head } else { Half::Trunk },
            layers,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::presets;

    fn plan(model: &str, workers: usize) -> Plan {
        Plan::new(Network::parse(presets::text(model).unwrap()).unwrap(), workers, 1, None).unwrap()
    }

    /// Krizhevsky's figures: conv3 and the three linear layers hear of the other tower, and nothing else does.
    #[test]
    fn alexnet_in_two_towers_exchanges_before_conv3_and_the_linear_layers() {
        let plan = plan("alexnet", 2);
        let firsts: Vec<_> = plan.segments.iter().map(|s| plan.network.layers[s.layers.start].name.as_str()).collect();
        assert_eq!(firsts, ["conv1", "conv3", "fc6", "fc7", "fc8"]);
        let leaving = |tower| plan.floats_leaving(Half::Trunk, tower) + plan.floats_leaving(Half::Head, tower);
        assert_eq!(plan.all_towers().map(leaving).collect::<Vec<_>>(), [30_336, 30_336]);
        let step = plan.step_traffic(128);
        let images = 227 * 227 * 3 * 128 * 2;
        let exchanged = 30_336 * 2 * 2 * 2 * 4 * 128;
        let logits = 1000 * 4 * 128 * 2;
        assert_eq!(step.total(), images + exchanged + logits);
    }

    #[test]
    fn one_worker_moves_images_and_logits_alone() {
        let plan = plan("alexnet-fashion", 1);
        let expected = Traffic { up: 10 * 10 * 4, down: 10 * 784 + 10 * 10 * 4, across: 0 };
        assert_eq!(plan.step_traffic(10), expected);
    }

    #[test]
    fn the_dense_twin_exchanges_before_every_convolution_but_the_first() {
        assert_eq!(plan("alexnet-fashion-dense", 2).segments.len(), 8);
        assert_eq!(plan("alexnet-fashion", 2).segments.len(), 5);
    }

    /// AlexNet's trunk has 2.3 million weights and biases. Each of two replicas sends half of a tower's gradients, and gets the sums of
    /// the other half.
    #[test]
    fn two_replicas_exchange_the_gradients_of_the_trunk_alone() {
        let network = Network::parse(presets::text("alexnet").unwrap()).unwrap();
        let plan = Plan::new(network, 4, 2, None).unwrap();
        let parameters = || plan.bundles.iter().flat_map(|bundle| &bundle.parameters);
        let floats: usize =
            parameters().map(|p| plan.all_towers().map(|t| p.gradient_floats(&plan.network, t)).sum::<usize>()).sum();
        let exact: usize = parameters().map(|parameter| parameter.len()).sum();
        assert_eq!((exact, floats), (2_334_080, 2_334_080), "all panels of AlexNet are full");
        // Of each float, one partial sum and one whole sum cross the coordinator.
        let bytes = 2 * floats as u64 * 4;
        assert_eq!(plan.reduction_traffic(128), Traffic { up: bytes, down: bytes, across: 0 });
        // One image leaves the second replica without samples.
        assert_eq!(plan.reduction_traffic(1), Traffic { up: bytes / 4 * 3, down: bytes / 4 * 3, across: 0 });
        let direct = plan.linked(Links::direct());
        assert_eq!(direct.reduction_traffic(128), Traffic { across: bytes, ..Traffic::default() });
    }

    /// Directly, a byte crosses one socket instead of two, and only images and logits cross the coordinator's.
    #[test]
    fn direct_links_carry_every_byte_once() {
        for (workers, slots) in [(2, 1), (4, 2), (3, 2), (8, 4)] {
            let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
            let relayed = Plan::new(network, workers, slots, None).unwrap();
            let direct = relayed.clone().linked(Links::direct());
            let one = direct.clone().linked(Links::direct().without(WorkerIndex(0), WorkerIndex(1)));
            let images = relayed.image_traffic(64).down;
            let pairs = direct.pair_bytes(64);
            assert_eq!(pairs.values().sum::<u64>(), direct.step_traffic(64).across, "pairs of {workers} workers");
            assert_eq!(pairs, one.pair_bytes(64), "the same bytes, whichever way they go");
            let [relayed, direct, one] = [relayed, direct, one].map(|plan| plan.step_traffic(64));
            let logits = 64 * 10 * 4;
            assert_eq!((direct.up, direct.down), (logits, images + logits), "{workers} workers");
            assert_eq!(direct.to_workers(), relayed.down);
            assert_eq!(one.to_workers(), relayed.down);
            assert!(direct.total() < one.total() && one.total() <= relayed.total());
        }
    }

    #[test]
    fn partners_are_those_that_exchange_anything() {
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        let partners = |workers, slots, worker| {
            let plan = Plan::new(network.clone(), workers, slots, None).unwrap();
            plan.partners(WorkerIndex(worker)).into_iter().map(|partner| partner.0).collect::<Vec<_>>()
        };
        assert_eq!(partners(1, 1, 0), [0_usize; 0]);
        assert_eq!(partners(2, 1, 0), [1]);
        // Workers 0 and 1 hold the first replica and the head, workers 2 and 3 the second replica.
        assert_eq!(partners(4, 2, 2), [0, 1, 3]);
        assert_eq!(partners(8, 4, 2), [0, 1, 3, 4, 6]);
    }

    /// A head of three slices beside one tower: the trunk is one segment, and each linear layer begins another one.
    #[test]
    fn the_head_may_be_divided_otherwise_than_the_trunk() {
        let text = presets::text("alexnet-fashion").unwrap().replace("towers = 2", "towers = 1\nhead = 3");
        let plan = Plan::new(Network::parse(&text).unwrap(), 2, 2, None).unwrap().linked(Links::direct());
        let parts: Vec<usize> = plan.segments.keys().map(|segment| plan.parts(segment).count()).collect();
        assert_eq!(parts, [1, 3, 3, 3]);
        assert_eq!(plan.placement.replicas(), 2);
        let held: Vec<usize> = plan.all_workers().map(|worker| plan.slices_of(worker).len()).collect();
        assert_eq!(held, [2, 1]);
        // Each image's features go to the worker of the other slices, and as many partial gradients as that has slices come back.
        let (before_head, features) = (ExchangeIndex(0), 64 * 3 * 3 * 4);
        assert_eq!(plan.forward_traffic(before_head, 2).across, 2 * features);
        assert_eq!(plan.backward_traffic(before_head, 2).across, (1 + 2) * features);
        assert_eq!(plan.contribution(ExchangeIndex(1), TowerIndex(2)), 171..256);
    }

    /// Whatever the number of replicas, an image crosses the same exchanges; only the exchanges of the head have more receivers.
    #[test]
    fn replicas_share_out_the_images() {
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        let [one, two] = [2, 4].map(|workers| Plan::new(network.clone(), workers, 2, None).unwrap());
        assert_eq!(one.image_traffic(10), two.image_traffic(10));
        let in_trunk = ExchangeIndex(0);
        assert_eq!(one.forward_traffic(in_trunk, 10), two.forward_traffic(in_trunk, 10));
        assert_eq!(one.backward_traffic(in_trunk, 10), two.backward_traffic(in_trunk, 10));
    }
}
