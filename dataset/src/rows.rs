//! Parquet files as Hugging Face writes them: rows with an encoded image and a label.
//!
//! The image is a column of structs with the field `bytes`, and the label a column of whole numbers. Names of classes are in the metadata.
//! Not here: decoding images, and keeping them (`loader`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use convoy_common::text::printable;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};
use serde_json::Value;

use crate::cache::Origin;
use crate::classes::{entries_of, is_test_name};
use crate::decode::DECODERS;
use crate::error::{DataError, excerpt};
use crate::folder::missing_classes;
use crate::footer;
use crate::guard::guarded;
use crate::loader::{Encoded, Loader, Means, check_model, told};
use crate::pool::Resources;
use crate::reading::Reading;
use crate::set::{DataSet, PartSet, Splits, Wanted};
use crate::start::start_of;

/// The first and last bytes of a Parquet file.
const MAGIC: &[u8] = b"PAR1";
/// The ending of a Parquet file.
const ENDING: &str = "parquet";
/// How the names of files with training images and with test images begin. Of the latter, the first that is there counts.
const TRAIN: &str = "train";
const TEST: [&str; 2] = ["test", "val"];
/// Columns of labels, in the order in which they are looked for.
const LABELS: [&str; 3] = ["label", "labels", "fine_label"];
/// The most rows that are decoded at a time, and the bytes of their images after which no more are read.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 64 << 20;
/// The most rows of a file.
const ROWS_MAX: usize = 1 << 26;
/// The most columns that an error names.
const COLUMNS_SHOWN: usize = 20;
/// The longest path of an image that is its name. Names of all images stay in memory.
const NAME_BYTES_MAX: usize = 4096;
/// Rows of each column that are read ahead.
const READ_AHEAD: usize = 64;
/// The key of the metadata that names the classes.
const METADATA: &str = "huggingface";

/// The files of a set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RowFiles {
    /// What the user named.
    place: PathBuf,
    train: Vec<PathBuf>,
    /// Empty if the training images are to be divided.
    test: Vec<PathBuf>,
}

/// An open file.
struct Table {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    image: TypePtr,
    label: TypePtr,
    /// Names of classes, if the file has them.
    classes: Vec<String>,
}

/// The files of a set in a folder, in one of its folders, or the file itself. None if there are none.
///
/// # Errors
/// When a folder can't be read, or has files of which no name says what they are.
pub(crate) fn find(place: &Path) -> Result<Option<RowFiles>, DataError> {
    if place.is_file() {
        let is_one = start_of(place, MAGIC.len()).is_ok_and(|start| start == MAGIC);
        let files = || RowFiles { place: place.to_owned(), train: vec![place.to_owned()], test: Vec::new() };
        return Ok(is_one.then(files));
    }
    let mut here = files_in(place)?;
    if here.is_empty() {
        // A folder of image files may have thousands of folders, which can also be unreadable. Those are not for us.
        let folders = entries_of(place)?.into_iter().filter(|path| path.is_dir());
        let mut found = folders.filter_map(|folder| files_in(&folder).ok()).filter(|files| !files.is_empty());
        here = match (found.next(), found.next()) {
            (None, _) => return Ok(None),
            (Some(files), None) => files,
            (Some(_), Some(_)) => return Err(DataError::ManyTables { folder: place.to_owned() }),
        };
    }
    let with = |prefix: &str| -> Vec<PathBuf> {
        here.iter().filter(|file| name_of(file).to_ascii_lowercase().starts_with(prefix)).cloned().collect()
    };
    let test = TEST.iter().map(|prefix| with(prefix)).find(|files| !files.is_empty()).unwrap_or_default();
    let train = match with(TRAIN) {
        files if files.is_empty() && test.is_empty() && here.len() == 1 => here.clone(),
        files => files,
    };
    if train.is_empty() && test.is_empty() {
        return Err(DataError::NoTrainTable { folder: place.to_owned(), file: here[0].clone() });
    }
    for files in [&train, &test] {
        check_shards(files)?;
    }
    Ok(Some(RowFiles { place: place.to_owned(), train, test }))
}

