//! A folder of images with a folder for each class: which files there are, and which class and part each belongs to.
//!
//! Classes are in the order of their names, as in torchvision's `ImageFolder`. So are the files of a folder; those of the folders in it follow.
//! Hidden files and folders are left out. Not here: reading the files (`decode`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use convoy_common::text::printable;
use sha2::{Digest, Sha256};

use crate::error::DataError;

/// The most classes: labels have 16 bits.
const CLASSES_MAX: usize = 65_535;
/// The deepest folder below that of a class. Symbolic links can form a loop.
const DEPTH_MAX: usize = 16;
/// The most files.
const FILES_MAX: usize = 1 << 26;
/// Names of the folders of parts.
const TRAIN: &str = "train";
const TEST: [&str; 2] = ["val", "test"];
/// Names that folders of parts have in some sets. If all folders have such a name, they are no classes.
const PARTS: [&str; 6] = ["train", "training", "val", "valid", "validation", "test"];
/// The folder in which runs are by default, and the file that each of them has.
const RUNS: &str = "runs";
const RUN: &str = "run.json";
/// The endings that `ImageFolder` takes for images, in any case. Which format a file has is decided by its bytes.
const ENDINGS: [&str; 10] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "gif"];

/// A file of an image, and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labelled {
    pub(crate) file: PathBuf,
    pub(crate) label: u16,
}

/// The files of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Names of classes, in order.
    pub(crate) classes: Vec<String>,
    pub(crate) train: Vec<Labelled>,
    pub(crate) test: Vec<Labelled>,
    /// Whether the folder itself has no test images, so that some of its images were chosen.
    pub(crate) is_divided: bool,
    /// What people should know, one line each.
    pub(crate) notices: Vec<String>,
}

/// Whether a folder looks like one with a folder for each class, or with `train` and `val` or `test`.
pub(crate) fn is_here(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| !is_hidden(&entry.path()) && entry.path().is_dir())
}

/// Finds all files of a folder. Without test images, a share `test_share` of the files is for tests. The choice depends on the path of each
/// file below the folder alone, so it is the same on every machine, and stays when files are added.
pub(crate) fn find(folder: &Path, test_share: f64) -> Result<Found, DataError> {
    let train_folder = folder.join(TRAIN);
    let has_train = is_folder(&train_folder)?;
    let mut tests = TEST.map(|name| folder.join(name)).into_iter();
    let test_folder = tests.find_map(|path| is_folder(&path).map(|is_folder| is_folder.then_some(path)).transpose());
    if let (true, Some(test_folder)) = (has_train, test_folder.transpose()?) {
        let (classes, train) = classes_of(&train_folder)?;
        let (test_classes, test) = classes_of(&test_folder)?;
        if classes != test_classes {
            return Err(other_classes(&train_folder, &classes, &test_folder, &test_classes));
        }
        let used = [&train_folder, &test_folder];
        return Ok(Found { classes, train, test, is_divided: false, notices: unused(folder, &used)? });
    }
    if !has_train {
        check_are_no_parts(folder)?;
    }
    let notices = if has_train { unused(folder, &[&train_folder])? } else { Vec::new() };
    let root = if has_train { &train_folder } else { folder };
    let (classes, all) = classes_of(root)?;
    let (test, train): (Vec<_>, Vec<_>) = all.into_iter().partition(|image| is_test(root, &image.file, test_share));
    for (part, images) in [("training", &train), ("test", &test)] {
        let may_be_empty = part == "training" && test_share >= 1.0;
        if images.is_empty() && !may_be_empty {
            return Err(DataError::NothingLeft { folder: folder.to_path_buf(), part, test_share });
        }
    }
    Ok(Found { classes, train, test, is_divided: true, notices })
}

/// The notice about folders that stand beside those of parts. Nothing reads them.
fn unused(folder: &Path, used: &[&PathBuf]) -> Result<Vec<String>, DataError> {
    let others = entries_of(folder)?.into_iter().filter(|path| path.is_dir() && !used.contains(&path));
    let names: Vec<String> = others.map(|path| printable(&path.display().to_string())).collect();
    let used: Vec<String> = used.iter().map(|path| path.display().to_string()).collect();
    let notice = || format!("the images are those of {}; not used: {}", used.join(" and "), names.join(", "));
    Ok((!names.is_empty()).then(notice).into_iter().collect())
}

fn is_test(root: &Path, file: &Path, share: f64) -> bool {
    let below = file.strip_prefix(root).unwrap_or(file);
    let names: Vec<_> = below.iter().map(|name| name.to_string_lossy()).collect();
    is_test_name(&names.join("/"), share)
}

/// Whether an image of this name is for tests: a hash of the name, as a number between 0 and 1, is below the share.
pub(crate) fn is_test_name(name: &str, share: f64) -> bool {
    let hash = Sha256::digest(name);
    let number = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    share >= 1.0 || f64::from(number) < share * f64::from(u32::MAX)
}

