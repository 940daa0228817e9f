//! Parameters by name: their shapes, the slice of each tower, their initial values, and the hash over all of them. Names and
//! layouts are PyTorch's: `conv2.weight` (out, in/groups, kh, kw), `fc6.weight` (out, in), `conv2.bias` (out).
//!
//! Not here: files (the coordinator's checkpoints) and packed layouts (the worker's kernels).

use std::collections::BTreeMap;
use std::ops::Range;

use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, Axis, IxDyn, Slice};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::index::TowerIndex;
use crate::mask::Mask;
use crate::model::{LayerKind, Network};
use crate::random::Source;

/// Tensors by parameter name, in order of name.
pub type Tensors = BTreeMap<String, ArrayD<f32>>;

/// One parameter of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// `LAYER.weight` or `LAYER.bias`.
    pub name: String,
    /// Index of its layer.
    pub layer: usize,
    /// The whole tensor's shape, outputs first.
    pub shape: Vec<usize>,
    /// Its initial values.
    pub start: Start,
    /// Which of its values are zero and stay so.
    pub mask: Option<Mask>,
}

/// The initial values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// Normally distributed, with this standard deviation.
    Normal(f64),
    /// All the same.
    Constant(f64),
}

impl Parameter {
    /// The name of its layer.
    pub fn layer_name(&self) -> &str {
        self.name.rsplit_once('.').map_or(self.name.as_str(), |(layer, _)| layer)
    }

    /// Number of elements of the whole tensor.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements. No parameter of a checked network is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The outputs of `tower`.
    pub fn slice(&self, network: &Network, tower: TowerIndex) -> Range<usize> {
        network.slice(self.layer, tower)
    }

    /// Floats of `tower`'s gradient of a parameter of the trunk, as it lies in panels: columns in units of 16, group by group.
    pub fn gradient_floats(&self, network: &Network, tower: TowerIndex) -> usize {
        let outputs = self.slice(network, tower).len();
        let terms: usize = self.shape[1..].iter().product();
        if self.shape.len() == 1 {
            return outputs;
        }
        let layer = &network.layers[self.layer];
        match layer.kind_name() {
            // Linear layers have panels of two units.
            "linear" => outputs.div_ceil(32) * 32 * terms,
            _ => {
                let groups = (layer.groups() / network.towers).max(1);
                groups * (outputs / groups).div_ceil(16) * 16 * terms
            }
        }
    }

    /// The shape of `tower`'s part.
    pub fn slice_shape(&self, network: &Network, tower: TowerIndex) -> Vec<usize> {
        let mut shape = self.shape.clone();
        shape[0] = self.slice(network, tower).len();
        shape
    }

    /// `tower`'s part of the whole tensor.
    pub fn slice_of<'a>(&self, network: &Network, tower: TowerIndex, whole: &'a ArrayD<f32>) -> ArrayViewD<'a, f32> {
        whole.slice_axis(Axis(0), Slice::from(self.slice(network, tower)))
    }

    /// `tower`'s part of the whole tensor, to be written.
    pub fn slice_of_mut<'a>(
        &self,
        network: &Network,
        tower: TowerIndex,
        whole: &'a mut ArrayD<f32>,
    ) -> ArrayViewMutD<'a, f32> {
        whole.slice_axis_mut(Axis(0), Slice::from(self.slice(network, tower)))
    }

    /// Whether each value of the rows `outputs` is kept, in a job with this seed. The others are zero. None if all are kept.
    pub fn kept(&self, seed: u64, outputs: Range<usize>) -> Option<Vec<bool>> {
        let mask = self.mask?;
        let (rows, inputs) = (self.shape[0], self.shape[1]);
        let terms: usize = self.shape[2..].iter().product();
        let layer = self.layer_name();
        let kept = mask.kept(seed, layer, outputs, [rows, inputs]);
        Some(kept.iter().flat_map(|kept| std::iter::repeat_n(*kept, terms)).collect())
    }

    /// Sets the values to zero that the mask does not keep. Returns the number of values that were not zero before.
    pub fn apply_mask(&self, seed: u64, whole: &mut ArrayD<f32>) -> usize {
        let Some(kept) = self.kept(seed, 0..self.shape[0]) else { return 0 };
        let lost = whole.iter_mut().zip(kept).filter(|(_, kept)| !kept);
        lost.map(|(value, _)| usize::from(std::mem::replace(value, 0.0) != 0.0)).sum()
    }

    /// The whole tensor before the first step: values of `init_seed`, with the mask of the job's `seed`.
    pub fn initial(&self, init_seed: u64, seed: u64) -> ArrayD<f32> {
        let mut whole = self.unmasked(init_seed);
        self.apply_mask(seed, &mut whole);
        whole
    }

    fn unmasked(&self, seed: u64) -> ArrayD<f32> {
        let values = match self.start {
            Start::Constant(value) => vec![value as f32; self.len()],
            Start::Normal(std) => {
                let source = Source::new(seed, &format!("init:{}", self.name));
                (0..self.len()).into_par_iter().map(|i| (source.normal(i as u64) * std) as f32).collect()
            }
        };
        ArrayD::from_shape_vec(IxDyn(&self.shape), values).expect("as many values as the shape has elements")
    }
}

