//! Images and labels: a split; a data set, which consists of two splits; and what a model requires of them.
//!
//! Not here: where they come from.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use convoy_common::model::{Network, Shape, Transforms};
use convoy_common::parameters::hex;
use ndarray::{Array4, Axis};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::cache::ImageCache;
use crate::colours::{ColourSums, Colours};
use crate::error::DataError;
use crate::picture::Recipe;
use crate::pool::{DecodePool, StageTimes};
use crate::view::{View, Viewer};

/// What the model needs of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Channels of an image.
    pub channels: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// How images become inputs.
    pub transforms: Transforms,
    /// The mean colour, by channel.
    pub mean: Vec<u8>,
    /// Whether each image is measured by ten views, and not by its centre alone.
    pub ten_views: bool,
    /// Units of the model's last layer.
    pub classes: usize,
    /// The job's seed, which decides synthetic images.
    pub seed: u64,
}

/// The training part or the test part of a data set: images and their labels. A clone shares them.
#[derive(Debug, Clone)]
pub struct Split {
    pictures: Pictures,
    labels: Arc<[u16]>,
    viewer: Arc<Viewer>,
}

/// Images that are not yet cropped.
#[derive(Debug, Clone)]
enum Pictures {
    /// All of one size: (image, channel, row, column), in standard layout.
    Same(Arc<Array4<u8>>),
    /// Each of a size of its own: these images of a cache.
    Each(Arc<ImageCache>, Arc<[usize]>),
}

/// Both splits, each checked against the model.
pub(super) struct Splits {
    pub(super) train: Split,
    pub(super) test: Split,
}

/// A data set.
#[derive(Debug, Clone)]
pub struct DataSet {
    /// The training images.
    pub train: Split,
    /// The test images.
    pub test: Split,
    /// What the data are and where they come from, in one line for people.
    pub origin: String,
    /// What people should know, one line each: that this is only a subset, or that classes are missing.
    pub notices: Vec<String>,
    /// SHA-256 over both splits, in hex. A checkpoint keeps it, so that a resumed job can refuse other data.
    pub fingerprint: String,
    /// The names of the classes, by label. Empty if they have none.
    pub classes: Vec<String>,
    /// The colours of the training images, if the model's input has colour noise.
    pub colours: Option<Colours>,
}

/// The training images or the test images of a data set.
#[derive(Debug, Clone)]
pub struct PartSet {
    /// The images.
    pub images: Split,
    /// SHA-256 over the whole set, if it was loaded.
    pub fingerprint: Option<String>,
    /// What the data are and where they come from, in one line for people.
    pub origin: String,
    /// What people should know, one line each.
    pub notices: Vec<String>,
    /// The names of the classes, by label. Empty if they have none.
    pub classes: Vec<String>,
}

impl DataSet {
    /// A data set of these splits, with its name for people.
    pub(super) fn new(splits: Splits, name: &str, notices: Vec<String>) -> Self {
        let fingerprint = fingerprint(&[&splits.train, &splits.test]);
        Self::with_fingerprint(splits, name, notices, fingerprint)
    }

    /// The same for splits whose fingerprint is known.
    pub(super) fn with_fingerprint(splits: Splits, name: &str, notices: Vec<String>, fingerprint: String) -> Self {
        let Splits { mut train, test } = splits;
        let colours = train.colours();
        Arc::make_mut(&mut train.viewer).colours = colours;
        let (train_count, test_count, shape) = (train.len(), test.len(), train.shape());
        let origin = format!("{name}: {train_count} training and {test_count} test images of {shape}");
        DataSet { train, test, origin, notices, fingerprint, classes: Vec::new(), colours }
    }
}

impl PartSet {
    /// The test images of a data set, with its name for people.
    pub(super) fn new(images: Split, name: &str, notices: Vec<String>) -> Self {
        let origin = format!("{name}: {} test images of {}", images.len(), images.shape());
        PartSet { images, fingerprint: None, origin, notices, classes: Vec::new() }
    }
}

impl Split {
    /// Images of one size.
    ///
    /// # Panics
    /// If there isn't one label per image, or the images aren't in standard layout.
    pub(super) fn new(images: Array4<u8>, labels: Vec<u16>, wanted: &Wanted) -> Self {
        Self::of_array(images, labels, wanted.viewer(false))
    }

