//! The records in a run's folder, beside its checkpoints: `run.json`, which is replaced as a whole when it changes, and
//! `metrics.jsonl`, which gets a line per step and is cut back when a job is resumed.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{BufWriter, ErrorKind, Write};
use std::iter;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use convoy_common::index::{ExchangeIndex, WorkerIndex};
use convoy_common::plan::{Plan, Traffic};
use convoy_dataset::StageTimes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::checkpoint::FOLDER;
use crate::checkpoint::folder::has_any;
use crate::earlier::{Earlier, METRICS, RECORD};
use crate::error::JobError;
use crate::files::{read_regular, remove_temporary, write_atomically};
use crate::incident::Incident;
use crate::job::Job;
use crate::observe::{EpochRecord, WorkerRecord};
use crate::tensorboard::Events;

/// The most names that are tried for a new folder in one second.
const CLAIMS_MAX: usize = 10_000;
/// The file of a run's trace.
pub const TRACE: &str = "trace.json";

/// `run.json`.
#[derive(Clone, Debug, Serialize)]
pub struct RunRecord {
    /// `running`, `done`, `interrupted` or `failed`.
    pub status: &'static str,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Number of steps after which numbers were no longer finite, if that is why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diverged_after: Option<u64>,
    /// The model's name.
    pub model: String,
    /// Everything that decides the result.
    pub configuration: Job,
    /// Settings that don't.
    pub running: RunningRecord,
    /// What the data are and where they come from.
    pub data: String,
    /// The machine and the program.
    pub environment: BTreeMap<&'static str, String>,
    /// The workers.
    pub workers: Vec<WorkerRecord>,
    /// What each exchange moved, counted on arrival at the coordinator.
    pub exchanges: Vec<ExchangeRecord>,
    /// What workers sent each other, counted on arrival.
    pub sent: Vec<SentRecord>,
    /// Planned bytes over sockets in a full training step.
    pub planned_step_traffic: Option<Traffic>,
    /// Training images per second in this run.
    pub images_per_second: Option<f64>,
    /// What it took to prepare images of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preparing: Option<PreparingRecord>,
    /// Faults from which the job recovered, those of earlier processes included.
    pub incidents: Vec<Incident>,
    /// The result, once the run has ended.
    #[serde(rename = "final")]
    pub ended: Option<FinalRecord>,
}

impl RunRecord {
    /// The record of a run that begins: it has no worker, no exchange and no result yet.
    pub fn begin(job: &Job, data: String, plan: &Plan, running: RunningRecord) -> Self {
        Self {
            status: "running",
            error: None,
            diverged_after: None,
            model: plan.network.name.clone(),
            configuration: job.clone(),
            running,
            data,
            environment: environment(),
            workers: Vec::new(),
            exchanges: Vec::new(),
            sent: Vec::new(),
            planned_step_traffic: None,
            images_per_second: None,
            preparing: None,
            incidents: Vec::new(),
            ended: None,
        }
    }
}

/// What it took to read, decode and scale the image files of a job, test images included. Times of several threads are added up.
#[derive(Clone, Debug, Serialize)]
pub struct PreparingRecord {
    /// Images that were decoded. One that is decoded twice counts twice.
    pub images: u64,
    /// Reading files.
    pub read_seconds: f64,
    /// Decoding them.
    pub decode_seconds: f64,
    /// Scaling the pixels, and computing a digest of them.
    pub scale_seconds: f64,
    /// How long training steps waited for images.
    pub image_wait_seconds: f64,
}

impl PreparingRecord {
    /// None if there was nothing to do.
    pub fn of(times: StageTimes, waited: Duration) -> Option<Self> {
        (times != StageTimes::default()).then_some(Self {
            images: times.images,
            read_seconds: times.read.as_secs_f64(),
            decode_seconds: times.decode.as_secs_f64(),
            scale_seconds: times.scale.as_secs_f64(),
            image_wait_seconds: waited.as_secs_f64(),
        })
    }
}

/// The settings that don't change a job's result.
#[derive(Clone, Debug, Serialize)]
pub struct RunningRecord {
    /// Worker processes.
    pub workers: usize,
    /// Replicas of the trunk.
    pub replicas: usize,
    /// Compute threads of each local worker.
    pub threads: Option<usize>,
    /// The address that remote workers connect to, if there are any.
    pub listen: Option<String>,
    /// Micro-batches per slot.
    pub micro_batches: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between snapshots. None: chosen so that snapshots cost at most 2 % of the time, and are at least two seconds apart.
    pub snapshot_every: Option<u64>,
    /// The last step.
    pub last_step: u64,
    /// The checkpoint that the run continued from, and its step.
    pub resumed: Option<(PathBuf, u64)>,
}

