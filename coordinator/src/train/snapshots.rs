//! Snapshots and checkpoints between steps:
//!
//! ```text
//! due -> arriving (the workers send their state) -> the snapshot -> being written, if it is a checkpoint -> on disk
//! ```
//!
//! The job goes on while a snapshot arrives, and while a checkpoint is written. It waits while the state of a checkpoint arrives. At
//! most one snapshot arrives at a time, and at most one is being written. After a fault, the job goes back to the last one that has arrived.
//!
//! Not here: how state is gathered (`crew`), and files (`checkpoint`).

use std::sync::Arc;
use std::time::Instant;

use convoy_common::chain::chain;
use convoy_common::parameters::Tensors;
use convoy_common::trace::Activity;

use super::Run;
use super::drive::{Arriving, Drive};
use crate::checkpoint::writer::{Request, Written};
use crate::checkpoint::{CheckpointError, Described};
use crate::crew::Crew;
use crate::error::JobError;
use crate::observe::{Event, Observer};
use crate::state::{JobState, Snapshot};
use crate::stop::Stop;

impl Run {
    /// Keeps the state after a step, if a snapshot or a checkpoint is due.
    pub(super) fn keep(&mut self, crew: &mut Crew, drive: &mut Drive) -> Result<(), Stop> {
        let written = self.writer.written();
        report(written, drive, crew.observer);
        let (step, grows) = (self.progress.step, crew.can_grow() && drive.sent.is_none());
        let is_due = drive.pace.is_due(step, self.running.snapshot_every, Instant::now());
        if step == self.last_step || step.is_multiple_of(self.checkpoint_every) {
            self.checkpoint(crew, drive)?;
        } else if is_due && grows {
            self.snapshot(crew, drive, false)?;
        } else if is_due && drive.arriving.is_none() {
            self.begin_snapshot(crew, drive, false)?;
        }
        if grows && self.snapshot.progress.step == step && step < self.last_step {
            return Err(Stop::Grows);
        }
        Ok(())
    }

    /// Takes the snapshot that has arrived, if one has.
    pub(super) fn adopt_snapshot(&mut self, crew: &mut Crew, drive: &mut Drive) -> Result<(), Stop> {
        match crew.gathered() {
            Some(state) => self.end_snapshot(crew, drive, state),
            None => Ok(()),
        }
    }

    /// Takes a snapshot of the present step, while the job waits.
    fn snapshot(&mut self, crew: &mut Crew, drive: &mut Drive, is_checkpoint: bool) -> Result<(), Stop> {
        self.wait_for_snapshot(crew, drive)?;
        self.begin_snapshot(crew, drive, is_checkpoint)?;
        self.wait_for_snapshot(crew, drive)
    }

    /// Takes a snapshot of the present step, and begins to write it to disk. The job waits for the state, because a step that fails
    /// would take it along.
    pub(super) fn checkpoint(&mut self, crew: &mut Crew, drive: &mut Drive) -> Result<(), Stop> {
        self.snapshot(crew, drive, true)
    }

    /// Asks the workers for their state. It arrives while the job goes on.
    fn begin_snapshot(&mut self, crew: &mut Crew, drive: &mut Drive, is_checkpoint: bool) -> Result<(), Stop> {
        let (began, began_recording) = (Instant::now(), crew.recorder.now());
        // No more than two snapshots are in memory.
        if self.writer.holds_other_than(&self.snapshot) {
            report(self.writer.finish(), drive, crew.observer);
            drive.last_commit = None;
        }
        crew.begin_gathering(self.progress.step, self.outdated.take())?;
        drive.arriving = Some(Arriving { progress: self.progress, is_checkpoint, waited: began.elapsed() });
        crew.recorder.ended(began_recording, || Activity::Checkpoint);
        Ok(())
    }

    /// Waits for the snapshot that arrives, if there is one.
    fn wait_for_snapshot(&mut self, crew: &mut Crew, drive: &mut Drive) -> Result<(), Stop> {
        let (began, began_recording) = (Instant::now(), crew.recorder.now());
        let Some(state) = crew.finish_gathering(self.progress.step)? else { return Ok(()) };
        // The next step begins after the wait.
        drive.last_commit = None;
        drive.arriving.iter_mut().for_each(|arriving| arriving.waited += began.elapsed());
        self.end_snapshot(crew, drive, state)?;
        crew.recorder.ended(began_recording, || Activity::Checkpoint);
        Ok(())
    }

