//! Which format the images of a folder or a file have, found by looking or given by name, and the reader for it.
//!
//! Not here: the readers (`folder`, `cifar`, `images`, `npz`, `rows`).

use std::path::Path;

use crate::error::DataError;
use crate::pool::Resources;
use crate::reading::{Format, Reading};
use crate::rows::RowFiles;
use crate::set::{DataSet, PartSet, Wanted};
use crate::start::start_of;
use crate::{archive, cifar, classes, folder, images, npz, rows};

/// The bytes of a file that an error shows.
const START: usize = 8;

/// What a folder or a file holds.
pub(crate) enum Layout {
    Idx,
    Cifar(cifar::Cifar),
    ImageFiles,
    Npz,
    Rows(RowFiles),
}

impl Layout {
    /// Looks for one format, or for all of them.
    ///
    /// # Errors
    /// When there is none, or when something can't be read.
    pub(crate) fn of(place: &Path, format: Option<Format>) -> Result<Self, DataError> {
        if !place.is_file() {
            folder::check_folder(place)?;
        }
        let formats = format.as_ref().map_or(&Format::ALL[..], std::slice::from_ref);
        for format in formats {
            if let Some(found) = Self::found(*format, place)? {
                return Ok(found);
            }
        }
        if let Some(format) = format {
            return Err(DataError::NotOfFormat { place: place.to_path_buf(), format });
        }
        if place.is_file() {
            let file = place.to_path_buf();
            return Err(match start_of(place, START) {
                Ok(start) => DataError::NotASet { file, start },
                Err(source) => DataError::Read { file, source },
            });
        }
        Err(DataError::NoClasses { folder: place.to_path_buf() })
    }

    /// What a place holds in one format, if it does.
    fn found(format: Format, place: &Path) -> Result<Option<Self>, DataError> {
        Ok(match format {
            Format::Npz => npz::is_here(place).then_some(Layout::Npz),
            Format::Idx => folder::is_here(place).then_some(Layout::Idx),
            Format::Cifar if archive::is_here(place) => Some(Layout::Cifar(cifar::in_archive(place)?)),
            Format::Cifar => cifar::find(place).map(Layout::Cifar),
            Format::Parquet => rows::find(place)?.map(Layout::Rows),
            Format::Images => classes::is_here(place).then_some(Layout::ImageFiles),
        })
    }

    /// The number of classes, if the files say so before a model is known: all but IDX files do.
    ///
    /// # Errors
    /// When the files can't be read.
    pub(crate) fn class_count(&self, place: &Path, reading: &Reading) -> Result<Option<usize>, DataError> {
        match self {
            Layout::Idx => Ok(None),
            Layout::Cifar(cifar) => Ok(Some(cifar.class_count())),
            Layout::ImageFiles => Ok(Some(classes::find(place, reading.test_share)?.classes.len())),
            Layout::Npz => npz::class_count(place).map(Some),
            Layout::Rows(rows) => rows.class_count().map(Some),
        }
    }

    /// All images.
    ///
    /// # Errors
    /// When files can't be used, or don't fit the model.
    pub(crate) fn load(
        &self,
        place: &Path,
        wanted: &Wanted,
        reading: &Reading,
        resources: &Resources,
    ) -> Result<DataSet, DataError> {
        match self {
            Layout::Idx => folder::load(place, wanted),
            Layout::Cifar(found) => cifar::load(found, wanted),
            Layout::ImageFiles => images::load(place, wanted, reading, resources),
            Layout::Npz => npz::load(place, wanted),
            Layout::Rows(rows) => rows.load(wanted, reading, resources),
        }
    }

    /// The test images alone.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn load_test(
        &self,
        place: &Path,
        wanted: &Wanted,
        reading: &Reading,
        resources: &Resources,
    ) -> Result<PartSet, DataError> {
        match self {
            Layout::Idx => folder::load_test(place, wanted),
            Layout::Cifar(found) => cifar::load_test(found, wanted),
            Layout::ImageFiles => images::load_test(place, wanted, reading, resources),
            Layout::Npz => npz::load_test(place, wanted),
            Layout::Rows(rows) => rows.load_test(wanted, reading, resources),
        }
    }
}
