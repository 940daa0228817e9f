//! The colours of a set of images: the principal components of its pixels, along which AlexNet's colour noise varies (section 4.1 of the
//! paper). Sums are whole numbers, so the order of images and threads don't matter.
//!
//! Not here: the random numbers of the noise (`draw`).

use serde::{Deserialize, Serialize};

/// Sweeps of Jacobi's method. Three rows need five or six to converge, and further sweeps change nothing.
const SWEEPS: usize = 16;
/// The pairs of rows that a sweep of Jacobi's method treats, in order.
const PAIRS: [(usize, usize); 3] = [(0, 1), (0, 2), (1, 2)];

/// Sums over the pixels of images with three channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ColourSums {
    pixels: u64,
    values: [u64; 3],
    /// Sums of products of two channels: of each with itself, and of the [`PAIRS`].
    squares: [u64; 3],
    products: [u64; 3],
}

/// The principal components of the colours of a set of pixels, whose values are between 0 and 1. The largest variance comes first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Colours {
    /// The eigenvalues of the covariance.
    pub variances: [f64; 3],
    /// The unit eigenvectors: (component, channel). The largest value of each is positive.
    pub axes: [[f64; 3]; 3],
}

impl ColourSums {
    /// The sums of an image, (channel, row, column).
    ///
    /// # Panics
    /// If it does not have three channels.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let pixels = bytes.len() / 3;
        assert_eq!(bytes.len(), 3 * pixels, "three channels");
        let plane = |channel: usize| bytes[channel * pixels..][..pixels].iter().map(|byte| u64::from(*byte));
        let product = |a, b| plane(a).zip(plane(b)).map(|(a, b)| a * b).sum();
        Self {
            pixels: pixels as u64,
            values: [0, 1, 2].map(|channel| plane(channel).sum()),
            squares: [0, 1, 2].map(|channel| product(channel, channel)),
            products: PAIRS.map(|(a, b)| product(a, b)),
        }
    }

    /// Adds those of other images.
    pub(crate) fn add(&mut self, other: &Self) {
        let add = |sums: &mut [u64; 3], others: &[u64; 3]| {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        };
        self.pixels += other.pixels;
        add(&mut self.values, &other.values);
        add(&mut self.squares, &other.squares);
        add(&mut self.products, &other.products);
    }

    /// The principal components.
    pub(crate) fn colours(&self) -> Colours {
        let (values, axes) = eigen(self.covariance());
        let mut order = [0, 1, 2];
        order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
        Colours { variances: order.map(|index| values[index]), axes: order.map(|index| with_sign(axes[index])) }
    }

    /// The covariance of values between 0 and 1. Its numerators are exact.
    fn covariance(&self) -> [[f64; 3]; 3] {
        let count = i128::from(self.pixels);
        let scale = (self.pixels as f64 * 255.0) * (self.pixels as f64 * 255.0);
        let of = |product: u64, a: usize, b: usize| {
            let numerator = count * i128::from(product) - i128::from(self.values[a]) * i128::from(self.values[b]);
            numerator as f64 / scale
        };
        let mut covariance = [[0.0; 3]; 3];
        for (channel, row) in covariance.iter_mut().enumerate() {
            row[channel] = of(self.squares[channel], channel, channel);
        }
        for ((a, b), product) in PAIRS.into_iter().zip(self.products) {
            (covariance[a][b], covariance[b][a]) = (of(product, a, b), of(product, a, b));
        }
        covariance
    }
}

impl Colours {
    /// What is added to each channel of an image, in steps of a byte: the components, each times its variance, `strength` and a normal
    /// number.
    pub(crate) fn offsets(&self, strength: f64, normals: [f64; 3]) -> [i16; 3] {
        [0, 1, 2].map(|channel| {
            let along = |component: usize| {
                self.axes[component][channel] * (strength * normals[component] * self.variances[component])
            };
            libm::rint(255.0 * (along(0) + along(1) + along(2))) as i16
        })
    }
}

