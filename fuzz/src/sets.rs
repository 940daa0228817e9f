//! Sets of images: files with somebody's bytes in a folder of their own, and all that a job does with a set before it trains.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use convoy_common::model::{Crop, Orient, Transforms};
use convoy_dataset::{
    BadImages, DataSource, Draw, Places, Reading, Resources, Split, TEN, View, Wanted, class_count, load, load_test,
    unlabelled,
};
use tempfile::TempDir;

use crate::checked;

/// Rows and columns of the model's input.
const SIDE: usize = 8;
/// The most images of a set that are looked at.
const IMAGES: usize = 16;

thread_local! {
    static FOLDER: RefCell<TempDir> = RefCell::new(TempDir::new().expect("a folder for the files of one input"));
}

/// Writes files by these names into a folder, and hands it to `open`.
pub fn with_files(files: &[(&str, &[u8])], open: impl FnOnce(&Path)) {
    FOLDER.with_borrow(|folder| {
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).expect("the folder is the fuzzer's own");
        }
        open(folder.path());
    });
}

/// Opens a set as a job does: the number of its classes, all images, and the test images alone.
pub fn open_set(place: PathBuf) {
    let (source, places, reading) = (DataSource::Folder(place), places(), reading());
    let classes = checked(class_count(&source, &reading)).flatten().unwrap_or(10);
    let wanted = wanted(3, classes);
    if let Some(set) = checked(load(&source, &wanted, &places, &reading)) {
        look_at(&set.train);
        look_at(&set.test);
    }
    if let Some(part) = checked(load_test(&source, &Wanted { ten_views: true, ..wanted }, &places, &reading)) {
        look_at(&part.images);
    }
}

/// Opens the test images of a set alone.
pub fn open_test_images(place: PathBuf, channels: usize, classes: usize) {
    if let Some(part) =
        checked(load_test(&DataSource::Folder(place), &wanted(channels, classes), &places(), &reading()))
    {
        look_at(&part.images);
    }
}

/// Opens an image as `convoy predict` does.
pub fn open_image(file: PathBuf) {
    if let Some(images) = checked(unlabelled(&[file], &wanted(3, 10), &resources())) {
        look_at(&images);
    }
}

fn look_at(images: &Split) {
    for index in 0..images.len().min(IMAGES) {
        for view in [View::Centre, View::Drawn(Draw::new(1, 0, index)), View::OfTen(TEN - 1)] {
            if let Some(image) = checked(images.image(index, view)) {
                assert_eq!(image.len(), images.shape().len(), "an image of another size");
            }
        }
    }
}

/// A model that uses every kind of transform but the random resized crop, which would leave out scaling.
fn wanted(channels: usize, classes: usize) -> Wanted {
    let transforms = Transforms {
        orient: Orient::Exif,
        resize: Some(SIDE),
        square: true,
        crop: Crop::Random { pad: 1 },
        mirror: true,
        colour_noise: 0.1,
        cutout: Some(3),
    };
    let (height, width, mean) = (SIDE, SIDE, vec![100; channels]);
    Wanted { channels, height, width, transforms, mean, ten_views: false, classes, seed: 1 }
}

fn reading() -> Reading {
    Reading { test_share: 0.5, bad_images: BadImages::Skip, format: None }
}

fn places() -> Places {
    let (working_dir, system_dir) = (PathBuf::from("nowhere"), PathBuf::from("nowhere"));
    Places { working_dir, cache_dir: None, system_dir, offline: true, resources: resources() }
}

/// One thread, and so little memory that most images are decoded again.
fn resources() -> Resources {
    Resources { threads: 1, memory: 1 << 10, cache: None }
}
