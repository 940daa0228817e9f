//! The checked network: every layer with its shapes, its slice for each tower, its parameters and its cost. In a [`Network`],
//! shapes fit and no group is divided between towers, so nothing checks that again.

use std::ops::Range;

use super::error::ModelError;
use super::file::{self, RawInit, RawKind, RawLayer, RawModel};
use super::input::Input;
use super::shape::{ELEMENTS_MAX, LENGTH_MAX, Shape, check, check_elements};
use crate::batch::part;
use crate::fields::shown;
use crate::index::TowerIndex;
use crate::mask::Mask;

/// The largest factor of a layer's learning rate.
const LR_SCALE_MAX: f64 = 1000.0;
/// The longest model file. It is sent to every worker in one message.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// The most towers, and the most slices of the head.
const PARTS_MAX: usize = 1024;
/// The most layers of a model.
const LAYERS_MAX: usize = 1000;

/// A checked network.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The model's name.
    pub name: String,
    /// Number of towers, into which the channels of each layer of the trunk are divided.
    pub towers: usize,
    /// Number of slices, into which the units of each layer of the head are divided.
    pub slices: usize,
    /// The images that it takes.
    pub input: Input,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// The text of its file. Checkpoints hold it, and workers get it.
    pub source: String,
}

/// A layer. Its shapes are those of all towers together.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Its name, unique in the network.
    pub name: String,
    /// Its kind and settings.
    pub kind: LayerKind,
    /// Shape of the input.
    pub input: Shape,
    /// Shape of the output.
    pub output: Shape,
}

/// The kind of a layer, and its settings.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerKind {
    /// A convolution.
    Conv(Conv),
    /// A fully connected layer.
    Linear(Linear),
    /// max(x, 0).
    Relu,
    /// Local response normalisation over the channels of one tower.
    Lrn(Lrn),
    /// The largest value of each window.
    MaxPool(Pool),
    /// The mean of each window.
    AvgPool(Pool),
    /// Drops a unit with probability `p` in training.
    Dropout {
        /// The probability, at least 0 and below 1.
        p: f64,
    },
}

/// Settings of a convolution. Kernels are square.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// Number of output channels.
    pub filters: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Distance between windows.
    pub stride: usize,
    /// Rows and columns of zeros on each side of the input.
    pub pad: usize,
    /// Number of groups. Each filter sees `channels / groups` input channels.
    pub groups: usize,
    /// Which input channels each filter reads, if not all of its group.
    pub mask: Option<Mask>,
    /// Whether it has a bias.
    pub bias: bool,
    /// Its initial parameters.
    pub init: Init,
    /// How fast it learns.
    pub learning: Learning,
}

/// Settings of a fully connected layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Number of output units.
    pub units: usize,
    /// Which input units each unit reads, if not all.
    pub mask: Option<Mask>,
    /// Whether it has a bias.
    pub bias: bool,
    /// Its initial parameters.
    pub init: Init,
    /// How fast it learns.
    pub learning: Learning,
}

/// How fast a layer learns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Learning {
    /// Its rate is the job's rate times this number.
    Scaled(f64),
    /// Its parameters stay as they are.
    Frozen,
}

/// The initial parameters of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Init {
    /// Standard deviation of the weights, which are normally distributed.
    pub std: f64,
    /// Value of every bias.
    pub bias: f64,
}

/// `y = x / (k + alpha * sum x^2)^beta` over `size` neighbouring channels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lrn {
    /// Channels in a window.
    pub size: usize,
    /// Factor of the sum. It isn't divided by `size`.
    pub alpha: f64,
    /// The exponent.
    pub beta: f64,
    /// The constant term.
    pub k: f64,
}

/// Settings of a pooling layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Side of the window.
    pub kernel: usize,
    /// Distance between windows.
    pub stride: usize,
    /// Rows and columns of padding on each side of the input.
    pub pad: usize,
}

impl Layer {
    /// Whether it has weights.
    pub fn has_weights(&self) -> bool {
        matches!(self.kind, LayerKind::Conv(_) | LayerKind::Linear(_))
    }

