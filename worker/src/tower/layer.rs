//! One layer of one tower: its weights, the tensors that it saves for the backward pass, and its kernels.

use std::sync::Arc;

use convoy_common::batch::{MicroBatch, Phase};
use convoy_common::index::TowerIndex;
use convoy_common::model::{Conv, LayerKind, Linear, Pool, Shape};
use convoy_common::plan::Plan;
use convoy_common::slots::SlotTree;
use convoy_common::wire::State;

use super::learnt::{Learnt, Summed};
use convoy_kernels::affine::{Affine, Operands};
use convoy_kernels::elementwise::{self, Dropout, Rates};
use convoy_kernels::memory::Tensor;
use convoy_kernels::{Compute, Maps, conv, linear, lrn, pool};

/// The context of a pass.
pub(super) struct Context<'a> {
    pub(super) compute: &'a Compute,
    pub(super) dropout_seed: u64,
    pub(super) micro_batch: &'a MicroBatch,
}

impl Context<'_> {
    fn samples(&self) -> usize {
        self.micro_batch.samples.len()
    }
}

/// What a layer's forward pass saves for its backward pass.
#[derive(Debug)]
pub(super) enum Saved {
    /// A product's input in blocks, and its output if ReLU is fused.
    Operands { x: Tensor, rectified: Option<Arc<Tensor>> },
    /// The output.
    Output(Arc<Tensor>),
    /// Input, output and sums of an LRN layer.
    Norm { x: Arc<Tensor>, y: Arc<Tensor>, s: Tensor },
    /// The position of each maximum.
    Places(Tensor<u32>),
    /// The units that dropout kept, and their scale.
    Mask { kept: Vec<bool>, scale: f32 },
    /// Nothing.
    Nothing,
}

/// A layer as one tower computes it.
#[derive(Debug)]
pub(super) struct TowerLayer {
    name: String,
    /// Shape of the input per sample: all channels after an exchange, the tower's own channels elsewhere.
    pub(super) input: Shape,
    /// Shape of the tower's own output per sample.
    pub(super) output: Shape,
    /// For a grouped first layer, the image channels that its groups read.
    picks: Option<Picks>,
    pub(super) work: Work,
}

/// A range of channels of a whole input.
#[derive(Clone, Copy, Debug)]
struct Picks {
    first: usize,
    of: usize,
}

/// What a layer computes.
#[derive(Debug)]
pub(super) enum Work {
    /// A convolution or a linear layer.
    Affine {
        passes: Affine,
        learnt: Box<Learnt>,
        /// Whether the following ReLU is fused.
        rectifies: bool,
    },
    Relu {
        /// Whether it is fused into the previous layer.
        is_done: bool,
    },
    Lrn(lrn::Geometry),
    MaxPool(Pool),
    AvgPool(Pool),
    Dropout {
        p: f64,
        whole_units: usize,
        first_channel: usize,
    },
}

