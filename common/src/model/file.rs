//! A model file as it is written: TOML tables, with every key checked by name before serde reads it, so that a slip is
//! answered with the nearest key. Not here: whether the layers fit together ([`super::network`]).

use serde::Deserialize;
use toml::{Table, Value};

use super::network::ModelError;
use crate::suggest;

/// The file's top level.
pub(crate) struct RawModel {
    pub(crate) name: String,
    pub(crate) towers: usize,
    pub(crate) input: RawInput,
    pub(crate) layers: Vec<RawLayer>,
}

#[derive(Deserialize)]
pub(crate) struct RawInput {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) mean: Option<Vec<f64>>,
    pub(crate) std: Option<Vec<f64>>,
}

pub(crate) struct RawLayer {
    /// Position in the file, counted from 1.
    pub(crate) position: usize,
    pub(crate) name: Option<String>,
    pub(crate) kind: RawKind,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum RawKind {
    Conv(RawConv),
    Linear(RawLinear),
    Relu,
    Lrn(RawLrn),
    MaxPool(RawPool),
    AvgPool(RawPool),
    Dropout { p: f64 },
}

#[derive(Deserialize)]
pub(crate) struct RawConv {
    pub(crate) filters: usize,
    pub(crate) kernel: usize,
    #[serde(default = "one")]
    pub(crate) stride: usize,
    #[serde(default)]
    pub(crate) pad: usize,
    #[serde(default = "one")]
    pub(crate) groups: usize,
    #[serde(default = "yes")]
    pub(crate) bias: bool,
    pub(crate) init: Option<RawInit>,
}

#[derive(Deserialize)]
pub(crate) struct RawLinear {
    pub(crate) units: usize,
    #[serde(default = "yes")]
    pub(crate) bias: bool,
    pub(crate) init: Option<RawInit>,
}

#[derive(Deserialize)]
pub(crate) struct RawInit {
    pub(crate) std: Option<f64>,
    pub(crate) bias: Option<f64>,
}

#[derive(Deserialize)]
pub(crate) struct RawLrn {
    #[serde(default = "lrn_size")]
    pub(crate) size: usize,
    #[serde(default = "lrn_alpha")]
    pub(crate) alpha: f64,
    #[serde(default = "lrn_beta")]
    pub(crate) beta: f64,
    #[serde(default = "lrn_k")]
    pub(crate) k: f64,
}

#[derive(Deserialize)]
pub(crate) struct RawPool {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    #[serde(default)]
    pub(crate) pad: usize,
}

const KINDS: [(&str, &[&str]); 7] = [
    ("conv", &["kind", "name", "filters", "kernel", "stride", "pad", "groups", "bias", "init"]),
    ("linear", &["kind", "name", "units", "bias", "init"]),
    ("relu", &["kind", "name"]),
    ("lrn", &["kind", "name", "size", "alpha", "beta", "k"]),
    ("max_pool", &["kind", "name", "kernel", "stride", "pad"]),
    ("avg_pool", &["kind", "name", "kernel", "stride", "pad"]),
    ("dropout", &["kind", "name", "p"]),
];

/// Reads the text of a model file.
pub(crate) fn parse(text: &str) -> Result<RawModel, ModelError> {
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| ModelError::Syntax(e.to_string()))?;
    check_keys(&table, &["name", "towers", "input", "layer"], "the model")?;
    let input = take(&mut table, "input", "the model")?;
    if let Some(table) = input.as_table() {
        check_keys(table, &["channels", "height", "width", "mean", "std"], "input")?;
    }
    let layers = match table.remove("layer") {
        Some(Value::Array(layers)) => layers,
        _ => return Err(ModelError::NoLayers),
    };
    Ok(RawModel {
        name: read(take(&mut table, "name", "the model")?, "name")?,
        towers: read(take(&mut table, "towers", "the model")?, "towers")?,
        input: read(input, "input")?,
        layers: layers.into_iter().enumerate().map(|(i, v)| parse_layer(i + 1, v)).collect::<Result<_, _>>()?,
    })
}

fn parse_layer(position: usize, value: Value) -> Result<RawLayer, ModelError> {
    let Value::Table(mut table) = value else { return Err(ModelError::NoLayers) };
    let named = table.get("name").and_then(Value::as_str).map(|name| format!(" (\"{name}\")"));
    let place = format!("layer {position}{}", named.unwrap_or_default());
    let kind: String = read(table.get("kind").cloned().ok_or_else(|| missing("kind", &place))?, &place)?;
    let Some((_, keys)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        let hint = suggest::hint(&kind, &KINDS.map(|(known, _)| known));
        return Err(ModelError::UnknownKind { place, kind, hint });
    };
    check_keys(&table, keys, &place)?;
    if let Some(init) = table.get("init").and_then(Value::as_table) {
        check_keys(init, &["std", "bias"], &format!("{place}, init"))?;
    }
    let name = table.remove("name").map(|name| read(name, &place)).transpose()?;
    Ok(RawLayer { position, name, kind: read(Value::Table(table), &place)? })
}

fn check_keys(table: &Table, known: &[&str], place: &str) -> Result<(), ModelError> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            Err(ModelError::UnknownKey { place: place.to_owned(), key: key.clone(), hint: suggest::hint(key, known) })
        }
    }
}

fn take(table: &mut Table, key: &str, place: &str) -> Result<Value, ModelError> {
    table.remove(key).ok_or_else(|| missing(key, place))
}

fn missing(key: &str, place: &str) -> ModelError {
    ModelError::Value { place: place.to_owned(), reason: format!("the key \"{key}\" is missing") }
}

fn read<'de, T: Deserialize<'de>>(value: Value, place: &str) -> Result<T, ModelError> {
    T::deserialize(value)
        .map_err(|e| ModelError::Value { place: place.to_owned(), reason: e.to_string().trim_end().to_owned() })
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn lrn_size() -> usize {
    5
}

fn lrn_alpha() -> f64 {
    1e-4
}

fn lrn_beta() -> f64 {
    0.75
}

fn lrn_k() -> f64 {
    2.0
}
