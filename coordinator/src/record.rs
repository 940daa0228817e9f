//! What a run leaves behind beside its checkpoints: `run.json`, replaced whole whenever it changes, and `metrics.jsonl`,
//! which grows by a line a step and is cut back when a job is resumed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::iter;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use convoy_common::plan::Traffic;
use serde::Serialize;
use serde_json::{Value, json};

use crate::checkpoint::{FOLDER, write_atomically};
use crate::error::JobError;
use crate::job::Job;
use crate::observe::{EpochRecord, WorkerRecord};

/// Names that are tried for a new folder, all of one second.
const CLAIMS_MAX: usize = 10_000;
/// The trace of a run, in its folder.
pub const TRACE: &str = "trace.json";

/// `run.json`.
#[derive(Clone, Debug, Serialize)]
pub struct RunRecord {
    /// `running`, `done`, `interrupted` or `failed`.
    pub status: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The model's name.
    pub model: String,
    /// Everything that decides the job's bits.
    pub configuration: Job,
    /// What doesn't.
    pub running: RunningRecord,
    /// What the data are and where they came from.
    pub data: String,
    /// Machine and program.
    pub environment: BTreeMap<&'static str, String>,
    /// Who computed.
    pub workers: Vec<WorkerRecord>,
    /// What crossed each exchange, as it arrived at the coordinator.
    pub exchanges: Vec<ExchangeRecord>,
    /// Bytes over sockets in a full training step, as planned.
    pub planned_step_traffic: Option<Traffic>,
    /// Training images a second in this run.
    pub images_per_second: Option<f64>,
    /// Faults as the job saw them. None can be mended yet, so a job that sees one ends with it.
    pub incidents: Vec<Value>,
    /// How it ended.
    #[serde(rename = "final")]
    pub ended: Option<FinalRecord>,
}

/// The settings that don't change a job's bits.
#[derive(Clone, Debug, Serialize)]
pub struct RunningRecord {
    /// Worker processes.
    pub workers: usize,
    /// Threads of each embedded worker.
    pub threads: Option<usize>,
    /// Where workers dial in, if they do.
    pub listen: Option<String>,
    /// Micro-batches a slot.
    pub micro_batches: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// The last step.
    pub last_step: u64,
    /// The checkpoint that the run went on from, and its step.
    pub resumed: Option<(PathBuf, u64)>,
}

/// What crossed an exchange in one direction.
#[derive(Clone, Debug, Serialize)]
pub struct ExchangeRecord {
    /// Index of the exchange; the last is the logits'.
    pub exchange: usize,
    /// `forward` or `backward`.
    pub direction: &'static str,
    /// Whole tensors.
    pub tensors: u64,
    /// Bytes of payload.
    pub bytes: u64,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct FinalRecord {
    /// Steps committed.
    pub steps: u64,
    /// Mean loss of the last epoch's images.
    pub train_loss: Option<f64>,
    /// On the test images.
    pub test_accuracy: Option<f64>,
    /// Over all weights.
    pub weights_sha256: String,
}

/// What a resumed run keeps of the metrics before it.
pub struct Kept<'a> {
    /// Lines of steps up to this one.
    pub steps_through: u64,
    /// Of the lines of epochs, those through steps of which this is true.
    pub epoch: &'a dyn Fn(u64) -> bool,
}

/// The run's folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The folder itself, locked for as long as the run goes on.
    _lock: File,
    metrics: BufWriter<File>,
}

