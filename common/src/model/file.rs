//! A model file as it is written: TOML tables, read key by key, so that each error names its layer, its key, the value, and
//! what would be right. Not here: whether the layers fit together ([`super::network`]).

use toml::{Table, Value};

use super::error::ModelError;
use super::input::Input;
use crate::fields::{FieldError, Fields, shown};
use crate::mask::Mask;
use crate::suggest;

/// The file's top level.
pub(crate) struct RawModel {
    pub(crate) name: String,
    pub(crate) towers: usize,
    pub(crate) head: Option<usize>,
    pub(crate) input: Input,
    pub(crate) layers: Vec<RawLayer>,
}

pub(crate) struct RawLayer {
    /// Position in the file, counted from 1.
    pub(crate) position: usize,
    pub(crate) name: Option<String>,
    pub(crate) kind: RawKind,
}

pub(crate) enum RawKind {
    Conv(RawConv),
    Linear(RawLinear),
    Relu,
    Lrn(RawLrn),
    MaxPool(RawPool),
    AvgPool(RawPool),
    Dropout { p: f64 },
}

impl RawKind {
    /// The kind, as in a model file.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            RawKind::Conv(_) => "conv",
            RawKind::Linear(_) => "linear",
            RawKind::Relu => "relu",
            RawKind::Lrn(_) => "lrn",
            RawKind::MaxPool(_) => "max_pool",
            RawKind::AvgPool(_) => "avg_pool",
            RawKind::Dropout { .. } => "dropout",
        }
    }
}

pub(crate) struct RawConv {
    pub(crate) filters: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) pad: usize,
    pub(crate) groups: usize,
    pub(crate) mask: Option<Mask>,
    pub(crate) bias: bool,
    pub(crate) init: RawInit,
    pub(crate) learning: RawLearning,
}

pub(crate) struct RawLinear {
    pub(crate) units: usize,
    pub(crate) mask: Option<Mask>,
    pub(crate) bias: bool,
    pub(crate) init: RawInit,
    pub(crate) learning: RawLearning,
}

pub(crate) struct RawLearning {
    pub(crate) trainable: bool,
    pub(crate) lr_scale: Option<f64>,
}

pub(crate) struct RawInit {
    pub(crate) std: Option<f64>,
    pub(crate) bias: Option<f64>,
}

pub(crate) struct RawLrn {
    pub(crate) size: usize,
    pub(crate) alpha: f64,
    pub(crate) beta: f64,
    pub(crate) k: f64,
}

pub(crate) struct RawPool {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) pad: usize,
}

/// The kinds of layers, and the keys of each beside `kind` and `name`.
const KINDS: [(&str, &[&str]); 7] = [
    ("conv", &["filters", "kernel", "stride", "pad", "groups", "mask", "bias", "init", "trainable", "lr_scale"]),
    ("linear", &["units", "mask", "bias", "init", "trainable", "lr_scale"]),
    ("relu", &[]),
    ("lrn", &["size", "alpha", "beta", "k"]),
    ("max_pool", &["kernel", "stride", "pad"]),
    ("avg_pool", &["kernel", "stride", "pad"]),
    ("dropout", &["p"]),
];

/// LRN's constants where the file leaves them out: those of the AlexNet paper.
const LRN: RawLrn = RawLrn { size: 5, alpha: 1e-4, beta: 0.75, k: 2.0 };

/// Reads the text of a model file.
pub(crate) fn parse(text: &str) -> Result<RawModel, ModelError> {
    let mut model = Fields::parse(text, "the model")?;
    model.check_keys(&["name", "towers", "head", "input", "layer"])?;
    let layers = model.list("layer", "a list of tables, each under [[layer]]")?.ok_or(ModelError::NoLayers)?;
    Ok(RawModel {
        name: model.required("name", Fields::text)?,
        towers: model.required("towers", Fields::count)?,
        head: model.count("head")?,
        input: Input::parse(model.required("input", Fields::table)?)?,
        layers: layers.into_iter().enumerate().map(|(i, layer)| parse_layer(i + 1, layer)).collect::<Result<_, _>>()?,
    })
}

