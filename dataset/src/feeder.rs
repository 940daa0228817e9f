//! Prepares batches of images ahead of time, in the order in which they were asked for.
//!
//! If all images of a split are in memory, the thread that takes a batch crops them, because that costs less than handing them over. Images of
//! files whose drawn parts are scaled one by one are an exception. Otherwise, threads of their own decode and crop them. Not here: which
//! batches are asked for, and when.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::error::DataError;
use crate::pool::DecodePool;
use crate::set::Split;
use crate::view::View;

/// Each thread gets a batch in about so many runs of images. More runs spread the work better, and cost more messages.
const RUNS: usize = 4;

/// An image of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its index.
    pub image: usize,
    /// How it is seen.
    pub view: View,
}

/// Prepares batches of the images of a split.
#[derive(Debug)]
pub struct Feeder {
    split: Split,
    /// None if the thread that takes a batch prepares it.
    pool: Option<Arc<DecodePool>>,
    /// What was asked for and not taken, the oldest first.
    batches: VecDeque<Batch>,
    /// Whether anybody still waits for these batches.
    is_wanted: Arc<AtomicBool>,
}

/// A batch that was asked for.
#[derive(Debug)]
enum Batch {
    /// It is prepared when it is taken.
    Asked(Vec<Seen>),
    /// Threads prepare it.
    Begun(Gathering),
}

/// The runs of a batch, as they arrive.
#[derive(Debug)]
struct Gathering {
    runs: Receiver<Run>,
    /// Runs that are missing.
    missing: usize,
    /// (image, channel, row, column).
    bytes: Vec<u8>,
    /// What is wrong with an image, and with which one of the batch. Of several, the first image counts, whichever comes first.
    error: Option<(usize, DataError)>,
}

/// Images of a batch that lie side by side, and the place of the first one.
struct Run {
    first: usize,
    bytes: Result<Vec<u8>, DataError>,
}

impl Feeder {
    /// For the images of a split.
    pub fn new(split: &Split) -> Self {
        let is_wanted = Arc::new(AtomicBool::new(true));
        Self { split: split.clone(), pool: split.pool().cloned(), batches: VecDeque::new(), is_wanted }
    }

    /// Whether images are prepared by threads, and thus ahead of time.
    pub fn is_ahead(&self) -> bool {
        self.pool.is_some()
    }

    /// Batches of `images` images for which there is memory, at least one.
    pub fn depth(&self, images: usize) -> usize {
        let bytes = images.max(1) * self.split.image_bytes();
        self.pool.as_ref().map_or(1, |pool| (pool.ahead() / bytes).max(1))
    }

    /// Asks for a batch.
    ///
    /// # Panics
    /// When the batch is taken, if an index is out of range and all images are in memory.
    pub fn ask(&mut self, images: Vec<Seen>) {
        let batch = match &self.pool {
            None => Batch::Asked(images),
            Some(pool) => Batch::Begun(self.begun(pool, &images)),
        };
        self.batches.push_back(batch);
    }

    /// Hands the images of a batch to the threads, run by run.
    fn begun(&self, pool: &DecodePool, images: &[Seen]) -> Gathering {
        let threads = pool.threads();
        let length = images.len().div_ceil(RUNS * threads.current_num_threads()).max(1);
        let (sender, runs) = channel();
        for (index, run) in images.chunks(length).enumerate() {
            let (split, is_wanted, sender, run) =
                (self.split.clone(), self.is_wanted.clone(), sender.clone(), run.to_vec());
            threads.spawn_fifo(move || {
                if is_wanted.load(Ordering::Relaxed) {
                    // Nobody waits any more if it can't be sent.
                    let _ = sender.send(Run { first: index * length, bytes: prepared(&split, &run) });
                }
            });
        }
        let missing = images.len().div_ceil(length);
        Gathering { runs, missing, bytes: vec![0; images.len() * self.split.image_bytes()], error: None }
    }

    /// Whether the oldest `count` batches can be taken without a wait, and nothing is wrong with their images.
    pub fn has(&mut self, count: usize) -> bool {
        let size = self.split.image_bytes();
        let is_ready = |batch: &mut Batch| match batch {
            Batch::Asked(_) => true,
            Batch::Begun(gathering) => gathering.gather(size, Duration::ZERO) && gathering.error.is_none(),
        };
        self.batches.len() >= count && self.batches.iter_mut().take(count).all(is_ready)
    }

