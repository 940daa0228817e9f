//! The threads that read, decode and scale images; how long each stage takes them; and how much memory images may have.
//!
//! Not here: which images they prepare (`cache`, `feeder`).

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::DataError;

/// What the images of files may use on this machine. Nothing here changes a pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Threads that decode images.
    pub threads: usize,
    /// The most bytes of decoded images that stay in memory. Further images are decoded, or read from the file for decoded images, whenever they are needed. Those that are prepared
    /// ahead of time have a quarter of this beside it, and at most 256 MiB.
    pub memory: usize,
    /// The folder of a file for decoded images that do not fit into memory. None: they are decoded again.
    pub cache: Option<PathBuf>,
}

/// The default of [`Resources::memory`]: 2 GiB.
const MEMORY: usize = 2 << 30;
/// Images that are prepared ahead of time have this part of the memory for images beside it.
const AHEAD_SHARE: usize = 4;
/// The most bytes of images that are prepared ahead of time. More would not help.
const AHEAD_MAX: usize = 256 << 20;

impl Default for Resources {
    /// A thread for each core, and 2 GiB.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { threads, memory: MEMORY, cache: None }
    }
}

/// A stage of preparing an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its file is read.
    Read,
    /// The file is decoded.
    Decode,
    /// The pixels are scaled for the model, and their digest is computed.
    Scale,
}

/// Threads that prepare images, with a clock for each stage.
#[derive(Debug)]
pub(crate) struct DecodePool {
    pool: rayon::ThreadPool,
    ahead: usize,
    nanoseconds: [AtomicU64; 3],
    images: AtomicU64,
}

/// How long threads have read, decoded and scaled images, summed over the threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Images that went through all stages. One that is decoded twice counts twice.
    pub images: u64,
    /// Reading files.
    pub read: Duration,
    /// Decoding them.
    pub decode: Duration,
    /// Scaling the pixels, and computing their digest.
    pub scale: Duration,
}

impl DecodePool {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn new(resources: &Resources) -> Result<Self, DataError> {
        let threads = resources.threads;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("data-{index}"));
        // What the thread was to prepare does not come then, which whoever waits for it notices.
        let pool = pool.panic_handler(|_| {});
        let pool = pool.build().map_err(|source| DataError::Threads { threads, source })?;
        let ahead = (resources.memory / AHEAD_SHARE).min(AHEAD_MAX);
        Ok(Self { pool, ahead, nanoseconds: Default::default(), images: AtomicU64::new(0) })
    }

    /// Its threads.
    pub(crate) fn threads(&self) -> &rayon::ThreadPool {
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

    /// An image went through all stages.
    pub(crate) fn finished(&self) {
        self.images.fetch_add(1, Ordering::Relaxed);
    }

    /// What has been done so far.
    pub(crate) fn times(&self) -> StageTimes {
        let spent = |stage: Stage| Duration::from_nanos(self.nanoseconds[stage as usize].load(Ordering::Relaxed));
        let images = self.images.load(Ordering::Relaxed);
        StageTimes { images, read: spent(Stage::Read), decode: spent(Stage::Decode), scale: spent(Stage::Scale) }
    }
}
