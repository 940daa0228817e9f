//! What coordinator and worker share: the model and its shapes, the plan of a step, parameters and their slices, counter-based
//! random numbers, the learning-rate schedule, the conversion between messages and domain values, and
//! the language of deliberate faults.
//!
//! Not here: sockets, clocks, files, tokio. Everything is a value or a pure function.
#![forbid(unsafe_code)]

pub mod address;
pub mod batch;
pub mod bundles;
pub mod chain;
pub mod estimate;
pub mod fields;
pub mod index;
pub mod links;
pub mod mask;
pub mod misdeed;
pub mod model;
pub mod parameters;
pub mod placement;
pub mod plan;
pub mod pulse;
pub mod random;
pub mod route;
pub mod schedule;
pub mod slots;
pub mod suggest;
pub mod text;
pub mod token;
pub mod trace;
pub mod wire;
