//! The IDX format of MNIST: two zero bytes, the element type, the number of dimensions, their lengths in big-endian order,
//! then the elements. The whole file may be gzipped.
//!
//! Memory grows with the bytes that were read, not with what a header claims. Whether labels and images fit a model is
//! checked in `folder.rs`: here a file is compared only with itself.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use ndarray::Array4;

use super::error::DataError;

/// The most bytes that one file may hold after unpacking. A data set lives in memory, so more is a mistake or a bomb.
const PAYLOAD_BYTES_MAX: u64 = 8 << 30;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The element types that the format knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Unsigned8,
    Signed8,
    Signed16,
    Signed32,
    Float32,
    Float64,
}

impl Element {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x08 => Element::Unsigned8,
            0x09 => Element::Signed8,
            0x0b => Element::Signed16,
            0x0c => Element::Signed32,
            0x0d => Element::Float32,
            0x0e => Element::Float64,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Element::Unsigned8 | Element::Signed8 => 1,
            Element::Signed16 => 2,
            Element::Signed32 | Element::Float32 => 4,
            Element::Float64 => 8,
        }
    }

    fn described(self) -> &'static str {
        match self {
            Element::Unsigned8 => "unsigned bytes",
            Element::Signed8 => "signed bytes",
            Element::Signed16 => "16-bit integers",
            Element::Signed32 => "32-bit integers",
            Element::Float32 => "32-bit floats",
            Element::Float64 => "64-bit floats",
        }
    }
}

/// Reads a file of images, plain or gzipped, as (image, channel, row, column).
pub(super) fn read_images(file: &Path) -> Result<Array4<u8>, DataError> {
    parse_images(open(file)?, file)
}

/// Reads a file of labels, plain or gzipped. Labels may be negative: their range is the model's business.
pub(super) fn read_labels(file: &Path) -> Result<Vec<i32>, DataError> {
    parse_labels(open(file)?, file)
}

/// Parses images from anything that can be read; `file` is what errors call it.
pub(super) fn parse_images(raw: impl Read, file: &Path) -> Result<Array4<u8>, DataError> {
    const NEEDED: &str = "unsigned bytes in 3 dimensions (image, row, column) or 4 (image, channel, row, column)";
    let is_right = |element, dims: usize| element == Element::Unsigned8 && (3..=4).contains(&dims);
    let (_, dims, bytes) = parse(raw, file, is_right, NEEDED)?;
    let shape = match dims[..] {
        [count, height, width] => (count, 1, height, width),
        [count, channels, height, width] => (count, channels, height, width),
        _ => unreachable!("the header was checked: {dims:?}"),
    };
    Ok(Array4::from_shape_vec(shape, bytes).expect("parse checked the length against the dimensions"))
}

/// Parses labels from anything that can be read; `file` is what errors call it.
pub(super) fn parse_labels(raw: impl Read, file: &Path) -> Result<Vec<i32>, DataError> {
    use Element::{Signed8, Signed16, Signed32, Unsigned8};
    const NEEDED: &str = "integers in 1 dimension, a label for each image";
    let is_right = |element, dims| matches!(element, Unsigned8 | Signed8 | Signed16 | Signed32) && dims == 1;
    let (element, _, bytes) = parse(raw, file, is_right, NEEDED)?;
    Ok(match element {
        Signed8 => bytes.into_iter().map(|byte| i32::from(byte as i8)).collect(),
        Signed16 => bytes.as_chunks().0.iter().map(|label| i32::from(i16::from_be_bytes(*label))).collect(),
        Signed32 => bytes.as_chunks().0.iter().map(|label| i32::from_be_bytes(*label)).collect(),
        _ => bytes.into_iter().map(i32::from).collect(),
    })
}

fn open(file: &Path) -> Result<File, DataError> {
    File::open(file).map_err(|source| DataError::Read { file: file.to_path_buf(), source })
}

