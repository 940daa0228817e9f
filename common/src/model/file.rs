//! A model file as it is written: TOML tables, read key by key, so that each error names its layer, its key, the value, and
//! what would be right. Not here: whether the layers fit together ([`super::network`]).

use toml::{Table, Value};

use super::error::ModelError;
use crate::suggest;
use crate::wire::printable;

/// The file's top level.
pub(crate) struct RawModel {
    pub(crate) name: String,
    pub(crate) towers: usize,
    pub(crate) head: Option<usize>,
    pub(crate) input: RawInput,
    pub(crate) layers: Vec<RawLayer>,
}

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
    pub(crate) bias: bool,
    pub(crate) init: RawInit,
}

pub(crate) struct RawLinear {
    pub(crate) units: usize,
    pub(crate) bias: bool,
    pub(crate) init: RawInit,
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
    ("conv", &["filters", "kernel", "stride", "pad", "groups", "bias", "init"]),
    ("linear", &["units", "bias", "init"]),
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
    let table: Table = text.parse().map_err(|error| ModelError::Syntax(syntax(&error)))?;
    let mut model = Fields { table, place: "the model".to_owned() };
    model.check_keys(&["name", "towers", "head", "input", "layer"])?;
    let layers = match model.table.remove("layer") {
        None => return Err(ModelError::NoLayers),
        Some(Value::Array(layers)) => layers,
        Some(other) => return Err(model.wrong("layer", &other, "a list of tables, each under [[layer]]")),
    };
    let mut input = model.required("input", Fields::table)?;
    input.check_keys(&["channels", "height", "width", "mean", "std"])?;
    Ok(RawModel {
        name: model.required("name", Fields::text)?,
        towers: model.required("towers", Fields::count)?,
        head: model.count("head")?,
        input: RawInput {
            channels: input.required("channels", Fields::count)?,
            height: input.required("height", Fields::count)?,
            width: input.required("width", Fields::count)?,
            mean: input.numbers("mean")?,
            std: input.numbers("std")?,
        },
        layers: layers.into_iter().enumerate().map(|(i, layer)| parse_layer(i + 1, layer)).collect::<Result<_, _>>()?,
    })
}

/// What the TOML parser says of an integer that is out of range. Most of these texts name a Rust type.
const TOO_LARGE: [&str; 4] = ["u64 value was too large", "as i128", "as u128", "integer number overflowed"];

/// An error of the TOML parser, in words. It shows a line of the file.
fn syntax(error: &toml::de::Error) -> String {
    let (mut text, message) = (error.to_string(), error.message());
    if TOO_LARGE.iter().any(|part| message.contains(part)) {
        text = text.replace(message, "the integer is out of range; must be from -2^63 to 2^63 - 1");
    }
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

fn parse_layer(position: usize, layer: Value) -> Result<RawLayer, ModelError> {
    let mut place = format!("layer {position}");
    let Value::Table(table) = layer else {
        return Err(Fields { table: Table::new(), place }.wrong("layer", &layer, "a table under [[layer]]"));
    };
    if let Some(name) = table.get("name").and_then(Value::as_str) {
        place += &format!(" ({})", shown(&name.into()));
    }
    let mut layer = Fields { table, place };
    let kind = layer.required("kind", Fields::text)?;
    let Some((_, keys)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        let hint = suggest::hint(&kind, &KINDS.map(|(known, _)| known));
        return Err(ModelError::UnknownKind { place: layer.place, kind: shown(&kind.into()), hint });
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
            bias: layer.flag("bias")?.unwrap_or(true),
            init: layer.init()?,
        }),
        "linear" => RawKind::Linear(RawLinear {
            units: layer.required("units", Fields::count)?,
            bias: layer.flag("bias")?.unwrap_or(true),
            init: layer.init()?,
        }),
        "lrn" => RawKind::Lrn(RawLrn {
            size: layer.count("size")?.unwrap_or(LRN.size),
            alpha: layer.number("alpha")?.unwrap_or(LRN.alpha),
            beta: layer.number("beta")?.unwrap_or(LRN.beta),
            k: layer.number("k")?.unwrap_or(LRN.k),
        }),
        "max_pool" => RawKind::MaxPool(layer.pool()?),
        "avg_pool" => RawKind::AvgPool(layer.pool()?),
        "dropout" => RawKind::Dropout { p: layer.required("p", Fields::number)? },
        "relu" => RawKind::Relu,
        other => unreachable!("{other} is listed in KINDS"),
    };
    Ok(RawLayer { position, name, kind })
}

