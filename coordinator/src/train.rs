//! A training run from beginning to end: settings become a job, a crew is formed, steps are driven one after another, and
//! snapshots, checkpoints and records are written. After a fault the run goes back to the last snapshot, forms the next
//! generation, and replays. Every step is a function of its number, so the result is the same to the bit.
//!
//! Not here: what a step decides (`step`), who may send what (`exchange`), reading the workers' messages (`crew`), and printing
//! (an [`Observer`]).

use std::collections::BTreeMap;
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
use convoy_common::wire::{Assignment, Direction, FromWorker, Generation, ToWorker};

use crate::checkpoint::{self, Checkpoint, Described, Manifest, folder};
use crate::cluster::Cluster;
use crate::cluster::formation::Gathered;
use crate::crew::{Crew, Received, invalid, out_of_turn};
use crate::data::{DataChoice, DataSet, DataSource, Places, Wanted};
use crate::error::JobError;
use crate::evaluate::{Measured, evaluate};
use crate::exchange::{Counted, Routed};
use crate::fault::Fault;
use crate::incident::Underway;
use crate::job::{Asked, Job, SettingError};
use crate::metrics::Metered;
use crate::observe::{Ended, EpochRecord, Event, Observer, Started};
use crate::order::DataOrder;
use crate::record::{
    EarlierMetrics, ExchangeRecord, FinalRecord, RunFolder, RunRecord, RunningRecord, environment, says_done,
};
use crate::recovery::{Generations, Pace, Witness};
use crate::running::Running;
use crate::state::{JobState, Progress, Snapshot};
use crate::step::Step;
use crate::stop::Stop;
use crate::trace::file::{About, Figures};
use crate::trace::otlp::{Exporter, read_endpoint};
use crate::trace::{Recorder, Recording, Sampling};
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
    /// What a fault leads back to.
    snapshot: Snapshot,
    witness: Witness,
    /// The state that the run began with, for the rehearsal of a wrong snapshot.
    stale: Option<JobState>,
    /// The last step of the last epoch that is in the metrics.
    measured_through: u64,
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
        let earlier = resumed.as_ref().and_then(|(path, _)| folder::run_of(path));
        // A checkpoint may still owe the measurement of its epoch.
        let owes = |step: u64| step == progress.step && progress.epoch_images > 0;
        let ends_epoch = |step: u64| step.is_multiple_of(job.span.steps_per_epoch.max(1)) && !owes(step);
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
                snapshot_every: running.snapshot_every,
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
        let stale = running.rehearsal.stale_snapshot.then(|| state.clone());
        Ok(Self {
            job,
            test_images: data.test.fingerprint(),
            data,
            plan,
            running,
            source,
            threads,
            progress,
            stale,
            snapshot: Snapshot { progress, state },
            witness: Witness::default(),
            measured_through: 0,
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
        if exporter.is_some() && self.running.trace == Sampling::Off {
            let text = "no step is sent to the receiver of traces, because --trace is off".to_owned();
            observer.on(Event::Notice { text });
        }
        let mut cluster = Cluster::open(&self.running, self.plan.workers, self.threads)?;
        let mut recorder = Recorder::off(cluster.clock());
        let mut generations = Generations::default();
        let mut drive =
            Drive::new(DataOrder::new(self.job.seed, self.job.order, self.data.train.len(), self.job.batch));
        let mut site = Site { job: job_number, cluster: &mut cluster, recorder: &mut recorder, exporter };
        let driven = self.recover(&mut site, &mut generations, &mut drive, observer, stop);
        self.record.exchanges = exchange_records(&drive.counted);
        let reason = match &driven {
            Ok(true) => "interrupted".to_owned(),
            Ok(false) => "done".to_owned(),
            Err(error) => chain(error),
        };
        let generation = generations.number();
        let busy_threads =
            cluster.dismiss(generation, &reason, |worker, recorded| recorder.on_recorded(worker, recorded));
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
            weights_sha256: sha256(&self.snapshot.state.weights),
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

    /// Drives one generation after another until the job has ended. Returns whether it was interrupted.
    fn recover(
        &mut self,
        site: &mut Site,
        generations: &mut Generations,
        drive: &mut Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<bool, JobError> {
        let mut underway: Vec<Underway> = Vec::new();
        loop {
            let number = generations.begin();
            let fault = match self.generation(number, site, &mut underway, drive, observer, stop) {
                Ok(()) => return Ok(false),
                Err(Stop::InOrder) => return Ok(true),
                Err(Stop::Abrupt) if !drive.has_begun => return Err(JobError::Interrupted),
                Err(Stop::Abrupt) => return self.end_abruptly(drive, observer).map(|()| true),
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Fault(fault) | Stop::Leaves(fault)) => fault,
            };
            // A worker that can't take part in the job at all would fail again and again.
            if !drive.has_begun && matches!(fault, Fault::Failed { .. } | Fault::Ended { was_killed: false, .. }) {
                return Err(fault.into());
            }
            site.cluster.give_up(fault.worker(), &chain(&fault));
            // All that are about to stop have waited for the same checkpoint.
            while let Some((worker, _)) = site.cluster.leaving().filter(|_| matches!(fault, Fault::Left { .. })) {
                site.cluster.give_up(worker, &chain(&fault));
            }
            let fault = generations.ended(fault, self.progress.step)?;
            let (step, rewound_to) = (self.progress.step, self.snapshot.progress.step);
            site.recorder.incident(&chain(&fault));
            observer.on(Event::Fault { worker: fault.worker(), what: chain(&fault), step, rewound_to });
            underway.push(Underway::begin(&fault, number, step, rewound_to));
            self.rewind(site, drive);
            wait(generations.pause(), stop);
        }
    }

    /// Goes back to the snapshot.
    fn rewind(&mut self, site: &mut Site, drive: &mut Drive) {
        self.progress = self.snapshot.progress;
        (drive.sent, drive.last_commit) = (None, None);
        site.recorder.rewind(self.progress.step);
    }

    /// Ends the job without the workers: with a checkpoint of the last snapshot.
    fn end_abruptly(&mut self, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        self.progress = self.snapshot.progress;
        self.write_checkpoint(drive, observer)
    }

    /// One generation: all workers come, get their weights, and train until the job has ended or something happens.
    fn generation(
        &mut self,
        number: u64,
        site: &mut Site,
        underway: &mut Vec<Underway>,
        drive: &mut Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(), Stop> {
        if drive.has_begun {
            self.replace(site, observer, stop)?;
        } else {
            let cluster = &mut *site.cluster;
            let all =
                if number == 1 { cluster.gather(observer, stop)? } else { cluster.gather_again(observer, stop)? };
            if !all {
                return Err(Stop::Fatal(JobError::Interrupted));
            }
        }
        underway.iter_mut().for_each(Underway::replaced);
        if !drive.has_begun
            && !site.recorder.is_on()
            && let Err(error) = self.begin_recording(site)
        {
            let text = format!("this run has no trace: {}", chain(&error));
            observer.on(Event::Notice { text });
        }
        let generation = Generation { job: site.job, number };
        let assignment = Assignment { trace: site.recorder.is_on(), ..self.assignment(site.job) };
        let samples_max = self.largest_micro_batch();
        let mut crew = Crew::new(site.cluster, site.recorder, self.plan.clone(), samples_max, generation, stop);
        let state = self.stale.as_ref().filter(|_| drive.has_begun).unwrap_or(&self.snapshot.state);
        crew.assign(&assignment, state, self.progress.step)?;
        self.record.workers = crew.records();
        let repaired: Vec<_> = underway.drain(..).map(Underway::restored).collect();
        self.record.incidents.extend(repaired.clone());
        self.folder.write(&self.record)?;
        if !std::mem::replace(&mut drive.has_begun, true) {
            observer.on(Event::Started(Box::new(self.started())));
        }
        repaired.into_iter().for_each(|incident| observer.on(Event::Recovered(incident)));
        let driven = self.drive(&mut crew, drive, observer, stop);
        drive.add_counted(&crew);
        driven
    }

    /// Waits for other workers in the place of lost ones. If none come in time, the remaining ones take the towers over.
    fn replace(&mut self, site: &mut Site, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<(), Stop> {
        match site.cluster.refill(self.running.patience, observer, stop)? {
            Gathered::All => Ok(()),
            Gathered::Interrupted => Err(Stop::Abrupt),
            Gathered::Some if site.cluster.present() == 0 => {
                let text = "no worker is left; the job waits for workers as at its start".to_owned();
                observer.on(Event::Notice { text });
                if site.cluster.gather(observer, stop)? { Ok(()) } else { Err(Stop::Abrupt) }
            }
            Gathered::Some => {
                site.cluster.close_ranks();
                let workers = site.cluster.seats();
                self.plan = Arc::new(Plan::new(self.plan.network.clone(), workers).map_err(JobError::from)?);
                self.record.running.workers = workers;
                self.record.workers.clear();
                self.record.planned_step_traffic = Some(self.plan.step_traffic(self.job.batch));
                let text = format!("no other worker came in time; the towers are now on {workers} of the workers");
                observer.on(Event::Notice { text });
                // The trace's placement no longer holds.
                site.recorder.finish().into_iter().for_each(|text| observer.on(Event::Notice { text }));
                Ok(())
            }
        }
    }

    /// Starts the recording, unless tracing is off.
    fn begin_recording(&self, site: &mut Site) -> Result<(), JobError> {
        let sampling = self.running.trace.clone();
        if sampling == Sampling::Off {
            return Ok(());
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let epoch = since_epoch.saturating_sub(site.cluster.clock().now());
        let members = (0..site.cluster.seats()).filter_map(|worker| site.cluster.member(worker));
        let hosts = members.map(|member| member.hello.host.clone()).collect();
        let about = About::new(epoch, self.job.model.clone(), self.plan.placement.clone(), hosts, self.job.batch);
        let steps = (self.progress.step + 1, self.last_step);
        let path = self.folder.trace()?;
        let recording =
            Recording::begin(&path, sampling, steps, about, self.plan.network.clone(), site.exporter.take());
        site.recorder.begin(recording.map_err(|source| JobError::Write { path, source })?);
        Ok(())
    }

    /// Drives all remaining steps. A job that stops in order writes a checkpoint.
    fn drive(
        &mut self,
        crew: &mut Crew,
        drive: &mut Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(), Stop> {
        let ended = self.drive_to_the_end(crew, drive, observer, stop);
        if matches!(ended, Err(Stop::InOrder | Stop::Leaves(_))) {
            self.checkpoint(crew, drive, observer)?;
        }
        ended
    }

    fn drive_to_the_end(
        &mut self,
        crew: &mut Crew,
        drive: &mut Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(), Stop> {
        // A job that was interrupted during a measurement begins with that measurement.
        if self.owes_measurement(drive) {
            self.measure(crew, drive, observer, stop)?;
            self.checkpoint(crew, drive, observer)?;
        }
        while self.progress.step < self.last_step {
            if stop.load(Ordering::Relaxed) {
                return Err(Stop::InOrder);
            }
            crew.check_all_stay(self.progress.step)?;
            self.step(crew, drive, observer)?;
            if self.owes_measurement(drive) {
                self.measure(crew, drive, observer, stop)?;
            }
            let step = self.progress.step;
            if step.is_multiple_of(self.checkpoint_every) || step == self.last_step {
                self.checkpoint(crew, drive, observer)?;
            } else if drive.snapshot_follows {
                self.take_snapshot(crew, drive)?;
            }
        }
        if drive.checkpoint.is_none() {
            self.checkpoint(crew, drive, observer)?;
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
    fn step(&mut self, crew: &mut Crew, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), Stop> {
        let number = self.progress.step + 1;
        let (began, began_recording) = drive.step_begins(crew.recorder);
        if crew.recorder.samples(number) {
            crew.ask_for_clocks(number)?;
        }
        drive.snapshot_follows = drive.pace.is_due(number, self.running.snapshot_every, Instant::now());
        let (images, micro_batches) = match drive.sent.take() {
            Some(sent) => sent,
            None => self.send_images(crew, drive, number)?,
        };
        // The next step's images are sent while this one is computed, unless something comes in between.
        let something_follows = drive.order.ends_epoch(number)
            || number.is_multiple_of(self.checkpoint_every)
            || drive.snapshot_follows
            || observer.pauses_after(number);
        if number < self.last_step && !something_follows {
            drive.sent = Some(self.send_images(crew, drive, number + 1)?);
        }
        let labels = images.iter().map(|image| self.data.train.label(*image)).collect();
        let mut step = Step::new(self.plan.clone(), labels, &micro_batches);
        while !step.is_done() {
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
        let (epoch, loss) = (drive.order.epoch(number), step.loss());
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
        let (seconds, received_bytes) = (seconds.as_secs_f64(), drive.newly_received_bytes(crew));
        observer.on(Event::Step { step: number, epoch, loss, lr, images, seconds, received_bytes, replayed });
        if observer.pauses_after(number) {
            drive.last_commit = None;
        }
        Ok(())
    }

    fn send_images(
        &self,
        crew: &mut Crew,
        drive: &mut Drive,
        number: u64,
    ) -> Result<(Vec<usize>, Vec<MicroBatch>), Stop> {
        let images = drive.order.images(number);
        let micro_batches = self.job.division(self.record.running.micro_batches).of(number, images.len());
        for micro_batch in &micro_batches {
            crew.exchanges.open(micro_batch);
            let began = crew.recorder.now();
            let held = images[micro_batch.samples.clone()].iter().copied();
            crew.send_images(&self.data.train, micro_batch, held)?;
            crew.recorder.ended(began, || Activity::SendImages(micro_batch.id));
        }
        Ok((images, micro_batches))
    }

    /// Handles one message of a worker during a step.
    fn hear(&self, crew: &mut Crew, step: &mut Step, number: u64) -> Result<(), Stop> {
        let placement = &self.plan.placement;
        let waiting_for = || match step.waiting_for() {
            Some(tower) => format!("tower {tower} on worker {}", placement[tower]),
            None => "nobody".to_owned(),
        };
        let (worker, received) = crew.next(number, waiting_for)?;
        match received {
            Received::Chunk(chunk, at) => {
                let (key, whole) = (crew.recorder.is_on().then(|| chunk.key.clone()), chunk.ends());
                let routed = crew.exchanges.route(worker, chunk);
                match routed.map_err(|source| invalid(worker, number, source))? {
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
                        let mut send = |(tower, payload): (usize, _)| crew.send(placement[tower], payload, number);
                        gradients.into_iter().try_for_each(&mut send)?;
                        crew.recorder.ended(began, || Activity::Loss(micro_batch.id));
                        Ok(())
                    }
                }
            }
            Received::Said(FromWorker::BackwardDone { micro_batch, tower })
                if placement.get(tower) == Some(&worker) && step.on_backward_done(&micro_batch, tower) =>
            {
                Ok(())
            }
            other => Err(out_of_turn(worker, number, &other).into()),
        }
    }

    /// Measures the test images, at the end of an epoch and of the job.
    fn measure(
        &mut self,
        crew: &mut Crew,
        drive: &mut Drive,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(), Stop> {
        drive.last_commit = None;
        let step = self.progress.step;
        let (size, began) = (self.largest_micro_batch(), crew.recorder.now());
        let measured: Measured = evaluate(crew, &self.data.test, step, size, stop)?;
        crew.recorder.ended(began, || Activity::Measure);
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
        if step > self.measured_through {
            self.measured_through = step;
            self.folder.add_epoch(&record)?;
            observer.on(Event::Epoch(record));
        }
        if drive.order.ends_epoch(step) {
            self.progress.train_loss = Some(train_loss);
            (self.progress.epoch_loss_sum, self.progress.epoch_images) = (0.0, 0);
            (drive.epoch_seconds, drive.epoch_images) = (0.0, 0);
        }
        Ok(())
    }

    fn checkpoint(&mut self, crew: &mut Crew, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), Stop> {
        let began = crew.recorder.now();
        self.take_snapshot(crew, drive)?;
        self.write_checkpoint(drive, observer)?;
        crew.recorder.ended(began, || Activity::Checkpoint);
        Ok(())
    }

    /// Collects the state of all towers. From here on, a fault leads back to it.
    fn take_snapshot(&mut self, crew: &mut Crew, drive: &mut Drive) -> Result<(), Stop> {
        let began = Instant::now();
        drive.last_commit = None;
        let step = self.progress.step;
        let state = crew.collect(step)?;
        check_finite(&state, step)?;
        self.snapshot = Snapshot { progress: self.progress, state };
        self.witness.forget_through(step);
        drive.pace.took(began.elapsed(), Instant::now());
        Ok(())
    }

    /// Writes the snapshot to disk.
    fn write_checkpoint(&mut self, drive: &mut Drive, observer: &mut dyn Observer) -> Result<(), JobError> {
        self.folder.sync()?;
        let described = Described {
            job: self.job.clone(),
            last_step: self.last_step,
            progress: self.snapshot.progress,
            source: Some(self.source.clone()),
            test_images: Some(self.test_images.clone()),
        };
        let path = checkpoint::write(&self.folder.checkpoints(), &described, &self.snapshot.state)?;
        folder::prune(&self.folder.checkpoints(), self.running.keep)?;
        drive.checkpoint = Some(path.clone());
        observer.on(Event::Checkpoint { step: self.snapshot.progress.step, path });
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

/// Waits, unless a stop is requested.
fn wait(pause: Duration, stop: &AtomicBool) {
    let began = Instant::now();
    while began.elapsed() < pause && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
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
        return Err(SettingError::Invalid { flag, value, expected: "UTF-8, because records are".to_owned() }.into());
    }
    if matches!(out, Out::Fresh(_)) && folder::has_any(path)? {
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

/// Where a job runs.
struct Site<'a> {
    job: u64,
    cluster: &'a mut Cluster,
    recorder: &'a mut Recorder,
    /// Until the recording begins.
    exporter: Option<Exporter>,
}

/// What changes from step to step.
struct Drive {
    /// Whether a generation has had all its weights.
    has_begun: bool,
    order: DataOrder,
    /// The next step's images, if they have been sent already.
    sent: Option<(Vec<usize>, Vec<MicroBatch>)>,
    /// When the last commit was decided, by the system's clock and by the recorder's. None after a measurement, a snapshot or a
    /// checkpoint.
    last_commit: Option<(Instant, u64)>,
    pace: Pace,
    /// Whether a snapshot is taken after the current step.
    snapshot_follows: bool,
    /// Seconds of training in this run, without measurements and checkpoints.
    seconds: f64,
    epoch_seconds: f64,
    epoch_images: u64,
    images: u64,
    /// What the exchanges of earlier generations have moved.
    counted: BTreeMap<(usize, Direction), Counted>,
    /// Bytes received in this generation that have been reported.
    received_bytes: u64,
    checkpoint: Option<PathBuf>,
}

impl Drive {
    fn new(order: DataOrder) -> Self {
        Self {
            has_begun: false,
            order,
            sent: None,
            last_commit: None,
            pace: Pace::starting(Instant::now()),
            snapshot_follows: false,
            seconds: 0.0,
            epoch_seconds: 0.0,
            epoch_images: 0,
            images: 0,
            counted: BTreeMap::new(),
            received_bytes: 0,
            checkpoint: None,
        }
    }

    /// When the next step begins: at the last commit, so that no time is lost between two steps. After something other than a
    /// step, it begins now.
    fn step_begins(&mut self, recorder: &Recorder) -> (Instant, u64) {
        self.last_commit.take().unwrap_or_else(|| (Instant::now(), recorder.now()))
    }

    /// Counts what a generation's exchanges have moved.
    fn add_counted(&mut self, crew: &Crew) {
        for (key, counted) in crew.exchanges.counted() {
            let sum = self.counted.entry(*key).or_default();
            (sum.tensors, sum.bytes) = (sum.tensors + counted.tensors, sum.bytes + counted.bytes);
        }
        self.received_bytes = 0;
    }

    fn count(&mut self, images: usize, time: Duration) {
        self.seconds += time.as_secs_f64();
        self.epoch_seconds += time.as_secs_f64();
        self.images += images as u64;
        self.epoch_images += images as u64;
    }

    fn newly_received_bytes(&mut self, crew: &Crew) -> u64 {
        let received: u64 = crew.exchanges.counted().values().map(|counted| counted.bytes).sum();
        received - std::mem::replace(&mut self.received_bytes, received)
    }
}

fn exchange_records(counted: &BTreeMap<(usize, Direction), Counted>) -> Vec<ExchangeRecord> {
    let each = counted.iter();
    each.map(|((exchange, direction), counted)| ExchangeRecord {
        exchange: *exchange,
        direction: if *direction == Direction::Forward { "forward" } else { "backward" },
        tensors: counted.tensors,
        bytes: counted.bytes,
    })
    .collect()
}
