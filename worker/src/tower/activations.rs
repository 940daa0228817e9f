//! The outputs of some layers for a set of images, computed by this process alone, with the same bits as in a job. Studies compare them.
//!
//! Not here: what is compared (the study).

use std::collections::BTreeMap;
use std::sync::Arc;

use convoy_common::batch::{MicroBatch, MicroBatchId, Phase};
use convoy_common::index::TowerIndex;
use convoy_common::model::Network;
use convoy_common::parameters::Tensors;
use convoy_common::placement::PlacementError;
use convoy_common::plan::Plan;
use convoy_common::slots::SlotTree;
use convoy_common::wire::State;

use super::is_bias;
use super::layer::{Context, TowerLayer};
use crate::pixels::Pixels;
use convoy_kernels::Compute;
use convoy_kernels::isa::Isa;
use convoy_kernels::memory::Tensor;

/// Images that are computed at a time.
const SAMPLES: usize = 64;

/// Why there are no outputs.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ActivationsError {
    /// The model's towers could not be placed.
    #[error("cannot plan the model's towers")]
    Plan(#[from] PlacementError),
    /// The compute thread could not be started.
    #[error("cannot start a compute thread")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// A number is not finite.
    #[error("the {what} of layer \"{layer}\" are not finite")]
    NotFinite { what: &'static str, layer: String },
}

/// The outputs of `layers`, by their index, for `images` (sample, channel, row, column). Outputs are (sample, row, column, channel). If a
/// ReLU follows a layer directly, it is applied. The calling thread computes; it must not be one of another pool.
///
/// # Errors
/// When the model can't be placed on one worker, or a number is not finite.
///
/// # Panics
/// If a parameter is missing in `weights`.
pub fn activations(
    network: &Network,
    weights: &Tensors,
    images: &[u8],
    layers: &[usize],
) -> Result<BTreeMap<usize, Vec<f32>>, ActivationsError> {
    let plan = Plan::new(network.clone(), 1, 1, None)?;
    let compute = Compute::new(1, Isa::detect())?;
    let pixels = Pixels::new(&network.input);
    let mut towers = Towers::new(&plan, weights);
    let mut outputs: BTreeMap<usize, Vec<f32>> = layers.iter().map(|layer| (*layer, Vec::new())).collect();
    for (index, bytes) in images.chunks(SAMPLES * network.input.shape.len()).enumerate() {
        let mut whole = compute.tensor(bytes.len());
        pixels.normalise(bytes, &mut whole);
        let samples = bytes.len() / network.input.shape.len();
        let id = MicroBatchId { step: 1, phase: Phase::Evaluate, slot: 0, micro_batch: index as u32 };
        let micro_batch = MicroBatch { id, samples: 0..samples };
        let context = Context { compute: &compute, dropout_seed: 0, micro_batch: &micro_batch };
        towers.forward(&context, Arc::new(whole), &mut outputs)?;
    }
    Ok(outputs)
}

/// The layers of all towers and slices.
struct Towers<'a> {
    plan: &'a Plan,
    layers: BTreeMap<(usize, TowerIndex), TowerLayer>,
}

impl<'a> Towers<'a> {
    fn new(plan: &'a Plan, weights: &Tensors) -> Self {
        let network = &plan.network;
        let mut layers = BTreeMap::new();
        for index in 0..network.layers.len() {
            for tower in TowerIndex::all(network.parts(index)) {
                let mut layer = TowerLayer::new(plan, index, tower, SlotTree::new(1), false, 0);
                for parameter in network.parameters_of(index) {
                    let slice = parameter.slice_of(network, tower, &weights[&parameter.name]);
                    layer.load(is_bias(&parameter), State::Weights, slice.iter().copied().collect());
                }
                layers.insert((index, tower), layer);
            }
        }
        Self { plan, layers }
    }

    /// Adds the outputs of some samples to `outputs`. Layers after the last one that is wanted are not computed.
    fn forward(
        &mut self,
        context: &Context,
        mut whole: Arc<Tensor>,
        outputs: &mut BTreeMap<usize, Vec<f32>>,
    ) -> Result<(), ActivationsError> {
        let last = outputs.keys().next_back().copied();
        let samples = context.micro_batch.samples.len();
        for index in self.plan.segments.keys() {
            let segment = &self.plan.segments[index];
            if last.is_none_or(|last| segment.layers.start > last) {
                break;
            }
            let mut joined: BTreeMap<usize, Joined> = BTreeMap::new();
            for tower in self.plan.parts(index) {
                let mut x = whole.clone();
                for layer in segment.layers.clone() {
                    let own = self.layers.get_mut(&(layer, tower)).expect("each part of a segment has its layers");
                    let passed = own.forward(context, x).map(|(y, _)| y);
                    x = passed.map_err(|what| ActivationsError::NotFinite { what, layer: own.name().to_owned() })?;
                    if outputs.contains_key(&layer) || layer + 1 == segment.layers.end {
                        let shape = self.plan.network.layers[layer].output;
                        let first = self.plan.network.slice(layer, tower).start;
                        let into = joined
                            .entry(layer)
                            .or_insert_with(|| Joined::new(samples * shape.pixels(), shape.channels));
                        into.add(first, &x);
                    }
                }
            }
            for (layer, joined) in &joined {
                if let Some(output) = outputs.get_mut(layer) {
                    output.extend_from_slice(&joined.values);
                }
            }
            let end = joined.remove(&(segment.layers.end - 1)).expect("the last layer's outputs were joined");
            whole = Arc::new(Tensor::from(end.values));
        }
        Ok(())
    }
}

/// The channels of all towers.
struct Joined {
    channels: usize,
    values: Vec<f32>,
}

impl Joined {
    fn new(places: usize, channels: usize) -> Self {
        Self { channels, values: vec![0.0; places * channels] }
    }

    /// Adds the channels of a tower, which begin with channel `first`.
    fn add(&mut self, first: usize, own: &[f32]) {
        let count = own.len() / (self.values.len() / self.channels);
        for (whole, own) in self.values.chunks_exact_mut(self.channels).zip(own.chunks_exact(count)) {
            whole[first..first + count].copy_from_slice(own);
        }
    }
}