    /// A snapshot has arrived. From here on, a fault leads back to it.
    fn end_snapshot(&mut self, crew: &mut Crew, drive: &mut Drive, state: JobState) -> Result<(), Stop> {
        let began = Instant::now();
        let Some(Arriving { progress, is_checkpoint, waited }) = drive.arriving.take() else { return Ok(()) };
        check_finite(&state, progress.step)?;
        let before = std::mem::replace(&mut self.snapshot, Arc::new(Snapshot { progress, state }));
        // None if the writer still holds it.
        self.outdated = Arc::into_inner(before).map(|snapshot| snapshot.state);
        self.witness.forget_through(progress.step);
        if is_checkpoint {
            self.begin_checkpoint(drive, crew.observer)?;
        }
        let now = Instant::now();
        let cost = drive.pace.took(waited + (now - began), now);
        crew.observer.on(Event::Snapshot { step: progress.step, seconds: cost.as_secs_f64() });
        Ok(())
    }

    /// Begins to write the snapshot to disk, in the background.
    fn begin_checkpoint(&mut self, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        report(self.writer.finish(), drive, observer);
        self.look_after_metrics(observer);
        let described = Described {
            job: self.job.clone(),
            last_step: self.last_step,
            progress: self.snapshot.progress,
            source: Some(self.source.clone()),
            reading: self.reading,
            classes: self.data.classes.clone(),
            colours: self.data.colours,
            test_images: Some(self.test_images.clone()),
        };
        let (snapshot, metrics) = (self.snapshot.clone(), self.folder.metrics_file()?);
        Ok(self.writer.begin(Request { described, snapshot, metrics })?)
    }

    /// Tells once if the file of metrics was removed or replaced. The job goes on, and fails in the end.
    fn look_after_metrics(&mut self, observer: &mut dyn Observer) {
        if self.misses_metrics {
            return;
        }
        if let Err(error) = self.folder.check_metrics() {
            self.misses_metrics = true;
            let text = format!("{}; what the job writes from now on is lost", chain(&error));
            observer.on(Event::Notice { text });
        }
    }

    /// Waits until the checkpoint that is being written, if any, is on disk. It is the last one, so it must not fail.
    pub(super) fn finish_checkpoint(&mut self, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        let written = self.writer.finish()?;
        report(Ok(written), drive, observer);
        Ok(())
    }

    /// Waits until the checkpoint that is being written, if any, is on disk, or has failed.
    pub(super) fn settle_checkpoint(&mut self, drive: &mut Drive, observer: &mut dyn Observer) {
        report(self.writer.finish(), drive, observer);
    }

    /// Writes the snapshot of a job that has failed to disk, unless no step was committed before it.
    pub(super) fn save_snapshot(&mut self, drive: &mut Drive, observer: &mut dyn Observer) {
        if self.snapshot.progress.step == 0 {
            return;
        }
        let saved = self.write_checkpoint(drive, observer);
        let out = self.folder.path().display();
        let text = match saved {
            Ok(()) => {
                format!("step {} is saved; continue with: convoy train --resume {out}", self.snapshot.progress.step)
            }
            Err(error) => chain(&error),
        };
        observer.on(Event::Notice { text });
    }

    /// Writes the snapshot to disk.
    pub(super) fn write_checkpoint(&mut self, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        self.begin_checkpoint(drive, observer)?;
        self.finish_checkpoint(drive, observer)
    }
}

/// Reports a checkpoint that was written. One that couldn't be written does not stop the job, unless it is the last: the disk may have
/// room again when the next one is due.
fn report(written: Result<Option<Written>, CheckpointError>, drive: &mut Drive, observer: &mut dyn Observer) {
    match written {
        Ok(None) => {}
        Ok(Some(Written { step, path })) => {
            drive.checkpoint = Some(path.clone());
            observer.on(Event::Checkpoint { step, path });
        }
        Err(error) => {
            let text = format!("{}; the job goes on, and tries again at the next checkpoint", chain(&error));
            observer.on(Event::Notice { text });
        }
    }
}

/// Checks that a checkpoint is worth writing. An update that overflows shows here first.
fn check_finite(state: &JobState, step: u64) -> Result<(), JobError> {
    let named = |(what, tensors): (&'static str, &Tensors)| {
        let spoilt = tensors.iter().find(|(_, tensor)| !tensor.iter().all(|value| value.is_finite()));
        spoilt.map(|(name, _)| format!("{what}{name} is no longer finite after step {step}"))
    };
    let found = [("", &state.weights), ("the momentum of ", &state.momentum)].into_iter().find_map(named);
    found.map_or(Ok(()), |what| Err(JobError::NotFinite { what, updates: step }))
}
