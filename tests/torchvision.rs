//! The preset `alexnet-torchvision` loads the state dict of torchvision's AlexNet, and computes its logits.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::process::Command;

use convoy_common::model::{Network, presets};
use support::{output_of, read_tensor, said, skip, succeed};
use tempfile::TempDir;

/// Another program sums in another order, so the last bits differ: this share of the largest logit.
const TOLERANCE: f32 = 1e-4;

#[test]
fn the_preset_has_the_logits_of_torchvision() {
    let Some(python) = std::env::var_os("CONVOY_PYTHON").filter(|python| !python.is_empty()) else {
        return skip("CONVOY_PYTHON names no Python with torchvision");
    };
    let has_it =
        Command::new(&python).args(["-c", "import torchvision, safetensors"]).output().unwrap().status.success();
    if !has_it {
        return skip("this Python has no torchvision");
    }
    let text = presets::text("alexnet-torchvision").unwrap();
    let parameters: usize = Network::parse(text).unwrap().parameters().iter().map(|parameter| parameter.len()).sum();
    assert_eq!(parameters, 61_100_840);
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let made = output_of(Command::new(&python).arg("tests/torchvision/alexnet.py").arg(folder.path()));
    assert!(made.status.success(), "{}", said(&made));
    // These images have the size of the input already.
    let model = text.replace("resize = 256, crop = \"random\", mirror = true, ", "");
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
