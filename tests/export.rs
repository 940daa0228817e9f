//! Exported networks, opened by onnxruntime: for every preset, and for a model with every kind of layer, the logits are those of `convoy
//! eval`, up to the rounding of another program's arithmetic. And the metrics of a run, read by TensorBoard's own reader.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use convoy_common::model::{Network, presets};
use convoy_common::parameters::{Start, Tensors, sha256};
use convoy_coordinator::checkpoint::write_weights;
use serde_json::Value;
use support::{Images, as_they_are, output_of, run, said, skip, succeed, write_data};
use tempfile::TempDir;

/// Another program sums in another order, so the last bits differ: this share of the largest logit.
const TOLERANCE: f64 = 1e-4;

/// A model with every kind of layer: windows of odd and even sizes, three towers, a mask, and layers without a bias.
const EVERYTHING: &str = r#"
name = "everything"
towers = 3
input = { channels = 3, height = 19, width = 17, mean = [0.1, 0.5, 0.9], std = [0.2, 0.5, 1.5] }
layer = [
  { kind = "conv", name = "conv1", filters = 12, kernel = 4, stride = 2, pad = 1 },
  { kind = "lrn", name = "norm1", size = 4, alpha = 0.3, beta = 0.75, k = 1.5 },
  { kind = "relu" },
  { kind = "max_pool", kernel = 3, stride = 2, pad = 1 },
  { kind = "conv", name = "conv2", filters = 12, kernel = 3, pad = 1, bias = false, mask = { kind = "random", groups = 2 } },
  { kind = "lrn", name = "norm2", size = 3, alpha = 0.2, beta = 0.6, k = 2.0 },
  { kind = "avg_pool", kernel = 2, stride = 1, pad = 1 },
  { kind = "conv", name = "conv3", filters = 12, kernel = 3, groups = 3 },
  { kind = "relu" },
  { kind = "linear", name = "fc4", units = 20, bias = false },
  { kind = "relu" },
  { kind = "dropout", name = "drop4", p = 0.5 },
  { kind = "linear", name = "fc5", units = 7 },
]
"#;

/// Layers after linear ones, names that an exported file uses itself, and normalisation with extreme settings.
const ODD: &str = r#"
name = "odd"
towers = 2
input = { channels = 1, height = 3, width = 4 }
layer = [
  { kind = "linear", name = "images", units = 12 },
  { kind = "lrn", name = "input", size = 40, alpha = 0.5, beta = 0.75, k = 1.0 },
  { kind = "lrn", name = "nothing", size = 3, alpha = 0.0, beta = 0.0, k = 2.0 },
  { kind = "conv", name = "logits", filters = 6, kernel = 1 },
  { kind = "relu" },
  { kind = "linear", name = "end", units = 2 },
]
"#;

/// Weights that keep the size of activations, from layer to layer, so that differences would show.
fn weights(network: &Network, seed: u64) -> Tensors {
    let mut tensors = network.initial_weights(seed, seed);
    for parameter in network.parameters() {
        let terms: usize = parameter.shape[1..].iter().product();
        let tensor = tensors.get_mut(&parameter.name).unwrap();
        match parameter.start {
            Start::Normal(std) => tensor.mapv_inplace(|value| value * ((2.0 / terms as f64).sqrt() / std) as f32),
            Start::Constant(_) => tensor.iter_mut().enumerate().for_each(|(i, value)| *value = (i % 7) as f32 * 0.02),
        }
    }
    tensors
}

fn images(network: &Network, count: usize) -> Images {
    let shape = network.input.shape;
    let pixels = (0..count * shape.len()).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    Images { pixels, shape: [shape.channels, shape.height, shape.width], labels: vec![0; count] }
}

/// A Python that has these modules.
fn python(modules: &str) -> Option<String> {
    let python = std::env::var("CONVOY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        skip(&format!("{python} can't import {modules} (CONVOY_PYTHON says which Python to ask)"));
        return None;
    }
    Some(python)
}

/// A model's file, its weights and its images in a folder.
struct Case {
    _folder: TempDir,
    model: PathBuf,
    weights: PathBuf,
    data: PathBuf,
    logits: PathBuf,
    onnx: PathBuf,
    sha256: String,
}

impl Case {
    fn new(text: &str, count: usize, seed: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        let network = Network::parse(text).unwrap();
        let tensors = weights(&network, seed);
        let case = Case {
            model: path("model.toml"),
            weights: path("weights.safetensors"),
            data: path("data"),
            logits: path("logits.safetensors"),
            onnx: path("net.onnx"),
            sha256: sha256(&tensors),
            _folder: folder,
        };
        std::fs::write(&case.model, text).unwrap();
        write_weights(&case.weights, &tensors).unwrap();
        std::fs::create_dir(&case.data).unwrap();
        write_data(&case.data, &images(&network, 4), &images(&network, count));
        case
    }

    fn exported(&self) -> String {
        succeed("export", &[("--model", &self.model), ("--onnx", &self.onnx), ("--", &self.weights)])
    }

