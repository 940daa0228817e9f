//! Measures a set of images with the towers of a job: forward passes of a few micro-batches at a time. An image can be seen by ten views,
//! whose probabilities are averaged.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use convoy_common::batch::{EVALUATIONS_UNDER_WAY, MicroBatch, MicroBatchId, Phase};

use crate::crew::{Crew, Received, invalid, out_of_turn};
use crate::exchange::Routed;
use crate::loss::{cross_entropy, mean_logits};
use crate::stop::Stop;
use convoy_dataset::{Feeder, Seen, Split, TEN, View};
use serde::Serialize;

/// The result of a network on a set of images.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Number of images that were classified correctly.
    pub correct: usize,
    /// Number of images.
    pub images: usize,
    /// The mean loss.
    pub loss: f64,
    /// Logits, (image, class). With ten views, they are the logarithms of the mean probabilities.
    pub logits: Vec<f32>,
    /// The class of the highest logit of each image.
    pub predicted: Vec<u16>,
}

impl Measured {
    /// The share of images that were classified correctly.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.images.max(1) as f64
    }
}

/// The views by which each image is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Views {
    /// The centre.
    #[default]
    Centre,
    /// The corners, the centre, and their mirror images.
    Ten,
}

impl Views {
    /// How many.
    pub fn count(self) -> usize {
        match self {
            Views::Centre => 1,
            Views::Ten => TEN,
        }
    }

    /// View `number` of an image.
    fn view(self, number: usize) -> View {
        match self {
            Views::Centre => View::Centre,
            Views::Ten => View::OfTen(number),
        }
    }

    /// The largest multiple of the number of views that is at most `size`, and at least that number, so that a micro-batch has all views of its
    /// images.
    pub(crate) fn micro_batch(self, size: usize) -> usize {
        (size / self.count()).max(1) * self.count()
    }
}

/// Measures all of `split` in micro-batches of at most `size` views, or those of one image, with the weights as of `step`.
///
/// # Errors
/// When a worker is lost, fails, or sends an invalid message, or when `stop` is set.
pub fn evaluate(
    crew: &mut Crew,
    split: &Split,
    views: Views,
    step: u64,
    size: usize,
    stop: &AtomicBool,
) -> Result<Measured, Stop> {
    let (count, size) = (views.count(), views.micro_batch(size));
    let classes = crew.plan.network.classes();
    let images = split.len();
    let mut measured =
        Measured { correct: 0, images, loss: 0.0, logits: vec![0.0; images * classes], predicted: vec![0; images] };
    let mut losses = vec![0.0; split.len()];
    let mut feeder = Feeder::new(split);
    let mut unasked = micro_batches(images * count, size, step);
    let mut waiting = VecDeque::new();
    // As many are being prepared as memory allows, but no more than are computed at a time.
    let ahead = feeder.depth(size).clamp(1, EVALUATIONS_UNDER_WAY);
    let mut ask_ahead = |feeder: &mut Feeder, waiting: &mut VecDeque<MicroBatch>| {
        for micro_batch in unasked.by_ref().take(ahead - waiting.len()) {
            let seen = |sample: usize| Seen { image: sample / count, view: views.view(sample % count) };
            feeder.ask(micro_batch.samples.clone().map(seen).collect());
            waiting.push_back(micro_batch);
        }
    };
    ask_ahead(&mut feeder, &mut waiting);
    let mut under_way = 0;
    loop {
        while under_way < EVALUATIONS_UNDER_WAY {
            let Some(micro_batch) = waiting.pop_front() else { break };
            crew.exchanges.open(&micro_batch);
            let (images, _) = crew.await_images(&mut feeder, micro_batch.id)?;
            ask_ahead(&mut feeder, &mut waiting);
            crew.send_images(&micro_batch, images)?;
            under_way += 1;
        }
        if under_way == 0 {
            break;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Stop::InOrder);
        }
        crew.check_all_stay(step)?;
        let (worker, received) = crew.next(step, || "logits of images to measure".to_owned())?;
        let chunk = match received {
            Received::Chunk(chunk, _) => chunk,
            Received::State => continue,
            other => return Err(out_of_turn(worker, step, &other).into()),
        };
        match crew.exchanges.route(worker, chunk).map_err(|source| invalid(worker, step, source))? {
            Routed::Kept => {}
            Routed::Relay { to, chunk } => crew.relay(&to, chunk, step)?,
            Routed::Logits { micro_batch, logits } => {
                crew.exchanges.close(micro_batch.id);
                under_way -= 1;
                let first = micro_batch.samples.start / count;
                for (image, logits) in (first..).zip(logits.chunks_exact(classes * count)) {
                    let logits = mean_logits(logits, classes);
                    let label = usize::from(split.label(image));
                    let verdict = cross_entropy(&logits, label, 1, &mut vec![0.0; classes]);
                    measured.correct += usize::from(verdict.predicted == label);
                    losses[image] = verdict.loss;
                    measured.predicted[image] = verdict.predicted as u16;
                    measured.logits[image * classes..][..classes].copy_from_slice(&logits);
                }
            }
        }
    }
    measured.loss = losses.iter().fold(0.0, |sum, loss| sum + loss) / split.len().max(1) as f64;
    Ok(measured)
}

fn micro_batches(samples: usize, size: usize, step: u64) -> impl Iterator<Item = MicroBatch> {
    (0..samples.div_ceil(size)).map(move |index| MicroBatch {
        id: MicroBatchId { step, phase: Phase::Evaluate, slot: 0, micro_batch: index as u32 },
        samples: index * size..samples.min((index + 1) * size),
    })
}
