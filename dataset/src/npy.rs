//! The header of a NumPy array, as NumPy writes it: a dictionary with a type, an order and a shape.
//!
//! Parsers of whole Python literals take exponential time, or a deep stack, for some texts. This one reads what NumPy writes and nothing
//! else. Not here: where arrays come from (`npz`).

use std::fmt;

/// Bytes before the header's length is known, and its length: those of the first version, and the first two of the length of the others.
pub(crate) const PREAMBLE: usize = 10;
/// The longest header. It names a type and at most four extents.
const HEADER_BYTES_MAX: usize = 4096;

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<usize>,
    is_fortran: bool,
    descr: String,
}

/// The type of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whole numbers.
    Whole { bytes: usize, is_signed: bool, is_big_endian: bool },
    /// Anything else, or numbers in another order than that of C.
    Other,
}

impl Header {
    /// Bytes of the header after the first ones, if those are the first version's and the header is not too long. NumPy writes the other
    /// versions only for headers that are longer, or that have names in other languages.
    pub(crate) fn length(preamble: [u8; PREAMBLE]) -> Option<usize> {
        let [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, low, high] = preamble else { return None };
        Some(usize::from(u16::from_le_bytes([low, high]))).filter(|length| *length <= HEADER_BYTES_MAX)
    }

    /// Reads a header. None if it is not one that NumPy writes for an array of plain elements.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let rest = text.trim_end().strip_prefix("{'descr': '")?;
        let (descr, rest) = rest.split_once("', 'fortran_order': ")?;
        let (order, rest) = rest.split_once(", 'shape': (")?;
        let shape = rest.strip_suffix('}')?.trim_end().strip_suffix(',')?.strip_suffix(')')?;
        let is_fortran = match order {
            "False" => false,
            "True" => true,
            _ => return None,
        };
        let extents = shape.split(',').map(str::trim).filter(|extent| !extent.is_empty());
        let number = |extent: &str| extent.bytes().all(|byte| byte.is_ascii_digit()).then(|| extent.parse().ok())?;
        let shape = extents.map(number).collect::<Option<Vec<usize>>>()?;
        let kind = if is_fortran && shape.len() > 1 { Kind::Other } else { Kind::of(descr) };
        Some(Self { kind, shape, is_fortran, descr: descr.to_owned() })
    }

    /// Bytes of the data. None if they are too many for a number, or the type has no size.
    pub(crate) fn bytes(&self) -> Option<u64> {
        let Kind::Whole { bytes, .. } = self.kind else { return None };
        self.shape.iter().try_fold(bytes as u64, |bytes, extent| bytes.checked_mul(*extent as u64))
    }
}

impl Kind {
    fn of(descr: &str) -> Self {
        let whole = || {
            let (order, rest) = descr.split_at_checked(1)?;
            let (kind, bytes) = rest.split_at_checked(1)?;
            let bytes = ["1", "2", "4", "8"].contains(&bytes).then(|| bytes.parse().ok())??;
            let (is_signed, is_big_endian) = (["i", "u"].contains(&kind).then_some(kind == "i")?, order == ">");
            ["<", ">", "|"].contains(&order).then_some(Kind::Whole { bytes, is_signed, is_big_endian })
        };
        whole().unwrap_or(Kind::Other)
    }

    /// The whole numbers in `data`. Those beyond 64 signed bits become the largest of them. None of another kind.
    pub(crate) fn numbers(self, data: &[u8]) -> impl Iterator<Item = i64> {
        let (size, is_signed, is_big_endian) = match self {
            Kind::Whole { bytes, is_signed, is_big_endian } => (bytes, is_signed, is_big_endian),
            Kind::Other => (usize::MAX, false, false),
        };
        data.chunks_exact(size).map(move |bytes| {
            let digit = |place: usize| u64::from(if is_big_endian { bytes[size - 1 - place] } else { bytes[place] });
            let number = (0..size).fold(0u64, |number, place| number | digit(place) << (8 * place));
            if is_signed {
                let unused = 64 - 8 * size as u32;
                (number << unused).cast_signed() >> unused
            } else {
                i64::try_from(number).unwrap_or(i64::MAX)
            }
        })
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.is_fortran { " in Fortran's order" } else { "" };
        let extents: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let comma = if extents.len() == 1 { "," } else { "" };
        write!(f, "{}{order} of shape ({}{comma})", convoy_common::text::printable(&self.descr), extents.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(descr: &str, shape: &str) -> Option<Header> {
        Header::parse(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}      \n"))
    }

    #[test]
    fn numbers_of_every_size_and_order_are_read() {
        for (descr, data, expected) in [
            ("|u1", vec![0, 255], vec![0, 255]),
            ("|i1", vec![1, 255], vec![1, -1]),
            ("<u2", vec![1, 2], vec![513]),
            (">u2", vec![1, 2], vec![258]),
            ("<i4", vec![254, 255, 255, 255], vec![-2]),
            (">i8", vec![0, 0, 0, 0, 0, 0, 1, 0], vec![256]),
            ("<u8", vec![255; 8], vec![i64::MAX]),
        ] {
            let header = header(descr, "(1,)").unwrap();
            assert_eq!(header.kind.numbers(&data).collect::<Vec<_>>(), expected, "{descr}");
        }
        for descr in ["<f4", "|S3", "<U5", "|b1", "<u3", "u1", "", "=u1", "|u16"] {
            assert_eq!(header(descr, "(1,)").unwrap().kind, Kind::Other, "{descr}");
        }
    }

    #[test]
    fn shapes_are_as_numpy_writes_them() {
        for (text, expected) in
            [("()", vec![]), ("(3,)", vec![3]), ("(3, 4)", vec![3, 4]), ("(0, 1, 2)", vec![0, 1, 2])]
        {
            assert_eq!(header("|u1", text).unwrap().shape, expected);
        }
        for text in
            ["3", "(3", "(-1,)", "(+1,)", "(1_0,)", "(0x1,)", "(1L,)", "[3]", "((3),)", "(99999999999999999999,)"]
        {
            assert_eq!(header("|u1", text), None, "{text}");
        }
        assert_eq!(header("<i8", "(4611686018427387904, 4)").unwrap().bytes(), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[{}()\\[\\]',: a-zA-Z0-9_<>|]{0,200}", shape in "[(), 0-9]{0,40}") {
            let _ = Header::parse(&text).map(|header| (header.bytes(), header.to_string()));
            let _ = header("|u1", &shape).map(|header| header.bytes());
        }
    }
}
