//! Partitions of channels into groups, and the one under which channels correlate most within groups.

use convoy_common::random::Source;

use super::matrix::Square;

/// Random partitions from which the search for the best one starts, beside the observed one.
const STARTS: u64 = 8;
/// The most exchanges of two channels in a search. It ends far earlier.
const EXCHANGES_MAX: usize = 10_000;

/// The group of each channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Partition {
    groups_of: Vec<usize>,
    groups: usize,
}

impl Partition {
    pub(super) fn new(groups_of: Vec<usize>, groups: usize) -> Self {
        Self { groups_of, groups }
    }

    pub(super) fn groups_of_channels(&self) -> &[usize] {
        &self.groups_of
    }

    /// Whether each group has at least two channels.
    pub(super) fn has_pairs(&self) -> bool {
        (0..self.groups).all(|group| self.groups_of.iter().filter(|of| **of == group).count() >= 2)
    }

    /// The mean over all pairs of channels of one group, and over all pairs of different groups.
    pub(super) fn means(&self, values: &Square) -> (f64, f64) {
        let (mut sums, mut counts) = ([0.0; 2], [0.0; 2]);
        for (a, of_a) in self.groups_of.iter().enumerate() {
            for (b, of_b) in self.groups_of.iter().enumerate().skip(a + 1) {
                let place = usize::from(of_a != of_b);
                sums[place] += values.at(a, b);
                counts[place] += 1.0;
            }
        }
        (sums[0] / counts[0], sums[1] / counts[1])
    }

    /// The mean over all pairs.
    pub(super) fn mean_of_all(&self, values: &Square) -> f64 {
        Partition { groups_of: vec![0; self.groups_of.len()], groups: 1 }.means(values).0
    }

    /// Within minus between.
    pub(super) fn difference(&self, values: &Square) -> f64 {
        let (within, between) = self.means(values);
        within - between
    }

    /// The largest mean of a group minus the smallest one, of a value for each item. Groups must not be empty.
    pub(super) fn spread(&self, values: &[f64]) -> f64 {
        let mean = |group: usize| {
            let of_group = || self.groups_of.iter().zip(values).filter(move |(of, _)| **of == group);
            of_group().map(|(_, value)| value).sum::<f64>() / of_group().count() as f64
        };
        let means = (0..self.groups).map(mean);
        let (low, high) = means.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), m| (low.min(m), high.max(m)));
        high - low
    }

    /// Groups of the same sizes with other channels: draw number `draw`.
    pub(super) fn permuted(&self, seed: u64, draw: u64) -> Self {
        let order = shuffled(seed, draw, self.groups_of.len());
        Self { groups_of: order.into_iter().map(|from| self.groups_of[from]).collect(), groups: self.groups }
    }

    /// The sum of a channel's values with the channels of each group, itself excluded.
    fn ties(&self, values: &Square, channel: usize) -> Vec<f64> {
        let mut ties = vec![0.0; self.groups];
        for (other, group) in self.groups_of.iter().enumerate().filter(|(other, _)| *other != channel) {
            ties[*group] += values.at(channel, other);
        }
        ties
    }

    /// Exchanges channels of different groups while that raises the sum within groups (after Kernighan and Lin).
    fn climbed(mut self, values: &Square) -> Self {
        let count = self.groups_of.len();
        for _ in 0..EXCHANGES_MAX {
            let ties: Vec<Vec<f64>> = (0..count).map(|channel| self.ties(values, channel)).collect();
            let gain = |a: usize, b: usize| {
                let (of_a, of_b) = (self.groups_of[a], self.groups_of[b]);
                ties[a][of_b] + ties[b][of_a] - ties[a][of_a] - ties[b][of_b] - 2.0 * values.at(a, b)
            };
            let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
            let exchanges = pairs.filter(|(a, b)| self.groups_of[*a] != self.groups_of[*b]);
            let Some((a, b)) = exchanges.max_by(|(a, b), (c, d)| gain(*a, *b).total_cmp(&gain(*c, *d))) else { break };
            if gain(a, b) <= 1e-12 {
                break;
            }
            self.groups_of.swap(a, b);
        }
        self
    }
}

/// The partition with the largest difference that a search finds, from the observed one and from some random ones.
pub(super) fn best(observed: &Partition, values: &Square, seed: u64) -> Partition {
    let starts = (0..STARTS).map(|draw| observed.permuted(seed + 1, draw));
    let ends = starts.chain([observed.clone()]).map(|start| start.climbed(values));
    let better = |a: &Partition, b: &Partition| a.difference(values).total_cmp(&b.difference(values));
    ends.max_by(better).unwrap_or_else(|| observed.clone())
}

/// A permutation of `count` items: draw number `draw` of a seed.
fn shuffled(seed: u64, draw: u64, count: usize) -> Vec<usize> {
    let source = Source::new(seed, "partition");
    let mut order: Vec<usize> = (0..count).collect();
    for place in (1..count).rev() {
        let word = u64::from(source.word(draw * count as u64 + place as u64));
        order.swap(place, ((word * (place as u64 + 1)) >> 32) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_blocks_that_are_there() {
        // Channels with the same parity belong together.
        let size = 10;
        let value = |a: usize, b: usize| if a % 2 == b % 2 { 0.8 } else { 0.1 };
        let values = Square { size, values: (0..size * size).map(|i| value(i / size, i % size)).collect() };
        let observed = Partition::new((0..size).map(|channel| channel / 5).collect(), 2);
        let found = best(&observed, &values, 1);
        assert!((found.difference(&values) - 0.7).abs() < 1e-12);
        assert!(found.groups_of.iter().enumerate().all(|(channel, group)| *group == found.groups_of[channel % 2]));
        assert!(observed.difference(&values) < 0.0);
        let sizes = |partition: &Partition| partition.groups_of.iter().filter(|group| **group == 0).count();
        assert!(sizes(&found) == 5 && sizes(&observed.permuted(1, 3)) == 5);
    }
}
