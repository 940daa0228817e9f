//! How image files become a set, where the user can choose: the share of test images, and what happens to files that can't be used.
//!
//! Not here: reading them (`images`, `rows`).

use std::str::FromStr;

use convoy_common::suggest;
use serde::{Deserialize, Serialize};

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
