//! The schema in the footer of a Parquet file, checked before the reader builds it. The reader calls itself for each group in a group, and
//! allocates as many children as a group claims. A footer of a few bytes could overflow its stack or fill the memory.
//!
//! The footer has the compact protocol of Thrift. Not here: what the schema means (`rows`).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// The last bytes of a file: the length of the footer, and the magic bytes.
const TAIL: usize = 8;
/// The deepest group in groups. Lists of structs of lists, as people have them, are half as deep.
const DEPTH_MAX: usize = 32;
/// Fields of the footer and of an element of the schema, by their numbers in the format's description.
const SCHEMA: i16 = 2;
const CHILDREN: i16 = 5;
/// Types of the compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const SHORT: u8 = 4;
const LONG: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// Checks the schema of a file.
///
/// # Errors
/// Says what is wrong with it, or that the file can't be read.
pub(crate) fn check(file: &mut File) -> io::Result<Result<(), &'static str>> {
    let length = file.seek(SeekFrom::End(0))?;
    if length < TAIL as u64 {
        return Ok(Err("it ends too early"));
    }
    let mut tail = [0; TAIL];
    file.seek(SeekFrom::Start(length - TAIL as u64))?;
    file.read_exact(&mut tail)?;
    let footer = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    let Some(start) = length.checked_sub(TAIL as u64 + footer) else {
        return Ok(Err("its footer is longer than the file"));
    };
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(footer).read_to_end(&mut bytes)?;
    Ok(check_footer(&bytes))
}

fn check_footer(footer: &[u8]) -> Result<(), &'static str> {
    let mut source = Source(footer);
    let mut field = 0;
    while let Some(kind) = source.field(&mut field).ok_or(BROKEN)? {
        if field == SCHEMA && kind == LIST {
            check_schema(&source.schema().ok_or(BROKEN)?)?;
        } else {
            source.skip(kind, DEPTH_MAX).ok_or(BROKEN)?;
        }
    }
    Ok(())
}

const BROKEN: &str = "its footer is damaged";

/// Checks the numbers of children of all elements, each of which is followed by its children.
fn check_schema(children: &[i32]) -> Result<(), &'static str> {
    // The children that are still to come, of each group that has begun.
    let mut open: Vec<usize> = Vec::new();
    for (index, count) in children.iter().enumerate() {
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        let count = usize::try_from(*count).map_err(|_| BROKEN)?;
        if count > children.len() - index {
            return Err("a group in its schema has more fields than there are");
        }
        open.push(count);
        while open.last() == Some(&0) {
            open.pop();
        }
        if open.len() > DEPTH_MAX {
            return Err("groups in its schema are too deep");
        }
    }
    Ok(())
}

/// The bytes that are left. Each method is None if they do not follow the protocol.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn pass(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// The type of the next field, whose number replaces that of the field before. Some(None) is the end of the struct.
    fn field(&mut self, number: &mut i16) -> Option<Option<u8>> {
        let header = self.byte()?;
        if header == 0 {
            return Some(None);
        }
        *number = match header >> 4 {
            0 => i16::try_from(self.signed()?).ok()?,
            step => number.checked_add(i16::from(step))?,
        };
        Some(Some(header & 0x0f))
    }

    /// The number of elements of a list, and their type. Each has at least a byte.
    fn list(&mut self) -> Option<(usize, u8)> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => usize::try_from(self.number()?).ok()?,
            count => usize::from(count),
        };
        (count <= self.0.len()).then_some((count, header & 0x0f))
    }

    /// The number of children of each element of the schema.
    fn schema(&mut self) -> Option<Vec<i32>> {
        let (count, kind) = self.list()?;
        let mut children = Vec::new();
        for _ in 0..count {
            children.push(if kind == STRUCT { self.children()? } else { return None });
        }
        Some(children)
    }

    fn children(&mut self) -> Option<i32> {
        let (mut field, mut children) = (0, 0);
        while let Some(kind) = self.field(&mut field)? {
            if field == CHILDREN && (SHORT..=LONG).contains(&kind) {
                children = i32::try_from(self.signed()?).ok()?;
            } else {
                self.skip(kind, DEPTH_MAX)?;
            }
        }
        Some(children)
    }

    /// Passes a field. In a list, a truth value has a byte of its own.
    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            TRUE | FALSE => Some(()),
            BYTE => self.pass(1),
            SHORT..=LONG => self.number().map(|_| ()),
            DOUBLE => self.pass(8),
            BINARY => {
                let length = usize::try_from(self.number()?).ok()?;
                self.pass(length)
            }
            LIST | SET => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(kind, depth))
            }
            MAP => {
                let count = usize::try_from(self.number()?).ok()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 0x0f, depth)
                })
            }
            STRUCT => {
                let mut field = 0;
                while let Some(kind) = self.field(&mut field)? {
                    self.skip(kind, depth)?;
                }
                Some(())
            }
            _ => None,
        }
    }

    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        if matches!(kind, TRUE | FALSE) { self.pass(1) } else { self.skip(kind, depth) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer whose schema has these numbers of children.
    fn footer(children: &[i32]) -> Vec<u8> {
        let mut bytes = vec![0x29, 0xfc]; // field 2, a list of structs with a long count
        varint(&mut bytes, children.len() as u64);
        for count in children {
            bytes.extend([0x48, 1, b'a']); // field 4, a name of one letter
            bytes.push(0x15); // field 5
            varint(&mut bytes, (*count as u32 as u64) << 1);
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    fn varint(bytes: &mut Vec<u8>, mut number: u64) {
        while number > 0x7f {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
    }

    #[test]
    fn schemas_of_people_pass_and_those_that_would_hurt_the_reader_do_not() {
        assert_eq!(check_footer(&footer(&[2, 2, 0, 0, 0])), Ok(()));
        assert_eq!(check_footer(&footer(&[])), Ok(()));
        let deep = |depth| check_footer(&footer(&[&vec![1; depth][..], &[0]].concat()));
        assert_eq!(deep(DEPTH_MAX), Ok(()));
        assert_eq!(deep(DEPTH_MAX + 1), Err("groups in its schema are too deep"));
        assert_eq!(deep(100_000), Err("groups in its schema are too deep"));
        let many = check_footer(&footer(&[i32::MAX]));
        assert_eq!(many, Err("a group in its schema has more fields than there are"));
    }

    #[test]
    fn no_bytes_end_the_check_in_a_panic() {
        let sound = footer(&[2, 2, 0, 0, 0]);
        for length in 0..sound.len() {
            assert_eq!(check_footer(&sound[..length]), Err(BROKEN), "{length}");
        }
        for at in 0..sound.len() {
            for byte in 0..=255 {
                let mut bytes = sound.clone();
                bytes[at] = byte;
                let _ = check_footer(&bytes);
            }
        }
        // Lists in lists without an end, and a count that no file could hold.
        assert_eq!(check_footer(&[&[0x19][..], &[0x19; 100]].concat()), Err(BROKEN));
        assert_eq!(check_footer(&[0x2b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x11]), Err(BROKEN));
    }
}
