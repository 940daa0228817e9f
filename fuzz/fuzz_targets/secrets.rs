//! The files of TLS, in PEM.
#![no_main]

use convoy_fuzz::open_secrets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| open_secrets(bytes));
