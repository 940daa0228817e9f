//! Covariances of channels, correlations, linear CKA, and eigenvalues, all in f64 and in a fixed order.

/// Rotations of all pairs until the eigenvalues stand. They converge quadratically, so a few are enough.
const SWEEPS_MAX: usize = 60;

/// A square matrix, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Square {
    /// Number of rows.
    pub size: usize,
    /// Its values.
    pub values: Vec<f64>,
}

impl Square {
    /// The value in a row and a column.
    pub fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.size + column]
    }
}

/// The covariances of channels over samples.
#[derive(Clone, Debug)]
pub struct Covariance {
    matrix: Square,
}

impl Covariance {
    /// Of `outputs`, (sample, channel).
    pub fn of(outputs: &[f32], channels: usize) -> Self {
        Self { matrix: Square { size: channels, values: cross(outputs, channels, outputs, channels) } }
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.matrix.size
    }

    /// The channels that vary.
    pub fn varying(&self) -> Vec<usize> {
        (0..self.matrix.size).filter(|channel| self.matrix.at(*channel, *channel) > 0.0).collect()
    }

    /// The covariances of some channels with others.
    pub(super) fn block(&self, rows: &[usize], columns: &[usize]) -> Vec<f64> {
        rows.iter().flat_map(|row| columns.iter().map(|column| self.matrix.at(*row, *column))).collect()
    }

    /// The covariances of some channels among themselves.
    pub(super) fn square(&self, channels: &[usize]) -> Vec<f64> {
        self.block(channels, channels)
    }

    /// The covariances of all channels.
    pub fn values(&self) -> &[f64] {
        &self.matrix.values
    }

    /// Pearson's correlations of channels that vary.
    pub(super) fn correlations(&self, channels: &[usize]) -> Square {
        let deviation = |channel: usize| self.matrix.at(channel, channel).sqrt();
        let correlation = |a: usize, b: usize| match a == b {
            true => 1.0,
            false => (self.matrix.at(a, b) / (deviation(a) * deviation(b))).clamp(-1.0, 1.0),
        };
        let values = channels.iter().flat_map(|a| channels.iter().map(|b| correlation(*a, *b))).collect();
        Square { size: channels.len(), values }
    }
}

/// The covariances of the channels of `a` with those of `b`, both (sample, channel) over the same samples.
pub fn cross(a: &[f32], channels_a: usize, b: &[f32], channels_b: usize) -> Vec<f64> {
    let samples = a.len() / channels_a;
    let means = |values: &[f32], channels: usize| {
        let mut sums = vec![0.0; channels];
        values
            .chunks_exact(channels)
            .for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v)));
        sums.into_iter().map(|sum: f64| sum / samples as f64).collect::<Vec<f64>>()
    };
    let (means_a, means_b) = (means(a, channels_a), means(b, channels_b));
    let mut sums = vec![0.0; channels_a * channels_b];
    let mut centred = vec![0.0; channels_b];
    for (row_a, row_b) in a.chunks_exact(channels_a).zip(b.chunks_exact(channels_b)) {
        centred.iter_mut().zip(row_b).zip(&means_b).for_each(|((centred, v), mean)| *centred = f64::from(*v) - mean);
        for ((value, mean), sums) in row_a.iter().zip(&means_a).zip(sums.chunks_exact_mut(channels_b)) {
            let value = f64::from(*value) - mean;
            sums.iter_mut().zip(&centred).for_each(|(sum, other)| *sum += value * other);
        }
    }
    sums.into_iter().map(|sum| sum / samples as f64).collect()
}

/// Linear CKA (Kornblith et al. 2019) of two sets of channels, from the covariances between them and within each: 1 for sets that span the
/// same, 0 for uncorrelated ones. 0 if one of them does not vary.
pub fn similarity(between: &[f64], of_a: &[f64], of_b: &[f64]) -> f64 {
    let squares = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
    let scale = (squares(of_a) * squares(of_b)).sqrt();
    if scale > 0.0 { squares(between) / scale } else { 0.0 }
}

/// The exponential of the entropy of a symmetric matrix's eigenvalues, as shares of their sum (Roy and Vetterli 2007): the number of equal
/// eigenvalues that would be as spread out.
pub fn effective_rank(matrix: &Square) -> f64 {
    let eigenvalues = eigenvalues(matrix);
    let sum: f64 = eigenvalues.iter().map(|value| value.max(0.0)).sum();
    let shares = eigenvalues.iter().map(|value| value.max(0.0) / sum).filter(|share| *share > 0.0);
    libm::exp(-shares.map(|share| share * libm::log(share)).sum::<f64>())
}

/// The eigenvalues of a symmetric matrix, by Jacobi's rotations (Golub and Van Loan, section 8.5).
fn eigenvalues(matrix: &Square) -> Vec<f64> {
    let Square { size, values: mut a } = matrix.clone();
    for _ in 0..SWEEPS_MAX {
        let off: f64 = (0..size * size).filter(|i| i / size != i % size).map(|i| a[i] * a[i]).sum();
        if off < 1e-24 {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                let apq = a[p * size + q];
                if apq == 0.0 {
                    continue;
                }
                let theta = (a[q * size + q] - a[p * size + p]) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                rotate(&mut a, size, (p, q), (c, t * c));
            }
        }
    }
    (0..size).map(|i| a[i * size + i]).collect()
}

/// Rotates rows and columns `p` and `q` by the angle with this cosine and sine.
fn rotate(a: &mut [f64], size: usize, (p, q): (usize, usize), (c, s): (f64, f64)) {
    for k in 0..size {
        let (left, right) = (a[k * size + p], a[k * size + q]);
        a[k * size + p] = c * left - s * right;
        a[k * size + q] = s * left + c * right;
    }
    for k in 0..size {
        let (upper, lower) = (a[p * size + k], a[q * size + k]);
        a[p * size + k] = c * upper - s * lower;
        a[q * size + k] = s * upper + c * lower;
    }
}
