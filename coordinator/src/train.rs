//! A training run from beginning to end: settings become a job, steps are driven, and the records are written. Every step is a
//! function of its number, so the result is the same to the bit, whatever happens to the workers. `generations` forms crews and
//! recovers from faults, `steps` drives the steps of one, and `snapshots` keeps its state.
//!
//! Not here: what a step decides (`step`), who may send what (`exchange`), reading the workers' messages (`crew`), and printing
//! (an [`Observer`]).

mod drive;
mod generations;
mod prefetch;
mod snapshots;
mod steps;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use convoy_common::batch::Batches;
use convoy_common::chain::chain;
use convoy_common::index::WorkerIndex;
use convoy_common::model::Network;
use convoy_common::parameters::{Tensors, sha256};
use convoy_common::plan::{Plan, Traffic};
use convoy_common::route::Moved;
use convoy_common::schedule::Schedule;
use convoy_common::wire::{Assignment, Direction};

use crate::checkpoint::correspondence::Correspondence;
use crate::checkpoint::writer::Writer;
use crate::checkpoint::{self, Checkpoint, Manifest, folder};
use crate::cluster::{Cluster, Last};
use crate::earlier::{Earlier, EarlierMetrics};
use crate::error::JobError;
use crate::exchange::Counted;
use crate::files::{quoted, same_place};
use crate::job::{Asked, Job, SettingError, micro_batches};
use crate::metrics::Metered;
use crate::observe::{Ended, Event, Observer, Started};
use crate::order::DataOrder;
use crate::record::{
    ExchangeRecord, FinalRecord, PreparingRecord, RunFolder, RunRecord, RunningRecord, SentRecord, holds_run, says_done,
};
use crate::recovery::{Generations, Witness};
use crate::running::Running;
use crate::state::{JobState, Progress, Snapshot};
use crate::trace::otlp::read_endpoint;
use crate::trace::{Recorder, Sampling};
use crate::unguessable::unguessable;
use convoy_dataset::{AskedData, DataChoice, DataSet, DataSource, Places, Reading, Wanted};
use drive::{Drive, Site};
use prefetch::Prefetch;

