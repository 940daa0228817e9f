//! Which layers of a network get their weights from a file, and what they are called there.
//!
//! Not here: reading the file (`checkpoint`).

use std::collections::BTreeMap;

use convoy_common::model::Network;
use convoy_common::parameters::Parameter;
use convoy_common::suggest;
use convoy_common::text::printable;

/// Layers of a network, and layers of a file.
#[derive(Clone, Debug, Default)]
pub struct Correspondence {
    /// Layers of the network that keep their own weights. What the file has under their names is left out.
    pub except: Vec<String>,
    /// The names of layers in the file, by the network's own, where they differ.
    pub names: BTreeMap<String, String>,
}

/// What is wrong with a correspondence.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum CorrespondenceError {
    /// A layer that the network does not have, or that has no weights.
    #[error("{option}: \"{}\" is no layer with weights of the model \"{model}\"{hint}", printable(name))]
    UnknownLayer { option: &'static str, name: String, model: String, hint: String },
    /// Two layers would get the same weights.
    #[error(
        "--init-names: the layers \"{}\" and \"{}\" would both get the weights of \"{}\"",
        printable(one),
        printable(other),
        printable(layer)
    )]
    Twice { one: String, other: String, layer: String },
    /// All layers keep their own weights.
    #[error("--init-except leaves out all layers of the model \"{model}\", so --init would do nothing")]
    Nothing { model: String },
}

impl Correspondence {
    /// Checks that all layers are those of the network, that some of them are read, and no two from the same place.
    ///
    /// # Errors
    /// Names the layers that are wrong.
    pub fn check(&self, network: &Network) -> Result<(), CorrespondenceError> {
        let parameters = network.parameters();
        let mut known: Vec<&str> = parameters.iter().map(Parameter::layer_name).collect();
        known.dedup();
        let except = self.except.iter().map(|name| ("--init-except", name));
        let mut asked = except.chain(self.names.keys().map(|name| ("--init-names", name)));
        let model = || network.name.clone();
        if let Some((option, name)) = asked.find(|(_, name)| !known.contains(&name.as_str())) {
            let hint = suggest::hint(name, &known);
            return Err(CorrespondenceError::UnknownLayer { option, name: name.clone(), model: model(), hint });
        }
        let mut sources = BTreeMap::new();
        for layer in parameters.iter().filter(|parameter| self.is_read(parameter)).map(Parameter::layer_name) {
            let earlier = sources.insert(self.source(layer), layer);
            if let Some(one) = earlier.filter(|earlier| *earlier != layer) {
                let [one, other, layer] = [one, layer, self.source(layer)].map(str::to_owned);
                return Err(CorrespondenceError::Twice { one, other, layer });
            }
        }
        if sources.is_empty() { Err(CorrespondenceError::Nothing { model: model() }) } else { Ok(()) }
    }

    /// The name of a layer in the file.
    fn source<'a>(&'a self, layer: &'a str) -> &'a str {
        self.names.get(layer).map_or(layer, String::as_str)
    }

    /// The name of a parameter in the file.
    pub(super) fn in_file(&self, parameter: &Parameter) -> String {
        let layer = parameter.layer_name();
        format!("{}{}", self.source(layer), &parameter.name[layer.len()..])
    }

    /// Whether a parameter's values come from the file.
    pub(super) fn is_read(&self, parameter: &Parameter) -> bool {
        !self.except.iter().any(|except| except == parameter.layer_name())
    }

    /// Whether a tensor of the file belongs to a layer that is left out.
    pub(super) fn leaves_out(&self, tensor: &str) -> bool {
        let layer = tensor.rsplit_once('.').map_or(tensor, |(layer, _)| layer);
        self.except.iter().any(|except| self.source(except) == layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(except: &[&str], names: &[(&str, &str)]) -> String {
        let linear = |name: &str| format!("[[layer]]\nkind = \"linear\"\nname = \"{name}\"\nunits = 4\n");
        let head = "name = \"m\"\ntowers = 1\ninput = { channels = 1, height = 2, width = 2 }\n";
        let network = Network::parse(&format!("{head}{}{}{}", linear("a"), linear("b"), linear("c"))).unwrap();
        let except = except.iter().map(|name| (*name).to_owned()).collect();
        let names = names.iter().map(|(own, other)| ((*own).to_owned(), (*other).to_owned())).collect();
        let correspondence = Correspondence { except, names };
        match correspondence.check(&network) {
            Err(error) => error.to_string(),
            Ok(()) => {
                let read = network.parameters().into_iter().filter(|parameter| correspondence.is_read(parameter));
                read.map(|parameter| correspondence.in_file(&parameter)).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn layers_are_left_out_and_renamed() {
        assert_eq!(check(&["c"], &[]), "a.weight a.bias b.weight b.bias");
        assert_eq!(check(&["c"], &[("a", "b"), ("b", "a")]), "b.weight b.bias a.weight a.bias");
        assert_eq!(check(&["b", "c"], &[("a", "b")]), "b.weight b.bias", "the weights of a layer that is left out");
        let leaves = |tensor: &str| {
            let names = BTreeMap::from([("c".to_owned(), "classifier.6".to_owned())]);
            Correspondence { except: vec!["c".to_owned()], names }.leaves_out(tensor)
        };
        assert!(leaves("classifier.6.bias") && !leaves("c.bias") && !leaves("a.weight"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (except, names, expected) in [
            (&["d"][..], &[][..], "--init-except: \"d\" is no layer with weights of the model \"m\""),
            (
                &[],
                &[("aa", "x")],
                "--init-names: \"aa\" is no layer with weights of the model \"m\"; expected one of a, b, c",
            ),
            (&[], &[("a", "x"), ("b", "x")], "the layers \"a\" and \"b\" would both get the weights of \"x\""),
            (&[], &[("a", "b")], "the layers \"a\" and \"b\" would both get the weights of \"b\""),
            (&["a", "b", "c"], &[], "leaves out all layers"),
        ] {
            let found = check(except, names);
            assert!(found.contains(expected), "{found}");
        }
    }
}
