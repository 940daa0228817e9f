//! The data module's tests: files that are right, each way in which they can be wrong, and downloads from a server in a thread. No
//! test uses another machine, or data sets of this machine.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use md5::{Digest, Md5};
use ndarray::Array4;
use proptest::prelude::*;
use tempfile::TempDir;

use super::download::{self, Remote, RemoteFile};
use convoy_common::model::Shape;
use convoy_common::parameters::hex;

use super::set::fingerprint;
use super::*;

const TRAIN_IMAGES: &str = "train-images-idx3-ubyte";
const TRAIN_LABELS: &str = "train-labels-idx1-ubyte";
const TEST_IMAGES: &str = "t10k-images-idx3-ubyte";
const TEST_LABELS: &str = "t10k-labels-idx1-ubyte";

fn idx(dims: &[u32], payload: &[u8]) -> Vec<u8> {
    let magic = 0x0800 + u32::try_from(dims.len()).unwrap();
    let header = [magic].into_iter().chain(dims.iter().copied());
    let mut bytes: Vec<u8> = header.flat_map(u32::to_be_bytes).collect();
    bytes.extend_from_slice(payload);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn md5_hex(bytes: &[u8]) -> &'static str {
    hex(&Md5::digest(bytes)).leak()
}

/// Four train and two test images of 1x2x3 in two classes.
fn small_files() -> BTreeMap<String, Vec<u8>> {
    let train: Vec<u8> = (0..24).collect();
    let test: Vec<u8> = (100..112).collect();
    BTreeMap::from([
        (TRAIN_IMAGES.into(), idx(&[4, 2, 3], &train)),
        (TRAIN_LABELS.into(), idx(&[4], &[0, 1, 1, 0])),
        (TEST_IMAGES.into(), idx(&[2, 2, 3], &test)),
        (TEST_LABELS.into(), idx(&[2], &[1, 0])),
    ])
}

fn small_wanted() -> Wanted {
    Wanted::plain(Shape { channels: 1, height: 2, width: 3 }, 2)
}

fn fashion_wanted() -> Wanted {
    Wanted::plain(Shape { channels: 1, height: 28, width: 28 }, 10)
}

