//! A network as a graph of ONNX operators. Values are (image, channel, row, column), or (image, unit) after a linear layer.
//!
//! Towers do not show, except in local response normalisation, which stays within a tower: the channels are split, normalised and
//! concatenated. Dropout does nothing in a trained network, so it is left out.

use convoy_common::index::TowerIndex;
use convoy_common::model::{Conv, Input, Layer, LayerKind, Linear, Lrn, Network, Pool, Shape};
use convoy_common::parameters::Tensors;

use crate::messages::{
    Attribute, AttributeKind, Dim, Dims, Element, Graph, Length, Node, Tensor, TensorType, Value, ValueType,
};
use crate::{IMAGES, LOGITS, OnnxError};

/// The name of the conversion of bytes. No layer has a colon in its name.
const PIXELS: &str = ":pixels";

/// The graph of a network with these weights.
pub(crate) fn graph(network: &Network, weights: &Tensors) -> Result<Graph, OnnxError> {
    let shape = network.input.shape;
    let images = [shape.channels, shape.height, shape.width];
    let mut builder =
        Builder { weights, nodes: Vec::new(), constants: Vec::new(), value: IMAGES.to_owned(), is_flat: false };
    builder.normalise(&network.input);
    for (index, layer) in network.layers.iter().enumerate() {
        builder.layer(network, index, layer)?;
    }
    // The last layer is linear. Its value is the output, under a name of its own.
    if let Some(last) = builder.nodes.last_mut() {
        last.outputs = vec![LOGITS.to_owned()];
    }
    Ok(Graph {
        name: network.name.clone(),
        nodes: builder.nodes,
        constants: builder.constants,
        inputs: vec![value(IMAGES, Element::Uint8, &images)],
        outputs: vec![value(LOGITS, Element::Float, &[network.classes()])],
    })
}

/// A graph that is being built.
struct Builder<'a> {
    weights: &'a Tensors,
    nodes: Vec<Node>,
    constants: Vec<Tensor>,
    /// The name of the last value.
    value: String,
    /// Whether it is (image, unit).
    is_flat: bool,
}

