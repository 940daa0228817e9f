//! `convoy eval`: loads weights and images, forms a cluster, and measures once.
//!
//! Not here: the cluster (`forward`), the measurement itself, which jobs use too (`evaluate`), and printing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convoy_common::chain::chain;
use convoy_common::model::Network;
use convoy_common::plan::Plan;
use ndarray::{ArrayD, IxDyn};
use serde::Serialize;

use crate::checkpoint;
use crate::error::JobError;
use crate::evaluate::Views;
use crate::forward::{Subject, check_views, forward, micro_batch_for};
use crate::job::check;
use crate::observe::{Event, Observer};
use crate::running::Running;
use crate::weights::{Loaded, load};
use crate::wrong;
use convoy_dataset::{AskedData, DataChoice, Part, PartSet, Places, Wanted};

/// A request to measure.
pub struct Measuring {
    /// The folder of a checkpoint or a run, or a safetensors file.
    pub path: PathBuf,
    /// The model's text. Required for a weights file. For a checkpoint it must be the checkpoint's own.
    pub model: Option<String>,
    /// Where the images come from. What is missing is as the checkpoint says, or the default.
    pub data: AskedData,
    /// Which of its images are measured.
    pub part: Part,
    /// The views by which each image is measured.
    pub views: Views,
    /// Where Fashion-MNIST may be.
    pub places: Places,
    /// How to run.
    pub running: Running,
    /// File for the logits, (image, class), if they are wanted.
    pub logits: Option<PathBuf>,
    /// File for the list of wrongly classified images, if it is wanted.
    pub wrong: Option<PathBuf>,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The model's name.
    pub model: String,
    /// The weights that were measured.
    pub weights: PathBuf,
    /// SHA-256 over all weights.
    pub weights_sha256: String,
    /// What the images are and where they come from.
    pub data: String,
    /// Which of them were measured.
    pub part: Part,
    /// The views by which each image was measured.
    pub views: Views,
    /// Number of images.
    pub images: usize,
    /// Number of images that were classified correctly.
    pub correct: usize,
    /// Their share.
    pub accuracy: f64,
    /// Mean loss.
    pub loss: f64,
    /// SHA-256 over the images and their labels.
    #[serde(skip)]
    pub images_sha256: String,
    /// The names of the classes, by label. Empty if they have none.
    #[serde(skip)]
    pub classes: Vec<String>,
    /// The label of each image.
    #[serde(skip)]
    pub labels: Vec<u16>,
    /// The class of the highest logit of each image.
    #[serde(skip)]
    pub predicted: Vec<u16>,
    /// Logits, (image, class).
    #[serde(skip)]
    pub logits: Vec<f32>,
}

/// Checks that the classes of images are those that a job learned, if both have names. A class with another number would count as wrong.
fn check_names(names: &[String], data: &PartSet, path: &Path) -> Result<(), JobError> {
    let pairs = names.iter().zip(&data.classes).enumerate();
    match pairs.into_iter().find(|(_, (learned, found))| learned != found) {
        None => Ok(()),
        Some((label, (learned, found))) => Err(JobError::OtherClasses {
            label,
            learned: learned.clone(),
            found: found.clone(),
            path: path.to_owned(),
            origin: data.origin.clone(),
        }),
    }
}

/// Measures.
///
/// # Errors
/// When weights, data or workers can't be had or don't fit, or when `stop` is set.
pub fn measure(measuring: Measuring, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Measurement, JobError> {
    let Measuring { path, model, data, part, views, places, running, logits, wrong } = measuring;
    // Before the work, and again when the file is written.
    logits.as_deref().map_or(Ok(()), checkpoint::check_logits_path)?;
    wrong.as_deref().map_or(Ok(()), wrong::check_path)?;
    let Loaded {
        text,
        path: weights_path,
        weights,
        seed,
        data: remembered,
        classes: names,
        test_images,
        whole_set,
        selection,
        micro_batch,
        damaged,
    } = load(&path, model)?;
    damaged.iter().for_each(|error| observer.on(Event::Notice { text: chain(error) }));
    let network = Network::parse(&text)?;
    check_views(views, &network)?;
    let classes = network.classes();
    let workers = running.workers.unwrap_or(network.towers);
    // A measurement has no slots, so it has as many replicas as its workers need.
    let slots = workers.div_ceil(network.towers).max(1);
    let plan = Arc::new(Plan::new(network.clone(), workers, slots, None)?);
    let is_given = data.source.is_some();
    let choice = DataChoice::of(data, remembered);
    let wanted = Wanted::by(&network, seed);
    let data = choice.load_part(part, selection, &wanted, &places)?;
    data.notices.iter().cloned().for_each(|text| observer.on(Event::Notice { text }));
    let is_other = match part {
        Part::Test => test_images.is_some_and(|known| known != data.images.fingerprint()),
        Part::Train | Part::Holdout => whole_set.is_some_and(|known| data.fingerprint.as_ref() != Some(&known)),
    };
    if !is_given && is_other {
        return Err(JobError::OtherImages { part, path: weights_path, origin: data.origin });
    }
    check_names(&names, &data, &weights_path)?;
    let data = match views {
        Views::Centre => data,
        // The fingerprint is over the images as a job has them, whose margins may be missing.
        Views::Ten => {
            drop(data);
            choice.load_part(part, selection, &Wanted { ten_views: true, ..wanted }, &places)?
        }
    };
    let images = data.images.len();
    let most = network.towers.saturating_mul(images);
    let expected = format!("at most {most}: {} towers times {images} {part} images", network.towers);
    check("--workers", workers, workers <= most, expected)?;
    let micro_batch = micro_batch_for(slots, images * views.count(), micro_batch);
    let subject = Subject { text, plan, weights, micro_batch, views };
    let (measured, weights_sha256) = forward(subject, &weights_path, &data.images, &running, observer, stop)?;
    let accuracy = measured.accuracy();
    if let Some(path) = logits {
        let logits = ArrayD::from_shape_vec(IxDyn(&[measured.images, classes]), measured.logits.clone());
        let logits = logits.expect("a row of logits for each image");
        checkpoint::write_logits(&path, logits)?;
    }
    if let Some(path) = wrong {
        wrong::write(&path, data.images.labels(), &measured.predicted, |image| data.images.file(image))?;
    }
    Ok(Measurement {
        model: network.name,
        weights: weights_path,
        weights_sha256,
        data: data.origin,
        part,
        views,
        images: measured.images,
        correct: measured.correct,
        accuracy,
        loss: measured.loss,
        images_sha256: data.images.fingerprint(),
        classes: data.classes,
        labels: data.images.labels().to_vec(),
        predicted: measured.predicted,
        logits: measured.logits,
    })
}
