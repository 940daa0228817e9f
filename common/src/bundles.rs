//! Bundles: parameters of the trunk whose gradients are summed over replicas in common tensors. A tensor costs time however small it is, and
//! most layers of a small network have few parameters.
//!
//! Not here: how a bundle is cut into pieces, and who sums them (`plan`).

use std::ops::Range;

use crate::index::TowerIndex;
use crate::model::Network;
use crate::parameters::Parameter;

/// The most floats of a bundle of several layers, as the gradients of all towers lie in panels. They are 512 KiB, which a link of 1,000 Mbit/s
/// carries in 4 ms. Larger layers are bundles of their own, so that their gradients travel while the layers before them are computed.
const FLOATS_MAX: usize = 1 << 17;

/// Parameters of neighbouring layers of the trunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    /// The name of its layer, or of its first and its last one: `conv1`, or `conv1 to conv2`.
    pub name: String,
    /// Its layers. The first one and the last one have weights. The gradients are complete when the backward pass has reached the first one.
    pub layers: Range<usize>,
    /// Its parameters, in the order of the layers, weight before bias.
    pub parameters: Vec<Parameter>,
}

impl Bundle {
    /// The bundles of a network, in the order of their layers. They follow from the network alone, so that all processes have the same ones.
    pub(crate) fn all(network: &Network) -> Vec<Self> {
        // In the order of the backward pass: a layer joins the layers after it, whose gradients are complete earlier.
        let mut ranges: Vec<(Range<usize>, usize)> = Vec::new();
        for layer in (0..network.head()).rev().filter(|layer| network.layers[*layer].has_weights()) {
            let floats = floats_of(network, layer);
            match ranges.last_mut() {
                Some((layers, all)) if *all + floats <= FLOATS_MAX => (layers.start, *all) = (layer, *all + floats),
                _ => ranges.push((layer..layer + 1, floats)),
            }
        }
        ranges.into_iter().rev().map(|(layers, _)| Self::of(network, layers)).collect()
    }

    fn of(network: &Network, layers: Range<usize>) -> Self {
        let [first, last] = [layers.start, layers.end - 1].map(|layer| network.layers[layer].name.as_str());
        let name = if first == last { first.to_owned() } else { format!("{first} to {last}") };
        let parameters = layers.clone().flat_map(|layer| network.parameters_of(layer)).collect();
        Self { name, layers, parameters }
    }
}

/// Floats of the gradients of a layer, of all towers.
fn floats_of(network: &Network, layer: usize) -> usize {
    let of = |parameter: &Parameter| {
        TowerIndex::all(network.towers).map(|tower| parameter.gradient_floats(network, tower)).sum::<usize>()
    };
    network.parameters_of(layer).iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::presets;

    fn of(preset: &str) -> (Network, Vec<Bundle>) {
        let network = Network::parse(presets::text(preset).unwrap()).unwrap();
        let bundles = Bundle::all(&network);
        (network, bundles)
    }

    #[test]
    fn small_neighbours_share_a_bundle_and_large_layers_have_their_own() {
        let names = |preset| of(preset).1.into_iter().map(|bundle| bundle.name).collect::<Vec<_>>();
        assert_eq!(names("alexnet"), ["conv1", "conv2", "conv3", "conv4", "conv5"]);
        assert_eq!(names("alexnet-fashion"), ["conv1 to conv2", "conv3 to conv5"]);
    }

    #[test]
    fn bundles_hold_each_parameter_of_the_trunk_once_and_in_order() {
        for preset in ["alexnet", "alexnet-fashion", "alexnet-fashion-dense"] {
            let (network, bundles) = of(preset);
            let trunk = network.parameters().into_iter().filter(|parameter| parameter.layer < network.head());
            let held: Vec<_> = bundles.iter().flat_map(|bundle| bundle.parameters.clone()).collect();
            assert_eq!(held, trunk.collect::<Vec<_>>(), "{preset}");
            for Bundle { layers, parameters, .. } in &bundles {
                let with_weights = layers.clone().filter(|layer| network.layers[*layer].has_weights());
                let floats: usize = layers.clone().map(|layer| floats_of(&network, layer)).sum();
                assert!(with_weights.count() == 1 || floats <= FLOATS_MAX, "{layers:?} have {floats}");
                assert!(parameters.iter().all(|parameter| layers.contains(&parameter.layer)));
                assert!(network.layers[layers.start].has_weights());
            }
        }
    }
}
