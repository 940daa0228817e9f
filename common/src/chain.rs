//! An error and its causes on one line, for people.

use std::error::Error;

/// The error and then its causes, nearest first. A cause that the text already ends with isn't repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
