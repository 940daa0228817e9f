//! What the channels of a layer represent: how they correlate within groups and between them, against the chance of other partitions; how
//! similar the halves are, and two seeds; how many independent channels there are; and how colourful filters are.
//!
//! A *sample* here is a place of an image: the outputs of all channels at one row and column. Not here: computing outputs (the worker), and
//! which runs are looked at (`represent`).

pub mod filters;
pub mod matrix;
mod partition;

use serde::{Deserialize, Serialize};

use crate::statistics::Interval;
use matrix::{Covariance, effective_rank, similarity};
use partition::{Partition, best};

/// Partitions that the observed one is compared with.
pub const PERMUTATIONS: usize = 1_000;
/// Bars of the histogram of their differences.
const BARS: usize = 24;
/// Seed of all permutations.
const SEED: u64 = 1;

/// How the channels of a layer correlate in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlated {
    /// Number of channels whose outputs vary. The others are left out.
    pub channels: usize,
    /// Mean absolute correlation of two channels.
    pub all: f64,
    /// The same of two channels of one group.
    pub within: f64,
    /// The same of two channels of different groups.
    pub between: f64,
    /// The share of partitions into groups of the same sizes, drawn at random, whose difference of `within` and `between` is at least as
    /// large, the observed one included.
    pub p: f64,
    /// The middle 95 % of the differences of these partitions.
    pub null: Interval,
    /// The difference under the partition with the largest one that was found.
    pub best_difference: f64,
    /// The similarity of the first and the second group (linear CKA of their channels over samples). None with other numbers of groups.
    pub similarity: Option<f64>,
    /// The effective number of independent channels: the exponential of the entropy of the eigenvalues of the correlations.
    pub effective_rank: f64,
}

impl Correlated {
    /// Within minus between.
    pub fn difference(&self) -> f64 {
        self.within - self.between
    }
}

/// The correlations of one run in full, for pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Picture {
    /// The group of each channel whose outputs vary.
    pub groups: Vec<usize>,
    /// Correlations in hundredths, row by row.
    pub correlations: Vec<i8>,
    /// The first bar of the histogram begins here, and the last one ends here.
    pub range: Interval,
    /// How many partitions have a difference in each bar.
    pub bars: Vec<usize>,
}

/// A picture as a file has it.
#[derive(Deserialize)]
struct Unchecked {
    groups: Vec<usize>,
    correlations: Vec<i8>,
    range: Interval,
    bars: Vec<usize>,
}

impl TryFrom<Unchecked> for Picture {
    type Error = String;

    fn try_from(Unchecked { groups, correlations, range, bars }: Unchecked) -> Result<Self, String> {
        if groups.len().checked_mul(groups.len()) != Some(correlations.len()) {
            return Err(format!("{} channels have {} correlations", groups.len(), correlations.len()));
        }
        if bars.len() != BARS || bars.iter().any(|count| *count > PERMUTATIONS) {
            return Err(format!("a histogram has {} bars; must have {BARS} of at most {PERMUTATIONS}", bars.len()));
        }
        Ok(Self { groups, correlations, range, bars })
    }
}

/// How the channels of `covariance` correlate, if they are divided into `groups` groups of neighbours. None if fewer than two channels of
/// some group vary.
pub fn correlated(covariance: &Covariance, groups: usize) -> Option<(Correlated, Picture)> {
    let varying = covariance.varying();
    let channels = covariance.channels();
    let group_of = |channel: usize| channel * groups / channels;
    let observed = Partition::new(varying.iter().map(|channel| group_of(*channel)).collect(), groups);
    if groups < 2 || !observed.has_pairs() {
        return None;
    }
    let correlations = covariance.correlations(&varying);
    let absolute =
        matrix::Square { size: correlations.size, values: correlations.values.iter().map(|r| r.abs()).collect() };
    let (within, between) = observed.means(&absolute);
    let mut null: Vec<f64> =
        (0..PERMUTATIONS as u64).map(|draw| observed.permuted(SEED, draw).difference(&absolute)).collect();
    null.sort_by(f64::total_cmp);
    let at_least = null.iter().filter(|difference| **difference >= within - between).count();
    let middle = Interval { low: null[PERMUTATIONS * 25 / 1000], high: null[PERMUTATIONS * 975 / 1000 - 1] };
    let of_group =
        |group: usize| varying.iter().copied().filter(|channel| group_of(*channel) == group).collect::<Vec<_>>();
    let halves = || {
        similarity(
            &covariance.block(&of_group(0), &of_group(1)),
            &covariance.square(&of_group(0)),
            &covariance.square(&of_group(1)),
        )
    };
    let (range, bars) = histogram(&null, within - between);
    let picture = Picture {
        groups: observed.groups_of_channels().to_vec(),
        correlations: correlations.values.iter().map(|r| libm::round(r * 100.0) as i8).collect(),
        range,
        bars,
    };
    let found = Correlated {
        channels: varying.len(),
        all: observed.mean_of_all(&absolute),
        within,
        between,
        p: (at_least + 1) as f64 / (PERMUTATIONS + 1) as f64,
        null: middle,
        best_difference: best(&observed, &absolute, SEED).difference(&absolute),
        similarity: (groups == 2).then(halves),
        effective_rank: effective_rank(&correlations),
    };
    Some((found, picture))
}

