//! The text of a model file: it is parsed, and a plan is made of the network.
#![no_main]

use convoy_fuzz::plan_of;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        plan_of(text);
    }
});