impl RowFiles {
    /// The number of classes: of their names, or else one more than the largest label.
    ///
    /// # Errors
    /// When a file can't be read.
    pub(crate) fn class_count(&self) -> Result<usize, DataError> {
        let named = Table::open(self.first()?)?.classes.len();
        if named > 0 {
            return Ok(named);
        }
        let mut largest = None;
        for file in &self.train {
            let table = Table::open(file)?;
            table.each_row(std::slice::from_ref(&table.label), |index, row| {
                largest = largest.max(Some(table.label_of(index, &row)?));
                Ok(())
            })?;
        }
        let largest = largest.ok_or_else(|| DataError::NoRows { file: self.place.clone() })?;
        Ok(usize::from(largest) + 1)
    }

    /// Loads both parts.
    pub(crate) fn load(&self, wanted: &Wanted, reading: &Reading, resources: &Resources) -> Result<DataSet, DataError> {
        if self.train.is_empty() {
            return Err(DataError::NoTrainTable { folder: self.place.clone(), file: self.first()?.to_owned() });
        }
        let classes = self.checked_classes(wanted)?;
        let mut means = Means::new(resources)?;
        let test_wanted = wanted.without_draws();
        let (mut train, mut test) = (Loader::new(wanted, &means), Loader::new(&test_wanted, &means));
        let mut all = 0;
        for file in &self.train {
            let is_test = |name: &str| self.is_divided() && is_test_name(name, reading.test_share);
            all += self.feed(
                file,
                &classes,
                wanted,
                &mut means,
                is_test,
                Parts { train: Some(&mut train), test: &mut test },
            )?;
        }
        for file in &self.test {
            all += self.feed(file, &classes, wanted, &mut means, |_| true, Parts { train: None, test: &mut test })?;
        }
        self.check_parts(&[("training", &train), ("test", &test)], reading)?;
        let (train, bad) = train.split(&self.place, wanted)?;
        let (test, bad_tests) = test.split(&self.place, &test_wanted)?;
        let mut notices = told(&self.place, &bad.and(bad_tests), all, reading)?;
        notices.extend(missing_classes(&train, wanted.classes));
        notices.extend(means.left_on_disk(&[&train, &test]));
        let mut set = DataSet::new(Splits { train, test }, &self.described(), notices);
        set.classes = classes;
        Ok(set)
    }

    /// Loads the test images alone.
    pub(crate) fn load_test(
        &self,
        wanted: &Wanted,
        reading: &Reading,
        resources: &Resources,
    ) -> Result<PartSet, DataError> {
        let classes = self.checked_classes(wanted)?;
        let wanted = wanted.without_draws();
        let mut means = Means::new(resources)?;
        let mut test = Loader::new(&wanted, &means);
        let mut all = 0;
        let files = if self.is_divided() { &self.train } else { &self.test };
        for file in files {
            let is_test = |name: &str| !self.is_divided() || is_test_name(name, reading.test_share);
            all += self.feed(file, &classes, &wanted, &mut means, is_test, Parts { train: None, test: &mut test })?;
        }
        self.check_parts(&[("test", &test)], reading)?;
        let (test, bad) = test.split(&self.place, &wanted)?;
        let mut notices = told(&self.place, &bad, all, reading)?;
        notices.extend(means.left_on_disk(&[&test]));
        let mut set = PartSet::new(test, &self.described(), notices);
        set.classes = classes;
        Ok(set)
    }

    fn is_divided(&self) -> bool {
        self.test.is_empty()
    }

    /// The first file. There is one.
    fn first(&self) -> Result<&Path, DataError> {
        let first = self.train.first().or(self.test.first());
        first.map(PathBuf::as_path).ok_or_else(|| DataError::NoRows { file: self.place.clone() })
    }

