//! Tests and intervals of two arms with paired runs: Student's t for the differences, equivalence by two one-sided tests, Welch's test
//! without pairs, and the probability that one arm wins.

use super::distributions::{normal_quantile, t_cdf, t_quantile, t_two_sided};
use super::{Interval, deviation, mean, variance};

/// Student's t for differences of pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StudentT {
    /// The mean difference.
    pub mean: f64,
    /// Standard error of the mean.
    pub error: f64,
    /// Degrees of freedom.
    pub df: f64,
}

impl StudentT {
    /// Of the differences of pairs, at least two.
    pub fn of_pairs(differences: &[f64]) -> Self {
        let n = differences.len() as f64;
        Self { mean: mean(differences), error: deviation(differences) / libm::sqrt(n), df: n - 1.0 }
    }

    /// Welch's: of two lists that are not paired, each of at least two values. The mean is that of `a` minus that of `b`.
    pub fn welch(a: &[f64], b: &[f64]) -> Self {
        let squared_error = |values: &[f64]| variance(values) / values.len() as f64;
        let (of_a, of_b) = (squared_error(a), squared_error(b));
        let total = of_a + of_b;
        let share = |part: f64, values: &[f64]| part * part / (values.len() as f64 - 1.0);
        // Two constant lists have no variance to estimate degrees of freedom from.
        let df = if total > 0.0 { total * total / (share(of_a, a) + share(of_b, b)) } else { 1.0 };
        Self { mean: mean(a) - mean(b), error: libm::sqrt(total), df }
    }

    /// The two-sided p-value of "the mean is zero".
    pub fn p(&self) -> f64 {
        if self.error == 0.0 {
            // All differences are equal.
            return if self.mean == 0.0 { 1.0 } else { 0.0 };
        }
        t_two_sided(self.mean / self.error, self.df)
    }

    /// The confidence interval of the mean.
    pub fn interval(&self, confidence: f64) -> Interval {
        let reach = t_quantile(0.5 + confidence / 2.0, self.df) * self.error;
        Interval { low: self.mean - reach, high: self.mean + reach }
    }

    /// The p-value of "the mean is not within `margin` of zero": the larger one of two one-sided tests (Schuirmann 1987). A small value
    /// shows equivalence.
    pub fn equivalence(&self, margin: f64) -> f64 {
        if self.error == 0.0 {
            return if self.mean.abs() < margin { 0.0 } else { 1.0 };
        }
        let below = t_cdf((self.mean - margin) / self.error, self.df);
        let above = t_cdf(-(self.mean + margin) / self.error, self.df);
        below.max(above)
    }
}

/// The share of pairs in which the first one is larger, where a tie counts half, with Wilson's interval (Wilson 1927).
pub fn superiority(differences: &[f64], confidence: f64) -> (f64, Interval) {
    let points = |difference: &f64| match difference.total_cmp(&0.0) {
        std::cmp::Ordering::Greater => 1.0,
        _ if *difference == 0.0 => 0.5,
        _ => 0.0,
    };
    let n = differences.len() as f64;
    let share = differences.iter().map(points).sum::<f64>() / n;
    let z = normal_quantile(0.5 + confidence / 2.0);
    let centre = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let reach = z / (1.0 + z * z / n) * libm::sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n));
    (share, Interval { low: (centre - reach).max(0.0), high: (centre + reach).min(1.0) })
}
