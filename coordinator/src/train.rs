//! A training run from beginning to end: settings become a job, a cluster is formed, steps are driven one after another, and
//! checkpoints and records are written. This is the only loop that sends messages during a step.
//!
//! Not here: what a step decides (`step`), who may send what (`exchange`), and printing (an [`Observer`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use convoy_common::batch::MicroBatch;
use convoy_common::chain::chain;
use convoy_common::model::Network;
use convoy_common::parameters::{Tensors, sha256};
use convoy_common::plan::Plan;
use convoy_common::schedule::Schedule;
use convoy_common::trace::Activity;
use convoy_common::wire::{Assignment, Direction, FromWorker, ToWorker};

use crate::checkpoint::{self, Checkpoint, Described, Manifest};
use crate::cluster::formation::form;
use crate::cluster::{Cluster, Farewell, Heard};
use crate::data::{DataChoice, DataSet, DataSource, Places, Wanted};
use crate::error::JobError;
use crate::evaluate::{Measured, evaluate};
use crate::exchange::{Exchanges, Routed};
use crate::job::{Asked, Job, Running};
use crate::metrics::Metered;
use crate::observe::{Ended, EpochRecord, Event, Observer, Started, WorkerRecord};
use crate::order::DataOrder;
use crate::record::{
    EarlierMetrics, ExchangeRecord, FinalRecord, RunFolder, RunRecord, RunningRecord, environment, says_done,
};
use crate::state::{JobState, Progress};
use crate::step::Step;
use crate::trace::file::{About, Figures};
use crate::trace::otlp::{Exporter, read_endpoint};
use crate::trace::{Recording, Sampling};
use crate::unguessable::unguessable;

/// A request to train.
pub struct Training {
    /// Settings that decide the result.
    pub asked: Asked,
    /// Settings that don't.
    pub running: Running,
    /// The model's text, if neither a flag nor a checkpoint gives one.
    pub default_model: String,
    /// Where the images come from. None: as the checkpoint says, or [`DataSource::Auto`].
    pub data: Option<DataSource>,
    /// Where Fashion-MNIST may be.
    pub places: Places,
    /// The checkpoint to continue from.
    pub resume: Option<Checkpoint>,
    /// A weights file to start from.
    pub init: Option<PathBuf>,
    /// The run's folder.
    pub out: Out,
}

/// The folder of a run.
#[derive(Clone, Debug)]
pub enum Out {
    /// A folder that must not hold a run yet.
    Fresh(PathBuf),
    /// A folder that may hold a run, which this run continues.
    Continued(PathBuf),
    /// A new folder below `runs`, which gets its name when it is created.
    Unnamed,
}

impl Training {
    fn data_choice(&self) -> DataChoice {
        let manifest = self.resume.as_ref().map(|checkpoint| &checkpoint.manifest);
        DataChoice::of(self.data.clone(), manifest.and_then(Manifest::data_source))
    }
}