/// What an exchange moved in one direction.
#[derive(Clone, Debug, Serialize)]
pub struct ExchangeRecord {
    /// Index of the exchange. The last one carries logits. None: the sums of gradients over replicas.
    pub exchange: Option<ExchangeIndex>,
    /// `forward`, `backward` or `gradients`.
    pub direction: &'static str,
    /// Complete tensors.
    pub tensors: u64,
    /// Payload bytes.
    pub bytes: u64,
}

/// What a worker sent to another one, by their numbers at that time.
#[derive(Clone, Debug, Serialize)]
pub struct SentRecord {
    /// The sender.
    pub from: WorkerIndex,
    /// The receiver.
    pub to: WorkerIndex,
    /// Payload bytes, directly or through the coordinator.
    pub bytes: u64,
}

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct FinalRecord {
    /// Steps committed.
    pub steps: u64,
    /// Mean loss of the last epoch's images.
    pub train_loss: Option<f64>,
    /// Accuracy on the test images.
    pub test_accuracy: Option<f64>,
    /// SHA-256 over all weights.
    pub weights_sha256: String,
}

/// The run's folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The folder itself, locked while the run lasts.
    _lock: File,
    metrics: BufWriter<File>,
    /// The same metrics for TensorBoard, if they are wanted.
    events: Option<Events>,
}

impl RunFolder {
    /// Opens the folder and locks it. If it `must_be_new`, it must hold no checkpoint. Its records stay as they are.
    ///
    /// # Errors
    /// When it can't be written, another process uses it, or another run was written to it.
    pub fn open(path: &Path, must_be_new: bool) -> Result<Self, JobError> {
        let checkpoints = path.join(FOLDER);
        fs::create_dir_all(&checkpoints).map_err(wrong(&checkpoints))?;
        let lock = File::open(path).map_err(wrong(path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JobError::OutBusy { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(wrong(path)(source)),
        }
        // Checked under the lock: another job may have ended here since this one began.
        if must_be_new && has_any(path)? {
            return Err(JobError::OutTaken { path: path.to_owned() });
        }
        [METRICS, RECORD].into_iter().for_each(|name| remove_temporary(path, name));
        Ok(Self { path: path.to_owned(), _lock: lock, metrics: open_metrics(path)?, events: None })
    }

    /// Begins the metrics with the lines that this run keeps of `earlier`. The records that are in the folder are replaced if they are
    /// those that this run continues (`is_own`) and sound, and get other names otherwise. Returns a notice of these names.
    ///
    /// # Errors
    /// When something can't be written or renamed.
    pub fn begin_metrics(&mut self, earlier: &Earlier, is_own: bool) -> Result<Option<String>, JobError> {
        let notice = if is_own && earlier.damage.is_empty() { None } else { self.set_aside()? };
        let file = self.path.join(METRICS);
        write_atomically(&file, &earlier.lines).map_err(wrong(&file))?;
        self.metrics = open_metrics(&self.path)?;
        Ok(notice)
    }

    /// Begins a file for TensorBoard, beside the metrics.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn begin_events(&mut self, earlier: &Earlier) -> Result<(), JobError> {
        self.events = Some(Events::begin(&self.path, &earlier.lines).map_err(wrong(&self.path))?);
        Ok(())
    }

    /// Renames the records in the folder, if a job has begun or ended there. Returns a notice of their new names.
    fn set_aside(&self) -> Result<Option<String>, JobError> {
        // The metrics were opened already, and are empty if there were none.
        let is_empty = |name: &str| fs::metadata(self.path.join(name)).map_or(0, |found| found.len()) == 0;
        if is_empty(METRICS) && record_in(&self.path)["final"].is_null() {
            return Ok(None);
        }
        // The record comes first: if this process is killed in between, the metrics still show that a job has begun.
        let new = |number: u64| [(RECORD, format!("run-{number}.json")), (METRICS, format!("metrics-{number}.jsonl"))];
        let is_free = |number: &u64| new(*number).iter().all(|(_, name)| !self.path.join(name).exists());
        let names = new((1..).find(is_free).expect("there is always another number"));
        let there = names.iter().filter(|(old, _)| !is_empty(old));
        let mut renamed = Vec::new();
        for (old, new) in there {
            let old = self.path.join(old);
            fs::rename(&old, self.path.join(new)).map_err(wrong(&old))?;
            renamed.push(new.as_str());
        }
        Ok(Some(format!("the records that were in {} are now {}", self.path.display(), renamed.join(" and "))))
    }

    /// Claims a new folder for a run: `runs/MODEL-TIME`, or the next free name after it. The folder is created and not merely
    /// looked for, so that several jobs that start at once get a folder each.
    ///
    /// # Errors
    /// When it can't be created.
    pub fn claim(model: &str, now: SystemTime) -> Result<PathBuf, JobError> {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let runs = Path::new("runs");
        fs::create_dir_all(runs).map_err(wrong(runs))?;
        let first = runs.join(format!("{model}-{}", stamp(seconds)));
        let others = (2..=CLAIMS_MAX).map(|n| PathBuf::from(format!("{}-{n}", first.display())));
        for path in iter::once(first.clone()).chain(others) {
            match fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => return created.map(|()| path.clone()).map_err(wrong(&path)),
            }
        }
        Err(wrong(&first)(ErrorKind::AlreadyExists.into()))
    }

