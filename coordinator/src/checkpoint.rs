//! Checkpoints: everything needed to continue a job, and nothing about the cluster that wrote it. A checkpoint is a folder
//! `step-NNNNNN` with `weights.safetensors`, `optimizer.safetensors` and `manifest.json`, which holds the SHA-256 of both, and
//! `manifest.sha256`, which holds the SHA-256 of the manifest. It is written under a temporary name, synced and renamed, so it is
//! there whole or not at all. [`folder`] holds the checkpoints of a run, and [`writer`] writes them in the background.

pub mod correspondence;
pub mod folder;
pub mod writer;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use convoy_common::model::Network;
use convoy_common::parameters::{Parameter, Tensors, hex, sha256};
use convoy_common::text::brief;
use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files::{
    folder_of, open_regular, put_in_place, quoted, read_regular, remove_any, sync_folder, write_atomically,
    write_synced,
};
use crate::job::{Job, STEPS_MAX, Unsound, demand};
use crate::outputs::{self, MANIFEST};
use crate::state::{JobState, Progress};
use convoy_dataset::{Colours, Reading, RememberedData};
use correspondence::Correspondence;

/// Version of the manifest. Raise it when an older program would misread the manifest. Version 2 has seeds by purpose and a selection of
/// training images; a job without them has version 1.
const FORMAT: u32 = 2;
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// The tensor of a file of logits.
const LOGITS: &str = "logits";
/// The SHA-256 of the manifest, as `sha256sum --check` reads it.
const MANIFEST_SHA256: &str = "manifest.sha256";
/// The names and shapes in a file of weights have at most this many bytes.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// An error shows at most this many characters of a damaged file.
const SHOWN_MAX: usize = 200;
/// The folder for checkpoints in a run's folder.
pub const FOLDER: &str = "checkpoints";

/// A checkpoint's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the manifest.
    pub format: u32,
    /// Version of the program that wrote it.
    pub convoy: String,
    /// Everything that decides the result.
    pub job: Job,
    /// The last step of the job. A resumed job may have a later one.
    pub last_step: u64,
    /// How far the job has come.
    pub progress: Progress,
    /// Where the data came from, as `--data` takes it, with a folder's absolute path.
    #[serde(default)]
    pub source: Option<String>,
    /// How a folder of image files was read, if not as usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<Reading>,
    /// The names of the classes, by label. Empty if they have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// The colours of the training images, along which the model's colour noise varies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colours: Option<Colours>,
    /// SHA-256 over the test images, their dimensions and labels.
    pub test_images: Option<String>,
    /// SHA-256 over all weights.
    pub weights_sha256: String,
    /// SHA-256 of the two tensor files, by file name.
    pub files: HashMap<String, String>,
}

/// A checkpoint that was read.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its tensors.
    pub state: JobState,
}

/// What is wrong with a checkpoint or a weights file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum CheckpointError {
    /// A file can't be read.
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    /// A file can't be written.
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    /// Nothing is at the path given.
    #[error("{path} does not exist; give {wanted}")]
    Missing { path: PathBuf, wanted: &'static str },
    /// Every checkpoint that was listed was deleted before it was read.
    #[error("a running job deletes the checkpoints of {run} faster than they can be read; give it a larger --keep")]
    Vanishing { run: PathBuf },
    /// There is no checkpoint at the path given.
    #[error("{path} holds no checkpoint: it has neither {MANIFEST} nor checkpoints/step-NNNNNN/{MANIFEST}")]
    None { path: PathBuf },
    /// Every checkpoint of a run is damaged.
    #[error(
        "no checkpoint of {run} is sound (`convoy verify {}` checks all of them); the error in the newest one",
        quoted(run)
    )]
    NoneSound { run: PathBuf, source: Box<CheckpointError> },
    /// The manifest can't be read.
    #[error("{path} is not a manifest of format 1 to {FORMAT}: {reason}")]
    Manifest { path: PathBuf, reason: String },
    /// The manifest has another version.
    #[error("{path} has format {found}; this program reads formats 1 to {FORMAT}")]
    Format { path: PathBuf, found: u32 },
    /// The manifest holds a value that no job has.
    #[error("{path} is damaged: {why}")]
    Unsound { path: PathBuf, why: String },
    /// A tensor file isn't the one that the manifest names.
    #[error("{path} is damaged: its SHA-256 is {found}, but the manifest says {stated}")]
    Damaged { path: PathBuf, found: String, stated: String },
    /// The weights aren't those that the manifest names.
    #[error("{path} is damaged: it says that weights_sha256 is {stated}, but that of the weights is {found}")]
    OtherWeights { path: PathBuf, found: String, stated: String },
    /// The sum of the manifest is missing.
    #[error("{path} is damaged: {MANIFEST_SHA256} is missing")]
    NoSum { path: PathBuf },
    /// The manifest isn't the one whose sum was written.
    #[error("{path} or {sum} is damaged: {sum} should say \"{found}\", but says \"{stated}\"")]
    DamagedManifest { path: PathBuf, found: String, sum: PathBuf, stated: String },
    /// A checkpoint of a run has the name of another step.
    #[error("{path} holds step {step}, and must be named {}", name_of(*step))]
    Misnamed { path: PathBuf, step: u64 },
    /// A tensor file can't be read.
    #[error("{path} is not a safetensors file: {reason}")]
    Tensors { path: PathBuf, reason: String },
    /// A tensor doesn't fit the model.
    #[error("{path}: {reason}")]
    Fit { path: PathBuf, reason: String },
}

