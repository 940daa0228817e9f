//! Max and average pooling over (sample, row, column, channel). Padding is never read: minus infinity loses against
//! everything, and zero adds nothing.

use super::isa::{Isa, for_each_isa};
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

/// What max pooling found: the maxima, and for each the place within its window, row-major.
pub type Maxima = (Vec<f32>, Vec<u32>);

impl Geometry {
    fn output(&self) -> Maps {
        Maps { height: self.out_height, width: self.out_width, ..self.input }
    }

    /// The places of one window that lie within one sample's input, row-major: index in the window, offset in the input.
    fn places(&self, row: usize, column: usize) -> impl Iterator<Item = (u32, usize)> + '_ {
        let within = move |k: usize| {
            let (y, x) = (row * self.stride + k / self.kernel, column * self.stride + k % self.kernel);
            let (y, x) = (y.checked_sub(self.pad)?, x.checked_sub(self.pad)?);
            (y < self.input.height && x < self.input.width).then(|| (k as u32, self.input.at(0, y, x)))
        };
        (0..self.kernel * self.kernel).filter_map(within)
    }

    fn windows(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (height, width, channels) = (self.out_height, self.out_width, self.input.channels);
        (0..height * width).map(move |index| (index / width, index % width, index * channels))
    }
}

/// The largest of each window, the first one where several are.
pub fn max_forward(compute: &Compute, g: &Geometry, x: &[f32]) -> Maxima {
    let output = g.output();
    let (mut y, mut places) = (vec![f32::NEG_INFINITY; output.len()], vec![0u32; output.len()]);
    let (length, out_length) = (x.len() / g.input.samples, output.len() / g.input.samples);
    let mut parts: Vec<_> = y.chunks_mut(out_length).zip(places.chunks_mut(out_length)).collect();
    compute.for_samples(&mut parts, g.input.samples, |sample, part| {
        let x = &x[sample * length..][..length];
        for (y, places) in part {
            max_of_sample(compute.isa, g, x, y, places);
        }
    });
    (y, places)
}

fn max_of_sample(isa: Isa, g: &Geometry, x: &[f32], y: &mut [f32], places: &mut [u32]) {
    for (row, column, at) in g.windows() {
        let channels = at..at + g.input.channels;
        let (y, places) = (&mut y[channels.clone()], &mut places[channels]);
        let mut window = g.places(row, column);
        if let Some((first, from)) = window.next() {
            y.copy_from_slice(&x[from..from + g.input.channels]);
            places.fill(first);
        }
        for (k, from) in window {
            keep_larger(isa, &x[from..from + g.input.channels], k, y, places);
        }
    }
}

for_each_isa! {
    /// Where `x` is larger than `y`, or not a number, it and its place take over.
    pub fn keep_larger(x: &[f32], place: u32, y: &mut [f32], places: &mut [u32]) {
        for ((x, y), p) in x.iter().zip(y.iter_mut()).zip(places.iter_mut()) {
            // No short circuit: a branch would keep the loop from being vectorised.
            let larger = (*x > *y) | x.is_nan();
            *y = if larger { *x } else { *y };
            *p = if larger { place } else { *p };
        }
    }
}

/// Hands each window's gradient to the place of its maximum, windows in row-major order.
pub fn max_backward(compute: &Compute, g: &Geometry, dy: &[f32], places: &[u32]) -> Vec<f32> {
    let mut dx = vec![0.0; g.input.len()];
    let length = dy.len() / g.input.samples;
    compute.for_samples(&mut dx, g.input.samples, |sample, dx| {
        let (dy, places) = (&dy[sample * length..][..length], &places[sample * length..][..length]);
        for (row, column, at) in g.windows() {
            let (dy, places) = (&dy[at..at + g.input.channels], &places[at..at + g.input.channels]);
            for (k, to) in g.places(row, column) {
                add_where(compute.isa, dy, places, k, &mut dx[to..to + g.input.channels]);
            }
        }
    });
    dx
}

for_each_isa! {
    /// Adds `dy` to `dx` where the maximum was at `place`. Elsewhere it adds +0.0, which changes nothing: a sum that starts
    /// from +0.0 is never -0.0.
    pub fn add_where(dy: &[f32], places: &[u32], place: u32, dx: &mut [f32]) {
        for ((dy, p), dx) in dy.iter().zip(places).zip(dx.iter_mut()) {
            *dx += if *p == place { *dy } else { 0.0 };
        }
    }
}

/// The mean of each window; padding counts in the divisor.
pub fn avg_forward(compute: &Compute, g: &Geometry, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; g.output().len()];
    let length = x.len() / g.input.samples;
    let divisor = (g.kernel * g.kernel) as f32;
    compute.for_samples(&mut y, g.input.samples, |sample, y| {
        let x = &x[sample * length..][..length];
        for (row, column, at) in g.windows() {
            let y = &mut y[at..at + g.input.channels];
            for (_, from) in g.places(row, column) {
                y.iter_mut().zip(&x[from..]).for_each(|(y, x)| *y += x);
            }
            y.iter_mut().for_each(|y| *y /= divisor);
        }
    });
    y
}

/// Spreads each window's gradient evenly over its places, windows in row-major order.
pub fn avg_backward(compute: &Compute, g: &Geometry, dy: &[f32]) -> Vec<f32> {
    let mut dx = vec![0.0; g.input.len()];
    let length = dy.len() / g.input.samples;
    let divisor = (g.kernel * g.kernel) as f32;
    compute.for_samples(&mut dx, g.input.samples, |sample, dx| {
        let dy = &dy[sample * length..][..length];
        for (row, column, at) in g.windows() {
            for (_, to) in g.places(row, column) {
                dx[to..].iter_mut().zip(&dy[at..at + g.input.channels]).for_each(|(dx, dy)| *dx += dy / divisor);
            }
        }
    });
    dx
}
