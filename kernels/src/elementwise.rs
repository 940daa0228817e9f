//! Elementwise operations: ReLU where no product applies it, dropout, sums of slots, and the update.

use convoy_common::random::Source;

use super::Compute;
use super::isa::for_each_isa;

for_each_isa! {
    /// Ends chains: adds +0.0, so that a negative zero vanishes.
    fn end(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x += 0.0);
    }
}

/// Ends chains without a bias: adds +0.0, so that a negative zero vanishes.
pub fn end_chains(compute: &Compute, x: &mut [f32]) {
    let rows = x.len();
    compute.for_rows(x, rows, |_, x| end(compute.isa, x));
}

for_each_isa! {
    /// Whether all are finite.
    pub fn all_finite(x: &[f32]) -> bool {
        x.iter().fold(true, |finite, x| finite & x.is_finite())
    }
}

for_each_isa! {
    fn rectify(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = if *x <= 0.0 { 0.0 } else { *x };
        }
    }
}

/// Zero for what is zero or less; a NaN stays.
pub fn relu(compute: &Compute, x: &mut [f32]) {
    let rows = x.len();
    compute.for_rows(x, rows, |_, x| rectify(compute.isa, x));
}

for_each_isa! {
    fn keep_positive(y: &[f32], dy: &mut [f32]) {
        for (y, dy) in y.iter().zip(dy.iter_mut()) {
            *dy = if *y > 0.0 { *dy } else { 0.0 };
        }
    }
}

/// The gradient where the output was above zero, zero elsewhere.
pub fn relu_backward(compute: &Compute, y: &[f32], dy: &mut [f32]) {
    let rows = dy.len();
    compute.for_rows(dy, rows, |range, dy| keep_positive(compute.isa, &y[range], dy));
}

for_each_isa! {
    fn add_to(sum: &mut [f32], other: &[f32]) {
        sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    }
}

/// Adds `other` to `sum`, element by element.
pub fn add(compute: &Compute, sum: &mut [f32], other: &[f32]) {
    let rows = sum.len();
    compute.for_rows(sum, rows, |range, sum| add_to(compute.isa, sum, &other[range]));
}

for_each_isa! {
    /// One step of SGD.
    fn descend(rates: Rates, gradient: &[f32], momentum: &mut [f32], weights: &mut [f32]) {
        let descent = -rates.learning;
        for ((g, v), w) in gradient.iter().zip(momentum.iter_mut()).zip(weights.iter_mut()) {
            let decayed = rates.weight_decay.mul_add(*w, *g + 0.0);
            *v = rates.momentum.mul_add(*v, decayed);
            *w = descent.mul_add(*v, *w);
        }
    }
}

/// One step of SGD. Also ends the gradient's chains if they have not ended.
pub fn sgd(compute: &Compute, rates: Rates, gradient: &[f32], momentum: &mut [f32], weights: &mut [f32]) {
    assert!(gradient.len() == weights.len() && momentum.len() == weights.len(), "an update of another length");
    let mut parts: Vec<_> =
        momentum.chunks_mut(PART).zip(weights.chunks_mut(PART)).zip(gradient.chunks(PART)).collect();
    let rows = parts.len();
    compute.for_rows(&mut parts, rows, |_, parts| {
        for ((momentum, weights), gradient) in parts {
            descend(compute.isa, rates, gradient, momentum, weights);
        }
    });
}

/// Elements that one thread updates at a time.
pub(super) const PART: usize = 1 << 14;

/// SGD's constants, each rounded from f64 once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// The learning rate.
    pub learning: f32,
    /// Momentum.
    pub momentum: f32,
    /// Weight decay.
    pub weight_decay: f32,
}

/// Which units a dropout layer drops: a function of (seed, step, layer, sample, unit).
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    source: Source,
    threshold: u64,
    /// What kept values are multiplied by.
    pub scale: f32,
    /// Units of the whole layer.
    pub units: u64,
}

impl Dropout {
    /// The masks of `layer` at `step`.
    pub fn new(seed: u64, layer: &str, step: u64, p: f64, units: usize) -> Self {
        let source = Source::new(seed, &format!("dropout:{layer}:{step}"));
        Self { source, threshold: (p * 4_294_967_296.0) as u64, scale: (1.0 / (1.0 - p)) as f32, units: units as u64 }
    }

    /// The same of neighbouring units: a block of the source serves four of them.
    pub fn keeps_each(&self, sample: u64, units: std::ops::Range<u64>) -> impl Iterator<Item = bool> {
        let (source, threshold, first) = (self.source, self.threshold, sample * self.units);
        let (mut block, mut words) = (None, [0; 4]);
        (first + units.start..first + units.end).map(move |index| {
            if block != Some(index / 4) {
                (block, words) = (Some(index / 4), source.words(index / 4));
            }
            u64::from(words[(index % 4) as usize]) >= threshold
        })
    }

    /// Whether the unit of the sample at position `sample` of the global batch is kept.
    pub fn keeps(&self, sample: u64, unit: u64) -> bool {
        u64::from(self.source.word(sample * self.units + unit)) >= self.threshold
    }
}

/// Kept values times `scale`, and +0.0 for the others. The gradient is computed in the same way.
pub fn drop_out(x: &mut [f32], kept: &[bool], scale: f32) {
    for (x, kept) in x.iter_mut().zip(kept) {
        *x = if *kept { *x * scale } else { 0.0 };
    }
}
