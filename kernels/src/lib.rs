//! Fast kernels for the arithmetic of docs/NUMERICS.md. Vectors run over channels or samples, never along a sum.
//!
//! ```text
//! compute   what kernels run on: threads, an instruction set, memory
//! vector    one vector of floats, for each instruction set
//! tile      a few chains in registers
//! products  the order of tiles: outputs and input gradients, weight gradients
//! blocks    feature maps as products read them        panels    weights as products read them
//! conv      a convolution's three passes              linear    a linear layer's
//! affine    either of them
//! lrn, pool, elementwise    what has no product, over (sample, row, column, channel)
//! memory    buffers that steps reuse                  isa       the available instruction sets
//! peak, copying             limits of a core: multiply-adds and bytes per second
//! reference NUMERICS.md as code, for the tests
//! ```
//!
//! Not here: the order of layers, which is the worker's `tower`. `unsafe` lives in this crate alone.

pub mod affine;
mod blocks;
mod compute;
pub mod conv;
pub mod copying;
pub mod elementwise;
pub mod isa;
pub mod linear;
pub mod lrn;
pub mod memory;
pub mod panels;
pub mod peak;
pub mod pool;
mod products;
#[cfg(test)]
mod reference;
mod tile;
mod vector;

#[cfg(test)]
mod repdl_tests;
#[cfg(test)]
mod tests;

pub use compute::{Compute, Maps};
pub use products::End;
