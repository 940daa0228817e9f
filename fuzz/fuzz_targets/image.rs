//! A file that is given as an image: JPEG, PNG, EXIF data, or something else.
#![no_main]

use convoy_fuzz::{open_image, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| with_files(&[("image", bytes)], |folder| open_image(folder.join("image"))));
