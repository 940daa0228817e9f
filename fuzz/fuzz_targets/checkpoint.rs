//! A checkpoint: its manifest, a zero, and a file of weights.
#![no_main]

use convoy_fuzz::open_checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| open_checkpoint(bytes));