    /// What onnxruntime makes of the file, beside the logits of `convoy eval`.
    fn compared(&self, python: &str, onnx: &Path) -> Value {
        let logits =
            &[("--model", &*self.model), ("--data", &self.data), ("--logits", &self.logits), ("--", &self.weights)];
        succeed("eval", logits);
        let images = ["t10k-images-idx4-ubyte", "t10k-images-idx3-ubyte"].map(|name| self.data.join(name));
        let images = images.iter().find(|path| path.exists()).unwrap();
        let output =
            output_of(Command::new(python).arg("tests/export/onnx.py").arg(onnx).arg(images).arg(&self.logits));
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn onnxruntime_computes_the_same_logits() {
    let Some(python) = python("numpy, onnx, onnxruntime, safetensors") else { return };
    // Images of AlexNet are large.
    let text = |name| as_they_are(presets::text(name).unwrap());
    let preset = |name: &'static str| {
        (text(name), if name.starts_with("alexnet-") && !name.ends_with("torchvision") { 64 } else { 4 })
    };
    let models = presets::names().map(preset).into_iter().chain([EVERYTHING, ODD].map(|text| (text.to_owned(), 64)));
    for (text, count) in models {
        let case = Case::new(&text, count, 1);
        let text = case.exported();
        assert!(text.contains(&case.sha256), "{text}");
        let found = case.compared(&python, &case.onnx);
        let [difference, largest] = ["difference", "largest"].map(|key| found[key].as_f64().unwrap());
        assert!(largest > 0.1 && difference <= TOLERANCE * largest.max(1.0), "{found}");
        assert_eq!(found["images"], count);
        assert_eq!((&found["inputs"][0], &found["outputs"][0]), (&Value::from("images"), &Value::from("logits")));
        assert_eq!(found["properties"]["weights_sha256"], case.sha256.as_str());
        // Other weights of AlexNet take long to write.
        if count < 64 {
            continue;
        }
        // The control: with other weights, the difference is far larger than the tolerance.
        let other = Case::new(&std::fs::read_to_string(&case.model).unwrap(), count, 2);
        other.exported();
        let found = case.compared(&python, &other.onnx);
        assert!(found["difference"].as_f64().unwrap() > 100.0 * TOLERANCE, "{found}");
    }
}

#[test]
fn nothing_else_is_replaced_and_what_is_missing_is_said() {
    let case = Case::new(EVERYTHING, 4, 1);
    case.exported();
    let before = std::fs::read(&case.onnx).unwrap();
    // Its own file is replaced, by the same bytes.
    case.exported();
    assert!(before == std::fs::read(&case.onnx).unwrap());
    let beside = |name: &str| case.onnx.with_file_name(name);
    let refused = |onnx: &Path, weights: &Path, expected: &str| {
        let output = run("export", &[("--model", &case.model), ("--onnx", onnx), ("--", weights)]);
        let code = output.status.code();
        assert!(code == Some(1) || code == Some(2), "{code:?}");
        assert!(said(&output).contains(expected), "{expected}: {}", said(&output));
    };
    refused(&case.model, &case.weights, "not an ONNX file that convoy wrote");
    refused(Path::new("/dev/null"), &case.weights, "not a plain file");
    refused(&beside("none/net.onnx"), &case.weights, "its folder does not exist");
    refused(&case.onnx, &beside("none"), "none");
    refused(&case.onnx, &case.model, "model.toml");
    let other = Case::new(presets::text("alexnet-fashion").unwrap(), 4, 1);
    refused(&case.onnx, &other.weights, "for the model \"everything\"");
    assert_eq!(std::fs::read_to_string(&case.model).unwrap(), EVERYTHING);
    assert!(before == std::fs::read(&case.onnx).unwrap());
    let output = run("export", &[("--onnx", &case.onnx), ("--", &case.weights)]);
    assert!(!output.status.success() && said(&output).contains("--model"), "{}", said(&output));
}

/// The scalars of a run by TensorBoard's reader: for each chart, its (step, value) in order.
fn scalars(python: &str, run: &Path) -> Value {
    let output = output_of(Command::new(python).arg("tests/export/events.py").arg(run));
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The same by the run's metrics.
fn charted(run: &Path) -> Value {
    let mut charts = serde_json::Map::new();
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let names = [
        ("loss", "train/loss"),
        ("lr", "train/learning_rate"),
        ("train_loss", "train/epoch_loss"),
        ("test_accuracy", "test/accuracy"),
        ("test_loss", "test/loss"),
        ("images_per_second", "train/images_per_second"),
    ];
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let step = if line["step"].is_null() { &line["through_step"] } else { &line["step"] };
        for (key, name) in names {
            if let Some(value) = line[key].as_f64() {
                let chart = charts.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                chart.as_array_mut().unwrap().push(serde_json::json!([step, f64::from(value as f32)]));
            }
        }
    }
    Value::Object(charts)
}

#[test]
fn tensorboard_reads_the_metrics_also_of_a_run_that_was_continued() {
    let Some(python) = python("tensorboard") else { return };
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let files = |out: &Path| {
        let names = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("events.out.tfevents.")).count()
    };
    let train = |more: &str| succeed(&format!("train --data bundled --batch 500 {more}"), &[("--out", &out)]);
    // Without the flag there is no file. With it, a continued run shows earlier steps as well.
    train("--epochs 1 --checkpoint-every 4");
    assert_eq!(files(&out), 0);
    let resume = |step: &str, more: &str| {
        let checkpoint = out.join("checkpoints").join(step);
        let path: &[(&str, &Path)] = &[("--resume", &checkpoint), ("--out", &out)];
        succeed(&format!("train --data bundled --tensorboard {more}"), path);
    };
    resume("step-000010", "--epochs 2 --checkpoint-every 4");
    assert_eq!(files(&out), 1);
    assert_eq!(scalars(&python, &out), charted(&out));
    // It goes back to an earlier step: TensorBoard forgets what came after it.
    let before = charted(&out);
    resume("step-000012", "--epochs 3");
    assert_eq!(files(&out), 2);
    let found = scalars(&python, &out);
    assert_eq!(found, charted(&out));
    assert_eq!(found["train/loss"].as_array().unwrap().len(), 30);
    assert_ne!(found, before, "the control: more steps than before");
}
