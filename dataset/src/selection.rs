//! Which training images a job trains on, and which it holds out: parts of a permutation that a seed decides.
//!
//! Not here: the order of images in an epoch (the coordinator).

use convoy_common::random::permutation;
use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::set::{DataSet, Split};

/// The training images that a job uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Decides which images.
    pub seed: u64,
    /// Number of images that are held out: the first ones of the permutation.
    pub holdout: usize,
    /// Number of images that are trained on: those after them. None: all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
}

impl Selection {
    /// Checks that a set of `all` training images has enough of them.
    ///
    /// # Errors
    /// Says how many there are.
    fn check(&self, all: usize) -> Result<(), DataError> {
        let Selection { holdout, images, .. } = *self;
        let trained = images.unwrap_or(all.saturating_sub(holdout));
        match holdout.checked_add(trained) {
            Some(needed) if needed <= all && trained > 0 => Ok(()),
            _ => Err(DataError::Selection { images, holdout, all }),
        }
    }

    /// The images to train on, in their order in `all`.
    ///
    /// # Errors
    /// When there are too few.
    pub fn trained(&self, all: &Split) -> Result<Split, DataError> {
        self.check(all.len())?;
        let end = self.images.map_or(all.len(), |images| self.holdout + images);
        Ok(self.part(all, self.holdout..end))
    }

    /// The images that are held out, in their order in `all`.
    ///
    /// # Errors
    /// When there are too few.
    pub fn held_out(&self, all: &Split) -> Result<Split, DataError> {
        self.check(all.len())?;
        Ok(self.part(all, 0..self.holdout))
    }

    fn part(&self, all: &Split, places: std::ops::Range<usize>) -> Split {
        let order = permutation(self.seed, "split", all.len());
        let mut chosen: Vec<usize> = order[places].iter().map(|index| *index as usize).collect();
        chosen.sort_unstable();
        all.chosen(&chosen)
    }
}

impl DataSet {
    /// The same set with the selected training images. Its fingerprint stays that of the whole set.
    ///
    /// # Errors
    /// When there are too few.
    pub fn selected(mut self, selection: Selection) -> Result<Self, DataError> {
        let all = self.train.len();
        self.train = selection.trained(&self.train)?;
        let held_out = if selection.holdout > 0 { format!(", {} held out", selection.holdout) } else { String::new() };
        self.origin = format!("{}; {} of {all} training images are used{held_out}", self.origin, self.train.len());
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;
    use crate::view::View;

    fn split(count: usize) -> Split {
        let images = Array4::from_shape_fn((count, 1, 1, 1), |at| at.0 as u8);
        Split::plain(images, (0..count as u16).collect())
    }

    #[test]
    fn parts_are_disjoint_and_a_larger_part_holds_the_smaller_one() {
        let all = split(50);
        let labels = |images: Option<usize>, holdout: usize| {
            let selection = Selection { seed: 3, holdout, images };
            [selection.trained(&all).unwrap(), selection.held_out(&all).unwrap()].map(|part| part.labels().to_vec())
        };
        let [rest, held_out] = labels(None, 10);
        assert_eq!((rest.len(), held_out.len()), (40, 10));
        assert!(rest.is_sorted() && held_out.is_sorted());
        let mut both = [rest.clone(), held_out.clone()].concat();
        both.sort_unstable();
        assert_eq!(both, (0..50).collect::<Vec<u16>>());
        let [few, same] = labels(Some(5), 10);
        assert!(few.len() == 5 && few.iter().all(|label| rest.contains(label)) && same == held_out);
        let other = Selection { seed: 4, holdout: 10, images: None }.held_out(&all).unwrap();
        assert_ne!(other.labels(), held_out);
        // An image keeps its label.
        let chosen = Selection { seed: 3, holdout: 10, images: Some(5) }.trained(&all).unwrap();
        assert!((0..5).all(|index| u16::from(chosen.image(index, View::Centre).unwrap()[0]) == chosen.label(index)));
    }

    #[test]
    fn too_few_images_are_refused() {
        for (images, holdout) in [(None, 50), (Some(0), 0), (Some(41), 10), (Some(usize::MAX), 1), (None, usize::MAX)] {
            let refused = Selection { seed: 1, holdout, images }.trained(&split(50)).unwrap_err().to_string();
            assert!(refused.contains("50 training images"), "{refused}");
        }
    }
}