impl Builder<'_> {
    fn layer(&mut self, network: &Network, index: usize, layer: &Layer) -> Result<(), OnnxError> {
        match &layer.kind {
            LayerKind::Conv(conv) => self.conv(&layer.name, conv)?,
            LayerKind::Linear(linear) => self.linear(&layer.name, linear)?,
            LayerKind::Relu => self.node("Relu", &layer.name, &[], Vec::new()),
            LayerKind::Lrn(lrn) => self.lrn(network, index, layer, lrn),
            LayerKind::MaxPool(pool) => self.pool("MaxPool", &layer.name, *pool, Vec::new()),
            LayerKind::AvgPool(pool) => self.pool("AveragePool", &layer.name, *pool, vec![int("count_include_pad", 1)]),
            LayerKind::Dropout { .. } => {}
        }
        Ok(())
    }

    /// Appends a node, whose first input is the last value.
    fn node(&mut self, operator: &str, name: &str, constants: &[String], attributes: Vec<Attribute>) {
        let output = format!("{name}:{}", operator.to_lowercase());
        self.nodes.push(Node {
            inputs: [std::slice::from_ref(&self.value), constants].concat(),
            outputs: vec![output.clone()],
            name: output.clone(),
            operator: operator.to_owned(),
            attributes,
        });
        self.value = output;
    }

    /// Bytes become floats as the model's input says: ((byte / 255) - mean) / std.
    fn normalise(&mut self, input: &Input) {
        let channels = input.shape.channels;
        let scale: Vec<f32> = input.std.iter().map(|std| (1.0 / (255.0 * std)) as f32).collect();
        let shift: Vec<f32> = input.mean.iter().zip(&input.std).map(|(mean, std)| (-mean / std) as f32).collect();
        self.node("Cast", PIXELS, &[], vec![int("to", Element::Float as i64)]);
        let scale = self.floats(":pixels:scale", &[1, channels, 1, 1], &scale);
        self.node("Mul", PIXELS, &[scale], Vec::new());
        let shift = self.floats(":pixels:shift", &[1, channels, 1, 1], &shift);
        self.node("Add", PIXELS, &[shift], Vec::new());
    }

    fn conv(&mut self, name: &str, conv: &Conv) -> Result<(), OnnxError> {
        self.unflatten(name);
        let parameters = self.parameters(name, conv.bias)?;
        let (kernel, stride, pad) = (conv.kernel, conv.stride, conv.pad);
        let attributes = [window(kernel, stride, pad), vec![int("group", conv.groups as i64)]].concat();
        self.node("Conv", name, &parameters, attributes);
        Ok(())
    }

    fn linear(&mut self, name: &str, linear: &Linear) -> Result<(), OnnxError> {
        self.flatten(name);
        let parameters = self.parameters(name, linear.bias)?;
        self.node("Gemm", name, &parameters, vec![int("transB", 1)]);
        Ok(())
    }

    fn pool(&mut self, operator: &str, name: &str, pool: Pool, more: Vec<Attribute>) {
        self.unflatten(name);
        let attributes = [window(pool.kernel, pool.stride, pool.pad), more].concat();
        self.node(operator, name, &[], attributes);
    }

    fn lrn(&mut self, network: &Network, index: usize, layer: &Layer, lrn: &Lrn) {
        self.unflatten(&layer.name);
        let all: Vec<usize> = (0..network.towers).map(|tower| network.slice(index, TowerIndex(tower)).len()).collect();
        let channels: Vec<usize> = all.into_iter().filter(|channels| *channels > 0).collect();
        if let [channels] = channels[..] {
            return self.lrn_of_tower(&layer.name, lrn, layer.output.with_channels(channels));
        }
        let lengths: Vec<i64> = channels.iter().map(|n| *n as i64).collect();
        let lengths = self.ints(&format!("{}:towers", layer.name), &lengths);
        let names: Vec<String> = (0..channels.len()).map(|tower| format!("{}:tower{tower}", layer.name)).collect();
        self.node("Split", &layer.name, &[lengths], vec![int("axis", 1)]);
        if let Some(split) = self.nodes.last_mut() {
            split.outputs.clone_from(&names);
        }
        let normalised = names.iter().zip(&channels).map(|(name, channels)| {
            self.value.clone_from(name);
            self.lrn_of_tower(name, lrn, layer.output.with_channels(*channels));
            self.value.clone()
        });
        let normalised: Vec<String> = normalised.collect();
        self.node("Concat", &layer.name, &[], vec![int("axis", 1)]);
        if let Some(concat) = self.nodes.last_mut() {
            concat.inputs = normalised;
        }
    }

    /// x / (k + alpha * sum x^2)^beta, in operators that every runtime has. onnxruntime's operator LRN refuses even sizes, and alpha and beta of
    /// zero. A convolution over the axis of channels adds up the window `c - size/2 ..= c + (size-1)/2`.
    fn lrn_of_tower(&mut self, name: &str, lrn: &Lrn, shape: Shape) {
        // A wider window sees no more channels.
        let reach = shape.channels.saturating_sub(1);
        let (before, after) = ((lrn.size / 2).min(reach), ((lrn.size - 1) / 2).min(reach));
        let size = before + 1 + after;
        let x = self.value.clone();
        self.node("Mul", name, std::slice::from_ref(&x), Vec::new());
        let (channels, height, width) = (shape.channels as i64, shape.height as i64, shape.width as i64);
        let as_image = self.ints(&format!("{name}:as_image"), &[0, 1, channels, height * width]);
        self.node("Reshape", name, &[as_image], Vec::new());
        let window = self.floats(&format!("{name}:window"), &[1, 1, size, 1], &vec![lrn.alpha as f32; size]);
        let k = self.floats(&format!("{name}:k"), &[1], &[lrn.k as f32]);
        let pads = ints("pads", vec![before as i64, 0, after as i64, 0]);
        self.node("Conv", name, &[window, k], vec![ints("kernel_shape", vec![size as i64, 1]), pads]);
        let as_map = self.ints(&format!("{name}:as_map"), &[0, channels, height, width]);
        self.node("Reshape", &format!("{name}:sum"), &[as_map], Vec::new());
        let beta = self.floats(&format!("{name}:beta"), &[1], &[lrn.beta as f32]);
        self.node("Pow", name, &[beta], Vec::new());
        self.node("Div", name, &[], Vec::new());
        if let Some(quotient) = self.nodes.last_mut() {
            quotient.inputs.insert(0, x);
        }
    }

    fn flatten(&mut self, name: &str) {
        if !self.is_flat {
            self.node("Flatten", name, &[], vec![int("axis", 1)]);
            self.is_flat = true;
        }
    }

    fn unflatten(&mut self, name: &str) {
        if self.is_flat {
            let axes = self.ints(&format!("{name}:axes"), &[2, 3]);
            self.node("Unsqueeze", name, &[axes], Vec::new());
            self.is_flat = false;
        }
    }

    /// The weight and the bias of a layer, as constants.
    fn parameters(&mut self, layer: &str, has_bias: bool) -> Result<Vec<String>, OnnxError> {
        let parts = ["weight", "bias"].into_iter().take(if has_bias { 2 } else { 1 });
        parts.map(|part| self.parameter(format!("{layer}.{part}"))).collect()
    }

    fn parameter(&mut self, name: String) -> Result<String, OnnxError> {
        let tensor = self.weights.get(&name).ok_or_else(|| OnnxError::Missing { name: name.clone() })?;
        let values: Vec<f32> = tensor.iter().copied().collect();
        Ok(self.floats(&name, tensor.shape(), &values))
    }

    fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let dims = shape.iter().map(|length| *length as i64).collect();
        self.constant(Tensor { dims, element: Element::Float as i32, name: name.to_owned(), bytes })
    }

    fn ints(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let dims = vec![values.len() as i64];
        self.constant(Tensor { dims, element: Element::Int64 as i32, name: name.to_owned(), bytes })
    }

    fn constant(&mut self, tensor: Tensor) -> String {
        let name = tensor.name.clone();
        self.constants.push(tensor);
        name
    }
}

fn window(kernel: usize, stride: usize, pad: usize) -> Vec<Attribute> {
    let both = |length: usize, times: usize| vec![length as i64; times];
    vec![ints("kernel_shape", both(kernel, 2)), ints("strides", both(stride, 2)), ints("pads", both(pad, 4))]
}

fn int(name: &str, int: i64) -> Attribute {
    Attribute { name: name.to_owned(), int, kind: AttributeKind::Int as i32, ..Attribute::default() }
}

fn ints(name: &str, ints: Vec<i64>) -> Attribute {
    Attribute { name: name.to_owned(), ints, kind: AttributeKind::Ints as i32, ..Attribute::default() }
}

/// A value for any number of images.
fn value(name: &str, element: Element, lengths: &[usize]) -> Value {
    let known = lengths.iter().map(|length| Length::Known(*length as i64));
    let all = std::iter::once(Length::Any("N".to_owned())).chain(known);
    let shape = Dims { dims: all.map(|length| Dim { length: Some(length) }).collect() };
    let tensor = TensorType { element: element as i32, shape: Some(shape) };
    Value { name: name.to_owned(), of: Some(ValueType { tensor: Some(tensor) }) }
}
