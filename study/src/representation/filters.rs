//! The filters of a layer that reads colour images: how colourful each of them is, and whether groups of filters differ in that, against the
//! chance of other partitions. Filters of grey images have pictures only.
//!
//! The *colour index* of a filter is the share of its squared weights that is not common to red, green and blue: 0 for a filter that treats
//! the three alike, and 1 for one whose weights add up to zero at each place.

use ndarray::{ArrayD, ArrayViewD, Axis};
use serde::{Deserialize, Serialize};

use super::partition::Partition;
use super::{PERMUTATIONS, SEED};
use crate::statistics::mean;

/// The filters of a layer in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Filters {
    /// The layer's name.
    pub name: String,
    /// How colourful they are. None of grey images.
    pub colours: Option<Colours>,
    /// Their weights, in the first run of an arm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<FilterPicture>,
}

/// How colourful the filters of a layer are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Colours {
    /// The colour index of each filter.
    pub indices: Vec<f64>,
    /// The mean of the most colourful group minus that of the least colourful one.
    pub difference: f64,
    /// The share of partitions into groups of the same sizes, drawn at random, whose difference is at least as large, the observed one
    /// included.
    pub p: f64,
    /// The mean difference of these partitions: what to expect if groups mean nothing.
    pub expected: f64,
    /// The run is beyond chance, at 5 %, if its difference exceeds this.
    pub limit: f64,
}

impl Colours {
    /// How much the groups differ beyond what is to be expected. The mean over runs is zero if groups mean nothing.
    pub fn excess(&self) -> f64 {
        self.difference - self.expected
    }
}

/// The weights of filters, for a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct FilterPicture {
    /// Filters, channels, rows and columns.
    pub shape: [usize; 4],
    /// Each weight in 127ths of the largest one of its filter.
    pub weights: Vec<i8>,
}

/// A picture as a file has it.
#[derive(Deserialize)]
struct Unchecked {
    shape: [usize; 4],
    weights: Vec<i8>,
}

impl TryFrom<Unchecked> for FilterPicture {
    type Error = String;

    fn try_from(Unchecked { shape, weights }: Unchecked) -> Result<Self, String> {
        let count = shape.iter().try_fold(1usize, |product, length| product.checked_mul(*length));
        if count != Some(weights.len()) || weights.is_empty() {
            return Err(format!("a picture of {shape:?} has {} weights", weights.len()));
        }
        Ok(Self { shape, weights })
    }
}

/// The filters whose weights are `weights`: (filter, channel, row, column). `groups` of neighbours are compared. None for other shapes, and if
/// the filters can't be divided.
pub fn filters(name: &str, weights: &ArrayD<f32>, groups: usize, pictured: bool) -> Option<Filters> {
    let shape: [usize; 4] = weights.shape().try_into().ok()?;
    if shape[0] < groups {
        return None;
    }
    let colours = (shape[1] == 3).then(|| colours(weights, groups));
    let picture = pictured.then(|| FilterPicture { shape, weights: weights.outer_iter().flat_map(scaled).collect() });
    Some(Filters { name: name.to_owned(), colours, picture })
}

fn colours(weights: &ArrayD<f32>, groups: usize) -> Colours {
    let indices: Vec<f64> = weights.outer_iter().map(colour_index).collect();
    let observed = Partition::new((0..indices.len()).map(|filter| filter * groups / indices.len()).collect(), groups);
    let difference = observed.spread(&indices);
    let draws = 0..PERMUTATIONS as u64;
    let mut null: Vec<f64> = draws.map(|draw| observed.permuted(SEED, draw).spread(&indices)).collect();
    null.sort_by(f64::total_cmp);
    let at_least = null.iter().filter(|spread| **spread >= difference).count();
    Colours {
        difference,
        p: (at_least + 1) as f64 / (PERMUTATIONS + 1) as f64,
        expected: mean(&null),
        // Of 1,000 partitions, 49 and the observed one are 5 % of 1,001.
        limit: null[PERMUTATIONS * 95 / 100],
        indices,
    }
}

