//! Trained weights from wherever a command finds them: the folder of a run or of a checkpoint, or a safetensors file.
//!
//! Not here: what a checkpoint is (`checkpoint`), and what is done with the weights (`measure`, reports, exports).

use std::path::{Path, PathBuf};

use convoy_common::model::Network;
use convoy_common::parameters::Tensors;

use crate::checkpoint::folder::{self, Opened};
use crate::checkpoint::{self, Checkpoint, CheckpointError};
use crate::error::JobError;
use crate::job::{Job, defaults};
use convoy_dataset::{RememberedData, Selection};

/// The most images per micro-batch. A checkpoint of a job with smaller micro-batches is measured with those, because its workers
/// may have less memory.
const MICRO_BATCH: usize = 64;

/// Weights, and what is known about their job.
#[derive(Debug)]
pub struct Loaded {
    /// The model's text.
    pub text: String,
    /// The weights' file or folder.
    pub path: PathBuf,
    /// The weights.
    pub weights: Tensors,
    /// The job's seed, which decides synthetic images.
    pub seed: u64,
    /// Where the job's data came from, and how they were read, as far as a checkpoint says so.
    pub data: RememberedData,
    /// The names of the classes, by label. Empty if nothing says them.
    pub classes: Vec<String>,
    /// SHA-256 over the job's test images, if a checkpoint says so.
    pub test_images: Option<String>,
    /// SHA-256 over all of the job's images, if a checkpoint says so.
    pub whole_set: Option<String>,
    /// The training images that the job used, if not all.
    pub selection: Option<Selection>,
    /// Images per micro-batch.
    pub micro_batch: usize,
    /// Newer checkpoints that are damaged.
    pub damaged: Vec<CheckpointError>,
}

/// Loads what is at `path`: the folder of a run or of a checkpoint, or a safetensors file, which needs a `model`.
///
/// # Errors
/// When it can't be read, or is of another model.
pub fn load(path: &Path, model: Option<String>) -> Result<Loaded, JobError> {
    // A weights file of a checkpoint is measured as that checkpoint.
    let of_checkpoint = checkpoint::folder_of_weights(path);
    if path.is_dir() || of_checkpoint.is_some() {
        let Opened { checkpoint, damaged } = folder::open(of_checkpoint.as_deref().unwrap_or(path))?;
        let Checkpoint { path: found, manifest, state } = checkpoint;
        let data = manifest.remembered_data();
        let (classes, test_images) = (manifest.classes, manifest.test_images);
        let batch = manifest.job.batch;
        // Replicas may have trained with micro-batches as small as these.
        let slots = manifest.job.slots;
        let division = manifest.job.division(defaults::micro_batches(batch, slots, slots));
        let micro_batch = division.largest_micro_batch(batch).min(MICRO_BATCH);
        let Job { model: own, seed, data: whole_set, selection, .. } = manifest.job;
        if model.as_ref().is_some_and(|model| *model != own) {
            return Err(JobError::OtherModel {
                path: found,
                own: name_of(&own),
                asked: name_of(&model.unwrap_or_default()),
            });
        }
        return Ok(Loaded {
            text: own,
            path: found,
            weights: state.weights,
            seed,
            data,
            classes,
            test_images,
            whole_set: Some(whole_set),
            selection,
            micro_batch,
            damaged,
        });
    }
    folder::check_exists(path, "the folder of a run or of a checkpoint, or a safetensors file")?;
    let text = model.ok_or_else(|| JobError::ModelWanted { path: path.to_owned() })?;
    let weights = checkpoint::read_weights(path, &Network::parse(&text)?)?;
    Ok(Loaded {
        text,
        path: path.to_owned(),
        weights,
        seed: defaults::SEED,
        data: RememberedData::default(),
        classes: Vec::new(),
        test_images: None,
        whole_set: None,
        selection: None,
        micro_batch: MICRO_BATCH,
        damaged: Vec::new(),
    })
}

fn name_of(text: &str) -> String {
    Network::parse(text).map_or_else(|_| "unreadable".to_owned(), |network| network.name)
}
