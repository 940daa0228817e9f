//! CIFAR-10 and CIFAR-100 in their binary form: files of records, each with one or two bytes of labels and the planes of red, green and
//! blue of 32 x 32 pixels.
//!
//! Not here: the checks against the model (`folder`).

use std::fs;
use std::path::{Path, PathBuf};

use ndarray::Array4;

use crate::error::DataError;
use crate::folder::{self, Parsed};
use crate::set::{DataSet, PartSet, Splits, Wanted};

const SIDE: usize = 32;
/// Bytes of an image.
const IMAGE: usize = 3 * SIDE * SIDE;
/// Coarse classes of CIFAR-100.
const COARSE_CLASSES: usize = 20;

/// One of the two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cifar {
    Ten,
    Hundred,
}

/// The set that is in a folder, if there is one: its own folder, or the one that contains it as the archive does.
pub(super) fn find(folder: &Path) -> Option<(Cifar, PathBuf)> {
    let places = [folder.to_path_buf(), folder.join("cifar-10-batches-bin"), folder.join("cifar-100-binary")];
    let is_here = |kind: Cifar, place: &Path| kind.test_files().iter().all(|name| place.join(name).is_file());
    places.into_iter().find_map(|place| {
        let kind = [Cifar::Ten, Cifar::Hundred].into_iter().find(|kind| is_here(*kind, &place))?;
        Some((kind, place))
    })
}

/// Loads both parts.
pub(super) fn load((kind, folder): (Cifar, PathBuf), wanted: &Wanted) -> Result<DataSet, DataError> {
    let splits = Splits {
        train: folder::check(kind.read(&folder, kind.train_files(), wanted)?, wanted)?,
        test: folder::check(kind.read(&folder, kind.test_files(), wanted)?, wanted)?,
    };
    let mut set = DataSet::new(splits, &kind.described(&folder), Vec::new());
    set.classes = kind.class_names(&folder, wanted);
    Ok(set)
}

/// Loads the test images alone.
pub(super) fn load_test((kind, folder): (Cifar, PathBuf), wanted: &Wanted) -> Result<PartSet, DataError> {
    let images = folder::check(kind.read(&folder, kind.test_files(), wanted)?, wanted)?;
    let mut set = PartSet::new(images, &kind.described(&folder), Vec::new());
    set.classes = kind.class_names(&folder, wanted);
    Ok(set)
}

impl Cifar {
    fn train_files(self) -> &'static [&'static str] {
        match self {
            Cifar::Ten => {
                &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"]
            }
            Cifar::Hundred => &["train.bin"],
        }
    }

    fn test_files(self) -> &'static [&'static str] {
        match self {
            Cifar::Ten => &["test_batch.bin"],
            Cifar::Hundred => &["test.bin"],
        }
    }

    /// The number of classes that people mean by the set's name.
    pub(super) fn class_count(self) -> usize {
        match self {
            Cifar::Ten => 10,
            Cifar::Hundred => 100,
        }
    }

    fn described(self, folder: &Path) -> String {
        let name = match self {
            Cifar::Ten => "CIFAR-10",
            Cifar::Hundred => "CIFAR-100",
        };
        format!("{name} in {}", folder.display())
    }

    /// Whether labels are the coarse ones of CIFAR-100: if the model has as many classes.
    fn is_coarse(self, wanted: &Wanted) -> bool {
        self == Cifar::Hundred && wanted.classes == COARSE_CLASSES
    }

    /// The names of classes, if the folder has the file that lists them.
    fn class_names(self, folder: &Path, wanted: &Wanted) -> Vec<String> {
        let file = match self {
            Cifar::Ten => "batches.meta.txt",
            Cifar::Hundred if self.is_coarse(wanted) => "coarse_label_names.txt",
            Cifar::Hundred => "fine_label_names.txt",
        };
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        let names: Vec<String> =
            text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if names.len() == wanted.classes { names } else { Vec::new() }
    }

    /// The records of files, one after the other.
    fn read(self, folder: &Path, files: &[&str], wanted: &Wanted) -> Result<Parsed, DataError> {
        let labels_of_each = if self == Cifar::Hundred { 2 } else { 1 };
        let label_at = if self == Cifar::Hundred && !self.is_coarse(wanted) { 1 } else { 0 };
        let record = labels_of_each + IMAGE;
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for name in files {
            let file = folder.join(name);
            let bytes = fs::read(&file).map_err(|source| DataError::Read { file: file.clone(), source })?;
            if bytes.is_empty() || bytes.len() % record != 0 {
                return Err(DataError::NotRecords { file, bytes: bytes.len(), record });
            }
            for record in bytes.chunks_exact(record) {
                labels.push(i32::from(record[label_at]));
                images.extend_from_slice(&record[labels_of_each..]);
            }
        }
        let images = Array4::from_shape_vec((labels.len(), 3, SIDE, SIDE), images).expect("each label has an image");
        let first = folder.join(files[0]);
        Ok(Parsed { images, images_file: first.clone(), labels, labels_file: first })
    }
}
