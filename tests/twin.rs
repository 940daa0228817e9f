//! Interoperability of trained weights: Python's safetensors reads them under PyTorch's names, and a PyTorch model with these
//! weights classifies as many test images correctly, give or take two. The suite needs a Python with torch. Without it, it says that it was skipped.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{checkpoint, output_of, said, succeed};
use tempfile::TempDir;

/// Rounding differs, and with it the few images that lie between two classes.
const IMAGES_TOLERANCE: u64 = 2;

/// A Python that has what is needed, or a loud word that there is none.
fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("CONVOY_PYTHON").unwrap_or_else(|| "python3".into()));
    let has = Command::new(&python).args(["-c", "import torch, numpy, safetensors"]).output();
    if has.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    let shown = python.display();
    support::skip(&format!("{shown} has no torch, numpy and safetensors (CONVOY_PYTHON says which Python to ask)"));
    None
}

/// The whole set where it is, and otherwise the images of the repository.
fn data() -> PathBuf {
    let whole = Path::new("/usr/share/datasets/fashion-mnist");
    let all = ["train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"].iter().all(|name| whole.join(name).is_file());
    if all {
        return whole.to_owned();
    }
    eprintln!("the whole Fashion-MNIST isn't in {}: 1,000 test images instead of 10,000", whole.display());
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dataset/fashion-mnist-subset")
}

fn ask(python: &Path, arguments: &[&str]) -> Value {
    let output = output_of(Command::new(python).args(arguments));
    assert!(output.status.success(), "{arguments:?}\n{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_pytorch_twin_with_our_weights_classifies_alike() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let (out, data) = (folder.path().join("run"), data());
    for model in ["alexnet-fashion", "alexnet-fashion-dense"] {
        let out = out.with_extension(model);
        succeed(&format!("train --model {model} --steps 150"), &[("--out", &out), ("--data", &data)]);
        let weights = checkpoint(&out).join("weights.safetensors");
        let arguments = format!("eval {} --model {model} --json", weights.display());
        let ours = succeed(&arguments, &[("--data", &data)]);
        let ours: Value = serde_json::from_str(&ours).unwrap();
        let paths = [weights.to_str().unwrap(), data.to_str().unwrap()];
        let theirs = ask(&python, &["tests/golden/torch_twin.py", paths[0], paths[1], "--model", model]);
        let (correct, total) = (ours["correct"].as_u64().unwrap(), ours["images"].as_u64().unwrap());
        eprintln!("{model}: of {total} test images {correct} here and {} in PyTorch", theirs["correct"]);
        assert_eq!(theirs["total"], total);
        assert!(correct > total / 2, "it has learnt something");
        assert!(theirs["correct"].as_u64().unwrap().abs_diff(correct) <= IMAGES_TOLERANCE);
    }
}

#[test]
fn the_weights_file_has_pytorchs_names_and_shapes() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    succeed("train --data bundled --steps 1 --batch 4", &[("--out", &out)]);
    let program = "import json, sys\nfrom safetensors import safe_open\n\
                   with safe_open(sys.argv[1], 'np') as file:\n    \
                   print(json.dumps({name: [*file.get_tensor(name).shape, str(file.get_tensor(name).dtype)] for name in file.keys()}))";
    for name in ["weights.safetensors", "optimizer.safetensors"] {
        let file = checkpoint(&out).join(name);
        let found = ask(&python, &["-c", program, file.to_str().unwrap()]);
        for (parameter, shape) in [
            ("conv1.weight", "[32,1,5,5,\"float32\"]"),
            ("conv2.weight", "[64,16,5,5,\"float32\"]"),
            ("conv3.weight", "[96,64,3,3,\"float32\"]"),
            ("conv4.bias", "[96,\"float32\"]"),
            ("fc6.weight", "[256,576,\"float32\"]"),
            ("fc8.bias", "[10,\"float32\"]"),
        ] {
            assert_eq!(found[parameter].to_string(), shape, "{name}: {parameter}");
        }
        assert_eq!(found.as_object().unwrap().len(), 16, "five convolutions and three linear layers, each with a bias");
    }
}