/// Checks that the folders of a set without the folder `train` are not all those of other parts.
fn check_are_no_parts(folder: &Path) -> Result<(), DataError> {
    let names: Vec<String> = folders_of(folder)?.iter().map(|path| name_of(path)).collect::<Result<_, _>>()?;
    let is_part = |name: &String| PARTS.contains(&&*name.to_lowercase());
    match names.last() {
        Some(one) if names.iter().all(is_part) => {
            let (folder, one) = (folder.to_path_buf(), one.clone());
            Err(DataError::NoTrainFolder { folder, names: names.join(", "), one })
        }
        _ => Ok(()),
    }
}

/// The folders in a folder, in the order of names, without those of runs that were started here.
fn folders_of(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut folders = Vec::new();
    for path in entries_of(folder)? {
        if is_folder(&path)? && !has_runs(&path) {
            folders.push(path);
        }
    }
    Ok(folders)
}

/// Whether this is a folder.
///
/// # Errors
/// When it is a link that leads nowhere. Then nobody can say, and a class or a part would be missing.
fn is_folder(path: &Path) -> Result<bool, DataError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(source) if path.is_symlink() => Err(DataError::Read { file: path.to_path_buf(), source }),
        Err(_) => Ok(false),
    }
}

/// Whether a folder is that of a run, or the one with all runs.
fn has_runs(folder: &Path) -> bool {
    let entries = || fs::read_dir(folder).into_iter().flatten().flatten();
    let is_for_runs = folder.file_name().is_some_and(|name| name == RUNS);
    folder.join(RUN).is_file() || is_for_runs && entries().any(|entry| entry.path().join(RUN).is_file())
}

/// The classes below a folder, and the files of each.
fn classes_of(folder: &Path) -> Result<(Vec<String>, Vec<Labelled>), DataError> {
    let folders = folders_of(folder)?;
    let classes: Vec<String> = folders.iter().map(|path| name_of(path)).collect::<Result<_, _>>()?;
    match classes.len() {
        0 => return Err(DataError::NoClasses { folder: folder.to_path_buf() }),
        1 => return Err(DataError::OneClass { folder: folder.to_path_buf(), class: classes[0].clone() }),
        2..=CLASSES_MAX => {}
        count => return Err(DataError::ManyClasses { folder: folder.to_path_buf(), count, limit: CLASSES_MAX }),
    }
    let mut images = Vec::new();
    for (label, class) in folders.iter().enumerate() {
        let before = images.len();
        collect(class, label as u16, DEPTH_MAX, &mut images)?;
        if images.len() == before {
            return Err(DataError::EmptyClass { folder: class.clone() });
        }
    }
    Ok((classes, images))
}

/// The images of a folder and then those of the folders in it, each in the order of names.
fn collect(folder: &Path, label: u16, depth: usize, images: &mut Vec<Labelled>) -> Result<(), DataError> {
    let (folders, files): (Vec<_>, Vec<_>) = entries_of(folder)?.into_iter().partition(|path| path.is_dir());
    for file in files.into_iter().filter(|file| has_ending(file)) {
        name_of(&file)?;
        images.push(Labelled { file, label });
    }
    if images.len() > FILES_MAX {
        return Err(DataError::ManyFiles { folder: folder.to_path_buf(), limit: FILES_MAX });
    }
    for inner in folders {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(DataError::TooDeep { folder: inner, limit: DEPTH_MAX });
        };
        collect(&inner, label, depth, images)?;
    }
    Ok(())
}

/// The image files that `paths` name: files and `-` as they are, and the image files of folders and of the folders in them.
///
/// # Errors
/// When a folder can't be read, or has no image file.
pub fn image_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut images = Vec::new();
        collect(path, 0, DEPTH_MAX, &mut images)?;
        if images.is_empty() {
            return Err(DataError::EmptyClass { folder: path.clone() });
        }
        files.extend(images.into_iter().map(|image| image.file));
    }
    Ok(files)
}

/// What is in a folder, in the order of names. Hidden files and folders are not for us.
pub(crate) fn entries_of(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = |source: io::Error| DataError::Read { file: folder.to_path_buf(), source };
    let entries = fs::read_dir(folder).map_err(read)?;
    let paths: Result<Vec<PathBuf>, io::Error> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(read)?;
    paths.retain(|path| !is_hidden(path));
    paths.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(paths)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn has_ending(file: &Path) -> bool {
    let ending = file.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// The name of a class or of a file. It is hashed, and goes into checkpoints, so it must be text.
fn name_of(path: &Path) -> Result<String, DataError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| DataError::NotUtf8 { folder: path.to_path_buf() })?;
    Ok(printable(name))
}

