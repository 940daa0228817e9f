//! Losses, logits and every gradient by name, against what PyTorch computed for `tests/golden/`, with worker processes of
//! the built program. This suite compares within tolerances, because PyTorch sums in another order.
//! `tests/golden/README.md` justifies them, and holds the formulas of data and weights.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{Images, as_they_are, read_tensor, succeed, write_data, write_tensors};
use tempfile::TempDir;

/// Of the largest absolute value of a tensor.
const TENSOR_TOLERANCE: f64 = 1e-4;
const LOSS_TOLERANCE: f64 = 1e-3;

fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    x = x.wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

fn word(salt: u32, stream: u32, index: u32) -> u32 {
    mix(index.wrapping_add(mix(salt.wrapping_mul(1000).wrapping_add(stream))))
}

#[test]
fn formulas_have_the_published_answers() {
    assert_eq!((mix(1), mix(2)), (0x514e_28b7, 0x30f4_c306));
    assert_eq!((word(1, 0, 0), word(1, 2, 5)), (0xc6d8_3a58, 0x2072_7f1a));
}

/// A golden file, and the inputs that it is about.
struct Golden {
    name: String,
    expected: Value,
    folder: TempDir,
    model: PathBuf,
    towers: u64,
    /// How far off the worst figure was, as a share of its tolerance.
    worst: f64,
}

impl Golden {
    fn open(path: &Path) -> Self {
        let expected: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        let text = match expected["preset"].as_str() {
            Some(preset) => as_they_are(&std::fs::read_to_string(format!("models/{preset}.toml")).unwrap()),
            None => expected["model"].as_str().unwrap().to_owned(),
        };
        let parsed: toml::Table = text.parse().unwrap();
        let model = folder.path().join("model.toml");
        std::fs::write(&model, &text).unwrap();
        let length = |key: &str| parsed["input"][key].as_integer().unwrap() as usize;
        let shape = [length("channels"), length("height"), length("width")];
        let classes = expected["test_logits"][0].as_array().unwrap().len();
        let images = |key: &str, stream| {
            formula_images(&expected, expected[key].as_u64().unwrap() as usize, stream, shape, classes)
        };
        write_data(folder.path(), &images("train_images", 0), &images("test_images", 1));
        write_tensors(&folder.path().join("init.safetensors"), &formula_weights(&expected));
        let towers = parsed["towers"].as_integer().unwrap() as u64;
        let name = expected["name"].as_str().unwrap().to_owned();
        Self { name, expected, folder, model, towers, worst: 0.0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a job from the formula's weights, over a worker a tower.
    fn train(&self, out: &str, steps: u64, weight_decay: f64, schedule: &str) -> PathBuf {
        let e = &self.expected;
        let (batch, lr, momentum, seed) = (&e["batch"], &e["lr"], &e["momentum"], &e["seed"]);
        let out = self.path(out);
        let arguments = format!(
            "train --steps {steps} --batch {batch} --lr {lr} --momentum {momentum} --weight-decay {weight_decay} \
             --schedule {schedule} --order sequential --seed {seed} --workers {}",
            self.towers
        );
        let init = self.path("init.safetensors");
        succeed(
            &arguments,
            &[("--model", &self.model), ("--data", self.folder.path()), ("--init", &init), ("--out", &out)],
        );
        out
    }

    fn check_losses(&mut self) {
        let steps = self.expected["steps"].as_u64().unwrap();
        let weight_decay = self.expected["weight_decay"].as_f64().unwrap();
        let schedule = self.expected["schedule"].as_str().unwrap().to_owned();
        let out = self.train("losses", steps, weight_decay, &schedule);
        let found: Vec<f64> = support::losses(&out).iter().map(|(_, bits)| f64::from_bits(*bits)).collect();
        let expected = floats(&self.expected["losses"]);
        assert_eq!(found.len(), expected.len());
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            self.check(&format!("the loss of step {}", step + 1), *found, *expected, LOSS_TOLERANCE);
        }
    }

    fn check_logits(&mut self) {
        let (weights, logits) = (self.path("init.safetensors"), self.path("logits.safetensors"));
        let arguments = format!("eval {} --workers {} --json", weights.display(), self.towers);
        succeed(&arguments, &[("--model", &self.model), ("--data", self.folder.path()), ("--logits", &logits)]);
        let (shape, found) = read_tensor(&logits, "logits");
        let expected: Vec<f64> = self.expected["test_logits"].as_array().unwrap().iter().flat_map(floats).collect();
        assert_eq!(shape.iter().product::<usize>(), expected.len());
        let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            self.check(&format!("logit {index}"), f64::from(*found), *expected, TENSOR_TOLERANCE * largest);
        }
    }

