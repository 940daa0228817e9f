//! Files of images as pixels: JPEG and PNG, told apart by their first bytes and never by their names.
//!
//! The decoders use integers alone, so a file has the same pixels on every machine. A file from a stranger can't make the program
//! panic, and can't make it allocate more than its number of pixels allows. Not here: scaling (`picture`) and cropping (`view`).

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;

use convoy_common::model::Orient;
use convoy_common::text::printable;
use png::Transformations;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::guard::guarded;
use crate::orient::{orientation, upright};
use crate::pixels::Pixels;

/// What decides the pixels of a file. Newer versions may give others.
pub(crate) const DECODERS: &str = "zune-jpeg 0.5.15, png 0.18.1, fast_image_resize 6.1.0";
/// The most pixels of an image: 8,192 x 8,192.
pub(crate) const PIXELS_MAX: usize = 1 << 26;
/// The longest side that JPEG can describe.
const SIDE_MAX: usize = 65_535;
/// The largest file.
const FILE_BYTES_MAX: u64 = 256 << 20;

const JPEG_MAGIC: &[u8] = &[0xff, 0xd8, 0xff];
const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Other formats that people have, by their first bytes.
const FOREIGN: [(&[u8], &str); 5] =
    [(b"GIF8", "GIF"), (b"BM", "BMP"), (b"RIFF", "a RIFF file, such as WebP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF")];

/// Why a file can't be used as an image.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub(crate) enum BadImage {
    /// The operating system refused.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is no file, but a folder, a pipe or a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// It has no bytes.
    #[error("it is empty")]
    Empty,
    /// It is longer than any image.
    #[error("it has {bytes} bytes; the most is {FILE_BYTES_MAX}")]
    LargeFile { bytes: u64 },
    /// Its first bytes are not those of an image.
    #[error("it is neither JPEG nor PNG: it starts with {}", described(start))]
    NotAnImage { start: Vec<u8> },
    /// It is an image in a format that is not read.
    #[error("it is {format}; only JPEG and PNG are read, so convert it")]
    Foreign { format: &'static str },
    /// Decoding would take too much memory.
    #[error("it has {width} x {height} pixels; the most is {PIXELS_MAX} in all")]
    TooLarge { width: usize, height: usize },
    /// Its shape is so far from the model's that scaling would take too much memory.
    #[error(
        "it is too long: scaled for the model, it has {width} x {height} pixels; one side may be at most 16 times the other"
    )]
    TooLong { width: usize, height: usize },
    /// Scaling it for the model would take too much memory.
    #[error(
        "scaled for the model, it has {width} x {height} pixels; the most is {PIXELS_MAX} in all, so set the input's `resize` to less"
    )]
    TooLargeScaled { width: usize, height: usize },
    /// Its pixels have a number of components that means nothing.
    #[error("its pixels have {components} components; they must have 1, 3 or 4")]
    Components { components: usize },
    /// The decoder refused it.
    #[error("it is a damaged {format}: {why}")]
    Damaged { format: &'static str, why: String },
}

/// The bytes of a file.
///
/// # Errors
/// When it can't be read, or is longer than any image.
pub(crate) fn bytes_of(file: &Path) -> Result<Vec<u8>, BadImage> {
    // Opening a pipe would wait for a writer.
    let metadata = std::fs::metadata(file).map_err(BadImage::Read)?;
    if !metadata.is_file() {
        return Err(BadImage::NotAFile);
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(BadImage::LargeFile { bytes: metadata.len() });
    }
    bytes_from(File::open(file).map_err(BadImage::Read)?)
}

/// All bytes up to the end of `source`, or a few more than a file may have.
///
/// # Errors
/// When it can't be read.
pub(crate) fn bytes_from(source: impl Read) -> Result<Vec<u8>, BadImage> {
    let mut bytes = Vec::new();
    source.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(BadImage::Read)?;
    Ok(bytes)
}