fn parse_layer(position: usize, layer: Value) -> Result<RawLayer, ModelError> {
    let mut place = format!("layer {position}");
    let Value::Table(table) = layer else {
        return Err(Fields::new(Table::new(), place).wrong("layer", &layer, "a table under [[layer]]").into());
    };
    if let Some(name) = table.get("name").and_then(Value::as_str) {
        place += &format!(" ({})", shown(&name.into()));
    }
    let mut layer = Fields::new(table, place);
    let kind = layer.required("kind", Fields::text)?;
    let Some((_, keys)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        let hint = suggest::hint(&kind, &KINDS.map(|(known, _)| known));
        return Err(ModelError::UnknownKind { place: layer.place().to_owned(), kind: shown(&kind.into()), hint });
    };
    layer.check_keys(&[&["name"], *keys].concat())?;
    let name = layer.text("name")?;
    let kind = match kind.as_str() {
        "conv" => RawKind::Conv(RawConv {
            filters: layer.required("filters", Fields::count)?,
            kernel: layer.required("kernel", Fields::count)?,
            stride: layer.count("stride")?.unwrap_or(1),
            pad: layer.count("pad")?.unwrap_or(0),
            groups: layer.count("groups")?.unwrap_or(1),
            mask: mask(&mut layer)?,
            bias: layer.flag("bias")?.unwrap_or(true),
            init: init(&mut layer)?,
            learning: learning(&mut layer)?,
        }),
        "linear" => RawKind::Linear(RawLinear {
            units: layer.required("units", Fields::count)?,
            mask: mask(&mut layer)?,
            bias: layer.flag("bias")?.unwrap_or(true),
            init: init(&mut layer)?,
            learning: learning(&mut layer)?,
        }),
        "lrn" => RawKind::Lrn(RawLrn {
            size: layer.count("size")?.unwrap_or(LRN.size),
            alpha: layer.number("alpha")?.unwrap_or(LRN.alpha),
            beta: layer.number("beta")?.unwrap_or(LRN.beta),
            k: layer.number("k")?.unwrap_or(LRN.k),
        }),
        "max_pool" => RawKind::MaxPool(pool(&mut layer)?),
        "avg_pool" => RawKind::AvgPool(pool(&mut layer)?),
        "dropout" => RawKind::Dropout { p: layer.required("p", Fields::number)? },
        "relu" => RawKind::Relu,
        other => unreachable!("{other} is listed in KINDS"),
    };
    Ok(RawLayer { position, name, kind })
}

fn mask(layer: &mut Fields) -> Result<Option<Mask>, FieldError> {
    let Some(mut mask) = layer.table("mask")? else { return Ok(None) };
    mask.check_keys(&["kind", "groups"])?;
    let groups = mask.required("groups", Fields::count)?;
    let kind = mask.required("kind", Fields::text)?;
    match kind.as_str() {
        "blocks" => Ok(Some(Mask::Blocks { groups })),
        "random" => Ok(Some(Mask::Random { groups })),
        _ => {
            let hint = suggest::hint(&kind, &Mask::KINDS);
            let reason = format!("unknown kind of mask {}{hint}", shown(&kind.into()));
            Err(FieldError::Value { place: mask.place().to_owned(), reason })
        }
    }
}

fn learning(layer: &mut Fields) -> Result<RawLearning, FieldError> {
    Ok(RawLearning { trainable: layer.flag("trainable")?.unwrap_or(true), lr_scale: layer.number("lr_scale")? })
}

fn init(layer: &mut Fields) -> Result<RawInit, FieldError> {
    let Some(mut init) = layer.table("init")? else { return Ok(RawInit { std: None, bias: None }) };
    init.check_keys(&["std", "bias"])?;
    Ok(RawInit { std: init.number("std")?, bias: init.number("bias")? })
}

/// Windows lie side by side where no stride is given, as in PyTorch.
fn pool(layer: &mut Fields) -> Result<RawPool, FieldError> {
    let kernel = layer.required("kernel", Fields::count)?;
    Ok(RawPool { kernel, stride: layer.count("stride")?.unwrap_or(kernel), pad: layer.count("pad")?.unwrap_or(0) })
}
