//! The steps of a generation: images are sent, exchanges relayed, losses computed and commits decided; and between steps the test
//! images are measured.
//!
//! Not here: snapshots and checkpoints (`snapshots`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use convoy_common::index::{SegmentIndex, TowerIndex};
use convoy_common::trace::Activity;
use convoy_common::wire::{FromWorker, ToWorker};
use convoy_dataset::{Draw, Seen, View};

use super::Run;
use super::drive::Drive;
use super::prefetch::StepImages;
use crate::crew::{Crew, Received, invalid, out_of_turn};
use crate::error::JobError;
use crate::evaluate::{Measured, Views, evaluate};
use crate::exchange::Routed;
use crate::fault::Fault;
use crate::observe::{EpochRecord, Event};
use crate::state::Progress;
use crate::step::Step;
use crate::stop::Stop;
use crate::trace::file::Figures;

impl Run {
    /// Drives all remaining steps. A job that stops in order writes a checkpoint.
    pub(super) fn drive(&mut self, crew: &mut Crew, drive: &mut Drive, stop: &AtomicBool) -> Result<(), Stop> {
        let ended = self.drive_to_the_end(crew, drive, stop);
        if matches!(ended, Err(Stop::InOrder | Stop::Leaves(_))) {
            self.checkpoint(crew, drive)?;
        }
        match ended {
            Err(Stop::InOrder) => self.finish_checkpoint(drive, crew.observer)?,
            // The worker leaves when the checkpoint is on disk, if it can be written.
            Err(Stop::Leaves(_)) => self.settle_checkpoint(drive, crew.observer),
            _ => {}
        }
        ended
    }

    fn drive_to_the_end(&mut self, crew: &mut Crew, drive: &mut Drive, stop: &AtomicBool) -> Result<(), Stop> {
        // A job that was interrupted during a measurement begins with that measurement.
        if self.owes_measurement(drive) {
            self.measure(crew, drive, stop)?;
            self.checkpoint(crew, drive)?;
        }
        while self.progress.step < self.last_step {
            if stop.load(Ordering::Relaxed) {
                return Err(Stop::InOrder);
            }
            crew.check_all_stay(self.progress.step)?;
            self.step(crew, drive)?;
            self.adopt_snapshot(crew, drive)?;
            if self.owes_measurement(drive) {
                self.measure(crew, drive, stop)?;
            }
            self.keep(crew, drive)?;
        }
        self.finish_checkpoint(drive, crew.observer)?;
        // A job that had ended before has nothing on disk yet if its folder is new.
        if drive.checkpoint.is_none() {
            self.checkpoint(crew, drive)?;
            self.finish_checkpoint(drive, crew.observer)?;
        }
        Ok(())
    }

    /// Whether the test images must be measured now: at the end of an epoch and at the end of the job. `epoch_images` is not zero
    /// until they have been.
    fn owes_measurement(&self, drive: &Drive) -> bool {
        let Progress { step, epoch_images, .. } = self.progress;
        epoch_images > 0 && (drive.order.batches().ends_epoch(step) || step == self.last_step)
    }

