//! The files of CIFAR-100 as Python wrote them: the test images and the names of classes.
#![no_main]

use convoy_fuzz::{open_test_images, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    with_files(&[("test", bytes), ("meta", bytes)], |folder| open_test_images(folder.to_owned(), 3, 100));
});
