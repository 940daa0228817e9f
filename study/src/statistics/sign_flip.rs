//! The exact sign-flip test of paired differences. If two arms are equal, each difference is as likely to have the opposite sign.
//!
//! Differences are whole numbers (of images), so the distribution of their sum over all 2^n choices of signs is computed exactly, without
//! listing the choices.

/// Sums that are larger than this are not tabulated. 1,000 pairs of runs that differ by 10,000 images each stay below.
const SUM_MAX: u64 = 1 << 24;

/// The two-sided p-value: the share of all choices of signs whose sum is at least as far from zero as the observed sum. None if the
/// differences are too large to tabulate.
pub fn p(differences: &[i64]) -> Option<f64> {
    let total: u64 = differences.iter().map(|d| d.unsigned_abs()).sum();
    if total > SUM_MAX {
        return None;
    }
    let (total, observed) = (total as usize, differences.iter().sum::<i64>().unsigned_abs() as usize);
    // The probability of each sum of the positive ones. The sum of all is twice that, minus the total.
    let mut share = vec![0.0_f64; total + 1];
    share[0] = 1.0;
    let mut reached = 0;
    for size in differences.iter().map(|d| d.unsigned_abs() as usize) {
        reached += size;
        for sum in (0..=reached).rev() {
            let with = if sum >= size { share[sum - size] } else { 0.0 };
            share[sum] = 0.5 * (share[sum] + with);
        }
    }
    let is_as_far = |positive: usize| (2 * positive).abs_diff(total) >= observed;
    Some((0..=total).filter(|positive| is_as_far(*positive)).map(|positive| share[positive]).sum::<f64>().min(1.0))
}

/// The smallest p-value that `pairs` pairs can have: all differences have the same sign.
pub fn smallest(pairs: usize) -> f64 {
    2.0 * libm::pow(0.5, pairs as f64)
}