/// A request to train.
pub struct Training {
    /// Settings that decide the result.
    pub asked: Asked,
    /// Settings that don't.
    pub running: Running,
    /// The model's text, if neither a flag nor a checkpoint gives one.
    pub default_model: String,
    /// Where the images come from. What is missing is as the checkpoint says, or the default.
    pub data: AskedData,
    /// Where Fashion-MNIST may be.
    pub places: Places,
    /// The checkpoint to continue from.
    pub resume: Option<Checkpoint>,
    /// A weights file to start from, and which layers get their weights from it.
    pub init: Option<(PathBuf, Correspondence)>,
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
        DataChoice::of(self.data.clone(), manifest.map(Manifest::remembered_data).unwrap_or_default())
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
    let Manifest { job, progress, last_step, weights_sha256, source, reading, .. } = checkpoint.manifest.clone();
    let choice = training.data_choice();
    let asks_for_source = choice.source.remembered()?;
    // Earlier versions kept the path of a folder as it was written.
    let is_other = |source: String| {
        let source = source.parse::<DataSource>().and_then(|source| source.remembered());
        source.map_or(true, |source| source != asks_for_source)
    };
    let is_read_otherwise = choice.reading != reading.unwrap_or_default();
    if !says_done(out, &weights_sha256) || source.is_some_and(is_other) || is_read_otherwise {
        return Ok(None);
    }
    let steps_per_epoch = job.span.steps_per_epoch;
    let (job, end) = training.asked.resolve(Some((&job, last_step)), job.data.clone(), None, |_| steps_per_epoch)?;
    let network = Network::parse(&job.model)?;
    let plan = training.running.plan(network, job.slots)?;
    micro_batches(training.running.micro_batches, job.batch, &plan.placement)?;
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
    /// How a folder of image files is read, if not as usual.
    reading: Option<Reading>,
    /// SHA-256 over the test images.
    test_images: String,
    threads: usize,
    progress: Progress,
    /// What a fault leads back to.
    snapshot: Arc<Snapshot>,
    /// The state of the snapshot before the last one, whose memory the next one takes.
    outdated: Option<JobState>,
    writer: Writer,
    witness: Witness,
    /// The state that the run began with, for the rehearsal of a wrong snapshot.
    stale: Option<JobState>,
    /// The last step of the last epoch that is in the metrics.
    measured_through: u64,
    last_step: u64,
    checkpoint_every: u64,
    folder: RunFolder,
    /// The folder of the run that this one continues.
    earlier: Option<PathBuf>,
    /// Whether the run's folder still has the records of an earlier process. They are replaced when the job begins, so that an attempt
    /// that comes to nothing changes nothing.
    keeps_earlier_records: bool,
    /// Whether it was told that the file of metrics is gone.
    misses_metrics: bool,
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
        if let Some((_, correspondence)) = &init {
            correspondence.check(&network)?;
        }
        asked.model = Some(text);
        let seed = asked.seed.or(before.map(|job| job.seed)).unwrap_or(crate::job::defaults::SEED);
        let plan = running.plan(network.clone(), asked.slots_of(before)?)?;
        let workers = plan.workers;
        let threads = running.threads_of_each(workers)?;
        let data = choice.load(&Wanted::by(&network, seed), &places)?;
        let selection = asked.selection_of(before)?;
        let data = match selection {
            Some(selection) => data.selected(selection)?,
            None => data,
        };
        data.notices.iter().cloned().for_each(|text| observer.on(Event::Notice { text }));
        let read = |(path, correspondence): (PathBuf, Correspondence)| {
            checkpoint::read_some_weights(&path, &network, &correspondence)
        };
        let given = init.map(read).transpose()?;
        let images = data.train.len();
        let steps_per_epoch = |batch| Batches { images, batch }.steps_per_epoch();
        let last_step = resume.as_ref().map_or(0, |checkpoint| checkpoint.manifest.last_step);
        let before = before.map(|job| (job, last_step));
        let (job, last_step) =
            asked.resolve(before, data.fingerprint.clone(), given.as_ref().map(sha256), steps_per_epoch)?;
        if job.batch > images {
            let text =
                format!("--batch {} exceeds the {images} training images; each step uses all of them", job.batch);
            observer.on(Event::Notice { text });
        }
        let resumed = resume.as_ref().map(|checkpoint| (checkpoint.path.clone(), checkpoint.manifest.progress.step));
        let snapshot = match resume {
            Some(checkpoint) => Snapshot { progress: checkpoint.manifest.progress, state: checkpoint.state },
            None => {
                let is_whole = given.as_ref().is_some_and(|given| given.len() == network.parameters().len());
                let own = || network.initial_weights(job.init_seed(), job.seed);
                let mut weights = if is_whole { Tensors::new() } else { own() };
                if let Some(given) = given {
                    // Layers that are left out keep their initial weights.
                    weights.extend(given);
                    for (name, lost) in network.apply_masks(job.seed, &mut weights) {
                        let text = format!("the mask of {name} sets {lost} values of --init to zero");
                        observer.on(Event::Notice { text });
                    }
                }
                let state = JobState { weights, momentum: network.zeros() };
                Snapshot { progress: Progress::default(), state }
            }
        };
        let progress = snapshot.progress;
        if last_step < progress.step {
            return Err(JobError::EndsBeforeItStarts { end: last_step, step: progress.step });
        }
        let micro_batches = micro_batches(running.micro_batches, job.batch, &plan.placement)?;
        let notices = [schedule_outrun(&job, last_step), nothing_kept(&running.trace, progress.step + 1, last_step)];
        notices.into_iter().flatten().for_each(|text| observer.on(Event::Notice { text }));
        let earlier = resumed.as_ref().and_then(|(path, _)| folder::run_of(path));
        let (folder, has_records) = open_folder(out, &network.name)?;
        let checkpoint_every = running.checkpoint_every.unwrap_or(job.span.steps_per_epoch).max(1);
        let settings = RunningRecord {
            workers,
            replicas: plan.placement.replicas(),
            threads: running.listen.is_none().then_some(threads),
            listen: running.listen.as_ref().map(ToString::to_string),
            micro_batches,
            checkpoint_every,
            snapshot_every: running.snapshot_every,
            last_step,
            resumed,
        };
        let record = RunRecord::begin(&job, data.origin.clone(), &plan, settings);
        let mut run = Self {
            job,
            test_images: data.test.fingerprint(),
            data,
            plan: Arc::new(plan),
            stale: running.rehearsal.stale_snapshot.then(|| snapshot.state.clone()),
            writer: Writer::new(folder.checkpoints(), running.keep),
            running,
            source,
            reading: Some(choice.reading).filter(|reading| *reading != Reading::default()),
            threads,
            progress,
            snapshot: Arc::new(snapshot),
            outdated: None,
            witness: Witness::default(),
            measured_through: 0,
            last_step,
            checkpoint_every,
            folder,
            earlier,
            keeps_earlier_records: has_records,
            misses_metrics: false,
            record,
        };
        run.record.planned_step_traffic = Some(run.step_traffic());
        if !has_records {
            run.begin_records(observer)?;
        }
        Ok(run)
    }

    /// Replaces the records of an earlier process in the run's folder. What this run keeps of them depends on where it begins.
    fn begin_records(&mut self, observer: &mut dyn Observer) -> Result<(), JobError> {
        self.keeps_earlier_records = false;
        let (progress, steps_per_epoch) = (self.progress, self.job.span.steps_per_epoch.max(1));
        // A checkpoint may still owe the measurement of its epoch.
        let owes = |step: u64| step == progress.step && progress.epoch_images > 0;
        let ends_epoch = |step: u64| step.is_multiple_of(steps_per_epoch) && !owes(step);
        let kept = EarlierMetrics { steps_through: progress.step, ends_epoch: &ends_epoch };
        let read = |run: &PathBuf| Earlier::read(run, &kept);
        let earlier = self.earlier.as_ref().map_or_else(|| Ok(Earlier::default()), read)?;
        let is_own = self.earlier.as_deref().is_some_and(|run| same_place(run, self.folder.path()));
        let later = if is_own { folder::set_aside_after(self.folder.path(), progress.step)? } else { Vec::new() };
        let went_back = later.iter().map(|(path, name)| {
            let (step, path) = (progress.step, path.display());
            format!("the run continues from step {step}; {path}, which is later, is now called {name}")
        });
        let set_aside = self.folder.begin_metrics(&earlier, is_own)?;
        if self.running.tensorboard {
            self.folder.begin_events(&earlier)?;
        }
        went_back.chain(earlier.damage).chain(set_aside).for_each(|text| observer.on(Event::Notice { text }));
        self.record.incidents.splice(0..0, earlier.incidents);
        self.folder.write(&self.record)
    }

    fn carry_out(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Ended, JobError> {
        let job_number = unguessable().max(1);
        // The level of errors makes it part of every log entry.
        let _of_job = tracing::error_span!("job", job = %format_args!("{job_number:016x}")).entered();
        if self.running.otlp.is_some() && self.running.trace == Sampling::Off {
            let text = "no step is sent to the receiver of traces, because --trace is off".to_owned();
            observer.on(Event::Notice { text });
        }
        let mut cluster = Cluster::open(&self.running, self.plan.workers, self.threads)?;
        let mut recorder = Recorder::off(cluster.clock());
        let mut generations = Generations::default();
        let order = DataOrder::new(self.job.order_seed(), self.job.order, self.batches());
        let mut drive = Drive::new(order, Prefetch::new(&self.data.train));
        let mut site = Site { job: job_number, cluster: &mut cluster, recorder: &mut recorder };
        let driven = self.recover(&mut site, &mut generations, &mut drive, observer, stop);
        let reason = match &driven {
            Ok(true) => "interrupted".to_owned(),
            Ok(false) => "done".to_owned(),
            Err(error) => chain(error),
        };
        let generation = generations.number();
        let busy_threads = cluster.dismiss(generation, &reason, |worker, last| match last {
            Last::Recorded(recorded) => recorder.on_recorded(worker, recorded),
            Last::Tally(tally) => drive.add_tally(&self.plan, worker, &tally),
        });
        self.record.exchanges = exchange_records(&drive.counted.moved);
        self.record.sent = sent_records(&drive.counted.pairs);
        for (record, busy_threads) in self.record.workers.iter_mut().zip(busy_threads) {
            record.busy_threads = busy_threads;
        }
        if let (Err(JobError::Interrupted), true) = (&driven, self.keeps_earlier_records) {
            let out = self.folder.path().display();
            let quoted = quoted(self.folder.path());
            let text = format!("the run in {out} is unchanged; to continue it: convoy train --resume {quoted}");
            observer.on(Event::Notice { text });
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
        let checked = self.folder.check_metrics();
        self.record.status = match &checked {
            Err(_) => "failed",
            Ok(()) if interrupted => "interrupted",
            Ok(()) => "done",
        };
        self.record.error = checked.as_ref().err().map(|error| chain(error));
        self.record.images_per_second = Some(rate);
        self.record.preparing = PreparingRecord::of(self.data.train.times(), drive.image_wait);
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
        checked.map(|()| ended)
    }

    fn record_failure(&mut self, error: &JobError) {
        self.record.status = if matches!(error, JobError::Interrupted) { "interrupted" } else { "failed" };
        self.record.error = Some(chain(error));
        if let JobError::NotFinite { updates, .. } = error {
            self.record.diverged_after = Some(*updates);
        }
        if self.keeps_earlier_records {
            return;
        }
        // The first error is the useful one.
        let _ = self.folder.write(&self.record);
    }

    fn batches(&self) -> Batches {
        Batches { images: self.data.train.len(), batch: self.step_images() }
    }

    /// The images of a step: those of a batch, or all that there are.
    fn step_images(&self) -> usize {
        self.job.batch.min(self.data.train.len())
    }

    /// The bytes over sockets of a step, by the plan.
    fn step_traffic(&self) -> Traffic {
        self.plan.step_traffic(self.step_images())
    }

    /// Size of the largest micro-batch, in training and in measurements.
    fn largest_micro_batch(&self) -> usize {
        self.job.division(self.record.running.micro_batches).largest_micro_batch(self.step_images())
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
            worker: WorkerIndex(0),
            seed: self.job.seed,
            dropout_seed: self.job.dropout_seed(),
            momentum: self.job.momentum,
            weight_decay: self.job.weight_decay,
            batches: self.batches(),
            division: self.job.division(self.record.running.micro_batches),
            train: true,
            trace: false,
            peers: Vec::new(),
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
            steps_per_epoch: self.batches().steps_per_epoch(),
            batch: self.step_images(),
            slots: self.job.slots,
            micro_batches: self.record.running.micro_batches,
            replicas: self.plan.placement.replicas(),
            step_bytes: self.step_traffic().total(),
            workers: self.record.workers.clone(),
            out: self.folder.path().to_owned(),
        }
    }
}

