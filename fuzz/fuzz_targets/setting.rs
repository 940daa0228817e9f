//! The value of a flag or of an environment variable.
#![no_main]

use convoy_fuzz::parse_value;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        parse_value(text);
    }
});
