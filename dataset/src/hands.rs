//! The threads that read, decode and scale images, and how long each stage takes them.
//!
//! Not here: which images they prepare (`store`, `feeder`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::DataError;

/// How images are kept on this machine, and prepared. Nothing here changes a pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// Threads that decode images.
    pub threads: usize,
    /// The most bytes of decoded images in memory. Further images are decoded whenever they are needed.
    pub memory: usize,
}

/// The default of [`Keeping::memory`]: 2 GiB.
pub const MEMORY: usize = 2 << 30;
/// Of the memory for images, this part may hold images that are prepared ahead of time.
const AHEAD_SHARE: usize = 4;
/// The most bytes of images that are prepared ahead of time. More would not help.
const AHEAD_MAX: usize = 256 << 20;

impl Default for Keeping {
    /// A thread for each core, and 2 GiB.
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get), memory: MEMORY }
    }
}

/// A stage of preparing an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its file is read.
    Read,
    /// The file is decoded.
    Decode,
    /// The pixels are scaled for the model.
    Scale,
}

/// Threads that prepare images, with a clock for each stage.
#[derive(Debug)]
pub(crate) struct Hands {
    pool: rayon::ThreadPool,
    ahead: usize,
    nanoseconds: [AtomicU64; 3],
}

/// How long threads have read, decoded and scaled images, summed over the threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Reading files.
    pub read: Duration,
    /// Decoding them.
    pub decode: Duration,
    /// Scaling the pixels.
    pub scale: Duration,
}

impl Hands {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn new(keeping: &Keeping) -> Result<Self, DataError> {
        let threads = keeping.threads;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("data-{index}"));
        // What the thread was to prepare does not come then, which whoever waits for it notices.
        let pool = pool.panic_handler(|_| {});
        let pool = pool.build().map_err(|source| DataError::Threads { threads, source })?;
        let ahead = (keeping.memory / AHEAD_SHARE).min(AHEAD_MAX);
        Ok(Self { pool, ahead, nanoseconds: Default::default() })
    }

    /// Its threads.
    pub(crate) fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// The most bytes of images that are prepared ahead of time.
    pub(crate) fn ahead(&self) -> usize {
        self.ahead
    }

    /// Does `work`, and counts its time for `stage`.
    pub(crate) fn timed<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        let spent = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds[stage as usize].fetch_add(spent, Ordering::Relaxed);
        done
    }

    /// What has been done so far.
    pub(crate) fn effort(&self) -> Effort {
        let spent = |stage: Stage| Duration::from_nanos(self.nanoseconds[stage as usize].load(Ordering::Relaxed));
        Effort { read: spent(Stage::Read), decode: spent(Stage::Decode), scale: spent(Stage::Scale) }
    }
}
