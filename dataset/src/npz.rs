//! NumPy archives with the keys of MedMNIST: `train_images`, `train_labels`, `test_images` and `test_labels`. Images are bytes, as (image,
//! row, column) or (image, row, column, channel). Without test images, the validation images (`val_images`) are used for tests.
//!
//! Not here: the checks against the model (`folder`).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use convoy_common::model::Shape;
use convoy_common::text::printable;
use ndarray::Array4;
use zip::ZipArchive;

use crate::error::{DataError, excerpt};
use crate::folder::{self, Parsed};
use crate::npy::{Header, Kind, PREAMBLE};
use crate::scale::in_planes;
use crate::set::{DataSet, PartSet, Split, Splits, Wanted};
use crate::start::start_of;

/// The first bytes of an archive.
const MAGIC: &[u8] = b"PK\x03\x04";
/// The largest array.
const ARRAY_BYTES_MAX: u64 = 16 << 30;
/// The most images of an array.
const IMAGES_MAX: usize = 1 << 26;
/// What an archive must hold.
const NEEDED: &str = "train_images, train_labels, and test_images and test_labels (or val_images and val_labels), as the files of MedMNIST do";

type Archive = ZipArchive<BufReader<File>>;

/// Whether a file is such an archive, by its first bytes.
pub(super) fn is_here(file: &Path) -> bool {
    start_of(file, MAGIC.len()).is_ok_and(|start| start == MAGIC)
}

/// Loads both parts.
pub(super) fn load(file: &Path, wanted: &Wanted) -> Result<DataSet, DataError> {
    let mut archive = opened(file)?;
    let train = part(&mut archive, file, "train", wanted)?;
    let test = test_part(&mut archive, file, wanted)?;
    let notices = folder::missing_classes(&train, wanted.classes).into_iter().collect();
    Ok(DataSet::new(Splits { train, test }, &format!("NumPy arrays in {}", file.display()), notices))
}

/// Loads the test images alone.
pub(super) fn load_test(file: &Path, wanted: &Wanted) -> Result<PartSet, DataError> {
    let test = test_part(&mut opened(file)?, file, wanted)?;
    Ok(PartSet::new(test, &format!("NumPy arrays in {}", file.display()), Vec::new()))
}

/// The number of classes: one more than the largest training label.
pub(super) fn class_count(file: &Path) -> Result<usize, DataError> {
    let labels = labels(&mut opened(file)?, file, "train")?;
    let is_wrong = |label: &i32| u16::try_from(*label).ok().is_none_or(|label| label == u16::MAX);
    if let Some(index) = labels.iter().position(is_wrong) {
        let (file, label, classes) = (file.join("train_labels"), labels[index], usize::from(u16::MAX));
        return Err(DataError::LabelOutOfRange { file, index, label, classes });
    }
    Ok(labels.into_iter().max().map_or(0, |most| most as usize + 1))
}

fn opened(file: &Path) -> Result<Archive, DataError> {
    let failed = |source| DataError::Read { file: file.to_path_buf(), source };
    let reader = BufReader::new(File::open(file).map_err(failed)?);
    ZipArchive::new(reader).map_err(|error| failed(io::Error::other(printable(&error.to_string()))))
}

fn test_part(archive: &mut Archive, file: &Path, wanted: &Wanted) -> Result<Split, DataError> {
    let has_tests = archive.index_for_name("test_images.npy").is_some();
    part(archive, file, if has_tests { "test" } else { "val" }, &wanted.without_draws())
}

fn part(archive: &mut Archive, file: &Path, name: &str, wanted: &Wanted) -> Result<Split, DataError> {
    let images = images(archive, file, name, wanted)?;
    let labels = labels(archive, file, name)?;
    let of = |what: &str| file.join(format!("{name}_{what}"));
    folder::check(Parsed { images, images_file: of("images"), labels, labels_file: of("labels") }, wanted)
}

