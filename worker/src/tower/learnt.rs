//! The weights and the bias of a layer, with their momentum, and their gradients while a step forms them.
//!
//! In the trunk, chains start anew for each slot, and slots are added along the job's tree. In the head, a chain runs through the whole
//! batch, so its operands are kept until those of all samples are there: one product then needs a single pass over the weights.
//!
//! Not here: the products (`kernels`), and when a layer's operands are complete (`engine`).

use std::collections::BTreeMap;

use convoy_common::batch::MicroBatch;
use convoy_common::model::Learning;
use convoy_common::slots::{Node, NodeSums, SlotTree};
use convoy_common::wire::State;

use convoy_kernels::Compute;
use convoy_kernels::End;
use convoy_kernels::affine::{Affine, Operands};
use convoy_kernels::elementwise::{self, Rates};
use convoy_kernels::panels::Panels;

/// Weights and bias with their momentum and gradients.
#[derive(Debug)]
pub(super) struct Learnt {
    /// The layout of weights, momentum and gradients, group by group.
    panels: Panels,
    groups: usize,
    weight: Values,
    bias: Option<Values>,
    /// In training: which weights the layer's mask keeps, if it has one.
    kept: Option<Vec<bool>>,
    /// How fast it learns.
    learning: Learning,
    /// In the head: the operands of the step's samples so far, by the position of their first sample.
    operands: Option<BTreeMap<usize, Operands>>,
}

/// How a layer sums its gradients over the samples of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Summed {
    /// Slot by slot, as the trunk does.
    BySlot(SlotTree),
    /// In one chain over the whole batch, as the head does.
    AtOnce,
}

#[derive(Debug)]
struct Values {
    values: Vec<f32>,
    momentum: Vec<f32>,
    gradient: Gradient,
}

/// A gradient while a step forms it.
#[derive(Debug)]
struct Gradient {
    tree: SlotTree,
    /// Its floats.
    length: usize,
    /// The chains of the slot at hand. Empty between slots.
    chains: Vec<f32>,
    /// The slot at hand, if its chains have been started.
    slot: Option<usize>,
    /// The sums of the completed slots.
    sums: NodeSums<Vec<f32>>,
    /// Memory for the chains of later slots.
    idle: Vec<Vec<f32>>,
}

impl Gradient {
    fn new(length: usize, tree: SlotTree) -> Self {
        // Made at once, so that a machine with too little memory fails before the first step.
        Self { tree, length, chains: vec![0.0; length], slot: None, sums: NodeSums::new(), idle: Vec::new() }
    }

    /// The chains of `slot`, and whether they have been started.
    fn chains_of(&mut self, compute: &Compute, slot: usize) -> (&mut [f32], bool) {
        let goes_on = self.slot == Some(slot);
        if !goes_on {
            self.end_slot(compute);
            self.slot = Some(slot);
            if self.chains.is_empty() {
                self.chains = self.idle.pop().unwrap_or_else(|| vec![0.0; self.length]);
            }
        }
        (&mut self.chains, goes_on)
    }

    /// Adds the slot at hand to the completed ones.
    fn end_slot(&mut self, compute: &Compute) {
        let Self { tree, chains, slot, sums, idle, .. } = self;
        let Some(slot) = slot.take() else { return };
        // The update of the weights ends the chains of a single slot.
        if tree.root().len() > 1 {
            elementwise::end_chains(compute, chains);
        }
        sums.push(*tree, slot, std::mem::take(chains), |sum, other| {
            elementwise::add(compute, sum, &other);
            idle.push(other);
        });
    }

    /// The sum over all slots. None without samples.
    fn finish(&mut self, compute: &Compute) -> Option<Vec<f32>> {
        self.end_slot(compute);
        let Self { tree, sums, idle, .. } = self;
        sums.finish(*tree, |sum, other| {
            elementwise::add(compute, sum, &other);
            idle.push(other);
        })
    }
}

impl Values {
    fn new(length: usize, summed: Summed, train: bool) -> Self {
        let learnt = if train { length } else { 0 };
        let tree = match summed {
            Summed::BySlot(tree) => tree,
            Summed::AtOnce => SlotTree::new(1),
        };
        Self { values: vec![0.0; length], momentum: vec![0.0; learnt], gradient: Gradient::new(learnt, tree) }
    }

    /// Without rates, the values stay as they are.
    fn commit(&mut self, compute: &Compute, rates: Option<Rates>, kept: Option<&[bool]>) {
        if let Some(mut gradient) = self.gradient.finish(compute) {
            if let Some(kept) = kept {
                // Weights and momentum are zero there, and so they stay.
                gradient.iter_mut().zip(kept).filter(|(_, kept)| !**kept).for_each(|(value, _)| *value = 0.0);
            }
            if let Some(rates) = rates {
                elementwise::sgd(compute, rates, &gradient, &mut self.momentum, &mut self.values);
            }
            // A worker without samples takes no memory from here for the sum over replicas. It must not pile up.
            self.gradient.idle.truncate(self.gradient.tree.root().len().ilog2() as usize);
            self.gradient.idle.push(gradient);
        }
    }
}