/// The colour index of a filter: (channel, row, column). 0 for a filter without weights.
fn colour_index(filter: ArrayViewD<f32>) -> f64 {
    let channels = filter.shape()[0] as f64;
    let (mut colour, mut all) = (0.0, 0.0);
    for place in filter.lanes(Axis(0)) {
        let mean = place.iter().map(|weight| f64::from(*weight)).sum::<f64>() / channels;
        for weight in place.iter().map(|weight| f64::from(*weight)) {
            colour += (weight - mean) * (weight - mean);
            all += weight * weight;
        }
    }
    if all > 0.0 { colour / all } else { 0.0 }
}

/// The weights of a filter in 127ths of its largest one.
fn scaled(filter: ArrayViewD<f32>) -> Vec<i8> {
    let largest = filter.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    let share = |weight: &f32| if largest > 0.0 { f64::from(*weight) / f64::from(largest) } else { 0.0 };
    filter.iter().map(|weight| libm::round(share(weight) * 127.0) as i8).collect()
}

#[cfg(test)]
mod tests {
    use convoy_common::random::Source;
    use ndarray::IxDyn;

    use super::*;

    /// Filters of 3 x 2 x 2 weights. In the second half, the channels are equal up to a share `colour`.
    fn weights(count: usize, colour: f32) -> ArrayD<f32> {
        let source = Source::new(5, "filters");
        ArrayD::from_shape_fn(IxDyn(&[count, 3, 2, 2]), |at| {
            let grey = source.normal((at[0] * 4 + at[2] * 2 + at[3]) as u64) as f32;
            let own = source.normal((10_000 + at[0] * 12 + at[1] * 4 + at[2] * 2 + at[3]) as u64) as f32;
            if at[0] < count / 2 { own } else { grey + colour * own }
        })
    }

    #[test]
    fn the_index_is_the_share_of_what_channels_do_not_have_in_common() {
        let filter =
            |values: [f32; 3]| colour_index(ArrayD::from_shape_vec(IxDyn(&[3, 1, 1]), values.to_vec()).unwrap().view());
        assert_eq!(filter([2.0, 2.0, 2.0]), 0.0);
        assert_eq!(filter([1.0, -1.0, 0.0]), 1.0);
        assert_eq!(filter([0.0; 3]), 0.0);
        assert!((filter([3.0, 0.0, 0.0]) - 2.0 / 3.0).abs() < 1e-15);
        // The scale of a filter does not matter.
        assert!((filter([0.3, 0.2, 0.7]) - filter([3.0, 2.0, 7.0])).abs() < 1e-6);
    }

    #[test]
    fn halves_of_different_colour_are_beyond_chance_and_equal_ones_are_not() {
        let of = |colour: f32| filters("conv1", &weights(24, colour), 2, false).unwrap().colours.unwrap();
        let (different, equal) = (of(0.1), of(30.0));
        assert!(different.p < 0.01 && different.difference > different.limit, "{different:?}");
        assert!(equal.p > 0.05 && equal.difference < equal.limit, "{equal:?}");
        assert_eq!(different.indices.len(), 24);
    }

    #[test]
    fn pictures_keep_each_filter_and_other_shapes_have_none() {
        let found = filters("conv1", &weights(4, 1.0), 2, true).unwrap().picture.unwrap();
        assert_eq!((found.shape, found.weights.len()), ([4, 3, 2, 2], 48));
        assert!(found.weights.chunks(12).all(|filter| filter.iter().any(|weight| weight.abs() == 127)));
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<FilterPicture>(&text).unwrap(), found);
        for damaged in [
            text.replace("[4,3,2,2]", "[4,3,2,3]"),
            text.replace("[4,3,2,2]", "[0,3,2,2]"),
            format!("{{\"shape\":[{0},{0},1,1],\"weights\":[]}}", usize::MAX),
        ] {
            assert!(serde_json::from_str::<FilterPicture>(&damaged).is_err(), "{damaged}");
        }
        assert!(filters("fc1", &ArrayD::zeros(IxDyn(&[4, 3])), 2, true).is_none());
        assert!(filters("conv1", &weights(2, 1.0), 3, true).is_none());
        let grey = filters("conv1", &ArrayD::zeros(IxDyn(&[4, 1, 2, 2])), 2, true).unwrap();
        assert!(grey.colours.is_none() && grey.picture.is_some());
    }
}
