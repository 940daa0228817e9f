//! The records of a run: `run.json`, a zero, and the lines of its metrics.
#![no_main]

use convoy_fuzz::open_records;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| open_records(bytes));
