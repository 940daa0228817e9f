//! Max and average pooling over (sample, row, column, channel). Padding is never read. It counts as minus infinity in a maximum and
//! as zero in a sum, so it changes no result.

use std::ops::Range;

use super::isa::for_each_isa;
use super::memory::Tensor;
use super::{Compute, Maps};

/// A pooling window over maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The input.
    pub input: Maps,
    /// Rows of the output.
    pub out_height: usize,
    /// Columns of the output.
    pub out_width: usize,
    /// Side of the window.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Padding around the input.
    pub pad: usize,
}

/// What max pooling found: the maxima, and for each the index of its place in its window, row-major.
pub type Maxima = (Tensor, Tensor<u32>);

impl Geometry {
    fn output(&self) -> Maps {
        Maps { height: self.out_height, width: self.out_width, ..self.input }
    }

    /// One sample's windows, row-major. Found once for all samples: divisions are dear beside a comparison.
    fn windows(&self) -> Windows {
        let (rows, row_kinds) = self.spans(self.out_height, self.input.height);
        let (columns, column_kinds) = self.spans(self.out_width, self.input.width);
        let mut each = Vec::with_capacity(rows.len() * columns.len());
        for (row, y) in rows.iter().enumerate() {
            for (column, x) in columns.iter().enumerate() {
                each.push(Window {
                    at: (row * self.out_width + column) * self.input.channels,
                    from: self.input.at(0, y.first, x.first),
                    shape: y.kind * column_kinds.len() + x.kind,
                });
            }
        }
        let shapes = row_kinds.iter().flat_map(|rows| column_kinds.iter().map(|columns| self.places(rows, columns)));
        Windows { each, shapes: shapes.collect() }
    }

    /// For each output along an axis of `pixels` pixels: the lines of its window that are not padding. Also the distinct ranges of
    /// such lines.
    fn spans(&self, outputs: usize, pixels: usize) -> (Vec<Span>, Vec<Range<usize>>) {
        let mut kinds: Vec<Range<usize>> = Vec::new();
        let span = |output: usize| {
            let start = output * self.stride;
            let (first, end) = (start.max(self.pad), (start + self.kernel).min(pixels + self.pad));
            let kind = first - start..end - start;
            let known = kinds.iter().position(|other| *other == kind);
            let index = known.unwrap_or(kinds.len());
            if known.is_none() {
                kinds.push(kind);
            }
            Span { kind: index, first: first - self.pad }
        };
        let spans = (0..outputs).map(span).collect();
        (spans, kinds)
    }

    /// The places of a window's rows and columns, row-major.
    fn places(&self, rows: &Range<usize>, columns: &Range<usize>) -> Vec<Place> {
        let place = |(row, column): (usize, usize)| Place {
            index: (row * self.kernel + column) as u32,
            at: self.input.at(0, row - rows.start, column - columns.start),
        };
        rows.clone().flat_map(|row| columns.clone().map(move |column| (row, column))).map(place).collect()
    }
}

/// What a window sees along an axis: which of the kinds of lines that are no padding, and the first pixel.
struct Span {
    kind: usize,
    first: usize,
}

/// The windows of a sample. Most have one shape; those near the edges lack what is padding.
struct Windows {
    each: Vec<Window>,
    /// The places of each shape, row-major.
    shapes: Vec<Vec<Place>>,
}

/// Where a window's output lies in one sample, and where what it reads begins.
struct Window {
    at: usize,
    from: usize,
    shape: usize,
}

/// A place of a window: its index in the window, and where it lies from the first one that is no padding.
#[derive(Clone, Copy)]
struct Place {
    index: u32,
    at: usize,
}

impl Windows {
    /// Each window with its places.
    fn iter(&self) -> impl Iterator<Item = (&Window, &[Place])> {
        self.each.iter().map(|window| (window, self.shapes[window.shape].as_slice()))
    }
}

/// The largest of each window, the first one where several are.
pub fn max_forward(compute: &Compute, g: &Geometry, x: &[f32]) -> Maxima {
    let (output, windows) = (g.output(), g.windows());
    let (mut y, mut indices) = (compute.tensor(output.len()), compute.indices(output.len()));
    let (length, out_length) = (x.len() / g.input.samples, output.len() / g.input.samples);
    let mut parts: Vec<_> = y.chunks_mut(out_length).zip(indices.chunks_mut(out_length)).collect();
    compute.for_samples(&mut parts, g.input.samples, |sample, part| {
        let x = &x[sample * length..][..length];
        for (y, indices) in part {
            max_of_sample(compute.isa, &windows, g.input.channels, x, y, indices);
        }
    });
    (y, indices)
}

for_each_isa! {
    /// One sample's maxima, and the index of each in its window.
    fn max_of_sample(windows: &Windows, channels: usize, x: &[f32], y: &mut [f32], indices: &mut [u32]) {
        match channels {
            16.. => max_by_lanes::<16>(windows, channels, x, y, indices),
            8.. => max_by_lanes::<8>(windows, channels, x, y, indices),
            4.. => max_by_lanes::<4>(windows, channels, x, y, indices),
            _ => max_by_lanes::<1>(windows, channels, x, y, indices),
        }
    }
}