/// Decodes the bytes of a file, and turns the image as `orient` says.
///
/// # Errors
/// Says what is wrong with them.
pub(crate) fn decode(bytes: &[u8], orient: Orient) -> Result<Pixels, BadImage> {
    let length = bytes.len() as u64;
    match bytes {
        [] => Err(BadImage::Empty),
        _ if length > FILE_BYTES_MAX => Err(BadImage::LargeFile { bytes: length }),
        _ if bytes.starts_with(JPEG_MAGIC) => read("JPEG", || Ok(turned(jpeg(bytes)?, bytes, orient))),
        _ if bytes.starts_with(PNG_MAGIC) => read("PNG", || Ok(turned(png(bytes)?, bytes, orient))),
        _ => {
            let foreign = FOREIGN.iter().find(|(magic, _)| bytes.starts_with(magic));
            Err(foreign.map_or_else(
                || BadImage::NotAnImage { start: bytes[..bytes.len().min(8)].to_vec() },
                |(_, format)| BadImage::Foreign { format },
            ))
        }
    }
}

fn read(format: &'static str, decode: impl FnOnce() -> Result<Pixels, BadImage>) -> Result<Pixels, BadImage> {
    // A panic leaves nothing behind: the decoder and its buffers are dropped.
    guarded(decode).unwrap_or_else(|| Err(BadImage::Damaged { format, why: "its decoder failed".to_owned() }))
}

fn turned(pixels: Pixels, file: &[u8], orient: Orient) -> Pixels {
    match orient {
        Orient::Stored => pixels,
        Orient::Exif => upright(pixels, orientation(file)),
    }
}

fn jpeg(bytes: &[u8]) -> Result<Pixels, BadImage> {
    let refused = |error: zune_jpeg::errors::DecodeErrors| damaged("JPEG", &error);
    if !has_end(bytes) {
        return Err(BadImage::Damaged { format: "JPEG", why: "it ends too early".to_owned() });
    }
    // Without strictness, what is missing of a truncated image becomes grey.
    let options = DecoderOptions::default().set_strict_mode(true).set_max_width(SIDE_MAX).set_max_height(SIDE_MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(refused)?;
    let info =
        decoder.info().ok_or_else(|| BadImage::Damaged { format: "JPEG", why: "it has no header".to_owned() })?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    check_size(width, height)?;
    let (channels, colours) = match info.components {
        1 => (1, ColorSpace::Luma),
        3 | 4 => (3, ColorSpace::RGB),
        components => return Err(BadImage::Components { components: usize::from(components) }),
    };
    let options = decoder.options().jpeg_set_out_colorspace(colours);
    decoder.set_options(options);
    let bytes = decoder.decode().map_err(refused)?;
    whole("JPEG", Pixels::new(width, height, channels, bytes))
}

/// Whether the image has an end, after its last scan. The decoder fills in what is missing of the last few pixels. What cameras append, such as
/// a film, is not looked at.
fn has_end(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    loop {
        // In the data of a scan, a byte of ones is followed by a zero or by a restart. More of them may precede a marker.
        let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff);
        let Some(at) = rest.windows(2).position(is_marker) else { return false };
        let (marker, after) = (rest[at + 1], &rest[at + 2..]);
        rest = match (marker, after) {
            (0xd9, _) => return true,
            (0x01 | 0xd8, _) => after,
            (_, [high, low, ..]) => after.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default(),
            _ => return false,
        };
    }
}

