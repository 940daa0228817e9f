//! NumPy archives with the keys of MedMNIST: `train_images`, `train_labels`, `test_images` and `test_labels`. Images are bytes, as (image,
//! row, column) or (image, row, column, channel). Without test images, the validation images (`val_images`) are used for tests.
//!
//! Not here: the checks against the model (`folder`).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use ndarray::{Array4, ArrayView4};
use npyz::{DType, NpyFile, Order, TypeChar};
use zip::ZipArchive;

use crate::error::DataError;
use crate::folder::{self, Parsed};
use crate::set::{DataSet, PartSet, Split, Splits, Wanted};

/// The first bytes of an archive.
const MAGIC: &[u8] = b"PK\x03\x04";
/// The largest array.
const ARRAY_BYTES_MAX: u64 = 16 << 30;
/// The longest header of an array. It names a type and at most four extents.
const HEADER_BYTES_MAX: usize = 4096;
/// What an archive must hold.
const NEEDED: &str = "train_images, train_labels, test_images and test_labels, as the files of MedMNIST do";

type Archive = ZipArchive<BufReader<File>>;

/// Whether a file is such an archive, by its first bytes.
pub(super) fn is_here(file: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    file.is_file() && File::open(file).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == MAGIC
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
    Ok(labels.into_iter().max().and_then(|most| usize::try_from(most).ok()).map_or(1, |most| most.saturating_add(1)))
}

fn opened(file: &Path) -> Result<Archive, DataError> {
    let failed = |source| DataError::Read { file: file.to_path_buf(), source };
    let reader = BufReader::new(File::open(file).map_err(failed)?);
    ZipArchive::new(reader).map_err(|error| failed(io::Error::other(error)))
}

fn test_part(archive: &mut Archive, file: &Path, wanted: &Wanted) -> Result<Split, DataError> {
    let has_tests = archive.index_for_name("test_images.npy").is_some();
    part(archive, file, if has_tests { "test" } else { "val" }, wanted)
}

fn part(archive: &mut Archive, file: &Path, name: &str, wanted: &Wanted) -> Result<Split, DataError> {
    let images = images(archive, file, name)?;
    let labels = labels(archive, file, name)?;
    let of = |what: &str| file.join(format!("{name}_{what}"));
    folder::check(Parsed { images, images_file: of("images"), labels, labels_file: of("labels") }, wanted)
}

/// An array of the archive, whose header is known to be short and whose data have the length that it says.
struct Array {
    header: npyz::NpyHeader,
    data: Vec<u8>,
}

fn array(archive: &mut Archive, file: &Path, name: &str) -> Result<Array, DataError> {
    let failed = |source| DataError::Read { file: file.join(name), source };
    let wrong = |found: String, needed| DataError::WrongContent { file: file.join(name), found, needed };
    let entry = format!("{name}.npy");
    if archive.index_for_name(&entry).is_none() {
        let file = file.to_path_buf();
        return Err(DataError::WrongContent { file, found: format!("no array {name}"), needed: NEEDED });
    }
    let entry = archive.by_name(&entry).map_err(|error| failed(io::Error::other(error)))?;
    let mut bytes = Vec::new();
    entry.take(ARRAY_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > ARRAY_BYTES_MAX {
        let claimed = bytes.len() as u128;
        return Err(DataError::TooBig { file: file.join(name), claimed, limit: ARRAY_BYTES_MAX });
    }
    if !has_sane_header(&bytes) {
        return Err(wrong("no array, or one of impossible extents".to_owned(), "a plain NumPy array"));
    }
    let npy = NpyFile::new(&bytes[..]).map_err(failed)?;
    let (header, data) = (npy.header().clone(), npy.into_inner().to_vec());
    let DType::Plain(kind) = header.dtype() else {
        return Err(wrong("records".to_owned(), "numbers"));
    };
    let size = kind.size_field();
    let expected = header.shape().iter().try_fold(size, |bytes, extent| bytes.checked_mul(*extent));
    match expected {
        Some(expected) if expected == data.len() as u64 && header.order() == Order::C => Ok(Array { header, data }),
        Some(_) if header.order() == Order::Fortran => {
            Err(wrong("an array in Fortran's order".to_owned(), "C's order"))
        }
        _ => {
            let (found, expected) = (data.len() as u64, expected.unwrap_or(u64::MAX));
            Err(DataError::Truncated { file: file.join(name), found, expected })
        }
    }
}

/// Whether an array's header is short, and the product of all numbers in it fits into 64 bits: the reader of headers multiplies its extents.
fn has_sane_header(bytes: &[u8]) -> bool {
    let (start, length) = match bytes {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, low, high, ..] => (10, u32::from_le_bytes([*low, *high, 0, 0])),
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b, c, d, ..] => (12, u32::from_le_bytes([*a, *b, *c, *d])),
        _ => return false,
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > HEADER_BYTES_MAX || bytes.len() - start < length {
        return false;
    }
    let header = String::from_utf8_lossy(&bytes[start..start + length]);
    let mut numbers = header.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.try_fold(1u64, |product, digits| product.checked_mul(digits.parse::<u64>().ok()?.max(1))).is_some()
}