impl TowerLayer {
    /// Layer `index` of a tower, in a job with this seed.
    pub(super) fn new(plan: &Plan, index: usize, tower: TowerIndex, tree: SlotTree, train: bool, seed: u64) -> Self {
        let layer = &plan.network.layers[index];
        let Shapes { input, output, picks } = Shapes::of(plan, index, tower);
        let work = match &layer.kind {
            LayerKind::Conv(Conv { bias, .. }) | LayerKind::Linear(Linear { bias, .. }) => {
                let passes = passes(plan, index, tower).expect("a layer of weights has passes");
                let summed = if plan.network.is_in_head(index) { Summed::AtOnce } else { Summed::BySlot(tree) };
                let weight = plan.network.parameters_of(index).into_iter().next().filter(|_| train);
                let kept = weight.and_then(|weight| weight.kept(seed, plan.network.slice(index, tower)));
                let learning = layer.learning().expect("a layer of weights learns or is frozen");
                let learnt = Learnt::new(&passes, bias.then_some(output.channels), kept, (summed, learning), train);
                Work::Affine { passes, learnt: Box::new(learnt), rectifies: rectifies(plan, index) }
            }
            LayerKind::Relu => Work::Relu { is_done: is_rectified(plan, index) },
            LayerKind::Lrn(described) => Work::Lrn(lrn::Geometry::new(described, output.channels)),
            LayerKind::MaxPool(described) => Work::MaxPool(*described),
            LayerKind::AvgPool(described) => Work::AvgPool(*described),
            LayerKind::Dropout { p } => {
                let first_channel = plan.network.slice(index, tower).start;
                Work::Dropout { p: *p, whole_units: layer.output.len(), first_channel }
            }
        };
        Self { name: layer.name.clone(), input, output, picks, work }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn load(&mut self, bias: bool, state: State, values: Vec<f32>) {
        let Work::Affine { learnt, .. } = &mut self.work else { return };
        learnt.load(bias, state, values);
    }

    pub(super) fn read(&self, bias: bool, state: State) -> Vec<f32> {
        let Work::Affine { learnt, .. } = &self.work else { return Vec::new() };
        learnt.read(bias, state)
    }

    /// Returns the layer's output, and what its backward pass needs. An error names what is not finite.
    pub(super) fn forward(&mut self, context: &Context, x: Arc<Tensor>) -> Result<(Arc<Tensor>, Saved), &'static str> {
        let (compute, samples) = (context.compute, context.samples());
        let x = match self.picks {
            Some(picks) => Arc::new(Tensor::from(pick(&x, picks, self.input.channels))),
            None => x,
        };
        let pool = pool_geometry(self.input, self.output, samples);
        let trains = context.micro_batch.id.phase == Phase::Train;
        match &mut self.work {
            Work::Affine { passes, learnt, rectifies } => {
                let blocks = passes.input(compute, &x, samples);
                drop(x);
                let end = learnt.end(*rectifies);
                let (y, is_finite) = passes.forward(compute, learnt.weights(), end, &blocks, samples);
                let y = Arc::new(y);
                let kept = Saved::Operands { x: blocks, rectified: rectifies.then(|| y.clone()) };
                is_finite.then_some((y, kept)).ok_or("outputs")
            }
            Work::Relu { is_done: true } => Ok((x, Saved::Nothing)),
            Work::Relu { is_done: false } => {
                let mut y = Arc::unwrap_or_clone(x);
                elementwise::relu(compute, &mut y);
                let y = Arc::new(y);
                Ok((y.clone(), Saved::Output(y)))
            }
            Work::Lrn(geometry) => {
                let (y, s) = lrn::forward(compute, geometry, &x, samples);
                let y = Arc::new(y);
                Ok((y.clone(), Saved::Norm { x, y, s }))
            }
            Work::MaxPool(sides) => {
                let (y, places) = pool::max_forward(compute, &pool(*sides), &x);
                Ok((Arc::new(y), Saved::Places(places)))
            }
            Work::AvgPool(sides) => Ok((Arc::new(pool::avg_forward(compute, &pool(*sides), &x)), Saved::Nothing)),
            Work::Dropout { .. } if !trains => Ok((x, Saved::Nothing)),
            Work::Dropout { p, whole_units, first_channel } => {
                let step = context.micro_batch.id.step;
                let dropout = Dropout::new(context.dropout_seed, &self.name, step, *p, *whole_units);
                let mask = mask(&dropout, context.micro_batch, self.output, *first_channel);
                let mut y = Arc::unwrap_or_clone(x);
                elementwise::drop_out(&mut y, &mask, dropout.scale);
                Ok((Arc::new(y), Saved::Mask { kept: mask, scale: dropout.scale }))
            }
        }
    }

    /// Returns the gradient of the layer's input if `wants_input`, and accumulates the gradients of weights.
    pub(super) fn backward(
        &mut self,
        context: &Context,
        mut dy: Tensor,
        kept: Saved,
        wants_input: bool,
    ) -> Result<Option<Tensor>, &'static str> {
        let (compute, samples) = (context.compute, context.samples());
        let pool = pool_geometry(self.input, self.output, samples);
        let (dx, is_finite) = match (&mut self.work, kept) {
            (Work::Affine { passes, learnt, .. }, Saved::Operands { x, rectified }) => {
                let y = rectified.as_ref().map(|y| &y[..]);
                let dy = passes.gradient(compute, dy, y, samples);
                drop(rectified);
                let dx = wants_input.then(|| passes.input_gradient(compute, learnt.weights(), &dy, samples));
                let operands = Operands { x, dy: dy.in_blocks(), samples };
                learnt.differentiate(compute, passes, context.micro_batch, operands)?;
                let Some(dx) = dx else { return Ok(None) };
                dx
            }
            (Work::Relu { is_done: true }, Saved::Nothing) => (dy, true),
            (Work::Relu { is_done: false }, Saved::Output(y)) => {
                elementwise::relu_backward(compute, &y, &mut dy);
                (dy, true)
            }
            (Work::Lrn(geometry), Saved::Norm { x, y, s }) => {
                let dx = lrn::backward(compute, geometry, lrn::ForwardResult { x: &x, y: &y, s: &s }, &dy, samples);
                let is_finite = elementwise::all_finite(compute.isa, &dx);
                (dx, is_finite)
            }
            (Work::MaxPool(sides), Saved::Places(places)) => {
                (pool::max_backward(compute, &pool(*sides), &dy, &places), true)
            }
            (Work::AvgPool(sides), Saved::Nothing) => (pool::avg_backward(compute, &pool(*sides), &dy), true),
            (Work::Dropout { .. }, Saved::Mask { kept, scale }) => {
                elementwise::drop_out(&mut dy, &kept, scale);
                (dy, true)
            }
            (_, kept) => unreachable!("layer \"{}\" kept {kept:?} for its backward pass", self.name),
        };
        is_finite.then_some(Some(dx)).ok_or("input gradients")
    }

    /// Forms the gradients of weights that waited for the whole batch. An error names what is not finite.
    pub(super) fn form_gradients(&mut self, compute: &Compute) -> Result<(), &'static str> {
        match &mut self.work {
            Work::Affine { passes, learnt, .. } => learnt.form(compute, passes),
            _ => Ok(()),
        }
    }

    /// The weights and biases of a layer that has them.
    pub(super) fn learnt(&mut self) -> Option<&mut Learnt> {
        match &mut self.work {
            Work::Affine { learnt, .. } => Some(learnt),
            _ => None,
        }
    }

    /// Applies the step's gradients.
    pub(super) fn commit(&mut self, compute: &Compute, rates: Rates) {
        if let Some(learnt) = self.learnt() {
            learnt.commit(compute, rates);
        }
    }
}

