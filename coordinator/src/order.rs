//! The images of each step: a pure function of seed, order and step. There is no state to advance, so a resumed job gets the
//! same images.

use convoy_common::batch::Batches;
use convoy_common::random::permutation;

use crate::job::Order;

/// The data order of a job.
#[derive(Debug)]
pub struct DataOrder {
    seed: u64,
    order: Order,
    batches: Batches,
    /// The last requested epoch and its permutation.
    at_hand: Option<(u64, Vec<u32>)>,
}

impl DataOrder {
    /// The order of the images in these batches.
    pub fn new(seed: u64, order: Order, batches: Batches) -> Self {
        Self { seed, order, batches, at_hand: None }
    }

    /// The batches.
    pub fn batches(&self) -> Batches {
        self.batches
    }

    /// The images of `step`, by position in the batch.
    pub fn images(&mut self, step: u64) -> Vec<usize> {
        let places = self.batches.positions(step);
        if self.order == Order::Sequential {
            return places.collect();
        }
        let epoch = self.batches.epoch(step);
        if self.at_hand.as_ref().is_none_or(|(at_hand, _)| *at_hand != epoch) {
            self.at_hand = Some((epoch, permutation(self.seed, &format!("shuffle:{epoch}"), self.batches.images)));
        }
        let (_, order) = self.at_hand.as_ref().expect("it was computed just now");
        order[places].iter().map(|index| *index as usize).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_holds_each_image_once_and_the_last_batch_is_what_is_left() {
        let mut order = DataOrder::new(1, Order::Shuffled, Batches { images: 103, batch: 10 });
        let mut seen: Vec<_> = (12..=22).flat_map(|step| order.images(step)).collect();
        assert_eq!(order.images(22).len(), 3);
        seen.sort_unstable();
        assert_eq!(seen, (0..103).collect::<Vec<_>>());
        let batches = order.batches();
        assert!(batches.ends_epoch(11) && batches.ends_epoch(22) && !batches.ends_epoch(21));
        assert_eq!((batches.epoch(11), batches.epoch(12)), (1, 2));
        assert_ne!(order.images(1), order.images(12), "each epoch has an order of its own");
    }
}
