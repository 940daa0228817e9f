//! Fashion-MNIST: where it may lie on a machine, how it is fetched otherwise, and the subset that is in the binary.
//!
//! Files that are found on disk aren't compared with known checksums, since distributions pack them anew; their
//! headers and sizes are checked instead. The environment is read in one place, [`Places::of_this_machine`].

use convoy_common::chain::chain;
use std::env;
use std::path::{Path, PathBuf};

use super::download::{self, Remote};
use super::folder::{self, Parsed, Splits};
use super::{DataError, DataSet, ImageShape, Wanted, fingerprint, idx};

/// What the labels mean.
pub const CLASS_NAMES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

pub(super) const SHAPE: ImageShape = ImageShape { channels: 1, height: 28, width: 28 };
pub(super) const TRAIN_COUNT: usize = 60_000;
pub(super) const TEST_COUNT: usize = 10_000;

/// The folder's name wherever data sets are kept.
const FOLDER: &str = "fashion-mnist";

/// The directories in which Fashion-MNIST is looked for, in this order.
#[derive(Debug, Clone)]
pub struct Places {
    /// The job's own: `data/fashion-mnist` below it.
    pub working_dir: PathBuf,
    /// The user's cache: `convoy/fashion-mnist` below it, which is also where a download goes. None: no download.
    pub cache_dir: Option<PathBuf>,
    /// The machine's data sets: `fashion-mnist` below it.
    pub system_dir: PathBuf,
    /// Whether to leave the network alone.
    pub offline: bool,
}

impl Places {
    /// The working directory, the user's cache directory as the XDG specification has it, and where Debian puts its
    /// package `dataset-fashion-mnist`.
    pub fn of_this_machine(offline: bool) -> Self {
        // The specification asks to ignore relative paths, which an empty one is as well.
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Places {
            working_dir: PathBuf::from("."),
            cache_dir: absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache"))),
            system_dir: PathBuf::from("/usr/share/datasets"),
            offline,
        }
    }

    fn cache_folder(&self) -> Option<PathBuf> {
        Some(self.cache_dir.as_ref()?.join("convoy").join(FOLDER))
    }

    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let working = self.working_dir.join("data").join(FOLDER);
        [Some(working), self.cache_folder(), Some(self.system_dir.join(FOLDER))].into_iter().flatten()
    }
}

/// The whole set from the first folder that has it, or else from the network, or else the bundled subset.
///
/// A folder that lacks files is passed over, which the notice says; one that has all four and is damaged is an error, since
/// training on something else would hide it.
pub(super) fn auto(wanted: &Wanted, places: &Places, remote: &Remote) -> Result<DataSet, DataError> {
    check_model(wanted)?;
    let mut reasons = Vec::new();
    for folder in places.folders() {
        match folder::find(&folder) {
            Ok(files) => return whole(files, &folder, wanted),
            Err(DataError::FolderMissing { .. }) => {}
            // What the cache lacks is for the download to say.
            Err(_) if places.cache_folder().as_ref() == Some(&folder) => {}
            Err(unusable) => reasons.push(chain(&unusable)),
        }
    }
    match fetch(places, remote) {
        Ok(folder) => whole(folder::find(&folder)?, &folder, wanted),
        Err(why) => {
            reasons.push(why);
            subset(wanted, Some(&reasons.join("; ")))
        }
    }
}

/// The subset in the binary.
pub(super) fn bundled(wanted: &Wanted) -> Result<DataSet, DataError> {
    check_model(wanted)?;
    subset(wanted, None)
}

fn check_model(wanted: &Wanted) -> Result<(), DataError> {
    if wanted.shape() == SHAPE && wanted.classes == CLASS_NAMES.len() {
        return Ok(());
    }
    Err(DataError::NotForThisModel { wanted: wanted.shape(), wanted_classes: wanted.classes })
}

fn whole(files: folder::Files, folder: &Path, wanted: &Wanted) -> Result<DataSet, DataError> {
    let splits = folder::read(files, wanted)?;
    let (train, test) = (splits.train.len(), splits.test.len());
    if (train, test) != (TRAIN_COUNT, TEST_COUNT) {
        return Err(DataError::NotFashionMnist { folder: folder.to_path_buf(), train, test });
    }
    Ok(data_set(splits, format!("Fashion-MNIST in {}", folder.display()), None))
}

/// Downloads what the cache lacks and returns the cache's folder, or the reason in words for the notice.
fn fetch(places: &Places, remote: &Remote) -> Result<PathBuf, String> {
    if places.offline {
        return Err("downloads are off".into());
    }
    let folder = places.cache_folder().ok_or("there is no cache directory to download it to")?;
    download::fetch_missing(&folder, remote).map_err(|error| chain(&error))?;
    Ok(folder)
}

fn subset(wanted: &Wanted, why: Option<&str>) -> Result<DataSet, DataError> {
    let splits = folder::check(BUNDLED_TRAIN.parse()?, BUNDLED_TEST.parse()?, wanted)?;
    let why = why.map(|why| format!(", as the whole set isn't on this machine ({why})")).unwrap_or_default();
    let notice = format!(
        "using the bundled {} of Fashion-MNIST's {TRAIN_COUNT} training images{why}; for all of them, apt install \
         dataset-fashion-mnist, or put the four files into ./data/{FOLDER}",
        splits.train.len(),
    );
    Ok(data_set(splits, "the subset of Fashion-MNIST that is bundled with Convoy".into(), Some(notice)))
}

fn data_set(splits: Splits, name: String, notice: Option<String>) -> DataSet {
    let Splits { train, test } = splits;
    let origin = format!("{name}: {} train and {} test images of {SHAPE}", train.len(), test.len());
    let fingerprint = fingerprint(&train, &test);
    DataSet { train, test, origin, notice, fingerprint }
}

/// One split in the binary; `coordinator/data/make_subset.py` wrote it.
struct Bundled {
    images: &'static [u8],
    images_name: &'static str,
    labels: &'static [u8],
    labels_name: &'static str,
}

/// Names the files of one split and compiles them in.
macro_rules! bundled {
    ($split:literal) => {
        Bundled {
            images: include_bytes!(concat!("../../data/fashion-mnist-subset/", $split, "-images-idx3-ubyte.gz")),
            images_name: concat!("bundled ", $split, "-images-idx3-ubyte.gz"),
            labels: include_bytes!(concat!("../../data/fashion-mnist-subset/", $split, "-labels-idx1-ubyte.gz")),
            labels_name: concat!("bundled ", $split, "-labels-idx1-ubyte.gz"),
        }
    };
}

static BUNDLED_TRAIN: Bundled = bundled!("train");
static BUNDLED_TEST: Bundled = bundled!("t10k");

impl Bundled {
    fn parse(&self) -> Result<Parsed, DataError> {
        let (images_file, labels_file) = (PathBuf::from(self.images_name), PathBuf::from(self.labels_name));
        Ok(Parsed {
            images: idx::parse_images(self.images, &images_file)?,
            images_file,
            labels: idx::parse_labels(self.labels, &labels_file)?,
            labels_file,
        })
    }
}
