//! docs/NUMERICS.md as code: plain loops over (sample, channel, row, column), one `f32::mul_add` per term. These kernels are
//! slow, and simple enough to check against that page. Every fast kernel must equal them to the bit.
//!
//! Shape suffixes: n sample, c input channel, o output channel, h w rows and columns, k a kernel's rows and columns, u input
//! unit. `dy` is the gradient of the output, `dx` of the input, `dw` of the weight.

use ndarray::{Array2, Array4, ArrayView1, ArrayView2, ArrayView4, ArrayViewMut2, ArrayViewMut4};

/// A convolution's or a pool's window. Pools have one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Side of the kernel.
    pub(super) kernel: usize,
    /// Step between windows.
    pub(super) stride: usize,
    /// Padding around the input.
    pub(super) pad: usize,
    /// Groups of a convolution.
    pub(super) groups: usize,
}

impl Window {
    fn side(&self, length: usize) -> usize {
        (length + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// The input line under kernel line `k` of window `out`, unless it is padding.
    fn line(&self, out: usize, k: usize, length: usize) -> Option<usize> {
        (out * self.stride + k).checked_sub(self.pad).filter(|line| *line < length)
    }
}

/// The outputs: a chain over (input channel of the group, kernel row, kernel column), then the bias or +0.0.
pub(super) fn conv_forward(
    x_nchw: ArrayView4<f32>,
    w_ockk: ArrayView4<f32>,
    bias_o: Option<ArrayView1<f32>>,
    window: Window,
) -> Array4<f32> {
    let (samples, _, height, width) = x_nchw.dim();
    let (filters, seen, kernel, _) = w_ockk.dim();
    let shape = (samples, filters, window.side(height), window.side(width));
    Array4::from_shape_fn(shape, |(n, o, oh, ow)| {
        let first = o / (filters / window.groups) * seen;
        let mut sum = 0.0f32;
        for c in 0..seen {
            for kh in 0..kernel {
                for kw in 0..kernel {
                    if let (Some(h), Some(w)) = (window.line(oh, kh, height), window.line(ow, kw, width)) {
                        sum = x_nchw[[n, first + c, h, w]].mul_add(w_ockk[[o, c, kh, kw]], sum);
                    }
                }
            }
        }
        sum + bias_o.map_or(0.0, |bias| bias[o])
    })
}

/// The input gradient: a chain over (output channel, row of dy, column of dy), then +0.0. `dx` has `input` (rows, columns).
pub(super) fn conv_input_gradient(
    dy_nohw: ArrayView4<f32>,
    w_ockk: ArrayView4<f32>,
    input: (usize, usize),
    window: Window,
) -> Array4<f32> {
    let (samples, filters, out_height, out_width) = dy_nohw.dim();
    let (_, seen, _, _) = w_ockk.dim();
    let group_filters = filters / window.groups;
    Array4::from_shape_fn((samples, seen * window.groups, input.0, input.1), |(n, c, h, w)| {
        let group = c / seen;
        let mut sum = 0.0f32;
        for o in group * group_filters..(group + 1) * group_filters {
            for oh in 0..out_height {
                for ow in 0..out_width {
                    // The kernel line that reads this input line from this output line, if there is one.
                    let kh = (h + window.pad).checked_sub(oh * window.stride).filter(|k| *k < window.kernel);
                    let kw = (w + window.pad).checked_sub(ow * window.stride).filter(|k| *k < window.kernel);
                    if let (Some(kh), Some(kw)) = (kh, kw) {
                        sum = dy_nohw[[n, o, oh, ow]].mul_add(w_ockk[[o, c % seen, kh, kw]], sum);
                    }
                }
            }
        }
        sum + 0.0
    })
}

/// Continues the weight gradient's chains, over (sample, output row, output column).
pub(super) fn conv_weight_gradient(
    x_nchw: ArrayView4<f32>,
    dy_nohw: ArrayView4<f32>,
    window: Window,
    mut dw_ockk: ArrayViewMut4<f32>,
) {
    let (_, _, height, width) = x_nchw.dim();
    let (samples, filters, out_height, out_width) = dy_nohw.dim();
    let (_, seen, _, _) = dw_ockk.dim();
    for ((o, c, kh, kw), sum) in dw_ockk.indexed_iter_mut() {
        let first = o / (filters / window.groups) * seen;
        for n in 0..samples {
            for oh in 0..out_height {
                for ow in 0..out_width {
                    if let (Some(h), Some(w)) = (window.line(oh, kh, height), window.line(ow, kw, width)) {
                        *sum = x_nchw[[n, first + c, h, w]].mul_add(dy_nohw[[n, o, oh, ow]], *sum);
                    }
                }
            }
        }
    }
}

/// A linear layer's outputs: a chain over input units, then the bias or +0.0.
pub(super) fn linear_forward(
    x_nu: ArrayView2<f32>,
    w_ou: ArrayView2<f32>,
    bias_o: Option<ArrayView1<f32>>,
) -> Array2<f32> {
    Array2::from_shape_fn((x_nu.nrows(), w_ou.nrows()), |(n, o)| {
        let chain = (0..x_nu.ncols()).fold(0.0f32, |sum, u| x_nu[[n, u]].mul_add(w_ou[[o, u]], sum));
        chain + bias_o.map_or(0.0, |bias| bias[o])
    })
}

/// A linear layer's input gradient: a chain over output units, then +0.0.
pub(super) fn linear_input_gradient(dy_no: ArrayView2<f32>, w_ou: ArrayView2<f32>) -> Array2<f32> {
    Array2::from_shape_fn((dy_no.nrows(), w_ou.ncols()), |(n, u)| {
        (0..w_ou.nrows()).fold(0.0f32, |sum, o| dy_no[[n, o]].mul_add(w_ou[[o, u]], sum)) + 0.0
    })
}

/// Continues a linear layer's weight gradient, a chain over samples.
pub(super) fn linear_weight_gradient(x_nu: ArrayView2<f32>, dy_no: ArrayView2<f32>, mut dw_ou: ArrayViewMut2<f32>) {
    for ((o, u), sum) in dw_ou.indexed_iter_mut() {
        *sum = (0..x_nu.nrows()).fold(*sum, |sum, n| x_nu[[n, u]].mul_add(dy_no[[n, o]], sum));
    }
}

/// The largest of each window, the first one where several are; a NaN goes through. And its place in the window.
pub(super) fn max_pool(x_nchw: ArrayView4<f32>, window: Window) -> (Array4<f32>, Array4<usize>) {
    let (samples, channels, height, width) = x_nchw.dim();
    let shape = (samples, channels, window.side(height), window.side(width));
    let mut places = Array4::zeros(shape);
    let maxima = Array4::from_shape_fn(shape, |(n, c, oh, ow)| {
        let mut best: Option<(f32, usize)> = None;
        for k in 0..window.kernel * window.kernel {
            let (kh, kw) = (k / window.kernel, k % window.kernel);
            if let (Some(h), Some(w)) = (window.line(oh, kh, height), window.line(ow, kw, width)) {
                let x = x_nchw[[n, c, h, w]];
                if best.is_none_or(|(largest, _)| x > largest || x.is_nan()) {
                    best = Some((x, k));
                }
            }
        }
        let (largest, place) = best.expect("a window holds more than padding");
        places[[n, c, oh, ow]] = place;
        largest
    });
    (maxima, places)
}

/// Each window's gradient at the place of its maximum, windows in row-major order.
pub(super) fn max_pool_backward(
    dy_nchw: ArrayView4<f32>,
    places: ArrayView4<usize>,
    input: (usize, usize),
    window: Window,
) -> Array4<f32> {
    let (samples, channels, _, _) = dy_nchw.dim();
    let mut dx = Array4::zeros((samples, channels, input.0, input.1));
    for ((n, c, oh, ow), dy) in dy_nchw.indexed_iter() {
        let place = places[[n, c, oh, ow]];
        let (h, w) = (oh * window.stride + place / window.kernel, ow * window.stride + place % window.kernel);
        dx[[n, c, h - window.pad, w - window.pad]] += dy;
    }
    dx
}

/// The mean of each window in row-major order; padding counts in the divisor.
pub(super) fn avg_pool(x_nchw: ArrayView4<f32>, window: Window) -> Array4<f32> {
    let (samples, channels, height, width) = x_nchw.dim();
    Array4::from_shape_fn((samples, channels, window.side(height), window.side(width)), |(n, c, oh, ow)| {
        let mut sum = 0.0f32;
        for kh in 0..window.kernel {
            for kw in 0..window.kernel {
                if let (Some(h), Some(w)) = (window.line(oh, kh, height), window.line(ow, kw, width)) {
                    sum += x_nchw[[n, c, h, w]];
                }
            }
        }
        sum / (window.kernel * window.kernel) as f32
    })
}

/// Each window's gradient spread over its places, windows in row-major order.
pub(super) fn avg_pool_backward(dy_nchw: ArrayView4<f32>, input: (usize, usize), window: Window) -> Array4<f32> {
    let (samples, channels, _, _) = dy_nchw.dim();
    let mut dx = Array4::zeros((samples, channels, input.0, input.1));
    for ((n, c, oh, ow), dy) in dy_nchw.indexed_iter() {
        for kh in 0..window.kernel {
            for kw in 0..window.kernel {
                if let (Some(h), Some(w)) = (window.line(oh, kh, input.0), window.line(ow, kw, input.1)) {
                    dx[[n, c, h, w]] += dy / (window.kernel * window.kernel) as f32;
                }
            }
        }
    }
    dx
}

/// +0.0 for what is zero or less.
pub(super) fn relu(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

/// LRN of one pixel's channels: the outputs, and the sums that the backward pass divides by.
pub(super) fn lrn(x_c: &[f32], lrn: &convoy_common::model::Lrn) -> (Vec<f32>, Vec<f32>) {
    let s: Vec<f32> = (0..x_c.len())
        .map(|c| {
            let window = c.saturating_sub(lrn.size / 2)..x_c.len().min(c + (lrn.size - 1) / 2 + 1);
            let squares = window.fold(0.0f32, |sum, j| x_c[j].mul_add(x_c[j], sum));
            (lrn.alpha as f32).mul_add(squares, lrn.k as f32)
        })
        .collect();
    (x_c.iter().zip(&s).map(|(x, s)| x / power(*s, lrn.beta)).collect(), s)
}

/// The input gradient of [`lrn`].
pub(super) fn lrn_backward(x_c: &[f32], dy_c: &[f32], lrn: &convoy_common::model::Lrn) -> Vec<f32> {
    let (y, s) = self::lrn(x_c, lrn);
    let slope = (-2.0 * lrn.alpha * lrn.beta) as f32;
    let holds = |j: usize, c: usize| j.saturating_sub(lrn.size / 2) <= c && c <= j + (lrn.size - 1) / 2;
    (0..x_c.len())
        .map(|c| {
            let holders = (0..x_c.len()).filter(|j| holds(*j, c));
            let sum = holders.fold(0.0f32, |sum, j| sum + (dy_c[j] * y[j]) / s[j]);
            (slope * x_c[c]).mul_add(sum, dy_c[c] / power(s[c], lrn.beta))
        })
        .collect()
}

fn power(s: f32, beta: f64) -> f32 {
    if beta == 0.75 { s.sqrt() * s.sqrt().sqrt() } else { libm::pow(f64::from(s), beta) as f32 }
}

/// One step of SGD on one element: the new momentum and the new weight.
pub(super) fn sgd(rates: super::elementwise::Rates, gradient: f32, momentum: f32, weight: f32) -> (f32, f32) {
    let decayed = rates.weight_decay.mul_add(weight, gradient);
    let momentum = rates.momentum.mul_add(momentum, decayed);
    (momentum, (-rates.learning).mul_add(momentum, weight))
}