    /// Takes the oldest batch: (image, channel, row, column). None if it is not ready within `patience`.
    ///
    /// # Panics
    /// If no batch was asked for.
    pub fn take(&mut self, patience: Duration) -> Option<Result<Vec<u8>, DataError>> {
        let size = self.split.image_bytes();
        let oldest = self.batches.front_mut().expect("a batch is asked for before it is taken");
        if let Batch::Begun(gathering) = oldest
            && !gathering.gather(size, patience)
        {
            return None;
        }
        Some(match self.batches.pop_front()? {
            Batch::Asked(images) => prepared(&self.split, &images),
            Batch::Begun(Gathering { error: Some((_, error)), .. }) => Err(error),
            Batch::Begun(Gathering { bytes, .. }) => Ok(bytes),
        })
    }

    /// Forgets what was asked for.
    pub fn forget(&mut self) {
        self.is_wanted.store(false, Ordering::Relaxed);
        self.is_wanted = Arc::new(AtomicBool::new(true));
        self.batches.clear();
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.is_wanted.store(false, Ordering::Relaxed);
    }
}

impl Gathering {
    /// Takes the runs that arrive within `patience`. `size` is that of an image. Returns whether none is missing.
    fn gather(&mut self, size: usize, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.missing > 0 {
            match self.runs.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Run { first, bytes: Ok(bytes) }) => {
                    self.bytes[first * size..][..bytes.len()].copy_from_slice(&bytes);
                    self.missing -= 1;
                }
                Ok(Run { first, bytes: Err(error) }) => self.fail(first, error),
                Err(RecvTimeoutError::Timeout) => return false,
                // A thread has panicked, so its run does not come.
                Err(RecvTimeoutError::Disconnected) => {
                    self.missing = 1;
                    self.fail(usize::MAX, DataError::Unprepared);
                }
            }
        }
        true
    }

    fn fail(&mut self, first: usize, error: DataError) {
        if self.error.as_ref().is_none_or(|(earlier, _)| first < *earlier) {
            self.error = Some((first, error));
        }
        self.missing -= 1;
    }
}

