//! A tower's convolution: forward, input gradient and weight gradient, for any groups, stride and pad, each as products
//! of the matrix engine over offsets. Orders: docs/NUMERICS.md.
//!
//! Not here: the bias (`elementwise`), and which channels a tower is given (`tower`).

use super::gemm::{self, Left, Right, Target};
use super::{Compute, Maps, padded};

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

/// A convolution's weights in the forms that the passes read, made once a step.
#[derive(Debug)]
pub(crate) struct PackedWeights {
    /// A group each: (panel of filters, (channel, kernel row, kernel column), filter).
    forward: Vec<Vec<f32>>,
    /// A phase and group each: (panel of channels, (filter, row of dy, column of dy), channel).
    backward: Vec<Vec<f32>>,
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
    pub(crate) fn fan_in(&self) -> usize {
        self.group_channels() * self.kernel * self.kernel
    }

    fn group_channels(&self) -> usize {
        self.channels / self.groups
    }

    fn group_filters(&self) -> usize {
        self.filters / self.groups
    }

    fn output(&self, samples: usize) -> Maps {
        Maps { samples, height: self.out_height(), width: self.out_width(), channels: self.filters }
    }

    fn input(&self, samples: usize) -> Maps {
        Maps { samples, height: self.height, width: self.width, channels: self.channels }
    }

    fn padded_input(&self, samples: usize) -> Maps {
        let Maps { height, width, .. } = self.input(samples);
        Maps { height: height + 2 * self.pad, width: width + 2 * self.pad, ..self.input(samples) }
    }

    /// Where the windows of the padded input start, in the order of the outputs.
    fn windows(&self, samples: usize) -> Vec<usize> {
        let padded = self.padded_input(samples);
        let (height, width) = (self.out_height(), self.out_width());
        let pixels = (0..samples).flat_map(|n| (0..height).flat_map(move |y| (0..width).map(move |x| (n, y, x))));
        pixels.map(|(n, y, x)| padded.at(n, y * self.stride, x * self.stride)).collect()
    }

    /// Where the taps of a window lie from its start, in the order of the weight's layout.
    fn taps(&self) -> Vec<usize> {
        let padded = self.padded_input(1);
        let side = 0..self.kernel;
        let order = (0..self.group_channels())
            .flat_map(|c| side.clone().flat_map(move |y| (0..self.kernel).map(move |x| (c, y, x))));
        order.map(|(c, y, x)| padded.at(0, y, x) + c).collect()
    }

