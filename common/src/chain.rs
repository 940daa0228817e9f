//! An error and its causes on one line, for people.

use std::error::Error;

/// The error and then its causes, nearest first. A cause that the text already ends with isn't repeated.
pub fn chain(error: &dyn Error) -> String {
    with_causes(&error.to_string(), error)
}

/// A message about an error and then the error's causes, for errors whose own text is not for people, such as gRPC's status.
pub fn with_causes(message: &str, error: &dyn Error) -> String {
    let mut text = message.to_owned();
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
