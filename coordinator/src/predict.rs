//! `convoy predict`: loads weights, decodes images, and computes the probability of each class.
//!
//! Not here: the cluster (`forward`), and printing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convoy_common::chain::chain;
use convoy_common::model::Network;
use convoy_common::plan::Plan;
use convoy_dataset::{Resources, Wanted, image_files, unlabelled};
use serde::Serialize;

use crate::error::JobError;
use crate::evaluate::Views;
use crate::forward::{Subject, check_views, forward, micro_batch_for};
use crate::loss::probabilities;
use crate::observe::{Event, Observer};
use crate::running::Running;
use crate::weights::{Loaded, load};

/// A request to classify images.
pub struct Predicting {
    /// The folder of a checkpoint or a run, or a safetensors file.
    pub path: PathBuf,
    /// The model's text. Required for a weights file. For a checkpoint it must be the checkpoint's own.
    pub model: Option<String>,
    /// Image files, folders of image files, or `-` for an image on standard input.
    pub images: Vec<PathBuf>,
    /// Number of classes that are listed for each image.
    pub top: usize,
    /// The views by which each image is classified.
    pub views: Views,
    /// How to run.
    pub running: Running,
}

/// What a network says about an image.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// Its file.
    pub image: PathBuf,
    /// The most probable classes, the most probable one first.
    pub classes: Vec<Likely>,
}

/// A class and its probability.
#[derive(Clone, Debug, Serialize)]
pub struct Likely {
    /// Its name, or its number if the weights have no names of classes.
    pub class: String,
    /// Its number, from 0.
    pub label: usize,
    /// The probability that the network gives it.
    pub probability: f64,
}

/// Classifies images. Each is scaled and cropped as a test image.
///
/// # Errors
/// When weights, images or workers can't be had or don't fit, or when `stop` is set.
pub fn predict(
    predicting: Predicting,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Vec<Prediction>, JobError> {
    let Predicting { path, model, images, top, views, running } = predicting;
    let Loaded { text, path, weights, seed, classes, micro_batch, damaged, .. } = load(&path, model)?;
    damaged.iter().for_each(|error| observer.on(Event::Notice { text: chain(error) }));
    let network = Network::parse(&text)?;
    let files = image_files(&images)?;
    check_views(views, &network)?;
    let wanted = Wanted { ten_views: views == Views::Ten, ..Wanted::by(&network, seed) };
    let split = unlabelled(&files, &wanted, &Resources::default())?;
    let workers = running.workers.unwrap_or(network.towers).min(network.towers);
    let plan = Arc::new(Plan::new(network.clone(), workers, 1, None)?);
    let subject = Subject {
        text,
        plan,
        weights,
        micro_batch: micro_batch_for(1, files.len() * views.count(), micro_batch),
        views,
    };
    let (measured, _) = forward(subject, &path, &split, &running, observer, stop)?;
    let rows = measured.logits.chunks_exact(network.classes());
    let prediction = |(image, logits): (PathBuf, &[f32])| Prediction { image, classes: likely(logits, &classes, top) };
    Ok(files.into_iter().zip(rows).map(prediction).collect())
}

/// The most probable classes. Of equal ones, the one with the smaller number comes first.
fn likely(logits: &[f32], names: &[String], top: usize) -> Vec<Likely> {
    let mut all: Vec<(usize, f64)> = probabilities(logits).into_iter().enumerate().collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let described = |(label, probability): (usize, f64)| Likely {
        class: names.get(label).cloned().unwrap_or_else(|| label.to_string()),
        label,
        probability,
    };
    all.into_iter().take(top).map(described).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_classes_come_first_with_their_names_or_numbers() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let found = likely(&[0.0, 2.0, 0.0], &names, 2);
        assert_eq!(found.iter().map(|likely| likely.class.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        let e2 = 2f64.exp();
        assert!((found[0].probability - e2 / (e2 + 2.0)).abs() < 1e-12);
        assert_eq!(likely(&[1.0, 0.0], &[], 5)[1].class, "1");
    }
}