/// A checkpoint without its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// Everything that decides the result.
    pub job: Job,
    /// The last step of the job.
    pub last_step: u64,
    /// How far the job has come.
    pub progress: Progress,
    /// Where the data came from, as `--data` takes it.
    pub source: Option<String>,
    /// How a folder of image files was read, if not as usual.
    pub reading: Option<Reading>,
    /// The names of the classes, by label.
    pub classes: Vec<String>,
    /// The colours of the training images, if the model's input has colour noise.
    pub colours: Option<Colours>,
    /// SHA-256 over the test images.
    pub test_images: Option<String>,
}

impl Manifest {
    /// Where the job's data came from, and how they were read.
    pub fn remembered_data(&self) -> RememberedData {
        RememberedData { source: self.source.as_ref().and_then(|source| source.parse().ok()), reading: self.reading }
    }
}

/// Writes a checkpoint into `folder`, the run's `checkpoints`. Returns its path.
///
/// # Errors
/// When it can't be written. Then nothing of it is left.
pub fn write(folder: &Path, described: &Described, state: &JobState) -> Result<PathBuf, CheckpointError> {
    let step = described.progress.step;
    let path = folder.join(name_of(step));
    if is_already_there(&path, described, state) {
        return Ok(path);
    }
    let temporary = folder.join(format!(".step-{step:06}.tmp"));
    let result = write_into(&temporary, described, state).and_then(|()| {
        put_in_place(&temporary, &path)?;
        sync_folder(folder)
    });
    // The temporary name holds a checkpoint that was replaced, or one that couldn't be written. If it can't be removed now,
    // the next checkpoint removes it. The first error is the useful one.
    let _ = remove_any(&temporary);
    result.map_err(|source| CheckpointError::Write { path: path.clone(), source })?;
    Ok(path)
}

/// The name of a checkpoint's folder.
fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

/// Whether the same checkpoint is already there: a job that is resumed at its end has nothing new to write.
fn is_already_there(path: &Path, described: &Described, state: &JobState) -> bool {
    let same = |manifest: &Manifest| {
        let Manifest { job, last_step, progress, source, reading, classes, colours, test_images, .. } =
            manifest.clone();
        Described { job, last_step, progress, source, reading, classes, colours, test_images } == *described
            && manifest.weights_sha256 == sha256(&state.weights)
    };
    path.is_dir() && read(path).is_ok_and(|checkpoint| same(&checkpoint.manifest))
}

