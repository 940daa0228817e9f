//! Images and labels: where they come from, and the checks that they fit the model.
//!
//! A data set is whole in memory, as bytes; a pixel becomes a float on the worker. The order in which images are
//! taken, and batches, aren't here. Loading blocks on files and maybe on the network, so no async task may do it.

mod download;
mod error;
mod fashion;
mod folder;
mod idx;
mod synthetic;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use convoy_common::model::Network;
use convoy_common::parameters::hex;
use ndarray::{Array4, ArrayView4};
use sha2::{Digest, Sha256};

pub use error::DataError;
pub use fashion::{CLASS_NAMES, Places};

/// Where images come from, as the user says it: `--data auto|DIR|bundled|synthetic`.
///
/// A folder whose name is one of the three words is written with its path: `./synthetic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// Fashion-MNIST: from disk, or else from the network, or else the bundled subset.
    Auto,
    /// A folder of four IDX files.
    Folder(PathBuf),
    /// The subset of Fashion-MNIST that is part of the binary.
    Bundled,
    /// Noise in the shape that the model wants.
    Synthetic,
}

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
    /// The job's seed, which synthetic images are made of.
    pub seed: u64,
}

/// Loads the images, when the model that wants them is known.
pub type Reader = Box<dyn Fn(&Wanted) -> Result<DataSet, DataError>>;

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

/// Images with a label each: either the training or the test part of a data set.
#[derive(Debug, Clone)]
pub struct Split {
    /// (image, channel, row, column), in standard layout.
    images: Array4<u8>,
    labels: Vec<u16>,
}

/// Everything that a job is trained and tested on.
#[derive(Debug, Clone)]
pub struct DataSet {
    /// What the model learns from.
    pub train: Split,
    /// What its accuracy is measured on.
    pub test: Split,
    /// What it is and where it is from, in one line for a person.
    pub origin: String,
    /// That this is only the bundled subset, and how to get the whole, in one line.
    pub notice: Option<String>,
    /// SHA-256 over both splits, in hex: a checkpoint keeps it, so that a resume on other data is refused.
    pub fingerprint: String,
}

/// Loads the data and checks that it fits the model.
///
/// # Errors
/// Says which file, which value in it, and what would be right. A download that fails is no error: `Auto` then falls
/// back on the bundled subset, and the notice says why.
pub fn load(source: &DataSource, wanted: &Wanted, places: &Places) -> Result<DataSet, DataError> {
    match source {
        DataSource::Auto => fashion::auto(wanted, places, &download::Remote::fashion_mnist()),
        DataSource::Folder(folder) => from_folder(folder, wanted),
        DataSource::Bundled => fashion::bundled(wanted),
        DataSource::Synthetic => synthetic::make(wanted),
    }
}

fn from_folder(folder: &Path, wanted: &Wanted) -> Result<DataSet, DataError> {
    let folder::Splits { train, test } = folder::read(folder::find(folder)?, wanted)?;
    let origin = format!(
        "IDX files in {}: {} train and {} test images of {}, {} classes",
        folder.display(),
        train.len(),
        test.len(),
        wanted.shape(),
        wanted.classes
    );
    let fingerprint = fingerprint(&train, &test);
    Ok(DataSet { train, test, origin, notice: None, fingerprint })
}

impl Split {
    /// # Panics
    /// If there isn't one label an image, or the images aren't in standard layout.
    fn new(images: Array4<u8>, labels: Vec<u16>) -> Self {
        assert_eq!(images.dim().0, labels.len(), "one label an image");
        assert!(images.is_standard_layout(), "images are contiguous, so that one is a slice");
        Split { images, labels }
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image; a loaded split has at least one.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The bytes of one image: channel, row, column.
    ///
    /// # Panics
    /// If there is no such image.
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
    /// If there is no such image.
    pub fn label(&self, index: usize) -> u16 {
        self.labels[index]
    }

    /// All images: (image, channel, row, column), in standard layout.
    pub fn images(&self) -> ArrayView4<'_, u8> {
        self.images.view()
    }

    /// All labels, in the images' order.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }
}

/// SHA-256 over the dimensions, the bytes and the labels of both splits; packing and file names don't matter.
fn fingerprint(train: &Split, test: &Split) -> String {
    let mut sha = Sha256::new();
    for split in [train, test] {
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
    /// What `network` needs, in a job with this seed.
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

impl FromStr for DataSource {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        match text {
            "" => Err(DataError::EmptySource),
            "auto" => Ok(DataSource::Auto),
            "bundled" => Ok(DataSource::Bundled),
            "synthetic" => Ok(DataSource::Synthetic),
            folder => Ok(DataSource::Folder(PathBuf::from(folder))),
        }
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataSource::Auto => f.write_str("auto"),
            DataSource::Folder(folder) => folder.display().fmt(f),
            DataSource::Bundled => f.write_str("bundled"),
            DataSource::Synthetic => f.write_str("synthetic"),
        }
    }
}
