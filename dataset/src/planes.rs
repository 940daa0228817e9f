//! Images in planes, (channel, row, column): cutting, mirroring and filling rectangles.
//!
//! Not here: which rectangles (`draw`, `view`), and other sizes (`scale`).

use convoy_common::model::Shape;

use crate::draw::Rectangle;

/// A rectangle of an image that is surrounded by `pad` rows and columns of zeros. The rectangle's rows and columns count from the border's.
///
/// # Panics
/// If it does not lie in the image and its border.
pub(crate) fn cut(bytes: &[u8], from: Shape, pad: usize, rectangle: Rectangle) -> Vec<u8> {
    let Rectangle { top, left, height, width } = rectangle;
    assert!(top + height <= from.height + 2 * pad && left + width <= from.width + 2 * pad, "{rectangle:?} of {from}");
    let mut out = vec![0; from.channels * height * width];
    // The columns of the output that are not border.
    let first = pad.saturating_sub(left).min(width);
    let end = (from.width + pad).saturating_sub(left).min(width).max(first);
    for (line, out) in out.chunks_exact_mut(width).enumerate() {
        let (channel, row) = (line / height, line % height + top);
        if (pad..from.height + pad).contains(&row) {
            let start = (channel * from.height + row - pad) * from.width + first + left - pad;
            out[first..end].copy_from_slice(&bytes[start..][..end - first]);
        }
    }
    out
}

/// The rectangle of this size in the centre of an image.
///
/// # Panics
/// If the image is smaller.
pub(crate) fn centre(from: Shape, height: usize, width: usize) -> Rectangle {
    Rectangle { top: half(from.height - height), left: half(from.width - width), height, width }
}

/// Reverses an image left to right.
pub(crate) fn mirror(bytes: &mut [u8], width: usize) {
    bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
}

/// Fills a square with a colour. Its upper left corner is half of its side before the `middle`, rounded down, and what lies outside of the
/// image is left out.
pub(crate) fn fill_square(bytes: &mut [u8], shape: Shape, middle: (usize, usize), side: usize, colour: &[u8]) {
    let covered = |middle: usize, length: usize| {
        let end = middle + side - side / 2;
        middle.saturating_sub(side / 2)..end.min(length)
    };
    let (rows, columns) = (covered(middle.0, shape.height), covered(middle.1, shape.width));
    for (plane, value) in bytes.chunks_exact_mut(shape.pixels()).zip(colour) {
        for row in rows.clone() {
            plane[row * shape.width..][columns.clone()].fill(*value);
        }
    }
}

/// Half of a number, rounded to the even one of two, as torchvision rounds.
fn half(number: usize) -> usize {
    number / 2 + usize::from(number % 4 == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shape(channels: usize, height: usize, width: usize) -> Shape {
        Shape { channels, height, width }
    }

    /// What `int(round(n / 2))` gives in Python.
    #[test]
    fn a_half_is_rounded_to_even() {
        assert_eq!((0..8).map(half).collect::<Vec<_>>(), [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    /// Against a lookup of each pixel.
    #[test]
    fn a_rectangle_has_the_pixels_of_the_image_and_zeros_of_its_border() {
        let from = shape(2, 4, 5);
        let bytes: Vec<u8> = (1..=from.len()).map(|at| at as u8).collect();
        for pad in [0, 1, 3] {
            for (top, left) in [(0, 0), (1, 2), (2 * pad, 2 * pad + 1)] {
                let rectangle = Rectangle { top, left, height: 3, width: 2 };
                let pixel = |channel: usize, row: usize, column: usize| {
                    let (row, column) = ((row + top).checked_sub(pad)?, (column + left).checked_sub(pad)?);
                    let is_inside = row < from.height && column < from.width;
                    is_inside.then(|| bytes[(channel * from.height + row) * from.width + column])
                };
                let expected: Vec<u8> = (0..12).map(|at| pixel(at / 6, at / 2 % 3, at % 2).unwrap_or(0)).collect();
                assert_eq!(cut(&bytes, from, pad, rectangle), expected, "pad {pad}, {rectangle:?}");
            }
        }
    }

    #[test]
    fn a_square_is_filled_as_far_as_it_lies_in_the_image() {
        let filled = |middle, side| {
            let mut bytes = vec![0; 2 * 3 * 4];
            fill_square(&mut bytes, shape(2, 3, 4), middle, side, &[7, 8]);
            bytes
        };
        assert_eq!(filled((1, 1), 2), [7, 7, 0, 0, 7, 7, 0, 0, 0, 0, 0, 0, 8, 8, 0, 0, 8, 8, 0, 0, 0, 0, 0, 0]);
        assert_eq!(filled((2, 3), 3), [0, 0, 0, 0, 0, 0, 7, 7, 0, 0, 7, 7, 0, 0, 0, 0, 0, 0, 8, 8, 0, 0, 8, 8]);
        assert_eq!(filled((0, 0), 1)[..4], [7, 0, 0, 0]);
        assert!(filled((0, 3), 9)[..12].iter().all(|byte| *byte == 7));
    }
}