/// As `max_of_sample`, with this many channels at once: their maxima and indices stay in registers over a window. The last block of a
/// window overlaps the one before it if the number of channels is no multiple. There are at least that many channels.
#[inline(always)]
fn max_by_lanes<const LANES: usize>(windows: &Windows, channels: usize, x: &[f32], y: &mut [f32], indices: &mut [u32]) {
    for (window, places) in windows.iter() {
        let x = &x[window.from..];
        let (y, indices) = (&mut y[window.at..][..channels], &mut indices[window.at..][..channels]);
        for from in (0..channels).step_by(LANES).map(|from| from.min(channels - LANES)) {
            let (mut largest, mut found) = ([f32::NEG_INFINITY; LANES], [places[0].index; LANES]);
            for place in places {
                keep_larger(&x[place.at + from..][..LANES], place.index, &mut largest, &mut found);
            }
            y[from..][..LANES].copy_from_slice(&largest);
            indices[from..][..LANES].copy_from_slice(&found);
        }
    }
}

/// Where `x` is larger than `largest`, or not a number, it and its index take over.
#[inline(always)]
fn keep_larger<const LANES: usize>(x: &[f32], index: u32, largest: &mut [f32; LANES], found: &mut [u32; LANES]) {
    for ((x, largest), found) in x.iter().zip(largest).zip(found) {
        // No short circuit: a branch would keep the loop from being vectorised.
        let larger = (*x > *largest) | x.is_nan();
        *largest = if larger { *x } else { *largest };
        *found = if larger { index } else { *found };
    }
}

/// Hands each window's gradient to the place of its maximum, windows in row-major order.
pub fn max_backward(compute: &Compute, g: &Geometry, dy: &[f32], indices: &[u32]) -> Tensor {
    let windows = g.windows();
    let mut dx = compute.tensor(g.input.len());
    let length = dy.len() / g.input.samples;
    compute.for_samples(&mut dx, g.input.samples, |sample, dx| {
        let (dy, indices) = (&dy[sample * length..][..length], &indices[sample * length..][..length]);
        hand_back(compute.isa, &windows, g.input.channels, dy, indices, dx);
    });
    dx
}

for_each_isa! {
    /// One sample's gradient. At the places of a window that are not its maximum, it adds +0.0, which changes nothing: a sum that
    /// starts from +0.0 is never -0.0.
    fn hand_back(windows: &Windows, channels: usize, dy: &[f32], indices: &[u32], dx: &mut [f32]) {
        dx.fill(0.0);
        for (window, places) in windows.iter() {
            let dx = &mut dx[window.from..];
            let (dy, indices) = (&dy[window.at..][..channels], &indices[window.at..][..channels]);
            for place in places {
                let dx = &mut dx[place.at..][..channels];
                let ((dy, dy_rest), (indices, indices_rest)) = (dy.as_chunks::<8>(), indices.as_chunks::<8>());
                let (dx, dx_rest) = dx.as_chunks_mut::<8>();
                for ((dy, found), dx) in dy.iter().zip(indices).zip(dx) {
                    hand_each(dy, found, place.index, dx);
                }
                hand_each(dy_rest, indices_rest, place.index, dx_rest);
            }
        }
    }
}

/// Adds the gradients of the windows whose maximum is at this place.
#[inline(always)]
fn hand_each(dy: &[f32], found: &[u32], index: u32, dx: &mut [f32]) {
    for ((dy, found), dx) in dy.iter().zip(found).zip(dx) {
        *dx += if *found == index { *dy } else { 0.0 };
    }
}

/// The mean of each window; padding counts in the divisor.
pub fn avg_forward(compute: &Compute, g: &Geometry, x: &[f32]) -> Tensor {
    let mut y = compute.zeros(g.output().len());
    let length = x.len() / g.input.samples;
    let (windows, divisor) = (g.windows(), (g.kernel * g.kernel) as f32);
    compute.for_samples(&mut y, g.input.samples, |sample, y| {
        let x = &x[sample * length..][..length];
        for (window, places) in windows.iter() {
            let (x, y) = (&x[window.from..], &mut y[window.at..][..g.input.channels]);
            for place in places {
                y.iter_mut().zip(&x[place.at..]).for_each(|(y, x)| *y += x);
            }
            y.iter_mut().for_each(|y| *y /= divisor);
        }
    });
    y
}

/// Spreads each window's gradient evenly over its places, windows in row-major order.
pub fn avg_backward(compute: &Compute, g: &Geometry, dy: &[f32]) -> Tensor {
    let mut dx = compute.zeros(g.input.len());
    let length = dy.len() / g.input.samples;
    let (windows, divisor) = (g.windows(), (g.kernel * g.kernel) as f32);
    compute.for_samples(&mut dx, g.input.samples, |sample, dx| {
        let dy = &dy[sample * length..][..length];
        for (window, places) in windows.iter() {
            let (dy, dx) = (&dy[window.at..][..g.input.channels], &mut dx[window.from..]);
            for place in places {
                dx[place.at..].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy / divisor);
            }
        }
    });
    dx
}
