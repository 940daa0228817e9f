//! What other people's readers see in the same files: torchvision's folders, CIFAR and transforms, pyarrow, Pillow, and the augmentation of
//! the AlexNet paper, rewritten in NumPy (`readers/expected.py`).
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use convoy_common::model::Network;
use convoy_dataset::{DataSet, DataSource, Draw, Places, Reading, Split, TEN, View, Wanted, load};
use serde::Deserialize;
use support::{output_of, real_images, said, skip};
use tempfile::TempDir;

/// Decoders of JPEG round the inverse transform differently, and enlarge chroma differently: by so many levels at most in these images, and by
/// so many on average.
const JPEG_MOST: u8 = 6;
const JPEG_MEAN: f64 = 0.5;
/// Pillow rounds between the two directions of scaling as fast_image_resize does, but not always to the same level.
const SCALED_MOST: u8 = 1;

/// What another reader saw.
struct Expected {
    record: Record,
    /// (image, channel, row, column).
    pixels: Vec<u8>,
}

#[derive(Deserialize)]
struct Record {
    labels: Vec<u16>,
    files: Vec<PathBuf>,
    classes: Vec<String>,
}

/// Sets of images, and what others see in them.
struct Case {
    folder: TempDir,
    /// Folders with real images: of signs, and of the test images of CIFAR-10.
    real: Option<[PathBuf; 2]>,
}

impl Case {
    /// None, with a message, if this machine lacks the other readers.
    fn new() -> Option<Self> {
        Self::with(|_| None)
    }

    /// With real images, if they are here.
    fn with(real: impl Fn(&Path) -> Option<[PathBuf; 2]>) -> Option<Self> {
        let Some(python) = std::env::var_os("CONVOY_PYTHON").filter(|python| !python.is_empty()) else {
            skip("CONVOY_PYTHON names no Python with torchvision, pyarrow and Pillow");
            return None;
        };
        let imports = ["-c", "import torchvision, pyarrow, PIL"];
        if !Command::new(&python).args(imports).output().unwrap().status.success() {
            skip("this Python has no torchvision, pyarrow or Pillow");
            return None;
        }
        let folder = TempDir::new().unwrap();
        let real = real(folder.path());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers/expected.py");
        let mut command = Command::new(&python);
        command.arg(script).arg(folder.path()).args(real.iter().flatten());
        let made = output_of(&mut command);
        assert!(made.status.success(), "{}", said(&made));
        Some(Self { folder, real })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn expected(&self, name: &str) -> Expected {
        let record = serde_json::from_slice(&fs::read(self.path(&format!("{name}.json"))).unwrap()).unwrap();
        Expected { record, pixels: fs::read(self.path(&format!("{name}.bin"))).unwrap() }
    }
}

/// A set as a model with this input sees it.
fn seen(place: &Path, input: &str, classes: usize, ten_views: bool) -> DataSet {
    let text = format!(
        "name = \"reader\"\ntowers = 1\ninput = {{ channels = 3, {input} }}\n[[layer]]\nkind = \"linear\"\nname = \"fc\"\nunits = {classes}\n"
    );
    let wanted = Wanted { ten_views, ..Wanted::by(&Network::parse(&text).unwrap(), 9) };
    // Other readers do not divide a folder. Both parts together are compared with what they see, so any share will do.
    let reading = Reading { test_share: 0.5, ..Reading::default() };
    load(&DataSource::Folder(place.to_owned()), &wanted, &Places::of_this_machine(true), &reading).unwrap()
}

/// The images of both splits by their files, in the order of torchvision.
fn all_of<'a>(set: &'a DataSet, root: &Path, files: &[PathBuf]) -> Vec<(&'a Split, usize)> {
    let splits = [&set.train, &set.test];
    let found = splits.into_iter().flat_map(|split| (0..split.len()).map(move |index| (split, index)));
    let mut by_file: std::collections::BTreeMap<PathBuf, (&Split, usize)> = found
        .map(|(split, index)| (split.file(index).unwrap().strip_prefix(root).unwrap().to_owned(), (split, index)))
        .collect();
    let all = files
        .iter()
        .map(|file| by_file.remove(file).unwrap_or_else(|| panic!("{} is missing", file.display())))
        .collect();
    assert!(by_file.is_empty(), "images that torchvision does not see: {by_file:?}");
    all
}

