//! The folder of a study: what it says about the study, its runs, and the reports. One process uses it at a time.
//!
//! Not here: what the files mean (`design`, `measured`, `report`).

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use convoy_coordinator::files::{read_regular, write_atomically};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::error::Category;

use crate::design::RunId;
use crate::error::StudyError;
use crate::file::Study;
use crate::images::Images;
use crate::measured::{MEASURED, MEASUREMENTS, Measured};

/// The file that says which study the folder holds.
const STUDY: &str = "study.json";

/// A study's folder, locked.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

/// The file of the study.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// SHA-256 over all that decides the study.
    sha256: String,
    /// SHA-256 over its images.
    images: String,
    /// Number of training images. Studies that were begun before this was kept don't have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    train_images: Option<usize>,
    /// The study itself.
    study: Value,
}

impl Folder {
    /// Opens or creates the folder of a study on images with this fingerprint, so many of which are training images, and locks it.
    ///
    /// # Errors
    /// When it holds a study that differs, or something else; when another process uses it; when it can't be written.
    pub fn open(path: &Path, study: &Study, images: &str, train_images: usize) -> Result<Self, StudyError> {
        if fs::metadata(path).is_ok_and(|found| !found.is_dir()) {
            return Err(StudyError::NotAFolder { path: path.to_owned() });
        }
        fs::create_dir_all(path).map_err(wrong(path))?;
        let lock = File::open(path).map_err(wrong(path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StudyError::Busy { folder: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(wrong(path)(source)),
        }
        let folder = Self { path: path.to_owned(), _lock: lock };
        let asked = serde_json::to_value(study).unwrap_or_default();
        let kept = folder.read::<Kept>(&folder.path.join(STUDY)).map_err(|error| match error {
            StudyError::Damaged { path: file, why } => {
                StudyError::DamagedStudy { path: file, folder: path.to_owned(), why }
            }
            other => other,
        });
        match kept? {
            Some(kept) => {
                let images = (kept.images != images).then(|| "it was begun with other images".to_owned());
                if let Some(what) = difference(&kept.study, &asked, "").or(images) {
                    return Err(StudyError::Changed { folder: path.to_owned(), what });
                }
            }
            None => {
                let mut entries = fs::read_dir(path).map_err(wrong(path))?.flatten();
                if entries.any(|entry| !entry.file_name().to_string_lossy().starts_with('.')) {
                    return Err(StudyError::Occupied { folder: path.to_owned() });
                }
                let (sha256, images, train_images) = (study.sha256(images), images.to_owned(), Some(train_images));
                let kept = Kept { sha256, images, train_images, study: asked };
                folder.write_json(STUDY, &kept)?;
            }
        }
        folder.write_models(study)?;
        Ok(folder)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model file of an arm.
    pub fn model(&self, arm: &str) -> PathBuf {
        self.path.join("models").join(format!("{arm}.toml"))
    }

    /// The folder of a run.
    pub fn run(&self, study: &Study, id: RunId) -> PathBuf {
        let arm = &study.arms[id.arm];
        self.path.join("runs").join(&arm.name).join(format!("seed-{}", arm.seeds[id.pair]))
    }

    /// What was measured in the runs of a study that have ended, by their own files or by the file of all measurements, which remains useful
    /// without the folders of runs.
    ///
    /// # Errors
    /// When a file is damaged.
    pub fn all_measured(&self, study: &Study, images: &Images) -> Result<BTreeMap<RunId, Measured>, StudyError> {
        let kept: Vec<Measured> = self.read(&self.path.join(MEASUREMENTS))?.unwrap_or_default();
        let (mut ended, mut images_of_test) = (BTreeMap::new(), None);
        for id in study.runs() {
            let expected = study.job_sha256(id, images);
            let (own, all) = (self.run(study, id).join(MEASURED), self.path.join(MEASUREMENTS));
            let of_run: Option<Measured> = self.read(&own)?;
            let mut known = of_run.iter().map(|found| (&own, found)).chain(kept.iter().map(|found| (&all, found)));
            let found = known.find(|(_, found)| found.job_sha256 == expected);
            if let Some((path, found)) = found {
                found
                    .check(study.epochs, images_of_test)
                    .map_err(|why| StudyError::Damaged { path: path.clone(), why })?;
                images_of_test = images_of_test.or(found.test_images());
            }
            let found = found.map(|(_, found)| found);
            // Two arms may have the same job.
            let arm = study.arms[id.arm].name.clone();
            ended.extend(found.map(|found| (id, Measured { arm, ..found.clone() })));
        }
        Ok(ended)
    }

    /// Writes a file as JSON, whole or not at all. `name` may begin with folders.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), StudyError> {
        write_json(&self.path.join(name), value)
    }

    /// Writes a text, likewise.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_text(&self, name: &str, text: &str) -> Result<(), StudyError> {
        let path = self.path.join(name);
        write_atomically(&path, text.as_bytes()).map_err(wrong(&path))
    }

    /// A JSON file. None if there is none.
    pub(crate) fn read<T: for<'a> Deserialize<'a>>(&self, path: &Path) -> Result<Option<T>, StudyError> {
        let damaged = |why: String| StudyError::Damaged { path: path.to_owned(), why };
        match read_regular(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(not_as_written(&error))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(damaged(error.to_string())),
        }
    }

    fn write_models(&self, study: &Study) -> Result<(), StudyError> {
        let models = self.path.join("models");
        fs::create_dir_all(&models).map_err(wrong(&models))?;
        for arm in &study.arms {
            let path = self.model(&arm.name);
            write_atomically(&path, arm.model.as_bytes()).map_err(wrong(&path))?;
        }
        Ok(())
    }
}

/// SHA-256 over the images of the study in this folder, and the number of training images if the folder has it.
///
/// # Errors
/// When the folder holds no study.
pub(crate) fn images_of(folder: &Path) -> Result<(String, Option<usize>), StudyError> {
    let path = folder.join(STUDY);
    let unreadable = |why: String| StudyError::Unreadable { path: path.clone(), why };
    let text = read_regular(&path).map_err(|error| unreadable(error.to_string()))?;
    let kept: Kept = serde_json::from_slice(&text).map_err(|error| unreadable(not_as_written(&error)))?;
    Ok((kept.images, kept.train_images))
}

/// What is wrong with a file that this program has written, for a person who does not know its types.
fn not_as_written(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Data => format!("line {line}, column {column} is not what convoy writes there"),
        Category::Eof => format!("it ends early, in line {line}"),
        // A text in memory has no errors of reading.
        Category::Syntax | Category::Io => format!("line {line}, column {column} is not JSON"),
    }
}

