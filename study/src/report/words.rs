//! Numbers as people read them.

/// A probability for people, with two digits that matter.
pub(super) fn chance(p: f64) -> String {
    match p {
        p if p < 1e-4 => "less than 0.01 %".to_owned(),
        p if p < 0.1 => format!("{:.2} %", p * 100.0),
        p => format!("{} %", libm::round(p * 1e3) / 10.0),
    }
}

/// A share as a percentage, without needless digits.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", libm::round(share * 1e4) / 1e2)
}
