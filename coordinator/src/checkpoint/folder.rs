//! The checkpoints of a run: which there are, the newest sound one, and which are deleted.
//!
//! Not here: what a checkpoint holds, and whether it is sound (`checkpoint`).

use std::fs;
use std::io::ErrorKind;
use std::iter;
use std::path::{Path, PathBuf};

use super::{Checkpoint, CheckpointError, FOLDER, MANIFEST, name_of, peek_manifest, read};

/// How often checkpoints are listed, if each that is read is deleted meanwhile.
const LOOKS_MAX: usize = 100;
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

/// A checkpoint that was checked, or what is wrong with it.
pub type Checked = Result<Checkpoint, CheckpointError>;

/// Opens the checkpoint that `path` names: its own folder, or the folder of a run, whose newest sound checkpoint is meant.
///
/// # Errors
/// When there is none, or none is sound.
pub fn open(path: &Path) -> Result<Opened, CheckpointError> {
    check_exists(path, FOLDERS)?;
    if path.join(MANIFEST).is_file() {
        return Ok(Opened { checkpoint: read(path)?, damaged: Vec::new() });
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
    let mut damaged = Vec::new();
    let (mut left, mut looks) = (all(run)?, 1);
    while let Some((_, path)) = left.pop() {
        match read_named(&path) {
            Ok(checkpoint) => return Ok(Some(Opened { checkpoint, damaged })),
            Err(_) if was_deleted(&path) && looks < LOOKS_MAX => {
                looks += 1;
                damaged.clear();
                left = all(run)?;
            }
            Err(error) => damaged.push(error),
        }
    }
    let Some(newest) = damaged.into_iter().next() else { return Ok(None) };
    Err(CheckpointError::NoneSound { run: run.to_owned(), source: Box::new(newest) })
}

/// Checks every checkpoint of the run in `path`, or the one checkpoint that it is. Each with what is wrong with it, if anything.
///
/// # Errors
/// When there is none.
pub fn verify(path: &Path) -> Result<Vec<(PathBuf, Checked)>, CheckpointError> {
    check_exists(path, FOLDERS)?;
    if path.join(MANIFEST).is_file() {
        return Ok(vec![(path.to_owned(), read(path))]);
    }
    for _ in 0..LOOKS_MAX {
        let found = all(path)?;
        if found.is_empty() {
            break;
        }
        let checked = found.into_iter().map(|(_, path)| (path.clone(), read_named(&path)));
        let there: Vec<_> = checked.filter(|(path, checked)| checked.is_ok() || !was_deleted(path)).collect();
        if !there.is_empty() {
            return Ok(there);
        }
    }
    Err(CheckpointError::None { path: path.to_owned() })
}

/// Whether a checkpoint that could not be read has disappeared. A running job deletes old checkpoints once it has newer ones.
fn was_deleted(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

/// Reads a checkpoint of a run, which must have the name of its step.
fn read_named(path: &Path) -> Checked {
    let checkpoint = read(path)?;
    let step = checkpoint.manifest.progress.step;
    let is_named = path.file_name().is_some_and(|name| name == &*name_of(step));
    if is_named { Ok(checkpoint) } else { Err(CheckpointError::Misnamed { path: path.to_owned(), step }) }
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
            fs::remove_dir_all(entry.path()).map_err(wrong(&entry.path()))?;
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
        entry.path().is_dir().then(|| (step, entry.path()))
    });
    let mut steps: Vec<_> = steps.collect();
    steps.sort();
    Ok(steps)
}
