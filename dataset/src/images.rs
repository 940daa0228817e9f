//! A folder of image files as a data set. Every file is decoded once before a job begins, so that bad ones are known then.
//!
//! Not here: which files there are (`classes`), and decoding (`decode`).

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::cache::{Decoded, ImageCache};
use crate::classes::{self, Found, Labelled};
use crate::decode::{BadImage, DECODERS};
use crate::error::DataError;
use crate::folder;
use crate::pool::{DecodePool, Resources};
use crate::set::{DataSet, PartSet, Split, Splits, Wanted};
use convoy_common::chain::chain;
use convoy_common::suggest;
use convoy_common::wire::printable;

/// Files for each thread that are decoded before their memory is counted. So this many images may be in memory beyond the bound.
const AT_ONCE: usize = 16;
/// Bad files that an error or a notice names.
const SHOWN_MAX: usize = 5;

/// How a folder of images is read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The share of images that are for tests, if the folder has no test images of its own.
    pub test_share: f64,
    /// What happens to files that can't be used.
    pub bad_images: BadImages,
}

/// What happens to files that can't be used as images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadImages {
    /// The job does not start.
    Stop,
    /// The set is used without them.
    Skip,
}

/// What was asked for of a [`Reading`].
#[derive(Clone, Copy, Debug, Default)]
pub struct AskedReading {
    /// The share of images that are for tests.
    pub test_share: Option<f64>,
    /// What happens to files that can't be used.
    pub bad_images: Option<BadImages>,
}

impl AskedReading {
    /// What was asked for, or else what a checkpoint remembers, or else the default.
    pub fn or(self, remembered: Option<Reading>) -> Reading {
        let otherwise = remembered.unwrap_or_default();
        Reading {
            test_share: self.test_share.unwrap_or(otherwise.test_share),
            bad_images: self.bad_images.unwrap_or(otherwise.bad_images),
        }
    }
}

impl FromStr for BadImages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stop" => Ok(BadImages::Stop),
            "skip" => Ok(BadImages::Skip),
            _ => Err(format!("unknown policy \"{text}\"{}", suggest::hint(text, &["stop", "skip"]))),
        }
    }
}

impl Default for Reading {
    fn default() -> Self {
        Self { test_share: 0.1, bad_images: BadImages::Stop }
    }
}

/// Loads both parts.
pub(super) fn load(
    folder: &Path,
    wanted: &Wanted,
    reading: &Reading,
    resources: &Resources,
) -> Result<DataSet, DataError> {
    let found = find(folder, wanted, reading)?;
    let (pool, mut room) = (Arc::new(DecodePool::new(resources)?), resources.memory);
    let (train, bad) = decoded(folder, &found.train, wanted, &pool, &mut room)?;
    let (test, bad_tests) = decoded(folder, &found.test, &wanted.without_draws(), &pool, &mut room)?;
    let bad = [bad, bad_tests].concat();
    let mut notices = told(folder, &bad, found.train.len() + found.test.len(), reading)?;
    notices.extend(found.notices.iter().cloned());
    notices.extend(folder::missing_classes(&train, wanted.classes));
    notices.extend(left_on_disk(&[&train, &test], resources));
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
    let (pool, mut room) = (Arc::new(DecodePool::new(resources)?), resources.memory);
    let (test, bad) = decoded(folder, &found.test, &wanted.without_draws(), &pool, &mut room)?;
    let mut notices = told(folder, &bad, found.test.len(), reading)?;
    notices.extend(left_on_disk(&[&test], resources));
    let mut set = PartSet::new(test, &name(folder, &found), notices);
    set.classes = found.classes;
    Ok(set)
}

