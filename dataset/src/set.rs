//! Images and labels in memory: a split; a data set, which consists of two splits; and what a model requires of them.
//!
//! Not here: where they come from.

use std::fmt;

use convoy_common::model::Network;
use convoy_common::parameters::hex;
use ndarray::{Array4, ArrayView4};
use sha2::{Digest, Sha256};

/// What the model needs of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Channels of an image.
    pub channels: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Units of the model's last layer.
    pub classes: usize,
    /// The job's seed, which decides synthetic images.
    pub seed: u64,
}

/// The extents of one image. Displays as `3x227x227`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShape {
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// The training part or the test part of a data set: images and their labels.
#[derive(Debug, Clone)]
pub struct Split {
    /// (image, channel, row, column), in standard layout.
    images: Array4<u8>,
    labels: Vec<u16>,
}

/// Both splits, each checked against the model.
pub(super) struct Splits {
    pub(super) train: Split,
    pub(super) test: Split,
}

/// A data set.
#[derive(Debug, Clone)]
pub struct DataSet {
    /// The training images.
    pub train: Split,
    /// The test images.
    pub test: Split,
    /// What the data are and where they come from, in one line for people.
    pub origin: String,
    /// What people should know, one line each: that this is only a subset, or that classes are missing.
    pub notices: Vec<String>,
    /// SHA-256 over both splits, in hex. A checkpoint keeps it, so that a resumed job can refuse other data.
    pub fingerprint: String,
}

/// The training images or the test images of a data set.
#[derive(Debug, Clone)]
pub struct PartSet {
    /// The images.
    pub images: Split,
    /// SHA-256 over the whole set, if it was loaded.
    pub fingerprint: Option<String>,
    /// What the data are and where they come from, in one line for people.
    pub origin: String,
    /// What people should know, one line each.
    pub notices: Vec<String>,
}

impl DataSet {
    /// A data set of these splits, with its name for people.
    pub(super) fn new(splits: Splits, name: &str, notices: Vec<String>) -> Self {
        let Splits { train, test } = splits;
        let (train_count, test_count, shape) = (train.len(), test.len(), train.shape());
        let origin = format!("{name}: {train_count} training and {test_count} test images of {shape}");
        let fingerprint = fingerprint(&[&train, &test]);
        DataSet { train, test, origin, notices, fingerprint }
    }
}

impl PartSet {
    /// The test images of a data set, with its name for people.
    pub(super) fn new(images: Split, name: &str, notices: Vec<String>) -> Self {
        let origin = format!("{name}: {} test images of {}", images.len(), images.shape());
        PartSet { images, fingerprint: None, origin, notices }
    }
}

impl Split {
    /// # Panics If there isn't one label per image, or the images aren't in standard layout.
    pub(super) fn new(images: Array4<u8>, labels: Vec<u16>) -> Self {
        assert_eq!(images.dim().0, labels.len(), "one label an image");
        assert!(images.is_standard_layout(), "images are contiguous, so that one is a slice");
        Split { images, labels }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The extents of one image.
    pub fn shape(&self) -> ImageShape {
        let (_, channels, height, width) = self.images.dim();
        ImageShape { channels, height, width }
    }

    /// SHA-256 over this split alone, in hex.
    pub fn fingerprint(&self) -> String {
        fingerprint(&[self])
    }

    /// Whether there is no image. A loaded split has at least one.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The bytes of one image, (channel, row, column).
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn image(&self, index: usize) -> &[u8] {
        assert!(index < self.len(), "image {index} of {}", self.len());
        let (_, channels, height, width) = self.images.dim();
        let size = channels * height * width;
        let bytes = self.images.as_slice().expect("the constructor asserts standard layout");
        &bytes[index * size..(index + 1) * size]
    }

    /// The class of one image.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn label(&self, index: usize) -> u16 {
        self.labels[index]
    }

    /// All images: (image, channel, row, column), in standard layout.
    pub fn images(&self) -> ArrayView4<'_, u8> {
        self.images.view()
    }

    /// All labels, in the order of the images.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }
}

/// SHA-256 over the dimensions, the bytes and the labels of splits. Compression and file names don't matter.
pub(super) fn fingerprint(splits: &[&Split]) -> String {
    let mut sha = Sha256::new();
    for split in splits {
        for &extent in split.images.shape() {
            sha.update((extent as u64).to_le_bytes());
        }
        sha.update(split.images.as_slice().expect("the constructor asserts standard layout"));
        let labels: Vec<u8> = split.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        sha.update(labels);
    }
    hex(&sha.finalize())
}

impl Wanted {
    /// What `network` needs, in a job with the given seed.
    pub fn by(network: &Network, seed: u64) -> Self {
        let input = network.input.shape;
        let (channels, height, width) = (input.channels, input.height, input.width);
        Self { channels, height, width, classes: network.classes(), seed }
    }

    /// The extents of one image.
    pub fn shape(&self) -> ImageShape {
        ImageShape { channels: self.channels, height: self.height, width: self.width }
    }
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}
