//! The model: the file ([`mod@file`]), the checked network that it describes ([`network`]), and the presets that are part of the
//! program ([`presets`]).
//!
//! Not here: placement and cost ([`crate::plan`]), and arithmetic on weights.

pub mod classes;
pub mod error;
pub mod file;
pub mod input;
pub mod network;
pub mod presets;
mod shape;
pub mod transforms;

pub use error::ModelError;
pub use input::Input;
pub use network::{Conv, Init, Layer, LayerKind, Learning, Linear, Lrn, Network, Pool, TEXT_BYTES_MAX};
pub use shape::Shape;
pub use transforms::{Crop, Orient, ResizedCrop, Transforms};