/// Checks the run's folder as far as is possible before anything is read.
fn check_out(out: &Out) -> Result<(), JobError> {
    let (Out::Fresh(path) | Out::Continued(path)) = out else { return Ok(()) };
    if path.to_str().is_none() {
        let (flag, value) = ("--out".to_owned(), path.display().to_string());
        return Err(SettingError::Invalid { flag, value, expected: "UTF-8, because records are".to_owned() }.into());
    }
    if matches!(out, Out::Fresh(_)) && folder::has_any(path)? {
        return Err(JobError::OutTaken { path: path.clone() });
    }
    Ok(())
}

/// Opens the run's folder, or claims a new one. Returns also whether it has the records of an earlier process.
fn open_folder(out: Out, model: &str) -> Result<(RunFolder, bool), JobError> {
    let must_be_new = matches!(out, Out::Fresh(_));
    let path = match out {
        Out::Fresh(path) | Out::Continued(path) => path,
        Out::Unnamed => RunFolder::claim(model, SystemTime::now())?,
    };
    let has_records = !must_be_new && holds_run(&path);
    Ok((RunFolder::open(&path, must_be_new)?, has_records))
}

/// A notice about a job that continues beyond the span of its schedule.
fn schedule_outrun(job: &Job, last_step: u64) -> Option<String> {
    let made_for = job.span.steps;
    let changes = !matches!(job.schedule, Schedule::Constant);
    (changes && last_step > made_for).then(|| {
        format!("the learning-rate schedule ends at step {made_for}; later steps keep the rate of step {made_for}")
    })
}

/// A notice about a trace that holds none of the run's steps.
fn nothing_kept(trace: &Sampling, first: u64, last: u64) -> Option<String> {
    let Sampling::Steps(range) = trace else { return None };
    (first <= last && (*range.start() > last || *range.end() < first)).then(|| {
        format!("--trace steps:{}-{} keeps no step: this run has steps {first} to {last}", range.start(), range.end())
    })
}

fn exchange_records(counted: &BTreeMap<Moved, Counted>) -> Vec<ExchangeRecord> {
    let each = counted.iter();
    each.map(|(moved, counted)| {
        let (exchange, direction) = match moved {
            Moved::Exchange(exchange, Direction::Forward) => (Some(*exchange), "forward"),
            Moved::Exchange(exchange, Direction::Backward) => (Some(*exchange), "backward"),
            Moved::Gradients => (None, "gradients"),
        };
        ExchangeRecord { exchange, direction, tensors: counted.tensors, bytes: counted.bytes }
    })
    .collect()
}

fn sent_records(pairs: &BTreeMap<(WorkerIndex, WorkerIndex), u64>) -> Vec<SentRecord> {
    pairs.iter().map(|((from, to), bytes)| SentRecord { from: *from, to: *to, bytes: *bytes }).collect()
}