fn write_into(temporary: &Path, described: &Described, state: &JobState) -> std::io::Result<()> {
    remove_any(temporary)?;
    fs::create_dir_all(temporary)?;
    let mut files = HashMap::new();
    for (name, tensors) in [(WEIGHTS, &state.weights), (OPTIMIZER, &state.momentum)] {
        let bytes = serialized(tensors)?;
        files.insert(name.to_owned(), hex(&Sha256::digest(&bytes)));
        write_synced(&temporary.join(name), &bytes)?;
    }
    let manifest = Manifest {
        format: if described.job.is_of_format_2() { FORMAT } else { 1 },
        convoy: env!("CARGO_PKG_VERSION").to_owned(),
        job: described.job.clone(),
        last_step: described.last_step,
        progress: described.progress,
        source: described.source.clone(),
        reading: described.reading,
        classes: described.classes.clone(),
        colours: described.colours,
        test_images: described.test_images.clone(),
        weights_sha256: sha256(&state.weights),
        files,
    };
    let manifest = serde_json::to_vec_pretty(&manifest)?;
    write_synced(&temporary.join(MANIFEST), &manifest)?;
    write_synced(&temporary.join(MANIFEST_SHA256), sha256_line(&manifest).as_bytes())?;
    sync_folder(temporary)
}

/// Reads a checkpoint and checks every file against the manifest.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn read(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let manifest = read_manifest(path)?;
    let network = Network::parse(&manifest.job.model).map_err(|error| fit(&path.join(MANIFEST), error.to_string()))?;
    let load = |name: &str| {
        let file = path.join(name);
        let bytes = read_file(&file)?;
        let found = hex(&Sha256::digest(&bytes));
        let stated = manifest.files.get(name);
        if stated != Some(&found) {
            let stated = stated.map_or_else(|| "nothing".to_owned(), |sum| shown(sum));
            return Err(CheckpointError::Damaged { path: file, found, stated });
        }
        deserialized(&file, &bytes, &network, &Correspondence::default())
    };
    let state = JobState { weights: load(WEIGHTS)?, momentum: load(OPTIMIZER)? };
    let found = sha256(&state.weights);
    if found != manifest.weights_sha256 {
        let stated = shown(&manifest.weights_sha256);
        return Err(CheckpointError::OtherWeights { path: path.join(MANIFEST), found, stated });
    }
    Ok(Checkpoint { path: path.to_owned(), manifest, state })
}

/// Reads only the manifest.
///
/// # Errors
/// When it can't be read, or isn't a manifest.
pub fn read_manifest(path: &Path) -> Result<Manifest, CheckpointError> {
    let file = path.join(MANIFEST);
    let bytes = read_file(&file)?;
    let sum = path.join(MANIFEST_SHA256);
    if !sum.exists() {
        return Err(CheckpointError::NoSum { path: path.to_owned() });
    }
    let (found, stated) = (sha256_line(&bytes), String::from_utf8_lossy(&read_file(&sum)?).into_owned());
    if found != stated {
        let [found, stated] = [found, stated].map(|line| shown(line.trim_end()));
        return Err(CheckpointError::DamagedManifest { path: file, found, sum, stated });
    }
    parse_manifest(file, &bytes)
}

/// Reads the manifest of a checkpoint that may be damaged.
///
/// # Errors
/// When it can't be read, or isn't a manifest.
fn peek_manifest(path: &Path) -> Result<Manifest, CheckpointError> {
    let file = path.join(MANIFEST);
    let bytes = read_file(&file)?;
    parse_manifest(file, &bytes)
}

fn parse_manifest(path: PathBuf, bytes: &[u8]) -> Result<Manifest, CheckpointError> {
    let parsed = serde_json::from_slice::<Manifest>(bytes);
    let wrong =
        |error: serde_json::Error| CheckpointError::Manifest { path: path.clone(), reason: shown(&error.to_string()) };
    let manifest = parsed.map_err(wrong)?;
    match manifest.format {
        1..=FORMAT => checked(path, manifest),
        found => Err(CheckpointError::Format { path, found }),
    }
}

/// Refuses a manifest with a value that no job has. Its sums may be right: another program may have written it.
fn checked(path: PathBuf, manifest: Manifest) -> Result<Manifest, CheckpointError> {
    let Manifest { job, last_step, progress, .. } = &manifest;
    match job.check().and_then(|()| check_progress(progress, job, *last_step)) {
        Ok(()) => Ok(manifest),
        Err(unsound) => Err(CheckpointError::Unsound { path, why: unsound.to_string() }),
    }
}