/// The images of a part: (image, channel, row, column).
fn images(archive: &mut Archive, file: &Path, part: &str) -> Result<Array4<u8>, DataError> {
    let name = format!("{part}_images");
    let Array { header, data } = array(archive, file, &name)?;
    let wrong = |found| DataError::WrongContent {
        file: file.join(&name),
        found,
        needed: "bytes (uint8) of (image, row, column) or (image, row, column, channel), and at least one image",
    };
    let described = || wrong(format!("{} of shape {:?}", header.dtype().descr(), header.shape()));
    let is_bytes =
        matches!(header.dtype(), DType::Plain(kind) if (kind.type_char(), kind.size_field()) == (TypeChar::Uint, 1));
    let extents: Option<Vec<usize>> = header.shape().iter().map(|extent| usize::try_from(*extent).ok()).collect();
    let extents = match extents.as_deref() {
        Some([count, height, width]) => [*count, *height, *width, 1],
        Some([count, height, width, channels]) => [*count, *height, *width, *channels],
        _ => return Err(described()),
    };
    if !is_bytes || extents.contains(&0) {
        return Err(described());
    }
    let pixels = ArrayView4::from_shape(extents, &data).map_err(|_| described())?;
    Ok(pixels.permuted_axes([0, 3, 1, 2]).as_standard_layout().into_owned())
}

/// The labels of a part.
fn labels(archive: &mut Archive, file: &Path, part: &str) -> Result<Vec<i32>, DataError> {
    let name = format!("{part}_labels");
    let Array { header, data } = array(archive, file, &name)?;
    let wrong = || DataError::WrongContent {
        file: file.join(&name),
        found: format!("{} of shape {:?}", header.dtype().descr(), header.shape()),
        needed: "whole numbers, one for each image",
    };
    let DType::Plain(kind) = header.dtype() else { return Err(wrong()) };
    let npy = NpyFile::with_header(header.clone(), &data[..]);
    let found = match (kind.type_char(), kind.size_field()) {
        _ if !matches!(header.shape(), [_] | [_, 1]) => return Err(wrong()),
        (TypeChar::Uint, 1) => whole(npy.into_vec::<u8>()),
        (TypeChar::Uint, 2) => whole(npy.into_vec::<u16>()),
        (TypeChar::Uint, 4) => whole(npy.into_vec::<u32>()),
        (TypeChar::Uint, 8) => whole(npy.into_vec::<u64>()),
        (TypeChar::Int, 1) => whole(npy.into_vec::<i8>()),
        (TypeChar::Int, 2) => whole(npy.into_vec::<i16>()),
        (TypeChar::Int, 4) => whole(npy.into_vec::<i32>()),
        (TypeChar::Int, 8) => whole(npy.into_vec::<i64>()),
        _ => return Err(wrong()),
    };
    found.map_err(|source| DataError::Read { file: file.join(&name), source })
}

