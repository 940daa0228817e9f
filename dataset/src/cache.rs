//! The images of files: each is in memory, in a file of decoded images, or is decoded again whenever it is needed.
//!
//! Not here: which of these (`loader`), and preparing images ahead of time (`feeder`).

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use convoy_common::model::Shape;
use convoy_common::text::printable;
use sha2::{Digest, Sha256};

use crate::colours::ColourSums;
use crate::decode::{self, BadImage};
use crate::error::DataError;
use crate::picture::{Picture, Recipe};
use crate::pool::{DecodePool, Stage};
use crate::spool::Spooled;

/// Where an image comes from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// A file of its own.
    File(PathBuf),
    /// Standard input.
    StandardInput,
    /// A part of a file, with a name for messages.
    Row { name: PathBuf, bytes: Vec<u8> },
}

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
    /// Its file, or a name for messages.
    file: PathBuf,
    shape: Shape,
    /// SHA-256 of its bytes.
    digest: [u8; 32],
    place: Place,
}

/// Where the bytes of an image are, (channel, row, column).
#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    Spool(Spooled),
    /// In the file, still encoded.
    File,
}

/// An image that was decoded.
pub(crate) struct Decoded {
    picture: Picture,
    digest: [u8; 32],
    colour_sums: Option<ColourSums>,
}

impl Origin {
    /// The file, or a name for messages.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Origin::File(path) => path,
            Origin::StandardInput => Path::new("-"),
            Origin::Row { name, .. } => name,
        }
    }

    /// The same for messages. Names come from strangers.
    pub(crate) fn shown(&self) -> String {
        printable(&self.path().display().to_string())
    }
}

impl Decoded {
    /// Reads, decodes and scales an image.
    ///
    /// # Errors
    /// Says why it can't be used.
    pub(crate) fn read(origin: &Origin, recipe: &Recipe, pool: &DecodePool) -> Result<Self, BadImage> {
        let bytes = pool.timed(Stage::Read, || match origin {
            Origin::File(file) => decode::bytes_of(file).map(Cow::Owned),
            Origin::StandardInput => decode::bytes_from(io::stdin().lock()).map(Cow::Owned),
            Origin::Row { bytes, .. } => Ok(Cow::Borrowed(bytes.as_slice())),
        })?;
        let pixels = pool.timed(Stage::Decode, || decode::decode(&bytes, recipe.transforms.orient))?;
        let decoded = pool.timed(Stage::Scale, || {
            let picture = recipe.picture(pixels)?;
            Ok(Self { digest: Sha256::digest(picture.bytes()).into(), picture, colour_sums: None })
        });
        pool.finished();
        decoded
    }

    /// The same with the sums over its pixels, if colours matter.
    pub(crate) fn with_colours(mut self, recipe: &Recipe) -> Self {
        self.colour_sums = (recipe.transforms.colour_noise > 0.0).then(|| ColourSums::of(self.picture.bytes()));
        self
    }

    /// The bytes, (channel, row, column).
    pub(crate) fn bytes(&self) -> &[u8] {
        self.picture.bytes()
    }
}

impl ImageCache {
    /// Without images.
    pub(crate) fn new(recipe: Recipe, pool: Arc<DecodePool>) -> Self {
        Self { images: Vec::new(), recipe, pool, colour_sums: ColourSums::default() }
    }

    /// Adds an image whose bytes stay in memory.
    pub(crate) fn add(&mut self, origin: Origin, decoded: Decoded) {
        self.count(&decoded);
        let Decoded { picture, digest, .. } = decoded;
        let (file, shape) = (origin.path().to_owned(), picture.shape());
        self.images.push(Cached { file, shape, digest, place: Place::Memory(picture.into_bytes()) });
    }

    /// Adds an image whose bytes are in a spool.
    pub(crate) fn add_spooled(&mut self, origin: Origin, decoded: &Decoded, spooled: Spooled) {
        self.add_elsewhere(origin, decoded, Place::Spool(spooled));
    }

    /// Adds the image of a file that is decoded again whenever it is needed.
    pub(crate) fn add_unkept(&mut self, origin: Origin, decoded: &Decoded) {
        self.add_elsewhere(origin, decoded, Place::File);
    }

    fn add_elsewhere(&mut self, origin: Origin, decoded: &Decoded, place: Place) {
        self.count(decoded);
        let (file, shape, digest) = (origin.path().to_owned(), decoded.picture.shape(), decoded.digest);
        self.images.push(Cached { file, shape, digest, place });
    }

    fn count(&mut self, decoded: &Decoded) {
        decoded.colour_sums.iter().for_each(|sums| self.colour_sums.add(sums));
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
        matches!(self.images[index].place, Place::Memory(_))
    }

    /// The extents of an image, and SHA-256 of its bytes.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(crate) fn facts(&self, index: usize) -> (Shape, &[u8; 32]) {
        (self.images[index].shape, &self.images[index].digest)
    }

    /// The file of an image, or a name for messages.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(crate) fn file(&self, index: usize) -> &Path {
        &self.images[index].file
    }

    /// The bytes of an image, (channel, row, column).
    ///
    /// # Errors
    /// When its file can't be read or decoded any more, or has other pixels than before.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(crate) fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        let image = &self.images[index];
        let file = || image.file.clone();
        match &image.place {
            Place::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
            Place::Spool(spooled) => {
                let bytes = self.pool.timed(Stage::Read, || spooled.read());
                let bytes = bytes.map_err(|source| DataError::Uncached { file: file(), source })?;
                let digest: [u8; 32] = self.pool.timed(Stage::Scale, || Sha256::digest(&bytes).into());
                self.pool.finished();
                if digest != image.digest {
                    let source = io::Error::other("it has other bytes than were written");
                    return Err(DataError::Uncached { file: file(), source });
                }
                Ok(Cow::Owned(bytes))
            }
            Place::File => {
                let decoded = Decoded::read(&Origin::File(file()), &self.recipe, &self.pool);
                let Decoded { picture, digest, .. } =
                    decoded.map_err(|source| DataError::Gone { file: file(), source: Box::new(source) })?;
                if digest != image.digest {
                    return Err(DataError::Changed { file: file() });
                }
                Ok(Cow::Owned(picture.into_bytes()))
            }
        }
    }

    /// Who decodes the images that are not in memory.
    pub(crate) fn pool(&self) -> &Arc<DecodePool> {
        &self.pool
    }
}
