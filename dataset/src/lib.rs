//! Images and labels: where they come from, and the checks that they fit the model.
//!
//! Images are in memory, as bytes, as long as there is room. Workers turn pixels into floats. Loading blocks on files and possibly on the
//! network, so no async task may do it. Not here: the order of images, which the coordinator decides.

mod archive;
mod cache;
mod cifar;
mod classes;
mod colours;
mod decode;
mod download;
mod draw;
mod error;
mod fashion;
mod feeder;
mod folder;
mod footer;
mod guard;
mod idx;
mod images;
mod layout;
mod loader;
mod npy;
mod npz;
mod orient;
mod pickle;
mod picture;
mod pixels;
mod planes;
mod pool;
mod reading;
mod rows;
mod scale;
mod selection;
mod set;
mod spool;
mod start;
mod synthetic;
#[cfg(test)]
mod tests;
mod view;

use std::fmt;
use std::path::{Component, PathBuf};
use std::str::FromStr;

use convoy_common::suggest;
use serde::Serialize;

use layout::Layout;

pub use classes::image_files;
pub use colours::Colours;
pub use draw::Draw;
pub use error::DataError;
pub use fashion::Places;
pub use fashion::facts::CLASS_NAMES;
pub use feeder::{Feeder, Seen};
pub use images::unlabelled;
pub use pool::{Resources, StageTimes};
pub use reading::{AskedReading, BadImages, Format, Reading};
pub use selection::Selection;
pub use set::{DataSet, PartSet, Split, Wanted};
pub use view::{TEN, View};

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The training images that a job trains on.
    Train,
    /// The training images that it holds out.
    Holdout,
    /// The test images.
    Test,
}

/// Where images come from, as the user says it: `--data auto|DIR|bundled|synthetic`.
///
/// A folder with one of the three names is given with a path: `./synthetic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// Fashion-MNIST: from disk, or else downloaded, or else the bundled subset.
    Auto,
    /// A folder of IDX files, of the files of CIFAR, of Parquet files, or of image files; a NumPy archive; a Parquet file; or an archive of CIFAR.
    Folder(PathBuf),
    /// The subset of Fashion-MNIST that is part of the binary.
    Bundled,
    /// Noise in the shape that the model needs.
    Synthetic,
}

/// The source that a command uses, and who named it.
#[derive(Debug, Clone, PartialEq)]
pub struct DataChoice {
    /// The source.
    pub source: DataSource,
    /// Whether a checkpoint names it, and not the user.
    pub is_remembered: bool,
    /// How a folder of image files is read.
    pub reading: Reading,
}

/// What the user asks for.
#[derive(Debug, Clone, Default)]
pub struct AskedData {
    /// The source.
    pub source: Option<DataSource>,
    /// How it is read.
    pub reading: AskedReading,
}

/// What a checkpoint remembers.
#[derive(Debug, Clone, Default)]
pub struct RememberedData {
    /// The source.
    pub source: Option<DataSource>,
    /// How it was read.
    pub reading: Option<Reading>,
}

impl DataChoice {
    /// The source that was asked for, or else the one that a checkpoint remembers, or else [`DataSource::Auto`]; and how it is read. Every
    /// command that opens a checkpoint asks this.
    pub fn of(asked: AskedData, remembered: RememberedData) -> Self {
        let is_remembered = asked.source.is_none() && remembered.source.is_some();
        let is_same = match (&asked.source, &remembered.source) {
            (Some(asked), Some(before)) => asked.remembered().ok() == before.remembered().ok(),
            (asked, _) => asked.is_none(),
        };
        // Another source may have another format.
        let before = remembered.reading.map(|before| Reading { format: before.format.filter(|_| is_same), ..before });
        let reading = asked.reading.or(before);
        Self { source: asked.source.or(remembered.source).unwrap_or(DataSource::Auto), is_remembered, reading }
    }

    /// As [`load`].
    ///
    /// # Errors
    /// As [`load`], and says so where a checkpoint named the source.
    pub fn load(&self, wanted: &Wanted, places: &Places) -> Result<DataSet, DataError> {
        load(&self.source, wanted, places, &self.reading).map_err(|error| self.blamed(error))
    }

