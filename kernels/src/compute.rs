//! What kernels run on, and the size of what they run over. Work is divided over outputs, one part for each thread.
//!
//! Not here: arithmetic.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::isa::Isa;
use super::memory::{Shelf, Tensor};

/// What kernels run on: a pool of threads, one of which is the caller's, an instruction set, and memory.
///
/// Work is divided over outputs, one part per thread. Each sum is within one part.
#[derive(Debug)]
pub struct Compute {
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
    pub fn new(threads: usize, isa: Isa) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .use_current_thread()
            .thread_name(|index| format!("compute-{index}"))
            .build()?;
        let busy = (0..threads).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { pool, threads, busy, isa, floats: Arc::default(), indices: Arc::default() })
    }

    /// The same with dirty memory, for tests: a tensor that nobody wrote holds NaN. A result that depends on it is found in this way.
    pub fn with_dirty_memory(self) -> Self {
        self.floats.soil();
        self.indices.soil();
        self
    }

    /// A tensor of `length` floats, whatever they are.
    pub fn tensor(&self, length: usize) -> Tensor {
        self.floats.tensor(length)
    }

    /// A tensor of zeros.
    pub fn zeros(&self, length: usize) -> Tensor {
        let mut zeros = self.tensor(length);
        zeros.fill(0.0);
        zeros
    }

    /// A tensor of `length` indices, whatever they are.
    pub fn indices(&self, length: usize) -> Tensor<u32> {
        self.indices.tensor(length)
    }

    /// To be called after each commit. Frees memory that no step has needed for long.
    pub fn committed(&self) {
        self.floats.commit();
        self.indices.commit();
    }

    /// No job needs memory any more.
    pub fn job_ended(&self) {
        self.floats.clear();
        self.indices.clear();
    }

    /// Threads that have done any work so far.
    pub fn busy_threads(&self) -> usize {
        self.busy.iter().filter(|busy| busy.load(Ordering::Relaxed)).count()
    }

    /// Threads of the pool.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Cuts `count` pieces of work into one run per thread, and hands each to `work`.
    pub fn split(&self, count: usize, work: impl Fn(Range<usize>) + Sync) {
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
    pub fn for_samples<T: Send>(&self, output: &mut [T], samples: usize, work: impl Fn(usize, &mut [T]) + Sync) {
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
    pub fn for_rows<T: Send>(&self, output: &mut [T], rows: usize, work: impl Fn(Range<usize>, &mut [T]) + Sync) {
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
pub struct Maps {
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
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether it is empty")]
    pub fn len(&self) -> usize {
        self.samples * self.height * self.width * self.channels
    }

    /// Where an element lies.
    pub fn at(&self, sample: usize, row: usize, column: usize) -> usize {
        ((sample * self.height + row) * self.width + column) * self.channels
    }
}
