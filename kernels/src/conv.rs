//! A tower's convolution: forward, input gradient and weight gradient, for any groups, stride and pad, each as a product over
//! blocks of its input or of its output's gradient. docs/NUMERICS.md defines the order of every sum.
//!
//! Not here: the choice of a tower's channels (`tower`), and the computation of products (`products`).

use std::ops::Range;

use super::blocks::Blocks;
use super::panels::Panels;
use super::products::{Correlation, End, Gradient, Grid, Order, Seen, Steps, Terms};
use super::tile::Pixels;
use super::{Compute, Maps};

/// Channels of a group that are enough for tiles of weight gradients whose terms share the kernel's row and column.
const CHANNELS_MANY: usize = 8;

/// A tower's convolution. `channels` and `filters` are those that this tower sees and computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
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
#[derive(Clone, Debug)]
struct Phase {
    rows: Axis,
    columns: Axis,
}

/// One axis of a phase.
#[derive(Clone, Debug)]
struct Axis {
    /// Kernel lines that are read, in ascending order of the line of dy: so from the last to the first. At least one.
    taps: Vec<usize>,
    /// The first input line, and how many there are, a stride apart.
    first: usize,
    count: usize,
    /// Where the first one starts to read, counted with the zeros before dy.
    start: usize,
}