    /// Images that were made in the size that is cropped.
    ///
    /// # Panics
    /// If there isn't one label per image, or the images aren't in standard layout.
    pub(super) fn made(images: Array4<u8>, labels: Vec<u16>, wanted: &Wanted) -> Self {
        Self::of_array(images, labels, wanted.viewer(true))
    }

    fn of_array(images: Array4<u8>, labels: Vec<u16>, viewer: Viewer) -> Self {
        assert_eq!(images.dim().0, labels.len(), "one label an image");
        assert!(images.is_standard_layout(), "images are contiguous, so that one is a slice");
        Split { pictures: Pictures::Same(Arc::new(images)), labels: labels.into(), viewer: Arc::new(viewer) }
    }

    /// Images as they are, of as many classes as labels can have.
    #[cfg(test)]
    pub(crate) fn plain(images: Array4<u8>, labels: Vec<u16>) -> Self {
        let (_, channels, height, width) = images.dim();
        Self::new(images, labels, &Wanted::plain(Shape { channels, height, width }, 1 << 16))
    }

    /// All images of a cache.
    ///
    /// # Panics
    /// If there isn't one label per image.
    pub(super) fn of_files(cache: ImageCache, labels: Vec<u16>, wanted: &Wanted) -> Self {
        assert_eq!(cache.len(), labels.len(), "one label an image");
        let all = (0..cache.len()).collect();
        let pictures = Pictures::Each(Arc::new(cache), all);
        Split { pictures, labels: labels.into(), viewer: Arc::new(wanted.viewer(!wanted.recipe().draws_sizes())) }
    }

    /// These images alone, by their indices.
    ///
    /// # Panics
    /// If an index is out of range.
    pub(super) fn chosen(&self, indices: &[usize]) -> Self {
        let pictures = match &self.pictures {
            Pictures::Same(images) => Pictures::Same(Arc::new(images.select(Axis(0), indices))),
            Pictures::Each(cache, all) => {
                Pictures::Each(cache.clone(), indices.iter().map(|index| all[*index]).collect())
            }
        };
        let labels = indices.iter().map(|index| self.label(*index)).collect();
        Split { pictures, labels, viewer: self.viewer.clone() }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The extents of one image, as the model takes it.
    pub fn shape(&self) -> Shape {
        self.viewer.input()
    }

    /// SHA-256 over this split alone, in hex.
    pub fn fingerprint(&self) -> String {
        fingerprint(&[self])
    }

    /// Whether there is no image. A loaded split has at least one.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// A view of one image as the model takes it, (channel, row, column).
    ///
    /// # Errors
    /// When it is not in memory, and its file has changed or is gone.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn image(&self, index: usize, view: View) -> Result<Cow<'_, [u8]>, DataError> {
        let (from, bytes) = self.stored(index)?;
        Ok(self.viewer.view(bytes, from, view))
    }

    /// The principal components of the colours of all images, if they have noise.
    fn colours(&self) -> Option<Colours> {
        if self.viewer.recipe.transforms.colour_noise == 0.0 {
            return None;
        }
        let sums = match &self.pictures {
            Pictures::Same(images) => {
                let bytes = images.as_slice().expect("the constructor asserts standard layout");
                let images = bytes.par_chunks_exact(images.len() / images.dim().0).map(ColourSums::of);
                images.reduce(ColourSums::default, |mut sums, other| {
                    sums.add(&other);
                    sums
                })
            }
            Pictures::Each(cache, _) => *cache.colour_sums(),
        };
        Some(sums.colours())
    }

    /// One image before it is cropped: its extents and bytes.
    fn stored(&self, index: usize) -> Result<(Shape, Cow<'_, [u8]>), DataError> {
        match &self.pictures {
            Pictures::Same(images) => {
                let (count, channels, height, width) = images.dim();
                assert!(index < count, "image {index} of {count}");
                let (shape, size) = (Shape { channels, height, width }, channels * height * width);
                let bytes = images.as_slice().expect("the constructor asserts standard layout");
                Ok((shape, Cow::Borrowed(&bytes[index * size..(index + 1) * size])))
            }
            Pictures::Each(cache, chosen) => {
                let (shape, _) = cache.facts(chosen[index]);
                Ok((shape, cache.bytes(chosen[index])?))
            }
        }
    }

    /// Bytes of an image as the model takes it.
    pub(crate) fn image_bytes(&self) -> usize {
        self.shape().len()
    }

