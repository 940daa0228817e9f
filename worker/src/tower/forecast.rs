//! Predicts the memory of a worker during training: weights with momentum and gradients, and the tensors of a step. It goes
//! through the allocations of a step in order, with lengths instead of memory.
//!
//! It mirrors `layer.rs`, which makes the real allocations. Not here: the memory of the coordinator (`state`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::Rc;

use convoy_common::batch::{Division, EVALUATIONS_UNDER_WAY, MicroBatch, MicroBatchId, Phase};
use convoy_common::index::{PerSegment, SegmentIndex, TowerIndex, WorkerIndex};
use convoy_common::model::LayerKind;
use convoy_common::placement::Half;
use convoy_common::plan::Plan;

use super::layer::{Shapes, is_rectified, passes, rectifies};
use convoy_kernels::affine::Affine;
use convoy_kernels::memory::best_fit;

/// The program with its threads, connections and span buffers, as measured in a job with eight small images per step.
const PROGRAM_BYTES: u64 = 52_000_000;
/// A worker holds this part more than it asks for: 7 to 9 %, as measured with `alexnet` and `alexnet-fashion`, batches of 32 to 256, on one
/// and two workers.
const ALLOWANCE: u64 = 12;
/// Steps to go through. The second one reuses memory.
const STEPS: usize = 2;

/// Bytes of a worker for tensors that it receives or sends, in a job with `batch` images per step: the mean of all workers. They use memory
/// outside the shelf, which the allocator keeps.
pub fn exchanged_bytes(plan: &Plan, batch: usize, division: Division) -> u64 {
    let measured = EVALUATIONS_UNDER_WAY * division.largest_micro_batch(batch);
    let exchanged = plan.step_traffic(batch).max(plan.measurement_traffic(measured));
    exchanged.total() / plan.workers as u64
}

/// Bytes that `worker` will hold in a job with `batch` images per step, measurements on test images included, without
/// [`exchanged_bytes`]. A snapshot needs [`snapshot_bytes`] more.
pub fn worker_bytes(plan: &Plan, worker: WorkerIndex, batch: usize, division: Division) -> u64 {
    let (in_trunk, in_head) = (weights_in(plan, Half::Trunk, worker), weights_in(plan, Half::Head, worker));
    let largest = division.largest_micro_batch(batch);
    let measured: Vec<MicroBatch> = (0..EVALUATIONS_UNDER_WAY).map(|index| measured(index, largest)).collect();
    let (floats, indices) = (Rc::new(Shelf::default()), Rc::new(Shelf::default()));
    let passes = |micro_batches| {
        let waiting = RefCell::default();
        Passes { plan, worker, micro_batches, floats: &floats, indices: &indices, waiting }
    };
    for _ in 0..STEPS {
        passes(division.of(1, batch)).step();
    }
    passes(measured).measurement();
    // Values, momentum and gradient; in the trunk, with several slots, also sums of completed slots, as many as the tree needs.
    let sums = division.slots.ilog2() as usize;
    let held = 3 * (in_trunk + in_head) + sums * in_trunk + floats.all() + indices.all();
    let bytes = (held * size_of::<f32>()) as u64 + masked_in(plan, worker) as u64;
    PROGRAM_BYTES + bytes + bytes / ALLOWANCE
}

/// Bytes that `worker` holds in addition while it sends a snapshot: a copy of its weights and their momentum.
pub fn snapshot_bytes(plan: &Plan, worker: WorkerIndex) -> u64 {
    let learnt = weights_in(plan, Half::Trunk, worker) + weights_in(plan, Half::Head, worker);
    (2 * learnt * size_of::<f32>()) as u64
}