    /// The folder for checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(FOLDER)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path for the trace. An earlier run's trace is renamed first.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn trace(&self) -> Result<PathBuf, JobError> {
        let path = self.path.join(TRACE);
        if path.exists() {
            let free = (1..).map(|n| self.path.join(format!("trace-{n}.json"))).find(|path| !path.exists());
            let earlier = free.expect("there is always another number");
            fs::rename(&path, &earlier).map_err(|source| JobError::Write { path: earlier, source })?;
        }
        Ok(path)
    }

    /// Removes a trace that holds no step yet.
    pub fn remove_trace(&self) {
        // It may not be there, and the next one gets another name if it stays.
        let _ = fs::remove_file(self.path.join(TRACE));
    }

    /// Replaces `run.json`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, record: &RunRecord) -> Result<(), JobError> {
        let path = self.path.join(RECORD);
        let text = serde_json::to_vec_pretty(record).map_err(std::io::Error::other);
        text.and_then(|text| write_atomically(&path, &text)).map_err(|source| JobError::Write { path, source })
    }

    /// Appends the line of a step to the metrics.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add_step(&mut self, step: u64, epoch: u64, loss: f64, lr: f64) -> Result<(), JobError> {
        self.add(&json!({ "step": step, "epoch": epoch, "loss": loss, "lr": lr }))
    }

    /// Appends the line of an epoch to the metrics.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add_epoch(&mut self, epoch: &EpochRecord) -> Result<(), JobError> {
        self.add(epoch)
    }

    /// The file of the metrics, complete up to now. It must be synced before a checkpoint is in place, which relies on it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn metrics_file(&mut self) -> Result<File, JobError> {
        let file = self.metrics.flush().and_then(|()| self.metrics.get_ref().try_clone());
        file.map_err(|source| self.wrong(source))
    }

    /// Checks that the metrics are still in the folder.
    ///
    /// # Errors When the file was removed or replaced, or when that can't be determined.
    pub fn check_metrics(&self) -> Result<(), JobError> {
        let file = |found: Metadata| (found.dev(), found.ino());
        let own = self.metrics.get_ref().metadata().map(file).map_err(|source| self.wrong(source))?;
        match fs::metadata(self.path.join(METRICS)).map(file) {
            Ok(there) if there == own => Ok(()),
            Err(source) if source.kind() != ErrorKind::NotFound => Err(self.wrong(source)),
            _ => Err(self.wrong(std::io::Error::other("it was removed or replaced during the run"))),
        }
    }

    fn add(&mut self, line: &impl Serialize) -> Result<(), JobError> {
        let text = serde_json::to_string(line).map_err(std::io::Error::other);
        let written = text.and_then(|text| writeln!(self.metrics, "{text}")).and_then(|()| self.metrics.flush());
        written.map_err(|source| self.wrong(source))?;
        let Some(events) = &mut self.events else { return Ok(()) };
        let added = serde_json::to_value(line).map_err(std::io::Error::other).and_then(|line| events.line(&line));
        added.map_err(wrong(events.path()))
    }

    fn wrong(&self, source: std::io::Error) -> JobError {
        JobError::Write { path: self.path.join(METRICS), source }
    }
}

fn open_metrics(folder: &Path) -> Result<BufWriter<File>, JobError> {
    let file = folder.join(METRICS);
    let opened = OpenOptions::new().create(true).append(true).open(&file);
    opened.map(BufWriter::new).map_err(wrong(&file))
}

fn wrong(at: &Path) -> impl FnOnce(std::io::Error) -> JobError {
    let path = at.to_owned();
    move |source| JobError::Write { path, source }
}

/// YYYYMMDD-HHMMSS in UTC, by Howard Hinnant's civil-from-days.
fn stamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Whether `folder` holds a run, with or without a checkpoint.
pub fn holds_run(folder: &Path) -> bool {
    folder.join(RECORD).exists()
}

/// `run.json` in `folder`; null if it can't be read.
fn record_in(folder: &Path) -> Value {
    let text = read_regular(&folder.join(RECORD)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Whether `run.json` in `folder` says that the run is done and ended with weights of this hash.
pub fn says_done(folder: &Path, weights_sha256: &str) -> bool {
    let record = record_in(folder);
    record["status"] == "done" && record["final"]["weights_sha256"] == weights_sha256
}

/// The machine and the program.
fn environment() -> BTreeMap<&'static str, String> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    BTreeMap::from([
        ("convoy", env!("CARGO_PKG_VERSION").to_owned()),
        ("system", std::env::consts::OS.to_owned()),
        ("architecture", std::env::consts::ARCH.to_owned()),
        ("cores", cores.to_string()),
    ])
}