/// The largest and the mean difference of images from those that another reader saw.
fn difference(images: &[(&Split, usize)], view: impl Fn(usize) -> View, pixels: &[u8]) -> (u8, f64) {
    let (mut largest, mut sum, mut at) = (0, 0u64, 0);
    for (place, (split, index)) in images.iter().enumerate() {
        for byte in split.image(*index, view(place)).unwrap().iter() {
            let apart = byte.abs_diff(pixels[at]);
            (largest, sum, at) = (largest.max(apart), sum + u64::from(apart), at + 1);
        }
    }
    assert_eq!(at, pixels.len(), "as many pixels");
    (largest, sum as f64 / at as f64)
}

fn check_folder(case: &Case, name: &str, root: &Path, input: &str) -> (u8, f64) {
    let expected = case.expected(name);
    let set = seen(root, input, expected.record.classes.len(), false);
    assert_eq!(set.classes, expected.record.classes, "{name}: classes in their order");
    let images = all_of(&set, root, &expected.record.files);
    for ((split, index), label) in images.iter().zip(&expected.record.labels) {
        assert_eq!(split.label(*index), *label, "{name}: {:?}", split.file(*index));
    }
    // Within a split, files have the order of torchvision.
    for split in [&set.train, &set.test] {
        let files = images.iter().filter(|(of, _)| std::ptr::eq(*of, split)).map(|(_, index)| *index);
        assert!(files.eq(0..split.len()), "{name}: the order of files");
    }
    let found = difference(&images, |_| View::Centre, &expected.pixels);
    eprintln!("{name}: {} images differ by at most {} levels, on average by {:.4}", images.len(), found.0, found.1);
    found
}

#[test]
fn folders_have_the_classes_files_and_pixels_that_torchvision_sees() {
    let Some(case) = Case::with(real_images) else { return };
    assert_eq!(check_folder(&case, "png", &case.path("png"), "height = 29, width = 37"), (0, 0.0));
    let (most, mean) = check_folder(&case, "jpeg", &case.path("jpeg"), "height = 29, width = 37");
    assert!(most <= JPEG_MOST && mean <= JPEG_MEAN);
    let (most, mean) = check_folder(&case, "sizes", &case.path("sizes"), "height = 20, width = 20, resize = 24");
    assert!(most <= SCALED_MOST && mean < 0.2);
    if let Some([signs, photos]) = &case.real {
        let (most, mean) = check_folder(&case, "photos", photos, "height = 32, width = 32");
        assert!(most <= JPEG_MOST && mean <= JPEG_MEAN);
        let (most, mean) = check_folder(&case, "signs", signs, "height = 64, width = 64, resize = 64");
        assert!(most <= JPEG_MOST && mean <= JPEG_MEAN);
    }
}

#[test]
fn orientations_are_those_of_pillow() {
    let Some(case) = Case::new() else { return };
    let expected = case.expected("exif");
    let worst = |orient: &str| {
        let set = seen(&case.path("exif"), &format!("height = 24, width = 31, orient = \"{orient}\""), 2, false);
        let files = (0..2).flat_map(|class| (1..9).map(move |value| PathBuf::from(format!("{class}/{value}.jpg"))));
        difference(&all_of(&set, &case.path("exif"), &files.collect::<Vec<_>>()), |_| View::Centre, &expected.pixels)
    };
    let (most, mean) = worst("exif");
    assert!(most <= JPEG_MOST && mean <= JPEG_MEAN, "{most}, {mean}");
    // The negative control: as stored, most images lie on their side.
    assert!(worst("stored").1 > 10.0 * JPEG_MEAN);
}

#[test]
fn ten_views_are_those_of_torchvision() {
    let Some(case) = Case::new() else { return };
    let (expected, files) = (case.expected("ten"), case.expected("sizes").record.files);
    let set = seen(&case.path("sizes"), "height = 20, width = 20, resize = 24", 2, true);
    // Both parts keep their margins.
    let images: Vec<(&Split, usize)> =
        all_of(&set, &case.path("sizes"), &files).into_iter().flat_map(|image| [image; TEN]).collect();
    let (most, mean) = difference(&images, |place| View::OfTen(place % TEN), &expected.pixels);
    assert!(most <= SCALED_MOST && mean < 0.2, "{most}, {mean}");
    // The negative control: the views in another order.
    let (most, _) = difference(&images, |place| View::OfTen((place + 1) % TEN), &expected.pixels);
    assert!(most > 50);
}

