//! The checkpoints of a run: which there are, the newest sound one, and which are deleted.
//!
//! Not here: what a checkpoint holds, and whether it is sound (`checkpoint`).

use std::fs;
use std::io::ErrorKind;
use std::iter;
use std::path::{Path, PathBuf};

use super::{Checkpoint, CheckpointError, FOLDER, MANIFEST, name_of, peek_manifest, read};
use crate::files::remove_any;

/// How often checkpoints are listed, if those that are read are deleted meanwhile.
const LOOKS_MAX: usize = 10;
/// What commands for checkpoints take.
const FOLDERS: &str = "the folder of a run or of a checkpoint";

/// A checkpoint that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The newest sound one.
    pub checkpoint: Checkpoint,
    /// Newer ones that are damaged: what is wrong with each.
    pub damaged: Vec<CheckpointError>,
}

/// The hash of the weights of a checkpoint that was checked, or what is wrong with it.
pub type Checked = Result<String, CheckpointError>;

/// Opens the checkpoint that `path` names: its own folder, or the folder of a run, whose newest sound checkpoint is meant.
///
/// # Errors
/// When there is none, or none is sound.
pub fn open(path: &Path) -> Result<Opened, CheckpointError> {
    check_exists(path, FOLDERS)?;
    if path.join(MANIFEST).is_file() {
        return Ok(Opened { checkpoint: read_one(path)?, damaged: Vec::new() });
    }
    open_newest(path)?.ok_or_else(|| CheckpointError::None { path: path.to_owned() })
}

/// Checks that there is something at `path`, where `wanted` is.
///
/// # Errors
/// When there is nothing.
pub fn check_exists(path: &Path, wanted: &'static str) -> Result<(), CheckpointError> {
    if path.exists() { Ok(()) } else { Err(CheckpointError::Missing { path: path.to_owned(), wanted }) }
}

/// Opens the newest sound checkpoint of the run in `run`, if it has any checkpoint.
///
/// # Errors
/// When none is sound.
pub fn open_newest(run: &Path) -> Result<Option<Opened>, CheckpointError> {
    let Newest { sound, damaged } = newest(run, read_named)?;
    match (sound, damaged) {
        (Some(checkpoint), damaged) => Ok(Some(Opened { checkpoint, damaged })),
        (None, damaged) => match damaged.into_iter().next() {
            Some(first) => Err(CheckpointError::NoneSound { run: run.to_owned(), source: Box::new(first) }),
            None => Ok(None),
        },
    }
}

/// The newest sound checkpoint, if there is one, and what is wrong with those after it.
#[derive(Debug)]
struct Newest<T> {
    sound: Option<T>,
    damaged: Vec<CheckpointError>,
}

/// The newest checkpoint of a run that `read` accepts. Those that a running job deletes meanwhile are no checkpoints.
fn newest<T>(
    run: &Path,
    mut read: impl FnMut(&Path) -> Result<T, CheckpointError>,
) -> Result<Newest<T>, CheckpointError> {
    'look: for _ in 0..LOOKS_MAX {
        let mut damaged = Vec::new();
        for (_, path) in all(run)?.into_iter().rev() {
            match read(&path) {
                Ok(found) => return Ok(Newest { sound: Some(found), damaged }),
                Err(_) if was_deleted(&path) => continue 'look,
                Err(error) => damaged.push(error),
            }
        }
        return Ok(Newest { sound: None, damaged });
    }
    Err(CheckpointError::Vanishing { run: run.to_owned() })
}

/// Checks every checkpoint of the run in `path`, or the one checkpoint that it is. Each with what is wrong with it, if anything.
///
/// # Errors
/// When there is none.
pub fn verify(path: &Path) -> Result<Vec<(PathBuf, Checked)>, CheckpointError> {
    check_exists(path, FOLDERS)?;
    if path.join(MANIFEST).is_file() {
        return Ok(vec![(path.to_owned(), read_one(path).map(hash_of))]);
    }
    verify_run(path, |path| read_named(path).map(hash_of))
}

