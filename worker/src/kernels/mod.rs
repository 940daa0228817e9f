//! Fast kernels for the arithmetic of docs/NUMERICS.md. Vectors run over channels or samples, never along a sum.
//!
//! ```text
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
//! Not here: the order of layers (`tower`). `unsafe` lives in this folder alone.

#![allow(unsafe_code)]

pub(crate) mod affine;
mod blocks;
pub(crate) mod conv;
pub(crate) mod copying;
pub(crate) mod elementwise;
pub(crate) mod isa;
pub(crate) mod linear;
pub(crate) mod lrn;
pub(crate) mod memory;
pub(crate) mod panels;
pub(crate) mod peak;
pub(crate) mod pool;
pub(crate) mod products;
#[cfg(test)]
mod reference;
mod tile;
mod vector;

#[cfg(test)]
mod repdl_tests;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use isa::Isa;
use memory::{Shelf, Tensor};

/// What kernels run on: a pool of threads, one of which is the caller's, an instruction set, and memory.
///
/// Work is divided over outputs, one part per thread. Each sum is within one part.
#[derive(Debug)]
pub(crate) struct Compute {
    pool: rayon::ThreadPool,
    threads: usize,
    busy: Vec<AtomicBool>,
    /// What the kernels use.
    pub isa: Isa,
    floats: Arc<Shelf<f32>>,
    indices: Arc<Shelf<u32>>,
}

impl Compute {
    /// A pool of `threads` threads. The calling thread becomes its first one.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn new(threads: usize, isa: Isa) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .use_current_thread()
            .thread_name(|index| format!("compute-{index}"))
            .build()?;
        let busy = (0..threads).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { pool, threads, busy, isa, floats: Arc::default(), indices: Arc::default() })
    }

    /// A tensor of `length` floats, whatever they are.
    pub(crate) fn tensor(&self, length: usize) -> Tensor {
        self.floats.tensor(length)
    }

    /// A tensor of zeros.
    pub(crate) fn zeros(&self, length: usize) -> Tensor {
        let mut zeros = self.tensor(length);
        zeros.fill(0.0);
        zeros
    }

    /// A tensor of `length` indices, whatever they are.
    pub(crate) fn indices(&self, length: usize) -> Tensor<u32> {
        self.indices.tensor(length)
    }

    /// To be called after each commit. Frees memory that no step has needed for long.
    pub(crate) fn committed(&self) {
        self.floats.commit();
        self.indices.commit();
    }

    /// No job needs memory any more.
    pub(crate) fn job_ended(&self) {
        self.floats.clear();
        self.indices.clear();
    }

    /// Threads that have done any work so far.
    pub(crate) fn busy_threads(&self) -> usize {
        self.busy.iter().filter(|busy| busy.load(Ordering::Relaxed)).count()
    }

    /// Threads of the pool.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Cuts `count` pieces of work into one run per thread, and hands each to `work`.
    pub(crate) fn split(&self, count: usize, work: impl Fn(Range<usize>) + Sync) {
        let parts = self.threads.min(count);
        if parts <= 1 {
            self.mark_busy();
            return work(0..count);
        }
        self.pool.install(|| {
            (0..parts).into_par_iter().for_each(|part| {
                self.mark_busy();
                work(part * count / parts..(part + 1) * count / parts);
            });
        });
    }

    /// Runs `work` for each of `samples` samples, which share `output` evenly.
    pub(crate) fn for_samples<T: Send>(&self, output: &mut [T], samples: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        let Some(length) = output.len().checked_div(samples).filter(|length| *length > 0) else { return };
        if self.threads == 1 || samples == 1 {
            self.mark_busy();
            return output.chunks_mut(length).enumerate().for_each(|(sample, part)| work(sample, part));
        }
        self.pool.install(|| {
            output.par_chunks_mut(length).enumerate().for_each(|(sample, part)| {
                self.mark_busy();
                work(sample, part);
            });
        });
    }

    /// Cuts `output`, `rows` rows of equal length, into one run of whole rows per thread, and hands each to `work` with the rows
    /// that it holds.
    pub(crate) fn for_rows<T: Send>(
        &self,
        output: &mut [T],
        rows: usize,
        work: impl Fn(Range<usize>, &mut [T]) + Sync,
    ) {
        let Some(length) = output.len().checked_div(rows).filter(|length| *length > 0) else { return };
        let run = rows.div_ceil(self.threads);
        if run >= rows {
            self.mark_busy();
            return work(0..rows, output);
        }
        self.pool.install(|| {
            output.par_chunks_mut(run * length).enumerate().for_each(|(index, part)| {
                self.mark_busy();
                work(index * run..index * run + part.len() / length, part);
            });
        });
    }

    /// The calling thread works.
    fn mark_busy(&self) {
        let index = self.pool.current_thread_index().unwrap_or(0);
        self.busy[index].store(true, Ordering::Relaxed);
    }
}

/// The size of a batch of feature maps in memory: (sample, row, column, channel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Maps {
    /// Samples.
    pub samples: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Maps {
    /// Elements in all.
    pub(crate) fn len(&self) -> usize {
        self.samples * self.height * self.width * self.channels
    }

    /// Where an element lies.
    pub(crate) fn at(&self, sample: usize, row: usize, column: usize) -> usize {
        ((sample * self.height + row) * self.width + column) * self.channels
    }
}