    /// The kind's name in a model file.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            LayerKind::Conv(_) => "conv",
            LayerKind::Linear(_) => "linear",
            LayerKind::Relu => "relu",
            LayerKind::Lrn(_) => "lrn",
            LayerKind::MaxPool(_) => "max_pool",
            LayerKind::AvgPool(_) => "avg_pool",
            LayerKind::Dropout { .. } => "dropout",
        }
    }

    /// Number of groups of a convolution, and 1 for every other layer.
    pub fn groups(&self) -> usize {
        match &self.kind {
            LayerKind::Conv(conv) => conv.groups,
            _ => 1,
        }
    }

    /// How fast it learns. None without weights.
    pub fn learning(&self) -> Option<Learning> {
        match &self.kind {
            LayerKind::Conv(conv) => Some(conv.learning),
            LayerKind::Linear(linear) => Some(linear.learning),
            _ => None,
        }
    }

    /// The mask of its weights, if it has one.
    pub fn mask(&self) -> Option<Mask> {
        match &self.kind {
            LayerKind::Conv(conv) => conv.mask,
            LayerKind::Linear(linear) => linear.mask,
            _ => None,
        }
    }

    /// Whether every output element depends on every input channel.
    pub fn sees_all_channels(&self) -> bool {
        match &self.kind {
            LayerKind::Conv(conv) => conv.groups == 1,
            LayerKind::Linear(_) => true,
            _ => false,
        }
    }

    /// Number of terms in the chain of one output element. 0 for a layer without weights.
    pub fn fan_in(&self) -> usize {
        match &self.kind {
            LayerKind::Conv(conv) => self.input.channels / conv.groups * conv.kernel * conv.kernel,
            LayerKind::Linear(_) => self.input.len(),
            _ => 0,
        }
    }

    /// Multiply-adds of one image, forward, all towers together.
    pub fn multiply_adds(&self) -> u64 {
        self.fan_in() as u64 * self.output.len() as u64
    }
}

