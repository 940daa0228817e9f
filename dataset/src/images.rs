//! A folder of image files as a data set. Every file is decoded once before a job begins, so that bad ones are known then.
//!
//! Not here: which files there are (`classes`), and decoding (`decode`).

use std::path::{Path, PathBuf};

use crate::cache::Origin;
use crate::classes::{self, Found, Labelled};
use crate::decode::DECODERS;
use crate::error::DataError;
use crate::folder;
use crate::loader::{Bad, Encoded, Loader, Means, check_model, told};
use crate::pool::Resources;
use crate::reading::Reading;
use crate::set::{DataSet, PartSet, Split, Splits, Wanted};

/// The name of the file that is read from standard input.
const STANDARD_INPUT: &str = "-";

/// Loads both parts.
pub(super) fn load(
    folder: &Path,
    wanted: &Wanted,
    reading: &Reading,
    resources: &Resources,
) -> Result<DataSet, DataError> {
    let found = find(folder, wanted, reading)?;
    let mut means = Means::new(resources)?;
    let (train, bad) = decoded(folder, &found.train, wanted, &mut means)?;
    let (test, bad_tests) = decoded(folder, &found.test, &wanted.without_draws(), &mut means)?;
    let mut notices = told(folder, &bad.and(bad_tests), found.train.len() + found.test.len(), reading)?;
    notices.extend(found.notices.iter().cloned());
    notices.extend(folder::missing_classes(&train, wanted.classes));
    notices.extend(means.left_on_disk(&[&train, &test]));
    let mut set = DataSet::new(Splits { train, test }, &name(folder, &found), notices);
    set.classes = found.classes;
    Ok(set)
}

/// Loads the test images alone.
pub(super) fn load_test(
    folder: &Path,
    wanted: &Wanted,
    reading: &Reading,
    resources: &Resources,
) -> Result<PartSet, DataError> {
    let found = find(folder, wanted, reading)?;
    let mut means = Means::new(resources)?;
    let (test, bad) = decoded(folder, &found.test, &wanted.without_draws(), &mut means)?;
    let mut notices = told(folder, &bad, found.test.len(), reading)?;
    notices.extend(means.left_on_disk(&[&test]));
    let mut set = PartSet::new(test, &name(folder, &found), notices);
    set.classes = found.classes;
    Ok(set)
}

/// Images of files alone, as the test images of a set without labels. `-` is standard input.
///
/// # Errors
/// Names the files that can't be used.
pub fn unlabelled(files: &[PathBuf], wanted: &Wanted, resources: &Resources) -> Result<Split, DataError> {
    let origin = |file: &PathBuf| match file.as_os_str() == STANDARD_INPUT {
        true => Origin::StandardInput,
        false => Origin::File(file.clone()),
    };
    let images = files.iter().map(|file| Encoded { origin: origin(file), label: 0 }).collect();
    let (wanted, mut means) = (wanted.without_draws(), Means::new(resources)?);
    let mut loader = Loader::new(&wanted, &means);
    loader.add(images, &mut means)?;
    match loader.split(Path::new("the given files"), &wanted)? {
        (split, bad) if bad.count == 0 => Ok(split),
        (_, bad) => Err(DataError::BadFiles { count: bad.count, all: files.len(), named: bad.named() }),
    }
}

fn find(folder: &Path, wanted: &Wanted, reading: &Reading) -> Result<Found, DataError> {
    let found = classes::find(folder, reading.test_share)?;
    check_model(folder, found.classes.len(), wanted)?;
    Ok(found)
}

fn name(folder: &Path, found: &Found) -> String {
    let divided = if found.is_divided { ", divided by a hash of each path" } else { "" };
    format!("{} classes of image files in {}, decoded by {DECODERS}{divided}", found.classes.len(), folder.display())
}

/// The images of files, and what is wrong with those that can't be used, one line each.
fn decoded(folder: &Path, files: &[Labelled], wanted: &Wanted, means: &mut Means) -> Result<(Split, Bad), DataError> {
    let mut loader = Loader::new(wanted, means);
    let encoded = |image: &Labelled| Encoded { origin: Origin::File(image.file.clone()), label: image.label };
    loader.add(files.iter().map(encoded).collect(), means)?;
    loader.split(folder, wanted)
}