/// The shapes of a layer, as one tower sees them.
pub(super) struct Shapes {
    /// The input that it reads, per sample.
    pub(super) input: Shape,
    /// Its own output, per sample.
    pub(super) output: Shape,
    picks: Option<Picks>,
}

impl Shapes {
    pub(super) fn of(plan: &Plan, index: usize, tower: TowerIndex) -> Self {
        let network = &plan.network;
        let layer = &network.layers[index];
        let own = network.input_slice(index, tower);
        let is_first = index == 0;
        let sees_whole = (is_first && layer.groups() == 1) || plan.needs_exchange(index);
        let input = if sees_whole { layer.input } else { layer.input.with_channels(own.len()) };
        let picks = (is_first && !sees_whole).then_some(Picks { first: own.start, of: layer.input.channels });
        let output = layer.output.with_channels(network.slice(index, tower).len());
        Self { input, output, picks }
    }
}

/// Whether the following ReLU is fused into a layer with weights, which saves a pass over memory. There must be no exchange
/// between them.
pub(super) fn rectifies(plan: &Plan, index: usize) -> bool {
    let kind_at = |index: usize| plan.network.layers.get(index).map(|layer| &layer.kind);
    matches!(kind_at(index), Some(LayerKind::Conv(_) | LayerKind::Linear(_)))
        && matches!(kind_at(index + 1), Some(LayerKind::Relu))
        && !plan.needs_exchange(index + 1)
}

/// Whether a ReLU is fused into the previous layer.
pub(super) fn is_rectified(plan: &Plan, index: usize) -> bool {
    index.checked_sub(1).is_some_and(|before| rectifies(plan, before))
}

/// The passes of a layer with weights.
pub(super) fn passes(plan: &Plan, index: usize, tower: TowerIndex) -> Option<Affine> {
    let layer = &plan.network.layers[index];
    let Shapes { input, output, .. } = Shapes::of(plan, index, tower);
    match &layer.kind {
        LayerKind::Conv(described) => Some(Affine::Conv(conv::Geometry {
            channels: input.channels,
            filters: output.channels,
            groups: (layer.groups() / plan.network.parts(index)).max(1),
            kernel: described.kernel,
            stride: described.stride,
            pad: described.pad,
            height: input.height,
            width: input.width,
        })),
        LayerKind::Linear(_) => {
            let (channels, pixels) = (input.channels, input.pixels());
            Some(Affine::Linear(linear::Geometry { channels, pixels, outputs: output.channels }))
        }
        _ => None,
    }
}

fn pool_geometry(input: Shape, output: Shape, samples: usize) -> impl Fn(Pool) -> pool::Geometry {
    let Shape { channels, height, width } = input;
    move |sides| pool::Geometry {
        input: Maps { samples, height, width, channels },
        out_height: output.height,
        out_width: output.width,
        kernel: sides.kernel,
        stride: sides.stride,
        pad: sides.pad,
    }
}

/// A range of channels of each pixel.
fn pick(x: &[f32], picks: Picks, channels: usize) -> Vec<f32> {
    x.chunks_exact(picks.of).flat_map(|pixel| &pixel[picks.first..picks.first + channels]).copied().collect()
}

/// The units of the tower's slice that dropout keeps, in memory order. Masks count units as (channel, row, column) of the
/// whole layer.
fn mask(dropout: &Dropout, micro_batch: &MicroBatch, own: Shape, first_channel: usize) -> Vec<bool> {
    let mut kept = Vec::with_capacity(micro_batch.samples.len() * own.len());
    for sample in micro_batch.samples.clone() {
        if own.pixels() == 1 {
            let units = first_channel as u64..(first_channel + own.channels) as u64;
            kept.extend(dropout.keeps_each(sample as u64, units));
            continue;
        }
        for pixel in 0..own.pixels() {
            for channel in first_channel..first_channel + own.channels {
                kept.push(dropout.keeps(sample as u64, (channel * own.pixels() + pixel) as u64));
            }
        }
    }
    kept
}