    /// Checks that each part has a row.
    fn check_parts(&self, parts: &[(&'static str, &Loader)], reading: &Reading) -> Result<(), DataError> {
        let Some((part, _)) = parts.iter().find(|(_, loader)| loader.is_empty()) else { return Ok(()) };
        if self.is_divided() {
            let (folder, test_share) = (self.place.clone(), reading.test_share);
            return Err(DataError::NothingLeft { folder, part, test_share });
        }
        let files = if *part == "test" { &self.test } else { &self.train };
        Err(DataError::NoRows { file: files[0].clone() })
    }

    fn described(&self) -> String {
        let divided = if self.is_divided() { ", divided by a hash of each name" } else { "" };
        format!("Parquet files in {}, decoded by {DECODERS}{divided}", self.place.display())
    }

    /// The names of the classes, if the model has as many.
    fn checked_classes(&self, wanted: &Wanted) -> Result<Vec<String>, DataError> {
        let classes = Table::open(self.first()?)?.classes;
        let count = if classes.is_empty() { wanted.classes } else { classes.len() };
        check_model(&self.place, count, wanted)?;
        Ok(classes)
    }

    /// Hands the images of a file to the loader of their part, and returns how many there were. `is_test` gets the name of an image.
    fn feed(
        &self,
        file: &Path,
        classes: &[String],
        wanted: &Wanted,
        means: &mut Means,
        is_test: impl Fn(&str) -> bool,
        mut parts: Parts,
    ) -> Result<usize, DataError> {
        let table = Table::open(file)?;
        if !table.classes.is_empty() && table.classes != classes {
            let first = self.first()?.display();
            return Err(
                table.refused(format!("its metadata name other classes than {}", printable(&first.to_string())))
            );
        }
        let mut batch = Batch::default();
        let mut count = 0;
        table.each_row(&[table.image.clone(), table.label.clone()], |index, row| {
            count += 1;
            let label = table.checked_label(index, &row, wanted.classes)?;
            let (name, bytes) = table.image_of(index, row);
            let is_test = is_test(&name);
            // Text, because a path that begins at the root would replace that of the file.
            let name = format!("{}/{name}", table.path.display());
            batch.add(is_test, Encoded { origin: Origin::Row { name: name.into(), bytes }, label });
            if batch.is_full() { parts.add(std::mem::take(&mut batch), means) } else { Ok(()) }
        })?;
        parts.add(batch, means)?;
        Ok(count)
    }
}

/// Images that were read, and not yet decoded.
#[derive(Default)]
struct Batch {
    train: Vec<Encoded>,
    test: Vec<Encoded>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, is_test: bool, image: Encoded) {
        if let Origin::Row { bytes, .. } = &image.origin {
            self.bytes += bytes.len();
        }
        if is_test { self.test.push(image) } else { self.train.push(image) }
    }

    fn is_full(&self) -> bool {
        self.bytes > BATCH_BYTES || self.train.len() + self.test.len() >= BATCH
    }
}

/// The loaders of the parts of a set.
struct Parts<'a> {
    /// None if training images are left out.
    train: Option<&'a mut Loader>,
    test: &'a mut Loader,
}

impl Parts<'_> {
    fn add(&mut self, batch: Batch, means: &mut Means) -> Result<(), DataError> {
        if let Some(train) = &mut self.train {
            train.add(batch.train, means)?;
        }
        self.test.add(batch.test, means)
    }
}

