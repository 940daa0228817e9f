//! A folder of IDX files, and the checks that a data set must pass before a model uses it.
//!
//! Not here: which folder it is (`layout`, `fashion`), and reading files (`idx`).

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use convoy_common::model::Shape;
use ndarray::Array4;

use super::error::DataError;
use super::idx;
use super::set::{DataSet, PartSet, Split, Splits, Wanted};

/// The names of one split's files, without `.gz`, under the names that MNIST gave them first. IDX names end in the number of
/// dimensions and the element type; which of these a file holds is read from the file itself.
struct Names {
    images: [&'static str; 2],
    labels: [&'static str; 4],
}

const TRAIN: Names = Names {
    images: ["train-images-idx3-ubyte", "train-images-idx4-ubyte"],
    labels: ["train-labels-idx1-ubyte", "train-labels-idx1-byte", "train-labels-idx1-short", "train-labels-idx1-int"],
};
const TEST: Names = Names {
    images: ["t10k-images-idx3-ubyte", "t10k-images-idx4-ubyte"],
    labels: ["t10k-labels-idx1-ubyte", "t10k-labels-idx1-byte", "t10k-labels-idx1-short", "t10k-labels-idx1-int"],
};

/// Where one split's files are.
pub(super) struct SplitFiles {
    images: PathBuf,
    labels: PathBuf,
}

/// Where all four files of a data set are.
pub(super) struct Files {
    train: SplitFiles,
    test: SplitFiles,
}

/// One split as it was parsed, with the names that errors call its files.
pub(super) struct Parsed {
    pub(super) images: Array4<u8>,
    pub(super) images_file: PathBuf,
    pub(super) labels: Vec<i32>,
    pub(super) labels_file: PathBuf,
}

/// Whether a folder has any of the files.
pub(super) fn is_here(folder: &Path) -> bool {
    let names = [&TRAIN, &TEST].into_iter().flat_map(|names| names.images.iter().chain(&names.labels));
    names.into_iter().any(|name| folder.join(name).exists() || folder.join(format!("{name}.gz")).exists())
}

/// Finds the four files of a folder.
pub(super) fn find(folder: &Path) -> Result<Files, DataError> {
    check_folder(folder)?;
    let mut missing = Vec::new();
    let files = Files { train: place(folder, &TRAIN, &mut missing)?, test: place(folder, &TEST, &mut missing)? };
    none_missing(folder, missing).map(|()| files)
}

/// Loads both parts.
pub(super) fn load(folder: &Path, wanted: &Wanted) -> Result<DataSet, DataError> {
    let splits = read(find(folder)?, wanted)?;
    let notices = missing_classes(&splits.train, wanted.classes).into_iter().collect();
    Ok(DataSet::new(splits, &described(folder), notices))
}

/// Loads the test images alone.
pub(super) fn load_test(folder: &Path, wanted: &Wanted) -> Result<PartSet, DataError> {
    let images = read_split(find_test(folder)?, &wanted.without_draws())?;
    Ok(PartSet::new(images, &described(folder), Vec::new()))
}

fn described(folder: &Path) -> String {
    format!("IDX files in {}", folder.display())
}

/// Finds the two files of a folder that hold test images.
pub(super) fn find_test(folder: &Path) -> Result<SplitFiles, DataError> {
    check_folder(folder)?;
    let mut missing = Vec::new();
    let files = place(folder, &TEST, &mut missing)?;
    none_missing(folder, missing).map(|()| files)
}

pub(super) fn check_folder(folder: &Path) -> Result<(), DataError> {
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Err(source) if !matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(DataError::Read { file: folder.to_path_buf(), source })
        }
        _ => Err(DataError::FolderMissing { folder: folder.to_path_buf() }),
    }
}

fn none_missing(folder: &Path, missing: Vec<&'static str>) -> Result<(), DataError> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(DataError::FilesMissing { folder: folder.to_path_buf(), missing })
}

