//! One layer of one tower: what it holds, what it keeps for the backward pass, and which kernels it calls.

use std::sync::Arc;

use convoy_common::batch::{MicroBatch, Phase};
use convoy_common::model::{LayerKind, Pool, Shape};
use convoy_common::plan::Plan;
use convoy_common::wire::State;

use crate::kernels::elementwise::{self, Dropout, Rates};
use crate::kernels::{Compute, Maps, conv, linear, lrn, pool};

/// What every layer is told of the micro-batch at hand.
pub(super) struct Context<'a> {
    pub(super) compute: &'a Compute,
    pub(super) seed: u64,
    pub(super) micro_batch: &'a MicroBatch,
}

impl Context<'_> {
    fn samples(&self) -> usize {
        self.micro_batch.samples.len()
    }
}

/// What a layer's forward pass leaves for its backward pass.
#[derive(Debug)]
pub(super) enum Kept {
    /// The input, padded for a convolution and flattened for a linear layer.
    Input(Arc<Vec<f32>>),
    /// The output.
    Output(Arc<Vec<f32>>),
    /// Input, output and sums of LRN.
    Norm { x: Arc<Vec<f32>>, y: Arc<Vec<f32>>, s: Vec<f32> },
    /// Where each maximum was.
    Places(Vec<u32>),
    /// Which units dropout kept, and what it multiplied them by.
    Mask { kept: Vec<bool>, scale: f32 },
    /// Nothing is needed.
    Nothing,
}

/// A layer as one tower computes it.
#[derive(Debug)]
pub(super) struct TowerLayer {
    name: String,
    /// One sample of the input that this tower reads: all channels behind an exchange, its own elsewhere.
    input: Shape,
    /// One sample of the tower's own output.
    output: Shape,
    /// Of a grouped first layer, the image channels that its groups see.
    picks: Option<Picks>,
    work: Work,
}

/// Some neighbouring channels of a whole input.
#[derive(Clone, Copy, Debug)]
struct Picks {
    first: usize,
    of: usize,
}

#[derive(Debug)]
enum Work {
    Conv { geometry: conv::Geometry, wants_input_gradient: bool, packed: Option<conv::PackedWeights>, learnt: Learnt },
    Linear { geometry: linear::Geometry, learnt: Learnt },
    Relu,
    Lrn(lrn::Geometry),
    MaxPool(Pool),
    AvgPool(Pool),
    Dropout { p: f64, whole_units: usize, first_channel: usize },
}

/// Weights and bias with their momentum and gradients.
#[derive(Debug)]
struct Learnt {
    weight: Values,
    bias: Option<Values>,
    /// The slot that gradients are being added up for.
    slot: Option<u32>,
}

#[derive(Debug)]
struct Values {
    values: Vec<f32>,
    momentum: Vec<f32>,
    /// The chain of the slot at hand, in the kernel's layout.
    chain: Vec<f32>,
    /// The sum of the slots that are done.
    slots: Option<Vec<f32>>,
}

impl Values {
    fn new(length: usize, train: bool) -> Self {
        let learnt = if train { length } else { 0 };
        Self { values: vec![0.0; length], momentum: vec![0.0; learnt], chain: vec![0.0; learnt], slots: None }
    }

    fn end_slot(&mut self, compute: &Compute) {
        elementwise::end_chains(compute.isa, &mut self.chain);
        match &mut self.slots {
            None => self.slots = Some(self.chain.clone()),
            Some(sum) => elementwise::add(compute.isa, sum, &self.chain),
        }
        self.chain.fill(0.0);
    }

    fn commit(&mut self, compute: &Compute, rates: Rates, layout: impl FnOnce(Vec<f32>) -> Vec<f32>) {
        let Some(sum) = self.slots.take() else { return };
        elementwise::sgd(compute.isa, rates, &layout(sum), &mut self.momentum, &mut self.values);
    }
}

impl Learnt {
    fn new(weights: usize, bias: Option<usize>, train: bool) -> Self {
        Self { weight: Values::new(weights, train), bias: bias.map(|length| Values::new(length, train)), slot: None }
    }

    fn values_of(&mut self, bias: bool) -> &mut Values {
        if bias { self.bias.as_mut().expect("the plan names a bias only where there is one") } else { &mut self.weight }
    }