/// The checkpoints of a run, and what `check` says of each. Those that a running job deletes meanwhile are left out.
fn verify_run(run: &Path, mut check: impl FnMut(&Path) -> Checked) -> Result<Vec<(PathBuf, Checked)>, CheckpointError> {
    for _ in 0..LOOKS_MAX {
        let found = all(run)?;
        if found.is_empty() {
            return Err(CheckpointError::None { path: run.to_owned() });
        }
        // One after the other, so that one checkpoint at a time is in memory.
        let checked = found.into_iter().map(|(_, path)| (path.clone(), check(&path)));
        let there: Vec<_> = checked.filter(|(path, checked)| checked.is_ok() || !was_deleted(path)).collect();
        if !there.is_empty() {
            return Ok(there);
        }
    }
    Err(CheckpointError::Vanishing { run: run.to_owned() })
}

fn hash_of(checkpoint: Checkpoint) -> String {
    checkpoint.manifest.weights_sha256
}

/// Whether a checkpoint that could not be read has disappeared. A running job deletes old checkpoints once it has newer ones.
fn was_deleted(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Reads a checkpoint of a run, which must have the name of its step.
fn read_named(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let checkpoint = read(path)?;
    let step = checkpoint.manifest.progress.step;
    if is_named(path, step) { Ok(checkpoint) } else { Err(CheckpointError::Misnamed { path: path.to_owned(), step }) }
}

/// Reads the checkpoint that a user names. One that was copied out of its run may have any name, and so may a link.
fn read_one(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let checkpoint = read(path)?;
    let step = checkpoint.manifest.progress.step;
    let has_any_name = run_of(path).is_none();
    match has_any_name || path.canonicalize().is_ok_and(|whole| is_named(&whole, step)) {
        true => Ok(checkpoint),
        false => Err(CheckpointError::Misnamed { path: path.to_owned(), step }),
    }
}

fn is_named(path: &Path, step: u64) -> bool {
    path.file_name().is_some_and(|name| name == &*name_of(step))
}

/// Renames the checkpoints of the run in `run` that come after `step`, so that they are no checkpoints of the run any more. Returns their
/// paths and their new names.
///
/// # Errors
/// When one can't be renamed.
pub fn set_aside_after(run: &Path, step: u64) -> Result<Vec<(PathBuf, String)>, CheckpointError> {
    let mut renamed = Vec::new();
    for (later, path) in all(run)?.into_iter().filter(|(later, _)| *later > step) {
        let first = format!("later-{}", name_of(later));
        let others = (2..).map(|number| format!("{first}-{number}"));
        let is_free = |name: &String| !path.with_file_name(name).exists();
        let name = iter::once(first.clone()).chain(others).find(is_free).expect("there is always another number");
        fs::rename(&path, path.with_file_name(&name))
            .map_err(|source| CheckpointError::Write { path: path.clone(), source })?;
        renamed.push((path, name));
    }
    Ok(renamed)
}

/// The folder of a checkpoint's run: RUN for RUN/checkpoints/step-NNNNNN. None for a checkpoint that was copied elsewhere.
pub fn run_of(checkpoint: &Path) -> Option<PathBuf> {
    let path = checkpoint.canonicalize().ok()?;
    let folder = path.parent().filter(|folder| folder.ends_with(FOLDER))?;
    let run = folder.parent()?;
    // The path as the user wrote it, if it leads there.
    let named = checkpoint.parent().and_then(Path::parent).filter(|named| !named.as_os_str().is_empty());
    Some(named.filter(|named| named.canonicalize().is_ok_and(|named| named == run)).unwrap_or(run).to_owned())
}

/// Whether the run in `run` has a checkpoint.
///
/// # Errors
/// When the folder exists but can't be read.
pub fn has_any(run: &Path) -> Result<bool, CheckpointError> {
    Ok(!all(run)?.is_empty())
}

/// Deletes all but the newest `keep` checkpoints in `folder`, a run's `checkpoints`, and what writers that were killed have left
/// behind. A checkpoint at the end of its job is kept.
///
/// # Errors
/// When one can't be deleted.
pub fn prune(folder: &Path, keep: usize) -> Result<(), CheckpointError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::Write { path, source }
    };
    let found = steps_in(folder)?;
    for (step, path) in &found[..found.len().saturating_sub(keep.max(1))] {
        let is_end = peek_manifest(path).is_ok_and(|manifest| manifest.last_step == manifest.progress.step);
        if !is_end {
            // Under another name first, so that a checkpoint is never there in part.
            let discarded = folder.join(format!(".step-{step:06}.old"));
            fs::rename(path, &discarded).map_err(wrong(path))?;
        }
    }
    for entry in fs::read_dir(folder).map_err(wrong(folder))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".step-") && (name.ends_with(".old") || name.ends_with(".tmp")) {
            remove_any(&entry.path()).map_err(wrong(&entry.path()))?;
        }
    }
    Ok(())
}