/// Checks that a job can have come as far as a manifest says.
fn check_progress(progress: &Progress, job: &Job, last_step: u64) -> Result<(), Unsound> {
    let Progress { step, epoch_loss_sum, epoch_images, train_loss, test_accuracy } = *progress;
    demand("last_step", last_step, (1..=STEPS_MAX).contains(&last_step), format!("1 to {STEPS_MAX}"))?;
    demand("progress.step", step, step <= last_step, format!("0 to {last_step}, which is last_step"))?;
    let (batch, steps) = (job.batch as u64, step % job.span.steps_per_epoch);
    if step > 0 && steps == 0 {
        // The last batch of an epoch may be smaller. After the measurement, the next epoch begins.
        let most = batch.saturating_mul(job.span.steps_per_epoch);
        demand("progress.epoch_images", epoch_images, epoch_images <= most, format!("0 to {most}"))?;
    } else {
        let expected = batch.saturating_mul(steps);
        let why = format!("{expected}: {steps} steps of the epoch with {batch} images each");
        demand("progress.epoch_images", epoch_images, epoch_images == expected, why)?;
    }
    let is_loss = |loss: f64| loss.is_finite() && loss >= 0.0;
    demand("progress.epoch_loss_sum", epoch_loss_sum, is_loss(epoch_loss_sum), "a number of at least 0")?;
    let train_loss = train_loss.unwrap_or(0.0);
    demand("progress.train_loss", train_loss, is_loss(train_loss), "a number of at least 0")?;
    let test_accuracy = test_accuracy.unwrap_or(0.0);
    demand("progress.test_accuracy", test_accuracy, (0.0..=1.0).contains(&test_accuracy), "a number from 0 to 1")
}

/// The beginning of a text from a damaged file, as an error shows it.
fn shown(text: &str) -> String {
    brief(text, SHOWN_MAX)
}

/// The line of a manifest in its sum file.
fn sha256_line(manifest: &[u8]) -> String {
    format!("{}  {MANIFEST}\n", hex(&Sha256::digest(manifest)))
}

/// The most bytes of a file of which some layers are left out.
const FILE_BYTES_MAX: u64 = 8 << 30;

/// Reads a weights file for `network`.
///
/// # Errors
/// Names the tensor that is missing, unknown, or has another shape.
pub fn read_weights(path: &Path, network: &Network) -> Result<Tensors, CheckpointError> {
    read_some_weights(path, network, &Correspondence::default())
}

/// Reads the weights of all layers of `network` that are not left out.
///
/// # Errors
/// Names the tensor that is missing, unknown, or has another shape.
pub fn read_some_weights(
    path: &Path,
    network: &Network,
    correspondence: &Correspondence,
) -> Result<Tensors, CheckpointError> {
    let is_optimizer = path.file_name().is_some_and(|name| name == OPTIMIZER);
    if is_optimizer && folder_of(path).join(MANIFEST).is_file() {
        let source = std::io::Error::other(format!("it holds the optimizer's momentum; the weights are in {WEIGHTS}"));
        return Err(CheckpointError::Read { path: path.to_owned(), source });
    }
    let wrong = |why| CheckpointError::Read { path: path.to_owned(), source: std::io::Error::other(why) };
    let found = fs::metadata(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
    let floats: usize = network.parameters().iter().map(Parameter::len).sum();
    let most = (floats * size_of::<f32>()) as u64 + HEADER_BYTES_MAX;
    // A layer that is left out may be larger there.
    let most = if correspondence.except.is_empty() { most } else { most.max(FILE_BYTES_MAX) };
    // Some files never end.
    if !found.is_file() {
        return Err(wrong("it is not a plain file".to_owned()));
    }
    if found.len() > most {
        let text = format!("it has {} bytes; the weights of \"{}\" have at most {most}", found.len(), network.name);
        return Err(wrong(text));
    }
    deserialized(path, &read_file(path)?, network, correspondence)
}

/// Writes a weights file, atomically.
///
/// # Errors
/// When it can't be written.
pub fn write_weights(path: &Path, weights: &Tensors) -> Result<(), CheckpointError> {
    let wrong = |source| CheckpointError::Write { path: path.to_owned(), source };
    write_atomically(path, &serialized(weights).map_err(wrong)?).map_err(wrong)
}

/// Writes a file with the tensor `logits`, atomically.
///
/// # Errors
/// When the file can't be written, or must not be replaced.
pub fn write_logits(path: &Path, logits: ArrayD<f32>) -> Result<(), CheckpointError> {
    check_logits_path(path)?;
    let wrong = |source| CheckpointError::Write { path: path.to_owned(), source };
    let tensors = Tensors::from([(LOGITS.to_owned(), logits)]);
    write_atomically(path, &serialized(&tensors).map_err(wrong)?).map_err(wrong)
}

/// Checks that a file of logits may be written to `path`: nothing is there, or an earlier file of logits.
///
/// # Errors
/// When something else is there, or its folder is a checkpoint or does not exist.
pub fn check_logits_path(path: &Path) -> Result<(), CheckpointError> {
    outputs::check(path, "a file of logits", holds_only_logits)
        .map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
}

/// Whether the header of a safetensors file names the tensor `logits` and no other.
fn holds_only_logits(path: &Path) -> bool {
    let header = || -> std::io::Result<serde_json::Map<String, serde_json::Value>> {
        let (mut file, mut length) = (open_regular(path)?, [0; 8]);
        file.read_exact(&mut length)?;
        Ok(serde_json::from_reader(BufReader::new(file.take(u64::from_le_bytes(length).min(HEADER_BYTES_MAX))))?)
    };
    let is_expected = |name: &String| name == LOGITS || name == "__metadata__";
    header().is_ok_and(|header| header.contains_key(LOGITS) && header.keys().all(is_expected))
}

/// The checkpoint that `path` is the weights file of, if it is one.
pub fn folder_of_weights(path: &Path) -> Option<PathBuf> {
    let folder = folder_of(path);
    (path.file_name()? == WEIGHTS && folder.join(MANIFEST).is_file()).then(|| folder.to_owned())
}

fn read_file(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    read_regular(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })
}

