//! Decoded images in a file without a name: it is gone when the process is, however that ends.
//!
//! Not here: which images (`cache`), and whether they are still right when they are read (their digests say so).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// A file that only grows.
#[derive(Debug)]
pub(crate) struct Spool {
    file: Arc<File>,
    end: u64,
}

/// Bytes in a spool.
#[derive(Clone, Debug)]
pub(crate) struct Spooled {
    file: Arc<File>,
    start: u64,
    length: usize,
}

impl Spool {
    /// A new file in a folder.
    ///
    /// # Errors
    /// When the folder does not exist, or can't be written.
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self { file: Arc::new(tempfile::tempfile_in(folder)?), end: 0 })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When the disk is full.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<Spooled> {
        self.file.write_all_at(bytes, self.end)?;
        let start = self.end;
        self.end += bytes.len() as u64;
        Ok(Spooled { file: self.file.clone(), start, length: bytes.len() })
    }
}

impl Spooled {
    /// The bytes.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length];
        self.file.read_exact_at(&mut bytes, self.start)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_they_were_written_and_no_file_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(folder.path()).unwrap();
        let parts = [&b"one"[..], b"", b"three"].map(|bytes| (bytes, spool.append(bytes).unwrap()));
        for (bytes, spooled) in parts.iter().rev() {
            assert_eq!(spooled.read().unwrap(), *bytes);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
        assert!(Spool::new(Path::new("/no/such/folder")).is_err());
    }
}