/// The bytes of images, one after the other.
fn prepared(split: &Split, images: &[Seen]) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::with_capacity(images.len() * split.image_bytes());
    for Seen { image, view } in images {
        bytes.extend_from_slice(&split.image(*image, *view)?);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use convoy_common::model::{Crop, Shape, Transforms};
    use tempfile::TempDir;

    use super::*;
    use crate::draw::Draw;
    use crate::images::load;
    use crate::pool::Resources;
    use crate::reading::Reading;
    use crate::set::Wanted;

    /// A folder with twenty training images of 6 x 8, and a test image of each class. The files of the training images, in their order.
    fn files(folder: &Path) -> Vec<PathBuf> {
        let write = |part: &str, number: u8| {
            let class = folder.join(part).join(if number < 10 { "a" } else { "b" });
            std::fs::create_dir_all(&class).unwrap();
            let file = class.join(format!("{number:02}.png"));
            let mut encoder = png::Encoder::new(std::fs::File::create(&file).unwrap(), 8, 6);
            encoder.set_color(png::ColorType::Grayscale);
            let row = |row: u8| (0..8).map(move |column| number * 10 + row * 3 + column);
            encoder.write_header().unwrap().write_image_data(&(0..6).flat_map(row).collect::<Vec<_>>()).unwrap();
            file
        };
        for number in [0, 19] {
            write("test", number);
        }
        (0..20).map(|number| write("train", number)).collect()
    }

    /// The training images. Each has 20 bytes after scaling, and stays in memory if they fit.
    fn split(folder: &TempDir, threads: usize, memory: usize) -> Split {
        let transforms = Transforms { crop: Crop::Random { pad: 1 }, mirror: true, ..Transforms::default() };
        let wanted = Wanted { transforms, ..Wanted::plain(Shape { channels: 1, height: 4, width: 4 }, 2) };
        load(folder.path(), &wanted, &Reading::default(), &Resources { threads, memory, cache: None }).unwrap().train
    }

    fn plain(image: usize) -> Seen {
        Seen { image, view: View::Centre }
    }

    /// Five batches of four images in their epoch's order, which is backwards.
    fn batches(split: &Split) -> Vec<Vec<u8>> {
        let mut feeder = Feeder::new(split);
        for batch in 0..5 {
            let images = (0..4).map(|place| 19 - batch * 4 - place);
            feeder.ask(images.map(|image| Seen { image, view: View::Drawn(Draw::new(1, 2, image)) }).collect());
        }
        (0..5).map(|_| feeder.take(Duration::from_secs(60)).expect("a minute is enough").unwrap()).collect()
    }

    #[test]
    fn the_bytes_do_not_depend_on_threads_or_memory() {
        let folder = TempDir::new().unwrap();
        files(folder.path());
        let in_memory = split(&folder, 1, 1 << 20);
        assert!(!Feeder::new(&in_memory).is_ahead());
        let expected = batches(&in_memory);
        for (threads, memory) in [(1, 0), (4, 0), (2, 100)] {
            let split = split(&folder, threads, memory);
            assert!(Feeder::new(&split).is_ahead(), "some are left on the disk");
            assert_eq!(batches(&split), expected, "{threads} threads, {memory} bytes");
            assert_eq!(split.fingerprint(), in_memory.fingerprint());
        }
        let other = in_memory.image(19, View::Drawn(Draw::new(1, 3, 19))).unwrap().into_owned();
        assert_ne!(other, expected[0][..16], "another epoch draws another crop");
    }

    #[test]
    fn batches_that_are_forgotten_are_not_prepared() {
        let folder = TempDir::new().unwrap();
        files(folder.path());
        let split = split(&folder, 1, 0);
        let mut feeder = Feeder::new(&split);
        assert!(!feeder.has(1), "none was asked for");
        let (release, held) = channel::<()>();
        split.pool().unwrap().threads().spawn_fifo(move || assert!(held.recv().is_err(), "nothing is sent"));
        let before = split.times().images;
        (0..3).for_each(|image| feeder.ask(vec![plain(image)]));
        assert!(!feeder.has(1) && feeder.take(Duration::ZERO).is_none(), "the only thread is held");
        feeder.forget();
        feeder.ask(vec![plain(7)]);
        drop(release);
        let seen = feeder.take(Duration::from_secs(60)).unwrap().unwrap();
        assert_eq!(split.times().images - before, 1, "the others were forgotten");
        assert_eq!(seen, *split.image(7, View::Centre).unwrap());
    }

    #[test]
    fn more_is_asked_for_where_there_is_more_memory() {
        let folder = TempDir::new().unwrap();
        files(folder.path());
        assert_eq!(Feeder::new(&split(&folder, 2, 0)).depth(4), 1);
        // A quarter of the memory, for batches of images of 16 bytes.
        let with_memory = split(&folder, 2, 399);
        assert_eq!(with_memory.left_on_disk(), 1);
        assert_eq!([4, 1].map(|images| Feeder::new(&with_memory).depth(images)), [1, 6]);
    }

    #[test]
    fn a_file_that_changes_or_is_gone_is_named() {
        let folder = TempDir::new().unwrap();
        let files = files(folder.path());
        let split = split(&folder, 2, 0);
        std::fs::copy(&files[4], &files[3]).unwrap();
        std::fs::remove_file(&files[2]).unwrap();
        let mut feeder = Feeder::new(&split);
        for (image, expected) in [(3, "3.png has changed"), (2, "2.png can't be used any more")] {
            feeder.ask(vec![plain(0), plain(image)]);
            let error = feeder.take(Duration::from_secs(60)).unwrap().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        feeder.ask(vec![plain(0)]);
        assert!(feeder.take(Duration::from_secs(60)).unwrap().is_ok(), "other images still come");
    }

    #[test]
    fn a_thread_that_panics_is_an_error() {
        let folder = TempDir::new().unwrap();
        files(folder.path());
        let split = split(&folder, 1, 0);
        let mut feeder = Feeder::new(&split);
        feeder.ask(vec![plain(99)]);
        let error = feeder.take(Duration::from_secs(60)).unwrap().unwrap_err();
        assert!(matches!(error, DataError::Unprepared), "{error}");
    }
}