/// Labels of any type. One that is too large for a class becomes the largest number, which is no class either.
fn whole<T: TryInto<i32>>(labels: io::Result<Vec<T>>) -> io::Result<Vec<i32>> {
    Ok(labels?.into_iter().map(|label| label.try_into().unwrap_or(i32::MAX)).collect())
}

#[cfg(test)]
mod tests {
    use convoy_common::model::Transforms;
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    /// Made by NumPy (`golden/make.py`).
    const COLOUR: &[u8] = include_bytes!("../golden/colour.npz");
    const GREY: &[u8] = include_bytes!("../golden/grey.npz");
    const WRONG: &[u8] = include_bytes!("../golden/wrong.npz");

    fn wanted(channels: usize, classes: usize) -> Wanted {
        Wanted { channels, height: 4, width: 5, transforms: Transforms::default(), classes, seed: 1 }
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
                let bytes = set.train.image(image, None).unwrap();
                for (index, byte) in bytes.iter().enumerate() {
                    assert_eq!(
                        *byte,
                        value(image, index / 20, index / 5 % 4, index % 5),
                        "image {image}, byte {index}"
                    );
                }
            }
            assert_eq!(set.test.image(0, None).unwrap(), set.train.image(5, None).unwrap());
            let tests = load_test(file, &wanted(3, 3)).unwrap();
            assert_eq!(tests.images.fingerprint(), set.test.fingerprint());
        });
        // Grey, of big-endian labels of eight bytes, with validation images instead of test images.
        with(GREY, |file| {
            let set = load(file, &wanted(1, 3)).unwrap();
            assert_eq!((set.train.labels(), set.test.labels()), (&[0, 2, 1, 2, 0, 1][..], &[2, 0][..]));
            assert_eq!(set.test.image(1, None).unwrap(), set.train.image(4, None).unwrap());
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
                "any.npz/train_images holds an array in Fortran's order; it must hold C's order",
            ),
            (refused(COLOUR, wanted(1, 3)), "any.npz/train_images are 3x4x5"),
            (refused(COLOUR, wanted(3, 2)), "label 2"),
            (refused(&COLOUR[..COLOUR.len() - 9], wanted(3, 3)), "cannot read"),
        ] {
            assert!(error.contains(expected), "{error}");
        }
        with(WRONG, |file| {
            let mut archive = opened(file).unwrap();
            let error = images(&mut archive, file, "test").unwrap_err().to_string();
            assert!(error.contains("holds '<f4' of shape [6, 4, 5]; it must hold bytes (uint8)"), "{error}");
            let error = labels(&mut archive, file, "test").unwrap_err().to_string();
            assert!(error.contains("of shape [6, 2]; it must hold whole numbers, one for each image"), "{error}");
            let error = labels(&mut archive, file, "val").unwrap_err().to_string();
            assert!(error.contains("no array val_labels; it must hold train_images"), "{error}");
        });
    }

    /// A header that claims this shape, and no data.
    fn header(shape: &str) -> Vec<u8> {
        let text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
        let length = u16::try_from(text.len()).unwrap().to_le_bytes();
        [b"\x93NUMPY\x01\x00", &length[..], text.as_bytes()].concat()
    }

    #[test]
    fn claims_allocate_nothing() {
        use std::io::Write;
        for shape in ["(99999999999, 99999999999, 4)", "(18446744073709551615, 1, 1)", "(1, 1, 1)", "(", "(-1,)", "'x'"]
        {
            let mut bytes = std::io::Cursor::new(Vec::new());
            let mut writer = zip::ZipWriter::new(&mut bytes);
            writer.start_file("train_images.npy", zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(&header(shape)).unwrap();
            writer.finish().unwrap();
            assert!(with(bytes.get_ref(), |file| load(file, &wanted(1, 3))).is_err(), "{shape}");
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
