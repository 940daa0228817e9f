//! Writes pages for browsers. Nothing but a page is replaced.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use convoy_coordinator::files::write_atomically;

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

/// Writes a page to `path`.
pub(crate) fn write(path: &Path, text: &str) -> Result<Wrote, Box<dyn Error>> {
    let wrong = |error| format!("cannot write {}: {error}", path.display());
    // A link is followed: its target is replaced, not the link.
    let place = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match fs::metadata(&place) {
        Ok(found) if found.is_file() && !is_page(&place).map_err(wrong)? => {
            let path = path.display();
            Err(Misuse(format!("{path}: the file exists and is not a page of convoy; name another file with --html"))
                .into())
        }
        Ok(found) if !found.is_file() && !found.is_dir() => {
            let mut device = fs::File::options().write(true).open(&place).map_err(wrong)?;
            device.write_all(text.as_bytes()).map_err(wrong)?;
            Ok(Wrote::ToDevice)
        }
        _ => {
            write_atomically(&place, text.as_bytes()).map_err(wrong)?;
            Ok(Wrote::File)
        }
    }
}

/// Whether a file is empty or begins as our pages do.
fn is_page(path: &Path) -> std::io::Result<bool> {
    let mut beginning = Vec::new();
    fs::File::open(path)?.take(BEGINNING.len() as u64).read_to_end(&mut beginning)?;
    Ok(beginning.is_empty() || beginning == BEGINNING)
}