/// Adds to each channel of an image, (channel, row, column). Values stay within 0 to 255.
pub(crate) fn shift(bytes: &mut [u8], offsets: [i16; 3]) {
    let pixels = bytes.len() / 3;
    for (plane, offset) in bytes.chunks_exact_mut(pixels).zip(offsets) {
        plane.iter_mut().for_each(|byte| *byte = (i16::from(*byte) + offset).clamp(0, 255) as u8);
    }
}

/// The eigenvalues of a symmetric matrix and its unit eigenvectors, by cyclic Jacobi rotations (Golub and Van Loan, *Matrix Computations*,
/// 8.5). All operations are those that IEEE 754 defines to the bit.
fn eigen(mut matrix: [[f64; 3]; 3]) -> ([f64; 3], [[f64; 3]; 3]) {
    let mut vectors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    for (a, b) in PAIRS.into_iter().cycle().take(SWEEPS * PAIRS.len()) {
        if matrix[a][b] == 0.0 {
            continue;
        }
        let tau = (matrix[b][b] - matrix[a][a]) / (2.0 * matrix[a][b]);
        let tangent = tau.signum() / (tau.abs() + libm::sqrt(1.0 + tau * tau));
        let cosine = 1.0 / libm::sqrt(1.0 + tangent * tangent);
        let sine = tangent * cosine;
        let rotate = |x: &mut f64, y: &mut f64| (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
        for row in &mut matrix {
            let (mut x, mut y) = (row[a], row[b]);
            rotate(&mut x, &mut y);
            (row[a], row[b]) = (x, y);
        }
        for rows in [&mut matrix, &mut vectors] {
            let (mut x, mut y) = (rows[a], rows[b]);
            x.iter_mut().zip(&mut y).for_each(|(x, y)| rotate(x, y));
            (rows[a], rows[b]) = (x, y);
        }
    }
    ([matrix[0][0], matrix[1][1], matrix[2][2]], vectors)
}

/// A vector or its opposite, so that its largest value is positive.
fn with_sign(vector: [f64; 3]) -> [f64; 3] {
    let largest = vector.into_iter().fold(0.0f64, |most, value| if value.abs() > most.abs() { value } else { most });
    if largest < 0.0 { vector.map(|value| -value) } else { vector }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels whose channels depend on each other.
    fn pixels(count: usize) -> Vec<u8> {
        let value = |channel: usize, at: usize| (at * 37 % 151 + channel * at % 13 * 4 + channel * 9) as u8;
        (0..3).flat_map(|channel| (0..count).map(move |at| value(channel, at))).collect()
    }

    #[test]
    fn the_components_are_those_of_the_covariance() {
        let sums = ColourSums::of(&pixels(997));
        let Colours { variances, axes } = sums.colours();
        assert!(variances[0] >= variances[1] && variances[1] >= variances[2] && variances[2] > 0.0, "{variances:?}");
        let covariance = sums.covariance();
        for (variance, axis) in variances.into_iter().zip(axes) {
            for (row, value) in covariance.iter().zip(axis) {
                let product: f64 = row.iter().zip(axis).map(|(a, b)| a * b).sum();
                assert!((product - variance * value).abs() < 1e-15, "{axis:?} is an eigenvector for {variance}");
            }
            let length: f64 = axis.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-14, "{axis:?} has length 1");
        }
    }

    #[test]
    fn the_sums_of_parts_are_those_of_the_whole() {
        let whole = pixels(100);
        let mut sums = ColourSums::default();
        for range in [0..30, 30..31, 31..100] {
            let part: Vec<u8> = whole.chunks(100).flat_map(|plane| plane[range.clone()].to_vec()).collect();
            sums.add(&ColourSums::of(&part));
        }
        assert_eq!(sums, ColourSums::of(&whole));
    }

    #[test]
    fn images_of_one_colour_have_no_noise() {
        let colours = ColourSums::of(&[9; 300]).colours();
        assert_eq!((colours.variances, colours.offsets(1.0, [3.0; 3])), ([0.0; 3], [0; 3]));
    }

    #[test]
    fn values_stay_within_a_byte() {
        let mut bytes = [0, 100, 255, 0, 100, 255, 0, 100, 255];
        shift(&mut bytes, [10, -120, 0]);
        assert_eq!(bytes, [10, 110, 255, 0, 0, 135, 0, 100, 255]);
    }
}
