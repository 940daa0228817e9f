//! An image as the input of a model: scaled once, and then cropped and mirrored as a draw says. The draw is a pure function of the
//! seed, the epoch and the image.
//!
//! Pixels are integers throughout, and so are the weights that scaling gives them. They are computed in f64, with operations that IEEE 754
//! defines to the bit, so all machines see the same pixels. Not here: decoding (`decode`).

use convoy_common::model::{Crop, Shape, Transforms};
use convoy_common::random::Source;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use crate::decode::{BadImage, PIXELS_MAX};
use crate::pixels::Pixels;

/// The longest side of a scaled image is at most so many times the shorter one. So a file of a few bytes can't fill the memory.
const RATIO_MAX: usize = 16;

/// An image that was scaled for a model, and not yet cropped, unless all crops are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    shape: Shape,
    /// (channel, row, column).
    bytes: Vec<u8>,
}

/// The random numbers of one training image in one epoch.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    source: Source,
    image: u64,
}

/// Blocks of random numbers that each image has.
const BLOCKS: u64 = 4;

impl Draw {
    /// For image number `image` of the training images, in this epoch.
    pub fn new(seed: u64, epoch: u64, image: usize) -> Self {
        Self { source: Source::new(seed, &format!("augment:{epoch}")), image: image as u64 }
    }

    /// Random number `index`, below `end`.
    fn below(&self, index: u64, end: usize) -> usize {
        let word = self.source.word(self.image * BLOCKS * 4 + index);
        ((u64::from(word) * end as u64) >> 32) as usize
    }
}

impl Picture {
    /// Scales an image for a model with this input. If nothing is drawn, it is cropped, too.
    ///
    /// # Errors
    /// When it would have too many pixels then.
    pub(crate) fn new(pixels: Pixels, input: Shape, transforms: &Transforms) -> Result<Self, BadImage> {
        let (height, width) = scaled_size(pixels.height(), pixels.width(), input, transforms);
        let most = PIXELS_MAX.min(RATIO_MAX * height.min(width) * height.min(width));
        if height.saturating_mul(width) > most {
            return Err(BadImage::TooLong { width, height });
        }
        let pixels = pixels.with_channels(input.channels);
        let bytes = in_planes(scaled(&pixels, height, width), input.channels);
        let shape = Shape { channels: input.channels, height, width };
        if transforms.draws_nothing() {
            return Ok(Self { shape: input, bytes: view(&bytes, shape, input, transforms, None) });
        }
        Ok(Self { shape, bytes })
    }

    /// Its extents.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Its bytes: (channel, row, column).
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, without the extents.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Height and width after scaling: at least those of the input. The ratio is kept, and the longer side is rounded down, as in torchvision.
fn scaled_size(height: usize, width: usize, input: Shape, transforms: &Transforms) -> (usize, usize) {
    let (least_height, least_width) = transforms.resize.map_or((input.height, input.width), |side| (side, side));
    if width * least_height <= height * least_width {
        (height * least_width / width, least_width)
    } else {
        (least_height, width * least_height / height)
    }
}

/// The bytes of an image at another size: bilinear, over all pixels that an output pixel covers, as Pillow does it.
fn scaled(pixels: &Pixels, height: usize, width: usize) -> Vec<u8> {
    if (height, width) == (pixels.height(), pixels.width()) {
        return pixels.bytes().to_vec();
    }
    if pixels.channels() == 1 {
        scaled_as::<U8>(pixels, height, width)
    } else {
        scaled_as::<U8x3>(pixels, height, width)
    }
}

/// Bytes of (row, column, channel) as (channel, row, column).
fn in_planes(pixels: Vec<u8>, channels: usize) -> Vec<u8> {
    if channels == 1 {
        return pixels;
    }
    let mut planes = vec![0; pixels.len()];
    for (channel, plane) in planes.chunks_exact_mut(pixels.len() / channels).enumerate() {
        for (byte, pixel) in plane.iter_mut().zip(pixels.chunks_exact(channels)) {
            *byte = pixel[channel];
        }
    }
    planes
}

/// For one kind of pixel. If the kind were chosen at run time, the compiler would translate the scaling of all sixteen kinds.
fn scaled_as<Pixel: PixelTrait>(pixels: &Pixels, height: usize, width: usize) -> Vec<u8> {
    let source = TypedImageRef::<Pixel>::from_buffer(pixels.width() as u32, pixels.height() as u32, pixels.bytes());
    let source = source.expect("the constructor of pixels counts its bytes");
    let mut bytes = vec![0; height * width * pixels.channels()];
    let target = TypedImage::<Pixel>::from_buffer(width as u32, height as u32, &mut bytes);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    let scaling = Resizer::new().resize_typed(&source, &mut target.expect("its bytes were counted"), &options);
    scaling.expect("the crop box is the image");
    bytes
}

/// A part of an image, (channel, row, column), as the input of a model. Without a draw it is the centre, as in tests.
///
/// # Panics
/// If the image is smaller than the input.
pub(crate) fn view(bytes: &[u8], from: Shape, input: Shape, transforms: &Transforms, draw: Option<Draw>) -> Vec<u8> {
    assert!(from.height >= input.height && from.width >= input.width, "{from} covers {input}");
    let pad = match (transforms.crop, draw) {
        (Crop::Random { pad }, Some(_)) => pad,
        _ => 0,
    };
    // What may lie to the left of the crop and above it, border included.
    let (rows, columns) = (from.height + 2 * pad - input.height, from.width + 2 * pad - input.width);
    let (top, left) = match (transforms.crop, draw) {
        (Crop::Random { .. }, Some(draw)) => (draw.below(0, rows + 1), draw.below(1, columns + 1)),
        _ => (half(rows), half(columns)),
    };
    let is_mirrored = transforms.mirror && draw.is_some_and(|draw| draw.below(2, 2) == 1);
    let mut out = vec![0; input.len()];
    // The columns of the output that are not border.
    let first = pad.saturating_sub(left).min(input.width);
    let end = (from.width + pad).saturating_sub(left).min(input.width).max(first);
    for (line, out) in out.chunks_exact_mut(input.width).enumerate() {
        let (channel, row) = (line / input.height, line % input.height + top);
        if (pad..from.height + pad).contains(&row) {
            let start = (channel * from.height + row - pad) * from.width + first + left - pad;
            out[first..end].copy_from_slice(&bytes[start..][..end - first]);
        }
        if is_mirrored {
            out.reverse();
        }
    }
    out
}

/// Half of a number, rounded to the even one of two, as torchvision rounds.
fn half(number: usize) -> usize {
    number / 2 + usize::from(number % 4 == 3)
}

#[cfg(test)]
mod tests {
    use convoy_common::parameters::hex;
    use sha2::{Digest, Sha256};

