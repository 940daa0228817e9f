//! The BCa bootstrap (Efron 1987) of a mean difference, over seeds *and* test images. All arms are measured on the same images, so a set
//! of other images could favour the other arm, no matter how many seeds there are.
//!
//! Resamples of pairs and images together vary more than real repetitions do, because a resampled outcome varies with its pair and with its
//! image (Owen 2007, "The pigeonhole bootstrap"), and fewer seeds than some thirty make every estimate of their variance uncertain. So the
//! interval is scaled around the observed mean: to the standard error of a two-way analysis of variance with both effects random, and by
//! Student's t instead of the normal quantile, with Satterthwaite's degrees of freedom (1946). Simulations show that it covers.
//!
//! Draw `b` takes word `k` of (seed, "bootstrap seeds" or "bootstrap images", b * count + k), so it is the same everywhere.

use convoy_common::random::Source;
use rayon::prelude::*;

use super::distributions::{normal_cdf, normal_quantile, t_quantile};
use super::{Interval, mean, variance};

/// Seed of all draws.
const SEED: u64 = 1;

/// The differences of two arms in each pair of runs, image by image.
#[derive(Clone, Debug)]
pub struct Differences {
    /// For each pair, the images at which the arms differ: the image, and +1 if only the first arm is right, or -1.
    pairs: Vec<Vec<(u32, i8)>>,
    images: usize,
}

impl Differences {
    /// From what each arm got right in each run, image by image. All lists have the same length.
    pub fn new(first: &[Vec<bool>], second: &[Vec<bool>]) -> Self {
        let images = first.first().map_or(0, Vec::len);
        let of_pair = |(a, b): (&Vec<bool>, &Vec<bool>)| {
            let signed = a.iter().zip(b).enumerate().map(|(image, (a, b))| (image as u32, *a as i8 - *b as i8));
            signed.filter(|(_, difference)| *difference != 0).collect()
        };
        Self { pairs: first.iter().zip(second).map(of_pair).collect(), images }
    }

    /// The mean difference of accuracy with these weights of pairs and images.
    fn weighted(&self, pairs: &[u32], images: &[u32]) -> f64 {
        let of_pair = |pair: &Vec<(u32, i8)>| -> i64 {
            pair.iter().map(|(image, sign)| i64::from(*sign) * i64::from(images[*image as usize])).sum()
        };
        let drawn = self.pairs.iter().zip(pairs).filter(|(_, weight)| **weight > 0);
        let sum: i64 = drawn.map(|(pair, weight)| i64::from(*weight) * of_pair(pair)).sum();
        // Without images there is no difference.
        sum as f64 / (self.pairs.len() * self.images).max(1) as f64
    }

    /// The mean difference of accuracy.
    pub fn mean(&self) -> f64 {
        self.weighted(&vec![1; self.pairs.len()], &vec![1; self.images])
    }

    /// How each pair and each image changes the mean: the deviations of jackknife means, scaled as in Efron's acceleration for several
    /// samples.
    fn influences(&self) -> [Vec<f64>; 2] {
        let (by_pair, by_image) = self.sums();
        let centred = |sums: Vec<i64>, each: usize| {
            let means: Vec<f64> = sums.into_iter().map(|sum| sum as f64 / each.max(1) as f64).collect();
            let (centre, count) = (mean(&means), means.len() as f64);
            means.into_iter().map(|value| (value - centre) / count).collect()
        };
        [centred(by_pair, self.images), centred(by_image, self.pairs.len())]
    }

    fn acceleration(&self) -> f64 {
        let [pairs, images] = self.influences();
        let power_sum = |power: i32| {
            let all = pairs.iter().chain(&images);
            all.map(|u| (0..power).fold(1.0, |product, _| product * u)).sum::<f64>()
        };
        let squares = power_sum(2);
        if squares > 0.0 { power_sum(3) / (6.0 * squares * libm::sqrt(squares)) } else { 0.0 }
    }

    /// The variance of the mean over other pairs and other images, by a two-way analysis of variance, and its degrees of freedom.
    fn analysed(&self) -> Analysed {
        let (pairs, images) = (self.pairs.len() as f64, self.images as f64);
        let (by_pair, by_image) = self.sums();
        let squares = |sums: &[i64]| sums.iter().map(|sum| (sum * sum) as f64).sum::<f64>();
        let total: i64 = by_pair.iter().sum();
        let centre = (total * total) as f64 / (pairs * images);
        let of_pairs = squares(&by_pair) / images - centre;
        let of_images = squares(&by_image) / pairs - centre;
        // Each outcome is -1, 0, or 1.
        let ones: usize = self.pairs.iter().map(Vec::len).sum();
        let of_luck = (ones as f64 - centre - of_pairs - of_images).max(0.0);
        let (df_pairs, df_images) = ((pairs - 1.0).max(1.0), (images - 1.0).max(1.0));
        let df_luck = df_pairs * df_images;
        let [pair, image, luck] = [of_pairs / df_pairs, of_images / df_images, of_luck / df_luck];
        // It is no smaller than with the effects of pairs alone, or of images alone.
        let sum = (pair + image - luck).max(pair).max(image);
        let doubt = pair * pair / df_pairs + image * image / df_images + luck * luck / df_luck;
        let df = if doubt > 0.0 { (sum * sum / doubt).max(1.0) } else { df_pairs };
        Analysed { variance: sum / (pairs * images), df }
    }

