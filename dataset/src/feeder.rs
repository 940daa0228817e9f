//! Prepares batches of images ahead of time, in the order in which they were asked for.
//!
//! Images in memory are cropped by the thread that takes them, because that costs less than handing them over. Others are decoded by
//! threads of their own. Not here: how far ahead to ask, which is the caller's decision.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use rayon::prelude::*;

use crate::error::DataError;
use crate::hands::Hands;
use crate::set::Split;
use crate::view::Draw;

/// An image by its index, and the draw with which it is seen.
pub type Seen = (usize, Option<Draw>);

/// Prepares batches of the images of a split.
#[derive(Debug)]
pub struct Feeder {
    split: Split,
    /// None if all images are in memory.
    hands: Option<Arc<Hands>>,
    /// What was asked for and not taken, the oldest first.
    batches: VecDeque<Batch>,
    /// Whether anybody still waits for these batches.
    is_wanted: Arc<AtomicBool>,
}

/// The bytes of a batch: (image, channel, row, column).
type Prepared = Result<Vec<u8>, DataError>;

#[derive(Debug)]
enum Batch {
    /// It is prepared when it is taken.
    Asked(Vec<Seen>),
    /// Threads prepare it.
    Begun(Receiver<Prepared>),
    /// It was found to be ready.
    Ready(Prepared),
}

impl Feeder {
    /// For the images of a split.
    pub fn new(split: &Split) -> Self {
        let is_wanted = Arc::new(AtomicBool::new(true));
        Self { split: split.clone(), hands: split.hands().cloned(), batches: VecDeque::new(), is_wanted }
    }

    /// Whether images are prepared by threads, and thus ahead of time.
    pub fn is_ahead(&self) -> bool {
        self.hands.is_some()
    }

    /// Batches of `images` images that should be asked for before the first is taken: as many as memory allows, and at least one.
    pub fn depth(&self, images: usize) -> usize {
        let bytes = images.max(1) * self.split.image_bytes();
        self.hands.as_ref().map_or(1, |hands| (hands.ahead() / bytes).max(1))
    }

    /// Asks for a batch.
    ///
    /// # Panics
    /// When the batch is taken, if an index was out of range.
    pub fn ask(&mut self, images: Vec<Seen>) {
        let Some(hands) = &self.hands else { return self.batches.push_back(Batch::Asked(images)) };
        let (sender, receiver) = sync_channel(1);
        let (split, is_wanted) = (self.split.clone(), self.is_wanted.clone());
        hands.pool().spawn_fifo(move || {
            if is_wanted.load(Ordering::Relaxed) {
                // Nobody waits any more if it can't be sent.
                let _ = sender.send(prepared(&split, &images));
            }
        });
        self.batches.push_back(Batch::Begun(receiver));
    }

    /// Whether the oldest `count` batches can be taken without a wait.
    pub fn has(&mut self, count: usize) -> bool {
        self.batches.len() >= count && self.batches.iter_mut().take(count).all(|batch| batch.is_ready(Duration::ZERO))
    }

    /// Takes the oldest batch. None if it is not ready within `patience`.
    ///
    /// # Panics
    /// If no batch was asked for.
    pub fn take(&mut self, patience: Duration) -> Option<Result<Vec<u8>, DataError>> {
        let oldest = self.batches.front_mut().expect("a batch is asked for before it is taken");
        if !oldest.is_ready(patience) {
            return None;
        }
        Some(match self.batches.pop_front()? {
            Batch::Asked(images) => collected(&self.split, &images),
            Batch::Ready(prepared) => prepared,
            Batch::Begun(_) => Err(DataError::Unprepared),
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

impl Batch {
    fn is_ready(&mut self, patience: Duration) -> bool {
        if let Batch::Begun(receiver) = self {
            match receiver.recv_timeout(patience) {
                Ok(prepared) => *self = Batch::Ready(prepared),
                Err(RecvTimeoutError::Timeout) => return false,
                // The thread that prepared it has panicked.
                Err(RecvTimeoutError::Disconnected) => *self = Batch::Ready(Err(DataError::Unprepared)),
            }
        }
        true
    }
}

/// The bytes of images, one after the other, by all threads of the pool that calls it.
fn prepared(split: &Split, images: &[Seen]) -> Prepared {
    let size = split.image_bytes();
    let mut bytes = vec![0; images.len() * size];
    // The place of an image does not depend on the thread that prepares it. Of several errors, the first image's counts.
    let errors: Vec<Option<DataError>> = bytes
        .par_chunks_mut(size)
        .zip(images)
        .map(|(place, (image, draw))| split.image(*image, *draw).map(|bytes| place.copy_from_slice(&bytes)).err())
        .collect();
    errors.into_iter().flatten().next().map_or(Ok(bytes), Err)
}

/// The same, by the calling thread.
fn collected(split: &Split, images: &[Seen]) -> Prepared {
    let mut bytes = Vec::with_capacity(images.len() * split.image_bytes());
    for (image, draw) in images {
        bytes.extend_from_slice(&split.image(*image, *draw)?);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use convoy_common::model::{Crop, Transforms};
    use tempfile::TempDir;

    use super::*;
    use crate::hands::Keeping;
    use crate::images::{Reading, load};
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
        let wanted = Wanted { channels: 1, height: 4, width: 4, transforms, classes: 2, seed: 1 };
        load(folder.path(), &wanted, &Reading::default(), &Keeping { threads, memory }).unwrap().train
    }

    /// Five batches of four images in their epoch's order, which is backwards.
    fn batches(split: &Split) -> Vec<Vec<u8>> {
        let mut feeder = Feeder::new(split);
        for batch in 0..5 {
            let images = (0..4).map(|place| 19 - batch * 4 - place);
            feeder.ask(images.map(|image| (image, Some(Draw::new(1, 2, image)))).collect());
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
        let other = Feeder::new(&in_memory).split.image(19, Some(Draw::new(1, 3, 19))).unwrap().into_owned();
        assert_ne!(other, expected[0][..16], "another epoch draws another crop");
    }

    #[test]
    fn batches_that_are_forgotten_do_not_come_and_more_are_asked_for_where_there_is_memory() {
        let folder = TempDir::new().unwrap();
        files(folder.path());
        let without_memory = split(&folder, 2, 0);
        let mut feeder = Feeder::new(&without_memory);
        assert!(!feeder.has(1), "none was asked for");
        (0..3).for_each(|image| feeder.ask(vec![(image, None)]));
        feeder.forget();
        assert!(!feeder.has(1));
        feeder.ask(vec![(7, None)]);
        let seen = feeder.take(Duration::from_secs(60)).unwrap().unwrap();
        assert_eq!(seen, *without_memory.image(7, None).unwrap());
        assert_eq!(feeder.depth(4), 1, "there is no memory");
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
            feeder.ask(vec![(0, None), (image, None)]);
            let error = feeder.take(Duration::from_secs(60)).unwrap().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        feeder.ask(vec![(0, None)]);
        assert!(feeder.take(Duration::from_secs(60)).unwrap().is_ok(), "other images still come");
    }

    #[test]
    fn a_thread_that_panics_is_an_error() {
        let folder = TempDir::new().unwrap();
        files(folder.path());
        let split = split(&folder, 1, 0);
        let mut feeder = Feeder::new(&split);
        feeder.ask(vec![(99, None)]);
        let error = feeder.take(Duration::from_secs(60)).unwrap().unwrap_err();
        assert!(matches!(error, DataError::Unprepared), "{error}");
    }
}
