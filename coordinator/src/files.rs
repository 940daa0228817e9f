//! Files that are written whole or not at all: under a temporary name, synced, then renamed.
//!
//! Not here: what the files hold.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::unguessable::unguessable;

/// The permissions of new files, less what the user's mask takes away.
const PUBLIC: u32 = 0o666;
/// The permissions of secrets.
const PRIVATE: u32 = 0o600;

/// Writes a file under a temporary name, syncs it, and renames it.
///
/// # Errors
/// When it can't be written. Then nothing of it is left.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    write_with(path, bytes, PUBLIC)
}

/// The same, for a secret: only this user can read the file.
///
/// # Errors
/// When it can't be written. Then nothing of it is left.
pub fn write_privately(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    write_with(path, bytes, PRIVATE)
}

fn write_with(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    // Two writers of one file must not share a temporary one: the first to finish would rename what the other still writes.
    let name = path.file_name().map_or_else(|| "file".into(), |name| name.to_string_lossy().into_owned());
    let temporary = path.with_file_name(format!(".{name}.{:016x}.tmp", unguessable()));
    let written = write_synced_with(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| {
        // The first error is the useful one.
        let _ = fs::remove_file(&temporary);
    })?;
    sync_folder(folder_of(path))
}

/// The folder that a file is in. That of a bare name is the working directory.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes the temporary files of writers of `name` in `folder` that were killed. No other process may write there.
pub fn remove_temporary(folder: &Path, name: &str) {
    let is_one = |file: &str| file.starts_with(&format!(".{name}.")) && file.ends_with(".tmp");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let old = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_one));
    // They are in nobody's way.
    old.for_each(|entry| drop(fs::remove_file(entry.path())));
}

/// Removes what is at `path`, be it a folder, a file or a link. It is no error if nothing is there.
///
/// # Errors
/// When it can't be removed.
pub fn remove_any(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    }
}

/// Reads a file. See [`open_regular`].
///
/// # Errors
/// When it can't be read, or is not a regular file.
pub fn read_regular(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a file for reading. A pipe or a device could keep the reader waiting, or never end.
///
/// # Errors
/// When it can't be opened, or is not a regular file.
pub fn open_regular(path: &Path) -> std::io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    File::open(path)
}

/// Whether two paths lead to the same place, which exists.
pub fn same_place(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// A path as a shell reads it, for commands to copy.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    shlex::try_quote(&text).map_or_else(|_| text.clone(), std::borrow::Cow::into_owned)
}

/// Writes a file and syncs it.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    write_synced_with(path, bytes, PUBLIC)
}

fn write_synced_with(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).mode(mode);
    // The permissions are only those of a new file.
    let mut file =
        if mode == PRIVATE { options.create_new(true) } else { options.create(true).truncate(true) }.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Syncs a folder, so that the names in it are on disk.
pub(crate) fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Renames `new` to `path`. If `path` exists, the two are exchanged, so that `path` exists at every moment.
pub(crate) fn put_in_place(new: &Path, path: &Path) -> std::io::Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return fs::rename(new, path);
    }
    match rustix::fs::renameat_with(rustix::fs::CWD, new, rustix::fs::CWD, path, rustix::fs::RenameFlags::EXCHANGE) {
        // The file system can't exchange: remove the older one first. A resumed job writes it again.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            remove_any(path).and_then(|()| fs::rename(new, path))
        }
        exchanged => Ok(exchanged?),
    }
}