    /// A weight's place in its tensor [filters, channels of the group, kernel, kernel].
    fn weight_at(&self, filter: usize, channel: usize, row: usize, column: usize) -> usize {
        ((filter * self.group_channels() + channel) * self.kernel + row) * self.kernel + column
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

impl PackedWeights {
    /// Packs `weight`, [filters, channels of a group, kernel, kernel]. `backward` tells whether input gradients are wanted.
    pub(crate) fn new(geometry: &Geometry, weight: &[f32], backward: bool) -> Self {
        let forward = (0..geometry.groups).map(|group| pack_forward(geometry, weight, group)).collect();
        let phases = geometry.phases().filter(|_| backward);
        let backward = phases
            .flat_map(|phase| (0..geometry.groups).map(move |group| pack_backward(geometry, weight, phase, group)))
            .collect();
        Self { forward, backward }
    }
}

fn pack_forward(g: &Geometry, weight: &[f32], group: usize) -> Vec<f32> {
    let first = group * g.group_filters();
    gemm::pack(g.fan_in(), g.group_filters(), |term, filter| weight[(first + filter) * g.fan_in() + term])
}

fn pack_backward(g: &Geometry, weight: &[f32], phase: Phase, group: usize) -> Vec<f32> {
    let (rows, columns) = (g.kernel_lines(phase.row), g.kernel_lines(phase.column));
    let lines = rows.len() * columns.len();
    let first = group * g.group_filters();
    gemm::pack(g.group_filters() * lines, g.group_channels(), |term, channel| {
        let (filter, line) = (first + term / lines, term % lines);
        weight[g.weight_at(filter, channel, rows[line / columns.len()], columns[line % columns.len()])]
    })
}

/// The input with its zeros around it, as [`forward`] and [`weight_gradient`] read it.
pub(crate) fn pad_input(compute: &Compute, g: &Geometry, x: &[f32], samples: usize) -> Vec<f32> {
    if g.pad == 0 {
        return x.to_vec();
    }
    padded(compute, x, g.input(samples), g.pad, g.pad, 0.0).0
}

/// The outputs before the bias, (sample, row, column, filter), of a padded input.
pub(crate) fn forward(
    compute: &Compute,
    g: &Geometry,
    weights: &PackedWeights,
    padded_x: &[f32],
    samples: usize,
) -> Vec<f32> {
    let (windows, taps) = (g.windows(samples), g.taps());
    let mut y = vec![0.0; g.output(samples).len()];
    for (group, packed) in weights.forward.iter().enumerate() {
        let left = Left { data: &padded_x[group * g.group_channels()..], rows: &windows, terms: &taps };
        let right = Right::packed(packed, g.group_filters(), taps.len());
        let target = Target { stride: g.filters, first: group * g.group_filters() };
        gemm::accumulate(compute, left, right, &mut y, target);
    }
    y
}

/// The gradient with respect to the unpadded input, (sample, row, column, channel), before its `+ 0.0`.
pub(crate) fn input_gradient(
    compute: &Compute,
    g: &Geometry,
    weights: &PackedWeights,
    dy: &[f32],
    samples: usize,
) -> Vec<f32> {
    let (padded_dy, maps) = padded(compute, dy, g.output(samples), g.lead(), g.trail(), 0.0);
    let mut dx = vec![0.0; g.input(samples).len()];
    for (index, phase) in g.phases().enumerate() {
        let pixels = phase_pixels(g, phase, samples);
        let packed = &weights.backward[index * g.groups..][..g.groups];
        if g.stride == 1 {
            phase_gradient(compute, g, phase, &pixels, packed, (&padded_dy, maps), &mut dx);
        } else {
            let mut part = vec![0.0; pixels.len() * g.channels];
            phase_gradient(compute, g, phase, &pixels, packed, (&padded_dy, maps), &mut part);
            for (pixel, values) in pixels.iter().zip(part.chunks_exact(g.channels)) {
                dx[pixel.at..pixel.at + g.channels].copy_from_slice(values);
            }
        }
    }
    dx
}

/// An input pixel: where it lies in dx, and where the part of the padded dy starts that it reads.
#[derive(Clone, Copy)]
struct Pixel {
    at: usize,
    sample: usize,
    row: usize,
    column: usize,
}

fn phase_pixels(g: &Geometry, phase: Phase, samples: usize) -> Vec<Pixel> {
    let input = g.input(samples);
    let of_phase =
        move |phase: usize, length: usize| (0..length).filter(move |line| (line + g.pad) % g.stride == phase);
    let mut pixels = Vec::new();
    for sample in 0..samples {
        for row in of_phase(phase.row, g.height) {
            for column in of_phase(phase.column, g.width) {
                pixels.push(Pixel { at: input.at(sample, row, column), sample, row, column });
            }
        }
    }
    pixels
}

fn phase_gradient(
    compute: &Compute,
    g: &Geometry,
    phase: Phase,
    pixels: &[Pixel],
    packed: &[Vec<f32>],
    (dy, maps): (&[f32], Maps),
    dx: &mut [f32],
) {
    let (rows, columns) = (g.kernel_lines(phase.row).len(), g.kernel_lines(phase.column).len());
    if rows == 0 || columns == 0 {
        return;
    }
    // The first line that a pixel reads is (position + pad) / stride - (lines - 1), shifted by the zeros before dy.
    let start = |position: usize, lines: usize| (position + g.pad) / g.stride + g.lead() + 1 - lines;
    let starts: Vec<usize> =
        pixels.iter().map(|p| maps.at(p.sample, start(p.row, rows), start(p.column, columns))).collect();
    let order = (0..g.group_filters()).flat_map(|f| (0..rows).flat_map(move |y| (0..columns).map(move |x| (f, y, x))));
    let terms: Vec<usize> = order.map(|(f, y, x)| maps.at(0, y, x) + f).collect();
    for (group, packed) in packed.iter().enumerate() {
        let left = Left { data: &dy[group * g.group_filters()..], rows: &starts, terms: &terms };
        let right = Right::packed(packed, g.group_channels(), terms.len());
        let target = Target { stride: g.channels, first: group * g.group_channels() };
        gemm::accumulate(compute, left, right, dx, target);
    }
}

/// Goes on with the weight gradient's chains in `dw`, (group, (channel, kernel row, kernel column), filter of the group).
pub(crate) fn weight_gradient(
    compute: &Compute,
    g: &Geometry,
    padded_x: &[f32],
    dy: &[f32],
    samples: usize,
    dw: &mut [f32],
) {
    let (windows, taps) = (g.windows(samples), g.taps());
    let filters = g.group_filters();
    for (group, dw) in dw.chunks_exact_mut(taps.len() * filters).enumerate() {
        let left = Left { data: &padded_x[group * g.group_channels()..], rows: &taps, terms: &windows };
        let right = Right::natural(&dy[group * filters..], filters, g.filters);
        gemm::accumulate(compute, left, right, dw, Target { stride: filters, first: 0 });
    }
}

/// A weight gradient as [`weight_gradient`] leaves it, in the weight's own layout.
pub(crate) fn natural_gradient(g: &Geometry, dw: &[f32]) -> Vec<f32> {
    let (fan_in, filters) = (g.fan_in(), g.group_filters());
    let mut natural = vec![0.0; dw.len()];
    for (filter, row) in natural.chunks_exact_mut(fan_in).enumerate() {
        let (group, within) = (filter / filters, filter % filters);
        for (term, slot) in row.iter_mut().enumerate() {
            *slot = dw[(group * fan_in + term) * filters + within];
        }
    }
    natural
}
