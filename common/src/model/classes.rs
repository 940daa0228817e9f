//! A model for another number of classes: the same file with other units in its last layer.
//!
//! Not here: which number that is (the crate `dataset`).

use toml::{Table, Value};

use super::{ModelError, Network};

/// The text of a model with so many classes. The text itself if it has as many; otherwise its comments are lost.
///
/// # Errors
/// When the model is not valid, or can't have so many classes.
pub fn with_classes(text: &str, classes: usize) -> Result<String, ModelError> {
    if Network::parse(text)?.classes() == classes {
        return Ok(text.to_owned());
    }
    let mut model: Table = text.parse().unwrap_or_default();
    let layers = model.get_mut("layer").and_then(Value::as_array_mut);
    let last = layers.and_then(|layers| layers.last_mut()?.as_table_mut()).ok_or(ModelError::NoLayers)?;
    last.insert("units".to_owned(), Value::Integer(classes as i64));
    let text = model.to_string();
    Network::parse(&text).map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::presets;

    #[test]
    fn only_the_last_layer_changes() {
        let text = presets::text("alexnet-cifar").unwrap();
        assert_eq!(with_classes(text, 10).unwrap(), text);
        let (before, after) = (Network::parse(text).unwrap(), Network::parse(&with_classes(text, 7).unwrap()).unwrap());
        assert_eq!((after.classes(), &after.input), (7, &before.input));
        let last = before.layers.len() - 1;
        assert_eq!(after.layers[..last], before.layers[..last]);
        assert_ne!(after.layers[last], before.layers[last]);
        // A tower of the last layer needs a unit.
        assert!(with_classes(text, 1).unwrap_err().to_string().contains("units = 1"));
    }
}
