//! The size of one sample's activations, and the limits of sizes.
//!
//! Not here: which layer has which shape (`network`).

use super::error::ModelError;
use crate::fields::FieldError;

/// The largest side, number of channels, kernel or number of units. Models also arrive over the network, so all is limited.
pub(super) const LENGTH_MAX: usize = 1 << 20;
/// The most elements of one image's feature map, and of a weight tensor.
pub(super) const ELEMENTS_MAX: usize = 1 << 31;

/// The size of one sample's activations: a feature map, or units with height and width 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels, or units.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Shape {
    /// Number of elements of one sample.
    pub fn len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Whether it has no elements. No shape of a checked network is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows times columns.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// The same rows and columns with another number of channels.
    pub fn with_channels(self, channels: usize) -> Self {
        Self { channels, ..self }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.height, self.width) {
            (1, 1) => write!(f, "{}", self.channels),
            (height, width) => write!(f, "{}x{height}x{width}", self.channels),
        }
    }
}

/// Checks that a feature map is not too large.
pub(super) fn check_elements(shape: Shape, place: &str) -> Result<(), ModelError> {
    let elements = shape.channels.checked_mul(shape.height).and_then(|n| n.checked_mul(shape.width));
    check(elements.is_some_and(|n| n <= ELEMENTS_MAX), place, || {
        format!("a map of {shape} has too many elements; must have at most {ELEMENTS_MAX}")
    })
}

/// An error about `place`, unless `sound`.
pub(super) fn check(sound: bool, place: &str, reason: impl FnOnce() -> String) -> Result<(), ModelError> {
    if sound { Ok(()) } else { Err(FieldError::Value { place: place.to_owned(), reason: reason() }.into()) }
}
