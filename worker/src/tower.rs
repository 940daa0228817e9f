//! One tower: its weights, momentum and gradients, and the forward and backward passes of its segments. No
//! socket and no clock.
//!
//! Feature maps are (sample, row, column, channel). They hold only the tower's own channels unless a name says `whole`.
//! Not here: the order of passes, and where tensors come from (`engine`).

pub mod activations;
pub mod bench;
pub mod forecast;
mod layer;
mod learnt;

use std::ops::Range;
use std::sync::Arc;

use convoy_common::batch::{MicroBatch, Phase};
use convoy_common::index::{SegmentIndex, TowerIndex};
use convoy_common::parameters::Parameter;
use convoy_common::placement::Half;
use convoy_common::plan::Plan;
use convoy_common::slots::{Node, SlotTree};
use convoy_common::trace::Activity;
use convoy_common::wire::{Assignment, Direction, State};

use crate::probe::Probe;
use convoy_kernels::Compute;
use convoy_kernels::elementwise::Rates;
use convoy_kernels::memory::Tensor;
use layer::{Context, Saved, TowerLayer};
use learnt::Learnt;

/// A NaN or infinity, and where it first appeared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} of layer \"{layer}\" are no longer finite at step {step} ({name})")]
pub(crate) struct NotFinite {
    /// Outputs, input gradients or weight gradients.
    pub what: &'static str,
    /// The first layer at which it appeared.
    pub layer: String,
    /// The tower, or the slice of the head.
    pub tower: TowerIndex,
    /// Its name for a person, such as "slice 0 of the head".
    pub name: String,
    /// The step.
    pub step: u64,
}

/// Why a pass of a segment ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stopped {
    /// A number is no longer finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The job was dropped while it was computed.
    #[error("the job was dropped")]
    Dropped,
}

/// What the forward pass of a segment saves for the backward pass, for each layer that has not been passed backward yet.
#[derive(Debug, Default)]
pub(crate) struct SavedSegment(Vec<Saved>);

impl SavedSegment {
    /// The number of layers that have not been passed backward yet. They are the first ones of the segment.
    pub(crate) fn layers_left(&self) -> usize {
        self.0.len()
    }
}

/// The resources that a tower computes with.
#[derive(Clone, Copy)]
pub(crate) struct Means<'a> {
    /// Threads and instruction set.
    pub(crate) compute: &'a Compute,
    /// The probe of the compute thread.
    pub(crate) probe: &'a Probe,
    /// Asked before each layer: whether the job was dropped, because the coordinator has begun another generation, or is gone.
    pub(crate) is_dropped: &'a dyn Fn() -> bool,
}

impl Means<'_> {
    fn end_if_dropped(&self) -> Result<(), Stopped> {
        if (self.is_dropped)() { Err(Stopped::Dropped) } else { Ok(()) }
    }
}

/// A tower's share of the trunk, or a slice of the head.
#[derive(Debug)]
pub(crate) struct Tower {
    index: TowerIndex,
    /// Its name for a person, such as "slice 0 of the head".
    name: String,
    dropout_seed: u64,
    /// Index of the first layer.
    first: usize,
    layers: Vec<TowerLayer>,
}

impl Tower {
    /// Tower `index` of the trunk, or slice `index` of the head. Its weights are zero until they arrive.
    pub(crate) fn new(plan: &Plan, assignment: &Assignment, half: Half, index: TowerIndex) -> Self {
        let tree = SlotTree::new(assignment.division.slots);
        let layers = match half {
            Half::Trunk => 0..plan.network.head(),
            Half::Head => plan.network.head()..plan.network.layers.len(),
        };
        let (train, seed) = (assignment.train, assignment.seed);
        let (first, make) = (layers.start, |layer| TowerLayer::new(plan, layer, index, tree, train, seed));
        Self {
            index,
            name: plan.placement.part_name(half, index),
            dropout_seed: assignment.dropout_seed,
            first,
            layers: layers.map(make).collect(),
        }
    }

    fn layer(&self, layer: usize) -> &TowerLayer {
        &self.layers[layer - self.first]
    }

    fn layer_mut(&mut self, layer: usize) -> &mut TowerLayer {
        &mut self.layers[layer - self.first]
    }

    /// The sums of a parameter's gradient over the nodes of the slot tree that this worker has completed.
    pub(crate) fn take_sums(&mut self, compute: &Compute, parameter: &Parameter) -> Vec<(Node, Vec<f32>)> {
        self.learnt(parameter).take_sums(compute, is_bias(parameter))
    }

    /// Sets a parameter's gradient to its sum over all slots.
    pub(crate) fn set_sum(&mut self, parameter: &Parameter, sum: &[f32]) {
        self.learnt(parameter).set_sum(is_bias(parameter), sum);
    }

