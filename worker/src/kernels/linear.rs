//! A tower's linear layer: forward, input gradient and weight gradient as products of the matrix engine. Inputs are
//! (sample, input unit), outputs (sample, output unit), weights [output unit, input unit]. Orders: docs/NUMERICS.md.
//!
//! Not here: the bias (`elementwise`), and flattening feature maps (`tower`).

use super::Compute;
use super::gemm::{self, Left, Right, Target};

/// Units that go in, and the tower's units that come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Input units.
    pub inputs: usize,
    /// The tower's output units.
    pub outputs: usize,
}

/// The outputs before the bias. Vectors lie over samples, so that weights are read once, as they lie.
pub(crate) fn forward(compute: &Compute, g: &Geometry, weight: &[f32], x: &[f32], samples: usize) -> Vec<f32> {
    let packed = gemm::pack(g.inputs, samples, |unit, sample| x[sample * g.inputs + unit]);
    let (rows, terms) = (steps(g.outputs, g.inputs), steps(g.inputs, 1));
    let mut transposed = vec![0.0; g.outputs * samples];
    let left = Left { data: weight, rows: &rows, terms: &terms };
    let right = Right::packed(&packed, samples, g.inputs);
    gemm::accumulate(compute, left, right, &mut transposed, Target { stride: samples, first: 0 });
    transpose(&transposed, g.outputs, samples)
}

/// The gradient with respect to the input, before its `+ 0.0`.
pub(crate) fn input_gradient(compute: &Compute, g: &Geometry, weight: &[f32], dy: &[f32], samples: usize) -> Vec<f32> {
    let (rows, terms) = (steps(samples, g.outputs), steps(g.outputs, 1));
    let mut dx = vec![0.0; samples * g.inputs];
    let left = Left { data: dy, rows: &rows, terms: &terms };
    let right = Right::natural(weight, g.inputs, g.inputs);
    gemm::accumulate(compute, left, right, &mut dx, Target { stride: g.inputs, first: 0 });
    dx
}

/// Goes on with the weight gradient's chains in `dw`, which lies as the weight does.
pub(crate) fn weight_gradient(compute: &Compute, g: &Geometry, x: &[f32], dy: &[f32], samples: usize, dw: &mut [f32]) {
    let (rows, terms) = (steps(g.outputs, 1), steps(samples, g.outputs));
    let left = Left { data: dy, rows: &rows, terms: &terms };
    let right = Right::natural(x, g.inputs, g.inputs);
    gemm::accumulate(compute, left, right, dw, Target { stride: g.inputs, first: 0 });
}

fn steps(count: usize, stride: usize) -> Vec<usize> {
    (0..count).map(|index| index * stride).collect()
}

/// Of (rows, columns), (columns, rows).
fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (column, line) in out.chunks_exact_mut(rows.max(1)).enumerate() {
        for (row, slot) in line.iter_mut().enumerate() {
            *slot = x[row * columns + column];
        }
    }
    out
}