    /// After one step without weight decay, momentum *is* the gradient.
    fn check_gradients(&mut self) {
        let out = self.train("gradients", 1, 0.0, "constant");
        let file = support::checkpoint(&out).join("optimizer.safetensors");
        let expected = self.expected["gradients"].as_object().unwrap().clone();
        assert_eq!(expected.len(), self.expected["parameters"].as_array().unwrap().len());
        for (name, expected) in expected {
            let found: Vec<f64> = read_tensor(&file, &name).1.into_iter().map(f64::from).collect();
            let figure = |key: &str| expected[key].as_f64().unwrap();
            let abs_sum = found.iter().map(|x| x.abs()).sum::<f64>();
            let norm = found.iter().map(|x| x * x).sum::<f64>().sqrt();
            let max_abs = found.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
            self.check(
                &format!("{name}: sum"),
                found.iter().sum(),
                figure("sum"),
                TENSOR_TOLERANCE * figure("abs_sum"),
            );
            self.check(&format!("{name}: abs_sum"), abs_sum, figure("abs_sum"), TENSOR_TOLERANCE * figure("abs_sum"));
            self.check(&format!("{name}: norm"), norm, figure("norm"), TENSOR_TOLERANCE * figure("norm"));
            self.check(&format!("{name}: max_abs"), max_abs, figure("max_abs"), TENSOR_TOLERANCE * figure("max_abs"));
            let (indices, values): (Vec<usize>, _) = match expected.get("values") {
                Some(values) => ((0..found.len()).collect(), floats(values)),
                None => ((0..64).map(|j| mix(j) as usize % found.len()).collect(), floats(&expected["samples"])),
            };
            assert_eq!(indices.len(), values.len(), "{name}");
            for (index, value) in indices.into_iter().zip(values) {
                self.check(&format!("{name}[{index}]"), found[index], value, TENSOR_TOLERANCE * figure("max_abs"));
            }
        }
    }

    fn check(&mut self, what: &str, found: f64, expected: f64, tolerance: f64) {
        let off = (found - expected).abs();
        let share = if tolerance > 0.0 { off / tolerance } else { f64::from(off > 0.0) * 2.0 };
        self.worst = self.worst.max(share);
        assert!(
            share <= 1.0,
            "{}: {what} is {found}, and PyTorch says {expected}; {tolerance:e} is allowed",
            self.name
        );
    }
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn formula_images(expected: &Value, count: usize, stream: u32, shape: [usize; 3], classes: usize) -> Images {
    let salt = expected["salt"].as_u64().unwrap() as u32;
    let labels: Vec<u8> = (0..count).map(|n| ((n * 7 + 3) % classes) as u8).collect();
    let [channels, height, width] = shape;
    let mut pixels = Vec::with_capacity(count * channels * height * width);
    for label in &labels {
        for c in 0..channels {
            for y in 0..height {
                for x in 0..width {
                    let noise = word(salt, stream, pixels.len() as u32) >> 25;
                    let stripe = 128 * ((((usize::from(*label) + 1) * y + x + 2 * c) / 4) % 2);
                    pixels.push((noise as usize + stripe) as u8);
                }
            }
        }
    }
    Images { pixels, shape, labels }
}

fn formula_weights(expected: &Value) -> Vec<support::Tensor> {
    let parameters = expected["parameters"].as_array().unwrap().iter().enumerate();
    parameters
        .map(|(t, parameter)| {
            let shape: Vec<usize> = floats(&parameter["shape"]).into_iter().map(|n| n as usize).collect();
            let salt = parameter["salt"].as_u64().unwrap() as u32;
            let scale = 2f32.powi(parameter["exponent"].as_i64().unwrap() as i32);
            let element = |i: usize| ((word(salt, 2 + t as u32, i as u32) % 2001) as i32 - 1000) as f32 * scale;
            let values = (0..shape.iter().product()).map(element).collect();
            (parameter["name"].as_str().unwrap().to_owned(), shape, values)
        })
        .collect()
}

fn check_all(cases: impl Iterator<Item = PathBuf>) -> usize {
    let mut count = 0;
    for path in cases {
        let mut golden = Golden::open(&path);
        golden.check_losses();
        golden.check_logits();
        golden.check_gradients();
        eprintln!("{}: within {:.4} of the tolerances", golden.name, golden.worst);
        count += 1;
    }
    count
}

fn cases() -> Vec<PathBuf> {
    std::fs::read_dir("tests/golden/cases").unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn is_alexnet(path: &Path) -> bool {
    path.file_stem().unwrap() == "alexnet"
}

/// A small net for each kind of layer, nets of four towers and the small presets.
#[test]
fn small_nets_agree_with_pytorch() {
    assert!(check_all(cases().into_iter().filter(|path| !is_alexnet(path))) >= 20);
}

/// The paper's network itself, two images a step.
#[test]
fn alexnet_agrees_with_pytorch() {
    assert_eq!(check_all(cases().into_iter().filter(|path| is_alexnet(path))), 1);
}
