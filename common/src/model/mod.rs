//! The model: the file ([`mod@file`]), the checked network that it describes ([`network`]), and the presets that are part of the
//! program ([`presets`]).
//!
//! Not here: placement and cost ([`crate::plan`]), and arithmetic on weights.

pub mod classes;
pub mod error;
pub mod file;
pub mod network;
pub mod presets;
pub mod transforms;

pub use error::ModelError;
pub use network::{Conv, Init, Input, Layer, LayerKind, Learning, Linear, Lrn, Network, Pool, Shape, TEXT_BYTES_MAX};
pub use transforms::{Crop, Transforms};
