//! Writes checkpoints on a thread of its own, one at a time, so that training goes on meanwhile.
//!
//! Not here: what a checkpoint holds (`checkpoint`), and when one is due (`train`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::{CheckpointError, Described, folder, write};
use crate::state::Snapshot;

/// A checkpoint that was written.
#[derive(Debug)]
pub struct Written {
    /// The step that it holds.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

/// A request to write a checkpoint.
pub struct Request {
    /// Everything but its tensors.
    pub described: Described,
    /// Its tensors.
    pub snapshot: Arc<Snapshot>,
    /// The run's metrics, which must be on disk up to the checkpoint's step before the checkpoint is.
    pub metrics: File,
}

/// Writes the checkpoints of a run.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    keep: usize,
    underway: Option<Underway>,
}

#[derive(Debug)]
struct Underway {
    snapshot: Arc<Snapshot>,
    thread: JoinHandle<Result<Written, CheckpointError>>,
}

impl Writer {
    /// Writes into `folder`, a run's `checkpoints`, and keeps the newest `keep` there.
    pub fn new(folder: PathBuf, keep: usize) -> Self {
        Self { folder, keep, underway: None }
    }

    /// Begins to write a checkpoint. Finish the one before it first.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn begin(&mut self, request: Request) -> Result<(), CheckpointError> {
        debug_assert!(self.underway.is_none(), "one at a time");
        let (folder, keep, snapshot) = (self.folder.clone(), self.keep, request.snapshot.clone());
        let thread = Builder::new().name("checkpoint".to_owned()).spawn(move || write_one(&folder, keep, &request));
        let thread = thread.map_err(|source| CheckpointError::Write { path: self.folder.clone(), source })?;
        self.underway = Some(Underway { snapshot, thread });
        Ok(())
    }

    /// Whether a checkpoint of another snapshot than this one is being written.
    pub fn holds_other_than(&self, snapshot: &Arc<Snapshot>) -> bool {
        self.underway.as_ref().is_some_and(|underway| !Arc::ptr_eq(&underway.snapshot, snapshot))
    }

    /// The checkpoint that has been written since the last call, if there is one.
    ///
    /// # Errors
    /// When it couldn't be written.
    pub fn written(&mut self) -> Result<Option<Written>, CheckpointError> {
        if self.underway.as_ref().is_some_and(|underway| underway.thread.is_finished()) {
            self.finish()
        } else {
            Ok(None)
        }
    }

    /// Waits until the checkpoint that is being written, if any, is on disk.
    ///
    /// # Errors
    /// When it couldn't be written.
    pub fn finish(&mut self) -> Result<Option<Written>, CheckpointError> {
        let Some(Underway { thread, .. }) = self.underway.take() else { return Ok(None) };
        let panicked = |_| {
            let source = std::io::Error::other("the thread that writes checkpoints panicked");
            Err(CheckpointError::Write { path: self.folder.clone(), source })
        };
        thread.join().unwrap_or_else(panicked).map(Some)
    }
}

impl Drop for Writer {
    /// Leaves nothing half-written.
    fn drop(&mut self) {
        // The job has failed already, and this error came later.
        let _ = self.finish();
    }
}

fn write_one(folder: &Path, keep: usize, request: &Request) -> Result<Written, CheckpointError> {
    let Request { described, snapshot, metrics } = request;
    metrics.sync_data().map_err(|source| CheckpointError::Write { path: folder.to_owned(), source })?;
    let path = write(folder, described, &snapshot.state)?;
    folder::prune(folder, keep)?;
    Ok(Written { step: described.progress.step, path })
}
