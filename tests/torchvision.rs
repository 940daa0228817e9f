//! The preset `alexnet-torchvision` loads the state dict of torchvision's AlexNet, and computes its logits.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use convoy_common::model::{Network, presets};
use support::{as_they_are, output_of, read_tensor, real_images, said, skip, succeed};
use tempfile::TempDir;

/// Weights of torchvision's AlexNet.
struct Case {
    folder: TempDir,
}

impl Case {
    /// None, with a message, if this machine has no torchvision.
    fn new() -> Option<Self> {
        let Some(python) = std::env::var_os("CONVOY_PYTHON").filter(|python| !python.is_empty()) else {
            skip("CONVOY_PYTHON names no Python with torchvision");
            return None;
        };
        let has_it =
            Command::new(&python).args(["-c", "import torchvision, safetensors"]).output().unwrap().status.success();
        if !has_it {
            skip("this Python has no torchvision");
            return None;
        }
        let folder = TempDir::new().unwrap();
        let made = output_of(Command::new(&python).arg("tests/torchvision/alexnet.py").arg(folder.path()));
        assert!(made.status.success(), "{}", said(&made));
        Some(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Another program sums in another order, so the last bits differ: this share of the largest logit.
const TOLERANCE: f32 = 1e-4;

#[test]
fn the_preset_has_the_logits_of_torchvision() {
    let Some(case) = Case::new() else { return };
    let path = |name: &str| case.path(name);
    let text = presets::text("alexnet-torchvision").unwrap();
    let parameters: usize = Network::parse(text).unwrap().parameters().iter().map(|parameter| parameter.len()).sum();
    assert_eq!(parameters, 61_100_840);
    // These images have the size of the input already.
    let model = as_they_are(text);
    assert_ne!(model, text);
    fs::write(path("model.toml"), model).unwrap();
    let weights = path("weights.safetensors");
    let arguments = format!("eval --workers 1 {}", weights.display());
    let paths =
        [("--model", path("model.toml")), ("--data", path("images.npz")), ("--logits", path("ours.safetensors"))];
    let paths: Vec<_> = paths.iter().map(|(flag, path)| (*flag, path.as_path())).collect();
    succeed(&arguments, &paths);
    let [(shape, ours), (_, theirs)] =
        ["ours.safetensors", "logits.safetensors"].map(|name| read_tensor(&path(name), "logits"));
    assert_eq!(shape, [100, 1000]);
    let largest = theirs.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
    let difference = ours.iter().zip(&theirs).fold(0.0f32, |most, (ours, theirs)| most.max((ours - theirs).abs()));
    assert!(largest > 1.0 && difference < TOLERANCE * largest, "{difference} of {largest}");
    // The negative control: two images in the other order.
    let swapped = ours[..1000].iter().zip(&theirs[1000..]).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(swapped > TOLERANCE * largest, "{swapped}");
}

/// The features stay, and the classifier learns other classes.
#[test]
fn the_preset_is_tuned_to_signs_with_frozen_features() {
    let Some(case) = Case::new() else { return };
    let Some([signs, _]) = real_images(case.folder.path()) else { return };
    let text = presets::text("alexnet-torchvision").unwrap();
    let mut frozen = 0;
    let lines = text.lines().map(|line| {
        let is_feature = line.starts_with("name = \"features.");
        frozen += usize::from(is_feature);
        if is_feature { format!("{line}\ntrainable = false\n") } else { format!("{line}\n") }
    });
    fs::write(case.path("model.toml"), lines.collect::<String>()).unwrap();
    assert_eq!(frozen, 5);
    let (weights, model, run) = (case.path("weights.safetensors"), case.path("model.toml"), case.path("run"));
    succeed(
        "train --classes auto --init-except classifier.6 --train-images 32 --batch 16 --epochs 6 --checkpoint-every 12 --lr 0.00001 --schedule constant --workers 1 --trace off",
        &[("--model", &model), ("--data", &signs), ("--init", &weights), ("--out", &run)],
    );
    let losses: Vec<f64> = fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64())
        .collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&losses[8..]) < 0.8 * mean(&losses[..4]), "{losses:?}");
    let tuned = support::newest_checkpoint(&run).unwrap().join("weights.safetensors");
    let bits = |file: &PathBuf, name: &str| -> Vec<u32> {
        read_tensor(file, name).1.iter().map(|value| value.to_bits()).collect()
    };
    for name in ["features.0.weight", "features.3.bias", "features.10.weight"] {
        assert_eq!(bits(&tuned, name), bits(&weights, name), "{name} is frozen");
    }
    assert_ne!(bits(&tuned, "classifier.4.bias"), bits(&weights, "classifier.4.bias"), "the classifier is not");
    assert_eq!(read_tensor(&tuned, "classifier.6.weight").0, [10, 4096]);
}
