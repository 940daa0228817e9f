//! Scaling images: bilinear, over all pixels that an output pixel covers, as Pillow does it.
//!
//! Pixels are integers throughout, and so are the weights that scaling gives them. They are computed in f64, with operations that IEEE 754
//! defines to the bit, so all machines see the same pixels. Not here: which size an image gets.

use convoy_common::model::Shape;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use crate::pixels::Pixels;

/// The bytes of an image at another size, (row, column, channel).
pub(crate) fn scaled(pixels: &Pixels, height: usize, width: usize) -> Vec<u8> {
    if (height, width) == (pixels.height(), pixels.width()) {
        return pixels.bytes().to_vec();
    }
    let from = (pixels.height(), pixels.width());
    if pixels.channels() == 1 {
        scaled_as::<U8>(pixels.bytes(), from, (height, width))
    } else {
        scaled_as::<U8x3>(pixels.bytes(), from, (height, width))
    }
}

/// The bytes of an image in planes, (channel, row, column), at another size. They are those of [`scaled`].
pub(crate) fn scaled_planes(bytes: &[u8], from: Shape, height: usize, width: usize) -> Vec<u8> {
    if (height, width) == (from.height, from.width) {
        return bytes.to_vec();
    }
    let planes = bytes.chunks_exact(from.pixels());
    planes.flat_map(|plane| scaled_as::<U8>(plane, (from.height, from.width), (height, width))).collect()
}

/// Bytes of (row, column, channel) as (channel, row, column).
pub(crate) fn in_planes(pixels: Vec<u8>, channels: usize) -> Vec<u8> {
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
fn scaled_as<Pixel: PixelTrait>(bytes: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let source = TypedImageRef::<Pixel>::from_buffer(from.1 as u32, from.0 as u32, bytes);
    let source = source.expect("there is a byte for each channel of each pixel");
    let mut scaled = vec![0; to.0 * to.1 * (bytes.len() / (from.0 * from.1))];
    let target = TypedImage::<Pixel>::from_buffer(to.1 as u32, to.0 as u32, &mut scaled);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    let scaling = Resizer::new().resize_typed(&source, &mut target.expect("its bytes were counted"), &options);
    scaling.expect("the crop box is the image");
    scaled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_scaled_to_the_bytes_of_whole_pixels() {
        let bytes: Vec<u8> = (0..31 * 23 * 3).map(|at| (at * at / 5 + at) as u8).collect();
        let pixels = Pixels::new(31, 23, 3, bytes.clone()).expect("as many bytes as pixels");
        let from = Shape { channels: 3, height: 23, width: 31 };
        for (height, width) in [(23, 31), (11, 8), (50, 64), (1, 1)] {
            let expected = in_planes(scaled(&pixels, height, width), 3);
            assert_eq!(scaled_planes(&in_planes(bytes.clone(), 3), from, height, width), expected, "{height}x{width}");
        }
    }
}
