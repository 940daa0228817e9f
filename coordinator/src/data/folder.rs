//! A folder of four IDX files, and the checks that a data set must pass before a model is trained on it.
//!
//! Which folder it is, and what to do when there is none, is decided in `fashion.rs` and `mod.rs`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ndarray::Array4;

use super::{DataError, ImageShape, Split, Wanted, idx};

/// The names of one split's files, without `.gz`; images come first under the name that MNIST gave them.
struct Names {
    images: [&'static str; 2],
    labels: [&'static str; 1],
}

const TRAIN: Names =
    Names { images: ["train-images-idx3-ubyte", "train-images-idx4-ubyte"], labels: ["train-labels-idx1-ubyte"] };
const TEST: Names =
    Names { images: ["t10k-images-idx3-ubyte", "t10k-images-idx4-ubyte"], labels: ["t10k-labels-idx1-ubyte"] };

/// Where one split's files are.
struct SplitFiles {
    images: PathBuf,
    labels: PathBuf,
}

/// Where all four files of a data set are.
pub(super) struct Files {
    train: SplitFiles,
    test: SplitFiles,
}

/// Both splits, each checked against the model.
pub(super) struct Splits {
    pub(super) train: Split,
    pub(super) test: Split,
}

/// One split as it was parsed, with the names that errors call its files.
pub(super) struct Parsed {
    pub(super) images: Array4<u8>,
    pub(super) images_file: PathBuf,
    pub(super) labels: Vec<u16>,
    pub(super) labels_file: PathBuf,
}

/// Finds the four files of a folder that the user named.
pub(super) fn find(folder: &Path) -> Result<Files, DataError> {
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Err(source) if !matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(DataError::Read { file: folder.to_path_buf(), source });
        }
        _ => return Err(DataError::FolderMissing { folder: folder.to_path_buf() }),
    }
    look(folder).map_err(|missing| DataError::FilesMissing { folder: folder.to_path_buf(), missing })
}

/// Looks for the four files, and says which of them aren't there.
fn look(folder: &Path) -> Result<Files, Vec<&'static str>> {
    let mut missing = Vec::new();
    let mut place = |names: &[&'static str]| {
        let found = names.iter().flat_map(|name| [folder.join(name), folder.join(format!("{name}.gz"))]);
        found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
            missing.push(names[0]);
            PathBuf::new()
        })
    };
    let mut split = |names: &Names| SplitFiles { images: place(&names.images), labels: place(&names.labels) };
    let files = Files { train: split(&TRAIN), test: split(&TEST) };
    if missing.is_empty() { Ok(files) } else { Err(missing) }
}

/// Reads all four files and checks them against each other and against the model.
pub(super) fn read(files: Files, wanted: &Wanted) -> Result<Splits, DataError> {
    check(parse(files.train)?, parse(files.test)?, wanted)
}

/// Checks both splits against the model. Only the training split must have every class.
pub(super) fn check(train: Parsed, test: Parsed, wanted: &Wanted) -> Result<Splits, DataError> {
    check_split(&train, wanted)?;
    check_split(&test, wanted)?;
    check_class_count(&train, wanted)?;
    Ok(Splits { train: Split::new(train.images, train.labels), test: Split::new(test.images, test.labels) })
}

fn parse(files: SplitFiles) -> Result<Parsed, DataError> {
    Ok(Parsed {
        images: idx::read_images(&files.images)?,
        images_file: files.images,
        labels: idx::read_labels(&files.labels)?,
        labels_file: files.labels,
    })
}

fn check_split(split: &Parsed, wanted: &Wanted) -> Result<(), DataError> {
    let (count, channels, height, width) = split.images.dim();
    let found = ImageShape { channels, height, width };
    if found != wanted.shape() {
        return Err(DataError::ShapeMismatch { file: split.images_file.clone(), found, wanted: wanted.shape() });
    }
    if count != split.labels.len() {
        return Err(DataError::CountMismatch {
            images_file: split.images_file.clone(),
            images: count,
            labels_file: split.labels_file.clone(),
            labels: split.labels.len(),
        });
    }
    check_labels(split, wanted.classes)
}

fn check_labels(split: &Parsed, classes: usize) -> Result<(), DataError> {
    let out_of_range = split.labels.iter().position(|&label| usize::from(label) >= classes);
    out_of_range.map_or(Ok(()), |index| {
        Err(DataError::LabelOutOfRange { file: split.labels_file.clone(), index, label: split.labels[index], classes })
    })
}

fn check_class_count(train: &Parsed, wanted: &Wanted) -> Result<(), DataError> {
    let found = train.labels.iter().max().map_or(0, |&label| usize::from(label) + 1);
    // A set with fewer images than the model has classes can't hold them all, and says nothing about their number.
    if found == wanted.classes || train.labels.len() < wanted.classes {
        return Ok(());
    }
    Err(DataError::ClassCountMismatch { file: train.labels_file.clone(), found, wanted: wanted.classes })
}
