//! A tower's linear layer, as a convolution with one tap over a line of samples. Inputs and outputs are (sample, unit). Every
//! chain counts input units as (channel, row, column), whatever their order in memory. docs/NUMERICS.md defines the order of
//! every sum.
//!
//! Not here: the computation of products (`products`).

use super::blocks::Blocks;
use super::memory::Tensor;
use super::panels::Panels;
use super::products::{Correlation, End, Gradient, Grid, Order, Seen, Steps, Terms};
use super::tile::{Pixels, UNIT};
use super::{Compute, Maps};

/// The shape of the input, and the tower's output units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Input channels.
    pub channels: usize,
    /// Pixels of each channel.
    pub pixels: usize,
    /// The tower's output units.
    pub outputs: usize,
}

impl Geometry {
    /// Input units.
    pub fn inputs(&self) -> usize {
        self.channels * self.pixels
    }

    /// How the weights lie: a term is an input unit, a column an output unit.
    pub fn panels(&self) -> Panels {
        // So that the input gradient finds neighbouring input units evenly apart.
        Panels::in_twos(self.inputs(), self.outputs)
    }

    /// The samples of a batch side by side in one line.
    pub fn input(&self, samples: usize) -> Maps {
        Maps { samples: 1, height: 1, width: samples, channels: self.inputs() }
    }

    /// Likewise.
    pub fn output(&self, samples: usize) -> Maps {
        Maps { channels: self.outputs, ..self.input(samples) }
    }

    /// How [`forward`] and [`weight_gradient`] read the input; [`to_blocks`] makes it so.
    pub(crate) fn input_blocks(&self, samples: usize) -> Blocks {
        Blocks::to_be_multiplied(self.input(samples), 1, (0, 0), (1, 1))
    }

    /// How [`weight_gradient`] reads the gradient of the output.
    pub(crate) fn gradient_blocks(&self, samples: usize) -> Blocks {
        Blocks::to_be_multiplied(self.output(samples), 1, (0, 0), (1, 1)).in_units(self.panels().units)
    }

    /// Where an input unit lies in a sample, which is (pixel, channel) in memory.
    fn place(&self, unit: usize) -> usize {
        unit % self.pixels * self.channels + unit / self.pixels
    }

    fn taps(&self, blocks: &Blocks) -> Vec<usize> {
        (0..self.inputs()).map(|unit| blocks.at(unit, 0, 0)).collect()
    }
}

/// An input, (sample, pixel, channel), in blocks of neighbouring units: neighbours in a chain are neighbours in the cache.
pub fn to_blocks(compute: &Compute, g: &Geometry, x: &[f32], samples: usize) -> Tensor {
    let (blocks, inputs) = (g.input_blocks(samples), g.inputs());
    assert_eq!(x.len(), inputs * samples, "an input of another size");
    let mut out = compute.zeros(blocks.len());
    compute.for_samples(&mut out, blocks.blocks, |block, plane| {
        let first = block * blocks.lanes;
        let places: Vec<usize> = (first..inputs.min(first + blocks.lanes)).map(|unit| g.place(unit)).collect();
        for (lanes, x) in plane.chunks_exact_mut(blocks.lanes).zip(x.chunks_exact(inputs)) {
            lanes.iter_mut().zip(&places).for_each(|(lane, place)| *lane = x[*place]);
        }
    });
    out
}

/// Inputs or gradients of several runs of samples as one: each has `blocks` blocks, whose samples are joined in the order of `parts`.
pub fn side_by_side(compute: &Compute, blocks: usize, parts: &[&[f32]]) -> Tensor {
    let mut all = compute.tensor(parts.iter().map(|part| part.len()).sum());
    compute.for_samples(&mut all, blocks, |block, mut rest| {
        for part in parts {
            let length = part.len() / blocks;
            let (line, later) = rest.split_at_mut(length);
            line.copy_from_slice(&part[block * length..][..length]);
            rest = later;
        }
    });
    all
}

