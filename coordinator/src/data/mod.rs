//! Images and labels: where they come from, and the checks that they fit the model.
//!
//! A whole data set is in memory, as bytes. Workers turn pixels into floats. Loading blocks on files and possibly on the
//! network, so no async task may do it. Not here: the order of images, and batches (`order`).

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
use folder::Splits;

/// Where images come from, as the user says it: `--data auto|DIR|bundled|synthetic`.
///
/// A folder with one of the three names is given with a path: `./synthetic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// Fashion-MNIST: from disk, or else downloaded, or else the bundled subset.
    Auto,
    /// A folder of four IDX files.
    Folder(PathBuf),
    /// The subset of Fashion-MNIST that is part of the binary.
    Bundled,
    /// Noise in the shape that the model needs.
    Synthetic,
}

/// The source that a command uses, and who named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataChoice {
    /// The source.
    pub source: DataSource,
    /// Whether a checkpoint names it, and not the user.
    pub is_remembered: bool,
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

/// The test images of a data set, loaded without its training images.
#[derive(Debug, Clone)]
pub struct TestSet {
    /// The images.
    pub images: Split,
    /// What the data are and where they come from, in one line for people.
    pub origin: String,
    /// What people should know, one line each.
    pub notices: Vec<String>,
}

impl DataChoice {
    /// The source that was asked for, or else the one that a checkpoint remembers, or else [`DataSource::Auto`]. Every command
    /// that opens a checkpoint asks this.
    pub fn of(asked: Option<DataSource>, remembered: Option<DataSource>) -> Self {
        let is_remembered = asked.is_none() && remembered.is_some();
        Self { source: asked.or(remembered).unwrap_or(DataSource::Auto), is_remembered }
    }

    /// As [`load`].
    ///
    /// # Errors
    /// As [`load`], and says so where a checkpoint named the source.
    pub fn load(&self, wanted: &Wanted, places: &Places) -> Result<DataSet, DataError> {
        load(&self.source, wanted, places).map_err(|error| self.blamed(error))
    }

    /// As [`load_test`].
    ///
    /// # Errors
    /// As [`load_test`], and says so where a checkpoint named the source.
    pub fn load_test(&self, wanted: &Wanted, places: &Places) -> Result<TestSet, DataError> {
        load_test(&self.source, wanted, places).map_err(|error| self.blamed(error))
    }

    fn blamed(&self, error: DataError) -> DataError {
        if !self.is_remembered {
            return error;
        }
        DataError::OfCheckpoint { data: self.source.to_string(), source: Box::new(error) }
    }
}

/// Loads the training and test images, and checks that they fit the model.
///
/// # Errors
/// Says which file, which value in it, and what would be right. A download that fails is no error: `Auto` then uses the
/// bundled subset, and a notice says why.
pub fn load(source: &DataSource, wanted: &Wanted, places: &Places) -> Result<DataSet, DataError> {
    match source {
        DataSource::Auto => fashion::auto(wanted, places, &download::Remote::fashion_mnist()),
        DataSource::Folder(folder) => from_folder(folder, wanted),
        DataSource::Bundled => fashion::bundled(wanted),
        DataSource::Synthetic => synthetic::make(wanted),
    }
}

/// Loads the test images alone, and checks that they fit the model. Training images need not be there.
///
/// # Errors
/// As [`load`].
pub fn load_test(source: &DataSource, wanted: &Wanted, places: &Places) -> Result<TestSet, DataError> {
    match source {
        DataSource::Auto => fashion::auto_test(wanted, places, &download::Remote::fashion_mnist().test_files()),
        DataSource::Folder(folder) => test_from_folder(folder, wanted),
        DataSource::Bundled => fashion::bundled_test(wanted),
        DataSource::Synthetic => synthetic::make_test(wanted),
    }
}

fn from_folder(folder: &Path, wanted: &Wanted) -> Result<DataSet, DataError> {
    let splits = folder::read(folder::find(folder)?, wanted)?;
    let notices = folder::missing_classes(&splits.train, wanted.classes).into_iter().collect();
    Ok(DataSet::new(splits, &format!("IDX files in {}", folder.display()), notices))
}

fn test_from_folder(folder: &Path, wanted: &Wanted) -> Result<TestSet, DataError> {
    let images = folder::read_split(folder::find_test(folder)?, wanted)?;
    Ok(TestSet::new(images, &format!("IDX files in {}", folder.display()), Vec::new()))
}

impl DataSet {
    fn new(splits: Splits, name: &str, notices: Vec<String>) -> Self {
        let Splits { train, test } = splits;
        let (train_count, test_count, shape) = (train.len(), test.len(), train.shape());
        let origin = format!("{name}: {train_count} training and {test_count} test images of {shape}");
        let fingerprint = fingerprint(&[&train, &test]);
        DataSet { train, test, origin, notices, fingerprint }
    }
}

impl TestSet {
    fn new(images: Split, name: &str, notices: Vec<String>) -> Self {
        let origin = format!("{name}: {} test images of {}", images.len(), images.shape());
        TestSet { images, origin, notices }
    }
}

impl Split {
    /// # Panics
    /// If there isn't one label an image, or the images aren't in standard layout.
    fn new(images: Array4<u8>, labels: Vec<u16>) -> Self {
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
fn fingerprint(splits: &[&Split]) -> String {
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

impl DataSource {
    /// As a checkpoint keeps it: a folder by its whole path, so that it is found from anywhere. It parses back.
    ///
    /// # Errors
    /// When the folder's path isn't UTF-8, which a checkpoint couldn't keep.
    pub fn remembered(&self) -> Result<String, DataError> {
        let DataSource::Folder(folder) = self else { return Ok(self.to_string()) };
        let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
        whole.to_str().map(str::to_owned).ok_or_else(|| DataError::NotUtf8 { folder: folder.clone() })
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
