//! The trace of a run.
#![no_main]

use convoy_fuzz::open_trace;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| open_trace(bytes));