/// The keys of one table, and what errors call the table. Reading a key removes it.
struct Fields {
    table: Table,
    place: String,
}

impl Fields {
    fn check_keys(&self, known: &[&str]) -> Result<(), ModelError> {
        match self.table.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(ModelError::UnknownKey {
                place: self.place.clone(),
                key: shown(&key.as_str().into()),
                hint: suggest::hint(key, known),
            }),
        }
    }

    fn required<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Self, &str) -> Result<Option<T>, ModelError>,
    ) -> Result<T, ModelError> {
        let value = read(self, key)?;
        let missing = || format!("the key \"{key}\" is missing");
        value.ok_or_else(|| ModelError::Value { place: self.place.clone(), reason: missing() })
    }

    fn count(&mut self, key: &str) -> Result<Option<usize>, ModelError> {
        let count = |value: &Value| usize::try_from(value.as_integer()?).ok();
        let expected = match key {
            "pad" => "a whole number, at least 0, for rows and columns alike",
            "kernel" | "stride" => "a whole number, at least 1, for rows and columns alike",
            _ => "a whole number, at least 1",
        };
        self.read(key, expected, count)
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>, ModelError> {
        self.read(key, "a number in the range of f32", as_number)
    }

    fn numbers(&mut self, key: &str) -> Result<Option<Vec<f64>>, ModelError> {
        let numbers = |value: &Value| value.as_array()?.iter().map(as_number).collect();
        self.read(key, "a list of numbers in the range of f32, one for each channel", numbers)
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>, ModelError> {
        self.read(key, "true or false", Value::as_bool)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, ModelError> {
        self.read(key, "text in quotes", |value| value.as_str().map(str::to_owned))
    }

    fn table(&mut self, key: &str) -> Result<Option<Fields>, ModelError> {
        let table = self.read(key, "a table", |value| value.as_table().cloned())?;
        let is_whole = self.place == "the model";
        let place = if is_whole { key.to_owned() } else { format!("{}, {key}", self.place) };
        Ok(table.map(|table| Fields { table, place }))
    }

    fn init(&mut self) -> Result<RawInit, ModelError> {
        let Some(mut init) = self.table("init")? else { return Ok(RawInit { std: None, bias: None }) };
        init.check_keys(&["std", "bias"])?;
        Ok(RawInit { std: init.number("std")?, bias: init.number("bias")? })
    }

    /// Windows lie side by side where no stride is given, as in PyTorch.
    fn pool(&mut self) -> Result<RawPool, ModelError> {
        let kernel = self.required("kernel", Fields::count)?;
        Ok(RawPool { kernel, stride: self.count("stride")?.unwrap_or(kernel), pad: self.count("pad")?.unwrap_or(0) })
    }

    fn read<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.table.remove(key) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| self.wrong(key, &value, expected))
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> ModelError {
        let reason = format!("{key} = {}; must be {expected}", shown(value));
        ModelError::Value { place: self.place.clone(), reason }
    }
}

/// A number, which becomes an f32 in training.
fn as_number(value: &Value) -> Option<f64> {
    let number = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))?;
    let is_in_range = number == 0.0 || (f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&number.abs());
    (is_in_range || !number.is_finite()).then_some(number)
}

/// A value as TOML writes it, cut where it is long.
pub(crate) fn shown(value: &Value) -> String {
    const CHARACTERS_MAX: usize = 60;
    // TOML escapes the control characters of ASCII alone.
    let text = match value {
        Value::Table(_) => "{ ... }".to_owned(),
        other => printable(&other.to_string()),
    };
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
