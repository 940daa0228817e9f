//! The arithmetic of docs/NUMERICS.md, fast. Feature maps are (sample, row, column, channel): a vector lies over channels,
//! so that one matrix engine ([`gemm`]) serves every pass of every convolution without rearranging its operands.
//!
//! Not here: which layer comes when (`tower`), and any other order of a sum. `unsafe` lives in this folder alone.

#![allow(unsafe_code)]

pub(crate) mod conv;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod isa;
pub(crate) mod linear;
pub(crate) mod lrn;
pub(crate) mod pool;
#[cfg(test)]
mod reference;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use isa::Isa;

/// What kernels run on: a pool of threads, one of which is the caller's, and an instruction set.
///
/// Work is divided over outputs, one part a thread; no sum crosses a part.
#[derive(Debug)]
pub(crate) struct Compute {
    pool: rayon::ThreadPool,
    threads: usize,
    busy: Vec<AtomicBool>,
    /// What the kernels use.
    pub isa: Isa,
}

impl Compute {
    /// A pool of `threads` threads; the calling thread becomes its first.
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
        Ok(Self { pool, threads, busy, isa })
    }

    /// Threads that have done any work so far.
    pub(crate) fn busy_threads(&self) -> usize {
        self.busy.iter().filter(|busy| busy.load(Ordering::Relaxed)).count()
    }

    /// Cuts `output`, `rows` rows of equal length, into one run of whole rows a thread, and hands each to `work` with the
    /// rows that it holds.
    pub(crate) fn for_rows<T: Send>(
        &self,
        output: &mut [T],
        rows: usize,
        work: impl Fn(Range<usize>, &mut [T]) + Sync,
    ) {
        if rows == 0 {
            return;
        }
        let length = output.len() / rows;
        // A run that isn't a multiple of a tile's height would leave a ragged tile in every part.
        let run = rows.div_ceil(self.threads).next_multiple_of(gemm::tile_rows(self.isa));
        if run >= rows {
            self.mark_busy();
            return work(0..rows, output);
        }
        self.pool.install(|| {
            output.par_chunks_mut(run * length).enumerate().for_each(|(index, part)| {
                self.mark_busy();
                let start = index * run;
                work(start..start + part.len() / length, part);
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

/// Copies maps into larger ones, with `value` around them: `before` rows and columns above and to the left, and `after`
/// below and to the right.
pub(crate) fn padded(
    compute: &Compute,
    x: &[f32],
    maps: Maps,
    before: usize,
    after: usize,
    value: f32,
) -> (Vec<f32>, Maps) {
    let larger = Maps { height: maps.height + before + after, width: maps.width + before + after, ..maps };
    let mut out = vec![value; larger.len()];
    let row = maps.width * maps.channels;
    compute.for_samples(&mut out, maps.samples, |sample, out| {
        for y in 0..maps.height {
            let to = larger.at(0, y + before, before);
            let from = maps.at(sample, y, 0);
            out[to..to + row].copy_from_slice(&x[from..from + row]);
        }
    });
    (out, larger)
}
