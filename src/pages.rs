//! Writes pages for browsers. Nothing but a page is replaced.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use convoy_coordinator::files::write_atomically;
use convoy_coordinator::outputs;

use crate::settings::Misuse;

/// How each page of ours begins.
const BEGINNING: &[u8] = convoy_report::html::BEGINNING.as_bytes();

/// Where a page went.
pub(crate) enum Wrote {
    /// Into a file.
    File,
    /// To a device or a pipe, such as standard output.
    ToDevice,
}

/// Checks that a page may be written to `path`, before the work.
pub(crate) fn check(path: &Path) -> Result<(), Misuse> {
    let place = target(path);
    if is_device(&place) {
        return Ok(());
    }
    outputs::check(&place, "a page of convoy", is_page)
        .map_err(|why| Misuse(format!("--html: cannot write {}: {why}", path.display())))
}

/// A link is followed: its target is replaced, not the link.
fn target(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Writes a page to `path`.
pub(crate) fn write(path: &Path, text: &str) -> Result<Wrote, Box<dyn Error>> {
    let wrong = |error| format!("cannot write {}: {error}", path.display());
    let place = target(path);
    if is_device(&place) {
        let mut device = fs::File::options().write(true).open(&place).map_err(wrong)?;
        device.write_all(text.as_bytes()).map_err(wrong)?;
        return Ok(Wrote::ToDevice);
    }
    check(path)?;
    write_atomically(&place, text.as_bytes()).map_err(wrong)?;
    Ok(Wrote::File)
}

/// Whether a file is empty or begins as our pages do.
fn is_page(path: &Path) -> bool {
    outputs::beginning(path, BEGINNING.len() as u64).is_some_and(|bytes| bytes.is_empty() || bytes == BEGINNING)
}
