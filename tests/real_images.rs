//! Real photographs as people have them: a folder of JPEG files without test images, and how well a preset tells them apart.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use serde_json::Value;
use support::{real_images, succeed};
use tempfile::TempDir;

/// The least accuracy on the tenth of the photographs that is for tests.
const ACCURACY: f64 = 0.93;

/// Hands that show digits, 2,062 photographs, in a few minutes.
#[test]
fn signs_are_told_apart() {
    let folder = TempDir::new().unwrap();
    let Some([signs, _]) = real_images(folder.path()) else { return };
    let out = folder.path().join("run");
    let flags =
        "train --model alexnet-cifar --classes auto --epochs 20 --batch 32 --lr 0.01 --schedule cosine --trace off";
    succeed(flags, &[("--data", &signs), ("--out", &out)]);
    let measured: Value = serde_json::from_str(&succeed(&format!("eval --json {}", out.display()), &[])).unwrap();
    let accuracy = measured["accuracy"].as_f64().unwrap();
    eprintln!("test accuracy {accuracy} of {} photographs", measured["images"]);
    assert!(accuracy >= ACCURACY, "{accuracy}");
}
