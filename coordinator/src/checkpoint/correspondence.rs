//! Which layers of a network get their weights from a file, and what they are called there.
//!
//! Not here: reading the file (`checkpoint`).

use std::collections::BTreeMap;

use convoy_common::model::Network;
use convoy_common::parameters::Parameter;
use convoy_common::suggest;
use convoy_common::wire::printable;

/// Layers of a network, and layers of a file.
#[derive(Clone, Debug, Default)]
pub struct Correspondence {
    /// Layers that keep their own weights. What the file has under their names is left out.
    pub except: Vec<String>,
    /// The names of layers in the file, by the network's own, where they differ.
    pub names: BTreeMap<String, String>,
}

/// A layer that the network does not have, or that has no weights.
#[derive(Debug, thiserror::Error)]
#[error("{option}: \"{}\" is no layer with weights of the model \"{model}\"{hint}", printable(name))]
pub struct UnknownLayer {
    option: &'static str,
    name: String,
    model: String,
    hint: String,
}

impl Correspondence {
    /// Checks that all layers are those of the network.
    ///
    /// # Errors
    /// Names one that it does not have, or that has no weights.
    pub fn check(&self, network: &Network) -> Result<(), UnknownLayer> {
        let parameters = network.parameters();
        let known: Vec<&str> = parameters.iter().map(layer_of).collect();
        let except = self.except.iter().map(|name| ("--init-except", name));
        let mut asked = except.chain(self.names.keys().map(|name| ("--init-names", name)));
        match asked.find(|(_, name)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((option, name)) => {
                let (model, hint) = (network.name.clone(), suggest::hint(name, &known));
                Err(UnknownLayer { option, name: name.clone(), model, hint })
            }
        }
    }

    /// The name of a parameter in the file.
    pub(super) fn in_file(&self, parameter: &Parameter) -> String {
        match self.names.get(layer_of(parameter)) {
            Some(layer) => format!("{layer}{}", &parameter.name[layer_of(parameter).len()..]),
            None => parameter.name.clone(),
        }
    }

    /// Whether a parameter's values come from the file.
    pub(super) fn is_read(&self, parameter: &Parameter) -> bool {
        !self.except.iter().any(|except| except == layer_of(parameter))
    }
}

/// The layer of a parameter.
fn layer_of(parameter: &Parameter) -> &str {
    parameter.name.rsplit_once('.').map_or(parameter.name.as_str(), |(layer, _)| layer)
}
