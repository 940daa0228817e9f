//! The first bytes of a file, by which formats are told apart.
//!
//! Not here: what they mean (the readers of each format).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// So many of the first bytes of a file, or all if there are fewer.
///
/// # Errors
/// When it is no regular file, or can't be read. Opening a pipe would wait for a writer.
pub(crate) fn start_of(file: &Path, length: usize) -> io::Result<Vec<u8>> {
    if !file.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut start = Vec::new();
    File::open(file)?.take(length as u64).read_to_end(&mut start)?;
    Ok(start)
}
