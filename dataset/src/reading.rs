//! How files become a set, where the user can choose: their format, the share of test images, and what happens to files that can't be used.
//!
//! Not here: finding the format (`layout`), and reading files (`images`, `rows`).

use std::fmt;
use std::str::FromStr;

use convoy_common::suggest;
use serde::{Deserialize, Serialize};

/// How a set of images is read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The share of images that are for tests, if the folder has no test images of its own.
    pub test_share: f64,
    /// What happens to files that can't be used.
    pub bad_images: BadImages,
    /// The format of its files. None: it is found by looking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
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

/// What the files of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A NumPy archive with the keys of MedMNIST.
    Npz,
    /// Files in the format of MNIST.
    Idx,
    /// The files of CIFAR-10 or CIFAR-100, unpacked or in an archive.
    Cifar,
    /// Parquet files with a column of images.
    Parquet,
    /// JPEG and PNG files in folders of classes.
    Images,
}

/// What was asked for of a [`Reading`].
#[derive(Clone, Copy, Debug, Default)]
pub struct AskedReading {
    /// The share of images that are for tests.
    pub test_share: Option<f64>,
    /// What happens to files that can't be used.
    pub bad_images: Option<BadImages>,
    /// The format of the files.
    pub format: Option<Format>,
}

impl AskedReading {
    /// What was asked for, or else what a checkpoint remembers, or else the default.
    pub fn or(self, remembered: Option<Reading>) -> Reading {
        let otherwise = remembered.unwrap_or_default();
        Reading {
            test_share: self.test_share.unwrap_or(otherwise.test_share),
            bad_images: self.bad_images.unwrap_or(otherwise.bad_images),
            format: self.format.or(otherwise.format),
        }
    }
}

impl Format {
    /// All of them, in the order in which they are looked for.
    pub(crate) const ALL: [Self; 5] = [Format::Npz, Format::Idx, Format::Cifar, Format::Parquet, Format::Images];

    fn name(self) -> &'static str {
        match self {
            Format::Npz => "npz",
            Format::Idx => "idx",
            Format::Cifar => "cifar",
            Format::Parquet => "parquet",
            Format::Images => "images",
        }
    }

    /// What is wrong with a place that has no set of this format.
    pub(crate) fn absence(self) -> &'static str {
        match self {
            Format::Npz => "is not a NumPy archive (.npz)",
            Format::Idx => "has no IDX files",
            Format::Cifar => "has no files of CIFAR, and is not an archive of them",
            Format::Parquet => "has no Parquet files",
            Format::Images => "has no folder for each class",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("unknown format \"{text}\"{}", suggest::hint(text, &Self::ALL.map(Self::name)));
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(unknown)
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
        Self { test_share: 0.1, bad_images: BadImages::Stop, format: None }
    }
}
