//! Tails of binomial distributions: how likely so many hits are by chance.

/// The chance of at least `hits` in `trials`, if each hits with the chance `each`, between 0 and 1.
pub fn at_least(hits: usize, trials: usize, each: f64) -> f64 {
    if hits == 0 {
        return 1.0;
    }
    let all = trials as f64;
    let (hit, miss) = (libm::log(each), libm::log1p(-each));
    let chosen = |k: f64| libm::lgamma(all + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(all - k + 1.0);
    // The smallest ones first.
    let terms = (hits..=trials).rev().map(|k| k as f64);
    terms.map(|k| libm::exp(chosen(k) + k * hit + (all - k) * miss)).sum::<f64>().min(1.0)
}

/// The chance that one of two equally likely sides gets at least `most` of `trials`: both tails.
pub fn as_uneven(most: usize, trials: usize) -> f64 {
    (2.0 * at_least(most, trials, 0.5)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SciPy: binom.sf(hits - 1, trials, each), and binomtest(most, trials).pvalue.
    #[test]
    fn tails_agree_with_scipy() {
        for (hits, trials, each, expected) in [
            (0, 9, 0.05, 1.0),
            (3, 12, 0.05, 0.01956826199715453),
            (12, 12, 0.05, 2.4414062500000014e-16),
            (130, 1000, 0.1, 0.0013413983708734428),
        ] {
            let found = at_least(hits, trials, each);
            assert!((found - expected).abs() <= 1e-9 * expected, "{hits} of {trials}: {found:e} and {expected:e}");
        }
        for (most, trials, expected) in [
            (0, 0, 1.0),
            (1, 1, 1.0),
            (6, 6, 0.03125),
            (3, 4, 0.625),
            (500, 1000, 1.0),
            (600, 1100, 0.0028195449914364284),
        ] {
            assert!(
                (as_uneven(most, trials) - expected).abs() < 1e-9,
                "{most} of {trials}: {}",
                as_uneven(most, trials)
            );
        }
    }
}