/// Trains until the end, or until `stop` is set. In that case a checkpoint is written, and the run counts as interrupted.
///
/// # Errors
/// Whatever stops the job. Its last checkpoint stays.
pub fn train(training: Training, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Ended, JobError> {
    let mut observer = Metered { metrics: training.running.metrics.clone(), observer };
    let observer = &mut observer;
    if let Some(ended) = ended_already(&training)? {
        observer.on(Event::Notice {
            text: format!(
                "the job has ended already, at step {}; to continue it, give a larger --epochs or --steps",
                ended.steps
            ),
        });
        observer.on(Event::Ended(Box::new(ended.clone())));
        return Ok(ended);
    }
    let mut run = Run::prepare(training, observer)?;
    let result = run.carry_out(observer, stop);
    if let Err(error) = &result {
        run.record_failure(error);
    }
    result
}

/// The result of a run that has ended already, if it is resumed in its folder with the same end: then nothing is computed or
/// written. None if the record doesn't say that the run is done, or if other data were asked for.
fn ended_already(training: &Training) -> Result<Option<Ended>, JobError> {
    let (Some(checkpoint), Out::Continued(out)) = (&training.resume, &training.out) else { return Ok(None) };
    let Manifest { job, progress, last_step, weights_sha256, source, .. } = checkpoint.manifest.clone();
    let asks_for_source = training.data_choice().source.remembered()?;
    if !says_done(out, &weights_sha256) || source.is_some_and(|source| source != asks_for_source) {
        return Ok(None);
    }
    let steps_per_epoch = job.span.steps_per_epoch;
    let (job, end) = training.asked.resolve(Some((&job, last_step)), job.data.clone(), None, |_| steps_per_epoch)?;
    let network = Network::parse(&job.model)?;
    training.running.micro_batches_of(job.batch)?;
    Plan::new(network.clone(), training.running.workers.unwrap_or(network.towers))?;
    Ok((progress.step == end).then(|| Ended {
        interrupted: false,
        steps: progress.step,
        train_loss: progress.train_loss,
        test_accuracy: progress.test_accuracy,
        weights_sha256,
        images_per_second: 0.0,
        checkpoint: checkpoint.path.clone(),
        out: out.clone(),
    }))
}

/// A run that is ready to begin.
struct Run {
    job: Job,
    data: DataSet,
    plan: Arc<Plan>,
    running: Running,
    /// Where the data come from, as checkpoints keep it.
    source: String,
    /// SHA-256 over the test images.
    test_images: String,
    threads: usize,
    progress: Progress,
    state: JobState,
    last_step: u64,
    checkpoint_every: u64,
    folder: RunFolder,
    record: RunRecord,
}

impl Run {
    fn prepare(training: Training, observer: &mut dyn Observer) -> Result<Self, JobError> {
        let choice = training.data_choice();
        let Training { mut asked, running, default_model, places, resume, init, out, .. } = training;
        running.otlp.as_deref().map(read_endpoint).transpose().map_err(JobError::Otlp)?;
        check_out(&out)?;
        let source = choice.source.remembered()?;
        let before = resume.as_ref().map(|checkpoint| &checkpoint.manifest.job);
        let text = asked.model_of(before, default_model)?;
        let network = Network::parse(&text)?;
        asked.model = Some(text);
        let seed = asked.seed.or(before.map(|job| job.seed)).unwrap_or(crate::job::defaults::SEED);
        let workers = running.workers.unwrap_or(network.towers);
        let plan = Plan::new(network.clone(), workers)?;
        let threads = running.threads_of_each(workers)?;
        let data = choice.load(&Wanted::by(&network, seed), &places)?;
        data.notices.iter().cloned().for_each(|text| observer.on(Event::Notice { text }));
        let weights = init.map(|path| checkpoint::read_weights(&path, &network)).transpose()?;
        let images = data.train.len();
        let steps_per_epoch = |batch| DataOrder::steps_per_epoch(images, batch);
        let last_step = resume.as_ref().map_or(0, |checkpoint| checkpoint.manifest.last_step);
        let before = before.map(|job| (job, last_step));
        let (job, last_step) =
            asked.resolve(before, data.fingerprint.clone(), weights.as_ref().map(sha256), steps_per_epoch)?;
        if job.batch > images {
            let text =
                format!("--batch {} exceeds the {images} training images; each step uses all of them", job.batch);
            observer.on(Event::Notice { text });
        }
        let resumed = resume.as_ref().map(|checkpoint| (checkpoint.path.clone(), checkpoint.manifest.progress.step));
        let (progress, state) = match resume {
            Some(checkpoint) => (checkpoint.manifest.progress, checkpoint.state),
            None => {
                let weights = weights.unwrap_or_else(|| network.initial_weights(job.seed));
                (Progress::default(), JobState { weights, momentum: network.zeros() })
            }
        };
        if last_step < progress.step {
            return Err(JobError::EndsBeforeItStarts { end: last_step, step: progress.step });
        }
        let micro_batches = running.micro_batches_of(job.batch)?;
        if let Some(text) = schedule_outrun(&job, last_step) {
            observer.on(Event::Notice { text });
        }
        let earlier = resumed.as_ref().and_then(|(path, _)| checkpoint::run_of(path));
        let ends_epoch = |step: u64| step.is_multiple_of(job.span.steps_per_epoch.max(1));
        let kept = EarlierMetrics { steps_through: progress.step, ends_epoch: &ends_epoch };
        let must_be_new = matches!(out, Out::Fresh(_));
        let out = match out {
            Out::Fresh(path) | Out::Continued(path) => path,
            Out::Unnamed => RunFolder::claim(&network.name, SystemTime::now())?,
        };
        let folder = RunFolder::open(&out, must_be_new, earlier.as_deref(), &kept)?;
        let checkpoint_every = running.checkpoint_every.unwrap_or(job.span.steps_per_epoch).max(1);
        let record = RunRecord {
            status: "running",
            error: None,
            model: network.name.clone(),
            running: RunningRecord {
                workers,
                threads: running.listen.is_none().then_some(threads),
                listen: running.listen.as_ref().map(ToString::to_string),
                micro_batches,
                checkpoint_every,
                last_step,
                resumed,
            },
            configuration: job.clone(),
            data: data.origin.clone(),
            environment: environment(),
            workers: Vec::new(),
            exchanges: Vec::new(),
            planned_step_traffic: Some(plan.step_traffic(job.batch)),
            images_per_second: None,
            incidents: Vec::new(),
            ended: None,
        };
        folder.write(&record)?;
        let plan = Arc::new(plan);
        Ok(Self {
            job,
            test_images: data.test.fingerprint(),
            data,
            plan,
            running,
            source,
            threads,
            progress,
            state,
            last_step,
            checkpoint_every,
            folder,
            record,
        })
    }

    fn carry_out(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Ended, JobError> {
        let job_number = unguessable().max(1);
        // The level of errors makes it part of every log entry.
        let _of_job = tracing::error_span!("job", job = %format_args!("{job_number:016x}")).entered();
        let exporter = self.running.otlp.as_deref().map(Exporter::start).transpose().map_err(JobError::Otlp)?;
        let mut cluster = form(job_number, self.plan.clone(), &self.running, self.threads, observer, stop)?;
        if exporter.is_some() && self.running.trace == Sampling::Off {
            let text = "no step is sent to the receiver of traces, because --trace is off".to_owned();
            observer.on(Event::Notice { text });
        }
        if let Err(error) = self.begin_recording(&mut cluster, exporter) {
            let text = format!("this run has no trace: {}", chain(&error));
            observer.on(Event::Notice { text });
        }
        let assignment = Assignment { trace: cluster.recorder.is_on(), ..self.assignment(job_number) };
        cluster.assign(&assignment, &self.state, self.progress.step)?;
        self.record.workers = worker_records(&cluster);
        self.folder.write(&self.record)?;
        observer.on(Event::Started(Box::new(self.started())));
        let mut drive = Drive {
            cluster,
            exchanges: Exchanges::new(self.plan.clone(), self.largest_micro_batch()),
            order: DataOrder::new(self.job.seed, self.job.order, self.data.train.len(), self.job.batch),
            sent: None,
            last_commit: None,
            seconds: 0.0,
            epoch_seconds: 0.0,
            epoch_images: 0,
            images: 0,
            received_bytes: 0,
            checkpoint: None,
        };
        let driven = self.drive(&mut drive, observer, stop);
        self.record.exchanges = exchange_records(&drive.exchanges);
        let reason = match &driven {
            Ok(true) => "interrupted".to_owned(),
            Ok(false) => "done".to_owned(),
            Err(error) => chain(error),
        };
        let Farewell { busy_threads, mut recorder } = drive.cluster.dismiss(&reason);
        for (record, busy_threads) in self.record.workers.iter_mut().zip(busy_threads) {
            record.busy_threads = busy_threads;
        }
        if let Err(error) = &driven {
            recorder.incident(&reason);
            // The record comes first, because a receiver of traces may be slow.
            self.record_failure(error);
            recorder.finish().into_iter().for_each(|text| observer.on(Event::Notice { text }));
        }
        let interrupted = driven?;
        let rate = if drive.seconds > 0.0 { drive.images as f64 / drive.seconds } else { 0.0 };
        let ended = Ended {
            interrupted,
            steps: self.progress.step,
            train_loss: self.train_loss(),
            test_accuracy: self.progress.test_accuracy,
            weights_sha256: sha256(&self.state.weights),
            images_per_second: rate,
            checkpoint: drive.checkpoint.unwrap_or_default(),
            out: self.folder.path().to_owned(),
        };
        self.record.status = if interrupted { "interrupted" } else { "done" };
        self.record.images_per_second = Some(rate);
        self.record.ended = Some(FinalRecord {
            steps: ended.steps,
            train_loss: ended.train_loss,
            test_accuracy: ended.test_accuracy,
            weights_sha256: ended.weights_sha256.clone(),
        });
        self.folder.write(&self.record)?;
        // The record comes first, because a receiver of traces may be slow.
        recorder.finish().into_iter().for_each(|text| observer.on(Event::Notice { text }));
        observer.on(Event::Ended(Box::new(ended.clone())));
        Ok(ended)
    }

    fn record_failure(&mut self, error: &JobError) {
        self.record.status = if matches!(error, JobError::Interrupted) { "interrupted" } else { "failed" };
        self.record.error = Some(chain(error));
        // The first error is the useful one.
        let _ = self.folder.write(&self.record);
    }

    /// Starts the recording, unless tracing is off.
    fn begin_recording(&self, cluster: &mut Cluster, exporter: Option<Exporter>) -> Result<(), JobError> {
        let sampling = self.running.trace.clone();
        if sampling == Sampling::Off {
            return Ok(());
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let epoch = since_epoch.saturating_sub(cluster.recorder.clock().now());
        let hosts = cluster.members().iter().map(|member| member.hello.host.clone()).collect();
        let about = About::new(epoch, self.job.model.clone(), self.plan.placement.clone(), hosts, self.job.batch);
        let steps = (self.progress.step + 1, self.last_step);
        let path = self.folder.trace()?;
        let recording = Recording::begin(&path, sampling, steps, about, self.plan.network.clone(), exporter);
        cluster.recorder.begin(recording.map_err(|source| JobError::Write { path, source })?);
        Ok(())
    }

    /// Drives all remaining steps. Returns whether the job was interrupted. A job that stops in order writes a checkpoint.
    fn drive(&mut self, drive: &mut Drive, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<bool, JobError> {
        let ended = self.drive_to_the_end(drive, observer, stop);
        if matches!(ended, Err(JobError::Interrupted | JobError::WorkerLeaves { .. })) {
            self.checkpoint(drive, observer)?;
        }
        match ended {
            Err(JobError::Interrupted) => Ok(true),
            ended => ended.map(|()| false),
        }
    }

    fn drive_to_the_end(
        &mut self,
        drive: &mut Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(), JobError> {
        // A job that was interrupted during a measurement begins with that measurement.
        if self.owes_measurement(drive) {
            self.measure(drive, observer, stop)?;
        }
        while self.progress.step < self.last_step {
            if stop.load(Ordering::Relaxed) {
                return Err(JobError::Interrupted);
            }
            drive.cluster.check_all_stay(self.progress.step)?;
            self.step(drive, observer)?;
            if self.owes_measurement(drive) {
                self.measure(drive, observer, stop)?;
            }
            let step = self.progress.step;
            if step.is_multiple_of(self.checkpoint_every) || step == self.last_step {
                self.checkpoint(drive, observer)?;
            }
        }
        if drive.checkpoint.is_none() {
            self.checkpoint(drive, observer)?;
        }
        Ok(())
    }

    /// Whether the test images must be measured now: at the end of an epoch and at the end of the job. `epoch_images` is not zero
    /// until they have been.
    fn owes_measurement(&self, drive: &Drive) -> bool {
        let Progress { step, epoch_images, .. } = self.progress;
        epoch_images > 0 && (drive.order.ends_epoch(step) || step == self.last_step)
    }

    /// Drives one step, from images to commit.
    fn step(&mut self, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        let number = self.progress.step + 1;
        let (began, began_recording) = drive.step_begins();
        if drive.cluster.recorder.samples(number) {
            drive.cluster.ask_for_clocks(number)?;
        }
        let (images, micro_batches) = match drive.sent.take() {
            Some(sent) => sent,
            None => self.send_images(drive, number)?,
        };
        // The next step's images are sent while this one is computed, unless something comes in between.
        let something_follows = drive.order.ends_epoch(number)
            || number.is_multiple_of(self.checkpoint_every)
            || observer.pauses_after(number);
        if number < self.last_step && !something_follows {
            drive.sent = Some(self.send_images(drive, number + 1)?);
        }
        let labels = images.iter().map(|image| self.data.train.label(*image)).collect();
        let mut step = Step::new(self.plan.clone(), labels, &micro_batches);
        while !step.is_done() {
            self.hear(drive, &mut step, number)?;
        }
        if !step.loss().is_finite() {
            return Err(not_finite(number));
        }
        let lr = self.job.schedule.rate(self.job.lr, number, self.job.span);
        let hand_over = drive.cluster.recorder.decide(number, began_recording);
        // The step ends before any worker can receive its commit.
        let decided = (Instant::now(), drive.cluster.recorder.now());
        drive.cluster.tell_all(&ToWorker::Commit { step: number, rate: lr as f32, hand_over }, number)?;
        let (epoch, loss) = (drive.order.epoch(number), step.loss());
        let figures = Figures { loss, images: images.len() };
        drive.cluster.recorder.step_ended(number, (began_recording, decided.1), figures);
        let seconds = decided.0 - began;
        drive.last_commit = Some(decided);
        if hand_over && !drive.cluster.recorder.samples(number) {
            // The step turned out to be slow, so it is kept after all.
            drive.cluster.ask_for_clocks(number)?;
        }
        micro_batches.iter().for_each(|micro_batch| drive.exchanges.close(micro_batch.id));
        self.progress.step = number;
        self.progress.epoch_loss_sum += step.loss_sum();
        self.progress.epoch_images += images.len() as u64;
        self.folder.add_step(number, epoch, loss, lr)?;
        let images = images.len();
        drive.count(images, seconds);
        let (seconds, received_bytes) = (seconds.as_secs_f64(), drive.newly_received_bytes());
        observer.on(Event::Step { step: number, epoch, loss, lr, images, seconds, received_bytes });
        if observer.pauses_after(number) {
            drive.last_commit = None;
        }
        Ok(())
    }

    fn send_images(&self, drive: &mut Drive, number: u64) -> Result<(Vec<usize>, Vec<MicroBatch>), JobError> {
        let images = drive.order.images(number);
        let micro_batches = self.job.division(self.record.running.micro_batches).of(number, images.len());
        for micro_batch in &micro_batches {
            drive.exchanges.open(micro_batch);
            let began = drive.cluster.recorder.now();
            let held = images[micro_batch.samples.clone()].iter().copied();
            drive.cluster.send_images(&self.data.train, micro_batch, held)?;
            drive.cluster.recorder.ended(began, || Activity::SendImages(micro_batch.id));
        }
        Ok((images, micro_batches))
    }

    /// Handles one message of a worker during a step.
    fn hear(&self, drive: &mut Drive, step: &mut Step, number: u64) -> Result<(), JobError> {
        let placement = &self.plan.placement;
        let waiting_for = || match step.waiting_for() {
            Some(tower) => format!("tower {tower} on worker {}", placement[tower]),
            None => "nobody".to_owned(),
        };
        let (worker, heard) = drive.cluster.next(number, waiting_for)?;
        match heard {
            Heard::Chunk(chunk, at) => {
                let (key, whole) = (drive.cluster.recorder.is_on().then(|| chunk.key.clone()), chunk.ends());
                let routed = drive.exchanges.route(worker, chunk);
                match routed.map_err(|source| JobError::Desync { worker, step: number, source })? {
                    Routed::Kept => {
                        drive.cluster.recorder.relayed(key, at, whole);
                        Ok(())
                    }
                    Routed::Relay { to, chunk } => {
                        drive.cluster.relay(&to, chunk, number)?;
                        drive.cluster.recorder.relayed(key, at, whole);
                        Ok(())
                    }
                    Routed::Logits { micro_batch, logits } => {
                        drive.cluster.recorder.relayed(key, at, whole);
                        if !step.holds(&micro_batch) {
                            return Err(drive.cluster.failed(worker, number, "it sent logits of another step"));
                        }
                        let began = drive.cluster.recorder.now();
                        let gradients = step.on_logits(&micro_batch, &logits).ok_or_else(|| not_finite(number))?;
                        let mut send =
                            |(tower, payload): (usize, _)| drive.cluster.send(placement[tower], payload, number);
                        gradients.into_iter().try_for_each(&mut send)?;
                        drive.cluster.recorder.ended(began, || Activity::Loss(micro_batch.id));
                        Ok(())
                    }
                }
            }
            Heard::Said(FromWorker::BackwardDone { micro_batch, tower })
                if placement.get(tower) == Some(&worker) && step.on_backward_done(&micro_batch, tower) =>
            {
                Ok(())
            }
            other => Err(drive.cluster.out_of_turn(worker, number, other)),
        }
    }

    /// Measures the test images, at the end of an epoch and of the job.
    fn measure(&mut self, drive: &mut Drive, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<(), JobError> {
        drive.last_commit = None;
        let step = self.progress.step;
        let (size, began) = (self.largest_micro_batch(), drive.cluster.recorder.now());
        let measured: Measured = evaluate(&mut drive.cluster, &mut drive.exchanges, &self.data.test, step, size, stop)?;
        drive.cluster.recorder.ended(began, || Activity::Measure);
        let train_loss = self.progress.epoch_loss_sum / self.progress.epoch_images.max(1) as f64;
        self.progress.test_accuracy = Some(measured.accuracy());
        let seconds = drive.epoch_seconds;
        let record = EpochRecord {
            epoch: drive.order.epoch(step),
            through_step: step,
            train_loss,
            test_accuracy: measured.accuracy(),
            test_loss: measured.loss,
            seconds,
            images_per_second: if seconds > 0.0 { drive.epoch_images as f64 / seconds } else { 0.0 },
        };
        self.folder.add_epoch(&record)?;
        observer.on(Event::Epoch(record));
        if drive.order.ends_epoch(step) {
            self.progress.train_loss = Some(train_loss);
            (self.progress.epoch_loss_sum, self.progress.epoch_images) = (0.0, 0);
            (drive.epoch_seconds, drive.epoch_images) = (0.0, 0);
        }
        Ok(())
    }

    fn checkpoint(&mut self, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        drive.last_commit = None;
        let step = self.progress.step;
        let began = drive.cluster.recorder.now();
        let state = drive.cluster.collect(step)?;
        check_finite(&state, step)?;
        self.state = state;
        self.folder.sync()?;
        let described = Described {
            job: self.job.clone(),
            last_step: self.last_step,
            progress: self.progress,
            source: Some(self.source.clone()),
            test_images: Some(self.test_images.clone()),
        };
        let path = checkpoint::write(&self.folder.checkpoints(), &described, &self.state)?;
        drive.checkpoint = Some(path.clone());
        drive.cluster.recorder.ended(began, || Activity::Checkpoint);
        observer.on(Event::Checkpoint { step, path });
        Ok(())
    }

    /// Size of the largest micro-batch, in training and in measurements.
    fn largest_micro_batch(&self) -> usize {
        self.job.division(self.record.running.micro_batches).largest_micro_batch(self.job.batch)
    }

    /// The mean loss of the current epoch so far, or of the last one.
    fn train_loss(&self) -> Option<f64> {
        let at_hand = self.progress.epoch_loss_sum / self.progress.epoch_images as f64;
        if self.progress.epoch_images > 0 { Some(at_hand) } else { self.progress.train_loss }
    }

    fn assignment(&self, job: u64) -> Assignment {
        Assignment {
            job,
            model: self.job.model.clone(),
            placement: self.plan.placement.clone(),
            worker: 0,
            seed: self.job.seed,
            momentum: self.job.momentum,
            weight_decay: self.job.weight_decay,
            batch: self.job.batch,
            division: self.job.division(self.record.running.micro_batches),
            train: true,
            trace: false,
        }
    }

    fn started(&self) -> Started {
        let network = &self.plan.network;
        Started {
            model: network.name.clone(),
            parameters: network.parameters().iter().map(|parameter| parameter.len()).sum(),
            multiply_adds: network.multiply_adds(),
            data: self.data.origin.clone(),
            train_images: self.data.train.len(),
            test_images: self.data.test.len(),
            first_step: self.progress.step + 1,
            last_step: self.last_step,
            steps_per_epoch: DataOrder::steps_per_epoch(self.data.train.len(), self.job.batch),
            batch: self.job.batch,
            step_bytes: self.plan.step_traffic(self.job.batch).total(),
            workers: self.record.workers.clone(),
            out: self.folder.path().to_owned(),
        }
    }
}

fn not_finite(step: u64) -> JobError {
    JobError::NotFinite { what: format!("the loss of step {step} is no longer finite") }
}

/// Checks the run's folder as far as is possible before anything is read.
fn check_out(out: &Out) -> Result<(), JobError> {
    let (Out::Fresh(path) | Out::Continued(path)) = out else { return Ok(()) };
    if path.to_str().is_none() {
        let (flag, value) = ("--out", path.display().to_string());
        return Err(JobError::Setting { flag, value, expected: "UTF-8, because records are".to_owned() });
    }
    if matches!(out, Out::Fresh(_)) && checkpoint::newest(path)?.is_some() {
        return Err(JobError::OutTaken { path: path.clone() });
    }
    Ok(())
}

/// A notice about a job that continues beyond the span of its schedule.
fn schedule_outrun(job: &Job, last_step: u64) -> Option<String> {
    let made_for = job.span.steps;
    let changes = !matches!(job.schedule, Schedule::Constant);
    (changes && last_step > made_for).then(|| {
        format!("the learning-rate schedule spans {made_for} steps; later steps keep the rate of step {made_for}")
    })
}

/// Checks that a checkpoint is worth writing. An update that overflows shows here first.
fn check_finite(state: &JobState, step: u64) -> Result<(), JobError> {
    let named = |(what, tensors): (&'static str, &Tensors)| {
        let spoilt = tensors.iter().find(|(_, tensor)| !tensor.iter().all(|value| value.is_finite()));
        spoilt.map(|(name, _)| format!("{what}{name} is no longer finite after step {step}"))
    };
    let found = [("", &state.weights), ("the momentum of ", &state.momentum)].into_iter().find_map(named);
    found.map_or(Ok(()), |what| Err(JobError::NotFinite { what }))
}

/// What changes from step to step.
struct Drive {
    cluster: Cluster,
    exchanges: Exchanges,
    order: DataOrder,
    /// The next step's images, if they have been sent already.
    sent: Option<(Vec<usize>, Vec<MicroBatch>)>,
    /// When the last commit was decided, by the system's clock and by the recorder's. None after a measurement or a
    /// checkpoint.
    last_commit: Option<(Instant, u64)>,
    /// Seconds of training in this run, without measurements and checkpoints.
    seconds: f64,
    epoch_seconds: f64,
    epoch_images: u64,
    images: u64,
    /// Received bytes that have been reported.
    received_bytes: u64,
    checkpoint: Option<PathBuf>,
}

impl Drive {
    /// When the next step begins: at the last commit, so that no time is lost between two steps. After something other than a
    /// step, it begins now.
    fn step_begins(&mut self) -> (Instant, u64) {
        self.last_commit.take().unwrap_or_else(|| (Instant::now(), self.cluster.recorder.now()))
    }

    fn count(&mut self, images: usize, time: Duration) {
        self.seconds += time.as_secs_f64();
        self.epoch_seconds += time.as_secs_f64();
        self.images += images as u64;
        self.epoch_images += images as u64;
    }

    fn newly_received_bytes(&mut self) -> u64 {
        let received = self.exchanges.counted().values().map(|counted| counted.bytes).sum();
        received - std::mem::replace(&mut self.received_bytes, received)
    }
}

/// The workers, for the records.
pub fn worker_records(cluster: &Cluster) -> Vec<WorkerRecord> {
    let each = cluster.members().iter().enumerate();
    each.map(|(worker, member)| WorkerRecord {
        worker,
        towers: cluster.plan().towers_of(worker),
        process_id: member.hello.process_id,
        host: member.hello.host.clone(),
        address: member.address.clone(),
        threads: member.hello.threads,
        busy_threads: None,
        instruction_set: member.hello.instruction_set.clone(),
        state_bytes: cluster.state_bytes(worker),
    })
    .collect()
}

fn exchange_records(exchanges: &Exchanges) -> Vec<ExchangeRecord> {
    let each = exchanges.counted().iter();
    each.map(|((exchange, direction), counted)| ExchangeRecord {
        exchange: *exchange,
        direction: if *direction == Direction::Forward { "forward" } else { "backward" },
        tensors: counted.tensors,
        bytes: counted.bytes,
    })
    .collect()
}
