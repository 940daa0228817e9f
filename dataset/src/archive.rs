//! The members of a tar archive, which may be compressed by gzip. Memory is bounded, whatever the archive claims.
//!
//! Not here: what the members mean (`cifar`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use convoy_common::text::printable;
use flate2::read::MultiGzDecoder;
use tar::Archive;

use crate::error::DataError;
use crate::start::start_of;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const TAR_MAGIC: &[u8] = b"ustar";
/// Where a tar archive has its magic bytes.
const TAR_MAGIC_AT: usize = 257;
/// The most bytes of an archive after unpacking.
const BYTES_MAX: u64 = 1 << 30;
/// The most members that are looked at.
const MEMBERS_MAX: usize = 10_000;

/// Whether a file looks like a tar archive, by its first bytes.
pub(super) fn is_here(file: &Path) -> bool {
    let start = start_of(file, TAR_MAGIC_AT + TAR_MAGIC.len());
    start.is_ok_and(|start| start.starts_with(GZIP_MAGIC) || start.ends_with(TAR_MAGIC))
}

/// The members with these names, in whichever folder of the archive they are.
///
/// # Errors
/// When it can't be read, or is larger than any that is meant.
pub(super) fn members(file: &Path, names: &[&str]) -> Result<HashMap<String, Vec<u8>>, DataError> {
    // What the reader of archives says quotes their bytes.
    let failed = |source: io::Error| DataError::Read {
        file: file.to_path_buf(),
        source: io::Error::new(source.kind(), printable(&source.to_string())),
    };
    let magic = start_of(file, GZIP_MAGIC.len()).map_err(failed)?;
    let plain = BufReader::new(File::open(file).map_err(failed)?);
    if magic == GZIP_MAGIC {
        read(MultiGzDecoder::new(plain), names).map_err(failed)
    } else {
        read(plain, names).map_err(failed)
    }
}

fn read(source: impl Read, names: &[&str]) -> io::Result<HashMap<String, Vec<u8>>> {
    let mut archive = Archive::new(source.take(BYTES_MAX + 1));
    let (mut members, mut left) = (HashMap::new(), BYTES_MAX);
    for (index, entry) in archive.entries()?.enumerate() {
        let mut entry = entry?;
        left = left.checked_sub(entry.size()).filter(|_| index < MEMBERS_MAX).ok_or_else(too_large)?;
        let path = entry.path()?.into_owned();
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| names.contains(name));
        if let Some(name) = name.filter(|_| entry.header().entry_type().is_file()) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            if bytes.len() as u64 != entry.size() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            members.insert(name.to_owned(), bytes);
        }
    }
    // The checksum of gzip comes last.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(members)
}

fn too_large() -> io::Error {
    io::Error::other(format!("it has more than {BYTES_MAX} bytes or {MEMBERS_MAX} members after unpacking"))
}
