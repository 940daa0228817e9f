//! Decodes images in order on several threads, and keeps them: in memory as long as there is room, and then in a file if one is wanted.
//!
//! Not here: where images come from (`images`, `rows`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use convoy_common::chain::chain;
use rayon::prelude::*;

use crate::cache::{Decoded, ImageCache, Origin};
use crate::decode::BadImage;
use crate::error::DataError;
use crate::picture::Recipe;
use crate::pool::{DecodePool, Resources};
use crate::reading::{BadImages, Reading};
use crate::set::{Split, Wanted};
use crate::spool::Spool;

/// Images for each thread that are decoded before their memory is counted. So this many images may be in memory beyond the bound. Images
/// that are not scaled can be so large that it is one for each thread.
const AT_ONCE: usize = 16;
/// Bad images that an error or a notice names.
const SHOWN_MAX: usize = 5;

/// An image that is not yet decoded, and its class.
pub(crate) struct Encoded {
    pub(crate) origin: Origin,
    pub(crate) label: u16,
}

/// The threads that decode the images of a set, and the room that they have.
pub(crate) struct Means {
    pool: Arc<DecodePool>,
    /// Bytes that are left.
    memory: usize,
    spool: Option<Spool>,
    resources: Resources,
}

/// A split that is being loaded.
pub(crate) struct Loader {
    recipe: Recipe,
    cache: ImageCache,
    labels: Vec<u16>,
    bad: Bad,
}

/// Images that can't be used.
#[derive(Debug, Default)]
pub(crate) struct Bad {
    pub(crate) count: usize,
    /// What is wrong with the first ones, one line each.
    first: Vec<String>,
}

impl Means {
    /// Starts the threads, and makes the file for images that don't fit into memory if one is wanted.
    ///
    /// # Errors
    /// When the system gives no more threads, or the file can't be made.
    pub(crate) fn new(resources: &Resources) -> Result<Self, DataError> {
        let spool =
            |folder: &PathBuf| Spool::new(folder).map_err(|source| DataError::Cache { folder: folder.clone(), source });
        let spool = resources.cache.as_ref().map(spool).transpose()?;
        let pool = Arc::new(DecodePool::new(resources)?);
        Ok(Self { pool, memory: resources.memory, spool, resources: resources.clone() })
    }

    /// Images that are decoded at a time.
    fn at_once(&self, recipe: &Recipe) -> usize {
        let of_each = if recipe.draws_sizes() { 1 } else { AT_ONCE };
        of_each * self.pool.threads().current_num_threads()
    }

    /// The notice about images that don't stay in memory.
    pub(crate) fn left_on_disk(&self, splits: &[&Split]) -> Option<String> {
        let all: usize = splits.iter().map(|split| split.len()).sum();
        let left: usize = splits.iter().map(|split| split.left_on_disk()).sum();
        let memory = self.resources.memory / 1000;
        let rest = match &self.resources.cache {
            Some(folder) => format!("kept in a file in {}", folder.display()),
            None => "decoded whenever they are needed".to_owned(),
        };
        (left > 0).then(|| format!("{left} of {all} images do not fit into {memory} KB of memory, and are {rest}"))
    }
}

impl Loader {
    /// For the images of one split.
    pub(crate) fn new(wanted: &Wanted, means: &Means) -> Self {
        let recipe = wanted.recipe();
        let cache = ImageCache::new(recipe, means.pool.clone());
        Self { recipe, cache, labels: Vec::new(), bad: Bad::default() }
    }

    /// Decodes images. Their order stays, whichever thread decodes which.
    ///
    /// # Errors
    /// When an image can neither be kept nor be decoded again.
    pub(crate) fn add(&mut self, images: Vec<Encoded>, means: &mut Means) -> Result<(), DataError> {
        let mut images = images.into_iter();
        loop {
            let some: Vec<Encoded> = images.by_ref().take(means.at_once(&self.recipe)).collect();
            if some.is_empty() {
                return Ok(());
            }
            self.add_some(some, means)?;
        }
    }