    /// Makes sure that the chains belong to `slot`.
    fn enter_slot(&mut self, compute: &Compute, slot: u32) {
        if self.slot.is_some_and(|current| current != slot) {
            self.end_slot(compute);
        }
        self.slot = Some(slot);
    }

    fn end_slot(&mut self, compute: &Compute) {
        self.weight.end_slot(compute);
        if let Some(bias) = &mut self.bias {
            bias.end_slot(compute);
        }
        self.slot = None;
    }

    fn commit(&mut self, compute: &Compute, rates: Rates, layout: impl FnOnce(Vec<f32>) -> Vec<f32>) {
        if self.slot.is_some() {
            self.end_slot(compute);
        }
        self.weight.commit(compute, rates, layout);
        if let Some(bias) = &mut self.bias {
            bias.commit(compute, rates, |chain| chain);
        }
    }

    /// Adds the bias, or +0.0. An error names what is no longer finite.
    fn end_forward(&self, compute: &Compute, y: &mut [f32]) -> Result<(), &'static str> {
        let finite = match &self.bias {
            Some(bias) => elementwise::add_bias(compute.isa, y, &bias.values),
            None => elementwise::end_chains(compute.isa, y),
        };
        finite.then_some(()).ok_or("outputs")
    }

    fn end_backward(&mut self, compute: &Compute, dy: &[f32]) -> Result<(), &'static str> {
        if let Some(bias) = &mut self.bias {
            elementwise::add_rows(compute.isa, dy, &mut bias.chain);
        }
        let chains = [Some(&self.weight), self.bias.as_ref()];
        let finite = chains.into_iter().flatten().all(|values| elementwise::all_finite(compute.isa, &values.chain));
        finite.then_some(()).ok_or("weight gradients")
    }
}