/// The element type, the dimensions, none of them zero, and exactly the bytes that they need.
fn parse(
    raw: impl Read,
    file: &Path,
    is_right: impl Fn(Element, usize) -> bool,
    needed: &'static str,
) -> Result<(Element, Vec<usize>, Vec<u8>), DataError> {
    let mut source = Source::new(raw, file)?;
    let (element, count) = source.header()?;
    if !is_right(element, count) {
        let plural = if count == 1 { "" } else { "s" };
        let found = format!("{} in {count} dimension{plural}", element.described());
        return Err(DataError::WrongContent { file: file.to_path_buf(), found, needed });
    }
    let dims = source.lengths(count)?;
    let payload = payload_bytes(&dims, element, file)?;
    let bytes = source.bytes(payload)?;
    source.end()?;
    Ok((element, dims.into_iter().map(|dim| dim as usize).collect(), bytes))
}

/// The bytes that the dimensions need, if a file may hold that many.
fn payload_bytes(dims: &[u32], element: Element, file: &Path) -> Result<u64, DataError> {
    if dims.contains(&0) {
        return Err(DataError::Empty { file: file.to_path_buf(), dims: dims.to_vec() });
    }
    let claimed = dims.iter().fold(element.bytes() as u128, |bytes, &dim| bytes.saturating_mul(u128::from(dim)));
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
        let reader: Box<dyn Read + 'a> =
            if gzipped { Box::new(Gunzip::new(BufReader::new(whole))) } else { Box::new(whole) };
        Ok(Source { reader, file, consumed: 0 })
    }

    /// The element type and the number of dimensions.
    fn header(&mut self) -> Result<(Element, usize), DataError> {
        let bytes = self.bytes(4)?;
        let not_idx = || DataError::NotIdx { file: self.file.to_path_buf(), start: bytes.clone() };
        let [0, 0, code, dims] = bytes[..] else { return Err(not_idx()) };
        Ok((Element::from_code(code).ok_or_else(not_idx)?, usize::from(dims)))
    }

    fn lengths(&mut self, count: usize) -> Result<Vec<u32>, DataError> {
        let bytes = self.bytes(4 * count as u64)?;
        Ok(bytes.as_chunks().0.iter().copied().map(u32::from_be_bytes).collect())
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let result = self.reader.by_ref().take(count).read_to_end(&mut bytes);
        self.consumed += bytes.len() as u64;
        let missing = count - bytes.len() as u64;
        match result {
            // To the decoder a gzip stream that was cut off is an error; the short end of a plain file isn't.
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

    /// Checks that nothing is left. Reading to the end also makes the decoder check gzip's own checksum.
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

/// Unpacks the members of a gzip file one after another. Zeros behind a member are skipped, as `gzip` does: tapes and block
/// stores pad files with them. Anything else that isn't a member is an error.
struct Gunzip<R> {
    /// None at the file's end.
    member: Option<GzDecoder<R>>,
    /// Whether it isn't the first member.
    is_later: bool,
}

impl<R: BufRead> Gunzip<R> {
    fn new(file: R) -> Self {
        Self { member: Some(GzDecoder::new(file)), is_later: false }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer);
            // What follows is not a gzip header, or not a whole one. Other errors come from reading the file.
            let is_foreign =
                |error: &io::Error| matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof);
            if self.is_later && member.header().is_none() && read.as_ref().is_err_and(is_foreign) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes after the gzip data"));
            }
            let read = read?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let rest = self.member.take().map(GzDecoder::into_inner);
            self.is_later = true;
            self.member = rest.map(skip_zeros).transpose()?.flatten().map(GzDecoder::new);
        }
        Ok(0)
    }
}

/// The reader at its next byte that isn't zero, or none at its end.
fn skip_zeros<R: BufRead>(mut reader: R) -> io::Result<Option<R>> {
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        let is_over = zeros < bytes.len();
        reader.consume(zeros);
        if is_over {
            return Ok(Some(reader));
        }
    }
}
