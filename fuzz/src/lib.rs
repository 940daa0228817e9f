//! What the fuzz targets share. A target fails when a reader panics, when it needs more memory than the fuzzer allows, or when an error could
//! write control characters to a terminal.
//!
//! Not here: whether the values are right, which the tests of the crates check.

mod messages;
mod models;
mod runs;
mod sets;
mod settings;

pub use messages::hear;
pub use models::plan_of;
pub use runs::{open_checkpoint, open_records, open_trace, open_weights};
pub use sets::{open_image, open_set, open_test_images, with_files};
pub use settings::{open_secrets, parse_value};

use convoy_common::chain::chain;

/// The value, unless there is an error, whose text is then checked.
fn checked<T, E: std::error::Error>(result: Result<T, E>) -> Option<T> {
    result.map_err(|error| check_text(&chain(&error))).ok()
}

/// Checks a text that a person may see.
fn check_text(text: &str) {
    assert!(!text.is_empty(), "an error without a text");
    assert!(!text.chars().any(|char| char.is_control() && char != '\n'), "control characters in {text:?}");
    assert!(text.len() < 1 << 14, "a text of {} bytes", text.len());
}
