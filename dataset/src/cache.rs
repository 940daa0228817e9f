//! The images of files: each is in memory as long as there is room, and is otherwise decoded again whenever it is needed.
//!
//! Not here: which files there are (`classes`), and preparing images ahead of time (`feeder`).

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use convoy_common::model::Shape;
use sha2::{Digest, Sha256};

use crate::colours::ColourSums;
use crate::decode::{self, BadImage};
use crate::error::DataError;
use crate::picture::{Picture, Recipe};
use crate::pool::{DecodePool, Stage};

/// The name of the file that is read from standard input.
const STANDARD_INPUT: &str = "-";

/// Images of files, all scaled for one model.
#[derive(Debug)]
pub(crate) struct ImageCache {
    images: Vec<Cached>,
    recipe: Recipe,
    pool: Arc<DecodePool>,
    /// Of all images, if their colours matter.
    colour_sums: ColourSums,
}

/// One image.
#[derive(Debug)]
struct Cached {
    file: PathBuf,
    shape: Shape,
    /// SHA-256 of its bytes.
    digest: [u8; 32],
    /// (channel, row, column). None if there was no room.
    bytes: Option<Vec<u8>>,
}

/// A decoded file.
pub(crate) struct Decoded {
    picture: Picture,
    digest: [u8; 32],
    colour_sums: Option<ColourSums>,
}

impl Decoded {
    /// Reads, decodes and scales a file.
    ///
    /// # Errors
    /// Says why it can't be used.
    pub(crate) fn read(file: &Path, recipe: &Recipe, pool: &DecodePool) -> Result<Self, BadImage> {
        let bytes = pool.timed(Stage::Read, || match is_standard_input(file) {
            true => decode::bytes_from(io::stdin().lock()),
            false => decode::bytes_of(file),
        })?;
        let pixels = pool.timed(Stage::Decode, || decode::decode(&bytes, recipe.transforms.orient))?;
        let decoded = pool.timed(Stage::Scale, || {
            let picture = recipe.picture(pixels)?;
            let has_noise = recipe.transforms.colour_noise > 0.0;
            let colour_sums = has_noise.then(|| ColourSums::of(picture.bytes()));
            Ok(Self { digest: Sha256::digest(picture.bytes()).into(), picture, colour_sums })
        });
        pool.finished();
        decoded
    }
}

impl ImageCache {
    /// Without images.
    pub(crate) fn new(recipe: Recipe, pool: Arc<DecodePool>) -> Self {
        Self { images: Vec::new(), recipe, pool, colour_sums: ColourSums::default() }
    }

    /// Adds the image of a file. Its bytes stay in memory if `room` is large enough, which they make smaller.
    pub(crate) fn add(&mut self, file: &Path, decoded: Decoded, room: &mut usize) {
        let Decoded { picture, digest, colour_sums } = decoded;
        colour_sums.iter().for_each(|sums| self.colour_sums.add(sums));
        let shape = picture.shape();
        let bytes = picture.into_bytes();
        let left = room.checked_sub(bytes.len());
        // Standard input can't be read again.
        let is_kept = left.is_some() || is_standard_input(file);
        *room = left.unwrap_or(*room);
        self.images.push(Cached { file: file.to_owned(), shape, digest, bytes: is_kept.then_some(bytes) });
    }

    /// The sums over the pixels of all images, if their colours matter.
    pub(crate) fn colour_sums(&self) -> &ColourSums {
        &self.colour_sums
    }

    /// Number of images.
    pub(crate) fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether an image is in memory.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(crate) fn is_in_memory(&self, index: usize) -> bool {
        self.images[index].bytes.is_some()
    }

    /// The extents of an image, and SHA-256 of its bytes.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(crate) fn facts(&self, index: usize) -> (Shape, &[u8; 32]) {
        (self.images[index].shape, &self.images[index].digest)
    }

    /// The file of an image.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(crate) fn file(&self, index: usize) -> &Path {
        &self.images[index].file
    }

    /// The bytes of an image, (channel, row, column).
    ///
    /// # Errors
    /// When its file can't be decoded any more, or has other pixels than before.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(crate) fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        let image = &self.images[index];
        if let Some(bytes) = &image.bytes {
            return Ok(Cow::Borrowed(bytes));
        }
        let decoded = Decoded::read(&image.file, &self.recipe, &self.pool);
        let Decoded { picture, digest, .. } =
            decoded.map_err(|source| DataError::Gone { file: image.file.clone(), source: Box::new(source) })?;
        if digest != image.digest {
            return Err(DataError::Changed { file: image.file.clone() });
        }
        Ok(Cow::Owned(picture.into_bytes()))
    }

    /// Who decodes the images that are not in memory.
    pub(crate) fn pool(&self) -> &Arc<DecodePool> {
        &self.pool
    }
}

fn is_standard_input(file: &Path) -> bool {
    file.as_os_str() == STANDARD_INPUT
}
