//! Whether a command may write a file that a user names: one that does not exist yet, or an earlier one of the same kind. Nobody loses a
//! file by a slip of the keyboard.
//!
//! Not here: writing (`files`).

use std::fs;
use std::io::{Error, Read};
use std::path::Path;

use crate::files::{folder_of, open_regular};

/// The file that makes a folder a checkpoint.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Checks that a file may be written to `path`. `kind` says what it will be, with an article, and `is_ours` whether an existing file is an
/// earlier one of that kind.
///
/// # Errors
/// When something else is there, or its folder is a checkpoint or does not exist.
pub fn check(path: &Path, kind: &str, is_ours: impl Fn(&Path) -> bool) -> std::io::Result<()> {
    let refused = match fs::symlink_metadata(path) {
        // Writing would replace a device or a link by a plain file.
        Ok(found) if !found.is_file() => "it exists and is not a plain file".to_owned(),
        _ if folder_of(path).join(MANIFEST).exists() => {
            "its folder is a checkpoint, whose files must not change".to_owned()
        }
        Err(_) if !folder_of(path).is_dir() => "its folder does not exist; create it first".to_owned(),
        Ok(_) if !is_ours(path) => format!("it exists and is not {kind}"),
        _ => return Ok(()),
    };
    Err(Error::other(refused))
}

/// The first bytes of a file, at most `count`. None if it can't be read.
pub fn beginning(path: &Path, count: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path).and_then(|file| file.take(count).read_to_end(&mut bytes)).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_file_or_one_of_the_same_kind_may_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let is_list = |path: &Path| beginning(path, 4).is_some_and(|bytes| bytes == b"list");
        let check = |name: &str| check(&at(name), "a list", is_list).map_err(|error| error.to_string());
        fs::write(at("mine"), "list of something").unwrap();
        fs::write(at("other"), "notes").unwrap();
        fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
        assert_eq!((check("new"), check("mine")), (Ok(()), Ok(())));
        assert_eq!(check("other").unwrap_err(), "it exists and is not a list");
        for name in ["folder", "link"] {
            assert_eq!(check(name).unwrap_err(), "it exists and is not a plain file");
        }
        assert!(check("none/new").unwrap_err().contains("create it first"));
        fs::write(at(MANIFEST), "{}").unwrap();
        assert!(check("mine").unwrap_err().contains("must not change"));
    }
}
