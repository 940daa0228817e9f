//! A file of images in the format IDX with sound labels, and a file of labels with sound images. Either may be compressed.
#![no_main]

use convoy_fuzz::{open_test_images, with_files};
use libfuzzer_sys::fuzz_target;

/// Two bytes: the labels of two images.
const LABELS: &[u8] = &[0, 0, 8, 1, 0, 0, 0, 2, 1, 0];
/// Two images of one pixel.
const IMAGES: &[u8] = &[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 50, 60];

fuzz_target!(|bytes: &[u8]| {
    for (images, labels) in [(bytes, LABELS), (IMAGES, bytes)] {
        let files = [("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)];
        with_files(&files, |folder| open_test_images(folder.to_owned(), 1, 10));
    }
});
