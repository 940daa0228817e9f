//! A file of weights, in the format safetensors.
#![no_main]

use convoy_fuzz::open_weights;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| open_weights(bytes));