    /// Drives one step, from images to commit.
    fn step(&mut self, crew: &mut Crew, drive: &mut Drive) -> Result<(), Stop> {
        let number = self.progress.step + 1;
        let (began, began_recording) = drive.step_begins(crew.recorder);
        if crew.recorder.samples(number) {
            crew.ask_for_clocks(number)?;
        }
        let StepImages { images, micro_batches, .. } = match drive.sent.take() {
            Some(sent) => sent,
            None => self.send_images(crew, drive, number)?,
        };
        // The next step's images are sent while this one is computed, as soon as they are prepared, unless the job waits for something
        // in between.
        let waits = drive.order.batches().ends_epoch(number)
            || number.is_multiple_of(self.checkpoint_every)
            || crew.can_grow()
            || crew.observer.pauses_after(number);
        if number < self.last_step {
            self.ask_for_images(drive, number + 1);
        }
        let mut sends_next = number < self.last_step && !waits;
        crew.exchanges.begin_step(number, images.len());
        let labels = images.iter().map(|image| self.data.train.label(*image)).collect();
        let mut step = Step::new(self.plan.clone(), labels, &micro_batches);
        while !step.is_done() {
            if sends_next && drive.prefetch.is_ready() {
                drive.sent = Some(self.send_images(crew, drive, number + 1)?);
                sends_next = false;
            }
            self.hear(crew, &mut step, number)?;
        }
        if !step.loss().is_finite() {
            return Err(not_finite(number).into());
        }
        let replayed = self.witness.is_replay(number, step.loss())?;
        let lr = self.job.schedule.rate(self.job.lr, number, self.job.span);
        let hand_over = crew.recorder.decide(number, began_recording);
        // The step ends before any worker can receive its commit.
        let decided = (Instant::now(), crew.recorder.now());
        crew.tell_all(&ToWorker::Commit { step: number, rate: lr as f32, hand_over }, number)?;
        let (epoch, loss) = (drive.order.batches().epoch(number), step.loss());
        let figures = Figures { loss, images: images.len() };
        crew.recorder.step_ended(number, (began_recording, decided.1), figures);
        let seconds = decided.0 - began;
        drive.last_commit = Some(decided);
        if hand_over && !crew.recorder.samples(number) {
            // The step turned out to be slow, so it is kept after all.
            crew.ask_for_clocks(number)?;
        }
        micro_batches.iter().for_each(|micro_batch| crew.exchanges.close(micro_batch.id));
        self.progress.step = number;
        self.progress.epoch_loss_sum += step.loss_sum();
        self.progress.epoch_images += images.len() as u64;
        if !replayed {
            self.folder.add_step(number, epoch, loss, lr)?;
        }
        self.witness.recorded(number, loss);
        let images = images.len();
        drive.count(images, seconds);
        crew.stepped(number, seconds);
        drive.pace.stepped(seconds, drive.arriving.is_some());
        let (seconds, received_bytes) = (seconds.as_secs_f64(), drive.newly_received_bytes(crew));
        let image_wait_seconds = drive.new_image_wait();
        crew.observer.on(Event::Step {
            step: number,
            epoch,
            loss,
            lr,
            images,
            seconds,
            received_bytes,
            image_wait_seconds,
            replayed,
        });
        self.catch_up(crew, drive)?;
        if crew.observer.pauses_after(number) {
            drive.last_commit = None;
        }
        Ok(())
    }

    /// Sends the images of a step. Those of the steps after it are asked for, too.
    fn send_images(&self, crew: &mut Crew, drive: &mut Drive, number: u64) -> Result<StepImages, Stop> {
        self.ask_for_images(drive, number);
        let step = drive.prefetch.next(number);
        for micro_batch in &step.micro_batches {
            crew.exchanges.open(micro_batch);
            let began_waiting = crew.recorder.now();
            let (images, waited) = crew.await_images(&mut drive.prefetch.feeder, micro_batch.id)?;
            drive.image_wait += waited;
            let began = if waited.is_zero() { began_waiting } else { crew.recorder.now() };
            crew.send_images(micro_batch, images)?;
            crew.recorder.ended(began, || Activity::SendImages(micro_batch.id));
        }
        Ok(step)
    }

    /// Asks for the images of a step and of those after it, as far as memory allows.
    fn ask_for_images(&self, drive: &mut Drive, number: u64) {
        for number in drive.prefetch.missing(number, self.step_images(), self.last_step) {
            let images = drive.order.images(number);
            let epoch = drive.order.batches().epoch(number);
            let micro_batches = self.job.division(self.record.running.micro_batches).of(number, images.len());
            for micro_batch in &micro_batches {
                let seed = self.job.seed;
                let drawn = |image: &usize| Seen { image: *image, view: View::Drawn(Draw::new(seed, epoch, *image)) };
                drive.prefetch.feeder.ask(images[micro_batch.samples.clone()].iter().map(drawn).collect());
            }
            drive.prefetch.asked(StepImages { number, images, micro_batches });
        }
    }