#[test]
fn what_is_drawn_is_what_the_paper_says() {
    let Some(case) = Case::new() else { return };
    let input = "height = 20, width = 20, resize = 24, square = true, crop = \"random\", mirror = true, \
                 colour_noise = 0.1, cutout = 7, mean = [0.2, 0.4, 0.8], std = [1, 1, 1]";
    let set = seen(&case.path("drawn"), input, 2, false);
    let images: Vec<(&Split, usize)> = (0..set.train.len()).map(|index| (&set.train, index)).collect();
    let expected = case.expected("drawn");
    assert_eq!(set.train.labels(), expected.record.labels);
    let drawn = |epoch| move |image| View::Drawn(Draw::new(9, epoch, image));
    assert_eq!(difference(&images, drawn(3), &expected.pixels), (0, 0.0));
    // The negative control: another epoch.
    assert!(difference(&images, drawn(4), &expected.pixels).1 > 5.0);
}

#[test]
fn a_random_resized_crop_is_that_of_pillow() {
    let Some(case) = Case::new() else { return };
    let input = "height = 20, width = 20, crop = \"random-resized\"";
    let set = seen(&case.path("sizes"), input, 2, false);
    let (expected, files) = (case.expected("resized"), case.expected("sizes").record.files);
    let images = all_of(&set, &case.path("sizes"), &files);
    let drawn = |epoch| move |image| View::Drawn(Draw::new(9, epoch, image));
    // Images of the test part have no draws.
    let is_trained = |place: usize| std::ptr::eq(images[place].0, &set.train);
    let size = 20 * 20 * 3;
    let mut compared = 0;
    for place in (0..images.len()).filter(|place| is_trained(*place)) {
        let pixels = &expected.pixels[place * size..][..size];
        let (most, mean) = difference(&images[place..=place], |_| drawn(3)(place), pixels);
        assert!(most <= SCALED_MOST && mean < 0.3, "{place}: {most}, {mean}");
        // The negative control: another epoch.
        assert!(difference(&images[place..=place], |_| drawn(4)(place), pixels).0 > SCALED_MOST);
        compared += 1;
    }
    assert!(compared > 10, "{compared} images are for training");
}

#[test]
fn the_python_form_of_cifar_100_is_that_of_torchvision() {
    let Some(case) = Case::new() else { return };
    let expected = case.expected("hundred");
    let set = seen(&case.path("hundred"), "height = 32, width = 32", 100, false);
    assert_eq!((set.test.labels(), &set.classes), (&*expected.record.labels, &expected.record.classes));
    let images: Vec<(&Split, usize)> = (0..set.test.len()).map(|index| (&set.test, index)).collect();
    assert_eq!(difference(&images, |_| View::Centre, &expected.pixels), (0, 0.0));
    let coarse = seen(&case.path("hundred"), "height = 32, width = 32", 20, false);
    assert!(coarse.test.labels().iter().copied().eq((0..20).rev()));
}

#[test]
fn cifar_is_that_of_torchvision_in_every_form() {
    let Some(case) = Case::new() else { return };
    for place in ["python", "python/cifar-10-batches-py", "binary", "cifar-10-python.tar.gz", "cifar-10-binary.tar"] {
        let set = seen(&case.path(place), "height = 32, width = 32", 10, false);
        for (name, split) in [("cifar-train", &set.train), ("cifar-test", &set.test)] {
            let expected = case.expected(name);
            assert_eq!((split.labels(), &set.classes), (&*expected.record.labels, &expected.record.classes), "{place}");
            let images: Vec<(&Split, usize)> = (0..split.len()).map(|index| (split, index)).collect();
            assert_eq!(difference(&images, |_| View::Centre, &expected.pixels), (0, 0.0), "{place}, {name}");
        }
    }
}

#[test]
fn tables_have_the_rows_that_pyarrow_reads() {
    let Some(case) = Case::new() else { return };
    let set = seen(&case.path("table"), "height = 17, width = 23", 2, false);
    for (name, split) in [("table-train", &set.train), ("table-test", &set.test)] {
        let expected = case.expected(name);
        assert_eq!((split.labels(), &set.classes), (&*expected.record.labels, &expected.record.classes));
        let images: Vec<(&Split, usize)> = (0..split.len()).map(|index| (split, index)).collect();
        // A third of the images are JPEG.
        let (most, mean) = difference(&images, |_| View::Centre, &expected.pixels);
        assert!(most <= JPEG_MOST && mean <= JPEG_MEAN, "{name}: {most}, {mean}");
    }
}
