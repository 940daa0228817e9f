//! One tower: its weights, momentum and gradients, and its segments forward and backward. Pure: tensors in, tensors out.
//!
//! Feature maps are (sample, row, column, channel), the tower's own channels alone unless a name says `whole`.
//! Not here: when to compute what, and where tensors come from (`engine`).

pub mod bench;
pub mod forecast;
mod layer;

use std::sync::Arc;

use convoy_common::batch::{MicroBatch, Phase};
use convoy_common::parameters::Parameter;
use convoy_common::plan::Plan;
use convoy_common::trace::Activity;
use convoy_common::wire::{Assignment, Direction, State};

use crate::kernels::Compute;
use crate::kernels::elementwise::Rates;
use crate::kernels::memory::Tensor;
use crate::probe::Probe;
use layer::{Context, Kept, TowerLayer};

/// A number that is no longer finite, and where it began.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} of layer \"{layer}\" are no longer finite at step {step} (tower {tower})")]
pub(crate) struct NotFinite {
    /// Outputs, input gradients or weight gradients.
    pub what: &'static str,
    /// The first layer, in the order of computing, at which it was seen.
    pub layer: String,
    /// Whose.
    pub tower: usize,
    /// When.
    pub step: u64,
}

/// What the forward pass of a segment leaves for the backward pass, a layer each.
#[derive(Debug)]
pub(crate) struct KeptSegment(Vec<Kept>);

/// What a tower computes with, and what it says of itself meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Means<'a> {
    /// Threads and instruction set.
    pub(crate) compute: &'a Compute,
    /// Of the computing thread.
    pub(crate) probe: &'a Probe,
}

/// A tower's share of the network.
#[derive(Debug)]
pub(crate) struct Tower {
    index: usize,
    seed: u64,
    layers: Vec<TowerLayer>,
}

impl Tower {
    /// Tower `index` of a job, its weights all zero until they arrive.
    pub(crate) fn new(plan: &Plan, assignment: &Assignment, index: usize) -> Self {
        let layers =
            (0..plan.network.layers.len()).map(|layer| TowerLayer::new(plan, layer, index, assignment.train)).collect();
        Self { index, seed: assignment.seed, layers }
    }

    /// Sets a parameter's values or momentum. `values` is as long as the tower's slice.
    pub(crate) fn load(&mut self, parameter: &Parameter, state: State, values: Vec<f32>) {
        self.layers[parameter.layer].load(is_bias(parameter), state, values);
    }

    /// A copy of a parameter's values or momentum.
    pub(crate) fn read(&self, parameter: &Parameter, state: State) -> Vec<f32> {
        self.layers[parameter.layer].read(is_bias(parameter), state)
    }

    /// Computes segment `segment` of `plan` on a whole input. The segment's own output, and what the backward pass needs
    /// when there will be one.
    pub(crate) fn forward(
        &mut self,
        means: Means,
        plan: &Plan,
        segment: usize,
        micro_batch: &MicroBatch,
        whole: Arc<Tensor>,
    ) -> Result<(Arc<Tensor>, KeptSegment), NotFinite> {
        let context = Context { compute: means.compute, seed: self.seed, micro_batch };
        let mut kept = Vec::new();
        let mut x = whole;
        for layer in plan.segments[segment].layers.clone() {
            let began = means.probe.now();
            let (y, keep) =
                self.layers[layer].forward(&context, x).map_err(|what| self.not_finite(what, layer, micro_batch))?;
            x = y;
            self.layer_ended(means.probe, began, layer, Direction::Forward, micro_batch);
            if micro_batch.id.phase == Phase::Train {
                kept.push(keep);
            }
        }
        Ok((x, KeptSegment(kept)))
    }

    /// Goes back through a segment from the gradient of its output, adding to the gradients of its weights. This tower's
    /// partial gradient of the whole input, or nothing for the first segment, whose input are images.
    pub(crate) fn backward(
        &mut self,
        means: Means,
        plan: &Plan,
        segment: usize,
        micro_batch: &MicroBatch,
        (dy, kept): (Tensor, KeptSegment),
    ) -> Result<Option<Tensor>, NotFinite> {
        let context = Context { compute: means.compute, seed: self.seed, micro_batch };
        let mut gradient = Some(dy);
        for (layer, kept) in plan.segments[segment].layers.clone().zip(kept.0).rev() {
            let Some(dy) = gradient else { break };
            let began = means.probe.now();
            let result = self.layers[layer].backward(&context, dy, kept, layer > 0);
            gradient = result.map_err(|what| self.not_finite(what, layer, micro_batch))?;
            self.layer_ended(means.probe, began, layer, Direction::Backward, micro_batch);
        }
        Ok(gradient)
    }

    /// Applies the gradients of the step to every weight, and starts anew.
    pub(crate) fn commit(&mut self, compute: &Compute, rates: Rates) {
        for layer in &mut self.layers {
            layer.commit(compute, rates);
        }
    }

    fn layer_ended(&self, probe: &Probe, began: u64, layer: usize, direction: Direction, micro_batch: &MicroBatch) {
        probe.rehearse(self.layers[layer].name(), direction);
        if micro_batch.id.phase == Phase::Train {
            probe.ended(began, || Activity::Layer { layer, direction });
        }
    }

    fn not_finite(&self, what: &'static str, layer: usize, micro_batch: &MicroBatch) -> NotFinite {
        NotFinite { what, layer: self.layers[layer].name().to_owned(), tower: self.index, step: micro_batch.id.step }
    }
}

fn is_bias(parameter: &Parameter) -> bool {
    parameter.name.ends_with(".bias")
}