    use super::*;

    const fn shape(channels: usize, height: usize, width: usize) -> Shape {
        Shape { channels, height, width }
    }

    fn numbered(shape: Shape) -> Vec<u8> {
        (0..shape.len()).map(|at| at as u8).collect()
    }

    /// These are the bytes with AVX2. The gate runs this on Arm, too, where the resizer has other vector instructions.
    #[test]
    fn a_scaled_image_has_the_same_pixels_on_every_machine() {
        let mut sha = Sha256::new();
        for (channels, input) in [(1, shape(1, 13, 17)), (3, shape(3, 13, 17)), (3, shape(3, 61, 90))] {
            let bytes = (0..50 * 41 * channels).map(|at| (at * at / 7 + at) as u8).collect();
            let pixels = Pixels::new(50, 41, channels, bytes).unwrap();
            sha.update(Picture::new(pixels, input, &Transforms::default()).unwrap().bytes());
        }
        assert_eq!(hex(&sha.finalize()), "131736b3374e002c24e9eaacb64245fcc90a29be53db497e71ec72ffa934b1df");
    }

    /// What `int(round(n / 2))` gives in Python.
    #[test]
    fn a_half_is_rounded_to_even() {
        assert_eq!((0..8).map(half).collect::<Vec<_>>(), [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn the_longer_side_is_rounded_down_and_the_input_is_covered() {
        let square = shape(3, 32, 32);
        let sizes =
            |height, width, resize| scaled_size(height, width, square, &Transforms { resize, ..Transforms::default() });
        assert_eq!(sizes(100, 100, None), (32, 32));
        assert_eq!(sizes(375, 500, Some(256)), (256, 341));
        assert_eq!(sizes(500, 375, Some(256)), (341, 256));
        assert_eq!(sizes(1, 3000, None), (32, 96_000));
        let wide = |height, width| scaled_size(height, width, shape(1, 10, 20), &Transforms::default());
        assert_eq!((wide(10, 20), wide(10, 30), wide(20, 20)), ((10, 20), (10, 30), (20, 20)));
    }

    #[test]
    fn a_view_without_a_draw_is_the_centre_whatever_training_does() {
        let from = shape(2, 5, 6);
        let transforms = Transforms { crop: Crop::Random { pad: 3 }, mirror: true, ..Transforms::default() };
        let seen = view(&numbered(from), from, shape(2, 3, 2), &transforms, None);
        assert_eq!(seen, [8, 9, 14, 15, 20, 21, 38, 39, 44, 45, 50, 51]);
    }

    /// Against a copy with a border that is cut out pixel by pixel.
    #[test]
    fn a_drawn_view_is_a_crop_of_the_padded_image_mirrored_in_half_of_all_cases() {
        let (from, input) = (shape(2, 6, 7), shape(2, 5, 4));
        let bytes: Vec<u8> = (1..=from.len()).map(|at| at as u8).collect();
        let mut mirrored = 0;
        let mut corners = std::collections::BTreeSet::new();
        for image in 0..2000 {
            for pad in [0, 2] {
                let transforms = Transforms { crop: Crop::Random { pad }, mirror: true, ..Transforms::default() };
                let draw = Draw::new(9, 1, image);
                let seen = view(&bytes, from, input, &transforms, Some(draw));
                let (top, left) = (draw.below(0, 2 + 2 * pad), draw.below(1, 4 + 2 * pad));
                let is_mirrored = draw.below(2, 2) == 1;
                let pixel = |channel: usize, row: usize, column: usize| {
                    let column = if is_mirrored { input.width - 1 - column } else { column };
                    let (row, column) = ((row + top).checked_sub(pad)?, (column + left).checked_sub(pad)?);
                    let is_inside = row < from.height && column < from.width;
                    is_inside.then(|| bytes[(channel * from.height + row) * from.width + column])
                };
                let expected: Vec<u8> =
                    (0..input.len()).map(|at| pixel(at / 20, at / 4 % 5, at % 4).unwrap_or(0)).collect();
                assert_eq!(seen, expected, "image {image}, pad {pad}");
                mirrored += usize::from(is_mirrored);
                corners.insert((pad, top, left));
            }
        }
        assert!((1800..2200).contains(&mirrored), "{mirrored} of 4000");
        assert_eq!(corners.len(), 2 * 4 + 6 * 8, "every place is drawn");
    }
}