impl Table {
    fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |source| DataError::Read { file: path.to_path_buf(), source };
        let refused = |why: String| DataError::Parquet { file: path.to_owned(), why };
        let mut file = File::open(path).map_err(failed)?;
        footer::check(&mut file).map_err(failed)?.map_err(|why| refused(why.to_owned()))?;
        let opened = guarded(|| SerializedFileReader::new(file)).ok_or_else(|| refused(broken()))?;
        let reader = opened.map_err(|error| refused(said(&error)))?;
        let fields = reader.metadata().file_metadata().schema().get_fields().to_vec();
        let (image, label) = columns(&fields).map_err(refused)?;
        let classes = class_names(&reader, label.name());
        Ok(Self { path: path.to_owned(), reader, image, label, classes })
    }

    fn refused(&self, why: String) -> DataError {
        DataError::Parquet { file: self.path.clone(), why }
    }

    /// Hands on each row, with its number and with these columns alone.
    fn each_row(
        &self,
        columns: &[TypePtr],
        mut each: impl FnMut(usize, Row) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let name = self.reader.metadata().file_metadata().schema().name();
        let projection = Type::group_type_builder(name).with_fields(columns.to_vec()).build();
        let rows = projection.and_then(|projection| RowIter::from_file(Some(projection), &self.reader));
        let mut rows = rows.map_err(|error| self.refused(said(&error)))?.with_batch_size(READ_AHEAD);
        for index in 0..=ROWS_MAX {
            match guarded(|| rows.next()).ok_or_else(|| self.refused(broken()))? {
                None => return Ok(()),
                Some(row) => each(index, row.map_err(|error| self.refused(said(&error)))?)?,
            }
        }
        Err(self.refused(format!("it has more than {ROWS_MAX} rows")))
    }

    fn label_of(&self, index: usize, row: &Row) -> Result<u16, DataError> {
        let wrong = |shown: String| {
            self.refused(format!("the {} of row {index} is {shown}; must be 0 to 65534", self.label.name()))
        };
        let value = row.get_column_iter().find(|(name, _)| *name == self.label.name()).map(|(_, value)| value);
        let number = match value {
            Some(Field::Byte(number)) => i64::from(*number),
            Some(Field::Short(number)) => i64::from(*number),
            Some(Field::Int(number)) => i64::from(*number),
            Some(Field::Long(number)) => *number,
            Some(Field::UByte(number)) => i64::from(*number),
            Some(Field::UShort(number)) => i64::from(*number),
            Some(Field::UInt(number)) => i64::from(*number),
            Some(Field::ULong(number)) => i64::try_from(*number).unwrap_or(i64::MAX),
            Some(Field::Null) | None => return Err(wrong("missing".to_owned())),
            Some(other) => return Err(wrong(printable(&other.to_string()))),
        };
        u16::try_from(number).ok().filter(|label| *label < u16::MAX).ok_or_else(|| wrong(number.to_string()))
    }

    fn checked_label(&self, index: usize, row: &Row, classes: usize) -> Result<u16, DataError> {
        let label = self.label_of(index, row)?;
        if usize::from(label) < classes {
            return Ok(label);
        }
        Err(DataError::LabelOutOfRange { file: self.path.clone(), index, label: i32::from(label), classes })
    }

    /// The name of an image, which is its path, or its file and the number of its row if there is no path or a very long one; and its bytes. A row without an image has no bytes.
    fn image_of(&self, index: usize, row: Row) -> (String, Vec<u8>) {
        let (mut name, mut bytes) = (None, Vec::new());
        let image = row.into_columns().into_iter().find(|(name, _)| name == self.image.name());
        if let Some((_, Field::Group(image))) = image {
            for (field, value) in image.into_columns() {
                match (field.as_str(), value) {
                    ("bytes", Field::Bytes(value)) => bytes = value.data().to_vec(),
                    ("path", Field::Str(path)) if (1..=NAME_BYTES_MAX).contains(&path.len()) => name = Some(path),
                    _ => {}
                }
            }
        }
        (name.unwrap_or_else(|| format!("{} row {index}", name_of(&self.path))), bytes)
    }
}

/// The columns of images and of labels.
fn columns(fields: &[TypePtr]) -> Result<(TypePtr, TypePtr), String> {
    let is_image = |field: &&TypePtr| {
        field.is_group() && field.get_fields().iter().any(|inner| inner.name() == "bytes" && inner.is_primitive())
    };
    let is_number = |field: &&TypePtr| {
        use parquet::basic::Type::{INT32, INT64};
        field.is_primitive() && matches!(field.get_physical_type(), INT32 | INT64)
    };
    let named = |name: &&str| fields.iter().find(|field| field.name() == *name).filter(is_number);
    let all: Vec<String> = fields.iter().take(COLUMNS_SHOWN).map(|field| excerpt(field.name())).collect();
    let lacks = |what: &str| format!("it has no {what}; its columns are {}", all.join(", "));
    let image = fields
        .iter()
        .find(is_image)
        .ok_or_else(|| lacks("column of images, which are structs with the field \"bytes\""))?;
    let label = LABELS.iter().find_map(named);
    let label = label.ok_or_else(|| lacks("column \"label\" of whole numbers"))?;
    Ok((Arc::clone(image), Arc::clone(label)))
}

/// The names of the classes in the metadata of Hugging Face.
fn class_names(reader: &SerializedFileReader<File>, label: &str) -> Vec<String> {
    let metadata = reader.metadata().file_metadata().key_value_metadata();
    let entry = metadata.and_then(|entries| entries.iter().find(|entry| entry.key == METADATA)?.value.as_deref());
    let value: Value = entry.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let names = value["info"]["features"][label]["names"].as_array();
    let name = |value: &Value| value.as_str().map(printable);
    names.and_then(|names| names.iter().map(name).collect()).unwrap_or_default()
}

fn name_of(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The Parquet files of a folder, in the order of their names.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let is_one = |path: &PathBuf| path.extension().is_some_and(|ending| ending == ENDING) && path.is_file();
    Ok(entries_of(folder)?.into_iter().filter(is_one).collect())
}