/// Reads the header of an array, and then its data if it `is_expected` and passes the check. Nothing is allocated for what a header only claims.
///
/// # Errors
/// Says what is wrong with it.
fn array(
    archive: &mut Archive,
    file: &Path,
    name: &str,
    (needed, is_expected): (&'static str, impl Fn(&Header) -> bool),
    check: impl Fn(&Header) -> Result<(), DataError>,
) -> Result<(Header, Vec<u8>), DataError> {
    let failed = |source| DataError::Read { file: file.join(name), source };
    let wrong = |found: String| DataError::WrongContent { file: file.join(name), found, needed };
    let entry = format!("{name}.npy");
    if archive.index_for_name(&entry).is_none() {
        let file = file.to_path_buf();
        return Err(DataError::WrongContent { file, found: format!("no array {name}"), needed: NEEDED });
    }
    let mut entry = archive.by_name(&entry).map_err(|error| failed(io::Error::other(error)))?;
    let mut preamble = [0; PREAMBLE];
    entry.read_exact(&mut preamble).map_err(failed)?;
    let length = Header::length(preamble).ok_or_else(|| wrong("no array of NumPy".to_owned()))?;
    let mut text = vec![0; length];
    entry.read_exact(&mut text).map_err(failed)?;
    let text = String::from_utf8_lossy(&text);
    let header = Header::parse(&text).ok_or_else(|| wrong(format!("an array with the header {}", excerpt(&text))))?;
    if !is_expected(&header) {
        return Err(wrong(header.to_string()));
    }
    check(&header)?;
    let expected = header.bytes().filter(|bytes| *bytes <= ARRAY_BYTES_MAX);
    let expected = expected.ok_or_else(|| wrong(format!("{header}, which is too large")))?;
    let mut data = Vec::new();
    entry.take(expected + 1).read_to_end(&mut data).map_err(failed)?;
    match data.len() as u64 {
        found if found == expected => Ok((header, data)),
        found if found < expected => Err(DataError::Truncated { file: file.join(name), found, expected }),
        _ => Err(wrong(format!("{header}, and more bytes than that"))),
    }
}

/// The images of a part: (image, channel, row, column).
fn images(archive: &mut Archive, file: &Path, part: &str, wanted: &Wanted) -> Result<Array4<u8>, DataError> {
    let needed = "bytes (uint8) of (image, row, column) or (image, row, column, channel), and at least one image";
    let is_expected = |header: &Header| {
        let has_extents = matches!(header.shape.len(), 3 | 4) && !header.shape.contains(&0);
        header.kind == (Kind::Whole { bytes: 1, is_signed: false, is_big_endian: false }) && has_extents
    };
    let name = format!("{part}_images");
    // Before the data, which can take a lot of memory.
    let check = |header: &Header| folder::check_shape(&file.join(&name), image_shape(header), wanted);
    let (header, mut data) = array(archive, file, &name, (needed, is_expected), check)?;
    let Shape { channels, height, width } = image_shape(&header);
    if channels > 1 {
        for image in data.chunks_exact_mut(channels * height * width) {
            let planes = in_planes(image.to_vec(), channels);
            image.copy_from_slice(&planes);
        }
    }
    Ok(Array4::from_shape_vec((header.shape[0], channels, height, width), data).expect("the bytes were counted"))
}

/// The extents of the images of an array.
fn image_shape(header: &Header) -> Shape {
    let channels = header.shape.get(3).copied().unwrap_or(1);
    Shape { channels, height: header.shape[1], width: header.shape[2] }
}

/// The labels of a part. One that is too large for a class becomes the largest number, which is no class either.
fn labels(archive: &mut Archive, file: &Path, part: &str) -> Result<Vec<i32>, DataError> {
    let is_expected = |header: &Header| {
        matches!(header.kind, Kind::Whole { .. }) && matches!(header.shape[..], [0..=IMAGES_MAX] | [0..=IMAGES_MAX, 1])
    };
    let needed = "whole numbers, one for each image";
    let name = format!("{part}_labels");
    let (header, data) = array(archive, file, &name, (needed, is_expected), |_| Ok(()))?;
    let numbers = header.kind.numbers(&data);
    Ok(numbers.map(|label| i32::try_from(label).unwrap_or(i32::MAX)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::view::View;

    /// Made by NumPy (`golden/make.py`).
    const COLOUR: &[u8] = include_bytes!("../golden/colour.npz");
    const GREY: &[u8] = include_bytes!("../golden/grey.npz");
    const WRONG: &[u8] = include_bytes!("../golden/wrong.npz");

    fn wanted(channels: usize, classes: usize) -> Wanted {
        Wanted { seed: 1, ..Wanted::plain(Shape { channels, height: 4, width: 5 }, classes) }
    }

    fn with<T>(bytes: &[u8], check: impl FnOnce(&Path) -> T) -> T {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("any.npz");
        std::fs::write(&file, bytes).unwrap();
        check(&file)
    }

    #[test]
    fn images_and_labels_are_those_of_numpy() {
        with(COLOUR, |file| {
            assert!(is_here(file));
            assert_eq!(class_count(file).unwrap(), 3);
            let set = load(file, &wanted(3, 3)).unwrap();
            assert_eq!((set.train.labels(), set.test.labels()), (&[0, 2, 1, 2, 0, 1][..], &[1, 0][..]));
            let value = |image: usize, channel: usize, row: usize, column: usize| {
                ((((image * 4 + row) * 5 + column) * 3 + channel) % 251) as u8
            };
            for image in 0..6 {
                let bytes = set.train.image(image, View::Centre).unwrap();
                for (index, byte) in bytes.iter().enumerate() {
                    assert_eq!(
                        *byte,
                        value(image, index / 20, index / 5 % 4, index % 5),
                        "image {image}, byte {index}"
                    );
                }
            }
            assert_eq!(set.test.image(0, View::Centre).unwrap(), set.train.image(5, View::Centre).unwrap());
            let tests = load_test(file, &wanted(3, 3)).unwrap();
            assert_eq!(tests.images.fingerprint(), set.test.fingerprint());
        });
        // Grey, of big-endian labels of eight bytes, with validation images instead of test images.
        with(GREY, |file| {
            let set = load(file, &wanted(1, 3)).unwrap();
            assert_eq!((set.train.labels(), set.test.labels()), (&[0, 2, 1, 2, 0, 1][..], &[2, 0][..]));
            assert_eq!(set.test.image(1, View::Centre).unwrap(), set.train.image(4, View::Centre).unwrap());
        });
    }

    #[test]
    fn archives_of_other_contents_are_refused_in_words() {
        let refused = |bytes: &[u8], wanted: Wanted| {
            let error = with(bytes, |file| load(file, &wanted)).unwrap_err();
            convoy_common::chain::chain(&error)
        };
        for (error, expected) in [
            (
                refused(WRONG, wanted(1, 3)),
                "any.npz/train_images holds |u1 in Fortran's order of shape (6, 4, 5); it must hold bytes",
            ),
            (refused(COLOUR, wanted(1, 3)), "any.npz/train_images are 3x4x5"),
            (refused(COLOUR, wanted(3, 2)), "label 2"),
            (refused(&COLOUR[..COLOUR.len() - 9], wanted(3, 3)), "cannot read"),
        ] {
            assert!(error.contains(expected), "{error}");
        }
        with(WRONG, |file| {
            let mut archive = opened(file).unwrap();
            let error = images(&mut archive, file, "test", &wanted(1, 3)).unwrap_err().to_string();
            assert!(error.contains("holds <f4 of shape (6, 4, 5); it must hold bytes (uint8)"), "{error}");
            let error = labels(&mut archive, file, "test").unwrap_err().to_string();
            assert!(error.contains("of shape (6, 2); it must hold whole numbers, one for each image"), "{error}");
            let error = labels(&mut archive, file, "val").unwrap_err().to_string();
            assert!(error.contains("no array val_labels; it must hold train_images"), "{error}");
        });
    }

    /// An archive with one array, whose header is this text, and no data.
    fn archive_of(header: &str) -> Vec<u8> {
        use std::io::Write;
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        let mut bytes = std::io::Cursor::new(Vec::new());
        let mut writer = zip::ZipWriter::new(&mut bytes);
        writer.start_file("train_images.npy", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(&[b"\x93NUMPY\x01\x00", &length[..], header.as_bytes()].concat()).unwrap();
        writer.finish().unwrap();
        bytes.into_inner()
    }

    #[test]
    fn claims_allocate_nothing_and_take_no_time() {
        let nested = ["[".repeat(60), "{".repeat(40), "(".repeat(4000)];
        let shapes =
            ["(99999999999, 99999999999, 4)", "(18446744073709551615, 1, 1)", "(1, 1, 1)", "(", "(-1,)", "'x'"];
        let odd = ["(0x7fffffffffffffff, 4, 1)", "(9_999_999_999, 1, 1)", "(4294967296, 4294967296, 1)"];
        for shape in nested.iter().map(String::as_str).chain(shapes).chain(odd) {
            let bytes = archive_of(&format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n"));
            let error = with(&bytes, |file| load(file, &wanted(1, 3))).unwrap_err().to_string();
            assert!(error.contains("train_images"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damaged_archives_never_panic(place in 0..COLOUR.len(), byte in any::<u8>(), end in 0..COLOUR.len()) {
            for mut bytes in [COLOUR.to_vec(), GREY.to_vec()] {
                if let Some(at) = bytes.get_mut(place) {
                    *at = byte;
                }
                bytes.truncate(if end % 3 == 0 { end } else { bytes.len() });
                let _ = with(&bytes, |file| (load(file, &wanted(3, 3)), load(file, &wanted(1, 3)), class_count(file)));
            }
        }
    }
}
