//! The normal distribution, Student's t, and chi-squared: distribution functions and quantiles.

/// Steps of a continued fraction and of a bisection. Both end far earlier.
const STEPS_MAX: usize = 500;
/// Terms of a series or fraction for chi-squared. With many degrees of freedom it needs more of them.
const GAMMA_STEPS_MAX: usize = 100_000;

/// P(X <= x) of a standard normal X.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// The x with P(X <= x) = p of a standard normal X. Infinite for 0 and 1.
pub fn normal_quantile(p: f64) -> f64 {
    quantile(p, 40.0, normal_cdf)
}

/// P(T <= t) of Student's t with `df` degrees of freedom: half of a regularised incomplete beta function.
pub fn t_cdf(t: f64, df: f64) -> f64 {
    let tail = 0.5 * t_two_sided(t, df);
    if t > 0.0 { 1.0 - tail } else { tail }
}

/// P(|T| >= |t|).
pub fn t_two_sided(t: f64, df: f64) -> f64 {
    let square = t * t;
    if square.is_infinite() {
        0.0
    } else if square < df {
        // Here the ratio below would lose the digits of a small t.
        1.0 - incomplete_beta(0.5, df / 2.0, square / (df + square))
    } else {
        incomplete_beta(df / 2.0, 0.5, df / (df + square))
    }
}

/// The t with P(T <= t) = p. Infinite for 0 and 1.
pub fn t_quantile(p: f64, df: f64) -> f64 {
    // With one degree of freedom, the tails are as long as those of tan.
    quantile(p, 1e12, |t| t_cdf(t, df))
}

/// The quantile of a symmetric distribution, by bisection of its lower tail, which keeps its relative precision.
fn quantile(p: f64, reach: f64, cdf: impl Fn(f64) -> f64) -> f64 {
    if !(p > 0.0 && p < 1.0) {
        return match p {
            0.0 => f64::NEG_INFINITY,
            1.0 => f64::INFINITY,
            _ => f64::NAN,
        };
    }
    if p > 0.5 {
        return -quantile(1.0 - p, reach, cdf);
    }
    bisected(-reach, 0.0, |x| cdf(x) < p)
}

/// The smallest x between `low` and `high` that is not too low.
fn bisected(mut low: f64, mut high: f64, is_too_low: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..STEPS_MAX {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if is_too_low(middle) { low = middle } else { high = middle }
    }
    high
}

/// P(X <= x) of chi-squared with `df` degrees of freedom: a regularised incomplete gamma function.
pub fn chi_squared_cdf(x: f64, df: f64) -> f64 {
    incomplete_gamma(df / 2.0, x / 2.0)
}

/// The x with P(X <= x) = p of chi-squared, by bisection. 0 for 0, infinite for 1.
pub fn chi_squared_quantile(p: f64, df: f64) -> f64 {
    if !(p > 0.0 && p < 1.0) {
        return if p == 0.0 {
            0.0
        } else if p == 1.0 {
            f64::INFINITY
        } else {
            f64::NAN
        };
    }
    let mut high = df + 1.0;
    while chi_squared_cdf(high, df) < p && high.is_finite() {
        high *= 2.0;
    }
    bisected(0.0, high, |x| chi_squared_cdf(x, df) < p)
}

/// The regularised lower incomplete gamma function P(a, x): by its series (DLMF 8.7.1) below the mean, and above by the continued fraction
/// of its complement (DLMF 8.9.2), with the method of Lentz.
fn incomplete_gamma(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let front = libm::exp(a * libm::log(x) - x - libm::lgamma(a));
    if x < a + 1.0 {
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        for step in 1..=GAMMA_STEPS_MAX {
            term *= x / (a + step as f64);
            sum += term;
            if term < sum * f64::EPSILON {
                break;
            }
        }
        return (front * sum).min(1.0);
    }
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1.0 / f64::MIN_POSITIVE, 1.0 / b);
    let mut fraction = d;
    for step in 1..=GAMMA_STEPS_MAX {
        let numerator = -(step as f64) * (step as f64 - a);
        b += 2.0;
        d = 1.0 / guarded(numerator * d + b);
        c = guarded(b + numerator / c);
        let change = c * d;
        fraction *= change;
        if (change - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    1.0 - front * fraction
}

/// Not so close to zero that its inverse is infinite.
fn guarded(value: f64) -> f64 {
    if value.abs() < f64::MIN_POSITIVE { f64::MIN_POSITIVE } else { value }
}

/// The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22), with the method of Lentz.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    // The fraction converges fast below the mean.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let scale = libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b);
    let front = libm::exp(scale + a * libm::log(x) + b * libm::log1p(-x)) / a;
    let (mut c, mut d) = (1.0, 1.0 / guarded(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for step in 1..=STEPS_MAX {
        let m = step as f64;
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / guarded(1.0 + term * d);
            c = guarded(1.0 + term / c);
            change *= c * d;
        }
        fraction *= change;
        if (change - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    front * fraction
}
