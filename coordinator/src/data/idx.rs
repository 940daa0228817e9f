//! The IDX format of MNIST: a magic number, big-endian dimensions, then bytes, the whole possibly gzipped.
//!
//! Nothing is believed before it has arrived: memory grows with the bytes that were read, not with what a header
//! claims. IDX files of anything but bytes are refused, and so are labels and images that don't fit a model, but the
//! latter in `folder.rs`: here a file is only compared with itself.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use ndarray::Array4;

use super::DataError;

/// Bytes, three dimensions: (image, row, column).
const GREY_IMAGES: u32 = 0x0000_0803;
/// Bytes, four dimensions: (image, channel, row, column).
const COLOUR_IMAGES: u32 = 0x0000_0804;
/// Bytes, one dimension.
const LABELS: u32 = 0x0000_0801;

/// The most that one file may hold after unpacking. A data set lives in memory, so that more is a mistake or a bomb.
const PAYLOAD_BYTES_MAX: u64 = 8 << 30;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Reads a file of images, plain or gzipped, as (image, channel, row, column).
pub(super) fn read_images(file: &Path) -> Result<Array4<u8>, DataError> {
    parse_images(open(file)?, file)
}

/// Reads a file of labels, plain or gzipped.
pub(super) fn read_labels(file: &Path) -> Result<Vec<u16>, DataError> {
    parse_labels(open(file)?, file)
}

/// Parses images from anything that can be read; `file` is what errors call it.
pub(super) fn parse_images(raw: impl Read, file: &Path) -> Result<Array4<u8>, DataError> {
    let (dims, bytes) = parse(raw, file, &[GREY_IMAGES, COLOUR_IMAGES])?;
    let shape = match dims[..] {
        [count, height, width] => (count, 1, height, width),
        [count, channels, height, width] => (count, channels, height, width),
        _ => unreachable!("the magic number allows three or four dimensions, not {dims:?}"),
    };
    Ok(Array4::from_shape_vec(shape, bytes).expect("parse checked the length against the dimensions"))
}

/// Parses labels from anything that can be read; `file` is what errors call it.
pub(super) fn parse_labels(raw: impl Read, file: &Path) -> Result<Vec<u16>, DataError> {
    let (_, bytes) = parse(raw, file, &[LABELS])?;
    Ok(bytes.into_iter().map(u16::from).collect())
}

fn open(file: &Path) -> Result<File, DataError> {
    File::open(file).map_err(|source| DataError::Read { file: file.to_path_buf(), source })
}

/// The dimensions, none of them zero, and exactly as many bytes as they multiply to.
fn parse(raw: impl Read, file: &Path, magics: &'static [u32]) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let mut source = Source::new(raw, file)?;
    let magic = source.words(1)?[0];
    if !magics.contains(&magic) {
        return Err(DataError::WrongMagic { file: file.to_path_buf(), found: magic, expected: magics });
    }
    // The lowest byte of the magic number is how many dimensions follow.
    let dims = source.words(u64::from(magic & 0xff))?;
    let payload = payload_bytes(&dims, file)?;
    let bytes = source.bytes(payload)?;
    source.end()?;
    Ok((dims.into_iter().map(|dim| dim as usize).collect(), bytes))
}

/// What the dimensions multiply to, if a file may hold that. Four of them can't overflow 128 bits.
fn payload_bytes(dims: &[u32], file: &Path) -> Result<u64, DataError> {
    if dims.contains(&0) {
        return Err(DataError::Empty { file: file.to_path_buf(), dims: dims.to_vec() });
    }
    let claimed: u128 = dims.iter().map(|&dim| u128::from(dim)).product();
    u64::try_from(claimed)
        .ok()
        .filter(|&bytes| bytes <= PAYLOAD_BYTES_MAX && usize::try_from(bytes).is_ok())
        .ok_or_else(|| DataError::TooBig { file: file.to_path_buf(), claimed, limit: PAYLOAD_BYTES_MAX })
}

/// A file as it unpacks, and how much of it has been read.
struct Source<'a> {
    reader: Box<dyn Read + 'a>,
    file: &'a Path,
    consumed: u64,
}

impl<'a> Source<'a> {
    /// Looks at the first bytes, not at the name, to see whether the file is gzipped: browsers unpack downloads
    /// without renaming them.
    fn new(mut raw: impl Read + 'a, file: &'a Path) -> Result<Self, DataError> {
        let mut start = Vec::new();
        let result = raw.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut start);
        result.map_err(|source| DataError::Read { file: file.to_path_buf(), source })?;
        let gzipped = start == GZIP_MAGIC;
        let whole = Cursor::new(start).chain(raw);
        let reader: Box<dyn Read + 'a> = if gzipped { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) };
        Ok(Source { reader, file, consumed: 0 })
    }

    fn words(&mut self, count: u64) -> Result<Vec<u32>, DataError> {
        let bytes = self.bytes(4 * count)?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().copied().map(u32::from_be_bytes).collect())
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let result = self.reader.by_ref().take(count).read_to_end(&mut bytes);
        self.consumed += bytes.len() as u64;
        let missing = count - bytes.len() as u64;
        match result {
            // A gzip stream that was cut off is an error to the decoder, and a plain file's short end isn't.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(self.failed(error)),
            _ if missing > 0 => Err(DataError::Truncated {
                file: self.file.to_path_buf(),
                found: self.consumed,
                expected: self.consumed + missing,
            }),
            Err(error) => Err(self.failed(error)),
            Ok(_) => Ok(bytes),
        }
    }

    /// Checks that nothing is left. Going on to the end also makes the decoder check gzip's own checksum.
    fn end(mut self) -> Result<(), DataError> {
        let mut rest = Vec::new();
        let result = self.reader.by_ref().take(1).read_to_end(&mut rest);
        result.map_err(|error| self.failed(error))?;
        if rest.is_empty() {
            return Ok(());
        }
        Err(DataError::TrailingBytes { file: self.file.to_path_buf(), expected: self.consumed })
    }

    fn failed(&self, source: io::Error) -> DataError {
        DataError::Read { file: self.file.to_path_buf(), source }
    }
}
