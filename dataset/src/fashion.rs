//! Fashion-MNIST: the folders in which it may be, the download, and the subset in the binary.
//!
//! Files found on disk aren't compared with known checksums, because distributions compress them again. Their headers and
//! sizes are checked instead. Only [`Places::of_this_machine`] reads the environment.

pub(super) mod facts;

use std::env;
use std::path::{Path, PathBuf};

use convoy_common::chain::chain;

use facts::{CLASS_NAMES, SHAPE, TEST_COUNT, TRAIN_COUNT};

use super::download::{self, Remote};
use super::error::DataError;
use super::folder::{self, Parsed};
use super::idx;
use super::pool::Resources;
use super::set::{DataSet, PartSet, Splits, Wanted};

/// The name of its folder in each place.
const FOLDER: &str = "fashion-mnist";

/// Where images may be on this machine: the directories in which Fashion-MNIST is looked for, in this order, and memory.
#[derive(Debug, Clone)]
pub struct Places {
    /// The working directory, which may have `data/fashion-mnist`.
    pub working_dir: PathBuf,
    /// The user's cache, which may have `convoy/fashion-mnist`. Downloads go there. None: no download.
    pub cache_dir: Option<PathBuf>,
    /// The machine's data sets, which may have `fashion-mnist`.
    pub system_dir: PathBuf,
    /// Whether downloads are forbidden.
    pub offline: bool,
    /// How images of files are kept.
    pub resources: Resources,
}

