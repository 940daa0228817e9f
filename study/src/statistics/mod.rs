//! Statistics of paired runs: intervals, tests, equivalence, and the number of runs that a claim needs. Pure functions on `libm`, so a
//! report has the same bits on every machine. `golden/statistics.py` makes the values that tests compare with SciPy and statsmodels.
//!
//! Not here: what is compared, and verdicts (`report`).

pub mod bootstrap;
pub mod distributions;
pub mod paired;
pub mod planning;
pub mod sign_flip;

/// A closed interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// Whether it lies entirely above or entirely below zero.
    pub fn excludes_zero(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }

    /// Both ends multiplied by `factor`, which is positive.
    pub fn scaled(&self, factor: f64) -> Self {
        Self { low: self.low * factor, high: self.high * factor }
    }
}

/// The mean, added up in order. NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The variance with n - 1 in the denominator. NaN of fewer than two values.
pub fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    squares / (values.len() as f64 - 1.0)
}

/// The standard deviation with n - 1 in the denominator. NaN of fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    libm::sqrt(variance(values))
}

/// The confidence interval of the standard deviation of normal values, of which `values` are a sample of at least two: by chi-squared.
pub fn deviation_interval(values: &[f64], confidence: f64) -> Interval {
    let df = values.len() as f64 - 1.0;
    let squares = variance(values) * df;
    let at = |p: f64| libm::sqrt(squares / distributions::chi_squared_quantile(p, df));
    Interval { low: at(0.5 + confidence / 2.0), high: at(0.5 - confidence / 2.0) }
}

/// Pearson's correlation of two lists of the same length. None if one of them is constant.
pub fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let (mean_a, mean_b) = (mean(a), mean(b));
    let product: f64 = a.iter().zip(b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum();
    let squares = |values: &[f64], mean: f64| values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
    let scale = libm::sqrt(squares(a, mean_a) * squares(b, mean_b));
    (scale > 0.0).then(|| (product / scale).clamp(-1.0, 1.0))
}

/// Holm's step-down adjustment of p-values: a hypothesis whose adjusted value is at most alpha is rejected with family-wise error rate
/// alpha (Holm 1979).
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut adjusted, mut largest) = (vec![0.0; p.len()], 0.0_f64);
    for (rank, index) in order.into_iter().enumerate() {
        largest = largest.max(((p.len() - rank) as f64 * p[index]).min(1.0));
        adjusted[index] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests;