fn write_files(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    fs::create_dir_all(folder).unwrap();
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// Loads the small set after one file was replaced.
fn load_with(name: &str, bytes: Vec<u8>) -> Result<DataSet, DataError> {
    let mut files = small_files();
    files.insert(name.into(), bytes);
    load_files(&files, &small_wanted())
}

fn load_from(place: &Path, wanted: &Wanted) -> Result<DataSet, DataError> {
    Layout::of(place, None)?.load(place, wanted, &Reading::default(), &Resources::default())
}

fn load_files(files: &BTreeMap<String, Vec<u8>>, wanted: &Wanted) -> Result<DataSet, DataError> {
    let folder = TempDir::new().unwrap();
    write_files(folder.path(), files);
    load_from(folder.path(), wanted)
}

fn small_without(name: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = small_files();
    files.remove(name).unwrap();
    files
}

/// Asserts the error's variant, and that its one line names everything in `words`.
macro_rules! assert_error {
    ($result:expr, $variant:pat, $words:expr) => {{
        let error = $result.unwrap_err();
        assert!(matches!(error, $variant), "{error:?}");
        let line = error.to_string();
        for word in $words {
            assert!(line.contains(word), "{word:?} isn't in {line:?}");
        }
        assert!(!line.ends_with('.') && !line.contains('\n'), "{line:?}");
    }};
}

#[test]
fn sources_are_parsed_and_shown_alike() {
    let cases = [
        ("auto", DataSource::Auto),
        ("bundled", DataSource::Bundled),
        ("synthetic", DataSource::Synthetic),
        ("./synthetic", DataSource::Folder("./synthetic".into())),
    ];
    for (text, source) in cases {
        assert_eq!(text.parse::<DataSource>().unwrap(), source);
        assert_eq!(source.to_string(), text);
    }
    assert_error!("".parse::<DataSource>(), DataError::EmptySource, ["auto", "bundled", "synthetic", "folder"]);
}

#[test]
fn plain_files_are_read() {
    let data = load_files(&small_files(), &small_wanted()).unwrap();
    assert_eq!((data.train.len(), data.test.len()), (4, 2));
    assert_eq!((data.train.len(), data.train.shape().to_string()), (4, "1x2x3".to_owned()));
    assert_eq!(*data.train.image(1, View::Centre).unwrap(), [6, 7, 8, 9, 10, 11]);
    assert_eq!(data.train.labels(), [0, 1, 1, 0]);
    assert_eq!((data.test.image(0, View::Centre).unwrap()[0], data.test.label(0)), (100, 1));
    assert!(!data.train.is_empty());
    assert_eq!(data.notices, Vec::<String>::new());
    assert!(data.origin.contains("4 training and 2 test images of 1x2x3"), "{}", data.origin);
}

/// Packing is told by content: under either name, packed or not, a file gives the same data.
#[test]
fn gz_and_plain_files_are_the_same_data() {
    let plain = load_files(&small_files(), &small_wanted()).unwrap();
    let renamed = |pack: fn(&[u8]) -> Vec<u8>| {
        small_files().into_iter().map(|(name, bytes)| (format!("{name}.gz"), pack(&bytes))).collect()
    };
    for files in [renamed(gz), renamed(<[u8]>::to_vec)] {
        let other = load_files(&files, &small_wanted()).unwrap();
        assert_eq!(other.fingerprint, plain.fingerprint);
        assert_eq!(other.train.fingerprint(), plain.train.fingerprint());
    }
}

#[test]
fn colour_files_have_four_dimensions() {
    let mut files = small_without(TRAIN_IMAGES);
    files.remove(TEST_IMAGES);
    let bytes: Vec<u8> = (0..72).collect();
    files.insert("train-images-idx4-ubyte".into(), idx(&[4, 3, 2, 3], &bytes));
    files.insert("t10k-images-idx4-ubyte.gz".into(), gz(&idx(&[2, 3, 2, 3], &bytes[..36])));
    let data = load_files(&files, &Wanted { channels: 3, ..small_wanted() }).unwrap();
    assert_eq!((data.train.len(), data.train.shape().to_string()), (4, "3x2x3".to_owned()));
    assert_eq!(data.train.image(3, View::Centre).unwrap()[0], 54);
}

/// Every byte, label and dimension counts, and so does which split it is in.
#[test]
fn fingerprint_is_of_the_data() {
    let before = load_files(&small_files(), &small_wanted()).unwrap().fingerprint;
    assert_eq!(before.len(), 64);
    let mut seen = vec![before];
    let changes = [
        (TRAIN_IMAGES, idx(&[4, 2, 3], &[1; 24])),
        (TRAIN_LABELS, idx(&[4], &[0, 1, 1, 1])),
        (TEST_IMAGES, idx(&[2, 2, 3], &[1; 12])),
        (TEST_LABELS, idx(&[2], &[1, 1])),
    ];
    for (name, bytes) in changes {
        seen.push(load_with(name, bytes).unwrap().fingerprint);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5);
    let tall = Split::plain(Array4::zeros((1, 1, 3, 2)), vec![0]);
    let wide = Split::plain(Array4::zeros((1, 1, 2, 3)), vec![0]);
    assert_ne!(fingerprint(&[&tall, &wide]), fingerprint(&[&wide, &tall]));
    assert_ne!(tall.fingerprint(), wide.fingerprint());
}

#[test]
fn missing_folder_and_files_are_named() {
    let folder = TempDir::new().unwrap();
    let nowhere = folder.path().join("nowhere");
    assert_error!(load_from(&nowhere, &small_wanted()), DataError::FolderMissing { .. }, ["nowhere"]);
    fs::write(&nowhere, "").unwrap();
    assert_error!(load_from(&nowhere, &small_wanted()), DataError::NotASet { .. }, ["nowhere is no set"]);
    let mut files = small_without(TRAIN_LABELS);
    files.remove(TEST_IMAGES);
    write_files(folder.path(), &files);
    let error = load_from(folder.path(), &small_wanted()).unwrap_err();
    let DataError::FilesMissing { missing, folder: named } = &error else { panic!("{error:?}") };
    assert_eq!(missing[..], [TRAIN_LABELS, TEST_IMAGES]);
    assert_eq!(named, folder.path());
    assert_error!(Err::<(), _>(error), DataError::FilesMissing { .. }, [TRAIN_LABELS, TEST_IMAGES, ".gz"]);
}

/// An IDX header for elements of another type.
fn typed(code: u8, dims: &[u32], payload: &[u8]) -> Vec<u8> {
    let mut bytes = idx(dims, payload);
    bytes[2] = code;
    bytes
}

/// In words: what the file holds, and what is needed.
#[test]
fn files_of_other_contents_are_refused_in_words() {
    let images = "unsigned bytes in 3 dimensions (image, row, column) or 4";
    let cases = [
        (TRAIN_IMAGES, idx(&[4], &[0, 1, 1, 0]), "holds unsigned bytes in 1 dimension;", images),
        (TRAIN_IMAGES, typed(0x0c, &[4, 2, 3], &[0; 96]), "holds 32-bit integers in 3 dimensions;", images),
        (TRAIN_IMAGES, typed(0x0e, &[4, 2, 3], &[0; 192]), "holds 64-bit floats in 3 dimensions;", images),
        (TEST_LABELS, typed(0x0d, &[2], &[0; 8]), "holds 32-bit floats in 1 dimension;", "integers in 1 dimension"),
        (TEST_LABELS, idx(&[2, 1], &[1, 0]), "holds unsigned bytes in 2 dimensions;", "a label for each image"),
    ];
    for (name, bytes, found, needed) in cases {
        assert_error!(load_with(name, bytes), DataError::WrongContent { .. }, [name, found, needed]);
    }
    let cases =
        [(&b"\x89PNG\r\n"[..], "the bytes 137, 80, 78, 71"), (b"GIF89a", "\"GIF8\""), (&[0, 0, 7, 1], "0, 0, 7, 1")];
    for (bytes, start) in cases {
        let words = [TRAIN_IMAGES, "not an IDX file", start, "two zero bytes"];
        assert_error!(load_with(TRAIN_IMAGES, bytes.to_vec()), DataError::NotIdx { .. }, words);
    }
}

/// Of any width and either sign; more classes than a byte can number; and a name that says the type.
#[test]
fn labels_of_any_integer_type_are_read() {
    let plain = load_files(&small_files(), &small_wanted()).unwrap();
    let wide = |code, width: usize| {
        let payload = [0u8, 1, 1, 0].iter().flat_map(|label| [vec![0; width - 1], vec![*label]].concat());
        typed(code, &[4], &payload.collect::<Vec<_>>())
    };
    for (code, width) in [(0x09, 1), (0x0b, 2), (0x0c, 4)] {
        let data = load_with(TRAIN_LABELS, wide(code, width)).unwrap();
        assert_eq!((data.train.labels(), data.fingerprint), (plain.train.labels(), plain.fingerprint.clone()));
    }
    let mut files = small_without(TRAIN_LABELS);
    files.insert("train-labels-idx1-int".into(), typed(0x0c, &[4], &[0, 0, 1, 44, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]));
    let data = load_files(&files, &Wanted { classes: 301, ..small_wanted() }).unwrap();
    assert_eq!(data.train.labels(), [300, 1, 0, 1]);
    let negative = typed(0x09, &[4], &[0, 1, 255, 0]);
    let words = [TRAIN_LABELS, "label -1 at index 2", "0 to 1"];
    assert_error!(load_with(TRAIN_LABELS, negative), DataError::LabelOutOfRange { .. }, words);
}

/// Members one after another, and zeros behind the last one, read as the plain file does. Anything else is named.
#[test]
fn zeros_behind_gzip_data_are_skipped_and_nothing_else_is() {
    let plain = idx(&[4], &[0, 1, 1, 0]);
    let before = load_files(&small_files(), &small_wanted()).unwrap().fingerprint;
    let members = [gz(&plain[..5]), gz(&plain[5..])].concat();
    let padded = |zeros: usize| [gz(&plain), vec![0; zeros]].concat();
    for bytes in [members.clone(), padded(1), padded(10_240), [members, vec![0; 512]].concat()] {
        assert_eq!(load_with(TRAIN_LABELS, bytes).unwrap().fingerprint, before);
    }
    let cut = gz(b"")[..7].to_vec();
    for tail in [&b"garbage"[..], b"\0\0garbage", b"\x1f", b"\x1f\x8b", &cut] {
        let error = load_with(TRAIN_LABELS, [gz(&plain), tail.to_vec()].concat()).unwrap_err();
        assert!(matches!(error, DataError::Read { .. }), "{error:?}");
        let text = convoy_common::chain::chain(&error);
        assert!(text.ends_with(&format!("{TRAIN_LABELS}: bytes after the gzip data")), "{text}");
    }
}

/// Both in the header and in the payload, and where a gzip stream breaks off.
#[test]
fn truncated_files_are_refused() {
    let whole = idx(&[4], &[0, 1, 1, 0]);
    let cases =
        [(0, "0 bytes; its header needs 4"), (6, "6 bytes; its header needs 8"), (11, "11 bytes; its header needs 12")];
    for (length, word) in cases {
        for bytes in [whole[..length].to_vec(), gz(&whole[..length])] {
            assert_error!(load_with(TRAIN_LABELS, bytes), DataError::Truncated { .. }, [TRAIN_LABELS, word]);
        }
    }
    let packed = gz(&idx(&[4, 2, 3], &[1, 9, 7, 2, 5, 8, 3, 6].repeat(3)));
    let without_body = packed[..packed.len() - 16].to_vec();
    assert_error!(load_with(TRAIN_IMAGES, without_body), DataError::Truncated { .. }, [TRAIN_IMAGES, "needs 40"]);
    let without_checksum = packed[..packed.len() - 4].to_vec();
    assert_error!(load_with(TRAIN_IMAGES, without_checksum), DataError::Read { .. }, [TRAIN_IMAGES]);
}

#[test]
fn trailing_bytes_are_refused() {
    let long = idx(&[4], &[0, 1, 1, 0, 0]);
    for bytes in [gz(&long), long] {
        assert_error!(load_with(TRAIN_LABELS, bytes), DataError::TrailingBytes { .. }, [TRAIN_LABELS, "12 bytes"]);
    }
}

#[test]
fn damaged_gz_is_refused() {
    let mut packed = gz(&idx(&[4], &[0, 1, 1, 0]));
    let checksum = packed.len() - 8;
    packed[checksum] ^= 1;
    assert_error!(load_with(TRAIN_LABELS, packed), DataError::Read { .. }, [TRAIN_LABELS]);
}

/// A header's claim alone costs no memory: a big one is truncated, and a huge one is refused outright.
#[test]
fn claims_are_bounded() {
    let big = idx(&[1 << 20, 1 << 6, 1 << 6], &[1; 8]);
    assert_error!(load_with(TRAIN_IMAGES, big), DataError::Truncated { .. }, ["24 bytes", "4294967312"]);
    let huge = idx(&[u32::MAX, u32::MAX, u32::MAX, u32::MAX], &[]);
    assert_error!(load_with(TRAIN_IMAGES, huge), DataError::TooBig { .. }, [TRAIN_IMAGES, "8589934592"]);
}

#[test]
fn empty_sets_are_refused() {
    let empty = idx(&[0, 2, 3], &[]);
    assert_error!(load_with(TRAIN_IMAGES, empty), DataError::Empty { .. }, [TRAIN_IMAGES, "[0, 2, 3]", "at least 1"]);
    assert_error!(load_with(TEST_LABELS, idx(&[0], &[])), DataError::Empty { .. }, [TEST_LABELS]);
}

#[test]
fn shape_must_be_the_models() {
    let cases = [
        (Wanted { channels: 3, ..small_wanted() }, "3x2x3"),
        (Wanted { height: 3, ..small_wanted() }, "1x3x3"),
        (Wanted { width: 2, ..small_wanted() }, "1x2x2"),
    ];
    for (wanted, shape) in cases {
        let result = load_files(&small_files(), &wanted);
        assert_error!(result, DataError::ShapeMismatch { .. }, [TRAIN_IMAGES, "1x2x3", shape]);
    }
    let other_test = idx(&[2, 3, 2], &[0; 12]);
    assert_error!(load_with(TEST_IMAGES, other_test), DataError::ShapeMismatch { .. }, [TEST_IMAGES, "1x3x2"]);
}

#[test]
fn labels_must_pair_up_with_images() {
    let result = load_with(TRAIN_LABELS, idx(&[3], &[0, 1, 0]));
    let words = [TRAIN_IMAGES, "4 images", TRAIN_LABELS, "3 labels"];
    assert_error!(result, DataError::CountMismatch { .. }, words);
}

#[test]
fn labels_must_have_a_unit() {
    let result = load_with(TEST_LABELS, idx(&[2], &[1, 9]));
    let words = [TEST_LABELS, "label 9 at index 1", "2 classes", "0 to 1"];
    assert_error!(result, DataError::LabelOutOfRange { .. }, words);
}

/// One rule for every class, the first and the last too: a notice. A test split may lack any.
#[test]
fn classes_without_a_training_image_are_named() {
    let notices = |labels: &[u8], classes| {
        let mut files = small_files();
        files.insert(TRAIN_LABELS.into(), idx(&[4], labels));
        files.insert(TEST_LABELS.into(), idx(&[2], &[0, 0]));
        load_files(&files, &Wanted { classes, ..small_wanted() }).unwrap().notices
    };
    let cases = [
        (&[0, 1, 1, 0], 2, None),
        (&[1, 1, 2, 1], 3, Some("1 of the model's 3 classes has no training image: 0")),
        (&[0, 2, 2, 0], 3, Some("1 of the model's 3 classes has no training image: 1")),
        (&[0, 1, 1, 0], 3, Some("1 of the model's 3 classes has no training image: 2")),
        (&[3, 3, 5, 5], 12, Some("10 of the model's 12 classes have no training image: 0 to 2, 4, 6 to 11")),
    ];
    for (labels, classes, expected) in cases {
        assert_eq!(notices(labels, classes), Vec::from_iter(expected), "{labels:?}");
    }
    let many = Split::plain(Array4::zeros((50, 1, 1, 1)), (0..50).map(|label| label * 2).collect());
    let text = folder::missing_classes(&many, 100).unwrap();
    assert!(text.contains("50 of the model's 100") && text.ends_with("17, 19, and others"), "{text}");
}

/// Training files need not be there, and what is loaded is what a whole set's test split would be.
#[test]
fn test_images_are_loaded_alone() {
    let whole = load_files(&small_files(), &small_wanted()).unwrap();
    let folder = TempDir::new().unwrap();
    let mut files = small_without(TRAIN_IMAGES);
    files.remove(TRAIN_LABELS);
    write_files(folder.path(), &files);
    let test = Layout::of(folder.path(), None)
        .and_then(|layout| layout.load_test(folder.path(), &small_wanted(), &Reading::default(), &Resources::default()))
        .unwrap();
    assert_eq!(test.images.fingerprint(), whole.test.fingerprint());
    assert!(test.origin.contains("2 test images of 1x2x3"), "{}", test.origin);
    fs::remove_file(folder.path().join(TEST_LABELS)).unwrap();
    let error = Layout::of(folder.path(), None).and_then(|layout| {
        layout.load_test(folder.path(), &small_wanted(), &Reading::default(), &Resources::default())
    });
    assert_error!(error, DataError::FilesMissing { .. }, [TEST_LABELS]);
    let places = Search::new().places;
    for source in [DataSource::Bundled, DataSource::Synthetic] {
        let usual = Reading::default();
        let (all, alone) =
            (load(&source, &fashion_wanted(), &places, &usual), load_test(&source, &fashion_wanted(), &places, &usual));
        assert_eq!(all.unwrap().test.fingerprint(), alone.unwrap().images.fingerprint(), "{source}");
    }
}

#[test]
fn a_source_that_a_checkpoint_names_is_taken_unless_another_was_asked_for() {
    let remembered = RememberedData { source: Some(DataSource::Folder("nowhere".into())), reading: None };
    let choice = DataChoice::of(AskedData::default(), remembered.clone());
    let places = Search::new().places;
    for error in [
        choice.load(&small_wanted(), &places).unwrap_err(),
        choice.load_part(Part::Test, None, &small_wanted(), &places).unwrap_err(),
    ] {
        let text = convoy_common::chain::chain(&error);
        assert!(text.contains("that the checkpoint names, nowhere") && text.contains("does not exist"), "{text}");
    }
    let asked = DataChoice::of(AskedData { source: Some(DataSource::Bundled), ..AskedData::default() }, remembered);
    assert_eq!(asked, DataChoice { source: DataSource::Bundled, is_remembered: false, reading: Reading::default() });
    assert_eq!(DataChoice::of(AskedData::default(), RememberedData::default()).source, DataSource::Auto);
}

#[test]
fn a_format_that_is_asked_for_is_the_only_one_that_is_looked_for() {
    let folder = TempDir::new().unwrap();
    write_files(folder.path(), &small_files());
    fs::create_dir(folder.path().join("a-class")).unwrap();
    let of = |format| Layout::of(folder.path(), format);
    assert!(matches!(of(None), Ok(Layout::Idx)) && matches!(of(Some(Format::Idx)), Ok(Layout::Idx)));
    assert!(matches!(of(Some(Format::Images)), Ok(Layout::ImageFiles)));
    for (format, missing) in [
        (Format::Npz, "is not a NumPy archive"),
        (Format::Cifar, "has no files of CIFAR"),
        (Format::Parquet, "has no Parquet files"),
    ] {
        let flag = format!("(--data-format {format})");
        assert_error!(of(Some(format)).map(|_| ()), DataError::NotOfFormat { .. }, [missing, &*flag]);
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let text = "idxx".parse::<Format>().unwrap_err();
    assert_eq!(text, "unknown format \"idxx\"; did you mean \"idx\"?");
}

#[test]
fn a_remembered_format_is_that_of_the_remembered_source() {
    let format = |source: Option<&str>, asked: Option<Format>| {
        let folder = |name: &str| DataSource::Folder(name.into());
        let reading = AskedReading { format: asked, ..AskedReading::default() };
        let before = Some(Reading { format: Some(Format::Idx), ..Reading::default() });
        let remembered = RememberedData { source: Some(folder("here")), reading: before };
        DataChoice::of(AskedData { source: source.map(folder), reading }, remembered).reading.format
    };
    assert_eq!(
        [None, Some("here"), Some("there")].map(|source| format(source, None)),
        [Some(Format::Idx), Some(Format::Idx), None]
    );
    assert_eq!([None, Some("there")].map(|source| format(source, Some(Format::Npz))), [Some(Format::Npz); 2]);
}

#[test]
fn bundled_subset_is_balanced() {
    let data = fashion::bundled(&fashion_wanted()).unwrap();
    for (split, per_class) in [(&data.train, 500), (&data.test, 100)] {
        let mut counts = [0; CLASS_NAMES.len()];
        split.labels().iter().for_each(|&label| counts[usize::from(label)] += 1);
        assert_eq!(counts, [per_class; CLASS_NAMES.len()]);
        assert_eq!((split.len(), split.shape().to_string()), (per_class * CLASS_NAMES.len(), "1x28x28".to_owned()));
    }
    let [notice] = data.notices.try_into().unwrap();
    for word in ["bundled 5000 of", "60000", "apt install dataset-fashion-mnist", "./data/fashion-mnist"] {
        assert!(notice.contains(word), "{word:?} isn't in {notice:?}");
    }
}

/// A search in directories of the test's own, offline unless it says otherwise.
struct Search {
    root: TempDir,
    places: Places,
}

impl Search {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let places = Places {
            resources: Resources::default(),
            working_dir: root.path().join("working"),
            cache_dir: Some(root.path().join("cache")),
            system_dir: root.path().join("system"),
            offline: true,
        };
        Search { root, places }
    }

    fn folder(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn auto(&self, remote: &Remote) -> Result<DataSet, DataError> {
        fashion::auto(&fashion_wanted(), &self.places, remote)
    }
}

/// A set with Fashion-MNIST's dimensions. Its files are plain in spite of their names: quick to write, and known by
/// their content anyway.
fn whole_files() -> BTreeMap<String, Vec<u8>> {
    let mut files = ten_each(60_000, 10_000);
    files.get_mut(&format!("{TRAIN_IMAGES}.gz")).unwrap()[16] = 77;
    files
}

/// Black images of 1x28x28 in ten classes.
fn ten_each(train: u32, test: u32) -> BTreeMap<String, Vec<u8>> {
    let images = |count: u32| idx(&[count, 28, 28], &vec![0; count as usize * 28 * 28]);
    let labels = |count: u32| idx(&[count], &(0..count).map(|i| (i % 10) as u8).collect::<Vec<u8>>());
    BTreeMap::from([
        (format!("{TRAIN_IMAGES}.gz"), images(train)),
        (format!("{TRAIN_LABELS}.gz"), labels(train)),
        (format!("{TEST_IMAGES}.gz"), images(test)),
        (format!("{TEST_LABELS}.gz"), labels(test)),
    ])
}

/// A folder that lacks a file is passed over, even if it comes first; one that lacks none is taken, even if it's wrong.
#[test]
fn auto_takes_the_first_folder_with_all_files() {
    let search = Search::new();
    let mut lacking = ten_each(10, 10);
    lacking.pop_first();
    write_files(&search.folder("cache/convoy/fashion-mnist"), &lacking);
    write_files(&search.folder("system/fashion-mnist"), &whole_files());
    let data = search.auto(&nowhere()).unwrap();
    assert_eq!(
        (data.train.len(), data.test.len(), data.train.image(0, View::Centre).unwrap()[0]),
        (60_000, 10_000, 77)
    );
    assert!(data.origin.contains("system") && data.notices.is_empty());
    write_files(&search.folder("working/data/fashion-mnist"), &ten_each(30, 20));
    let words = ["working/data/fashion-mnist", "30 training", "20 test", "60000", "10000"];
    assert_error!(search.auto(&nowhere()), DataError::NotFashionMnist { .. }, words);
    let test = fashion::auto_test(&fashion_wanted(), &search.places, &nowhere());
    assert_error!(test, DataError::NotFashionMnist { .. }, ["working/data/fashion-mnist", "20 test images"]);
}

#[test]
fn auto_falls_back_on_the_bundled_subset() {
    let search = Search::new();
    let data = search.auto(&nowhere()).unwrap();
    assert_eq!(data.fingerprint, fashion::bundled(&fashion_wanted()).unwrap().fingerprint);
    let [notice] = data.notices.try_into().unwrap();
    assert!(notice.contains("downloads are off") && !notice.contains('\n'), "{notice}");
    // A folder that was meant and lacks something is named.
    let mut lacking = ten_each(10, 10);
    lacking.pop_first();
    write_files(&search.folder("working/data/fashion-mnist"), &lacking);
    let [notice] = search.auto(&nowhere()).unwrap().notices.try_into().unwrap();
    assert!(notice.contains("working/data/fashion-mnist") && notice.contains("downloads are off"), "{notice}");
}

#[test]
fn auto_names_a_damaged_file() {
    let search = Search::new();
    let mut files = ten_each(30, 20);
    files.insert(format!("{TEST_LABELS}.gz"), gz(&idx(&[20], &[1; 19])));
    write_files(&search.folder("system/fashion-mnist"), &files);
    assert_error!(search.auto(&nowhere()), DataError::Truncated { .. }, ["system/fashion-mnist", TEST_LABELS]);
}

#[test]
fn fashion_mnist_is_not_for_every_model() {
    let places = Search::new().places;
    let alexnet = Wanted { seed: 1, ..Wanted::plain(Shape { channels: 3, height: 227, width: 227 }, 1000) };
    let words = ["1x28x28", "10 classes", "3x227x227", "1000", "--data DIR", "--data synthetic"];
    for source in [DataSource::Auto, DataSource::Bundled] {
        assert_error!(load(&source, &alexnet, &places, &Reading::default()), DataError::NotForThisModel { .. }, words);
    }
}

/// This machine's own places follow its environment, whatever that is.
#[test]
fn places_of_this_machine_are_absolute_or_local() {
    let places = Places::of_this_machine(true);
    assert!(places.offline);
    assert!(places.cache_dir.is_none_or(|dir| dir.is_absolute()));
    assert_eq!(places.working_dir, Path::new("."));
}

/// The formula of docs/NUMERICS.md, spelled out for a single byte.
#[test]
fn synthetic_images_follow_the_formula() {
    let wanted = Wanted { seed: 11, ..Wanted::plain(Shape { channels: 3, height: 5, width: 7 }, 4) };
    let data = load(&DataSource::Synthetic, &wanted, &Search::new().places, &Reading::default()).unwrap();
    assert_eq!((data.train.len(), data.test.len()), (2048, 512));
    for (split, purpose) in [(&data.train, "synthetic:train"), (&data.test, "synthetic:test")] {
        let index = 13 * 105 + 50;
        let word = convoy_common::random::words(11, purpose, index as u64 / 4)[index % 4];
        assert_eq!(split.image(13, View::Centre).unwrap()[50], (word & 0xff) as u8);
        assert_eq!((split.label(13), split.label(16)), (1, 0));
    }
    let other = synthetic::make(&Wanted { seed: 12, ..wanted.clone() }).unwrap();
    assert_ne!(other.fingerprint, data.fingerprint);
    assert_eq!(synthetic::make(&wanted).unwrap().fingerprint, data.fingerprint);
}

#[test]
fn big_synthetic_images_are_fewer() {
    let cases = [(784, Some(512)), (99_999, Some(512)), (100_000, Some(256)), (154_587, Some(256))];
    let bigger = [(1 << 20, Some(64)), ((512 << 20) / 5, Some(1)), ((512 << 20) / 5 + 1, None)];
    for (image_bytes, test) in cases.into_iter().chain(bigger) {
        let counts = synthetic::counts(image_bytes);
        assert_eq!(counts, test.map(|test| synthetic::Counts { train: 4 * test, test }), "{image_bytes}");
    }
    let vast = Wanted { height: usize::MAX, ..small_wanted() };
    assert_error!(synthetic::make(&vast), DataError::SyntheticSize { .. }, ["18446744073709551615", "107374182"]);
    let many = Wanted { classes: 65_537, ..small_wanted() };
    assert_error!(synthetic::make(&many), DataError::SyntheticClasses { .. }, ["65537", "65536"]);
}

/// Serves `files` over HTTP until the test's process ends; anything else is a 404. Never answers with more than asked.
fn serve(files: BTreeMap<String, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let path = String::from_utf8(request).unwrap().split(' ').nth(1).unwrap().to_owned();
            let (status, body) = match files.get(path.trim_start_matches('/')) {
                Some(body) => ("200 OK", body.as_slice()),
                None => ("404 Not Found", &[][..]),
            };
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            // The client hangs up on a body that is too long.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    url_of(address)
}

fn url_of(address: SocketAddr) -> String {
    format!("http://{address}/")
}

/// An address at which nobody listens: the port of a service that no longer exists.
fn closed() -> String {
    url_of(([127, 0, 0, 1], 1).into())
}

fn remote(mirrors: [String; 2], files: Vec<RemoteFile>) -> Remote {
    Remote { agent: ureq::Agent::new_with_config(download::agent_config().proxy(None).build()), mirrors, files }
}

fn nowhere() -> Remote {
    remote([closed(), closed()], vec![file_a()])
}

fn file_a() -> RemoteFile {
    RemoteFile { name: "a", bytes: 5, md5: md5_hex(b"hello") }
}

fn file_b() -> RemoteFile {
    RemoteFile { name: "b", bytes: 3, md5: md5_hex(b"you") }
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The first mirror lacks one file and has the other damaged; the second is right about both.
#[test]
fn download_goes_on_to_the_next_mirror() {
    let good = || serve(BTreeMap::from([("a".into(), b"hello".to_vec()), ("b".into(), b"you".to_vec())]));
    let damaged = serve(BTreeMap::from([("a".into(), b"hullo".to_vec())]));
    let lacking = serve(BTreeMap::new());
    for first in [damaged, lacking, closed(), good()] {
        let cache = TempDir::new().unwrap();
        let folder = cache.path().join("deep/er");
        download::fetch_missing(&folder, &remote([first, good()], vec![file_a(), file_b()])).unwrap();
        assert_eq!(names_in(&folder), ["a", "b"]);
        assert_eq!(fs::read(folder.join("a")).unwrap(), b"hello");
    }
}

/// What is wrong never appears under the file's name, and leaves no part behind; what was there isn't fetched again.
#[test]
fn failed_download_leaves_nothing_half_done() {
    let cases = [(b"hullo".to_vec(), "MD5"), (b"hello, and on and on".to_vec(), "body"), (b"hell".to_vec(), "MD5")];
    for (body, word) in cases {
        let cache = TempDir::new().unwrap();
        fs::write(cache.path().join("b"), "mine").unwrap();
        let mirror = serve(BTreeMap::from([("a".into(), body)]));
        let remote = remote([closed(), mirror], vec![file_b(), file_a()]);
        let error = download::fetch_missing(cache.path(), &remote).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(names_in(cache.path()), ["b"]);
        assert_eq!(fs::read(cache.path().join("b")).unwrap(), b"mine");
    }
}

/// Four files of the right dimensions, known by their own checksums: `Auto` ends with them in the cache.
#[test]
fn auto_downloads_into_the_cache() {
    let files = whole_files();
    let known = files.iter().map(|(name, bytes)| RemoteFile {
        name: name.clone().leak(),
        bytes: bytes.len() as u64,
        md5: md5_hex(bytes),
    });
    let known: Vec<RemoteFile> = known.collect();
    let names: Vec<&str> = known.iter().map(|file| file.name).collect();
    let mut search = Search::new();
    search.places.offline = false;
    let data = search.auto(&remote([serve(files), closed()], known)).unwrap();
    assert_eq!((data.train.len(), data.train.image(0, View::Centre).unwrap()[0]), (60_000, 77));
    assert!(data.origin.contains("cache/convoy/fashion-mnist"), "{}", data.origin);
    assert_eq!(names_in(&search.folder("cache/convoy/fashion-mnist")), names);
}

/// Test images alone cost the download of test images alone.
#[test]
fn auto_downloads_no_training_images_for_test_images() {
    let files = ten_each(60_000, 10_000);
    let known = files.iter().map(|(name, bytes)| RemoteFile {
        name: name.clone().leak(),
        bytes: bytes.len() as u64,
        md5: md5_hex(bytes),
    });
    let remote = remote([serve(files.clone()), closed()], known.collect()).test_files();
    let mut search = Search::new();
    search.places.offline = false;
    let test = fashion::auto_test(&fashion_wanted(), &search.places, &remote).unwrap();
    assert_eq!(test.images.len(), 10_000);
    let names = [TEST_IMAGES, TEST_LABELS].map(|name| format!("{name}.gz"));
    assert_eq!(names_in(&search.folder("cache/convoy/fashion-mnist")), names);
}

#[test]
fn auto_says_why_the_download_failed() {
    let mut search = Search::new();
    search.places.offline = false;
    let [notice] = search.auto(&nowhere()).unwrap().notices.try_into().unwrap();
    assert!(notice.contains("cannot download http://127.0.0.1") && !notice.contains('\n'), "{notice}");
    search.places.cache_dir = None;
    let [notice] = search.auto(&nowhere()).unwrap().notices.try_into().unwrap();
    assert!(notice.contains("no cache directory"), "{notice}");
}

/// Bytes that are likely to get past the header's first checks.
fn almost_idx() -> impl Strategy<Value = Vec<u8>> {
    let dim = prop_oneof![0u32..5, any::<u32>()];
    (prop::collection::vec(dim, 1..5), prop::collection::vec(any::<u8>(), 0..80), 0usize..90, any::<bool>()).prop_map(
        |(dims, payload, length, packed)| {
            let mut bytes = idx(&dims, &payload);
            bytes = if packed { gz(&bytes) } else { bytes };
            bytes.truncate(length);
            bytes
        },
    )
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), almost_idx()]) {
        let file = Path::new("any");
        if let Ok(images) = super::idx::parse_images(&bytes[..], file) {
            prop_assert!(images.is_standard_layout() && !images.is_empty());
        }
        let _ = super::idx::parse_labels(&bytes[..], file);
    }

    #[test]
    fn images_and_labels_come_back(
        dims in (1usize..4, 1usize..4, 1usize..4, 1usize..4),
        bytes in prop::collection::vec(any::<u8>(), 81),
        packed in any::<bool>(),
    ) {
        let (count, channels, height, width) = dims;
        let payload = &bytes[..count * channels * height * width];
        let header: Vec<u32> = [count, channels, height, width].map(|dim| dim as u32).to_vec();
        let pack = |bytes: Vec<u8>| if packed { gz(&bytes) } else { bytes };
        let file = Path::new("any");
        let images = super::idx::parse_images(&pack(idx(&header, payload))[..], file).unwrap();
        prop_assert_eq!(images.dim(), dims);
        prop_assert_eq!(images.as_slice().unwrap(), payload);
        let labels = super::idx::parse_labels(&pack(idx(&[81], &bytes))[..], file).unwrap();
        prop_assert!(labels.iter().zip(&bytes).all(|(&label, &byte)| label == i32::from(byte)));
    }
}
