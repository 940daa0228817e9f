//! How an image becomes an input of a model, as the model file says it under `input`.
//!
//! Not here: the arithmetic on pixels (the crate `dataset`).

/// How an image becomes an input. By default, it is scaled so that it just covers the input, and the centre is the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transforms {
    /// The length to which the shorter side of an image is scaled, at least that of the longer side of the input.
    pub resize: Option<usize>,
    /// Which part of a training image is the input. Of a test image it is the centre.
    pub crop: Crop,
    /// Whether training images are mirrored, left to right, with a chance of one half.
    pub mirror: bool,
}

impl Transforms {
    /// Whether a training image is the same in every epoch.
    pub fn draws_nothing(&self) -> bool {
        self.crop == Crop::Centre && !self.mirror
    }
}

/// Which part of a training image is the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Crop {
    /// The centre.
    #[default]
    Centre,
    /// Any part, with equal chances.
    Random {
        /// Rows and columns of zeros that surround the image first.
        pad: usize,
    },
}