    /// The images of one part alone, of a job with this selection of training images.
    ///
    /// # Errors
    /// As [`load`], and says so where a checkpoint named the source. When there is no such part.
    pub fn load_part(
        &self,
        part: Part,
        selection: Option<Selection>,
        wanted: &Wanted,
        places: &Places,
    ) -> Result<PartSet, DataError> {
        if part == Part::Test {
            return load_test(&self.source, wanted, places, &self.reading).map_err(|error| self.blamed(error));
        }
        let DataSet { train, origin, notices, fingerprint, classes, .. } = self.load(wanted, places)?;
        let images = match (part, selection) {
            (Part::Holdout, Some(selection)) if selection.holdout > 0 => selection.held_out(&train)?,
            (Part::Holdout, _) => return Err(DataError::NothingHeldOut),
            (_, Some(selection)) => selection.trained(&train)?,
            (_, None) => train,
        };
        Ok(PartSet { images, fingerprint: Some(fingerprint), origin, notices, classes })
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
pub fn load(source: &DataSource, wanted: &Wanted, places: &Places, reading: &Reading) -> Result<DataSet, DataError> {
    check_format(source, reading)?;
    match source {
        DataSource::Auto => fashion::auto(wanted, places, &download::Remote::fashion_mnist()),
        DataSource::Folder(folder) => {
            Layout::of(folder, reading.format)?.load(folder, wanted, reading, &places.resources)
        }
        DataSource::Bundled => fashion::bundled(wanted),
        DataSource::Synthetic => synthetic::make(wanted),
    }
}

/// Loads the test images alone, and checks that they fit the model. Training images need not be there.
///
/// # Errors
/// As [`load`].
pub fn load_test(
    source: &DataSource,
    wanted: &Wanted,
    places: &Places,
    reading: &Reading,
) -> Result<PartSet, DataError> {
    check_format(source, reading)?;
    match source {
        DataSource::Auto => fashion::auto_test(wanted, places, &download::Remote::fashion_mnist().test_files()),
        DataSource::Folder(folder) => {
            Layout::of(folder, reading.format)?.load_test(folder, wanted, reading, &places.resources)
        }
        DataSource::Bundled => fashion::bundled_test(wanted),
        DataSource::Synthetic => synthetic::make_test(wanted),
    }
}

/// The number of classes of a source, if its files say so before a model is known: all but IDX files do.
///
/// # Errors
/// When the folder can't be read.
pub fn class_count(source: &DataSource, reading: &Reading) -> Result<Option<usize>, DataError> {
    check_format(source, reading)?;
    match source {
        DataSource::Folder(folder) => match Layout::of(folder, reading.format)?.class_count(folder, reading)? {
            Some(count) if count < 2 => Err(DataError::FewClasses { place: folder.clone(), count }),
            count => Ok(count),
        },
        DataSource::Auto | DataSource::Bundled => Ok(Some(CLASS_NAMES.len())),
        DataSource::Synthetic => Ok(None),
    }
}

/// Checks that a format is asked for only where there are files.
fn check_format(source: &DataSource, reading: &Reading) -> Result<(), DataError> {
    match (source, reading.format) {
        (DataSource::Folder(_), _) | (_, None) => Ok(()),
        (_, Some(format)) => Err(DataError::FormatOfNoFiles { format, data: source.to_string() }),
    }
}

impl DataSource {
    /// As a checkpoint keeps it: a folder by its whole path, so that it is found from anywhere. It parses back.
    ///
    /// # Errors
    /// When the folder's path isn't UTF-8, which a checkpoint couldn't keep.
    pub fn remembered(&self) -> Result<String, DataError> {
        let DataSource::Folder(folder) = self else { return Ok(self.to_string()) };
        // With "..", the path would also depend on the folder that it starts from.
        let goes_up = folder.components().any(|component| component == Component::ParentDir);
        let whole = if goes_up { folder.canonicalize() } else { std::path::absolute(folder) };
        let whole = whole.unwrap_or_else(|_| folder.clone());
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

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "train" => Ok(Part::Train),
            "holdout" => Ok(Part::Holdout),
            "test" => Ok(Part::Test),
            _ => Err(format!("unknown part \"{text}\"{}", suggest::hint(text, &["train", "holdout", "test"]))),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Train => "training",
            Part::Holdout => "held-out",
            Part::Test => "test",
        })
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