/// The checkpoints of a run and their steps, ascending.
fn all(run: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let folder = run.join(FOLDER);
    match fs::metadata(&folder) {
        Ok(found) if found.is_dir() => steps_in(&folder),
        Err(source) if !matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(CheckpointError::Read { path: folder, source })
        }
        _ => Ok(Vec::new()),
    }
}

fn steps_in(folder: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let unreadable = |source| CheckpointError::Read { path: folder.to_owned(), source };
    // A folder that is read only in part may hide the newest checkpoint, and steps would be lost.
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(unreadable)?;
    let steps = entries.into_iter().filter_map(|entry| {
        let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok()?;
        Some((step, entry.path()))
    });
    let mut steps: Vec<_> = steps.collect();
    steps.sort();
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(steps: &[u64]) -> tempfile::TempDir {
        let run = tempfile::TempDir::new().unwrap();
        steps.iter().for_each(|step| add(run.path(), *step));
        run
    }

    fn add(run: &Path, step: u64) {
        fs::create_dir_all(run.join(FOLDER).join(name_of(step))).unwrap();
    }

    fn unsound(path: &Path) -> CheckpointError {
        CheckpointError::None { path: path.to_owned() }
    }

    /// While a checkpoint is read, the job deletes it and writes the next one.
    fn replace(path: &Path, next: u64) -> CheckpointError {
        fs::remove_dir(path).unwrap();
        add(path.parent().unwrap().parent().unwrap(), next);
        unsound(path)
    }

    #[test]
    fn a_checkpoint_that_is_deleted_while_it_is_read_is_not_damaged_and_the_next_one_is_found() {
        let run = run_with(&[1]);
        let mut read = |path: &Path| match path.ends_with(name_of(3)) {
            true => Ok(name_of(3)),
            false => Err(replace(path, if path.ends_with(name_of(1)) { 2 } else { 3 })),
        };
        let found = newest(run.path(), &mut read).unwrap();
        assert!(found.sound.as_ref() == Some(&name_of(3)) && found.damaged.is_empty(), "{found:?}");
        let run = run_with(&[1]);
        let checked = verify_run(run.path(), &mut read).unwrap();
        assert!(checked.len() == 1 && checked[0].0.ends_with(name_of(3)) && checked[0].1.is_ok(), "{checked:?}");
    }

    #[test]
    fn checkpoints_that_are_deleted_faster_than_they_are_read_are_an_error_that_says_so() {
        for verifies in [false, true] {
            let (run, mut step) = (run_with(&[1]), 1);
            let read = |path: &Path| {
                step += 1;
                Err(replace(path, step))
            };
            let error = match verifies {
                true => verify_run(run.path(), read).unwrap_err(),
                false => newest(run.path(), read).unwrap_err(),
            };
            assert!(error.to_string().contains("faster than they can be read"), "{error}");
        }
    }

    /// The control: what stays where it is and can't be read is damaged.
    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_reported() {
        let run = run_with(&[1, 2]);
        let read = |path: &Path| if path.ends_with(name_of(1)) { Ok("sound".to_owned()) } else { Err(unsound(path)) };
        let found = newest(run.path(), read).unwrap();
        assert_eq!((found.sound.as_deref(), found.damaged.len()), (Some("sound"), 1));
        let checked = verify_run(run.path(), read).unwrap();
        assert_eq!(checked.iter().map(|(_, checked)| checked.is_ok()).collect::<Vec<_>>(), [true, false]);
        assert!(newest(run_with(&[]).path(), read).unwrap().sound.is_none());
    }
}
