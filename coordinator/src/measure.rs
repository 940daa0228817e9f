//! `convoy eval`'s work: weights from wherever they lie, workers to hold them, and one pass over the test images.
//!
//! Not here: measuring in the middle of a job (`evaluate`), and printing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convoy_common::model::Network;
use convoy_common::parameters::{Tensors, sha256};
use convoy_common::plan::Plan;
use convoy_common::wire::Assignment;
use ndarray::{ArrayD, IxDyn};
use serde::Serialize;

use crate::checkpoint::{self, Checkpoint};
use crate::cluster::JobState;
use crate::cluster::doors::unguessable;
use crate::cluster::founding::found;
use crate::data::{DataChoice, DataSource, Places, Wanted};
use crate::error::JobError;
use crate::evaluate::evaluate;
use crate::exchange::Exchanges;
use crate::job::{Job, Running, defaults};
use crate::observe::{Event, Observer};

/// Images that travel together.
const MICRO_BATCH: usize = 64;

/// What is to be measured.
pub struct Measuring {
    /// A checkpoint's or a run's folder, or a safetensors file.
    pub path: PathBuf,
    /// The model's text: needed for a weights file, and checked against a checkpoint's own.
    pub model: Option<String>,
    /// Where the images come from. Left out: where the checkpoint says, or [`DataSource::Auto`] for a weights file.
    pub data: Option<DataSource>,
    /// Where Fashion-MNIST may be.
    pub places: Places,
    /// Where to run.
    pub running: Running,
    /// Where to put the logits, (image, class).
    pub logits: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The model's name.
    pub model: String,
    /// The weights that were measured.
    pub weights: PathBuf,
    /// Over all weights.
    pub weights_sha256: String,
    /// What the images are and where they came from.
    pub data: String,
    /// How many there are.
    pub images: usize,
    /// How many were classified rightly.
    pub correct: usize,
    /// Their share.
    pub accuracy: f64,
    /// The mean loss.
    pub loss: f64,
}

/// Measures.
///
/// # Errors
/// Whatever keeps the weights, the data or the workers from coming together.
pub fn measure(measuring: Measuring, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Finding, JobError> {
    let Measuring { path, model, data, places, running, logits } = measuring;
    let Loaded { text, path: weights_path, weights, seed, data: remembered, test_images } = load(&path, model)?;
    let network = Network::parse(&text)?;
    let classes = network.classes();
    let workers = running.workers.unwrap_or(network.towers);
    let plan = Arc::new(Plan::new(network.clone(), workers)?);
    let choice = DataChoice::of(data, remembered);
    let data = choice.load_test(&Wanted::by(&network, seed), &places)?;
    let is_other = test_images.is_some_and(|known| known != data.images.fingerprint());
    if choice.is_remembered && is_other {
        return Err(JobError::OtherTestImages { path: weights_path, origin: data.origin });
    }
    data.notices.iter().cloned().for_each(|text| observer.on(Event::Notice { text }));
    let job = unguessable().max(1);
    let threads = running.threads_of_each(workers)?;
    let mut cluster = found(job, plan.clone(), &running, threads, observer, stop)?;
    let assignment = Assignment {
        job,
        model: text,
        placement: plan.placement.clone(),
        worker: 0,
        seed: 0,
        momentum: 0.0,
        weight_decay: 0.0,
        batch: MICRO_BATCH,
        division: convoy_common::batch::Division { slots: 1, micro_batches: 1 },
        train: false,
        trace: false,
    };
    let state = JobState { weights, momentum: Tensors::new() };
    cluster.assign(&assignment, &state, 0)?;
    let mut exchanges = Exchanges::new(plan, MICRO_BATCH);
    let measured = evaluate(&mut cluster, &mut exchanges, &data.images, 0, MICRO_BATCH, stop)?;
    cluster.dismiss("measured");
    let accuracy = measured.accuracy();
    if let Some(path) = logits {
        let logits = ArrayD::from_shape_vec(IxDyn(&[measured.images, classes]), measured.logits);
        let logits = logits.expect("a row of logits for each image");
        checkpoint::write_tensors(&path, &Tensors::from([("logits".to_owned(), logits)]))?;
    }
    Ok(Finding {
        model: network.name,
        weights: weights_path,
        weights_sha256: sha256(&state.weights),
        data: data.origin,
        images: measured.images,
        correct: measured.correct,
        accuracy,
        loss: measured.loss,
    })
}

/// Weights, and what is known of them.
struct Loaded {
    /// The model's text.
    text: String,
    /// The file or folder that they are in.
    path: PathBuf,
    weights: Tensors,
    /// Their job's; it decides what synthetic images look like.
    seed: u64,
    /// Where their job's data came from, if a checkpoint says so.
    data: Option<DataSource>,
    /// SHA-256 over their job's test images, likewise.
    test_images: Option<String>,
}

fn load(path: &Path, model: Option<String>) -> Result<Loaded, JobError> {
    if path.is_dir() {
        let found = checkpoint::find(path)?;
        let Checkpoint { manifest, state, .. } = checkpoint::read(&found)?;
        let (data, test_images) = (manifest.data_source(), manifest.test_images);
        let Job { model: own, seed, .. } = manifest.job;
        if model.as_ref().is_some_and(|model| *model != own) {
            return Err(JobError::OtherModel {
                path: found,
                own: name_of(&own),
                asked: name_of(&model.unwrap_or_default()),
            });
        }
        return Ok(Loaded { text: own, path: found, weights: state.weights, seed, data, test_images });
    }
    let text = model.ok_or_else(|| JobError::ModelWanted { path: path.to_owned() })?;
    let weights = checkpoint::read_weights(path, &Network::parse(&text)?)?;
    Ok(Loaded { text, path: path.to_owned(), weights, seed: defaults::SEED, data: None, test_images: None })
}

fn name_of(text: &str) -> String {
    Network::parse(text).map_or_else(|_| "unreadable".to_owned(), |network| network.name)
}
