//! The nearest known name to one that isn't known, for error messages. Not a spelling corrector: nothing is guessed
//! silently.

use std::fmt::Write;

/// The known name most like `unknown`, if one is near enough to be what was meant.
pub fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let near_enough = 0.6;
    known
        .iter()
        .map(|name| (strsim::jaro_winkler(unknown, name), *name))
        .filter(|(likeness, _)| *likeness >= near_enough)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// `; did you mean "relu"? known are "conv", "relu"`: the tail of an error about an unknown name.
pub fn hint(unknown: &str, known: &[&str]) -> String {
    let mut text = String::new();
    if let Some(name) = nearest(unknown, known) {
        let _ = write!(text, "; did you mean \"{name}\"?");
    }
    let _ = write!(text, "; known are {}", known.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_name() {
        assert_eq!(nearest("fitlers", &["filters", "kernel"]), Some("filters"));
        assert_eq!(nearest("xyzzy", &["filters", "kernel"]), None);
    }
}