fn png(bytes: &[u8]) -> Result<Pixels, BadImage> {
    let refused = |error: png::DecodingError| damaged("PNG", &error);
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    // Palettes become colours, and 16 bits become 8.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(refused)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    check_size(width, height)?;
    let size = reader.output_buffer_size().ok_or(BadImage::TooLarge { width, height })?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(refused)?;
    bytes.truncate(frame.buffer_size());
    let (stored, channels) = match frame.color_type {
        png::ColorType::Grayscale => (1, 1),
        png::ColorType::GrayscaleAlpha => (2, 1),
        png::ColorType::Rgb => (3, 3),
        png::ColorType::Rgba => (4, 3),
        png::ColorType::Indexed => {
            return Err(BadImage::Damaged { format: "PNG", why: "its palette could not be applied".to_owned() });
        }
    };
    if stored != channels {
        // Transparency is dropped, as Pillow's convert("RGB") does.
        bytes = bytes.chunks_exact(stored).flat_map(|pixel| &pixel[..channels]).copied().collect();
    }
    whole("PNG", Pixels::new(width, height, channels, bytes))
}

/// What a decoder says can have several lines.
fn damaged(format: &'static str, why: &dyn std::error::Error) -> BadImage {
    BadImage::Damaged { format, why: printable(why.to_string().trim()) }
}

fn check_size(width: usize, height: usize) -> Result<(), BadImage> {
    match width.checked_mul(height) {
        Some(pixels) if pixels <= PIXELS_MAX => Ok(()),
        _ => Err(BadImage::TooLarge { width, height }),
    }
}

/// A decoder must give as many bytes as its header announces.
fn whole(format: &'static str, pixels: Option<Pixels>) -> Result<Pixels, BadImage> {
    pixels.ok_or_else(|| BadImage::Damaged {
        format,
        why: "it has no pixels, or another number than its header says".to_owned(),
    })
}

