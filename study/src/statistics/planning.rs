//! The number of paired runs that a claim needs, what a given number of runs can show, and what chance alone does.

use convoy_common::random::Source;
use rayon::prelude::*;

use super::distributions::t_quantile;
use super::paired::StudentT;
use super::sign_flip;

/// The chance with which a study should find what is there.
pub const POWER: f64 = 0.8;
/// Numbers of runs above this are not searched.
const RUNS_MAX: usize = 100_000;

/// Pairs up to which power is simulated. With more, the sign-flip test is as good as Student's t.
const SIMULATED_MAX: usize = 30;
/// Simulated studies.
const SIMULATIONS: u64 = 1_000;
/// Steps by which differences are rounded to whole numbers in simulations, per standard deviation.
const STEPS: f64 = 200.0;

/// The smallest difference that `runs` pairs find with a chance of [`POWER`], if differences have this standard deviation, by the two-sided
/// sign-flip test and the t interval at level `alpha`. Infinite if the sign-flip test can't reject.
pub fn detectable(runs: usize, deviation: f64, alpha: f64) -> f64 {
    if sign_flip::smallest(runs) > alpha {
        return f64::INFINITY;
    }
    let df = runs as f64 - 1.0;
    let by_t = (t_quantile(1.0 - alpha / 2.0, df) + t_quantile(POWER, df)) / libm::sqrt(runs as f64);
    if runs > SIMULATED_MAX {
        return by_t * deviation;
    }
    // The chance grows with the difference.
    let (mut low, mut high) = (0.0, 4.0 * by_t);
    for _ in 0..12 {
        let middle = 0.5 * (low + high);
        if power(runs, middle, alpha) < POWER { low = middle } else { high = middle }
    }
    high * deviation
}

/// The share of simulated studies that find a difference of so many standard deviations.
fn power(runs: usize, difference: f64, alpha: f64) -> f64 {
    let source = Source::new(1, "simulated studies");
    let finds = |study: &u64| {
        let normal = |pair: usize| source.normal(study * runs as u64 + pair as u64) + difference;
        let differences: Vec<f64> = (0..runs).map(|pair| libm::round(normal(pair) * STEPS)).collect();
        let whole: Vec<i64> = differences.iter().map(|d| *d as i64).collect();
        StudentT::of_pairs(&differences).p() <= alpha && sign_flip::p(&whole).is_some_and(|p| p <= alpha)
    };
    (0..SIMULATIONS).into_par_iter().filter(finds).count() as f64 / SIMULATIONS as f64
}

/// The smallest margin within which `runs` pairs show equal arms to be equivalent, with a chance of [`POWER`].
pub fn provable_margin(runs: usize, deviation: f64, alpha: f64) -> f64 {
    let df = runs as f64 - 1.0;
    // Both one-sided tests must succeed, so each may fail in half of the remaining cases.
    let each = 1.0 - (1.0 - POWER) / 2.0;
    (t_quantile(1.0 - alpha, df) + t_quantile(each, df)) * deviation / libm::sqrt(runs as f64)
}

/// About the number of pairs with which arms that differ by `margin` are told apart, and equal ones are shown to be equivalent within it, each
/// with a chance of [`POWER`], by Student's t. None if it is beyond reason.
pub fn runs_for(margin: f64, deviation: f64, alpha: f64) -> Option<usize> {
    let by_t = |runs: usize| {
        let df = runs as f64 - 1.0;
        (t_quantile(1.0 - alpha / 2.0, df) + t_quantile(POWER, df)) * deviation / libm::sqrt(runs as f64)
    };
    let is_enough = |runs: usize| {
        let can_reject = sign_flip::smallest(runs) <= alpha;
        can_reject && by_t(runs) <= margin && provable_margin(runs, deviation, alpha) <= margin
    };
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