    /// Returns the memory of a sum that was taken.
    pub(crate) fn give_back(&mut self, parameter: &Parameter, sum: Vec<f32>) {
        self.learnt(parameter).give_back(is_bias(parameter), sum);
    }

    fn learnt(&mut self, parameter: &Parameter) -> &mut Learnt {
        self.layer_mut(parameter.layer).learnt().expect("only a layer with weights has parameters")
    }

    /// Sets a parameter's values or momentum. `values` is as long as the tower's slice.
    pub(crate) fn load(&mut self, parameter: &Parameter, state: State, values: Vec<f32>) {
        self.layer_mut(parameter.layer).load(is_bias(parameter), state, values);
    }

    /// A copy of a parameter's values or momentum.
    pub(crate) fn read(&self, parameter: &Parameter, state: State) -> Vec<f32> {
        self.layer(parameter.layer).read(is_bias(parameter), state)
    }

    /// Computes segment `segment` of `plan` on a whole input. Returns the tower's own output, and what a training step saves
    /// for the backward pass.
    pub(crate) fn forward(
        &mut self,
        means: Means,
        plan: &Plan,
        segment: SegmentIndex,
        micro_batch: &MicroBatch,
        whole: Arc<Tensor>,
    ) -> Result<(Arc<Tensor>, SavedSegment), Stopped> {
        let context = Context { compute: means.compute, dropout_seed: self.dropout_seed, micro_batch };
        let mut kept = Vec::new();
        let mut x = whole;
        for layer in plan.segments[segment].layers.clone() {
            means.end_if_dropped()?;
            let began = means.probe.layer_begins(layer, Direction::Forward);
            let (y, keep) =
                self.layer_mut(layer).forward(&context, x).map_err(|what| self.not_finite(what, layer, micro_batch))?;
            x = y;
            self.layer_ended(means.probe, began, layer, Direction::Forward, micro_batch);
            if micro_batch.id.phase == Phase::Train {
                kept.push(keep);
            }
        }
        Ok((x, SavedSegment(kept)))
    }

    /// Computes the backward pass of `layers`, the last ones of `kept`, from the gradient of their output, and accumulates the gradients
    /// of their weights. Returns the gradient of the first one's input, or nothing for the first layer of the network, whose input is
    /// images. At the start of a segment, it is this tower's partial gradient of the whole input.
    pub(crate) fn backward(
        &mut self,
        means: Means,
        layers: Range<usize>,
        micro_batch: &MicroBatch,
        dy: Tensor,
        kept: &mut SavedSegment,
    ) -> Result<Option<Tensor>, Stopped> {
        let context = Context { compute: means.compute, dropout_seed: self.dropout_seed, micro_batch };
        let mut gradient = Some(dy);
        for layer in layers.rev() {
            let Some(dy) = gradient else { break };
            let kept = kept.0.pop().expect("the forward pass has saved something for each layer");
            means.end_if_dropped()?;
            let began = means.probe.layer_begins(layer, Direction::Backward);
            let result = self.layer_mut(layer).backward(&context, dy, kept, layer > 0);
            gradient = result.map_err(|what| self.not_finite(what, layer, micro_batch))?;
            self.layer_ended(means.probe, began, layer, Direction::Backward, micro_batch);
        }
        Ok(gradient)
    }

    /// Forms the gradients of a layer of the head, once the last micro-batch of the step has passed it backward.
    pub(crate) fn form_gradients(
        &mut self,
        means: Means,
        layer: usize,
        micro_batch: &MicroBatch,
    ) -> Result<(), Stopped> {
        means.end_if_dropped()?;
        let began = means.probe.layer_begins(layer, Direction::Backward);
        let formed = self.layer_mut(layer).form_gradients(means.compute);
        formed.map_err(|what| self.not_finite(what, layer, micro_batch))?;
        self.layer_ended(means.probe, began, layer, Direction::Backward, micro_batch);
        Ok(())
    }

    /// Applies the gradients of the step to every weight, and resets them.
    pub(crate) fn commit(&mut self, compute: &Compute, rates: Rates) {
        for layer in &mut self.layers {
            layer.commit(compute, rates);
        }
    }

    fn layer_ended(&self, probe: &Probe, began: u64, layer: usize, direction: Direction, micro_batch: &MicroBatch) {
        probe.rehearse(self.layer(layer).name(), direction);
        if micro_batch.id.phase == Phase::Train {
            probe.ended(began, || Activity::Layer { layer, direction });
        }
    }

    fn not_finite(&self, what: &'static str, layer: usize, micro_batch: &MicroBatch) -> NotFinite {
        let (tower, name, step) = (self.index, self.name.clone(), micro_batch.id.step);
        NotFinite { what, layer: self.layer(layer).name().to_owned(), tower, name, step }
    }
}

fn is_bias(parameter: &Parameter) -> bool {
    parameter.name.ends_with(".bias")
}
