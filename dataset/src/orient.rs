//! Which way up a camera held an image, as its EXIF data say, and turning the pixels accordingly.
//!
//! Not here: whether that is wanted (the model's input).

use std::io::Cursor;

use exif::{In, Reader, Tag};

use crate::pixels::Pixels;

/// The value of EXIF's Orientation in a file: 1 to 8. Files without it, and those whose EXIF data can't be read, are stored upright: 1.
pub(crate) fn orientation(file: &[u8]) -> u8 {
    let mut reader = Reader::new();
    // What cameras and editors add beside it is often damaged.
    reader.continue_on_error(true);
    let read = reader.read_from_container(&mut Cursor::new(file));
    let read = read.or_else(|error| error.distill_partial_result(|_| {})).ok();
    let value = read.and_then(|exif| exif.get_field(Tag::Orientation, In::PRIMARY)?.value.get_uint(0));
    value.and_then(|value| u8::try_from(value).ok()).filter(|value| (1..=8).contains(value)).unwrap_or(1)
}

/// An image turned upright: for each orientation, where the pixel of a row and a column is stored.
pub(crate) fn upright(pixels: Pixels, orientation: u8) -> Pixels {
    let (width, height) = (pixels.width(), pixels.height());
    let (right, bottom) = (width - 1, height - 1);
    let stored = |row: usize, column: usize| match orientation {
        2 => (row, right - column),
        3 => (bottom - row, right - column),
        4 => (bottom - row, column),
        5 => (column, row),
        6 => (bottom - column, row),
        7 => (bottom - column, right - row),
        8 => (column, right - row),
        _ => (row, column),
    };
    match orientation {
        2..=4 => pixels.moved(width, height, stored),
        5..=8 => pixels.moved(height, width, stored),
        _ => pixels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TIFF header with one entry, in the EXIF part of an otherwise empty JPEG.
    fn with_orientation(value: u8) -> Vec<u8> {
        let tiff = [b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[value, 0, 0, 0, 0, 0, 0]].concat();
        let length = (2 + 6 + tiff.len()) as u16;
        [&[0xff, 0xd8, 0xff, 0xe1][..], &length.to_be_bytes(), b"Exif\0\0", &tiff, &[0xff, 0xd9]].concat()
    }

    #[test]
    fn the_orientation_is_read_and_what_is_no_orientation_is_upright() {
        for value in 1..=8 {
            assert_eq!(orientation(&with_orientation(value)), value);
        }
        for upright in [with_orientation(0), with_orientation(9), with_orientation(6)[..20].to_vec(), b"".to_vec()] {
            assert_eq!(orientation(&upright), 1);
        }
    }

    /// The letter F in each of the eight ways in which a camera can store it.
    #[test]
    fn every_orientation_is_turned_upright() {
        let f = [1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 0];
        let stored: [(usize, [u8; 12]); 8] = [
            (3, [1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 0]),
            (3, [1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1]),
            (3, [0, 0, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1]),
            (3, [1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1]),
            (4, [1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0]),
            (4, [1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]),
            (4, [0, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1]),
            (4, [1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1]),
        ];
        for (value, (width, bytes)) in (1..).zip(stored) {
            let pixels = Pixels::new(width, 12 / width, 1, bytes.to_vec()).expect("twelve pixels");
            assert_eq!(Some(upright(pixels, value)), Pixels::new(3, 4, 1, f.to_vec()), "orientation {value}");
        }
    }
}