    /// Who prepares the images, if they are not all in memory, or if each is scaled whenever it is needed.
    pub(crate) fn pool(&self) -> Option<&Arc<DecodePool>> {
        match &self.pictures {
            Pictures::Each(cache, _) if self.left_on_disk() > 0 || self.viewer.recipe.draws_sizes() => {
                Some(cache.pool())
            }
            _ => None,
        }
    }

    /// Images that are decoded, or read from the file for decoded images, whenever they are needed.
    pub(crate) fn left_on_disk(&self) -> usize {
        match &self.pictures {
            Pictures::Same(_) => 0,
            Pictures::Each(cache, chosen) => chosen.iter().filter(|index| !cache.is_in_memory(**index)).count(),
        }
    }

    /// How long threads have prepared images of files so far.
    pub fn times(&self) -> StageTimes {
        match &self.pictures {
            Pictures::Same(_) => StageTimes::default(),
            Pictures::Each(cache, _) => cache.pool().times(),
        }
    }

    /// The class of one image.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn label(&self, index: usize) -> u16 {
        self.labels[index]
    }

    /// The file of one image, unless it is in an array. That of a row of a table is the table and the row's name.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn file(&self, index: usize) -> Option<&Path> {
        match &self.pictures {
            Pictures::Same(_) => None,
            Pictures::Each(cache, chosen) => Some(cache.file(chosen[index])),
        }
    }

    /// All labels, in the order of the images.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }
}

/// SHA-256 over the dimensions, the bytes and the labels of splits. Compression and file names don't matter. Images that were scaled
/// count as they are then: each by its dimensions and by the SHA-256 of its bytes.
pub(super) fn fingerprint(splits: &[&Split]) -> String {
    let mut sha = Sha256::new();
    let extents = |sha: &mut Sha256, extents: &[usize]| {
        extents.iter().for_each(|extent| sha.update((*extent as u64).to_le_bytes()));
    };
    for split in splits {
        match &split.pictures {
            Pictures::Same(images) => {
                extents(&mut sha, images.shape());
                sha.update(images.as_slice().expect("the constructor asserts standard layout"));
            }
            Pictures::Each(cache, chosen) => {
                extents(&mut sha, &[chosen.len()]);
                for index in chosen.iter() {
                    let (Shape { channels, height, width }, digest) = cache.facts(*index);
                    extents(&mut sha, &[channels, height, width]);
                    sha.update(digest);
                }
            }
        }
        let labels: Vec<u8> = split.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        sha.update(labels);
    }
    hex(&sha.finalize())
}

impl Wanted {
    /// What `network` needs, in a job with the given seed.
    pub fn by(network: &Network, seed: u64) -> Self {
        let input = network.input.shape;
        let (channels, height, width) = (input.channels, input.height, input.width);
        // A mean outside of 0 to 1 is nearest to black or white.
        let mean = network.input.mean.iter().map(|mean| (mean * 255.0).round().clamp(0.0, 255.0) as u8).collect();
        let (transforms, classes) = (network.input.transforms, network.classes());
        Self { channels, height, width, transforms, mean, ten_views: false, classes, seed }
    }

    /// Images of this shape, as they are.
    #[cfg(test)]
    pub(crate) fn plain(input: Shape, classes: usize) -> Self {
        let Shape { channels, height, width } = input;
        let (transforms, mean) = (Transforms::default(), vec![0; channels]);
        Self { channels, height, width, transforms, mean, ten_views: false, classes, seed: 7 }
    }

    /// The same for images that are seen without a draw.
    pub(crate) fn without_draws(&self) -> Self {
        Self { transforms: self.transforms.without_draws(), ..self.clone() }
    }

    /// How an image is kept.
    pub(crate) fn recipe(&self) -> Recipe {
        Recipe { input: self.input(), transforms: self.transforms, keeps_margins: self.ten_views }
    }

    /// `is_scaled` says whether images are kept in the size that is cropped.
    fn viewer(&self, is_scaled: bool) -> Viewer {
        Viewer { recipe: self.recipe(), is_scaled, mean: self.mean.clone(), colours: None }
    }

    /// The extents of one image, as the model has them.
    pub(crate) fn input(&self) -> Shape {
        Shape { channels: self.channels, height: self.height, width: self.width }
    }
}
