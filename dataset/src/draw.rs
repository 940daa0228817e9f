//! What is drawn for a training image in an epoch: a pure function of the seed, the epoch and the image. docs/NUMERICS.md has the formulas.
//!
//! Not here: what becomes of the pixels (`view`).

use convoy_common::model::ResizedCrop;
use convoy_common::random::Source;

/// Blocks of four random numbers that each image has for its crop, mirror image and cutout.
const BLOCKS: u64 = 4;
/// Numbers that each image has for a random resized crop.
const RESIZED_NUMBERS: u64 = 24;
/// Random resized crops that are tried before the centre is taken.
const TRIES: u64 = 10;
/// Normal numbers that each image has for colour noise: an even number, since they come in pairs.
const NORMALS: u64 = 4;

/// The random numbers of one training image in one epoch.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Of crops, mirror images and cutouts.
    source: Source,
    seed: u64,
    epoch: u64,
    image: u64,
}

/// A rectangle of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rectangle {
    pub(crate) top: usize,
    pub(crate) left: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Draw {
    /// For image number `image` of the training images, in this epoch.
    pub fn new(seed: u64, epoch: u64, image: usize) -> Self {
        Self { source: Source::new(seed, &format!("augment:{epoch}")), seed, epoch, image: image as u64 }
    }

    /// The first row and column of a crop, each below its end.
    pub(crate) fn corner(&self, rows: usize, columns: usize) -> (usize, usize) {
        (self.below(0, rows), self.below(1, columns))
    }

    /// Whether the image is mirrored.
    pub(crate) fn is_mirrored(&self) -> bool {
        self.below(2, 2) == 1
    }

    /// The row and column in the middle of a cutout.
    pub(crate) fn middle(&self, height: usize, width: usize) -> (usize, usize) {
        (self.below(3, height), self.below(4, width))
    }

    /// A random resized crop of an image, as torchvision draws it: an area and a ratio, until the rectangle fits; or else the centre.
    pub(crate) fn rectangle(&self, height: usize, width: usize, bounds: &ResizedCrop) -> Rectangle {
        let source = Source::new(self.seed, &format!("resized:{}", self.epoch));
        let word = |index: u64| source.word(self.image * RESIZED_NUMBERS + index);
        let between = |index: u64, [from, to]: [f64; 2]| from + (to - from) * share(word(index));
        let ratios = bounds.ratio.map(libm::log);
        for attempt in 0..TRIES {
            let area = (height * width) as f64 * between(2 * attempt, bounds.scale);
            let ratio = libm::exp(between(2 * attempt + 1, ratios));
            let (wide, high) = (rounded(libm::sqrt(area * ratio)), rounded(libm::sqrt(area / ratio)));
            if (1..=width).contains(&wide) && (1..=height).contains(&high) {
                let top = below(word(2 * TRIES), height - high + 1);
                let left = below(word(2 * TRIES + 1), width - wide + 1);
                return Rectangle { top, left, height: high, width: wide };
            }
        }
        central(height, width, bounds)
    }

    /// Three standard normal numbers, in f64.
    pub(crate) fn normals(&self) -> [f64; 3] {
        let source = Source::new(self.seed, &format!("colours:{}", self.epoch));
        [0, 1, 2].map(|index| source.normal(self.image * NORMALS + index))
    }

    /// Random number `index`, below `end`.
    fn below(&self, index: u64, end: usize) -> usize {
        below(self.source.word(self.image * BLOCKS * 4 + index), end)
    }
}

/// A word as a whole number below `end`.
fn below(word: u32, end: usize) -> usize {
    ((u64::from(word) * end as u64) >> 32) as usize
}

/// A word as a number from 0 to below 1.
fn share(word: u32) -> f64 {
    f64::from(word) / (1u64 << 32) as f64
}

/// To the nearest whole number, and of two equally near ones to the even one, as Python rounds.
fn rounded(number: f64) -> usize {
    libm::rint(number) as usize
}

/// The largest rectangle in the centre whose ratio is within bounds.
fn central(height: usize, width: usize, bounds: &ResizedCrop) -> Rectangle {
    let ([least, most], ratio) = (bounds.ratio, width as f64 / height as f64);
    let (high, wide) = if ratio < least {
        (rounded(width as f64 / least).min(height), width)
    } else if ratio > most {
        (height, rounded(height as f64 * most).min(width))
    } else {
        (height, width)
    };
    let (high, wide) = (high.max(1), wide.max(1));
    Rectangle { top: (height - high) / 2, left: (width - wide) / 2, height: high, width: wide }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_rectangle_lies_in_the_image_and_within_its_bounds() {
        let bounds = ResizedCrop { scale: [0.2, 0.6], ..ResizedCrop::default() };
        for image in 0..2000 {
            let (height, width) = (40 + image % 50, 60);
            let drawn = Draw::new(3, 1, image).rectangle(height, width, &bounds);
            assert!(
                drawn.top + drawn.height <= height && drawn.left + drawn.width <= width,
                "image {image}: {drawn:?}"
            );
            let (area, ratio) = (drawn.height * drawn.width, drawn.width as f64 / drawn.height as f64);
            let share = area as f64 / (height * width) as f64;
            // Sides are rounded.
            assert!((0.18..0.63).contains(&share) && (0.7..1.42).contains(&ratio), "image {image}: {share}, {ratio}");
        }
    }

    #[test]
    fn an_image_in_which_no_rectangle_fits_is_cropped_in_the_centre() {
        let wide = Draw::new(1, 1, 1).rectangle(10, 1000, &ResizedCrop { scale: [0.9, 1.0], ..ResizedCrop::default() });
        assert_eq!(wide, Rectangle { top: 0, left: 493, height: 10, width: 13 });
        let high = Draw::new(1, 1, 1).rectangle(1000, 10, &ResizedCrop { scale: [0.9, 1.0], ..ResizedCrop::default() });
        assert_eq!(high, Rectangle { top: 493, left: 0, height: 13, width: 10 });
    }

    #[test]
    fn images_and_epochs_draw_other_numbers() {
        let draws = [Draw::new(1, 1, 5), Draw::new(1, 1, 6), Draw::new(1, 2, 5), Draw::new(2, 1, 5)];
        let drawn = |draw: Draw| (draw.rectangle(500, 500, &ResizedCrop::default()), draw.normals().map(f64::to_bits));
        for (index, a) in draws.iter().enumerate() {
            assert_eq!(drawn(*a), drawn(*a));
            assert!(draws[..index].iter().all(|b| drawn(*a) != drawn(*b)), "draw {index}");
        }
    }
}