impl Network {
    /// Every parameter, in the order of the layers, weight before bias.
    pub fn parameters(&self) -> Vec<Parameter> {
        self.layers.iter().enumerate().flat_map(|(layer, _)| self.parameters_of(layer)).collect()
    }

    /// The parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<Parameter> {
        self.parameters().into_iter().find(|parameter| parameter.name == name)
    }

    /// The parameters of one layer.
    pub fn parameters_of(&self, layer: usize) -> Vec<Parameter> {
        let described = &self.layers[layer];
        let (shape, bias, init) = match &described.kind {
            LayerKind::Conv(conv) => {
                let shape = vec![conv.filters, described.input.channels / conv.groups, conv.kernel, conv.kernel];
                (shape, conv.bias, conv.init)
            }
            LayerKind::Linear(linear) => (vec![linear.units, described.input.len()], linear.bias, linear.init),
            _ => return Vec::new(),
        };
        let name = &described.name;
        let bias_shape = vec![shape[0]];
        let weight = Parameter {
            name: format!("{name}.weight"),
            layer,
            shape,
            start: Start::Normal(init.std),
            mask: described.mask(),
        };
        let bias = bias.then(|| Parameter {
            name: format!("{name}.bias"),
            layer,
            shape: bias_shape,
            start: Start::Constant(init.bias),
            mask: None,
        });
        std::iter::once(weight).chain(bias).collect()
    }

    /// Sets the values to zero that masks do not keep. Returns how many were not zero before, for each parameter with some.
    pub fn apply_masks(&self, seed: u64, tensors: &mut Tensors) -> Vec<(String, usize)> {
        let lost = |parameter: Parameter| {
            let tensor = tensors.get_mut(&parameter.name)?;
            Some((parameter.name.clone(), parameter.apply_mask(seed, tensor)))
        };
        self.parameters().into_iter().filter_map(lost).filter(|(_, lost)| *lost > 0).collect()
    }

    /// Number of values of all parameters that can differ from zero.
    pub fn free_values(&self) -> usize {
        let free = |parameter: &Parameter| parameter.len() / parameter.mask.map_or(1, |mask| mask.groups());
        self.parameters().iter().map(free).sum()
    }

    /// All parameters before the first step: values of `init_seed`, with the masks of the job's `seed`.
    pub fn initial_weights(&self, init_seed: u64, seed: u64) -> Tensors {
        self.parameters().into_iter().map(|p| (p.name.clone(), p.initial(init_seed, seed))).collect()
    }

    /// Zeros in the shapes of the parameters: the momentum before the first step.
    pub fn zeros(&self) -> Tensors {
        self.parameters().into_iter().map(|p| (p.name, ArrayD::zeros(IxDyn(&p.shape)))).collect()
    }
}

/// SHA-256 over all tensors in order of name: for each, the bytes of its name and then its little-endian bytes. In hexadecimal.
pub fn sha256(tensors: &Tensors) -> String {
    let mut hash = Sha256::new();
    for (name, tensor) in tensors {
        hash.update(name.as_bytes());
        for value in tensor.iter() {
            hash.update(value.to_le_bytes());
        }
    }
    hex(&hash.finalize())
}

/// Bytes as lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::presets;

    #[test]
    fn towers_slices_tile_each_parameter() {
        let text = presets::text("alexnet-fashion").unwrap().replace("towers = 2", "towers = 2\nhead = 3");
        let network = Network::parse(&text).unwrap();
        for parameter in network.parameters() {
            let mut at = 0;
            for tower in TowerIndex::all(network.parts(parameter.layer)) {
                let slice = parameter.slice(&network, tower);
                assert_eq!(slice.start, at);
                at = slice.end;
            }
            assert_eq!(at, parameter.shape[0], "{}", parameter.name);
        }
    }

    #[test]
    fn he_normal_weights_have_the_right_deviation() {
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        let weights = network.initial_weights(1, 1);
        let fc6 = &weights["fc6.weight"];
        let variance = fc6.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / fc6.len() as f64;
        assert!((variance / (2.0 / 576.0) - 1.0).abs() < 0.02, "{variance}");
        assert!(weights["fc6.bias"].iter().all(|b| *b == 0.0));
        assert_ne!(sha256(&weights), sha256(&network.initial_weights(2, 2)));
    }
}