impl RunFolder {
    /// Opens the folder, with what is to be `kept` of an earlier run's metrics.
    ///
    /// # Errors
    /// When it can't be written, or another run is at work in it.
    pub fn open(path: &Path, earlier: Option<&Path>, kept: &Kept) -> Result<Self, JobError> {
        let checkpoints = path.join(FOLDER);
        fs::create_dir_all(&checkpoints).map_err(wrong(&checkpoints))?;
        let lock = File::open(path).map_err(wrong(path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JobError::OutBusy { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(wrong(path)(source)),
        }
        let file = path.join("metrics.jsonl");
        let lines = earlier.map_or(Ok(Vec::new()), |run| kept_lines(&run.join("metrics.jsonl"), kept));
        write_atomically(&file, &lines.map_err(wrong(&file))?).map_err(wrong(&file))?;
        let metrics = OpenOptions::new().append(true).open(&file).map_err(wrong(&file))?;
        Ok(Self { path: path.to_owned(), _lock: lock, metrics: BufWriter::new(metrics) })
    }

    /// Claims a new folder for a run: `runs/MODEL-TIME`, or the next free name after it. It is created, not looked for, so
    /// that of several jobs that start at once each gets its own.
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

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(FOLDER)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a trace goes. One of an earlier run in this folder is kept under another name.
    ///
    /// # Errors
    /// When that can't be renamed.
    pub fn trace(&self) -> Result<PathBuf, JobError> {
        let path = self.path.join(TRACE);
        if path.exists() {
            let free = (1..).map(|n| self.path.join(format!("trace-{n}.json"))).find(|path| !path.exists());
            let earlier = free.expect("numbers don't end");
            fs::rename(&path, &earlier).map_err(|source| JobError::Write { path: earlier, source })?;
        }
        Ok(path)
    }

    /// Replaces `run.json`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, record: &RunRecord) -> Result<(), JobError> {
        let path = self.path.join("run.json");
        let text = serde_json::to_vec_pretty(record).map_err(std::io::Error::other);
        text.and_then(|text| write_atomically(&path, &text)).map_err(|source| JobError::Write { path, source })
    }

    /// Adds a step's line to the metrics.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add_step(&mut self, step: u64, epoch: u64, loss: f64, lr: f64) -> Result<(), JobError> {
        self.add(&json!({ "step": step, "epoch": epoch, "loss": loss, "lr": lr }))
    }

    /// Adds an epoch's line to the metrics.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add_epoch(&mut self, epoch: &EpochRecord) -> Result<(), JobError> {
        self.add(epoch)
    }

    /// Makes sure that the metrics are on disk, before a checkpoint says that they are.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn sync(&mut self) -> Result<(), JobError> {
        let synced = self.metrics.flush().and_then(|()| self.metrics.get_ref().sync_data());
        synced.map_err(|source| self.wrong(source))
    }

    fn add(&mut self, line: &impl Serialize) -> Result<(), JobError> {
        let text = serde_json::to_string(line).map_err(std::io::Error::other);
        let written = text.and_then(|text| writeln!(self.metrics, "{text}")).and_then(|()| self.metrics.flush());
        written.map_err(|source| self.wrong(source))
    }

    fn wrong(&self, source: std::io::Error) -> JobError {
        JobError::Write { path: self.path.join("metrics.jsonl"), source }
    }
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

/// Whether the record of the run in `folder` says that it is done, with weights of this hash.
pub fn says_done(folder: &Path, weights_sha256: &str) -> bool {
    let text = fs::read(folder.join("run.json")).unwrap_or_default();
    let record: Value = serde_json::from_slice(&text).unwrap_or_default();
    record["status"] == "done" && record["final"]["weights_sha256"] == weights_sha256
}

/// The lines that are to be kept. A line that was cut short by a crash, and all after it, is left out.
fn kept_lines(path: &Path, kept: &Kept) -> std::io::Result<Vec<u8>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut lines = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let Ok(value) = serde_json::from_str::<Value>(&line) else { break };
        let number = |key| value.get(key).and_then(Value::as_u64);
        match (number("step"), number("through_step")) {
            (Some(step), _) if step <= kept.steps_through => writeln!(lines, "{line}")?,
            // A part of an epoch that was measured because the job was to end there is measured again, whole.
            (None, Some(through)) if through <= kept.steps_through => {
                if (kept.epoch)(through) {
                    writeln!(lines, "{line}")?;
                }
            }
            _ => break,
        }
    }
    Ok(lines)
}

/// Machine and program.
pub fn environment() -> BTreeMap<&'static str, String> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    BTreeMap::from([
        ("convoy", env!("CARGO_PKG_VERSION").to_owned()),
        ("system", std::env::consts::OS.to_owned()),
        ("architecture", std::env::consts::ARCH.to_owned()),
        ("cores", cores.to_string()),
    ])
}
