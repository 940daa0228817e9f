//! A layer with weights: a convolution or a linear layer. Operands arrive in the layout between layers. They are copied into
//! blocks once, for both the forward pass and the weight gradient.
//!
//! Not here: the passes themselves (`conv`, `linear`).

use super::memory::Tensor;
use super::panels::Panels;
use super::products::End;
use super::{Compute, conv, elementwise, linear};

/// A layer's passes.
#[derive(Clone, Copy, Debug)]
pub enum Affine {
    /// A convolution.
    Conv(conv::Geometry),
    /// A linear layer.
    Linear(linear::Geometry),
}

/// A result, and whether all of it is finite.
pub type Checked = (Tensor, bool);

/// The gradient of an output: as it lies between layers, and in blocks.
#[derive(Debug)]
pub struct OutputGradient {
    /// For linear layers alone.
    natural: Option<Tensor>,
    blocks: Tensor,
}

/// The operands of a layer's weight gradient over some samples.
#[derive(Debug)]
pub struct Operands {
    /// The input, in blocks.
    pub x: Tensor,
    /// The gradient of the output.
    pub dy: OutputGradient,
    /// Samples.
    pub samples: usize,
}

impl OutputGradient {
    /// Its blocks alone, which is enough for the gradients of weights and biases.
    pub fn in_blocks(self) -> Self {
        Self { natural: None, ..self }
    }
}

impl Affine {
    /// How the weights of each group lie.
    pub fn panels(&self) -> Panels {
        match self {
            Affine::Conv(g) => g.panels(),
            Affine::Linear(g) => g.panels(),
        }
    }

    /// Groups of weights, one after the other.
    pub fn groups(&self) -> usize {
        match self {
            Affine::Conv(g) => g.groups,
            Affine::Linear(_) => 1,
        }
    }

    /// Multiply-adds of each pass over `samples` samples.
    pub fn multiply_adds(&self, samples: usize) -> usize {
        let outputs = match self {
            Affine::Conv(g) => g.output(samples),
            Affine::Linear(g) => g.output(samples),
        };
        outputs.len() * self.panels().terms
    }

    /// Floats of an input in blocks.
    pub fn input_floats(&self, samples: usize) -> usize {
        match self {
            Affine::Conv(g) => g.input_blocks(samples).len(),
            Affine::Linear(g) => g.input_blocks(samples).len(),
        }
    }

    /// Floats of a gradient's blocks.
    pub fn gradient_floats(&self, samples: usize) -> usize {
        match self {
            Affine::Conv(g) => g.gradient_blocks(samples).len(),
            Affine::Linear(g) => g.gradient_blocks(samples).len(),
        }
    }

    /// An input in blocks.
    pub fn input(&self, compute: &Compute, x: &[f32], samples: usize) -> Tensor {
        match self {
            Affine::Conv(g) => g.input_blocks(samples).filled(compute, x, None, g.input(samples)),
            Affine::Linear(g) => linear::to_blocks(compute, g, x, samples),
        }
    }

    /// The gradient of the chains, with its blocks, from that of the output; `y` is the output if it has gone through ReLU.
    pub fn gradient(&self, compute: &Compute, mut dy: Tensor, y: Option<&[f32]>, samples: usize) -> OutputGradient {
        match self {
            Affine::Conv(g) => {
                let blocks = g.gradient_blocks(samples).filled(compute, &dy, y, g.output(samples));
                OutputGradient { natural: None, blocks }
            }
            Affine::Linear(g) => {
                if let Some(y) = y {
                    elementwise::relu_backward(compute, y, &mut dy);
                }
                let blocks = g.gradient_blocks(samples).filled(compute, &dy, None, g.output(samples));
                OutputGradient { natural: Some(dy), blocks }
            }
        }
    }

    /// The operands of neighbouring samples as one, in the same order. Only for linear layers, whose samples lie in one line.
    pub fn joined(&self, compute: &Compute, mut parts: Vec<Operands>) -> Operands {
        let Affine::Linear(g) = self else { unreachable!("the operands of convolutions are not kept") };
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let x: Vec<&[f32]> = parts.iter().map(|part| &part.x[..]).collect();
        let dy: Vec<&[f32]> = parts.iter().map(|part| &part.dy.blocks[..]).collect();
        let x = linear::side_by_side(compute, g.input_blocks(1).blocks, &x);
        let blocks = linear::side_by_side(compute, g.gradient_blocks(1).blocks, &dy);
        let samples = parts.iter().map(|part| part.samples).sum();
        Operands { x, dy: OutputGradient { natural: None, blocks }, samples }
    }

    /// Continues the bias gradient's chains in `db`.
    pub fn bias_gradient(&self, compute: &Compute, dy: &OutputGradient, samples: usize, db: &mut [f32]) {
        let blocks = match self {
            Affine::Conv(g) => g.gradient_blocks(samples),
            Affine::Linear(g) => g.gradient_blocks(samples),
        };
        blocks.add_pixels(compute.isa, &dy.blocks, db);
    }

    /// The outputs of an input in blocks. The finiteness check applies to the values before ReLU.
    pub fn forward(&self, compute: &Compute, weights: &[f32], end: End, x: &[f32], samples: usize) -> Checked {
        match self {
            Affine::Conv(g) => {
                let mut y = compute.tensor(g.output(samples).len());
                let is_finite = conv::forward(compute, g, weights, end, x, samples, &mut y);
                (y, is_finite)
            }
            Affine::Linear(g) => {
                let mut y = compute.tensor(g.output(samples).len());
                let is_finite = linear::forward(compute, g, weights, end, x, samples, &mut y);
                (y, is_finite)
            }
        }
    }

    /// Continues the weight gradient's chains in `dw`, or starts them, from an input in blocks. Whether all are finite.
    pub fn weight_gradient(
        &self,
        compute: &Compute,
        x: &[f32],
        dy: &OutputGradient,
        samples: usize,
        goes_on: bool,
        dw: &mut [f32],
    ) -> bool {
        match self {
            Affine::Conv(g) => conv::weight_gradient(compute, g, x, &dy.blocks, samples, goes_on, dw),
            Affine::Linear(g) => linear::weight_gradient(compute, g, x, &dy.blocks, samples, goes_on, dw),
        }
    }

    /// The gradient of the input.
    pub fn input_gradient(&self, compute: &Compute, weights: &[f32], dy: &OutputGradient, samples: usize) -> Checked {
        match self {
            Affine::Conv(g) => {
                let mut dx = compute.tensor(g.input(samples).len());
                let turned = conv::turned(g, weights);
                let is_finite = conv::input_gradient(compute, g, &turned, &dy.blocks, samples, &mut dx);
                (dx, is_finite)
            }
            Affine::Linear(g) => {
                let natural = dy.natural.as_deref().expect("a linear layer's gradient keeps it");
                let mut dx = compute.tensor(g.input(samples).len());
                let is_finite = linear::input_gradient(compute, g, weights, natural, samples, &mut dx);
                (dx, is_finite)
            }
        }
    }
}