impl Places {
    /// The working directory, the user's cache directory by the XDG specification, and the directory of Debian's package
    /// `dataset-fashion-mnist`.
    pub fn of_this_machine(offline: bool) -> Self {
        // The specification says to ignore relative paths, and an empty path is relative.
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Places {
            working_dir: PathBuf::from("."),
            cache_dir: absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache"))),
            system_dir: PathBuf::from("/usr/share/datasets"),
            offline,
            resources: Resources::default(),
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

/// The complete set from the first folder that has it, or else from the network, or else the bundled subset.
pub(super) fn auto(wanted: &Wanted, places: &Places, remote: &Remote) -> Result<DataSet, DataError> {
    check_model(wanted)?;
    match locate(places, remote, folder::find)? {
        Located::In(folder, files) => whole(folder::read(files, wanted)?, &folder),
        Located::Nowhere { why } => subset(wanted, Some(&why)),
    }
}

/// The test images of the set that [`auto`] would take, without the training images.
pub(super) fn auto_test(wanted: &Wanted, places: &Places, remote: &Remote) -> Result<PartSet, DataError> {
    check_model(wanted)?;
    match locate(places, remote, folder::find_test)? {
        Located::In(folder, files) => {
            let images = folder::read_split(files, &wanted.without_draws())?;
            check_count(&folder, images.len() == TEST_COUNT, || format!("{} test images", images.len()))?;
            let set = PartSet::new(images, &format!("Fashion-MNIST in {}", folder.display()), Vec::new());
            Ok(PartSet { classes: class_names(), ..set })
        }
        Located::Nowhere { why } => subset_test(wanted, Some(&why)),
    }
}

/// The subset in the binary.
pub(super) fn bundled(wanted: &Wanted) -> Result<DataSet, DataError> {
    check_model(wanted)?;
    subset(wanted, None)
}

/// The test images of the subset in the binary.
pub(super) fn bundled_test(wanted: &Wanted) -> Result<PartSet, DataError> {
    check_model(wanted)?;
    subset_test(wanted, None)
}

/// Where the set is.
enum Located<F> {
    /// Its files, in this folder.
    In(PathBuf, F),
    /// Neither on this machine nor to be downloaded, for these reasons.
    Nowhere { why: String },
}

/// Looks in each folder for the files that `find` finds there. Downloads them if no folder has them.
///
/// A folder that lacks files is skipped, and the reasons say so. A folder with all files, one of them damaged, is an error:
/// using other files would hide the damage.
fn locate<F>(
    places: &Places,
    remote: &Remote,
    find: impl Fn(&Path) -> Result<F, DataError>,
) -> Result<Located<F>, DataError> {
    let mut reasons = Vec::new();
    for folder in places.folders() {
        match find(&folder) {
            Ok(files) => return Ok(Located::In(folder, files)),
            Err(DataError::FolderMissing { .. }) => {}
            // The download completes the cache, or says what it lacks.
            Err(_) if places.cache_folder().as_ref() == Some(&folder) => {}
            Err(unusable) => reasons.push(chain(&unusable)),
        }
    }
    match fetch(places, remote) {
        Ok(folder) => {
            let files = find(&folder)?;
            Ok(Located::In(folder, files))
        }
        Err(why) => {
            reasons.push(why);
            Ok(Located::Nowhere { why: reasons.join("; ") })
        }
    }
}

fn check_model(wanted: &Wanted) -> Result<(), DataError> {
    if wanted.input() == SHAPE && wanted.classes == CLASS_NAMES.len() {
        return Ok(());
    }
    Err(DataError::NotForThisModel { wanted: wanted.input(), wanted_classes: wanted.classes })
}

fn whole(splits: Splits, folder: &Path) -> Result<DataSet, DataError> {
    let (train, test) = (splits.train.len(), splits.test.len());
    let is_right = (train, test) == (TRAIN_COUNT, TEST_COUNT);
    check_count(folder, is_right, || format!("{train} training and {test} test images"))?;
    Ok(named(DataSet::new(splits, &format!("Fashion-MNIST in {}", folder.display()), Vec::new())))
}

fn named(set: DataSet) -> DataSet {
    DataSet { classes: class_names(), ..set }
}

fn class_names() -> Vec<String> {
    CLASS_NAMES.map(str::to_owned).to_vec()
}

fn check_count(folder: &Path, is_right: bool, found: impl FnOnce() -> String) -> Result<(), DataError> {
    if is_right { Ok(()) } else { Err(DataError::NotFashionMnist { folder: folder.to_path_buf(), found: found() }) }
}

/// Downloads what the cache lacks. Returns the folder in the cache, or for the notice why there is none.
fn fetch(places: &Places, remote: &Remote) -> Result<PathBuf, String> {
    if places.offline {
        return Err("downloads are off (CONVOY_OFFLINE)".into());
    }
    let folder = places.cache_folder().ok_or("there is no cache directory to download it to")?;
    download::fetch_missing(&folder, remote).map_err(|error| chain(&error))?;
    Ok(folder)
}

/// What the subset is called.
const SUBSET: &str = "the bundled subset of Fashion-MNIST";

fn subset(wanted: &Wanted, why: Option<&str>) -> Result<DataSet, DataError> {
    let train = folder::check(BUNDLED_TRAIN.parse()?, wanted)?;
    let test = folder::check(BUNDLED_TEST.parse()?, &wanted.without_draws())?;
    let notice = notice_of_subset(&format!("{} of Fashion-MNIST's {TRAIN_COUNT} training", train.len()), why);
    Ok(named(DataSet::new(Splits { train, test }, SUBSET, vec![notice])))
}

fn subset_test(wanted: &Wanted, why: Option<&str>) -> Result<PartSet, DataError> {
    let images = folder::check(BUNDLED_TEST.parse()?, &wanted.without_draws())?;
    let notice = notice_of_subset(&format!("{} of Fashion-MNIST's {TEST_COUNT} test", images.len()), why);
    Ok(PartSet { classes: class_names(), ..PartSet::new(images, SUBSET, vec![notice]) })
}

fn notice_of_subset(which: &str, why: Option<&str>) -> String {
    let why = why.map(|why| format!(", because the whole set is not on this machine ({why})")).unwrap_or_default();
    format!(
        "using the bundled {which} images{why}; to use all of them, run `apt install dataset-fashion-mnist`, or put the \
         four files into ./data/{FOLDER}"
    )
}

/// One split in the binary. `dataset/make_subset.py` made its files.
struct Bundled {
    images: &'static [u8],
    images_name: &'static str,
    labels: &'static [u8],
    labels_name: &'static str,
}

/// Compiles the files of one split into the binary.
macro_rules! bundled {
    ($split:literal) => {
        Bundled {
            images: include_bytes!(concat!("../fashion-mnist-subset/", $split, "-images-idx3-ubyte.gz")),
            images_name: concat!("bundled ", $split, "-images-idx3-ubyte.gz"),
            labels: include_bytes!(concat!("../fashion-mnist-subset/", $split, "-labels-idx1-ubyte.gz")),
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
