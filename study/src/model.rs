//! The model of an arm: a preset or a file, with changes to some layers.
//!
//! Not here: what a model file means (`convoy_common::model`).

use toml::{Table, Value};

/// Changes to layers: for each layer's name, the keys that get other values.
pub(crate) type Changes = Table;

/// The text of a model with some changes, under the name of its arm. The text itself if there are none.
///
/// # Errors
/// Says which change doesn't fit.
pub(crate) fn changed(text: &str, arm: &str, changes: &Changes) -> Result<String, String> {
    if changes.is_empty() {
        return Ok(text.to_owned());
    }
    let mut model: Table = text.parse().map_err(|error| format!("the model is not valid TOML: {error}"))?;
    model.insert("name".to_owned(), Value::String(arm.to_owned()));
    let empty = Vec::new();
    let names: Vec<String> = {
        let layers = model.get("layer").and_then(Value::as_array).unwrap_or(&empty);
        layers.iter().filter_map(|layer| Some(layer.get("name")?.as_str()?.to_owned())).collect()
    };
    for (key, change) in changes {
        match change {
            Value::Table(keys) => {
                let layers = model.get_mut("layer").and_then(Value::as_array_mut);
                let mut layers = layers.into_iter().flatten().filter_map(Value::as_table_mut);
                let is_it = |layer: &Table| layer.get("name").and_then(Value::as_str) == Some(key);
                let layer = layers.find(|layer| is_it(layer));
                let layer = layer.ok_or_else(|| {
                    format!("the model has no layer named \"{key}\"; its named layers are {}", names.join(", "))
                })?;
                layer.extend(keys.clone());
            }
            // A key of the model itself, such as towers.
            other => {
                model.insert(key.clone(), other.clone());
            }
        }
    }
    toml::to_string(&model).map_err(|error| error.to_string())
}