impl Geometry {
    /// Rows of the output.
    pub fn out_height(&self) -> usize {
        (self.height + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
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
    pub fn output(&self, samples: usize) -> Maps {
        Maps { samples, height: self.out_height(), width: self.out_width(), channels: self.filters }
    }

    /// The size of `samples` inputs.
    pub fn input(&self, samples: usize) -> Maps {
        Maps { samples, height: self.height, width: self.width, channels: self.channels }
    }

    /// How the weights of each group lie: a term is (channel, kernel row, kernel column), a column a filter.
    pub fn panels(&self) -> Panels {
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

    /// The taps of a window, by the outputs for which they are not padding. With few channels, columns are not distinguished: tiles
    /// would have too few taps.
    fn terms_by_pixels(&self, blocks: &Blocks) -> Vec<Seen> {
        let are_many = self.group_channels() >= CHANNELS_MANY;
        let mut by_pixels: Vec<Seen> = Vec::new();
        let mut of_taps = Vec::with_capacity(self.kernel * self.kernel);
        for row in 0..self.kernel {
            let lines = self.outputs_of(row, self.height);
            for column in 0..self.kernel {
                let columns = if are_many { self.columns_of(column) } else { 0..self.out_width() };
                let known = by_pixels.iter().position(|these| (&these.lines, &these.columns) == (&lines, &columns));
                of_taps.push(known.unwrap_or(by_pixels.len()));
                if known.is_none() {
                    by_pixels.push(Seen { lines: lines.clone(), columns, terms: Vec::new() });
                }
            }
        }
        for (index, place) in self.taps(blocks).into_iter().enumerate() {
            by_pixels[of_taps[index % of_taps.len()]].terms.push((place, index));
        }
        by_pixels
    }

    /// The columns of outputs for which a kernel column is not padding.
    fn columns_of(&self, kernel_column: usize) -> Range<usize> {
        self.outputs_of(kernel_column, self.width)
    }

    /// The outputs along an axis of `pixels` input pixels for which a line of the kernel is not padding.
    fn outputs_of(&self, kernel_line: usize, pixels: usize) -> Range<usize> {
        let outputs = (pixels + 2 * self.pad - self.kernel) / self.stride + 1;
        let first = self.pad.saturating_sub(kernel_line).div_ceil(self.stride).min(outputs);
        let end = (pixels + self.pad).saturating_sub(kernel_line).div_ceil(self.stride).min(outputs);
        // A line that no output reads starts at 0, so that it stays within a slice.
        if first < end { first..end } else { 0..0 }
    }

    fn phases(&self) -> Vec<Phase> {
        // Input pixels beyond the kernel's reach in a stride are read by no window.
        let phases = 0..self.stride.min(self.kernel);
        let of_row = |row: usize| {
            let columns = phases.clone().map(|column| self.axis(column, self.width));
            columns.map(move |columns| Phase { rows: self.axis(row, self.height), columns })
        };
        phases.clone().flat_map(of_row).collect()
    }

    fn axis(&self, phase: usize, length: usize) -> Axis {
        let taps: Vec<_> = (phase..self.kernel).step_by(self.stride).rev().collect();
        let first = (phase + self.stride - self.pad % self.stride) % self.stride;
        let count = length.saturating_sub(first).div_ceil(self.stride);
        // It reads from (position + pad) / stride - (taps - 1) on, shifted by the zeros before dy.
        let start = (first + self.pad) / self.stride + self.lead() + 1 - taps.len();
        Axis { taps, first, count, start }
    }

    /// How a phase's turned weights of each group lie: a term is (filter, row of dy, column of dy), a column a channel.
    fn turned_panels(&self, phase: &Phase) -> Panels {
        let taps = phase.rows.taps.len() * phase.columns.taps.len();
        Panels::tight(self.group_filters() * taps, self.group_channels())
    }

    /// The terms of a phase's pixels. Lines of zeros around dy are left out.
    fn turned_terms(&self, phase: &Phase, blocks: &Blocks) -> Terms {
        let (lines, columns) = (phase.rows.taps.len(), phase.columns.taps.len());
        let order =
            (0..self.group_filters()).flat_map(|f| (0..lines).flat_map(move |y| (0..columns).map(move |x| (f, y, x))));
        let places = order.map(|(f, y, x)| blocks.at(f, y, x)).collect();
        let held = self.lead()..self.lead() + self.out_height();
        let seen = (0..phase.rows.count).map(|row| {
            let read = phase.rows.start + row..phase.rows.start + row + lines;
            let (first, end) = (held.start.clamp(read.start, read.end), held.end.clamp(read.start, read.end));
            first - read.start..end.max(first) - read.start
        });
        let held = self.lead()..self.lead() + self.out_width();
        let seeing = (0..columns).map(|column| {
            let read = phase.columns.start + column;
            let (first, end) = (held.start.saturating_sub(read), held.end.saturating_sub(read));
            first.min(phase.columns.count)..end.min(phase.columns.count)
        });
        Terms::new(places, lines, seen, seeing)
    }

    /// Where a phase's pixels of a group lie, in dy's blocks and in the input's gradient.
    fn turned_grid(&self, phase: &Phase, blocks: &Blocks, input: Maps, group: usize) -> Grid {
        let Phase { rows, columns } = phase;
        Grid {
            samples: input.samples,
            rows: rows.count,
            columns: columns.count,
            source: Steps {
                first: group * blocks.group() + blocks.at(0, rows.start, columns.start),
                sample: blocks.sample(),
                row: blocks.line(),
                column: blocks.lanes,
            },
            result: Steps {
                first: input.at(0, rows.first, columns.first) + group * self.group_channels(),
                sample: input.at(1, 0, 0),
                row: input.at(0, self.stride, 0),
                column: input.at(0, 0, self.stride),
            },
        }
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
}

/// Weights as [`input_gradient`] reads them: of each phase and group, with filters and channels swapped and kernels turned.
pub fn turned(g: &Geometry, weights: &[f32]) -> Vec<f32> {
    let forward = g.panels();
    let mut turned = Vec::with_capacity(weights.len());
    for phase in g.phases() {
        let (rows, columns) = (&phase.rows.taps, &phase.columns.taps);
        let panels = g.turned_panels(&phase);
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

/// The outputs, (sample, row, column, filter), of an input in blocks. Whether all are finite, before ReLU.
pub fn forward(
    compute: &Compute,
    g: &Geometry,
    weights: &[f32],
    End { bias, rectifies }: End,
    x: &[f32],
    samples: usize,
    y: &mut [f32],
) -> bool {
    let (blocks, panels, output) = (g.input_blocks(samples), g.panels(), g.output(samples));
    assert!(weights.len() == g.groups * panels.len(), "a group's weights lead out of its slice");
    let seen = (0..output.height).map(|row| g.kernel_rows_of(row));
    let seeing = (0..g.kernel).map(|column| g.columns_of(column));
    let terms = Terms::new(g.taps(&blocks), g.kernel, seen, seeing);
    let mut finite = true;
    for (group, weights) in weights.chunks_exact(panels.len()).enumerate() {
        let first = group * g.group_filters();
        let end = panels.ends(bias.map(|bias| &bias[first..first + g.group_filters()]));
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
        let product = Correlation { source: x, terms: &terms, panels, weights, end: &end, rectifies, grid, order };
        finite &= product.run(compute, y);
    }
    finite
}

/// The gradient with respect to the input, (sample, row, column, channel), of dy in blocks. Whether all is finite.
pub fn input_gradient(
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
        let (panels, terms) = (g.turned_panels(&phase), g.turned_terms(&phase, &blocks));
        let end = panels.ends(None);
        for group in 0..g.groups {
            let (these, rest) = weights.split_at(panels.len());
            weights = rest;
            let (grid, order) = (g.turned_grid(&phase, &blocks, input, group), Order::Weights);
            let (source, weights, rectifies) = (dy, these, false);
            let product = Correlation { source, terms: &terms, panels, weights, end: &end, rectifies, grid, order };
            finite &= product.run(compute, dx);
        }
    }
    finite
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
    let (input, gradient, panels) = (g.input_blocks(samples), g.gradient_blocks(samples), g.panels());
    assert!(dw.len() == g.groups * panels.len(), "a group's weight gradient leads out of its slice");
    let terms = g.terms_by_pixels(&input);
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
