//! A tower's convolution: forward, input gradient and weight gradient, for any groups, stride and pad, each as a product over
//! blocks of its input or of its output's gradient. Orders: docs/NUMERICS.md.
//!
//! Not here: which channels a tower is given (`tower`), and how products are computed (`products`).

use super::blocks::Blocks;
use super::panels::Panels;
use super::products::{Correlation, Gradient, Grid, Lines, Order, Steps, Terms};
use super::tile::{Pixels, UNIT};
use super::{Compute, Maps};
use std::ops::Range;

/// A tower's convolution. `channels` and `filters` are those that this tower sees and computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Input channels in memory.
    pub channels: usize,
    /// The tower's filters.
    pub filters: usize,
    /// The tower's groups.
    pub groups: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Zeros around the input.
    pub pad: usize,
    /// Rows of the unpadded input.
    pub height: usize,
    /// Columns of the unpadded input.
    pub width: usize,
}

/// The input pixels whose gradient reads the same kernel taps: those with the same `(position + pad) mod stride`.
#[derive(Clone, Copy, Debug)]
struct Phase {
    row: usize,
    column: usize,
}

impl Geometry {
    /// Rows of the output.
    pub(crate) fn out_height(&self) -> usize {
        (self.height + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// Columns of the output.
    pub(crate) fn out_width(&self) -> usize {
        (self.width + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// Terms of an output's chain.
    fn fan_in(&self) -> usize {
        self.group_channels() * self.kernel * self.kernel
    }

    fn group_channels(&self) -> usize {
        self.channels / self.groups
    }

    fn group_filters(&self) -> usize {
        self.filters / self.groups
    }

    /// The size of `samples` outputs.
    pub(crate) fn output(&self, samples: usize) -> Maps {
        Maps { samples, height: self.out_height(), width: self.out_width(), channels: self.filters }
    }

    /// The size of `samples` inputs.
    pub(crate) fn input(&self, samples: usize) -> Maps {
        Maps { samples, height: self.height, width: self.width, channels: self.channels }
    }

    /// How the weights of each group lie: a term is (channel, kernel row, kernel column), a column a filter.
    pub(crate) fn panels(&self) -> Panels {
        Panels::tight(self.fan_in(), self.group_filters())
    }

    /// How [`forward`] and [`weight_gradient`] read the input.
    pub(crate) fn input_blocks(&self, samples: usize) -> Blocks {
        Blocks::to_be_multiplied(self.input(samples), self.groups, (self.pad, self.pad), (self.kernel, self.stride))
    }

    /// How [`input_gradient`] and [`weight_gradient`] read the gradient of the output.
    pub(crate) fn gradient_blocks(&self, samples: usize) -> Blocks {
        let blocks = Blocks::to_be_multiplied(self.output(samples), self.groups, (self.lead(), self.trail()), (1, 1));
        blocks.in_units(self.panels().units)
    }

    /// Where the taps of a window lie from its start, in the order of the weight's layout.
    fn taps(&self, blocks: &Blocks) -> Vec<usize> {
        let side = 0..self.kernel;
        let order = (0..self.group_channels())
            .flat_map(|c| side.clone().flat_map(move |y| (0..self.kernel).map(move |x| (c, y, x))));
        order.map(|(c, y, x)| blocks.at(c, y, x)).collect()
    }

    /// The kernel rows that are not padding for a whole row of outputs.
    fn kernel_rows_of(&self, row: usize) -> Range<usize> {
        let first = self.pad.saturating_sub(row * self.stride).min(self.kernel);
        let end = (self.height + self.pad).saturating_sub(row * self.stride).min(self.kernel);
        first..end.max(first)
    }

    /// The taps of a window, by the rows of outputs for which they are not padding.
    fn terms_by_lines(&self, blocks: &Blocks) -> Vec<Lines> {
        let mut by_lines: Vec<Lines> = Vec::new();
        for (index, place) in self.taps(blocks).into_iter().enumerate() {
            let lines = self.rows_of(index / self.kernel % self.kernel);
            match by_lines.iter_mut().find(|these| these.lines == lines) {
                Some(these) => these.terms.push((place, index)),
                None => by_lines.push(Lines { lines, terms: vec![(place, index)] }),
            }
        }
        by_lines
    }

    /// The rows of outputs for which a kernel row is not padding.
    fn rows_of(&self, kernel_row: usize) -> Range<usize> {
        let sees = |row: usize| self.kernel_rows_of(row).contains(&kernel_row);
        let first = (0..self.out_height()).find(|row| sees(*row)).unwrap_or(0);
        let end = (first..self.out_height()).find(|row| !sees(*row)).unwrap_or(self.out_height());
        if sees(first) { first..end } else { 0..0 }
    }

    fn phases(&self) -> impl Iterator<Item = Phase> + use<> {
        // Input pixels beyond the kernel's reach in a stride are read by no window.
        let stride = self.stride.min(self.kernel);
        (0..stride).flat_map(move |row| (0..stride).map(move |column| Phase { row, column }))
    }

    /// Kernel rows (or columns) that a phase reads, in ascending order of the row of dy: so from the last to the first.
    fn kernel_lines(&self, phase: usize) -> Vec<usize> {
        (phase..self.kernel).step_by(self.stride).rev().collect()
    }

    /// How a phase's turned weights of each group lie: a term is (filter, row of dy, column of dy), a column a channel.
    fn turned_panels(&self, phase: Phase) -> Panels {
        let lines = self.kernel_lines(phase.row).len() * self.kernel_lines(phase.column).len();
        Panels::tight(self.group_filters() * lines, self.group_channels())
    }

    /// Rows and columns of zeros before dy, so that every line of a phase can be read.
    fn lead(&self) -> usize {
        (self.kernel - 1) / self.stride
    }

    /// Rows or columns of zeros after dy: as far as the last input line reaches.
    fn trail(&self) -> usize {
        let reach = |length: usize, out: usize| ((length - 1 + self.pad) / self.stride + 1).saturating_sub(out);
        reach(self.height, self.out_height()).max(reach(self.width, self.out_width()))
    }

    /// The input lines of a phase: the first one, and how many there are.
    fn lines_of(&self, phase: usize, length: usize) -> (usize, usize) {
        let first = (phase + self.stride - self.pad % self.stride) % self.stride;
        (first, length.saturating_sub(first).div_ceil(self.stride))
    }
}

/// Weights as [`input_gradient`] reads them: of each phase and group, with filters and channels swapped and kernels turned.
pub(crate) fn turned(g: &Geometry, weights: &[f32]) -> Vec<f32> {
    let forward = g.panels();
    let mut turned = Vec::with_capacity(weights.len());
    for phase in g.phases() {
        let (rows, columns) = (g.kernel_lines(phase.row), g.kernel_lines(phase.column));
        let panels = g.turned_panels(phase);
        for group in weights.chunks_exact(forward.len()) {
            let start = turned.len();
            turned.resize(start + panels.len(), 0.0);
            for (filter, from) in forward.columns_of(group).enumerate() {
                let terms = rows.iter().flat_map(|row| columns.iter().map(move |column| row * g.kernel + column));
                for (line, tap) in terms.enumerate() {
                    let term = filter * rows.len() * columns.len() + line;
                    panels
                        .set_row(&mut turned[start..], term, |channel| from.term(channel * g.kernel * g.kernel + tap));
                }
            }
        }
    }
    turned
}

/// The outputs, (sample, row, column, filter), of an input in blocks. Whether all are finite.
pub(crate) fn forward(
    compute: &Compute,
    g: &Geometry,
    weights: &[f32],
    bias: Option<&[f32]>,
    x: &[f32],
    samples: usize,
    y: &mut [f32],
) -> bool {
    let (blocks, panels, output) = (g.input_blocks(samples), g.panels(), g.output(samples));
    assert!(weights.len() == g.groups * panels.len(), "a group's weights lead out of its slice");
    let seen = (0..output.height).map(|row| g.kernel_rows_of(row));
    let terms = Terms::new(g.taps(&blocks), g.kernel, g.kernel, seen);
    let mut finite = true;
    for (group, weights) in weights.chunks_exact(panels.len()).enumerate() {
        let first = group * g.group_filters();
        let mut end = vec![0.0; panels.units * UNIT];
        if let Some(bias) = bias {
            end[..g.group_filters()].copy_from_slice(&bias[first..first + g.group_filters()]);
        }
        let grid = Grid {
            samples,
            rows: output.height,
            columns: output.width,
            source: Steps {
                first: group * blocks.group(),
                sample: blocks.sample(),
                row: g.stride * blocks.line(),
                column: blocks.lanes,
            },
            result: Steps { first, sample: output.at(1, 0, 0), row: output.at(0, 1, 0), column: output.at(0, 0, 1) },
        };
        let order = Order::Weights;
        finite &= Correlation { source: x, terms: &terms, panels, weights, end: &end, grid, order }.run(compute, y);
    }
    finite
}

/// The gradient with respect to the input, (sample, row, column, channel), of dy in blocks. Whether all is finite.
pub(crate) fn input_gradient(
    compute: &Compute,
    g: &Geometry,
    turned: &[f32],
    dy: &[f32],
    samples: usize,
    dx: &mut [f32],
) -> bool {
    if g.stride > g.kernel {
        dx.fill(0.0);
    }
    let (blocks, input) = (g.gradient_blocks(samples), g.input(samples));
    let (mut finite, mut weights) = (true, turned);
    for phase in g.phases() {
        let panels = g.turned_panels(phase);
        let (lines, columns) = (g.kernel_lines(phase.row).len(), g.kernel_lines(phase.column).len());
        let order =
            (0..g.group_filters()).flat_map(|f| (0..lines).flat_map(move |y| (0..columns).map(move |x| (f, y, x))));
        let terms = order.map(|(f, y, x)| blocks.at(f, y, x)).collect();
        let ((first_row, rows), (first_column, wide)) =
            (g.lines_of(phase.row, g.height), g.lines_of(phase.column, g.width));
        // The first line that a pixel reads is (position + pad) / stride - (lines - 1), shifted by the zeros before dy.
        let start = |position: usize, lines: usize| (position + g.pad) / g.stride + g.lead() + 1 - lines;
        // Of dy's lines with their zeros around them, those that hold anything.
        let held = g.lead()..g.lead() + g.out_height();
        let seen = (0..rows).map(|row| {
            let first = start(first_row, lines) + row;
            let seen = held.start.clamp(first, first + lines)..held.end.clamp(first, first + lines);
            seen.start - first..seen.end.max(seen.start) - first
        });
        let terms = Terms::new(terms, columns, lines, seen);
        let end = vec![0.0; panels.units * UNIT];
        for group in 0..g.groups {
            let (these, rest) = weights.split_at(panels.len());
            weights = rest;
            let grid = Grid {
                samples,
                rows,
                columns: wide,
                source: Steps {
                    first: group * blocks.group() + blocks.at(0, start(first_row, lines), start(first_column, columns)),
                    sample: blocks.sample(),
                    row: blocks.line(),
                    column: blocks.lanes,
                },
                result: Steps {
                    first: input.at(0, first_row, first_column) + group * g.group_channels(),
                    sample: input.at(1, 0, 0),
                    row: input.at(0, g.stride, 0),
                    column: input.at(0, 0, g.stride),
                },
            };
            let order = Order::Weights;
            let product = Correlation { source: dy, terms: &terms, panels, weights: these, end: &end, grid, order };
            finite &= product.run(compute, dx);
        }
    }
    finite
}

/// Goes on with the weight gradient's chains in `dw`, which lies as the weights do, or starts them; input and dy in blocks.
/// Whether all are finite.
pub(crate) fn weight_gradient(
    compute: &Compute,
    g: &Geometry,
    x: &[f32],
    dy: &[f32],
    samples: usize,
    goes_on: bool,
    dw: &mut [f32],
) -> bool {
    let (input, gradient, panels) = (g.input_blocks(samples), g.gradient_blocks(samples), g.panels());
    assert!(dw.len() == g.groups * panels.len(), "a group's weight gradient leads out of its slice");
    let terms = g.terms_by_lines(&input);
    let pixels = Pixels {
        samples,
        lines: g.out_height(),
        columns: g.out_width(),
        a_sample: input.sample(),
        b_sample: gradient.sample(),
        a_line: g.stride * input.line(),
        b_line: gradient.line(),
        a_column: input.lanes,
    };
    let mut finite = true;
    for (group, dw) in dw.chunks_exact_mut(panels.len()).enumerate() {
        let product = Gradient {
            source: &x[group * input.group()..],
            terms: &terms,
            gradient: dy,
            plane: gradient.plane(),
            first: group * gradient.group() + gradient.at(0, g.lead(), g.lead()),
            pixels,
            panels,
        };
        finite &= product.run(compute, goes_on, dw);
    }
    finite
}
