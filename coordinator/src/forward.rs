//! Trained weights and a set of images: forms a cluster, and computes the logits once.
//!
//! Not here: where weights and images come from, and what is made of the logits (`measure`, `predict`).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convoy_common::batch::{Batches, Division};
use convoy_common::chain::chain;
use convoy_common::index::WorkerIndex;
use convoy_common::model::Network;
use convoy_common::parameters::{Tensors, sha256};
use convoy_common::plan::Plan;
use convoy_common::wire::{Assignment, Generation};
use convoy_dataset::Split;

use crate::cluster::Cluster;
use crate::crew::Crew;
use crate::error::JobError;
use crate::evaluate::{Measured, Views, evaluate};
use crate::observe::Observer;
use crate::running::Running;
use crate::state::JobState;
use crate::stop::Stop;
use crate::trace::Recorder;
use crate::unguessable::unguessable;

/// A network with its weights, and how it is divided.
pub(crate) struct Subject {
    /// The model's text.
    pub(crate) text: String,
    /// Towers and workers. There is a slot for each replica.
    pub(crate) plan: Arc<Plan>,
    /// The weights.
    pub(crate) weights: Tensors,
    /// Images per micro-batch.
    pub(crate) micro_batch: usize,
    /// The views by which each image is measured.
    pub(crate) views: Views,
}

/// What the network makes of all images of `split`, and the SHA-256 over its weights, which come from `path`.
///
/// # Errors
/// When workers can't be had, when a logit is not finite, or when `stop` is set.
pub(crate) fn forward(
    subject: Subject,
    path: &Path,
    split: &Split,
    running: &Running,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<(Measured, String), JobError> {
    let Subject { text, plan, weights, micro_batch, views } = subject;
    let micro_batch = views.micro_batch(micro_batch);
    let (workers, slots) = (plan.workers, plan.placement.slots);
    let job = unguessable().max(1);
    let threads = running.threads_of_each(workers)?;
    let assignment = Assignment {
        job,
        model: text,
        placement: plan.placement.clone(),
        worker: WorkerIndex(0),
        seed: 0,
        dropout_seed: 0,
        momentum: 0.0,
        weight_decay: 0.0,
        // A slot is a micro-batch.
        batches: Batches { images: micro_batch * slots, batch: micro_batch * slots },
        division: Division { slots, micro_batches: 1 },
        train: false,
        trace: false,
        peers: Vec::new(),
    };
    let state = JobState { weights, momentum: Tensors::new() };
    let mut cluster = Cluster::open(running, workers, threads)?;
    let mut recorder = Recorder::off(cluster.clock());
    let compute_once = || -> Result<Measured, Stop> {
        if !cluster.gather(observer, stop)? {
            return Err(Stop::InOrder);
        }
        let generation = Generation { job, number: 1 };
        let mut crew = Crew::new(&mut cluster, &mut recorder, observer, plan, micro_batch, generation, stop);
        crew.assign(&assignment, vec![Vec::new(); workers].into(), &state, 0)?;
        evaluate(&mut crew, split, views, 0, micro_batch, stop)
    };
    let measured = compute_once().map_err(JobError::from).map_err(|error| match error {
        JobError::NotFinite { what, .. } => JobError::NotMeasurable { what, path: path.to_owned() },
        error => error,
    });
    let reason = measured.as_ref().map_or_else(|error| chain(error), |_| "measured".to_owned());
    cluster.dismiss(1, &reason, |_, _| {});
    Ok((measured?, sha256(&state.weights)))
}

/// Checks that views of an image can differ in more than being mirrored.
///
/// # Errors
/// When scaled images are no larger than the model's input.
pub(crate) fn check_views(views: Views, network: &Network) -> Result<(), JobError> {
    let (shape, resize) = (network.input.shape, network.input.transforms.resize);
    let has_margins = resize.is_some_and(|side| side > shape.height.min(shape.width));
    if views == Views::Ten && !has_margins {
        return Err(JobError::NoMargins { shape, resize });
    }
    Ok(())
}

/// Images per micro-batch, at most `most`, so that each of `replicas` gets a micro-batch if there are as many images.
pub(crate) fn micro_batch_for(replicas: usize, images: usize, most: usize) -> usize {
    most.min(images / replicas).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_replica_gets_a_micro_batch() {
        for (replicas, images, most, expected) in
            [(9, 10, 64, 1), (1, 1000, 64, 64), (8, 1000, 160, 125), (3, 2, 64, 1)]
        {
            let micro_batch = micro_batch_for(replicas, images, most);
            assert_eq!(micro_batch, expected);
            assert!(images.div_ceil(micro_batch) >= replicas.min(images));
        }
    }
}