impl TowerLayer {
    pub(super) fn new(plan: &Plan, index: usize, tower: usize, train: bool) -> Self {
        let network = &plan.network;
        let layer = &network.layers[index];
        let own = network.slice(layer.input.channels, tower);
        let is_first = index == 0;
        let sees_whole = (is_first && layer.groups() == 1) || plan.needs_exchange(index);
        let input = if sees_whole { layer.input } else { layer.input.with_channels(own.len()) };
        let picks = (is_first && !sees_whole).then_some(Picks { first: own.start, of: layer.input.channels });
        let outputs = network.slice(layer.output.channels, tower);
        let output = layer.output.with_channels(outputs.len());
        let groups = (layer.groups() / network.towers).max(1);
        let work = match &layer.kind {
            LayerKind::Conv(described) => {
                let geometry = conv::Geometry {
                    channels: input.channels,
                    filters: output.channels,
                    groups,
                    kernel: described.kernel,
                    stride: described.stride,
                    pad: described.pad,
                    height: input.height,
                    width: input.width,
                };
                let bias = described.bias.then_some(output.channels);
                let learnt = Learnt::new(geometry.fan_in() * output.channels, bias, train);
                Work::Conv { geometry, wants_input_gradient: !is_first, packed: None, learnt }
            }
            LayerKind::Linear(described) => {
                let geometry = linear::Geometry { inputs: input.len(), outputs: output.channels };
                let bias = described.bias.then_some(output.channels);
                Work::Linear { geometry, learnt: Learnt::new(geometry.inputs * geometry.outputs, bias, train) }
            }
            LayerKind::Relu => Work::Relu,
            LayerKind::Lrn(described) => Work::Lrn(lrn::Geometry::new(described, output.channels)),
            LayerKind::MaxPool(described) => Work::MaxPool(*described),
            LayerKind::AvgPool(described) => Work::AvgPool(*described),
            LayerKind::Dropout { p } => {
                Work::Dropout { p: *p, whole_units: layer.output.len(), first_channel: outputs.start }
            }
        };
        Self { name: layer.name.clone(), input, output, picks, work }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn load(&mut self, bias: bool, state: State, values: Vec<f32>) {
        let (Work::Conv { learnt, .. } | Work::Linear { learnt, .. }) = &mut self.work else { return };
        let held = learnt.values_of(bias);
        match state {
            State::Weights => held.values = values,
            State::Momentum => held.momentum = values,
        }
        if let Work::Conv { packed, .. } = &mut self.work {
            *packed = None;
        }
    }

    pub(super) fn read(&self, bias: bool, state: State) -> Vec<f32> {
        let (Work::Conv { learnt, .. } | Work::Linear { learnt, .. }) = &self.work else { return Vec::new() };
        let held = if bias { learnt.bias.as_ref() } else { Some(&learnt.weight) };
        held.map_or_else(Vec::new, |held| match state {
            State::Weights => held.values.clone(),
            State::Momentum => held.momentum.clone(),
        })
    }

    /// The layer's output and what its backward pass will need. An error says what is no longer finite.
    pub(super) fn forward(
        &mut self,
        context: &Context,
        x: Arc<Vec<f32>>,
    ) -> Result<(Arc<Vec<f32>>, Kept), &'static str> {
        let (compute, samples) = (context.compute, context.samples());
        let x = match self.picks {
            Some(picks) => Arc::new(pick(&x, picks, self.input.channels)),
            None => x,
        };
        let pool = pool_geometry(self.input, self.output, samples);
        let trains = context.micro_batch.id.phase == Phase::Train;
        match &mut self.work {
            Work::Conv { geometry, packed, learnt, wants_input_gradient } => {
                let packed = packed.get_or_insert_with(|| {
                    conv::PackedWeights::new(geometry, &learnt.weight.values, *wants_input_gradient)
                });
                let x = if geometry.pad == 0 { x } else { Arc::new(conv::pad_input(compute, geometry, &x, samples)) };
                let mut y = conv::forward(compute, geometry, packed, &x, samples);
                learnt.end_forward(compute, &mut y)?;
                Ok((Arc::new(y), Kept::Input(x)))
            }
            Work::Linear { geometry, learnt } => {
                let x = if self.input.pixels() == 1 { x } else { Arc::new(flatten(&x, self.input)) };
                let mut y = linear::forward(compute, geometry, &learnt.weight.values, &x, samples);
                learnt.end_forward(compute, &mut y)?;
                Ok((Arc::new(y), Kept::Input(x)))
            }
            Work::Relu => {
                let mut y = Arc::unwrap_or_clone(x);
                compute.for_samples(&mut y, samples, |_, y| elementwise::relu(compute.isa, y));
                let y = Arc::new(y);
                Ok((y.clone(), Kept::Output(y)))
            }
            Work::Lrn(geometry) => {
                let (y, s) = lrn::forward(compute, geometry, &x, samples);
                let y = Arc::new(y);
                Ok((y.clone(), Kept::Norm { x, y, s }))
            }
            Work::MaxPool(sides) => {
                let (y, places) = pool::max_forward(compute, &pool(*sides), &x);
                Ok((Arc::new(y), Kept::Places(places)))
            }
            Work::AvgPool(sides) => Ok((Arc::new(pool::avg_forward(compute, &pool(*sides), &x)), Kept::Nothing)),
            Work::Dropout { .. } if !trains => Ok((x, Kept::Nothing)),
            Work::Dropout { p, whole_units, first_channel } => {
                let step = context.micro_batch.id.step;
                let dropout = Dropout::new(context.seed, &self.name, step, *p, *whole_units);
                let mask = mask(&dropout, context.micro_batch, self.output, *first_channel);
                let mut y = Arc::unwrap_or_clone(x);
                elementwise::drop_out(&mut y, &mask, dropout.scale);
                Ok((Arc::new(y), Kept::Mask { kept: mask, scale: dropout.scale }))
            }
        }
    }