/// Bars over sorted values, with room for `observed`.
fn histogram(sorted: &[f64], observed: f64) -> (Interval, Vec<usize>) {
    let (low, high) = (sorted[0].min(observed), sorted[sorted.len() - 1].max(observed));
    let width = (high - low) / BARS as f64;
    let mut bars = vec![0; BARS];
    for value in sorted {
        let bar = if width > 0.0 { ((value - low) / width) as usize } else { 0 };
        bars[bar.min(BARS - 1)] += 1;
    }
    (Interval { low, high }, bars)
}

#[cfg(test)]
mod tests {
    use convoy_common::random::Source;
    use serde_json::Value;

    use super::matrix::cross;
    use super::*;

    #[test]
    fn a_picture_with_too_few_correlations_or_bars_is_refused() {
        let picture = |correlations: usize, bars: usize| {
            let text = serde_json::json!({
                "groups": [0, 1], "correlations": vec![0; correlations], "range": {"low": 0.0, "high": 1.0}, "bars": vec![1; bars]
            });
            serde_json::from_value::<Picture>(text)
        };
        assert!(picture(4, BARS).is_ok());
        assert!(picture(1, BARS).is_err() && picture(5, BARS).is_err() && picture(4, 0).is_err());
    }

    /// The same quantities by NumPy (`golden/statistics.py`).
    #[test]
    fn correlations_similarities_and_ranks_agree_with_numpy() {
        let golden: Value = serde_json::from_str(include_str!("../../golden/statistics.json")).unwrap();
        let cases = golden["representation"].as_array().unwrap();
        assert_eq!(cases.len(), 2);
        for case in cases {
            let channels = case["channels"].as_u64().unwrap() as usize;
            let outputs = |name: &str| -> Vec<f32> {
                case[name].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
            };
            let (a, b) = (outputs("a"), outputs("b"));
            let (of_a, of_b) = (Covariance::of(&a, channels), Covariance::of(&b, channels));
            let found = correlated(&of_a, 2).unwrap().0;
            let both = similarity(&cross(&a, channels, &b, channels), of_a.values(), of_b.values());
            for (name, ours) in [
                ("all", found.all),
                ("within", found.within),
                ("between", found.between),
                ("effective_rank", found.effective_rank),
                ("halves", found.similarity.unwrap()),
                ("both", both),
            ] {
                let theirs = case[name].as_f64().unwrap();
                assert!((ours - theirs).abs() < 1e-9 * theirs.max(1.0), "{name}: {ours} and {theirs}");
            }
            assert!(found.best_difference >= found.difference());
        }
    }

    #[test]
    fn a_partition_that_means_something_is_beyond_chance_and_one_that_means_nothing_is_not() {
        let source = Source::new(3, "outputs");
        let (samples, channels) = (300, 12);
        // Channels share a signal with all of their half, or with none.
        let outputs = |strength: f64| -> Vec<f32> {
            let value = |index: usize| {
                let (sample, channel) = (index / channels, index % channels);
                let signal = source.normal((1_000_000 + sample * 2 + channel / 6) as u64);
                (strength * signal + source.normal(index as u64)) as f32
            };
            (0..samples * channels).map(value).collect()
        };
        let of = |strength: f64| correlated(&Covariance::of(&outputs(strength), channels), 2).unwrap().0;
        let (something, nothing) = (of(1.0), of(0.0));
        assert!(something.p < 0.01 && something.difference() > something.null.high, "{something:?}");
        assert!(nothing.p > 0.05 && nothing.difference() < nothing.null.high, "{nothing:?}");
        assert!(something.effective_rank < nothing.effective_rank);
        // A channel that does not vary is left out, and a layer with too few others has no result.
        let dead: Vec<f32> =
            outputs(0.0).into_iter().enumerate().map(|(i, v)| if i % channels == 3 { 0.5 } else { v }).collect();
        assert_eq!(correlated(&Covariance::of(&dead, channels), 2).unwrap().0.channels, channels - 1);
        assert!(correlated(&Covariance::of(&vec![1.0; 60], 6), 2).is_none());
    }
}
