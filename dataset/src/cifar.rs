//! CIFAR-10 and CIFAR-100: in their binary form, files of records, each with one or two bytes of labels and the planes of red, green and blue of
//! 32 x 32 pixels; and in their Python form, pickles with an array of the same planes. In a folder, or in the archive that people download.
//!
//! Not here: the checks against the model (`folder`), and reading pickles and archives.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use convoy_common::text::printable;
use ndarray::Array4;

use crate::archive;
use crate::error::DataError;
use crate::folder::{self, Parsed};
use crate::pickle::{self, Value};
use crate::set::{DataSet, PartSet, Splits, Wanted};

const SIDE: usize = 32;
/// Bytes of an image.
const IMAGE: usize = 3 * SIDE * SIDE;
/// The largest file: each of the real ones is smaller.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Coarse classes of CIFAR-100.
const COARSE_CLASSES: usize = 20;
/// The folders that the archives contain.
const FOLDERS: [&str; 4] = ["cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python"];

/// One of the two sets, in one of its forms.
#[derive(Debug)]
pub(super) struct Cifar {
    kind: Kind,
    form: Form,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ten,
    Hundred,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Binary,
    Python,
}

/// Where the files are.
#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    /// An archive and its members, by name.
    Archive(PathBuf, HashMap<String, Vec<u8>>),
}

/// The set that is in a folder, if there is one: in the folder itself, or in a folder in it as the archive has it.
pub(super) fn find(folder: &Path) -> Option<Cifar> {
    let places = std::iter::once(folder.to_path_buf()).chain(FOLDERS.map(|name| folder.join(name)));
    places.map(Place::Folder).find_map(|place| {
        let (kind, form) = kinds().find(|(kind, form)| kind.is_in(*form, |name| place.has(name)))?;
        Some(Cifar { kind, form, place })
    })
}

/// The set that is in a tar archive.
///
/// # Errors
/// When the archive can't be read, or has no such set.
pub(super) fn in_archive(file: &Path) -> Result<Cifar, DataError> {
    let names: Vec<&str> = kinds().flat_map(|(kind, form)| kind.files(form)).collect();
    let place = Place::Archive(file.to_owned(), archive::members(file, &names)?);
    let (kind, form) = kinds()
        .find(|(kind, form)| kind.is_in(*form, |name| place.has(name)))
        .ok_or_else(|| DataError::NoCifar { file: file.to_owned() })?;
    Ok(Cifar { kind, form, place })
}

fn kinds() -> impl Iterator<Item = (Kind, Form)> {
    [Kind::Ten, Kind::Hundred].into_iter().flat_map(|kind| [Form::Binary, Form::Python].map(|form| (kind, form)))
}

/// Loads both parts.
pub(super) fn load(cifar: &Cifar, wanted: &Wanted) -> Result<DataSet, DataError> {
    let test = folder::check(cifar.read(cifar.kind.test_files(cifar.form), wanted)?, &wanted.without_draws())?;
    let train = folder::check(cifar.read(cifar.kind.train_files(cifar.form), wanted)?, wanted)?;
    let notices = folder::missing_classes(&train, wanted.classes).into_iter().collect();
    let mut set = DataSet::new(Splits { train, test }, &cifar.described(), notices);
    set.classes = cifar.class_names(wanted);
    Ok(set)
}

/// Loads the test images alone.
pub(super) fn load_test(cifar: &Cifar, wanted: &Wanted) -> Result<PartSet, DataError> {
    let images = folder::check(cifar.read(cifar.kind.test_files(cifar.form), wanted)?, &wanted.without_draws())?;
    let mut set = PartSet::new(images, &cifar.described(), Vec::new());
    set.classes = cifar.class_names(wanted);
    Ok(set)
}