    /// The gradient of the layer's input from that of its output, if `wants_input`; gradients of weights are added up.
    pub(super) fn backward(
        &mut self,
        context: &Context,
        mut dy: Vec<f32>,
        kept: Kept,
        wants_input: bool,
    ) -> Result<Option<Vec<f32>>, &'static str> {
        let (compute, samples) = (context.compute, context.samples());
        let slot = context.micro_batch.id.slot;
        let pool = pool_geometry(self.input, self.output, samples);
        let mut dx = match (&mut self.work, kept) {
            (Work::Conv { geometry, packed, learnt, .. }, Kept::Input(x)) => {
                learnt.enter_slot(compute, slot);
                conv::weight_gradient(compute, geometry, &x, &dy, samples, &mut learnt.weight.chain);
                learnt.end_backward(compute, &dy)?;
                let packed = packed.as_ref().filter(|_| wants_input);
                packed.map(|packed| conv::input_gradient(compute, geometry, packed, &dy, samples))
            }
            (Work::Linear { geometry, learnt }, Kept::Input(x)) => {
                learnt.enter_slot(compute, slot);
                linear::weight_gradient(compute, geometry, &x, &dy, samples, &mut learnt.weight.chain);
                learnt.end_backward(compute, &dy)?;
                let flat =
                    wants_input.then(|| linear::input_gradient(compute, geometry, &learnt.weight.values, &dy, samples));
                flat.map(|dx| if self.input.pixels() == 1 { dx } else { unflatten(&dx, self.input) })
            }
            (Work::Relu, Kept::Output(y)) => {
                elementwise::relu_backward(compute.isa, &y, &mut dy);
                return Ok(Some(dy));
            }
            (Work::Lrn(geometry), Kept::Norm { x, y, s }) => {
                Some(lrn::backward(compute, geometry, lrn::Kept { x: &x, y: &y, s: &s }, &dy, samples))
            }
            (Work::MaxPool(sides), Kept::Places(places)) => {
                return Ok(Some(pool::max_backward(compute, &pool(*sides), &dy, &places)));
            }
            (Work::AvgPool(sides), Kept::Nothing) => {
                return Ok(Some(pool::avg_backward(compute, &pool(*sides), &dy)));
            }
            (Work::Dropout { .. }, Kept::Mask { kept, scale }) => {
                elementwise::drop_out(&mut dy, &kept, scale);
                return Ok(Some(dy));
            }
            (_, kept) => unreachable!("layer \"{}\" kept {kept:?} for its backward pass", self.name),
        };
        let finite = dx.as_mut().is_none_or(|dx| match self.work {
            Work::Lrn(_) => elementwise::all_finite(compute.isa, dx),
            _ => elementwise::end_chains(compute.isa, dx),
        });
        finite.then_some(dx).ok_or("input gradients")
    }

    /// Applies the step's gradients.
    pub(super) fn commit(&mut self, compute: &Compute, rates: Rates) {
        match &mut self.work {
            Work::Conv { geometry, packed, learnt, .. } => {
                learnt.commit(compute, rates, |chain| conv::natural_gradient(geometry, &chain));
                *packed = None;
            }
            Work::Linear { learnt, .. } => learnt.commit(compute, rates, |chain| chain),
            _ => {}
        }
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

/// Some channels of each pixel.
fn pick(x: &[f32], picks: Picks, channels: usize) -> Vec<f32> {
    x.chunks_exact(picks.of).flat_map(|pixel| &pixel[picks.first..picks.first + channels]).copied().collect()
}

/// From (row, column, channel) to (channel, row, column), the order in which a linear layer counts its inputs.
fn flatten(x: &[f32], shape: Shape) -> Vec<f32> {
    let mut flat = vec![0.0; x.len()];
    for (x, flat) in x.chunks_exact(shape.len()).zip(flat.chunks_exact_mut(shape.len())) {
        for (channel, row) in flat.chunks_exact_mut(shape.pixels()).enumerate() {
            for (pixel, slot) in row.iter_mut().enumerate() {
                *slot = x[pixel * shape.channels + channel];
            }
        }
    }
    flat
}

/// The way back from [`flatten`].
fn unflatten(flat: &[f32], shape: Shape) -> Vec<f32> {
    let turned = Shape { channels: shape.pixels(), height: shape.channels, width: 1 };
    flatten(flat, turned)
}

/// Which units of the tower's slice are kept, in memory order; masks count units as (channel, row, column) of the whole
/// layer.
fn mask(dropout: &Dropout, micro_batch: &MicroBatch, own: Shape, first_channel: usize) -> Vec<bool> {
    let mut kept = Vec::with_capacity(micro_batch.samples.len() * own.len());
    for sample in micro_batch.samples.clone() {
        for pixel in 0..own.pixels() {
            for channel in first_channel..first_channel + own.channels {
                kept.push(dropout.keeps(sample as u64, (channel * own.pixels() + pixel) as u64));
            }
        }
    }
    kept
}
