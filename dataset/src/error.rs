//! Everything that can be wrong with a data set, each with the file, the value, and what would be right.
//!
//! Failed downloads aren't here: they never stop a job, which then uses the bundled subset (see `fashion.rs`).

use std::io;
use std::path::{Path, PathBuf};

use convoy_common::text::printable;

use super::decode::described;
use super::reading::Format;
use convoy_common::model::Shape;

/// A path in a message. Names of files come from strangers, too.
/// The beginning of a text of a file, for people.
pub(crate) fn excerpt(text: &str) -> String {
    const CHARACTERS: usize = 100;
    printable(&text.chars().take(CHARACTERS).collect::<String>())
}

fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

/// Why a data set can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum DataError {
    /// The user's word for a source was empty.
    #[error("data source \"\" is empty; it must be auto, bundled, synthetic or a folder")]
    EmptySource,

    /// The user named no data, and those that the checkpoint names can't be used.
    #[error("cannot use the data that the checkpoint names, {data}; give --data to use other data")]
    OfCheckpoint { data: String, source: Box<DataError> },

    /// A checkpoint couldn't remember the folder.
    #[error(
        "data folder {} has a name that is not UTF-8; rename it, since checkpoints record it as text",
        shown(folder)
    )]
    NotUtf8 { folder: PathBuf },

    /// The folder that the user named doesn't exist, or is a file.
    #[error("data folder {} does not exist, or is neither a folder nor a file", shown(folder))]
    FolderMissing { folder: PathBuf },

    /// A file that is no set of images.
    #[error(
        "{} is no set of images: it {}; a set is a NumPy archive (.npz), a Parquet file, an archive of CIFAR (.tar.gz), or a folder",
        shown(file),
        if start.is_empty() { "is empty".to_owned() } else { format!("starts with {}", described(start)) }
    )]
    NotASet { file: PathBuf, start: Vec<u8> },

    /// A format is asked for of images that have no files.
    #[error("--data-format {format} is for a folder or a file, and --data is {data}")]
    FormatOfNoFiles { format: Format, data: String },

    /// Folders of parts without training images.
    #[error(
        "{} has folders named {names}, and none named train; training images belong in {}, and test images beside it in test or val \
         (convoy eval --data {} --test-share 1 measures the images of one folder)",
        shown(folder), shown(&folder.join("train")), shown(&folder.join(one))
    )]
    NoTrainFolder { folder: PathBuf, names: String, one: String },

    /// The folder lacks some of the files.
    #[error(
        "data folder {} lacks {}; files may also end in .gz, and images may be called -images-idx4-ubyte",
        shown(folder),
        missing.join(", ")
    )]
    FilesMissing { folder: PathBuf, missing: Vec<&'static str> },

    /// The operating system or the gzip decoder refused a file.
    #[error("cannot read {}", shown(file))]
    Read { file: PathBuf, source: io::Error },

    /// A file doesn't begin as an IDX file does.
    #[error(
        "{} is not an IDX file: it starts with {}; an IDX file starts with two zero bytes, the element type and the \
         number of dimensions",
        shown(file),
        described(start)
    )]
    NotIdx { file: PathBuf, start: Vec<u8> },

    /// An IDX file holds something other than what its name says.
    #[error("{} holds {found}; it must hold {needed}", shown(file))]
    WrongContent { file: PathBuf, found: String, needed: &'static str },

    /// A file is shorter than its header says; bytes are counted after unpacking.
    #[error("{} ends after {found} bytes; its header needs {expected}", shown(file))]
    Truncated { file: PathBuf, found: u64, expected: u64 },

    /// A file is longer than its header says; bytes are counted after unpacking.
    #[error("{} has more than the {expected} bytes that its header needs", shown(file))]
    TrailingBytes { file: PathBuf, expected: u64 },

    /// A header claims more than a data set may hold.
    #[error("{} claims to hold {claimed} bytes; the most is {limit}", shown(file))]
    TooBig { file: PathBuf, claimed: u128, limit: u64 },

    /// A header has a dimension of zero.
    #[error("{} is empty: its dimensions are {dims:?}, and each must be at least 1", shown(file))]
    Empty { file: PathBuf, dims: Vec<u32> },

    /// The images don't fit the model's input.
    #[error(
        "images of {} are {found} (channels x height x width), and the model needs {wanted}; give other data, \
         or set the model's `input` to {found}, or its `resize` if only the size differs",
        shown(file)
    )]
    ShapeMismatch { file: PathBuf, found: Shape, wanted: Shape },

    /// Images and labels don't pair up.
    #[error(
        "{} has {images} images, and {} has {labels} labels; there must be one label for each image",
        shown(images_file),
        shown(labels_file)
    )]
    CountMismatch { images_file: PathBuf, images: usize, labels_file: PathBuf, labels: usize },

    /// A label has no unit in the model's last layer.
    #[error(
        "label {label} at index {index} of {} is out of range; the model has {classes} classes, so labels must be \
         0 to {}",
        shown(file),
        classes.saturating_sub(1)
    )]
    LabelOutOfRange { file: PathBuf, index: usize, label: i32, classes: usize },

    /// Fashion-MNIST was chosen, and the model is for something else.
    #[error(
        "Fashion-MNIST has images of {} (channels x height x width) in {} classes, and the model needs {wanted} in \
         {wanted_classes} classes; give --data DIR or --data synthetic",
        super::fashion::facts::SHAPE,
        super::fashion::facts::CLASS_NAMES.len()
    )]
    NotForThisModel { wanted: Shape, wanted_classes: usize },

    /// A folder where Fashion-MNIST is looked for holds something else.
    #[error(
        "{} holds {found}, and Fashion-MNIST has {} training and {} test images; \
         give --data {} if you mean these images, or remove them",
        shown(folder),
        super::fashion::facts::TRAIN_COUNT,
        super::fashion::facts::TEST_COUNT,
        shown(folder)
    )]
    NotFashionMnist { folder: PathBuf, found: String },

    /// A job wants more training images than there are.
    #[error(
        "{} with --holdout {holdout} needs more than the {all} training images that there are; at least one must be left for training",
        images.map_or("training on all others".to_owned(), |images| format!("--train-images {images}"))
    )]
    Selection { images: Option<usize>, holdout: usize, all: usize },

    /// A folder that has no folders of classes.
    #[error(
        "{} has no IDX files, no files of CIFAR, no Parquet files, and no folder for each class; image files belong in folders that are named after their class (a NumPy archive or an archive of CIFAR is given itself)",
        shown(folder)
    )]
    NoClasses { folder: PathBuf },

    /// The files are others than `--data-format` says.
    #[error("{} {} (--data-format {format})", shown(place), format.absence())]
    NotOfFormat { place: PathBuf, format: Format },

    /// A net that tells one class from itself learns nothing.
    #[error(
        "{} has one class, {class}; there must be at least 2 (if the folders of classes are in {class}, give that folder)",
        shown(folder)
    )]
    OneClass { folder: PathBuf, class: String },

    /// More classes than labels can number.
    #[error("{} has {count} classes; the most is {limit}", shown(folder))]
    ManyClasses { folder: PathBuf, count: usize, limit: usize },

    /// A class without a file that could be an image.
    #[error(
        "{} has no image files; each folder in a folder of image files is a class, and must have JPEG or PNG files",
        shown(folder)
    )]
    EmptyClass { folder: PathBuf },

    /// More files than a set may have.
    #[error("{} and the folders beside it have more than {limit} image files", shown(folder))]
    ManyFiles { folder: PathBuf, limit: usize },

    /// Folders within folders without end.
    #[error("{} lies more than {limit} folders below that of its class; symbolic links may form a loop", shown(folder))]
    TooDeep { folder: PathBuf, limit: usize },

    /// The training images and the test images have different classes.
    #[error("class {class} is in {}, but not in {}; both must have the same classes", shown(folder), shown(other))]
    OtherClasses { class: String, folder: PathBuf, other: PathBuf },

    /// The hash of paths left nothing for one part.
    #[error(
        "{} has no {part} images if a share of {test_share} is for tests; give convoy train another --test-share, or make folders train and test",
        shown(folder)
    )]
    NothingLeft { folder: PathBuf, part: &'static str, test_share: f64 },

    /// The model tells another number of classes apart.
    #[error(
        "{} has {found} classes, and the model has {wanted}; a new job with --classes auto has a model for these classes",
        shown(folder)
    )]
    ClassCount { folder: PathBuf, found: usize, wanted: usize },

    /// The model takes images with other channels than grey or colour.
    #[error("{} has image files, and the model's input has {wanted} channels; it must have 1 or 3", shown(folder))]
    Channels { folder: PathBuf, wanted: usize },

    /// Some files of a set can't be used.
    #[error(
        "{count} of {all} images in {} can't be used; remove them, or let convoy train --bad-images skip leave them out. {named}",
        shown(folder)
    )]
    BadImages { folder: PathBuf, count: usize, all: usize, named: String },

    /// Some of the files that were named can't be used.
    #[error("{count} of {all} files can't be used. {named}")]
    BadFiles { count: usize, all: usize, named: String },

    /// All images of a part are bad.
    #[error("no image in {} can be used. {named}", shown(folder))]
    AllBad { folder: PathBuf, named: String },

    /// The images of an array can't be scaled as the model's input says.
    #[error("the images of {} can't be scaled for the model", shown(file))]
    Unscalable { file: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },

    /// A file could be decoded when the set was opened, and now it can't.
    #[error("{} can't be used any more; the files of a set must stay as they are while a job uses it", shown(file))]
    Gone { file: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },

    /// The file for decoded images can't be made or written.
    #[error("cannot keep decoded images in {}; give another --cache", shown(folder))]
    Cache { folder: PathBuf, source: io::Error },

    /// A decoded image can't be read from the file for decoded images.
    #[error("cannot read the decoded image of {} from the file in --cache", shown(file))]
    Uncached { file: PathBuf, source: io::Error },

    /// The images of a Parquet file can't be decoded again one by one.
    #[error(
        "{row} and the images after it do not fit into {memory} bytes of memory; give a larger --data-memory, or --cache FOLDER for a file of decoded images"
    )]
    NoRoom { row: String, memory: usize },

    /// Several sets in one folder.
    #[error("{} has several folders with Parquet files; give one of them", shown(folder))]
    ManyTables { folder: PathBuf },

    /// A set in several files is not whole.
    #[error("{} is one of {all} files, and {found} {} there; download the others", shown(file), if *found == 1 { "is" } else { "are" })]
    MissingTables { file: PathBuf, found: usize, all: usize },

    /// A Parquet file has no rows.
    #[error("{} has no rows", shown(file))]
    NoRows { file: PathBuf },

    /// Classes that a source has of itself are too few.
    #[error("{} has images of {count} class; there must be at least 2", shown(place))]
    FewClasses { place: PathBuf, count: usize },

    /// No file of a folder has training images.
    #[error(
        "{} has Parquet files, but none whose name begins with train, as {} should; the names of files with test images begin with test or validation",
        shown(folder),
        shown(file)
    )]
    NoTrainTable { folder: PathBuf, file: PathBuf },

    /// A Parquet file can't be read, or has no images and labels.
    #[error("{} can't be used: {why}", shown(file))]
    Parquet { file: PathBuf, why: String },

    /// A file has other pixels than when the set was opened.
    #[error("{} has changed; the files of a set must stay as they are while a job uses it", shown(file))]
    Changed { file: PathBuf },

    /// The system gave no more threads.
    #[error("cannot start {threads} threads that decode images; give a smaller --data-threads")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },

    /// A thread that prepares images has failed.
    #[error("a thread that prepares images has failed; its message is on standard error")]
    Unprepared,

    /// A file of records of one length ends in the middle of one.
    #[error("{} has {bytes} bytes; it must hold whole records of {record} bytes, and at least one", shown(file))]
    NotRecords { file: PathBuf, bytes: usize, record: usize },

    /// A tar archive of something else.
    #[error(
        "{} is an archive without the files of CIFAR-10 or CIFAR-100; unpack it, and give a folder of image files",
        shown(file)
    )]
    NoCifar { file: PathBuf },

    /// A file of CIFAR is not in the archive.
    #[error("{} lacks {member}", shown(file))]
    NoMember { file: PathBuf, member: String },

    /// A file of CIFAR's Python form is damaged, or is no such file.
    #[error("{} can't be used: {why}", shown(file))]
    Pickle { file: PathBuf, why: String },

    /// The held-out images of a job without any.
    #[error("the job held out no images (--holdout); measure another part: train or test")]
    NothingHeldOut,

    /// Not even a handful of synthetic images would fit into memory, or an image has no pixels.
    #[error("a synthetic image of {shape} has {bytes} bytes; it must have 1 to {limit}")]
    SyntheticSize { shape: Shape, bytes: u128, limit: u64 },

    /// Synthetic labels can't number so many classes.
    #[error("{classes} synthetic classes are out of range; there must be 1 to {limit}")]
    SyntheticClasses { classes: usize, limit: usize },
}