fn other_classes(train: &Path, of_train: &[String], test: &Path, of_test: &[String]) -> DataError {
    let only = |here: &[String], there: &[String]| here.iter().find(|class| !there.contains(class)).cloned();
    let (class, folder, other) = match only(of_train, of_test) {
        Some(class) => (class, train, test),
        None => (only(of_test, of_train).unwrap_or_default(), test, train),
    };
    DataError::OtherClasses { class, folder: folder.to_path_buf(), other: other.to_path_buf() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn folder(files: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let file = folder.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, b"x").unwrap();
        }
        folder
    }

    fn names(folder: &TempDir, images: &[Labelled]) -> Vec<(String, u16)> {
        let name = |image: &Labelled| image.file.strip_prefix(folder.path()).unwrap().display().to_string();
        images.iter().map(|image| (name(image), image.label)).collect()
    }

    #[test]
    fn classes_and_files_are_in_the_order_of_their_names_and_other_files_are_ignored() {
        let here = folder(&[
            "train/b/2.png",
            "train/b/10.JPG",
            "train/b/inner/1.jpeg",
            "train/B/z.png",
            "train/a/notes.txt",
            "train/a/.hidden.png",
            "train/a/x.png",
            "val/a/1.png",
            "val/b/1.png",
            "val/B/1.png",
            "train/.git/x.png",
        ]);
        let found = find(here.path(), 0.5).unwrap();
        assert_eq!(found.classes, ["B", "a", "b"]);
        let expected = [
            ("train/B/z.png", 0),
            ("train/a/x.png", 1),
            ("train/b/10.JPG", 2),
            ("train/b/2.png", 2),
            ("train/b/inner/1.jpeg", 2),
        ];
        assert_eq!(names(&here, &found.train), expected.map(|(name, label)| (name.to_owned(), label)));
        assert_eq!(found.test.len(), 3);
        assert!(!found.is_divided);
    }

    #[test]
    fn the_choice_of_test_images_depends_on_paths_alone() {
        let files: Vec<String> = (0..500).map(|number| format!("{}/{number}.png", number % 2)).collect();
        let here = folder(&files.iter().map(String::as_str).collect::<Vec<_>>());
        let found = find(here.path(), 0.1).unwrap();
        assert!(found.is_divided && (30..70).contains(&found.test.len()), "{} of 500", found.test.len());
        assert_eq!(found.train.len() + found.test.len(), 500);
        // Another file moves no file.
        fs::write(here.path().join("0/new.png"), b"x").unwrap();
        let more = find(here.path(), 0.1).unwrap();
        let without_new = |images: &[Labelled]| {
            names(&here, images).into_iter().filter(|(name, _)| name != "0/new.png").collect::<Vec<_>>()
        };
        assert_eq!(without_new(&more.test), names(&here, &found.test));
        let larger = find(here.path(), 0.3).unwrap();
        assert!(found.test.iter().all(|image| larger.test.contains(image)));
    }

    #[test]
    fn a_folder_that_is_no_set_of_images_is_refused_with_what_is_wrong() {
        let said = |files: &[&str]| find(folder(files).path(), 0.1).unwrap_err().to_string();
        assert!(said(&["readme.md"]).contains("no folder for each class"));
        assert!(said(&["signs/0/a.png"]).contains("has one class, signs"));
        assert!(said(&["a/1.png", "b/notes.txt"]).contains("has no image files"));
        assert!(said(&["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"]).contains("class b is in"));
        assert!(said(&["a/1.png", "b/1.png"]).contains("--test-share"), "two files can't be divided by a tenth");
        let looped = folder(&["a/1.png", "b/1.png"]);
        symlink("..", looped.path().join("a/up")).unwrap();
        assert!(find(looped.path(), 0.1).unwrap_err().to_string().contains("symbolic links may form a loop"));
        for files in [&["Train/a/1.png", "test/a/1.png"][..], &["test/a/1.png", "test/b/1.png"]] {
            assert!(
                said(files).contains("none named train") && said(files).contains("/test --test-share 1"),
                "{files:?}"
            );
        }
    }

    #[test]
    fn a_link_that_leads_nowhere_is_no_missing_class_or_part() {
        let whole = ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"];
        for link in ["test", "val", "train", "train/c"] {
            let here = folder(&whole);
            let _ = fs::remove_dir_all(here.path().join(link));
            symlink("nowhere", here.path().join(link)).unwrap();
            let error = find(here.path(), 0.1).unwrap_err();
            assert!(matches!(error, DataError::Read { .. }) && error.to_string().ends_with(link), "{link}: {error}");
        }
    }

    #[test]
    fn runs_beside_classes_are_no_class_and_all_images_may_be_for_tests() {
        let here = folder(&["a/1.png", "b/1.png", "runs/one/run.json", "mine/run.json", "mine/checkpoints/x"]);
        let found = find(here.path(), 1.0).unwrap();
        assert_eq!((found.classes, found.train.len(), found.test.len()), (vec!["a".into(), "b".into()], 0, 2));
        // A class may have the name.
        let here = folder(&["a/1.png", "runs/1.png"]);
        assert_eq!(find(here.path(), 1.0).unwrap().classes, ["a", "runs"]);
    }
}