    /// Handles one message of a worker during a step.
    fn hear(&self, crew: &mut Crew, step: &mut Step, number: u64) -> Result<(), Stop> {
        let plan = &self.plan;
        let waiting_for = || match step.waiting_for() {
            Some((worker, Some(tower))) => format!("tower {tower} on worker {worker}"),
            Some((worker, None)) => format!("the gradients of worker {worker}"),
            None => "nobody".to_owned(),
        };
        let (worker, received) = crew.next(number, waiting_for)?;
        match received {
            Received::Chunk(chunk, at) => {
                let (key, whole) = (crew.recorder.is_on().then(|| chunk.key.clone()), chunk.ends());
                let routed = crew.exchanges.route(worker, chunk).map_err(|source| invalid(worker, number, source))?;
                match routed {
                    Routed::Kept => {
                        crew.recorder.relayed(key, at, whole);
                        Ok(())
                    }
                    Routed::Relay { to, chunk } => {
                        crew.relay(&to, chunk, number)?;
                        crew.recorder.relayed(key, at, whole);
                        Ok(())
                    }
                    Routed::Logits { micro_batch, logits } => {
                        crew.recorder.relayed(key, at, whole);
                        if !step.holds(&micro_batch) {
                            let message = "it sent logits of another step".to_owned();
                            return Err(Fault::Failed { worker, step: number, message }.into());
                        }
                        let began = crew.recorder.now();
                        let gradients = step.on_logits(&micro_batch, &logits).ok_or_else(|| not_finite(number))?;
                        let holder =
                            |tower| plan.holder(plan.logits_exchange().segment_before(), tower, micro_batch.id);
                        let mut send = |(tower, payload): (TowerIndex, _)| crew.send(holder(tower), payload, number);
                        gradients.into_iter().try_for_each(&mut send)?;
                        crew.recorder.ended(began, || Activity::Loss(micro_batch.id));
                        Ok(())
                    }
                }
            }
            Received::State => Ok(()),
            Received::Said(FromWorker::BackwardDone { micro_batch, tower })
                if step.holds(&micro_batch)
                    && plan.parts(SegmentIndex(0)).any(|held| held == tower)
                    && plan.holder(SegmentIndex(0), tower, micro_batch.id) == worker
                    && step.on_backward_done(&micro_batch, tower) =>
            {
                Ok(())
            }
            Received::Said(FromWorker::StepDone { step: done, tally })
                if done == number && step.on_step_done(worker) =>
            {
                Ok(crew.take_tally(worker, number, &tally)?)
            }
            other => Err(out_of_turn(worker, number, &other).into()),
        }
    }

    /// Measures the test images, at the end of an epoch and of the job.
    fn measure(&mut self, crew: &mut Crew, drive: &mut Drive, stop: &AtomicBool) -> Result<(), Stop> {
        drive.last_commit = None;
        let step = self.progress.step;
        let (size, began) = (self.largest_micro_batch(), crew.recorder.now());
        let measured = evaluate(crew, &self.data.test, Views::Centre, step, size, stop).map_err(|stop| match stop {
            // A measurement comes after the update of its step.
            Stop::Fatal(JobError::NotFinite { what, .. }) => Stop::Fatal(JobError::NotFinite { what, updates: step }),
            stop => stop,
        });
        let measured: Measured = measured?;
        crew.recorder.ended(began, || Activity::Measure);
        crew.measured();
        let train_loss = self.progress.epoch_loss_sum / self.progress.epoch_images.max(1) as f64;
        self.progress.test_accuracy = Some(measured.accuracy());
        let seconds = drive.epoch_seconds;
        let record = EpochRecord {
            epoch: drive.order.batches().epoch(step),
            through_step: step,
            train_loss,
            test_accuracy: measured.accuracy(),
            test_loss: measured.loss,
            seconds,
            images_per_second: if seconds > 0.0 { drive.epoch_images as f64 / seconds } else { 0.0 },
        };
        if step > self.measured_through {
            self.measured_through = step;
            self.folder.add_epoch(&record)?;
            crew.observer.on(Event::Epoch(record));
        }
        if drive.order.batches().ends_epoch(step) {
            self.progress.train_loss = Some(train_loss);
            (self.progress.epoch_loss_sum, self.progress.epoch_images) = (0.0, 0);
            (drive.epoch_seconds, drive.epoch_images) = (0.0, 0);
        }
        Ok(())
    }
}

fn not_finite(step: u64) -> JobError {
    JobError::NotFinite {
        what: format!("the loss of step {step} is no longer finite"),
        updates: step.saturating_sub(1),
    }
}