/// Checks that no file is missing of those that the last name announces: `train-00001-of-00003.parquet` is one of three.
fn check_shards(files: &[PathBuf]) -> Result<(), DataError> {
    let Some(last) = files.last() else { return Ok(()) };
    let stem = last.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    // What follows the number is a hash in some sets.
    let announced = stem.split("-of-").nth(1).and_then(|rest| rest.split('-').next()?.parse().ok());
    match announced {
        Some(all) if all != files.len() => {
            Err(DataError::MissingTables { file: last.clone(), found: files.len(), all })
        }
        _ => Ok(()),
    }
}

/// What the reader says of a file.
fn said(error: &ParquetError) -> String {
    let text = printable(&error.to_string());
    if text.contains("Disabled feature") {
        return "its compression is not read; write it again with compression=\"snappy\" or without compression"
            .to_owned();
    }
    text
}

fn broken() -> String {
    "it is damaged".to_owned()
}

#[cfg(test)]
mod tests {
    use convoy_common::model::Shape;
    use tempfile::TempDir;

    use super::*;
    use crate::view::View;

    /// Made by pyarrow (`golden/make.py`): six images with paths and names of classes, and two without.
    const TRAIN_FILE: &[u8] = include_bytes!("../golden/train.parquet");
    const TEST_FILE: &[u8] = include_bytes!("../golden/test.parquet");
    /// With the same classes in another order.
    const OTHER_CLASSES: &[u8] = include_bytes!("../golden/other-classes.parquet");
    /// Without images, with labels that are texts, with a label that is missing.
    const WRONG: [&[u8]; 3] = [
        include_bytes!("../golden/no-image.parquet"),
        include_bytes!("../golden/text-label.parquet"),
        include_bytes!("../golden/null-label.parquet"),
    ];

    fn wanted() -> Wanted {
        Wanted::plain(Shape { channels: 3, height: 4, width: 5 }, 3)
    }

    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn load(place: &Path, wanted: &Wanted, resources: &Resources) -> Result<DataSet, DataError> {
        find(place)?.expect("there are Parquet files").load(wanted, &Reading::default(), resources)
    }

    #[test]
    fn rows_become_images_with_labels_and_names_of_classes() {
        let here = folder(&[("data/train-00000-of-00001.parquet", TRAIN_FILE), ("data/test-0.parquet", TEST_FILE)]);
        let set = load(here.path(), &wanted(), &Resources::default()).unwrap();
        assert_eq!((set.train.labels(), set.test.labels()), (&[0u16, 2, 1, 2, 0, 1][..], &[1u16, 0][..]));
        assert_eq!(set.classes, ["cat", "dog", "owl"]);
        // Byte k of the pixels that were written is k mod 251, by (image, row, column, channel).
        for image in 0..6 {
            let bytes = set.train.image(image, View::Centre).unwrap();
            let expected: Vec<u8> = (0..60).map(|at| ((image * 60 + at % 20 * 3 + at / 20) % 251) as u8).collect();
            assert_eq!(*bytes, expected, "image {image}");
        }
        assert_eq!(set.train.file(1).unwrap(), here.path().join("data/train-00000-of-00001.parquet/b.png"));
        assert!(set.test.file(0).unwrap().ends_with("test-0.parquet/test-0.parquet row 0"));
        let alone =
            find(here.path()).unwrap().unwrap().load_test(&wanted(), &Reading::default(), &Resources::default());
        assert_eq!(alone.unwrap().images.fingerprint(), set.test.fingerprint());
    }

    #[test]
    fn a_single_file_is_divided_by_the_names_of_its_images() {
        let here = folder(&[("some.parquet", TRAIN_FILE)]);
        let file = here.path().join("some.parquet");
        let files = find(&file).unwrap().unwrap();
        assert_eq!(files.class_count().unwrap(), 3);
        let reading = Reading { test_share: 0.5, ..Reading::default() };
        let set = files.load(&wanted(), &reading, &Resources::default()).unwrap();
        let alone = files.load_test(&wanted(), &reading, &Resources::default()).unwrap();
        assert_eq!((set.train.len() + set.test.len(), alone.images.fingerprint()), (6, set.test.fingerprint()));
        let reading = Reading { test_share: 0.0001, ..Reading::default() };
        let said = files.load(&wanted(), &reading, &Resources::default()).unwrap_err().to_string();
        assert!(said.contains("has no test images if a share of 0.0001 is for tests"), "{said}");
    }

