//! Help for a name that isn't known: the known name that was probably meant, or else all of them. Nothing is corrected
//! silently.

/// A known name that starts an unknown one is probably meant, as "pad" by "padding", unless it is shorter than this.
const PREFIX_MIN: usize = 3;

/// The known name that was probably meant: one slip away in names of 3 or 4 letters, two in longer names, none in shorter ones; or
/// the beginning of what was written.
pub fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let slips_max = |name: &str| match name.len() {
        0..=2 => 0,
        3..=4 => 1,
        _ => 2,
    };
    let slips = |name: &&str| strsim::osa_distance(unknown, name);
    let nearest = known.iter().copied().min_by_key(slips).filter(|name| slips(name) <= slips_max(name));
    let begins = |name: &&str| name.len() >= PREFIX_MIN && unknown.starts_with(name);
    nearest.or_else(|| known.iter().copied().filter(begins).max_by_key(|name| name.len()))
}

/// The tail of an error about an unknown name: `; did you mean "relu"?` where one is close, else `; expected one of conv, relu`.
pub fn hint(unknown: &str, known: &[&str]) -> String {
    match nearest(unknown, known) {
        Some(name) => format!("; did you mean \"{name}\"?"),
        None => format!("; expected one of {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_close_is_suggested_and_otherwise_all_are_listed() {
        let keys = ["name", "filters", "kernel", "stride", "pad", "groups", "bias", "init"];
        for (unknown, meant) in
            [("fitlers", "filters"), ("kernal", "kernel"), ("padding", "pad"), ("kernel_size", "kernel")]
        {
            assert_eq!(nearest(unknown, &keys), Some(meant));
        }
        for unknown in ["dilation", "ceil_mode", "xyzzy", ""] {
            assert_eq!(nearest(unknown, &keys), None, "{unknown}");
        }
        assert_eq!(nearest("concat", &["conv", "linear", "relu"]), None);
        assert_eq!(nearest("n", &["size", "alpha", "beta", "k"]), None);
        assert_eq!(hint("concat", &["conv", "relu"]), "; expected one of conv, relu");
        assert_eq!(hint("conf", &["conv", "relu"]), "; did you mean \"conv\"?");
    }
}
