//! Numbers as people read them.

/// A probability for people, with two digits that matter.
pub fn chance(p: f64) -> String {
    match p {
        p if p < 1e-4 => "less than 0.01 %".to_owned(),
        p if p < 0.1 => format!("{:.2} %", p * 100.0),
        p => format!("{} %", libm::round(p * 1e3) / 10.0),
    }
}

/// A share as a percentage, without needless digits.
pub fn percent(share: f64) -> String {
    format!("{} %", libm::round(share * 1e4) / 1e2)
}

/// A text that begins with a capital letter.
pub fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

/// A text from a file, for a terminal: characters that would control it are shown as escapes.
pub fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// A number with a thin space between every three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = (digits.len() - 1) % 3 + 1;
    let (head, rest) = digits.split_at(first);
    let rest: Vec<String> =
        rest.as_bytes().chunks(3).map(|three| String::from_utf8_lossy(three).into_owned()).collect();
    std::iter::once(head.to_owned()).chain(rest).collect::<Vec<_>>().join("\u{202f}")
}
