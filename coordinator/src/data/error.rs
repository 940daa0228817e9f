//! Everything that can be wrong with a data set, each with the file, the value, and what would be right.
//!
//! Failed downloads aren't here: they never stop a job, they send it to the bundled subset (see `fashion.rs`).

use std::io;
use std::path::PathBuf;

use super::ImageShape;

/// Why a data set can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "of fields alone: each message says what they are")]
pub enum DataError {
    /// The user's word for a source was empty.
    #[error("data source \"\" is empty: give auto, bundled, synthetic or a folder")]
    EmptySource,

    /// The folder that the user named doesn't exist, or is a file.
    #[error("data folder {} isn't there, or isn't a folder", folder.display())]
    FolderMissing { folder: PathBuf },

    /// The folder lacks some of the four files.
    #[error(
        "data folder {} lacks {}: it needs these names, plain or with .gz (-images-idx4-ubyte does as well)",
        folder.display(),
        missing.join(", ")
    )]
    FilesMissing { folder: PathBuf, missing: Vec<&'static str> },

    /// The operating system or the gzip decoder refused a file.
    #[error("read {}", file.display())]
    Read { file: PathBuf, source: io::Error },

    /// A file doesn't begin as an IDX file of bytes with the right number of dimensions.
    #[error("{} starts with {found:#010x}, not with {}", file.display(), hex(expected))]
    WrongMagic { file: PathBuf, found: u32, expected: &'static [u32] },

    /// A file is shorter than its header says; bytes are counted after unpacking.
    #[error("{} ends after {found} bytes, its header needs {expected}", file.display())]
    Truncated { file: PathBuf, found: u64, expected: u64 },

    /// A file is longer than its header says; bytes are counted after unpacking.
    #[error("{} goes on after the {expected} bytes that its header needs", file.display())]
    TrailingBytes { file: PathBuf, expected: u64 },

    /// A header claims more than a data set may hold.
    #[error("{} claims to hold {claimed} bytes, the most is {limit}", file.display())]
    TooBig { file: PathBuf, claimed: u128, limit: u64 },

    /// A header has a dimension of zero.
    #[error("{} is empty: its dimensions are {dims:?}, each must be at least 1", file.display())]
    Empty { file: PathBuf, dims: Vec<u32> },

    /// The images don't fit the model's input.
    #[error(
        "images of {} are {found} (channels x height x width), the model wants {wanted}: give other data, \
         or set the model's `input` to {found}",
        file.display()
    )]
    ShapeMismatch { file: PathBuf, found: ImageShape, wanted: ImageShape },

    /// Images and labels don't pair up.
    #[error(
        "{} has {images} images, {} has {labels} labels: one label an image is right",
        images_file.display(),
        labels_file.display()
    )]
    CountMismatch { images_file: PathBuf, images: usize, labels_file: PathBuf, labels: usize },

    /// A label has no unit in the model's last layer.
    #[error(
        "label {label} at index {index} of {} is out of range: the model has {classes} classes, \
         so that 0 to {} are right",
        file.display(),
        classes.saturating_sub(1)
    )]
    LabelOutOfRange { file: PathBuf, index: usize, label: u16, classes: usize },

    /// The model's last layer has units that no training image teaches.
    #[error(
        "{} has {found} classes (its highest label is {}), the model has {wanted}: set `units` of its last \
         layer to {found}",
        file.display(),
        found.saturating_sub(1)
    )]
    ClassCountMismatch { file: PathBuf, found: usize, wanted: usize },

    /// Fashion-MNIST was chosen, and the model is for something else.
    #[error(
        "Fashion-MNIST has images of {} (channels x height x width) in {} classes, the model wants {wanted} in \
         {wanted_classes} classes: give --data DIR or --data synthetic",
        super::fashion::SHAPE,
        super::fashion::CLASS_NAMES.len()
    )]
    NotForThisModel { wanted: ImageShape, wanted_classes: usize },

    /// A folder where Fashion-MNIST is looked for holds something else.
    #[error(
        "{} holds {train} train and {test} test images, Fashion-MNIST has {} and {}: \
         give --data {} if you mean these, or remove them",
        folder.display(),
        super::fashion::TRAIN_COUNT,
        super::fashion::TEST_COUNT,
        folder.display()
    )]
    NotFashionMnist { folder: PathBuf, train: usize, test: usize },

    /// Not even a handful of synthetic images would fit into memory, or an image is nothing.
    #[error("a synthetic image of {shape} has {bytes} bytes: 1 to {limit} are right")]
    SyntheticSize { shape: ImageShape, bytes: u128, limit: u64 },

    /// Synthetic labels can't number so many classes.
    #[error("{classes} synthetic classes are out of range: 1 to {limit} are right")]
    SyntheticClasses { classes: usize, limit: usize },
}

fn hex(words: &[u32]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:#010x}")).collect();
    words.join(" or ")
}
