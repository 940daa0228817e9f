//! The model: its file as written ([`mod@file`]), the checked network that it becomes ([`network`]), and the presets that
//! come with the program ([`presets`]).
//!
//! Not here: where its towers are placed and what a step costs (see [`crate::plan`]), and any arithmetic on weights.

pub mod file;
pub mod network;
pub mod presets;

pub use network::{Conv, Init, Input, Layer, LayerKind, Linear, Lrn, ModelError, Network, Pool, Shape, TEXT_BYTES_MAX};