fn serialized(tensors: &Tensors) -> std::io::Result<Vec<u8>> {
    let views = tensors.iter().map(|(name, tensor)| (name, Floats(tensor)));
    safetensors::serialize(views, None).map_err(std::io::Error::other)
}

/// A tensor, whose bytes exist only while they are copied into the file's.
struct Floats<'a>(&'a ArrayD<f32>);

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        self.0.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        size_of::<f32>() * self.0.len()
    }
}

fn deserialized(
    path: &Path,
    bytes: &[u8],
    network: &Network,
    correspondence: &Correspondence,
) -> Result<Tensors, CheckpointError> {
    let unreadable = |error: safetensors::SafeTensorError| CheckpointError::Tensors {
        path: path.to_owned(),
        reason: shown(&error.to_string()),
    };
    let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let parameters = network.parameters();
    let known: Vec<String> = parameters.iter().map(|parameter| correspondence.in_file(parameter)).collect();
    let is_unknown = |name: &&str| !correspondence.leaves_out(name) && known.iter().all(|known| known != name);
    if let Some(extra) = file.names().into_iter().find(is_unknown) {
        let known: Vec<_> = known.iter().map(String::as_str).collect();
        let hint = convoy_common::suggest::hint(extra, &known);
        let extra = shown(extra);
        return Err(fit(path, format!("unknown tensor \"{extra}\" for the model \"{}\"{hint}", network.name)));
    }
    let read = |name: &str, shape: &[usize]| {
        // It may come from a file of names.
        let told = shown(name);
        let Ok(view) = file.tensor(name) else {
            return Err(fit(
                path,
                format!("the tensor \"{told}\" is missing; the model \"{}\" needs it", network.name),
            ));
        };
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            let found = format!("{:?} of shape {:?}", view.dtype(), view.shape());
            return Err(fit(
                path,
                format!(
                    "the tensor \"{told}\" is {found}; the model \"{}\" needs F32 of shape {shape:?}",
                    network.name
                ),
            ));
        }
        let values =
            view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        if let Some(value) = values.clone().find(|value| !value.is_finite()) {
            return Err(fit(path, format!("the tensor \"{told}\" holds {value}; every value must be finite")));
        }
        Ok(ArrayD::from_shape_vec(IxDyn(shape), values.collect()).expect("as many values as the shape has elements"))
    };
    let wanted = parameters.iter().filter(|parameter| correspondence.is_read(parameter));
    wanted.map(|p| Ok((p.name.clone(), read(&correspondence.in_file(p), &p.shape)?))).collect()
}

fn fit(path: &Path, reason: String) -> CheckpointError {
    CheckpointError::Fit { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests;
