//! The list of wrongly classified images: a text file with a line for each, whose values are separated by tabs. Images that are files
//! of their own are named in a fourth column.

use std::path::Path;

use convoy_common::text::printable;

use crate::error::JobError;
use crate::files::{read_regular, write_atomically};
use crate::outputs;

/// The first line of the file. Images are counted from 0.
const HEADER: &str = "image\tlabel\tpredicted";
/// The same, if images have files of their own.
const HEADER_OF_FILES: &str = "image\tlabel\tpredicted\tfile";

/// A wrongly classified image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its place in the set, counted from 0.
    pub image: usize,
    /// Its class.
    pub label: u16,
    /// The class with the highest logit.
    pub predicted: u16,
}

/// Checks that the list may be written to `path`: nothing is there, or an earlier list.
///
/// # Errors
/// When something else is there, or its folder does not exist.
pub(crate) fn check_path(path: &Path) -> Result<(), JobError> {
    let is_list = |path: &Path| {
        outputs::beginning(path, HEADER.len() as u64).is_some_and(|beginning| beginning == HEADER.as_bytes())
    };
    outputs::check(path, "a list of wrongly classified images", is_list)
        .map_err(|source| JobError::Write { path: path.to_owned(), source })
}

/// Writes the list, whole or not at all. `file` is an image's file, if images have files of their own.
pub(crate) fn write<'a>(
    path: &Path,
    labels: &[u16],
    predicted: &[u16],
    file: impl Fn(usize) -> Option<&'a Path>,
) -> Result<(), JobError> {
    check_path(path)?;
    let line = |(image, (label, predicted)): (usize, (&u16, &u16))| {
        let file = file(image).map(|file| format!("\t{}", printable(&file.display().to_string())));
        format!("{image}\t{label}\t{predicted}{}\n", file.unwrap_or_default())
    };
    let pairs = labels.iter().zip(predicted).enumerate().filter(|(_, (label, predicted))| label != predicted);
    let header = if file(0).is_some() { HEADER_OF_FILES } else { HEADER };
    let text = format!("{header}\n{}", pairs.map(line).collect::<String>());
    write_atomically(path, text.as_bytes()).map_err(|source| JobError::Write { path: path.to_owned(), source })
}

/// Reads a list.
///
/// # Errors
/// Says what is wrong with the file.
pub fn read(path: &Path) -> std::io::Result<Vec<Wrong>> {
    let text = String::from_utf8(read_regular(path)?).map_err(std::io::Error::other)?;
    let mut lines = text.lines();
    if !lines.next().is_some_and(|line| [HEADER, HEADER_OF_FILES].contains(&line)) {
        return Err(std::io::Error::other("it does not begin with the names of its columns"));
    }
    let parse = |line: &str| {
        let mut values = line.split('\t').map(str::parse);
        let mut next = || values.next()?.ok();
        let (image, label, predicted): (u64, u64, u64) = (next()?, next()?, next()?);
        let class = |class: u64| u16::try_from(class).ok();
        Some(Wrong { image: usize::try_from(image).ok()?, label: class(label)?, predicted: class(predicted)? })
    };
    let wrong = |line: &str| std::io::Error::other(format!("it has the line {line:?}"));
    lines.map(|line| parse(line).ok_or_else(|| wrong(line))).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_list_reads_back_and_replaces_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("wrong.tsv");
        for predicted in [[3, 1, 2, 9], [3, 1, 4, 9]] {
            write(&path, &[3, 1, 4, 1], &predicted, |_| None).unwrap();
        }
        assert_eq!(read(&path).unwrap(), [Wrong { image: 3, label: 1, predicted: 9 }]);
        write(&path, &[3, 1, 4, 1], &[3, 1, 4, 9], |_| Some(Path::new("a\tb\n.png"))).unwrap();
        assert_eq!(read(&path).unwrap(), [Wrong { image: 3, label: 1, predicted: 9 }]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2, "names of files begin no line");
        for text in ["", "notes", "image\tlabel\tpredicte"] {
            fs::write(&path, text).unwrap();
            assert!(check_path(&path).is_err() && read(&path).is_err(), "{text}");
        }
        fs::write(&path, format!("{HEADER}\n1\t2\tx\n")).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("1\\t2\\tx"));
        assert!(check_path(&place.path().join("none/wrong.tsv")).is_err());
        assert!(check_path(place.path()).is_err());
    }
}