impl Network {
    /// Parses and checks the text of a model file.
    ///
    /// # Errors
    /// Names the layer, the key, the value, and what would be right.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        check(text.len() <= TEXT_BYTES_MAX, "the model", || {
            format!("its file has more than {TEXT_BYTES_MAX} bytes, the most that a model may have")
        })?;
        let RawModel { name, towers, head, input, layers } = file::parse(text)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let sound = (1..=100).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.');
        check(sound, "the model", || {
            let rule = "must be 1 to 100 letters, digits, \"-\", \"_\" and \".\", because folders are named after it";
            format!("name = {name:?}; {rule}, and must not start with \".\"")
        })?;
        let slices = head.unwrap_or(towers);
        for (key, parts) in [("towers", towers), ("head", slices)] {
            check((1..=PARTS_MAX).contains(&parts), "the model", || {
                format!("{key} = {parts}; must be 1 to {PARTS_MAX}")
            })?;
        }
        if layers.is_empty() {
            return Err(ModelError::NoLayers);
        }
        check(layers.len() <= LAYERS_MAX, "the model", || {
            format!("it has {} layers; must have at most {LAYERS_MAX}", layers.len())
        })?;
        let mut network = Self { name, towers, slices, input, layers: Vec::new(), source: text.to_owned() };
        for raw in layers {
            network.push(raw)?;
        }
        network.check_last()?;
        network.check_parts()?;
        Ok(network)
    }

    /// Number of classes: the units of the last layer.
    pub fn classes(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.output.channels)
    }

    /// Number of parts into which a layer is divided: towers in the trunk, slices in the head.
    pub fn parts(&self, layer: usize) -> usize {
        if self.is_in_head(layer) { self.slices } else { self.towers }
    }

    /// The output channels of a tower, or of a slice of the head, in a layer. If they don't divide evenly, the first ones get one more.
    pub fn slice(&self, layer: usize, tower: TowerIndex) -> Range<usize> {
        part(self.layers[layer].output.channels, self.parts(layer), tower.0)
    }

    /// The same of a layer's input channels.
    pub fn input_slice(&self, layer: usize, tower: TowerIndex) -> Range<usize> {
        part(self.layers[layer].input.channels, self.parts(layer), tower.0)
    }

    /// Multiply-adds of one image in a layer, forward, of a tower or of a slice of the head.
    pub fn multiply_adds_of(&self, layer: usize, tower: TowerIndex) -> u64 {
        let described = &self.layers[layer];
        described.fan_in() as u64 * (self.slice(layer, tower).len() * described.output.pixels()) as u64
    }

    /// Multiply-adds of one image, forward.
    pub fn multiply_adds(&self) -> u64 {
        self.layers.iter().map(Layer::multiply_adds).sum()
    }

    /// The first layer of the head: the final linear layers, with what stands between them. All layers before it are the trunk.
    pub fn head(&self) -> usize {
        let is_of_head =
            |layer: &Layer| matches!(layer.kind, LayerKind::Linear(_) | LayerKind::Relu | LayerKind::Dropout { .. });
        let first = self.layers.iter().rposition(|layer| !is_of_head(layer)).map_or(0, |last| last + 1);
        let is_linear = |layer: &Layer| matches!(layer.kind, LayerKind::Linear(_));
        first + self.layers[first..].iter().position(is_linear).unwrap_or(0)
    }

    /// Whether a layer belongs to the [head](Self::head).
    pub fn is_in_head(&self, layer: usize) -> bool {
        layer >= self.head()
    }

    fn push(&mut self, raw: RawLayer) -> Result<(), ModelError> {
        let name = self.name_of(&raw);
        let place = format!("layer {} ({})", raw.position, shown(&name.as_str().into()));
        check(!self.layers.iter().any(|l| l.name == name), &place, || "another layer has this name".to_owned())?;
        check(is_sound_name(&name), &place, || {
            "its name must be 1 to 100 letters, digits, \"_\", \"-\" and \".\"".to_owned()
        })?;
        let input = self.layers.last().map_or(self.input.shape, |layer| layer.output);
        let first = self.layers.is_empty();
        let weighs = matches!(raw.kind, RawKind::Conv(_) | RawKind::Linear(_));
        check(!first || weighs, &place, || {
            format!("kind = \"{}\"; the first layer must be a conv or a linear", raw.kind.name())
        })?;
        let (kind, output) = Builder { place: &place, towers: self.towers, input, first }.build(raw.kind)?;
        self.layers.push(Layer { name, kind, input, output });
        Ok(())
    }

    /// The name of a layer. A layer without one is named after its kind and its number among that kind.
    fn name_of(&self, raw: &RawLayer) -> String {
        if let Some(name) = &raw.name {
            return name.clone();
        }
        let kind = raw.kind.name();
        let stem = match kind {
            "lrn" => "norm",
            "max_pool" => "maxpool",
            "avg_pool" => "avgpool",
            "dropout" => "drop",
            other => other,
        };
        let earlier = self.layers.iter().filter(|layer| layer.kind_name() == kind).count();
        format!("{stem}{}", earlier + 1)
    }

    /// Each part of a linear layer has a unit, and there is a trunk to differ from.
    fn check_parts(&self) -> Result<(), ModelError> {
        check(self.head() > 0 || self.slices == self.towers, "the model", || {
            let (head, towers) = (self.slices, self.towers);
            format!(
                "head = {head}; a model with only linear layers has no trunk, so head must be equal to towers ({towers}), or be left out"
            )
        })?;
        for (index, layer) in self.layers.iter().enumerate() {
            let LayerKind::Linear(Linear { units, .. }) = layer.kind else { continue };
            let parts = self.parts(index);
            check(units >= parts, &format!("layer {} (\"{}\")", index + 1, layer.name), || {
                let each =
                    if self.is_in_head(index) && self.slices != self.towers { "slice of the head" } else { "tower" };
                format!("units = {units}; must be at least {parts}, one for each {each}")
            })?;
        }
        Ok(())
    }

    fn check_last(&self) -> Result<(), ModelError> {
        let last = self.layers.last().ok_or(ModelError::NoLayers)?;
        let is_linear = matches!(last.kind, LayerKind::Linear(_));
        let place = format!("layer {} (\"{}\")", self.layers.len(), last.name);
        check(is_linear, &place, || {
            format!("kind = \"{}\"; the last layer must be a linear with a unit for each class", last.kind_name())
        })?;
        check(last.output.channels <= usize::from(u16::MAX), &place, || {
            format!("units = {}; a model may have at most {} classes", last.output.channels, u16::MAX)
        })
    }
}

/// Turns a layer of the file into a checked one.
struct Builder<'a> {
    place: &'a str,
    towers: usize,
    input: Shape,
    first: bool,
}

