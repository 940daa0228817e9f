//! A file that is given as a set of images: a NumPy archive, a Parquet file, a tar archive, plain or compressed, or something else.
#![no_main]

use convoy_fuzz::{open_set, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| with_files(&[("set", bytes)], |folder| open_set(folder.join("set"))));