/// The outputs, (sample, unit), of an input in blocks. Whether all are finite, before ReLU.
pub fn forward(
    compute: &Compute,
    g: &Geometry,
    weights: &[f32],
    End { bias, rectifies }: End,
    x: &[f32],
    samples: usize,
    y: &mut [f32],
) -> bool {
    let (blocks, panels) = (g.input_blocks(samples), g.panels());
    let end = panels.ends(bias);
    let grid = Grid {
        samples: 1,
        rows: 1,
        columns: samples,
        source: Steps { first: 0, sample: 0, row: 0, column: blocks.lanes },
        result: Steps { first: 0, sample: 0, row: 0, column: g.outputs },
    };
    let (terms, order) = (Terms::whole(g.taps(&blocks)), Order::Weights);
    Correlation { source: x, terms: &terms, panels, weights, end: &end, rectifies, grid, order }.run(compute, y)
}

/// The gradient with respect to the input, (sample, unit), as it lies in memory. Whether all is finite.
///
/// Weights are read as they lie, a tile of input units at a time: vectors lie over samples, and the result is turned.
pub fn input_gradient(
    compute: &Compute,
    g: &Geometry,
    weights: &[f32],
    dy: &[f32],
    samples: usize,
    dx: &mut [f32],
) -> bool {
    let panels = g.panels();
    let turned = Panels::tight(g.outputs, samples);
    let dy = turned.pack(1, dy);
    let end = turned.ends(None);
    let width = panels.panel(0).units * UNIT;
    let terms = Terms::whole((0..g.outputs).map(|o| o / width * width * g.inputs() + o % width).collect());
    let grid = Grid {
        samples: 1,
        rows: 1,
        columns: g.inputs(),
        source: Steps { first: 0, sample: 0, row: 0, column: width },
        result: Steps { first: 0, sample: 0, row: 0, column: samples },
    };
    let mut by_unit = compute.tensor(g.inputs() * samples);
    let product = Correlation {
        source: weights,
        terms: &terms,
        panels: turned,
        weights: &dy,
        end: &end,
        rectifies: false,
        grid,
        order: Order::Source,
    };
    let finite = product.run(compute, &mut by_unit);
    turn(compute, g, &by_unit, dx, samples);
    finite
}

/// From (unit, sample) to (sample, pixel, channel), a few units at a time: their lines stay in the cache.
fn turn(compute: &Compute, g: &Geometry, by_unit: &[f32], dx: &mut [f32], samples: usize) {
    let inputs = g.inputs();
    compute.for_rows(dx, samples, |run, dx| {
        for first in (0..inputs).step_by(UNIT) {
            let units = first..inputs.min(first + UNIT);
            for (sample, dx) in run.clone().zip(dx.chunks_exact_mut(inputs)) {
                units.clone().for_each(|unit| dx[g.place(unit)] = by_unit[unit * samples + sample]);
            }
        }
    });
}

/// Continues the weight gradient's chains in `dw`, which lies as the weights do, or starts them; input and dy in blocks.
/// Whether all are finite.
pub fn weight_gradient(
    compute: &Compute,
    g: &Geometry,
    x: &[f32],
    dy: &[f32],
    samples: usize,
    goes_on: bool,
    dw: &mut [f32],
) -> bool {
    let (input, gradient) = (g.input_blocks(samples), g.gradient_blocks(samples));
    let pixels = Pixels {
        samples: 1,
        lines: 1,
        columns: samples,
        a_sample: 0,
        b_sample: 0,
        a_line: 0,
        b_line: 0,
        a_column: input.lanes,
    };
    let terms = g.taps(&input).into_iter().enumerate().map(|(index, place)| (place, index)).collect();
    let (terms, panels) = ([Seen { lines: 0..1, columns: 0..samples, terms }], g.panels());
    Gradient { source: x, terms: &terms, gradient: dy, plane: gradient.plane(), first: 0, pixels, panels }
        .run(compute, goes_on, dw)
}