/// The least memory that `worker` needs, in bytes: its weights, with momentum and gradient if it `trains`, and the operands of
/// its widest layer for `samples` samples.
pub(crate) fn least_bytes(plan: &Plan, worker: WorkerIndex, samples: usize, trains: bool) -> u64 {
    let learnt = weights_in(plan, Half::Trunk, worker) + weights_in(plan, Half::Head, worker);
    let held = plan.placement.held_by(worker);
    let layers = || {
        let of = |index| held.iter().filter(move |(half, _)| *half == plan.half_of(index));
        (0..plan.network.layers.len()).flat_map(move |index| of(index).map(move |(_, tower)| (index, *tower)))
    };
    let of_layer = |(index, tower)| {
        let Shapes { input, output, .. } = Shapes::of(plan, index, tower);
        let blocks = passes(plan, index, tower).map_or(0, |passes| {
            let backward = if trains { passes.gradient_floats(samples) } else { 0 };
            passes.input_floats(samples).saturating_add(backward)
        });
        (input.len() + output.len()).saturating_mul(samples).saturating_add(blocks)
    };
    let widest = layers().map(of_layer).max().unwrap_or(0);
    let floats = learnt.saturating_mul(if trains { 3 } else { 1 }).saturating_add(widest);
    (floats as u64).saturating_mul(size_of::<f32>() as u64)
}

/// Weights of a worker in layers with a mask: its mask has a byte for each.
fn masked_in(plan: &Plan, worker: WorkerIndex) -> usize {
    let of = |half, tower| {
        let layers = 0..plan.network.layers.len();
        let masked =
            layers.filter(move |layer| plan.half_of(*layer) == half && plan.network.layers[*layer].mask().is_some());
        masked.filter_map(move |layer| passes(plan, layer, tower)).map(|passes| passes.groups() * passes.panels().len())
    };
    plan.placement.held_by(worker).into_iter().flat_map(|(half, tower)| of(half, tower)).sum()
}

/// Floats of the weights of a worker's towers, or of its slices of the head.
fn weights_in(plan: &Plan, half: Half, worker: WorkerIndex) -> usize {
    let towers = plan.placement.held_by(worker).into_iter().filter(|(of, _)| *of == half);
    let layers = || (0..plan.network.layers.len()).filter(|layer| plan.half_of(*layer) == half);
    let each = towers.flat_map(|(_, tower)| layers().filter_map(move |index| passes(plan, index, tower)));
    each.map(|passes| passes.groups() * passes.panels().len()).sum()
}

/// A micro-batch of a measurement.
fn measured(index: usize, samples: usize) -> MicroBatch {
    let id = MicroBatchId { step: 1, phase: Phase::Evaluate, slot: 0, micro_batch: index as u32 };
    MicroBatch { id, samples: index * samples..(index + 1) * samples }
}

/// The lengths of buffers in use and of idle buffers.
#[derive(Debug, Default)]
struct Shelf(RefCell<Lengths>);

#[derive(Debug, Default)]
struct Lengths {
    /// How many idle buffers there are of each length. With many slots, there are thousands of them, of few lengths.
    idle: BTreeMap<usize, usize>,
    all: usize,
}

impl Lengths {
    fn remove(&mut self, length: usize) {
        if let Entry::Occupied(mut idle) = self.idle.entry(length) {
            *idle.get_mut() -= 1;
            if *idle.get() == 0 {
                idle.remove();
            }
        }
    }
}

impl Shelf {
    fn take(self: &Rc<Self>, length: usize) -> Rc<Held> {
        let mut lengths = self.0.borrow_mut();
        let found = best_fit(lengths.idle.keys().copied(), length);
        let found = found.and_then(|index| lengths.idle.keys().nth(index).copied());
        match found {
            Some(found) => lengths.remove(found),
            None => lengths.all += length,
        }
        Rc::new(Held { length: found.unwrap_or(length), shelf: self.clone() })
    }

    fn all(&self) -> usize {
        self.0.borrow().all
    }
}

/// A buffer in use.
#[derive(Debug)]
struct Held {
    length: usize,
    shelf: Rc<Shelf>,
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.shelf.0.borrow_mut().idle.entry(self.length).or_default() += 1;
    }
}

/// What a layer's forward pass saves for its backward pass. For a product, its input in blocks comes first, because it is
/// needed longest.
type SavedBuffers = Vec<Rc<Held>>;