impl Kind {
    fn train_files(self, form: Form) -> &'static [&'static str] {
        match (self, form) {
            (Kind::Ten, Form::Binary) => {
                &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"]
            }
            (Kind::Ten, Form::Python) => {
                &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
            }
            (Kind::Hundred, Form::Binary) => &["train.bin"],
            (Kind::Hundred, Form::Python) => &["train"],
        }
    }

    fn test_files(self, form: Form) -> &'static [&'static str] {
        match (self, form) {
            (Kind::Ten, Form::Binary) => &["test_batch.bin"],
            (Kind::Ten, Form::Python) => &["test_batch"],
            (Kind::Hundred, Form::Binary) => &["test.bin"],
            (Kind::Hundred, Form::Python) => &["test"],
        }
    }

    /// The files with the names of classes.
    fn name_files(self, form: Form) -> &'static [&'static str] {
        match (self, form) {
            (Kind::Ten, Form::Binary) => &["batches.meta.txt"],
            (Kind::Ten, Form::Python) => &["batches.meta"],
            (Kind::Hundred, Form::Binary) => &["fine_label_names.txt", "coarse_label_names.txt"],
            (Kind::Hundred, Form::Python) => &["meta"],
        }
    }

    fn files(self, form: Form) -> impl Iterator<Item = &'static str> {
        [self.train_files(form), self.test_files(form), self.name_files(form)].into_iter().flatten().copied()
    }

    /// Whether a place has this set in this form. One file is enough: reading names those that are missing. The pickles of CIFAR-100 have
    /// names that folders of images could have, too, so the file with the names of classes must also be there.
    fn is_in(self, form: Form, has: impl Fn(&str) -> bool) -> bool {
        let is_plain = self == Kind::Hundred && form == Form::Python;
        [self.test_files(form), self.train_files(form)].into_iter().flatten().any(|name| has(name))
            && (!is_plain || self.name_files(form).iter().all(|name| has(name)))
    }
}

impl Place {
    fn has(&self, name: &str) -> bool {
        match self {
            Place::Folder(folder) => folder.join(name).is_file(),
            Place::Archive(_, members) => members.contains_key(name),
        }
    }

    /// A path of a file, for people.
    fn path(&self, name: &str) -> PathBuf {
        match self {
            Place::Folder(folder) => folder.join(name),
            Place::Archive(file, _) => file.join(name),
        }
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, DataError> {
        match self {
            Place::Folder(folder) => read_limited(&folder.join(name)).map(Cow::Owned),
            Place::Archive(file, members) => {
                let missing = || DataError::NoMember { file: file.clone(), member: name.to_owned() };
                members.get(name).map(|bytes| Cow::Borrowed(bytes.as_slice())).ok_or_else(missing)
            }
        }
    }
}

impl Cifar {
    /// The number of classes that people mean by the set's name.
    pub(super) fn class_count(&self) -> usize {
        match self.kind {
            Kind::Ten => 10,
            Kind::Hundred => 100,
        }
    }

    fn described(&self) -> String {
        let name = match self.kind {
            Kind::Ten => "CIFAR-10",
            Kind::Hundred => "CIFAR-100",
        };
        let (Place::Folder(place) | Place::Archive(place, _)) = &self.place;
        format!("{name} in {}", place.display())
    }

    /// Whether labels are the coarse ones of CIFAR-100: if the model has as many classes.
    fn is_coarse(&self, wanted: &Wanted) -> bool {
        self.kind == Kind::Hundred && wanted.classes == COARSE_CLASSES
    }

    /// The names of classes, if the file that lists them is there.
    fn class_names(&self, wanted: &Wanted) -> Vec<String> {
        let files = self.kind.name_files(self.form);
        let file = if self.is_coarse(wanted) { files[files.len() - 1] } else { files[0] };
        let bytes = self.place.bytes(file).unwrap_or_default();
        let names = match self.form {
            Form::Binary => lines(&bytes),
            Form::Python => {
                pickle::read(&bytes).map_or_else(|_| Vec::new(), |meta| texts(meta.get(self.names_key(wanted))))
            }
        };
        let names: Vec<String> = names.iter().map(|name| printable(name)).collect();
        if names.len() == wanted.classes { names } else { Vec::new() }
    }

    fn names_key(&self, wanted: &Wanted) -> &'static str {
        match self.kind {
            Kind::Ten => "label_names",
            Kind::Hundred if self.is_coarse(wanted) => "coarse_label_names",
            Kind::Hundred => "fine_label_names",
        }
    }