impl Learnt {
    /// Zeros, until the values arrive. `bias` is the number of biases.
    /// `kept` is which weights the layer's mask keeps, in their natural order, in training. `learning` is how its gradients are summed and
    /// how fast it learns.
    pub(super) fn new(
        passes: &Affine,
        bias: Option<usize>,
        kept: Option<Vec<bool>>,
        (summed, learning): (Summed, Learning),
        train: bool,
    ) -> Self {
        let (panels, groups) = (passes.panels(), passes.groups());
        Self {
            panels,
            groups,
            weight: Values::new(groups * panels.len(), summed, train),
            bias: bias.map(|length| Values::new(length, summed, train)),
            kept: kept.map(|kept| panels.pack(groups, &kept)),
            learning,
            operands: matches!(summed, Summed::AtOnce).then(BTreeMap::new),
        }
    }

    fn values_of(&mut self, bias: bool) -> &mut Values {
        if bias { self.bias.as_mut().expect("the plan names a bias only where there is one") } else { &mut self.weight }
    }

    /// The weights, in panels.
    pub(super) fn weights(&self) -> &[f32] {
        &self.weight.values
    }

    /// The end of the layer's chains.
    pub(super) fn end(&self, rectifies: bool) -> End<'_> {
        End { bias: self.bias.as_ref().map(|bias| bias.values.as_slice()), rectifies }
    }

    /// Continues the chains of the gradients with the operands of a micro-batch. In the head, keeps them until they are [formed](Self::form). An error names what is
    /// not finite.
    pub(super) fn differentiate(
        &mut self,
        compute: &Compute,
        passes: &Affine,
        micro_batch: &MicroBatch,
        operands: Operands,
    ) -> Result<(), &'static str> {
        match &mut self.operands {
            Some(kept) => {
                kept.insert(micro_batch.samples.start, operands);
                Ok(())
            }
            None => self.accumulate(compute, passes, micro_batch.id.slot as usize, &operands),
        }
    }

    /// Forms the gradients of the operands that were kept. An error names what is not finite.
    pub(super) fn form(&mut self, compute: &Compute, passes: &Affine) -> Result<(), &'static str> {
        let Some(kept) = self.operands.as_mut().map(std::mem::take).filter(|kept| !kept.is_empty()) else {
            return Ok(());
        };
        self.accumulate(compute, passes, 0, &passes.joined(compute, kept.into_values().collect()))
    }

    fn accumulate(
        &mut self,
        compute: &Compute,
        passes: &Affine,
        slot: usize,
        operands: &Operands,
    ) -> Result<(), &'static str> {
        let (chains, goes_on) = self.weight.gradient.chains_of(compute, slot);
        let Operands { x, dy, samples } = operands;
        let mut is_finite = passes.weight_gradient(compute, x, dy, *samples, goes_on, chains);
        if let Some(bias) = &mut self.bias {
            let (chains, goes_on) = bias.gradient.chains_of(compute, slot);
            if !goes_on {
                chains.fill(0.0);
            }
            passes.bias_gradient(compute, dy, *samples, chains);
            is_finite &= elementwise::all_finite(compute.isa, chains);
        }
        is_finite.then_some(()).ok_or("weight gradients")
    }

    /// The sums of the gradient of the weights, or of the biases, over the nodes of the slot tree that this worker has completed.
    pub(super) fn take_sums(&mut self, compute: &Compute, bias: bool) -> Vec<(Node, Vec<f32>)> {
        let gradient = &mut self.values_of(bias).gradient;
        gradient.end_slot(compute);
        gradient.sums.drain()
    }

    /// Sets the gradient of the weights, or of the biases, to its sum over all slots.
    pub(super) fn set_sum(&mut self, bias: bool, sum: &[f32]) {
        let gradient = &mut self.values_of(bias).gradient;
        let mut own = gradient.idle.pop().unwrap_or_default();
        own.clear();
        own.extend_from_slice(sum);
        gradient.sums.insert(gradient.tree.root(), own);
    }

    /// Memory for later slots.
    pub(super) fn give_back(&mut self, bias: bool, sum: Vec<f32>) {
        self.values_of(bias).gradient.idle.push(sum);
    }

    /// Applies the step's gradients.
    pub(super) fn commit(&mut self, compute: &Compute, rates: Rates) {
        let rates = match self.learning {
            Learning::Scaled(scale) => Some(Rates { learning: rates.learning * scale as f32, ..rates }),
            Learning::Frozen => None,
        };
        self.weight.commit(compute, rates, self.kept.as_deref());
        if let Some(bias) = &mut self.bias {
            bias.commit(compute, rates, None);
        }
    }

    /// Sets the weights, the biases, or their momentum.
    pub(super) fn load(&mut self, bias: bool, state: State, values: Vec<f32>) {
        let values = if bias { values } else { self.panels.pack(self.groups, &values) };
        let held = self.values_of(bias);
        match state {
            State::Weights => held.values = values,
            State::Momentum => held.momentum = values,
        }
    }

    /// A copy of the weights, the biases, or their momentum.
    pub(super) fn read(&self, bias: bool, state: State) -> Vec<f32> {
        let Some(held) = (if bias { self.bias.as_ref() } else { Some(&self.weight) }) else { return Vec::new() };
        let values = match state {
            State::Weights => &held.values,
            State::Momentum => &held.momentum,
        };
        if bias { values.clone() } else { self.panels.unpack(self.groups, values) }
    }
}
