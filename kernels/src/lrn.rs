//! Local response normalisation over the channels of one tower, forward and backward, as docs/NUMERICS.md defines it.

use super::Compute;
use super::isa::for_each_isa;
use super::memory::Tensor;

/// The constants, rounded to f32 once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
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
    pub fn new(lrn: &convoy_common::model::Lrn, channels: usize) -> Self {
        let (alpha, k, slope) = (lrn.alpha as f32, lrn.k as f32, (-2.0 * lrn.alpha * lrn.beta) as f32);
        Self { channels, size: lrn.size, alpha, beta: lrn.beta, k, slope }
    }

    /// Channels of a window before its own one.
    fn before(&self) -> usize {
        (self.size / 2).min(self.channels - 1)
    }

    /// Channels of a window behind its own one.
    fn behind(&self) -> usize {
        ((self.size - 1) / 2).min(self.channels - 1)
    }

    /// A pixel's channels with zeros on either side, for windows that reach beyond them: a zero changes no sum that starts
    /// from +0.0.
    fn scratch(&self) -> Vec<f32> {
        vec![0.0; self.channels + self.before() + self.behind()]
    }
}

/// The outputs, and the sums `s` that the backward pass divides by.
pub fn forward(compute: &Compute, g: &Geometry, x: &[f32], samples: usize) -> (Tensor, Tensor) {
    let (mut y, mut s) = (compute.tensor(x.len()), compute.tensor(x.len()));
    let length = x.len() / samples;
    let mut parts: Vec<_> = y.chunks_mut(length).zip(s.chunks_mut(length)).zip(x.chunks(length)).collect();
    compute.for_samples(&mut parts, samples, |_, parts| {
        for ((y, s), x) in parts {
            normalise(compute.isa, *g, x, s, y);
        }
    });
    (y, s)
}

/// What [`forward`] leaves for the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct ForwardResult<'a> {
    /// Inputs.
    pub x: &'a [f32],
    /// Outputs.
    pub y: &'a [f32],
    /// Sums.
    pub s: &'a [f32],
}

/// The gradient with respect to the input.
pub fn backward(compute: &Compute, g: &Geometry, kept: ForwardResult, dy: &[f32], samples: usize) -> Tensor {
    let mut dx = compute.tensor(dy.len());
    let length = dy.len() / samples;
    compute.for_samples(&mut dx, samples, |sample, dx| {
        let place = sample * length..(sample + 1) * length;
        let (x, y, s, dy) = (&kept.x[place.clone()], &kept.y[place.clone()], &kept.s[place.clone()], &dy[place]);
        differentiate(compute.isa, *g, ForwardResult { x, y, s }, dy, dx);
    });
    dx
}

for_each_isa! {
    /// One sample: `s = fma(alpha, sum of squares, k)` and `y = x / s^beta`.
    fn normalise(g: Geometry, x: &[f32], s: &mut [f32], y: &mut [f32]) {
        let mut padded = g.scratch();
        let pixels = x.chunks_exact(g.channels).zip(s.chunks_exact_mut(g.channels)).zip(y.chunks_exact_mut(g.channels));
        for ((x, s), y) in pixels {
            padded[g.before()..][..g.channels].copy_from_slice(x);
            s.fill(0.0);
            for shift in 0..=g.before() + g.behind() {
                s.iter_mut().zip(&padded[shift..]).for_each(|(s, x)| *s = x.mul_add(*x, *s));
            }
            s.iter_mut().for_each(|s| *s = g.alpha.mul_add(*s, g.k));
            divide(g.beta, x, s, y);
        }
    }
}

for_each_isa! {
    /// One sample: `dx = fma(slope * x, sum of t, dy / s^beta)`, where `t = (dy * y) / s`.
    fn differentiate(g: Geometry, kept: ForwardResult, dy: &[f32], dx: &mut [f32]) {
        let (mut padded, mut sums) = (g.scratch(), vec![0.0; g.channels]);
        for (index, dx) in dx.chunks_exact_mut(g.channels).enumerate() {
            let place = index * g.channels..(index + 1) * g.channels;
            let (x, y, s, dy) = (&kept.x[place.clone()], &kept.y[place.clone()], &kept.s[place.clone()], &dy[place]);
            // The windows that hold a channel reach as far the other way.
            for (((t, y), s), dy) in padded[g.behind()..].iter_mut().zip(y).zip(s).zip(dy) {
                *t = (dy * y) / s;
            }
            sums.fill(0.0);
            for shift in 0..=g.before() + g.behind() {
                sums.iter_mut().zip(&padded[shift..]).for_each(|(sum, t)| *sum += t);
            }
            divide(g.beta, dy, s, dx);
            for ((dx, x), sum) in dx.iter_mut().zip(x).zip(&sums) {
                *dx = (g.slope * x).mul_add(*sum, *dx);
            }
        }
    }
}

/// `out = x / s^beta`.
#[inline(always)]
fn divide(beta: f64, x: &[f32], s: &[f32], out: &mut [f32]) {
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
