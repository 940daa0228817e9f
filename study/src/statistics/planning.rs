//! The number of paired runs that a claim needs, what a given number of runs can show, and what chance alone does.

use super::distributions::t_quantile;

/// The chance with which a study should find what is there.
pub const POWER: f64 = 0.8;
/// Numbers of runs above this are not searched.
const RUNS_MAX: usize = 100_000;

/// The smallest difference that `runs` pairs find with a chance of [`POWER`], if differences have this standard deviation and the test
/// is two-sided at level `alpha`: the usual approximation by a shifted t distribution.
pub fn detectable(runs: usize, deviation: f64, alpha: f64) -> f64 {
    let df = runs as f64 - 1.0;
    (t_quantile(1.0 - alpha / 2.0, df) + t_quantile(POWER, df)) * deviation / libm::sqrt(runs as f64)
}

/// The smallest margin within which `runs` pairs show equal arms to be equivalent, with a chance of [`POWER`].
pub fn provable_margin(runs: usize, deviation: f64, alpha: f64) -> f64 {
    let df = runs as f64 - 1.0;
    // Both one-sided tests must succeed, so each may fail in half of the remaining cases.
    let each = 1.0 - (1.0 - POWER) / 2.0;
    (t_quantile(1.0 - alpha, df) + t_quantile(each, df)) * deviation / libm::sqrt(runs as f64)
}

/// The number of pairs with which arms that differ by `margin` are told apart, and equal ones are shown to be equivalent within it, each
/// with a chance of [`POWER`]. None if it is beyond reason.
pub fn runs_for(margin: f64, deviation: f64, alpha: f64) -> Option<usize> {
    let is_enough =
        |runs: usize| detectable(runs, deviation, alpha) <= margin && provable_margin(runs, deviation, alpha) <= margin;
    if !is_enough(RUNS_MAX) {
        return None;
    }
    // Both fall with the number of runs.
    let (mut low, mut high) = (1, RUNS_MAX);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if is_enough(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// The chance that a net wins at least `wins` of `pairs` pairs against a net that is as good: a binomial tail.
pub fn chance_of_wins(wins: usize, pairs: usize) -> f64 {
    let mut share = libm::pow(0.5, pairs as f64);
    let mut sum = 0.0;
    // From all pairs down: each coefficient follows from the one before.
    for won in (wins..=pairs).rev() {
        sum += share;
        share = share * won as f64 / (pairs - won + 1) as f64;
    }
    sum
}