/// A worker's towers, and the micro-batches that pass through them.
struct Passes<'a> {
    plan: &'a Plan,
    worker: WorkerIndex,
    /// All micro-batches. The worker may compute some of them only.
    micro_batches: Vec<MicroBatch>,
    floats: &'a Rc<Shelf>,
    indices: &'a Rc<Shelf>,
    /// Operands of weight gradients that wait for the whole batch.
    waiting: RefCell<Vec<Rc<Held>>>,
}

impl Passes<'_> {
    /// A training step. All micro-batches pass through a segment before any passes through the next one.
    fn step(&self) {
        let mut half = Half::Head;
        for (segment, of_segment) in self.forward_all(true).into_iter_enumerated().rev() {
            // The head's operands may be joined as soon as its last backward pass has ended, or only at the end of the step.
            if std::mem::replace(&mut half, self.plan.segments[segment].half) != half {
                self.join_operands();
            }
            for (micro_batch, of_towers) in self.micro_batches.iter().zip(of_segment) {
                for (tower, kept) in self.held(segment, micro_batch).zip(of_towers) {
                    let _sent = self.backward(segment, tower, micro_batch, kept);
                }
            }
        }
        self.join_operands();
        self.waiting.take();
    }

    /// The operands of several micro-batches are joined, layer by layer, before they are multiplied.
    fn join_operands(&self) {
        if self.micro_batches.len() < 2 {
            return;
        }
        let all = self.micro_batches.iter().map(|micro_batch| micro_batch.samples.len()).sum();
        let in_head = self.plan.network.head()..self.plan.network.layers.len();
        let slices = self.plan.slices_of(self.worker);
        for passes in in_head.flat_map(|index| slices.iter().filter_map(move |slice| passes(self.plan, index, *slice)))
        {
            let _joined =
                [passes.input_floats(all), passes.gradient_floats(all)].map(|length| self.floats.take(length));
        }
    }

    /// A measurement: forward passes that save nothing.
    fn measurement(&self) {
        self.forward_all(false);
    }

    /// The towers of a segment that the worker computes for a micro-batch.
    fn held(&self, segment: SegmentIndex, micro_batch: &MicroBatch) -> impl Iterator<Item = TowerIndex> {
        let (plan, worker, id) = (self.plan, self.worker, micro_batch.id);
        plan.parts(segment).filter(move |tower| plan.holder(segment, *tower, id) == worker)
    }

    /// What the forward passes save, by segment, micro-batch, tower and layer.
    fn forward_all(&self, trains: bool) -> PerSegment<Vec<Vec<Vec<SavedBuffers>>>> {
        let first = |micro_batch| self.whole(SegmentIndex(0), micro_batch);
        let mut wholes: Vec<_> = self.micro_batches.iter().map(first).collect();
        let mut kept = PerSegment::new();
        for segment in self.plan.segments.keys() {
            let (mut of_segment, mut next) = (Vec::new(), Vec::new());
            for (micro_batch, whole) in self.micro_batches.iter().zip(wholes) {
                let behind = self.whole(SegmentIndex(segment.0 + 1), micro_batch);
                let samples = micro_batch.samples.len();
                let forward = |tower| Some(self.forward(segment, tower, samples, whole.clone()?, trains));
                of_segment.push(self.held(segment, micro_batch).filter_map(forward).collect());
                next.push(behind);
            }
            kept.push(of_segment);
            wholes = next;
        }
        kept
    }

    /// The whole input of a segment for a micro-batch, if the worker computes any of it.
    fn whole(&self, segment: SegmentIndex, micro_batch: &MicroBatch) -> Option<Rc<Held>> {
        let described = self.plan.segments.get(segment)?;
        self.held(segment, micro_batch).next()?;
        Some(self.floats.take(micro_batch.samples.len() * described.input.len()))
    }

    fn forward(
        &self,
        segment: SegmentIndex,
        tower: TowerIndex,
        samples: usize,
        whole: Rc<Held>,
        trains: bool,
    ) -> Vec<SavedBuffers> {
        let mut x = whole;
        let mut kept = Vec::new();
        for index in self.plan.segments[segment].layers.clone() {
            let (y, keep) = self.layer_forward(index, tower, samples, x);
            x = y;
            if trains {
                kept.push(keep);
            }
        }
        kept
    }

    fn layer_forward(&self, index: usize, tower: TowerIndex, samples: usize, x: Rc<Held>) -> (Rc<Held>, SavedBuffers) {
        let output = Shapes::of(self.plan, index, tower).output.len() * samples;
        let take = |length| self.floats.take(length);
        let in_place = |x: Rc<Held>| if Rc::strong_count(&x) == 1 { x } else { take(output) };
        match &self.plan.network.layers[index].kind {
            LayerKind::Conv(_) | LayerKind::Linear(_) => {
                let blocks = passes(self.plan, index, tower).map(|passes| take(passes.input_floats(samples)));
                drop(x);
                let y = take(output);
                let rectified = rectifies(self.plan, index).then(|| y.clone());
                (y, blocks.into_iter().chain(rectified).collect())
            }
            LayerKind::Relu if is_rectified(self.plan, index) => (x, Vec::new()),
            LayerKind::Relu => {
                let y = in_place(x);
                (y.clone(), vec![y])
            }
            LayerKind::Lrn(_) => {
                let y = take(output);
                (y.clone(), vec![x, y, take(output)])
            }
            LayerKind::MaxPool(_) => (take(output), vec![self.indices.take(output)]),
            LayerKind::AvgPool(_) => (take(output), Vec::new()),
            LayerKind::Dropout { .. } => (in_place(x), Vec::new()),
        }
    }

    /// A backward pass. Returns the gradients that it sends to other workers.
    fn backward(
        &self,
        segment: SegmentIndex,
        tower: TowerIndex,
        micro_batch: &MicroBatch,
        kept: Vec<SavedBuffers>,
    ) -> Vec<Rc<Held>> {
        let samples = micro_batch.samples.len();
        let layers = self.plan.segments[segment].layers.clone();
        let output = Shapes::of(self.plan, layers.end - 1, tower).output.len();
        let mut dy = self.floats.take(samples * output);
        for (index, kept) in layers.zip(kept).rev() {
            dy = self.layer_backward(index, tower, samples, dy, kept);
        }
        let Some(exchange) = segment.exchange_before() else { return Vec::new() };
        let holder = |other| self.plan.holder(exchange.segment_before(), other, micro_batch.id);
        let others = self.plan.parts(exchange.segment_before()).filter(|other| holder(*other) != self.worker);
        others.map(|other| self.floats.take(samples * self.plan.slice_floats(exchange, other))).collect()
    }

    fn layer_backward(
        &self,
        index: usize,
        tower: TowerIndex,
        samples: usize,
        dy: Rc<Held>,
        mut kept: SavedBuffers,
    ) -> Rc<Held> {
        let input = Shapes::of(self.plan, index, tower).input.len() * samples;
        let take = |length| self.floats.take(length);
        match &self.plan.network.layers[index].kind {
            LayerKind::Conv(_) | LayerKind::Linear(_) => {
                let passes = passes(self.plan, index, tower);
                let blocks = passes.map(|passes| take(passes.gradient_floats(samples)));
                // With a fused ReLU, the saved output was needed only for these blocks.
                kept.truncate(1);
                if self.plan.network.is_in_head(index) {
                    self.waiting.borrow_mut().extend(kept.iter().cloned().chain(blocks.iter().cloned()));
                }
                if index == 0 {
                    return dy;
                }
                let is_linear = matches!(passes, Some(Affine::Linear(_)));
                let _natural = is_linear.then_some(dy);
                let _by_unit = is_linear.then(|| take(input));
                take(input)
            }
            LayerKind::Relu | LayerKind::Dropout { .. } => dy,
            LayerKind::Lrn(_) | LayerKind::MaxPool(_) | LayerKind::AvgPool(_) => take(input),
        }
    }
}
