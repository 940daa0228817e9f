//! Noise in the shape of a data set, for measuring speed, and for models whose data isn't available.
//!
//! The formula is in `docs/NUMERICS.md`, under *Random numbers*. The images teach nothing, on purpose.

use convoy_common::random::Source;
use ndarray::Array4;
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::set::{DataSet, PartSet, Split, Splits, Wanted};
use convoy_common::parameters::hex;

/// The most bytes of both splits together.
const BYTES_MAX: u64 = 512 << 20;
/// From this size on there are half as many images.
const BIG_IMAGE_BYTES: u64 = 100_000;
/// Labels are 16 bits wide.
const CLASSES_MAX: usize = 1 << 16;

/// Number of images of each split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) train: usize,
    pub(super) test: usize,
}

/// Makes both splits. The fingerprint is over the parameters, which decide every byte.
pub(super) fn make(wanted: &Wanted) -> Result<DataSet, DataError> {
    let counts = fitting_counts(wanted)?;
    let (shape, classes, seed) = (wanted.input(), wanted.classes, wanted.seed);
    let Counts { train, test } = counts;
    // Checkpoints of all versions hold the hash of this text, so it never changes.
    let parameters =
        format!("synthetic noise of seed {seed}: {train} train and {test} test images of {shape}, {classes} classes");
    let name = format!("synthetic noise of seed {seed}");
    let splits = Splits { train: split(wanted, TRAIN, train), test: split(wanted, TEST, test) };
    Ok(DataSet::with_fingerprint(splits, &name, Vec::new(), hex(&Sha256::digest(parameters))))
}

/// Makes the test split alone.
pub(super) fn make_test(wanted: &Wanted) -> Result<PartSet, DataError> {
    let counts = fitting_counts(wanted)?;
    let name = format!("synthetic noise of seed {}", wanted.seed);
    Ok(PartSet::new(split(wanted, TEST, counts.test), &name, Vec::new()))
}

/// The purposes of the random numbers that the splits are made of.
const TRAIN: &str = "synthetic:train";
const TEST: &str = "synthetic:test";

fn fitting_counts(wanted: &Wanted) -> Result<Counts, DataError> {
    if wanted.classes == 0 || wanted.classes > CLASSES_MAX {
        return Err(DataError::SyntheticClasses { classes: wanted.classes, limit: CLASSES_MAX });
    }
    let shape = wanted.input();
    let bytes = [shape.channels, shape.height, shape.width]
        .iter()
        .fold(1u128, |product, &extent| product.saturating_mul(extent as u128));
    let fitting = u64::try_from(bytes).ok().filter(|&bytes| bytes > 0).and_then(counts);
    fitting.ok_or(DataError::SyntheticSize { shape, bytes, limit: BYTES_MAX / 5 })
}

/// 2,048 and 512, or half of that for large images. Both are halved until the splits fit, so their ratio stays.
pub(super) fn counts(image_bytes: u64) -> Option<Counts> {
    let first: u64 = if image_bytes < BIG_IMAGE_BYTES { 512 } else { 256 };
    let mut halves = std::iter::successors(Some(first), |test| Some(test / 2).filter(|&test| test > 0));
    let test = halves.find(|test| image_bytes.saturating_mul(5 * test) <= BYTES_MAX)? as usize;
    Some(Counts { train: 4 * test, test })
}

fn split(wanted: &Wanted, purpose: &str, count: usize) -> Split {
    let shape = (count, wanted.channels, wanted.height, wanted.width);
    let source = Source::new(wanted.seed, purpose);
    let mut bytes = vec![0; count * wanted.channels * wanted.height * wanted.width];
    for (block, four) in bytes.chunks_mut(4).enumerate() {
        let words = source.words(block as u64);
        for (byte, word) in four.iter_mut().zip(words) {
            *byte = word.to_le_bytes()[0];
        }
    }
    let images = Array4::from_shape_vec(shape, bytes).expect("the bytes were counted from the shape");
    let label = |image| u16::try_from(image % wanted.classes).expect("classes were checked against CLASSES_MAX");
    Split::made(images, (0..count).map(label).collect(), wanted)
}