impl Builder<'_> {
    fn build(&self, raw: RawKind) -> Result<(LayerKind, Shape), ModelError> {
        match raw {
            RawKind::Conv(raw) => self.conv(raw),
            RawKind::Linear(raw) => self.linear(raw),
            RawKind::Relu => Ok((LayerKind::Relu, self.input)),
            RawKind::Lrn(raw) => self.lrn(&raw),
            RawKind::MaxPool(raw) => self.pool(&raw).map(|(pool, output)| (LayerKind::MaxPool(pool), output)),
            RawKind::AvgPool(raw) => self.pool(&raw).map(|(pool, output)| (LayerKind::AvgPool(pool), output)),
            RawKind::Dropout { p } => {
                self.check((0.0..1.0).contains(&p), || format!("p = {p}; must be at least 0 and below 1"))?;
                Ok((LayerKind::Dropout { p }, self.input))
            }
        }
    }

    fn conv(&self, raw: file::RawConv) -> Result<(LayerKind, Shape), ModelError> {
        let (filters, groups, towers, channels) = (raw.filters, raw.groups, self.towers, self.input.channels);
        self.check((1..=LENGTH_MAX).contains(&filters), || format!("filters = {filters}; must be 1 to {LENGTH_MAX}"))?;
        self.check(groups >= 1, || "groups = 0; must be at least 1".to_owned())?;
        self.check(filters % towers == 0, || {
            format!("filters = {filters}; must be a multiple of the {towers} towers")
        })?;
        self.check(channels % groups == 0 && filters % groups == 0, || {
            format!("groups = {groups}; must divide its {channels} input channels and its {filters} filters")
        })?;
        self.check(groups == 1 || groups % towers == 0, || {
            format!("groups = {groups}; must be 1 or a multiple of the {towers} towers")
        })?;
        self.check(groups == 1 || self.first || channels % towers == 0, || {
            format!(
                "groups = {groups} needs input channels that are a multiple of the {towers} towers; it has {channels}"
            )
        })?;
        let output = self.window(raw.kernel, raw.stride, raw.pad)?.with_channels(filters);
        self.check(raw.mask.is_none() || groups == 1, || {
            format!("groups = {groups}; a layer with a mask must have groups = 1")
        })?;
        let read = self.check_mask(raw.mask, channels, filters)?;
        let (kernel, stride, pad, mask, bias) = (raw.kernel, raw.stride, raw.pad, raw.mask, raw.bias);
        self.check_weights(channels / groups * kernel * kernel, filters)?;
        let init = self.init(raw.init, read / groups * kernel * kernel)?;
        self.check_size(output)?;
        let learning = self.learning(&raw.learning)?;
        let conv = Conv { filters, kernel, stride, pad, groups, mask, bias, init, learning };
        Ok((LayerKind::Conv(conv), output))
    }

    fn linear(&self, raw: file::RawLinear) -> Result<(LayerKind, Shape), ModelError> {
        let units = raw.units;
        self.check((1..=LENGTH_MAX).contains(&units), || format!("units = {units}; must be 1 to {LENGTH_MAX}"))?;
        let read = self.check_mask(raw.mask, self.input.len(), units)?;
        self.check_weights(self.input.len(), units)?;
        let init = self.init(raw.init, read)?;
        let output = Shape { channels: units, height: 1, width: 1 };
        let (mask, bias, learning) = (raw.mask, raw.bias, self.learning(&raw.learning)?);
        Ok((LayerKind::Linear(Linear { units, mask, bias, init, learning }), output))
    }

    fn learning(&self, raw: &file::RawLearning) -> Result<Learning, ModelError> {
        let scale = raw.lr_scale.unwrap_or(1.0);
        self.check(raw.trainable || raw.lr_scale.is_none(), || {
            format!("lr_scale = {scale}; a layer with trainable = false has no rate")
        })?;
        self.check(scale > 0.0 && scale <= LR_SCALE_MAX, || {
            let range = format!("must be more than 0, and at most {LR_SCALE_MAX}");
            format!("lr_scale = {scale}; {range}; trainable = false freezes a layer")
        })?;
        Ok(if raw.trainable { Learning::Scaled(scale) } else { Learning::Frozen })
    }

    fn lrn(&self, raw: &file::RawLrn) -> Result<(LayerKind, Shape), ModelError> {
        let lrn = Lrn { size: raw.size, alpha: raw.alpha, beta: raw.beta, k: raw.k };
        self.check((1..=LENGTH_MAX).contains(&lrn.size), || format!("size = {}; must be 1 to {LENGTH_MAX}", lrn.size))?;
        let Lrn { alpha, beta, k, .. } = lrn;
        self.check(alpha.is_finite() && alpha >= 0.0, || format!("alpha = {alpha}; must be finite and at least 0"))?;
        self.check(beta.is_finite(), || format!("beta = {beta}; must be finite"))?;
        self.check(k.is_finite() && k > 0.0, || format!("k = {k}; must be finite and above 0"))?;
        Ok((LayerKind::Lrn(lrn), self.input))
    }

    fn pool(&self, raw: &file::RawPool) -> Result<(Pool, Shape), ModelError> {
        self.check(raw.pad <= raw.kernel / 2, || {
            format!("pad = {}; must be at most half of kernel = {}, as in PyTorch", raw.pad, raw.kernel)
        })?;
        let output = self.window(raw.kernel, raw.stride, raw.pad)?;
        Ok((Pool { kernel: raw.kernel, stride: raw.stride, pad: raw.pad }, output))
    }

    /// Rows and columns of the output. Sizes round down, as in PyTorch.
    fn window(&self, kernel: usize, stride: usize, pad: usize) -> Result<Shape, ModelError> {
        let Shape { channels, height, width } = self.input;
        for (key, value, least) in [("kernel", kernel, 1), ("stride", stride, 1), ("pad", pad, 0)] {
            self.check((least..=LENGTH_MAX).contains(&value), || {
                format!("{key} = {value}; must be {least} to {LENGTH_MAX}")
            })?;
        }
        self.check(kernel <= height + 2 * pad && kernel <= width + 2 * pad, || {
            format!("kernel = {kernel}; must fit into its input of {height}x{width} (rows x columns) with pad = {pad}")
        })?;
        // The padded input must also have a reasonable size, because kernels read it.
        check_elements(Shape { channels, height: height + 2 * pad, width: width + 2 * pad }, self.place)?;
        let side = |length: usize| (length + 2 * pad - kernel) / stride + 1;
        Ok(Shape { channels, height: side(height), width: side(width) })
    }

    fn check_weights(&self, fan_in: usize, outputs: usize) -> Result<(), ModelError> {
        self.check(fan_in.checked_mul(outputs).is_some_and(|n| n <= ELEMENTS_MAX), || {
            format!("it has {fan_in} x {outputs} weights; must have at most {ELEMENTS_MAX}")
        })
    }

    /// The number of inputs that each output reads.
    fn check_mask(&self, mask: Option<Mask>, inputs: usize, outputs: usize) -> Result<usize, ModelError> {
        let Some(mask) = mask else { return Ok(inputs) };
        let groups = mask.groups();
        let divides = |count: usize| groups >= 1 && count.is_multiple_of(groups);
        match mask {
            Mask::Blocks { .. } => self.check(divides(inputs) && divides(outputs), || {
                format!("mask: groups = {groups}; must divide its {inputs} inputs and its {outputs} outputs")
            }),
            Mask::Random { .. } => {
                self.check(divides(inputs), || format!("mask: groups = {groups}; must divide its {inputs} inputs"))
            }
        }?;
        Ok(inputs / groups)
    }

    /// `fan_in` is the number of weights of an output that can differ from zero.
    fn init(&self, raw: RawInit, fan_in: usize) -> Result<Init, ModelError> {
        let he = libm::sqrt(2.0 / fan_in as f64);
        let Init { std, bias } = Init { std: raw.std.unwrap_or(he), bias: raw.bias.unwrap_or(0.0) };
        self.check(std.is_finite() && std >= 0.0, || format!("init.std = {std}; must be finite and at least 0"))?;
        self.check(bias.is_finite(), || format!("init.bias = {bias}; must be finite"))?;
        Ok(Init { std, bias })
    }

    fn check_size(&self, shape: Shape) -> Result<(), ModelError> {
        check_elements(shape, self.place)
    }

    fn check(&self, sound: bool, reason: impl FnOnce() -> String) -> Result<(), ModelError> {
        check(sound, self.place, reason)
    }
}

fn is_sound_name(name: &str) -> bool {
    (1..=100).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
