//! An error and its causes, on one line for a person.

use std::error::Error;

/// The error, then its causes, from the nearest to the farthest. A cause that its error has already told isn't told again.
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
