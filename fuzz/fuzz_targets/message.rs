//! Messages of all kinds, one after the other, each preceded by its kind and its length: those of workers, of coordinators, and tensors in
//! parts for a live plan.
#![no_main]

use convoy_fuzz::hear;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| hear(bytes));