/// A file's first bytes for a person: as text where they are text.
pub(crate) fn described(start: &[u8]) -> String {
    match std::str::from_utf8(start) {
        Ok(text) if text.chars().all(|character| character.is_ascii_graphic() || character == ' ') => {
            format!("\"{text}\"")
        }
        _ => format!("the bytes {}", start.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::parameters::hex;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    fn decoded(bytes: &[u8]) -> Result<Pixels, BadImage> {
        decode(bytes, Orient::Stored)
    }

    /// A PNG of these pixels.
    pub(crate) fn png_of(width: u32, height: u32, colour: png::ColorType, bytes: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(colour);
        encoder.write_header().unwrap().write_image_data(bytes).unwrap();
        file
    }

    /// A grey JPEG of 8 x 8 pixels, made by Pillow 12: `Image.new("L", (8, 8), 200).save(f, quality=50)`.
    const GREY: &[u8] = include_bytes!("../golden/grey.jpg");
    /// A colour JPEG of 40 x 24 pixels with chroma of half the size, from the same program.
    const COLOUR: &[u8] = include_bytes!("../golden/colour.jpg");
    /// The same image of an odd size, progressive and with chroma of half the width.
    const PROGRESSIVE: &[u8] = include_bytes!("../golden/progressive.jpg");

    #[test]
    fn a_png_has_the_pixels_that_were_written_without_its_transparency() {
        let rgba: Vec<u8> = (0..2 * 3 * 4).collect();
        let pixels = decoded(&png_of(2, 3, png::ColorType::Rgba, &rgba)).unwrap();
        let rgb: Vec<u8> = rgba.chunks(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
        assert_eq!(Some(pixels), Pixels::new(2, 3, 3, rgb));
        let grey = decoded(&png_of(3, 1, png::ColorType::Grayscale, &[7, 8, 9])).unwrap();
        assert_eq!(Some(grey), Pixels::new(3, 1, 1, vec![7, 8, 9]));
    }

    #[test]
    fn a_jpeg_is_decoded_to_the_bytes_of_pillow_within_three_levels() {
        let grey = decoded(GREY).unwrap();
        assert_eq!((grey.width(), grey.height(), grey.channels()), (8, 8, 1));
        assert!(grey.bytes().iter().all(|byte| (199..=201).contains(byte)), "{:?}", grey.bytes());
        let colour = decoded(COLOUR).unwrap();
        let expected = include_bytes!("../golden/colour.rgb");
        assert_eq!((colour.width(), colour.height(), colour.bytes().len()), (40, 24, expected.len()));
        // Decoders round the inverse transform and the enlarged chroma differently. A level of chroma is almost two of blue.
        let largest = colour.bytes().iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(largest <= 3, "differs by {largest} levels");
    }

    /// These are the pixels on AVX2. The gate runs this on Arm, too, where the decoder has other vector instructions.
    #[test]
    fn a_jpeg_has_the_same_pixels_on_every_machine() {
        let hash = |file| hex(&Sha256::digest(decoded(file).unwrap().bytes()));
        assert_eq!(hash(COLOUR), "121b3dbbe6d8f23aed606c007637bfd808dcb8f1a82381d1bead6f7dc50d0fc3");
        assert_eq!(hash(PROGRESSIVE), "04cbdb0f6ca87951a165fc6e5c18b0ef161089abd233ad0c44fee335038d340e");
    }

    #[test]
    fn a_jpeg_without_its_last_bytes_is_damaged() {
        for missing in [1, 2, 3, 10, 100] {
            let said = decoded(&COLOUR[..COLOUR.len() - missing]).unwrap_err().to_string();
            assert!(said.contains("it is a damaged JPEG"), "{missing}: {said}");
        }
        // What editors append is no harm.
        for appended in [&b"appended"[..], b"\xff\xda", b"\xff\xd9\xff\xda", COLOUR] {
            assert_eq!(decoded(&[COLOUR, appended].concat()).unwrap(), decoded(COLOUR).unwrap(), "{appended:?}");
        }
        // A picture in the picture, as cameras write it, has an end of its own.
        let length = (COLOUR.len() as u16 + 2).to_be_bytes();
        let inner = [&COLOUR[..2], &[0xff, 0xe5], &length, COLOUR, &COLOUR[2..COLOUR.len() - 2]].concat();
        let said = decoded(&inner).unwrap_err().to_string();
        assert!(said.contains("it ends too early"), "{said}");
        assert!(decoded(&[&inner, &[0xff, 0xd9][..]].concat()).is_ok());
    }

    #[test]
    fn what_is_no_image_is_named_for_what_it_is() {
        let cases: [(&[u8], &str); 5] = [
            (b"", "it is empty"),
            (b"hello", "it starts with \"hello\""),
            (b"GIF89a", "it is GIF"),
            (&GREY[..GREY.len() / 2], "it is a damaged JPEG"),
            (&png_of(2, 2, png::ColorType::Grayscale, &[1, 2, 3, 4])[..40], "it is a damaged PNG"),
        ];
        for (bytes, expected) in cases {
            let said = decoded(bytes).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }

    /// A header can claim any size in a few bytes.
    #[test]
    fn a_header_that_claims_too_many_pixels_is_refused_before_they_are_allocated() {
        let mut png = png_of(1, 1, png::ColorType::Rgb, &[1, 2, 3]);
        png[16..24].copy_from_slice(&[0, 0, 0x4e, 0x20, 0, 0, 0x4e, 0x20]);
        let mut crc = flate2::Crc::new();
        crc.update(&png[12..29]);
        png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let said = decoded(&png).unwrap_err().to_string();
        assert_eq!(said, "it has 20000 x 20000 pixels; the most is 67108864 in all");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Bytes that are changed anywhere give pixels or an error, and never a panic.
        #[test]
        fn damaged_files_give_pixels_or_an_error(
            which in 0usize..3, places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(), is_cut in any::<bool>(),
        ) {
            let mut bytes = match which {
                0 => GREY.to_vec(),
                1 => COLOUR.to_vec(),
                _ => png_of(9, 5, png::ColorType::Rgb, &[77; 9 * 5 * 3]),
            };
            for (place, value) in places {
                let length = bytes.len();
                bytes[place.index(length)] = value;
            }
            if is_cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(pixels) = decode(&bytes, Orient::Exif) {
                prop_assert_eq!(pixels.bytes().len(), pixels.width() * pixels.height() * pixels.channels());
            }
        }
    }
}