    #[test]
    fn images_that_do_not_fit_are_kept_in_a_file_or_refused() {
        let here = folder(&[("train.parquet", TRAIN_FILE), ("test.parquet", TEST_FILE)]);
        let small = Resources { memory: 130, ..Resources::default() };
        let said = load(here.path(), &wanted(), &small).unwrap_err().to_string();
        assert!(said.contains("c.png") && said.contains("--cache"), "{said}");
        let cache = tempfile::tempdir().unwrap();
        let kept = Resources { cache: Some(cache.path().to_owned()), ..small };
        let set = load(here.path(), &wanted(), &kept).unwrap();
        assert!(set.notices[0].starts_with("6 of 8 images do not fit into 0 KB"), "{:?}", set.notices);
        let whole = load(here.path(), &wanted(), &Resources::default()).unwrap();
        assert_eq!(set.fingerprint, whole.fingerprint);
        for image in 0..6 {
            assert_eq!(set.train.image(image, View::Centre).unwrap(), whole.train.image(image, View::Centre).unwrap());
        }
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        let said = |file: &[u8]| {
            let here = folder(&[("train.parquet", file), ("test.parquet", TEST_FILE)]);
            load(here.path(), &wanted(), &Resources::default()).unwrap_err().to_string()
        };
        for (file, expected) in WRONG.into_iter().zip([
            "no column of images, which are structs with the field \"bytes\"; its columns are label, text",
            "no column \"label\" of whole numbers; its columns are image, label",
            "the label of row 1 is missing",
        ]) {
            assert!(said(file).contains(expected), "{}", said(file));
        }
        assert!(said(&TRAIN_FILE[..TRAIN_FILE.len() / 2]).contains("train.parquet can't be used: "));
        assert!(said(b"PAR1").contains("train.parquet can't be used: "));
        let two = folder(&[("a/train.parquet", TRAIN_FILE), ("b/train.parquet", TRAIN_FILE)]);
        assert!(find(two.path()).unwrap_err().to_string().contains("several folders with Parquet files"));
        let unnamed = folder(&[("one.parquet", TRAIN_FILE), ("two.parquet", TRAIN_FILE)]);
        assert!(find(unnamed.path()).unwrap_err().to_string().contains("none whose name begins with train"));
        assert_eq!(find(folder(&[("cat/1.png", b"x")]).path()).unwrap(), None);
        let half = folder(&[("train-00000-of-00002.parquet", TRAIN_FILE), ("test.parquet", TEST_FILE)]);
        let said = find(half.path()).unwrap_err().to_string();
        assert!(said.contains("train-00000-of-00002.parquet is one of 2 files, and 1 is there"), "{said}");
        // Test images alone are enough for a measurement, and not for training.
        let tests = folder(&[("test.parquet", TEST_FILE)]);
        let files = find(tests.path()).unwrap().unwrap();
        files.load_test(&wanted(), &Reading::default(), &Resources::default()).unwrap();
        let said = files.load(&wanted(), &Reading::default(), &Resources::default()).unwrap_err().to_string();
        assert!(said.contains("none whose name begins with train"), "{said}");
        let files: &[(&str, &[u8])] =
            &[("train-0.parquet", TRAIN_FILE), ("train-1.parquet", OTHER_CLASSES), ("test.parquet", TEST_FILE)];
        let other = folder(files);
        let said = load(other.path(), &wanted(), &Resources::default()).unwrap_err().to_string();
        assert!(said.contains("its metadata name other classes than"), "{said}");
    }

    /// A bit of every seventh byte is changed. No change may end the program.
    #[test]
    fn damaged_files_give_a_set_or_an_error() {
        let here = folder(&[("train.parquet", TRAIN_FILE), ("test.parquet", TEST_FILE)]);
        for at in (0..TRAIN_FILE.len()).step_by(7) {
            let mut bytes = TRAIN_FILE.to_vec();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(here.path().join("train.parquet"), bytes).unwrap();
            let _ = load(here.path(), &wanted(), &Resources { threads: 1, ..Resources::default() });
        }
    }
}
