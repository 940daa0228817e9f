//! A view of an image, as the input of a model: the centre, what is drawn for a training image, or one of ten.
//!
//! Not here: scaling whole images (`picture`), and the random numbers (`draw`).

use std::borrow::Cow;

use convoy_common::model::{Crop, ResizedCrop, Shape};

use crate::colours::{Colours, shift};
use crate::draw::{Draw, Rectangle};
use crate::picture::{Recipe, scaled_size};
use crate::planes::{centre, cut, fill_square, mirror};
use crate::scale::scaled_planes;

/// Views of an image whose results are averaged: the corners and the centre, and their mirror images.
pub const TEN: usize = 10;

/// Which part of an image is seen, and how.
#[derive(Clone, Copy, Debug)]
pub enum View {
    /// The centre.
    Centre,
    /// As drawn for a training image.
    Drawn(Draw),
    /// One of ten, by its number: upper left, upper right, lower left, lower right, centre; then the same of the mirror image.
    OfTen(usize),
}

/// How the images of a split become inputs.
#[derive(Clone, Debug)]
pub(crate) struct Viewer {
    pub(crate) recipe: Recipe,
    /// Whether images are kept in the size that is cropped.
    pub(crate) is_scaled: bool,
    /// The mean colour, by channel.
    pub(crate) mean: Vec<u8>,
    /// The colours of the training images, if they have noise.
    pub(crate) colours: Option<Colours>,
}

impl Viewer {
    /// The extents of an input.
    pub(crate) fn input(&self) -> Shape {
        self.recipe.input
    }