/// Writes a JSON file, whole or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StudyError> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::other);
    text.and_then(|text| write_atomically(path, (text + "\n").as_bytes())).map_err(wrong(path))
}

fn wrong(at: &Path) -> impl FnOnce(std::io::Error) -> StudyError {
    let path = at.to_owned();
    move |source| StudyError::Write { path, source }
}

/// The first place at which two studies differ, and how. None if they are equal.
fn difference(before: &Value, now: &Value, place: &str) -> Option<String> {
    match (before, now) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let place = if place.is_empty() { key.clone() } else { format!("{place}, {key}") };
                difference(a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), &place)
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(index, (a, b))| {
                let name = a["name"].as_str().map_or_else(|| (index + 1).to_string(), |name| format!("\"{name}\""));
                difference(a, b, &format!("{place} {name}"))
            })
        }
        (a, b) if a == b => None,
        (Value::Array(a), Value::Array(b)) => Some(format!("{place}: it has {} of them, not {}", a.len(), b.len())),
        (a, b) => Some(format!("{place}: it has {}, not {}", shown(a), shown(b))),
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.len() > 80 { "another text".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_described_without_the_names_of_types() {
        for (text, expected) in [
            ("{\n\"sha256\": 7}", "line 2, column 11 is not what convoy writes there"),
            ("{\n\"sha256\": ", "it ends early, in line 2"),
            ("{\n sha256", "line 2, column 2 is not JSON"),
        ] {
            let error = serde_json::from_str::<Kept>(text).map(drop).unwrap_err();
            assert_eq!(not_as_written(&error), expected);
        }
    }

    #[test]
    fn another_study_under_the_same_name_is_refused_and_the_difference_is_named() {
        let study = Study::open("quick").unwrap();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("quick");
        drop(Folder::open(&path, &study, "images", 10).unwrap());
        let open = |study: &Study, images: &str| Folder::open(&path, study, images, 10).map(drop);
        open(&study, "images").unwrap();
        let refused = |study: &Study, images: &str| open(study, images).unwrap_err().to_string();
        let epochs = Study { epochs: 7, ..study.clone() };
        assert!(refused(&epochs, "images").contains("epochs: it has 6, not 7"));
        let mut runs = study.clone();
        runs.arms[2].seeds.push(99);
        assert!(refused(&runs, "images").contains("arms \"grouped\", seeds: it has 8 of them, not 9"));
        let mut model = study.clone();
        model.arms[0].model.push('\n');
        assert!(refused(&model, "images").contains("arms \"dense\", model"));
        let margin = Study { margin: 0.5, ..study.clone() };
        assert!(refused(&margin, "images").contains("margin"));
        assert!(refused(&study, "other images").contains("other images"));
        let _held = Folder::open(&path, &study, "images", 10).unwrap();
        assert!(refused(&study, "images").contains("another process uses"));
        let notes = place.path().join("notes");
        std::fs::write(&notes, "mine").unwrap();
        assert!(Folder::open(&notes, &study, "images", 10).is_err_and(|e| e.to_string().contains("must be a folder")));
        assert!(
            Folder::open(place.path(), &study, "images", 10).is_err_and(|e| e.to_string().contains("but no study"))
        );
    }
}