    /// How many images more each pair has right in its first arm, and how many pairs each image.
    fn sums(&self) -> (Vec<i64>, Vec<i64>) {
        let (mut by_pair, mut by_image) = (vec![0_i64; self.pairs.len()], vec![0_i64; self.images]);
        for (pair, differences) in self.pairs.iter().enumerate() {
            for (image, sign) in differences {
                by_pair[pair] += i64::from(*sign);
                by_image[*image as usize] += i64::from(*sign);
            }
        }
        (by_pair, by_image)
    }

    /// The means of `draws` resamples.
    pub fn resampled(&self, draws: usize) -> Resampled {
        let (pairs, images) = (Source::new(SEED, "bootstrap seeds"), Source::new(SEED, "bootstrap images"));
        let mut means: Vec<f64> = (0..draws as u64)
            .into_par_iter()
            .map(|draw| self.weighted(&weights(&pairs, draw, self.pairs.len()), &weights(&images, draw, self.images)))
            .collect();
        means.sort_by(f64::total_cmp);
        Resampled { means, observed: self.mean(), acceleration: self.acceleration(), analysed: self.analysed() }
    }
}

/// The means of resamples.
#[derive(Clone, Debug)]
pub struct Resampled {
    /// In ascending order.
    means: Vec<f64>,
    observed: f64,
    acceleration: f64,
    analysed: Analysed,
}

/// How much the mean varies.
#[derive(Clone, Copy, Debug)]
struct Analysed {
    variance: f64,
    /// Degrees of freedom of the variance.
    df: f64,
}

impl Resampled {
    /// The BCa interval of the mean difference.
    pub fn interval(&self, confidence: f64) -> Interval {
        let below = self.means.iter().filter(|value| **value < self.observed).count();
        let equal = self.means.iter().filter(|value| **value == self.observed).count();
        let draws = self.means.len() as f64;
        // If all resamples lie on one side, the correction would be infinite.
        let share = ((below as f64 + equal as f64 / 2.0) / draws).clamp(0.5 / draws, 1.0 - 0.5 / draws);
        let bias = normal_quantile(share);
        let level = |z: f64| normal_cdf(bias + (bias + z) / (1.0 - self.acceleration * (bias + z)));
        let z = normal_quantile(0.5 + confidence / 2.0);
        let scale = self.scale(0.5 + confidence / 2.0);
        let at = |z: f64| self.observed + scale * (interpolated(&self.means, level(z)) - self.observed);
        Interval { low: at(-z), high: at(z) }
    }

    /// How much wider than the resamples the interval must be whose upper end is the quantile of `p`.
    fn scale(&self, p: f64) -> f64 {
        let resampled = variance(&self.means);
        // All resamples are equal, or there is only one.
        if resampled.is_nan() || resampled <= 0.0 {
            return 1.0;
        }
        let Analysed { variance, df } = self.analysed;
        let z = normal_quantile(p);
        let longer_tails = if z > 0.0 { t_quantile(p, df) / z } else { 1.0 };
        libm::sqrt(variance / resampled) * longer_tails
    }
}

/// How often a resample of `count` items holds each of them.
fn weights(source: &Source, draw: u64, count: usize) -> Vec<u32> {
    let mut weights = vec![0; count];
    let first = draw * count as u64;
    let mut block = (u64::MAX, [0; 4]);
    for index in first..first + count as u64 {
        if block.0 != index / 4 {
            block = (index / 4, source.words(index / 4));
        }
        let word = u64::from(block.1[(index % 4) as usize]);
        weights[((word * count as u64) >> 32) as usize] += 1;
    }
    weights
}

/// A quantile of sorted values, with linear interpolation (the default of NumPy).
fn interpolated(sorted: &[f64], level: f64) -> f64 {
    let place = level.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (index, rest) = (place as usize, place - libm::floor(place));
    let next = sorted[(index + 1).min(sorted.len() - 1)];
    sorted[index] + rest * (next - sorted[index])
}