/// Where a split's files are. Those that aren't there are noted in `missing`.
fn place(folder: &Path, names: &Names, missing: &mut Vec<&'static str>) -> Result<SplitFiles, DataError> {
    let mut place = |names: &[&'static str]| {
        for path in names.iter().flat_map(|name| [folder.join(name), folder.join(format!("{name}.gz"))]) {
            match fs::metadata(&path) {
                Ok(found) if found.is_file() => return Ok(path),
                Err(source) if source.kind() == ErrorKind::PermissionDenied => {
                    return Err(DataError::Read { file: path, source });
                }
                _ => {}
            }
        }
        missing.push(names[0]);
        Ok(PathBuf::new())
    };
    Ok(SplitFiles { images: place(&names.images)?, labels: place(&names.labels)? })
}

/// Reads all four files and checks them against each other and against the model.
pub(super) fn read(files: Files, wanted: &Wanted) -> Result<Splits, DataError> {
    Ok(Splits { train: read_split(files.train, wanted)?, test: read_split(files.test, &wanted.without_draws())? })
}

/// Reads one split's files and checks them against each other and against the model.
pub(super) fn read_split(files: SplitFiles, wanted: &Wanted) -> Result<Split, DataError> {
    let parsed = Parsed {
        images: idx::read_images(&files.images)?,
        images_file: files.images,
        labels: idx::read_labels(&files.labels)?,
        labels_file: files.labels,
    };
    check(parsed, wanted)
}

/// Checks that a model takes images of an array of this shape.
pub(super) fn check_shape(file: &Path, found: Shape, wanted: &Wanted) -> Result<(), DataError> {
    let input = wanted.input();
    if found == input || wanted.recipe().scales_arrays() && found.channels == input.channels {
        return Ok(());
    }
    Err(DataError::ShapeMismatch { file: file.to_path_buf(), found, wanted: input })
}

/// Checks one split against itself and against the model.
pub(super) fn check(split: Parsed, wanted: &Wanted) -> Result<Split, DataError> {
    let (count, channels, height, width) = split.images.dim();
    let found = Shape { channels, height, width };
    check_shape(&split.images_file, found, wanted)?;
    if count != split.labels.len() {
        return Err(DataError::CountMismatch {
            images_file: split.images_file,
            images: count,
            labels_file: split.labels_file,
            labels: split.labels.len(),
        });
    }
    let labels = classes_of(&split.labels, split.labels_file, wanted.classes)?;
    let file = || split.images_file.clone();
    let scaled = wanted.recipe().check_scaling(found);
    scaled.map_err(|source| DataError::Unscalable { file: file(), source: Box::new(source) })?;
    Ok(Split::new(split.images, labels, wanted))
}

/// The labels as classes of the model.
fn classes_of(labels: &[i32], file: PathBuf, classes: usize) -> Result<Vec<u16>, DataError> {
    let class_of = |label: i32| u16::try_from(label).ok().filter(|&label| usize::from(label) < classes);
    let found: Result<_, _> = labels.iter().enumerate().map(|(index, &label)| class_of(label).ok_or(index)).collect();
    found.map_err(|index: usize| DataError::LabelOutOfRange { file, index, label: labels[index], classes })
}

/// A notice for a person if some of the model's classes have no training image: the model can't learn them.
pub(super) fn missing_classes(train: &Split, classes: usize) -> Option<String> {
    let mut is_there = vec![false; classes];
    train.labels().iter().for_each(|&label| is_there[usize::from(label)] = true);
    let missing: Vec<usize> = (0..classes).filter(|&class| !is_there[class]).collect();
    let (count, plural) = (missing.len(), if missing.len() == 1 { "has" } else { "have" });
    (count > 0)
        .then(|| format!("{count} of the model's {classes} classes {plural} no training image: {}", ranges(&missing)))
}

/// Ascending numbers for a person: `0, 4, 7 to 9`.
fn ranges(numbers: &[usize]) -> String {
    const SHOWN_MAX: usize = 10;
    let runs: Vec<&[usize]> = numbers.chunk_by(|a, b| a + 1 == *b).collect();
    let run = |run: &&[usize]| match run {
        [first, .., last] => format!("{first} to {last}"),
        _ => run[0].to_string(),
    };
    let shown: Vec<String> = runs.iter().take(SHOWN_MAX).map(run).collect();
    shown.join(", ") + if runs.len() > SHOWN_MAX { ", and others" } else { "" }
}
