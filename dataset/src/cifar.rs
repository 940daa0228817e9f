//! CIFAR-10 and CIFAR-100 in their binary form: files of records, each with one or two bytes of labels and the planes of red, green and
//! blue of 32 x 32 pixels.
//!
//! Not here: the checks against the model (`folder`).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use convoy_common::wire::printable;
use ndarray::Array4;

use crate::error::DataError;
use crate::folder::{self, Parsed};
use crate::set::{DataSet, PartSet, Splits, Wanted};

const SIDE: usize = 32;
/// Bytes of an image.
const IMAGE: usize = 3 * SIDE * SIDE;
/// The largest file: each of the real ones is smaller.
const FILE_BYTES_MAX: u64 = 1 << 30;
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
        test: folder::check(kind.read(&folder, kind.test_files(), wanted)?, &wanted.without_draws())?,
    };
    let notices = folder::missing_classes(&splits.train, wanted.classes).into_iter().collect();
    let mut set = DataSet::new(splits, &kind.described(&folder), notices);
    set.classes = kind.class_names(&folder, wanted);
    Ok(set)
}

/// Loads the test images alone.
pub(super) fn load_test((kind, folder): (Cifar, PathBuf), wanted: &Wanted) -> Result<PartSet, DataError> {
    let images = folder::check(kind.read(&folder, kind.test_files(), wanted)?, &wanted.without_draws())?;
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
        let bytes = read_limited(&folder.join(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<String> = text.lines().map(str::trim).filter(|name| !name.is_empty()).map(printable).collect();
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
            let bytes = read_limited(&file)?;
            if bytes.is_empty() || bytes.len() % record != 0 {
                return Err(DataError::NotRecords { file, bytes: bytes.len(), record });
            }
            for (index, record) in bytes.chunks_exact(record).enumerate() {
                let (label, classes) = (i32::from(record[label_at]), wanted.classes);
                if usize::from(record[label_at]) >= classes {
                    return Err(DataError::LabelOutOfRange { file, index, label, classes });
                }
                labels.push(label);
                images.extend_from_slice(&record[labels_of_each..]);
            }
        }
        let images = Array4::from_shape_vec((labels.len(), 3, SIDE, SIDE), images).expect("each label has an image");
        let first = folder.join(files[0]);
        Ok(Parsed { images, images_file: first.clone(), labels, labels_file: first })
    }
}

/// The bytes of a file that is no larger than any of CIFAR.
fn read_limited(file: &Path) -> Result<Vec<u8>, DataError> {
    let failed = |source| DataError::Read { file: file.to_path_buf(), source };
    let mut bytes = Vec::new();
    File::open(file).map_err(failed)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let (file, claimed) = (file.to_path_buf(), bytes.len() as u128);
        return Err(DataError::TooBig { file, claimed, limit: FILE_BYTES_MAX });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use convoy_common::model::Shape;
    use tempfile::TempDir;

    use super::*;
    use crate::view::View;

    fn wanted(classes: usize) -> Wanted {
        Wanted { seed: 1, ..Wanted::plain(Shape { channels: 3, height: SIDE, width: SIDE }, classes) }
    }

    /// A record with these labels, whose planes are filled with the last label and the number of the plane.
    fn record(labels: &[u8]) -> Vec<u8> {
        let planes = (0..3u8).flat_map(|plane| vec![labels[labels.len() - 1] * 10 + plane; SIDE * SIDE]);
        labels.iter().copied().chain(planes).collect()
    }

    fn ten() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (index, name) in Cifar::Ten.train_files().iter().enumerate() {
            fs::write(folder.path().join(name), record(&[index as u8])).unwrap();
        }
        fs::write(folder.path().join("test_batch.bin"), [record(&[7]), record(&[9])].concat()).unwrap();
        folder
    }

    #[test]
    fn records_become_images_with_planes_in_the_order_red_green_blue() {
        let folder = ten();
        fs::write(
            folder.path().join("batches.meta.txt"),
            (0..10).map(|class| format!("c{class}\n")).collect::<String>(),
        )
        .unwrap();
        let set = load(find(folder.path()).unwrap(), &wanted(10)).unwrap();
        assert_eq!((set.train.labels(), set.test.labels()), (&[0u16, 1, 2, 3, 4][..], &[7u16, 9][..]));
        let image = set.test.image(1, View::Centre).unwrap();
        assert_eq!([image[0], image[SIDE * SIDE], image[2 * SIDE * SIDE]], [90, 91, 92]);
        assert_eq!(set.classes[9], "c9");
        assert!(set.notices[0].contains("have no training image: 5 to 9"), "{:?}", set.notices);
    }

    #[test]
    fn the_labels_of_cifar_100_are_the_coarse_ones_for_a_model_of_twenty_classes() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("cifar-100-binary");
        fs::create_dir(&inside).unwrap();
        ["train.bin", "test.bin"].iter().for_each(|name| fs::write(inside.join(name), record(&[3, 21])).unwrap());
        let labels = |classes| load_test(find(folder.path()).unwrap(), &wanted(classes)).unwrap().images.label(0);
        assert_eq!((labels(100), labels(20)), (21, 3));
    }

    #[test]
    fn damage_is_named_with_its_file() {
        let folder = ten();
        let said = || load(find(folder.path()).unwrap(), &wanted(10)).unwrap_err().to_string();
        fs::write(folder.path().join("data_batch_4.bin"), [record(&[1]), record(&[10])].concat()).unwrap();
        assert!(said().contains("label 10 at index 1 of") && said().contains("data_batch_4.bin"), "{}", said());
        fs::write(folder.path().join("data_batch_2.bin"), [0; 3072]).unwrap();
        assert!(said().contains("data_batch_2.bin has 3072 bytes; it must hold whole records of 3073"), "{}", said());
    }
}