    /// The images of files, one after the other.
    fn read(&self, files: &[&str], wanted: &Wanted) -> Result<Parsed, DataError> {
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for name in files {
            let file = self.place.path(name);
            let bytes = self.place.bytes(name)?;
            let found = match self.form {
                Form::Binary => self.records(&file, &bytes, wanted, &mut images)?,
                Form::Python => self.pickled(&file, &bytes, wanted, &mut images)?,
            };
            let classes = wanted.classes;
            if let Some((index, label)) = found.iter().enumerate().find(|(_, label)| **label as usize >= classes) {
                return Err(DataError::LabelOutOfRange { file, index, label: *label, classes });
            }
            labels.extend(found);
        }
        let images = Array4::from_shape_vec((labels.len(), 3, SIDE, SIDE), images).expect("each label has an image");
        let first = self.place.path(files[0]);
        Ok(Parsed { images, images_file: first.clone(), labels, labels_file: first })
    }

    /// The labels of a binary file, whose images are appended.
    fn records(&self, file: &Path, bytes: &[u8], wanted: &Wanted, images: &mut Vec<u8>) -> Result<Vec<i32>, DataError> {
        let labels_of_each = if self.kind == Kind::Hundred { 2 } else { 1 };
        let label_at = if self.kind == Kind::Hundred && !self.is_coarse(wanted) { 1 } else { 0 };
        let record = labels_of_each + IMAGE;
        if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
            return Err(DataError::NotRecords { file: file.to_owned(), bytes: bytes.len(), record });
        }
        let records = bytes.chunks_exact(record);
        records.clone().for_each(|record| images.extend_from_slice(&record[labels_of_each..]));
        Ok(records.map(|record| i32::from(record[label_at])).collect())
    }

    /// The labels of a pickle, whose images are appended.
    fn pickled(&self, file: &Path, bytes: &[u8], wanted: &Wanted, images: &mut Vec<u8>) -> Result<Vec<i32>, DataError> {
        let refused = |why: String| DataError::Pickle { file: file.to_owned(), why };
        let key = match self.kind {
            Kind::Ten => "labels",
            Kind::Hundred if self.is_coarse(wanted) => "coarse_labels",
            Kind::Hundred => "fine_labels",
        };
        let batch = pickle::read(bytes).map_err(refused)?;
        let Some(Value::Array(data)) = batch.get("data") else {
            return Err(refused("it has no array \"data\"".to_owned()));
        };
        let Some(Value::List(found, _)) = batch.get(key) else {
            return Err(refused(format!("it has no list \"{key}\"")));
        };
        let label = |value: &Value| match value {
            Value::Int(label) => i32::try_from(*label).ok().filter(|label| *label >= 0),
            _ => None,
        };
        let labels: Option<Vec<i32>> = found.iter().map(label).collect();
        let labels = labels.ok_or_else(|| refused(format!("\"{key}\" has a value that is no label")))?;
        if labels.is_empty() || data.shape != [labels.len(), IMAGE] {
            return Err(refused(format!(
                "\"data\" is an array of {:?}; must be {} x {IMAGE}",
                data.shape,
                labels.len()
            )));
        }
        images.extend_from_slice(&data.bytes);
        Ok(labels)
    }
}

/// The lines of a text that are not empty.
fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The texts of a list.
fn texts(list: Option<&Value>) -> Vec<String> {
    let Some(Value::List(values, _)) = list else { return Vec::new() };
    let text = |value: &Value| match value {
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    values.iter().filter_map(text).collect()
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
        for (index, name) in Kind::Ten.train_files(Form::Binary).iter().enumerate() {
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
        let set = load(&find(folder.path()).unwrap(), &wanted(10)).unwrap();
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
        let labels = |classes| load_test(&find(folder.path()).unwrap(), &wanted(classes)).unwrap().images.label(0);
        assert_eq!((labels(100), labels(20)), (21, 3));
    }

    #[test]
    fn damage_is_named_with_its_file() {
        let folder = ten();
        let said = || load(&find(folder.path()).unwrap(), &wanted(10)).unwrap_err().to_string();
        fs::write(folder.path().join("data_batch_4.bin"), [record(&[1]), record(&[10])].concat()).unwrap();
        assert!(said().contains("label 10 at index 1 of") && said().contains("data_batch_4.bin"), "{}", said());
        fs::write(folder.path().join("data_batch_2.bin"), [0; 3072]).unwrap();
        assert!(said().contains("data_batch_2.bin has 3072 bytes; it must hold whole records of 3073"), "{}", said());
        fs::remove_file(folder.path().join("test_batch.bin")).unwrap();
        assert!(said().contains("cannot read") && said().contains("test_batch.bin"), "{}", said());
    }
}
