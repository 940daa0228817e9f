//! How an image becomes an input of a model, as the model file says it under `input`.
//!
//! Not here: the arithmetic on pixels (the crate `dataset`).

/// How an image becomes an input. By default, it is scaled so that it just covers the input, and the centre is the input.
///
/// The fields are in the order in which they take effect.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Transforms {
    /// Which way up an image is.
    pub orient: Orient,
    /// The length to which the shorter side of an image is scaled, at least that of the longer side of the input.
    pub resize: Option<usize>,
    /// Whether only the central square of the scaled image is used.
    pub square: bool,
    /// Which part of a training image is the input. Of a test image it is the centre.
    pub crop: Crop,
    /// Whether training images are mirrored, left to right, with a chance of one half.
    pub mirror: bool,
    /// The standard deviation of the colour noise of training images, in units of the eigenvalues of the colours. 0 is no noise.
    pub colour_noise: f64,
    /// The side of a square that is filled with the mean colour, anywhere in a training image.
    pub cutout: Option<usize>,
}

impl Transforms {
    /// Whether a training image is the same in every epoch.
    pub fn draws_nothing(&self) -> bool {
        self.crop == Crop::Centre && !self.mirror && self.colour_noise == 0.0 && self.cutout.is_none()
    }

    /// The same for images that are measured.
    pub fn without_draws(&self) -> Self {
        Self { crop: Crop::Centre, mirror: false, colour_noise: 0.0, cutout: None, ..*self }
    }
}

/// Which way up an image is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orient {
    /// As its pixels are stored.
    #[default]
    Stored,
    /// As its EXIF data say.
    Exif,
}

/// Which part of a training image is the input.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Crop {
    /// The centre.
    #[default]
    Centre,
    /// Any part, with equal chances.
    Random {
        /// Rows and columns of zeros that surround the image first.
        pad: usize,
    },
    /// A part of any size and shape within bounds, which is then scaled to the input. It is taken out of the image before it is scaled.
    Resized(ResizedCrop),
}

/// The bounds of a random resized crop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizedCrop {
    /// Its area as a share of the image: the least and the most.
    pub scale: [f64; 2],
    /// Its width divided by its height: the least and the most.
    pub ratio: [f64; 2],
}

impl Default for ResizedCrop {
    /// Those of torchvision: 8 % to all of the image, and 3:4 to 4:3.
    fn default() -> Self {
        Self { scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }
    }
}
