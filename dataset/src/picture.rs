//! An image as it is kept: scaled for a model, and not yet cropped, unless all of its views are the same.
//!
//! Not here: decoding (`decode`), and cropping (`view`).

use convoy_common::model::{Crop, Shape, Transforms};

use crate::decode::{BadImage, PIXELS_MAX};
use crate::pixels::Pixels;
use crate::planes::{centre, cut};
use crate::scale::{in_planes, scaled};

/// The longest side of a scaled image is at most so many times the shorter one. So a file of a few bytes can't fill the memory.
const RATIO_MAX: usize = 16;

/// How an image becomes a [`Picture`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe {
    pub(crate) input: Shape,
    pub(crate) transforms: Transforms,
    /// Whether other parts than the centre are needed, too, although nothing is drawn.
    pub(crate) keeps_margins: bool,
}

/// An image of one of the sizes that views are taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    shape: Shape,
    /// (channel, row, column).
    bytes: Vec<u8>,
}

impl Recipe {
    /// Scales an image, and crops it if all of its views are the same.
    ///
    /// # Errors
    /// When it would have too many pixels then.
    pub(crate) fn picture(&self, pixels: Pixels) -> Result<Picture, BadImage> {
        let channels = self.input.channels;
        let (height, width) = self.kept_size(pixels.height(), pixels.width())?;
        let bytes = in_planes(scaled(&pixels.with_channels(channels), height, width), channels);
        Ok(self.trimmed(Picture { shape: Shape { channels, height, width }, bytes }))
    }

    /// Whether images of arrays, which have one size, are scaled. If the model does not say so, they must have its input's size.
    pub(crate) fn scales_arrays(&self) -> bool {
        self.transforms.resize.is_some() || self.draws_sizes()
    }

    /// Whether each draw scales a part of the image, which is kept as it is.
    pub(crate) fn draws_sizes(&self) -> bool {
        matches!(self.transforms.crop, Crop::Resized(_))
    }

    /// Checks that an image of an array, which is scaled whenever it is needed, does not get too large.
    ///
    /// # Errors
    /// When it would have too many pixels then.
    pub(crate) fn check_scaling(&self, from: Shape) -> Result<(), BadImage> {
        let (height, width) = scaled_size(from.height, from.width, self.input, &self.transforms);
        check_size(height, width)
    }

    /// Height and width of an image that is kept, before it is trimmed.
    fn kept_size(&self, height: usize, width: usize) -> Result<(usize, usize), BadImage> {
        let (height, width) = match self.draws_sizes() {
            true => (height, width),
            false => scaled_size(height, width, self.input, &self.transforms),
        };
        check_size(height, width)?;
        Ok((height, width))
    }

    /// Without the pixels that no view has.
    fn trimmed(&self, picture: Picture) -> Picture {
        if self.draws_sizes() {
            return picture;
        }
        let side = self.transforms.resize.filter(|_| self.transforms.square);
        let whole = side.map_or((picture.shape.height, picture.shape.width), |side| (side, side));
        let is_only_centre = self.transforms.draws_nothing() && !self.keeps_margins;
        let (height, width) = if is_only_centre { (self.input.height, self.input.width) } else { whole };
        // The centre of the square is not always that of the whole: what is left over is rounded twice.
        picture.central(whole.0, whole.1).central(height, width)
    }
}

impl Picture {
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

    fn central(self, height: usize, width: usize) -> Self {
        if (self.shape.height, self.shape.width) == (height, width) {
            return self;
        }
        let bytes = cut(&self.bytes, self.shape, 0, centre(self.shape, height, width));
        Self { shape: Shape { height, width, ..self.shape }, bytes }
    }
}

fn check_size(height: usize, width: usize) -> Result<(), BadImage> {
    let (longer, shorter) = (height.max(width), height.min(width));
    if longer > RATIO_MAX.saturating_mul(shorter) {
        return Err(BadImage::TooLong { width, height });
    }
    if height.saturating_mul(width) > PIXELS_MAX {
        return Err(BadImage::TooLargeScaled { width, height });
    }
    Ok(())
}

/// Height and width after scaling: at least those of the input. The ratio is kept, and the longer side is rounded down, as in torchvision.
pub(crate) fn scaled_size(height: usize, width: usize, input: Shape, transforms: &Transforms) -> (usize, usize) {
    let (least_height, least_width) = transforms.resize.map_or((input.height, input.width), |side| (side, side));
    if width * least_height <= height * least_width {
        (height * least_width / width, least_width)
    } else {
        (least_height, width * least_height / height)
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::parameters::hex;
    use sha2::{Digest, Sha256};

    use super::*;

    const fn shape(channels: usize, height: usize, width: usize) -> Shape {
        Shape { channels, height, width }
    }

    fn recipe(input: Shape, transforms: Transforms) -> Recipe {
        Recipe { input, transforms, keeps_margins: false }
    }

    /// These are the bytes with AVX2. The gate runs this on Arm, too, where the resizer has other vector instructions.
    #[test]
    fn a_scaled_image_has_the_same_pixels_on_every_machine() {
        let mut sha = Sha256::new();
        for (channels, input) in [(1, shape(1, 13, 17)), (3, shape(3, 13, 17)), (3, shape(3, 61, 90))] {
            let bytes = (0..50 * 41 * channels).map(|at| (at * at / 7 + at) as u8).collect();
            let pixels = Pixels::new(50, 41, channels, bytes).unwrap();
            sha.update(recipe(input, Transforms::default()).picture(pixels).unwrap().bytes());
        }
        assert_eq!(hex(&sha.finalize()), "131736b3374e002c24e9eaacb64245fcc90a29be53db497e71ec72ffa934b1df");
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
    fn only_the_pixels_that_a_view_can_have_are_kept() {
        let kept = |transforms: Transforms, keeps_margins| {
            let pixels = Pixels::new(40, 20, 1, vec![5; 800]).unwrap();
            let recipe = Recipe { input: shape(1, 8, 8), transforms, keeps_margins };
            let Shape { height, width, .. } = recipe.picture(pixels).unwrap().shape();
            (height, width)
        };
        let plain = Transforms { resize: Some(10), ..Transforms::default() };
        let random = Transforms { crop: Crop::Random { pad: 0 }, ..plain };
        assert_eq!([kept(plain, false), kept(plain, true), kept(random, false)], [(8, 8), (10, 20), (10, 20)]);
        let square = |transforms| Transforms { square: true, ..transforms };
        assert_eq!([kept(square(plain), true), kept(square(random), false)], [(10, 10), (10, 10)]);
        let resized = Transforms { crop: Crop::Resized(Default::default()), ..plain };
        assert_eq!(kept(resized, false), (20, 40), "parts are cut out of the image as it is");
    }
}
