//! Local response normalisation over the channels of one tower, forward and backward, as docs/NUMERICS.md writes it.

use std::ops::Range;

use super::Compute;
use super::isa::for_each_isa;

/// The constants, rounded to f32 once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Geometry {
    /// Channels of the tower.
    pub channels: usize,
    /// Channels in a window.
    pub size: usize,
    /// Weight of the sum.
    pub alpha: f32,
    /// The exponent.
    pub beta: f64,
    /// The constant.
    pub k: f32,
    /// `-2 * alpha * beta`, computed in f64.
    pub slope: f32,
}

impl Geometry {
    /// The constants of a layer for a tower of `channels` channels.
    pub(crate) fn new(lrn: &convoy_common::model::Lrn, channels: usize) -> Self {
        let (alpha, k, slope) = (lrn.alpha as f32, lrn.k as f32, (-2.0 * lrn.alpha * lrn.beta) as f32);
        Self { channels, size: lrn.size, alpha, beta: lrn.beta, k, slope }
    }

    /// Channels that the sum of channel `c` runs over.
    fn window(&self, c: usize) -> Range<usize> {
        c.saturating_sub(self.size / 2)..self.channels.min(c + (self.size - 1) / 2 + 1)
    }

    /// Channels whose windows hold channel `c`.
    fn holders(&self, c: usize) -> Range<usize> {
        c.saturating_sub((self.size - 1) / 2)..self.channels.min(c + self.size / 2 + 1)
    }
}

/// The outputs, and the sums `s` that the backward pass divides by.
pub(crate) fn forward(compute: &Compute, g: &Geometry, x: &[f32], samples: usize) -> (Vec<f32>, Vec<f32>) {
    let mut s = vec![0.0; x.len()];
    let length = x.len() / samples;
    compute.for_samples(&mut s, samples, |sample, s| {
        let x = &x[sample * length..][..length];
        for (x, s) in x.chunks_exact(g.channels).zip(s.chunks_exact_mut(g.channels)) {
            sums(compute.isa, *g, x, s);
        }
    });
    let mut y = vec![0.0; x.len()];
    compute.for_samples(&mut y, samples, |sample, y| {
        let place = sample * length..(sample + 1) * length;
        divide(compute.isa, g.beta, &x[place.clone()], &s[place], y);
    });
    (y, s)
}

/// What [`forward`] leaves for the backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept<'a> {
    /// Inputs.
    pub x: &'a [f32],
    /// Outputs.
    pub y: &'a [f32],
    /// Sums.
    pub s: &'a [f32],
}

/// The gradient with respect to the input.
pub(crate) fn backward(compute: &Compute, g: &Geometry, kept: Kept, dy: &[f32], samples: usize) -> Vec<f32> {
    let mut dx = vec![0.0; dy.len()];
    let length = dy.len() / samples;
    compute.for_samples(&mut dx, samples, |sample, dx| {
        let place = sample * length..(sample + 1) * length;
        let (x, y, s, dy) = (&kept.x[place.clone()], &kept.y[place.clone()], &kept.s[place.clone()], &dy[place]);
        let mut ratio = vec![0.0; length];
        ratios(compute.isa, y, s, dy, &mut ratio);
        divide(compute.isa, g.beta, dy, s, dx);
        for ((x, ratio), dx) in
            x.chunks_exact(g.channels).zip(ratio.chunks_exact(g.channels)).zip(dx.chunks_exact_mut(g.channels))
        {
            add_neighbours(compute.isa, *g, x, ratio, dx);
        }
    });
    dx
}

for_each_isa! {
    /// `s = fma(alpha, sum of squares, k)` of one pixel's channels.
    pub(crate) fn sums(g: Geometry, x: &[f32], s: &mut [f32]) {
        for (c, s) in s.iter_mut().enumerate() {
            let sum = x[g.window(c)].iter().fold(0.0, |sum: f32, x| x.mul_add(*x, sum));
            *s = g.alpha.mul_add(sum, g.k);
        }
    }
}

for_each_isa! {
    /// `out = x / s^beta`.
    pub(crate) fn divide(beta: f64, x: &[f32], s: &[f32], out: &mut [f32]) {
        if beta == 0.75 {
            for ((x, s), out) in x.iter().zip(s).zip(out.iter_mut()) {
                let root = s.sqrt();
                *out = x / (root * root.sqrt());
            }
        } else {
            for ((x, s), out) in x.iter().zip(s).zip(out.iter_mut()) {
                *out = x / libm::pow(f64::from(*s), beta) as f32;
            }
        }
    }
}

for_each_isa! {
    /// `t = (dy * y) / s`.
    pub(crate) fn ratios(y: &[f32], s: &[f32], dy: &[f32], out: &mut [f32]) {
        for (((y, s), dy), out) in y.iter().zip(s).zip(dy).zip(out.iter_mut()) {
            *out = (dy * y) / s;
        }
    }
}

for_each_isa! {
    /// `dx = fma(slope * x, sum of t, dx)` of one pixel's channels, where `dx` holds `dy / s^beta`.
    pub(crate) fn add_neighbours(g: Geometry, x: &[f32], ratio: &[f32], dx: &mut [f32]) {
        for (c, dx) in dx.iter_mut().enumerate() {
            let sum = ratio[g.holders(c)].iter().fold(0.0, |sum: f32, t| sum + t);
            *dx = (g.slope * x[c]).mul_add(sum, *dx);
        }
    }
}