    fn add_some(&mut self, images: Vec<Encoded>, means: &mut Means) -> Result<(), DataError> {
        let (recipe, pool) = (&self.recipe, &means.pool);
        let read = |image: &Encoded| Decoded::read(&image.origin, recipe, pool).map(|read| read.with_colours(recipe));
        let decode = || images.par_iter().map(read).collect();
        let decoded: Vec<Result<Decoded, BadImage>> = pool.threads().install(decode);
        for (image, decoded) in images.into_iter().zip(decoded) {
            match decoded {
                Ok(decoded) => self.keep(image, decoded, means)?,
                Err(error) => self.bad.add(|| format!("{}: {}", image.origin.shown(), chain(&error))),
            }
        }
        Ok(())
    }

    fn keep(&mut self, image: Encoded, decoded: Decoded, means: &mut Means) -> Result<(), DataError> {
        self.labels.push(image.label);
        let bytes = decoded.bytes().len();
        if let Some(left) = means.memory.checked_sub(bytes) {
            means.memory = left;
            self.cache.add(image.origin, decoded);
            return Ok(());
        }
        match (&mut means.spool, &image.origin) {
            // An image on standard input can't be read again, and there is only one.
            (_, Origin::StandardInput) => self.cache.add(image.origin, decoded),
            (Some(spool), _) => {
                let folder = || means.resources.cache.clone().unwrap_or_default();
                let spooled = spool.append(decoded.bytes());
                let spooled = spooled.map_err(|source| DataError::Cache { folder: folder(), source })?;
                self.cache.add_spooled(image.origin, &decoded, spooled);
            }
            (None, Origin::File(_)) => self.cache.add_unkept(image.origin, &decoded),
            (None, Origin::Row { .. }) => {
                return Err(DataError::NoRoom { row: image.origin.shown(), memory: means.resources.memory });
            }
        }
        Ok(())
    }

    /// Whether it has no image, not even a bad one.
    pub(crate) fn is_empty(&self) -> bool {
        self.cache.len() == 0 && self.bad.count == 0
    }

    /// The split, and what is wrong with images that can't be used.
    ///
    /// # Errors
    /// When no image of `place` can be used.
    pub(crate) fn split(self, place: &Path, wanted: &Wanted) -> Result<(Split, Bad), DataError> {
        if self.cache.len() == 0 {
            return Err(DataError::AllBad { folder: place.to_path_buf(), named: self.bad.named() });
        }
        Ok((Split::of_files(self.cache, self.labels, wanted), self.bad))
    }
}

/// Checks that a model takes image files of so many classes.
///
/// # Errors
/// Names the number of classes or of channels that is wrong.
pub(crate) fn check_model(place: &Path, classes: usize, wanted: &Wanted) -> Result<(), DataError> {
    let folder = || place.to_path_buf();
    if ![1, 3].contains(&wanted.channels) {
        return Err(DataError::Channels { folder: folder(), wanted: wanted.channels });
    }
    if classes != wanted.classes {
        return Err(DataError::ClassCount { folder: folder(), found: classes, wanted: wanted.classes });
    }
    Ok(())
}

/// The notices about images that are skipped.
///
/// # Errors
/// When there are some, and they are not to be skipped.
pub(crate) fn told(place: &Path, bad: &Bad, all: usize, reading: &Reading) -> Result<Vec<String>, DataError> {
    if bad.count == 0 {
        return Ok(Vec::new());
    }
    let (count, named) = (bad.count, bad.named());
    if reading.bad_images == BadImages::Stop {
        return Err(DataError::BadImages { folder: place.to_path_buf(), count, all, named });
    }
    Ok(vec![format!("{count} of {all} images are skipped, because they can't be used: {named}")])
}

impl Bad {
    fn add(&mut self, what: impl FnOnce() -> String) {
        if self.first.len() < SHOWN_MAX {
            self.first.push(what());
        }
        self.count += 1;
    }

    /// These, and then others.
    pub(crate) fn and(mut self, other: Self) -> Self {
        let room = SHOWN_MAX - self.first.len();
        self.first.extend(other.first.into_iter().take(room));
        self.count += other.count;
        self
    }

    /// The first ones.
    pub(crate) fn named(&self) -> String {
        let more = self.count - self.first.len();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        self.first.join("; ") + &more
    }
}