/// Images of files alone, as the test images of a set without labels. `-` is standard input.
///
/// # Errors
/// Names the files that can't be used.
pub fn unlabelled(files: &[PathBuf], wanted: &Wanted, resources: &Resources) -> Result<Split, DataError> {
    let all: Vec<Labelled> = files.iter().map(|file| Labelled { file: file.clone(), label: 0 }).collect();
    let (pool, mut room) = (Arc::new(DecodePool::new(resources)?), resources.memory);
    let (split, bad) = decoded(Path::new("the given files"), &all, &wanted.without_draws(), &pool, &mut room)?;
    match bad.as_slice() {
        [] => Ok(split),
        bad => Err(DataError::BadFiles { count: bad.len(), all: files.len(), named: named(bad) }),
    }
}

fn find(folder: &Path, wanted: &Wanted, reading: &Reading) -> Result<Found, DataError> {
    if ![1, 3].contains(&wanted.channels) {
        return Err(DataError::Channels { folder: folder.to_path_buf(), wanted: wanted.channels });
    }
    let found = classes::find(folder, reading.test_share)?;
    if found.classes.len() != wanted.classes {
        let (folder, found) = (folder.to_path_buf(), found.classes.len());
        return Err(DataError::ClassCount { folder, found, wanted: wanted.classes });
    }
    Ok(found)
}

fn name(folder: &Path, found: &Found) -> String {
    let divided = if found.is_divided { ", divided by a hash of each path" } else { "" };
    format!("{} classes of image files in {}, decoded by {DECODERS}{divided}", found.classes.len(), folder.display())
}

/// The images of files, and what is wrong with files that can't be used, one line each. Images stay in memory as long as there is
/// `room`, which they make smaller.
fn decoded(
    folder: &Path,
    files: &[Labelled],
    wanted: &Wanted,
    pool: &Arc<DecodePool>,
    room: &mut usize,
) -> Result<(Split, Vec<String>), DataError> {
    let recipe = wanted.recipe();
    let (mut cache, mut labels, mut bad) = (ImageCache::new(recipe, pool.clone()), Vec::new(), Vec::new());
    for files in files.chunks(AT_ONCE * pool.threads().current_num_threads()) {
        // The order of files stays, whichever thread decodes which.
        let decode = || files.par_iter().map(|image| Decoded::read(&image.file, &recipe, pool)).collect();
        let decoded: Vec<Result<Decoded, BadImage>> = pool.threads().install(decode);
        for (image, decoded) in files.iter().zip(decoded) {
            match decoded {
                Ok(decoded) => {
                    cache.add(&image.file, decoded, room);
                    labels.push(image.label);
                }
                Err(error) => bad.push(format!("{}: {}", printable(&image.file.display().to_string()), chain(&error))),
            }
        }
    }
    if cache.len() == 0 {
        return Err(DataError::AllBad { folder: folder.to_path_buf(), named: named(&bad) });
    }
    Ok((Split::of_files(cache, labels, wanted), bad))
}

/// The notice about images that don't stay in memory.
fn left_on_disk(splits: &[&Split], resources: &Resources) -> Option<String> {
    let all: usize = splits.iter().map(|split| split.len()).sum();
    let left: usize = splits.iter().map(|split| split.left_on_disk()).sum();
    let memory = resources.memory / 1000;
    (left > 0).then(|| {
        format!(
            "{left} of {all} images do not fit into {memory} KB of memory, and are decoded whenever they are needed"
        )
    })
}

/// The notices about files that are skipped.
///
/// # Errors
/// When there are some, and they are not to be skipped.
fn told(folder: &Path, bad: &[String], all: usize, reading: &Reading) -> Result<Vec<String>, DataError> {
    if bad.is_empty() {
        return Ok(Vec::new());
    }
    let (count, named) = (bad.len(), named(bad));
    if reading.bad_images == BadImages::Stop {
        return Err(DataError::BadImages { folder: folder.to_path_buf(), count, all, named });
    }
    Ok(vec![format!("{count} of {all} files are skipped, because they can't be used as images: {named}")])
}

/// The first bad files.
fn named(bad: &[String]) -> String {
    let more = bad.len().saturating_sub(SHOWN_MAX);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    bad.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join("; ") + &more
}
