//! The images of each step: a pure function of seed, order and step. There is no state to advance, so a resumed job gets the
//! same images.

use std::ops::Range;

use convoy_common::random::permutation;

use crate::job::Order;

/// The data order of a job.
#[derive(Debug)]
pub struct DataOrder {
    seed: u64,
    order: Order,
    images: usize,
    batch: usize,
    /// The last requested epoch and its permutation.
    at_hand: Option<(u64, Vec<u32>)>,
}

impl DataOrder {
    /// The order of `images` images in batches of `batch`.
    pub fn new(seed: u64, order: Order, images: usize, batch: usize) -> Self {
        Self { seed, order, images, batch, at_hand: None }
    }

    /// Steps per epoch. The batch of the last one may be smaller.
    pub fn steps_per_epoch(images: usize, batch: usize) -> u64 {
        images.div_ceil(batch) as u64
    }

    /// The epoch of `step`, both counted from 1.
    pub fn epoch(&self, step: u64) -> u64 {
        (step - 1) / Self::steps_per_epoch(self.images, self.batch) + 1
    }

    /// Whether `step` is the last of its epoch.
    pub fn ends_epoch(&self, step: u64) -> bool {
        step.is_multiple_of(Self::steps_per_epoch(self.images, self.batch))
    }

    /// The images of `step`, by position in the batch.
    pub fn images(&mut self, step: u64) -> Vec<usize> {
        let places = self.places(step);
        if self.order == Order::Sequential {
            return places.collect();
        }
        let epoch = self.epoch(step);
        if self.at_hand.as_ref().is_none_or(|(at_hand, _)| *at_hand != epoch) {
            self.at_hand = Some((epoch, permutation(self.seed, &format!("shuffle:{epoch}"), self.images)));
        }
        let (_, order) = self.at_hand.as_ref().expect("it was computed just now");
        order[places].iter().map(|index| *index as usize).collect()
    }

    /// Number of images of `step`.
    pub fn batch_len(&self, step: u64) -> usize {
        self.places(step).len()
    }

    fn places(&self, step: u64) -> Range<usize> {
        let within = ((step - 1) % Self::steps_per_epoch(self.images, self.batch)) as usize;
        within * self.batch..self.images.min((within + 1) * self.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_holds_each_image_once_and_the_last_batch_is_what_is_left() {
        let mut order = DataOrder::new(1, Order::Shuffled, 103, 10);
        let mut seen: Vec<_> = (12..=22).flat_map(|step| order.images(step)).collect();
        assert_eq!(order.images(22).len(), 3);
        seen.sort_unstable();
        assert_eq!(seen, (0..103).collect::<Vec<_>>());
        assert!(order.ends_epoch(11) && order.ends_epoch(22) && !order.ends_epoch(21));
        assert_eq!((order.epoch(11), order.epoch(12)), (1, 2));
        assert_ne!(order.images(1), order.images(12), "each epoch has an order of its own");
    }
}
