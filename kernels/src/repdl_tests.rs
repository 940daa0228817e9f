//! An independent oracle without tolerance: results of microsoft/RepDL, which implements the same rule, for small convolutions
//! and linear layers, forward and one step. `tests/golden/README.md` names the source of the file.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::affine::Affine;
use super::isa::Isa;
use super::memory::Tensor;
use super::products::End;
use super::*;

const GOLDEN: &str = include_str!("../../tests/golden/repdl.json");

/// The cases, each on every instruction set of this machine.
#[test]
fn repdl_computes_the_same_bits() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for isa in Isa::available() {
        for case in cases {
            std::thread::scope(|scope| {
                scope.spawn(|| check(&Compute::new(1, isa).unwrap().with_dirty_memory(), case)).join().unwrap();
            });
        }
    }
}

/// Everything that the case has an output for.
fn check(compute: &Compute, case: &Value) {
    let found = outputs(compute, case);
    for (name, expected) in case["outputs"].as_object().unwrap() {
        let found = &found[name];
        let length: usize = shape(expected).iter().product();
        let at = format!("{}, {name}, {}", case["name"], compute.isa);
        assert_eq!(found.len(), length, "{at}");
        let first = expected.get("hex").or(expected.get("first")).unwrap().as_str().unwrap();
        for (index, (expected, found)) in first.split(' ').zip(found).enumerate() {
            assert_eq!(format!("{:08x}", found.to_bits()), expected, "{at}[{index}]");
        }
        if let Some(expected) = expected["sha256"].as_str() {
            assert_eq!(sha256(found), expected, "{at}");
            // The control: the hash notices the same values in another order.
            let mut other = found.clone();
            other.reverse();
            assert_ne!(sha256(&other), expected, "{at}");
        }
    }
    if let Some(reordered) = found.get("d weight, samples reversed") {
        assert_ne!(bits(reordered), bits(&found["d weight"]), "{}: the order of a sum shows", case["name"]);
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn sha256(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shape(described: &Value) -> Vec<usize> {
    described["shape"].as_array().unwrap().iter().map(|length| length.as_u64().unwrap() as usize).collect()
}

/// An input by the formula that the file gives, row-major.
fn input(case: &Value, name: &str) -> Vec<f32> {
    let described = &case["inputs"][name];
    let number = |value: &Value| value.as_i64().unwrap();
    let (salt, stream) = (number(&case["salt"]) as u32, number(&described["stream"]) as u32);
    let scale = 2f32.powi(number(&described["exponent"]) as i32 - 23);
    let element = |index: usize| ((word(salt, stream, index as u32) >> 8) as i32 - 8_388_608) as f32 * scale;
    (0..shape(described).iter().product()).map(element).collect()
}

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

/// A layer with its weights in panels.
struct Layer {
    affine: Affine,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    fn new(affine: Affine, weight: &[f32], bias: Vec<f32>) -> Self {
        let weights = affine.panels().pack(affine.groups(), weight);
        Self { affine, weights, bias }
    }

    fn forward(&self, compute: &Compute, x: &[f32], samples: usize) -> Tensor {
        let end = End { bias: Some(&self.bias), rectifies: false };
        let blocks = self.affine.input(compute, x, samples);
        self.affine.forward(compute, &self.weights, end, &blocks, samples).0
    }

    /// The gradients of weight, bias and input.
    fn backward(&self, compute: &Compute, x: &[f32], dy: Tensor, samples: usize) -> [Vec<f32>; 3] {
        let blocks = self.affine.input(compute, x, samples);
        let dy = self.affine.gradient(compute, dy, None, samples);
        let (mut dw, mut db) = (vec![0.0; self.weights.len()], vec![0.0; self.bias.len()]);
        self.affine.weight_gradient(compute, &blocks, &dy, samples, false, &mut dw);
        self.affine.bias_gradient(compute, &dy, samples, &mut db);
        let dx = self.affine.input_gradient(compute, &self.weights, &dy, samples).0;
        [self.affine.panels().unpack(self.affine.groups(), &dw), db, dx.to_vec()]
    }
}

/// Feature maps (sample, channel, row and column) as kernels have them, with channels last; or the other way round.
fn transposed(x: &[f32], samples: usize, rows: usize) -> Vec<f32> {
    let columns = x.len() / samples / rows;
    let at = |sample: usize, column: usize| (0..rows).map(move |row| x[(sample * rows + row) * columns + column]);
    (0..samples).flat_map(|sample| (0..columns).flat_map(move |column| at(sample, column))).collect()
}

fn layer_of(case: &Value) -> Layer {
    let described = &case["layer"];
    let number = |key: &str| described[key].as_u64().unwrap() as usize;
    let [_, channels, height, width] = shape(&case["inputs"]["x"])[..] else { panic!("{case}") };
    let affine = match described["kind"].as_str().unwrap() {
        "conv" => Affine::Conv(conv::Geometry {
            channels,
            filters: number("filters"),
            groups: number("groups"),
            kernel: number("kernel"),
            stride: number("stride"),
            pad: number("pad"),
            height,
            width,
        }),
        _ => Affine::Linear(linear::Geometry { channels, pixels: height * width, outputs: number("units") }),
    };
    Layer::new(affine, &input(case, "weight"), input(case, "bias"))
}

/// What the kernels make of the case, under the file's names and in its order of axes.
fn outputs(compute: &Compute, case: &Value) -> BTreeMap<String, Vec<f32>> {
    let samples = case["samples"].as_u64().unwrap() as usize;
    let layer = layer_of(case);
    let filters = layer.bias.len();
    let channels = shape(&case["inputs"]["x"])[1];
    let x = transposed(&input(case, "x"), samples, channels);
    let y = layer.forward(compute, &x, samples);
    let pixels = y.len() / samples / filters;
    let by_channel = |maps: &[f32]| transposed(maps, samples, maps.len() / samples / filters);
    let mut found = BTreeMap::from([("y".to_owned(), by_channel(&y))]);
    let Some(classes) = case["classes"].as_u64().map(|classes| classes as usize) else { return found };
    let affine = Affine::Linear(linear::Geometry { channels: filters, pixels, outputs: classes });
    let out = Layer::new(affine, &input(case, "out.weight"), input(case, "out.bias"));
    let logits = out.forward(compute, &y, samples);
    let labels: Vec<usize> =
        case["labels"].as_array().unwrap().iter().map(|label| label.as_u64().unwrap() as usize).collect();
    let dlogits: Vec<f32> =
        logits.chunks_exact(classes).zip(labels).flat_map(|(logits, label)| softmax(logits, label, samples)).collect();
    let [dw_out, db_out, dy] = out.backward(compute, &y, dlogits.clone().into(), samples);
    let [dw, db, dx] = layer.backward(compute, &x, dy.clone().into(), samples);
    let reversed = |values: &[f32]| values.chunks(values.len() / samples).rev().flatten().copied().collect::<Vec<_>>();
    let [reordered, ..] = layer.backward(compute, &reversed(&x), reversed(&dy).into(), samples);
    let dx = transposed(&dx, samples, dx.len() / samples / channels);
    let named = [
        ("logits", logits.to_vec()),
        ("dlogits", dlogits),
        ("d out.weight", dw_out),
        ("d out.bias", db_out),
        ("dy", by_channel(&dy)),
        ("d weight", dw),
        ("d weight, samples reversed", reordered),
        ("d bias", db),
        ("d x", dx),
    ];
    found.extend(named.map(|(name, values)| (name.to_owned(), values)));
    found
}

/// The gradient of one sample's logits, as NUMERICS.md says.
fn softmax(logits: &[f32], label: usize, samples: usize) -> Vec<f32> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |largest, logit| largest.max(f64::from(*logit)));
    let exponentials: Vec<f64> = logits.iter().map(|logit| libm::exp(f64::from(*logit) - largest)).collect();
    let sum = exponentials.iter().fold(0.0, |sum, exponential| sum + exponential);
    let target = |class: usize| if class == label { 1.0 } else { 0.0 };
    let each = exponentials.iter().enumerate();
    each.map(|(class, exponential)| ((exponential / sum - target(class)) / samples as f64) as f32).collect()
}