    /// A view of an image that is kept with these extents: (channel, row, column).
    ///
    /// # Panics
    /// If the image was made by another recipe.
    pub(crate) fn view<'a>(&self, bytes: Cow<'a, [u8]>, from: Shape, view: View) -> Cow<'a, [u8]> {
        let draw = match view {
            View::Drawn(draw) if !self.recipe.transforms.draws_nothing() => Some(draw),
            _ => None,
        };
        if let (Some(draw), Crop::Resized(bounds)) = (draw, self.recipe.transforms.crop) {
            return Cow::Owned(self.changed(self.scaled_part(&bytes, from, draw, &bounds), draw));
        }
        let (bytes, from) = if self.is_scaled { (bytes, from) } else { self.scaled(bytes, from) };
        match (draw, view) {
            (Some(draw), _) => Cow::Owned(self.changed(self.part(&bytes, from, draw), draw)),
            (None, View::OfTen(number)) => Cow::Owned(self.of_ten(&bytes, from, number)),
            (None, _) if from == self.input() => bytes,
            (None, _) => {
                let Shape { height, width, .. } = self.input();
                Cow::Owned(cut(&bytes, from, 0, centre(from, height, width)))
            }
        }
    }

    /// An image of the size that is cropped.
    fn scaled<'a>(&self, bytes: Cow<'a, [u8]>, from: Shape) -> (Cow<'a, [u8]>, Shape) {
        let Recipe { input, transforms, .. } = &self.recipe;
        let (height, width) = scaled_size(from.height, from.width, *input, transforms);
        let whole = Shape { height, width, ..from };
        let bytes = if whole == from { bytes } else { scaled_planes(&bytes, from, height, width).into() };
        let Some(side) = transforms.resize.filter(|_| transforms.square) else { return (bytes, whole) };
        (cut(&bytes, whole, 0, centre(whole, side, side)).into(), Shape { height: side, width: side, ..from })
    }

    /// A drawn part of an image, scaled to the input.
    fn scaled_part(&self, bytes: &[u8], from: Shape, draw: Draw, bounds: &ResizedCrop) -> Vec<u8> {
        let part = draw.rectangle(from.height, from.width, bounds);
        let shape = Shape { channels: from.channels, height: part.height, width: part.width };
        scaled_planes(&cut(bytes, from, 0, part), shape, self.input().height, self.input().width)
    }

    /// A drawn part of a scaled image.
    fn part(&self, bytes: &[u8], from: Shape, draw: Draw) -> Vec<u8> {
        let Shape { height, width, .. } = self.input();
        let Crop::Random { pad } = self.recipe.transforms.crop else {
            return cut(bytes, from, 0, centre(from, height, width));
        };
        let (rows, columns) = (from.height + 2 * pad - height, from.width + 2 * pad - width);
        let (top, left) = draw.corner(rows + 1, columns + 1);
        cut(bytes, from, pad, Rectangle { top, left, height, width })
    }

    /// An input after everything else that is drawn for it.
    fn changed(&self, mut out: Vec<u8>, draw: Draw) -> Vec<u8> {
        let (input, transforms) = (self.input(), &self.recipe.transforms);
        let Shape { height, width, .. } = input;
        if transforms.mirror && draw.is_mirrored() {
            mirror(&mut out, width);
        }
        if let Some(colours) = &self.colours {
            shift(&mut out, colours.offsets(transforms.colour_noise, draw.normals()));
        }
        if let Some(side) = transforms.cutout {
            fill_square(&mut out, input, draw.middle(height, width), side, &self.mean);
        }
        out
    }

    fn of_ten(&self, bytes: &[u8], from: Shape, number: usize) -> Vec<u8> {
        let Shape { height, width, .. } = self.input();
        let (lowest, rightmost) = (from.height - height, from.width - width);
        let middle = centre(from, height, width);
        let (top, left) = match number % (TEN / 2) {
            0 => (0, 0),
            1 => (0, rightmost),
            2 => (lowest, 0),
            3 => (lowest, rightmost),
            _ => (middle.top, middle.left),
        };
        let is_mirrored = number >= TEN / 2;
        // A column of the mirror image is as far from the other side.
        let left = if is_mirrored { rightmost - left } else { left };
        let mut out = cut(bytes, from, 0, Rectangle { top, left, height, width });
        if is_mirrored {
            mirror(&mut out, width);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use convoy_common::model::Transforms;

    use super::*;
    use crate::colours::ColourSums;

    const fn shape(channels: usize, height: usize, width: usize) -> Shape {
        Shape { channels, height, width }
    }

    fn viewer(input: Shape, transforms: Transforms) -> Viewer {
        let recipe = Recipe { input, transforms, keeps_margins: true };
        Viewer { recipe, is_scaled: !recipe.draws_sizes(), mean: vec![100; input.channels], colours: None }
    }

    fn numbered(shape: Shape) -> Vec<u8> {
        (0..shape.len()).map(|at| at as u8).collect()
    }

    fn seen(viewer: &Viewer, from: Shape, view: View) -> Vec<u8> {
        viewer.view(Cow::Owned(numbered(from)), from, view).into_owned()
    }

    #[test]
    fn the_centre_does_not_depend_on_what_is_drawn_in_training() {
        let from = shape(2, 5, 6);
        let transforms = Transforms {
            crop: Crop::Random { pad: 3 },
            mirror: true,
            cutout: Some(2),
            colour_noise: 0.1,
            ..Transforms::default()
        };
        let seen = seen(&viewer(shape(2, 3, 2), transforms), from, View::Centre);
        assert_eq!(seen, [8, 9, 14, 15, 20, 21, 38, 39, 44, 45, 50, 51]);
    }

    #[test]
    fn a_drawn_view_is_a_crop_of_the_padded_image_mirrored_in_half_of_all_cases() {
        let (from, input) = (shape(2, 6, 7), shape(2, 5, 4));
        let (mut mirrored, mut corners) = (0, BTreeSet::new());
        for image in 0..2000 {
            for pad in [0, 2] {
                let transforms = Transforms { crop: Crop::Random { pad }, mirror: true, ..Transforms::default() };
                let draw = Draw::new(9, 1, image);
                let (top, left) = draw.corner(2 + 2 * pad, 4 + 2 * pad);
                let mut expected = cut(&numbered(from), from, pad, Rectangle { top, left, height: 5, width: 4 });
                if draw.is_mirrored() {
                    mirror(&mut expected, 4);
                    mirrored += 1;
                }
                let seen = seen(&viewer(input, transforms), from, View::Drawn(draw));
                assert_eq!(seen, expected, "image {image}, pad {pad}");
                corners.insert((pad, top, left));
            }
        }
        assert!((1800..2200).contains(&mirrored), "{mirrored} of 4000");
        assert_eq!(corners.len(), 2 * 4 + 6 * 8, "every place is drawn");
    }

    #[test]
    fn a_resized_crop_is_a_scaled_part_and_its_centre_is_that_of_the_scaled_image() {
        let (from, input) = (shape(1, 12, 16), shape(1, 5, 5));
        let bounds = ResizedCrop { scale: [0.3, 0.5], ..ResizedCrop::default() };
        let transforms = Transforms { crop: Crop::Resized(bounds), resize: Some(6), ..Transforms::default() };
        let viewer = viewer(input, transforms);
        let draw = Draw::new(1, 2, 3);
        let part = draw.rectangle(12, 16, &bounds);
        let cut_out = cut(&numbered(from), from, 0, part);
        let expected = scaled_planes(&cut_out, shape(1, part.height, part.width), 5, 5);
        assert_eq!(seen(&viewer, from, View::Drawn(draw)), expected);
        assert_ne!(seen(&viewer, input, View::Centre), numbered(input), "an image of the input's size is scaled, too");
        let whole = scaled_planes(&numbered(from), from, 6, 8);
        let expected = cut(&whole, shape(1, 6, 8), 0, Rectangle { top: 0, left: 2, height: 5, width: 5 });
        assert_eq!(seen(&viewer, from, View::Centre), expected);
    }

    #[test]
    fn noise_shifts_whole_channels_and_a_cutout_has_the_mean_colour() {
        let from = shape(3, 6, 6);
        let transforms = Transforms { colour_noise: 1.0, cutout: Some(3), ..Transforms::default() };
        let colours = ColourSums::of(&numbered(from)).colours();
        let viewer = Viewer { colours: Some(colours), ..viewer(from, transforms) };
        let draw = Draw::new(4, 1, 2);
        let offsets = colours.offsets(1.0, draw.normals());
        assert_ne!(offsets, [0; 3], "the draw has noise");
        let mut expected = numbered(from);
        shift(&mut expected, offsets);
        fill_square(&mut expected, from, draw.middle(6, 6), 3, &[100; 3]);
        assert_eq!(seen(&viewer, from, View::Drawn(draw)), expected);
    }

    /// Each is looked up in the whole image or in its mirror image.
    #[test]
    fn ten_views_are_the_corners_and_the_centre_of_the_image_and_of_its_mirror_image() {
        let (from, input) = (shape(2, 6, 9), shape(2, 3, 4));
        let viewer = viewer(input, Transforms::default());
        let mut flipped = numbered(from);
        mirror(&mut flipped, 9);
        let places = [(0, 0), (0, 5), (3, 0), (3, 5), (2, 2)];
        for number in 0..TEN {
            let (top, left) = places[number % 5];
            let whole = if number < 5 { numbered(from) } else { flipped.clone() };
            let expected = cut(&whole, from, 0, Rectangle { top, left, height: 3, width: 4 });
            assert_eq!(seen(&viewer, from, View::OfTen(number)), expected, "view {number}");
        }
    }
}
