//! Text of others, made fit for people: what comes from another process, or from a file, may hold anything.
//!
//! Not here: where text comes from. Messages of other processes get their short, printable texts in `wire`.

/// The most characters of a description from another process.
pub const DESCRIPTION_MAX: usize = 1000;
/// The most characters of a name from another process, such as that of its machine.
pub const NAME_MAX: usize = 100;

/// A text on one line, without the characters that a terminal would interpret: controls, and those that change the direction of text or
/// separate lines in Unicode.
pub fn printable(text: &str) -> String {
    text.chars().map(shown).collect()
}

/// A printable text of at most `most` characters. What is cut off leaves a mark.
pub fn brief(text: &str, most: usize) -> String {
    let mut characters = text.chars();
    let mut kept: String = characters.by_ref().take(most).map(shown).collect();
    if characters.next().is_some() {
        let has_room = kept.pop().is_some();
        kept.extend(has_room.then_some('…'));
    }
    kept
}

fn shown(character: char) -> char {
    match character {
        '\n' | '\t' => ' ',
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            char::REPLACEMENT_CHARACTER
        }
        other if other.is_control() => char::REPLACEMENT_CHARACTER,
        other => other,
    }
}

/// A number and what is counted, for a sentence.
pub fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_reaches_the_terminal_that_it_would_interpret() {
        assert_eq!(printable("a\nb\tc\x1b[31md\re\u{85}"), "a b c\u{fffd}[31md\u{fffd}e\u{fffd}");
        for hidden in ['\u{202e}', '\u{2028}', '\u{2029}', '\u{2066}', '\u{200f}', '\u{61c}'] {
            assert_eq!(printable(&format!("a{hidden}b")), "a\u{fffd}b", "{hidden:?}");
        }
        assert_eq!(printable("größer ✓"), "größer ✓");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!((brief("größe", 5), brief("größer", 5)), ("größe".to_owned(), "größ…".to_owned()));
        assert_eq!(brief(&"x\n".repeat(1 << 20), NAME_MAX).chars().count(), NAME_MAX);
        assert_eq!((brief("", 0), brief("a", 0)), (String::new(), String::new()));
    }
}
