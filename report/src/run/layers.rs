//! What the parameters of a network became: their size, how far they are from where they began, and how large the last update was. And the
//! filters of the first convolution, by tower.

use convoy_common::index::TowerIndex;
use convoy_common::model::{LayerKind, Network};
use convoy_common::parameters::{Parameter, Tensors};
use ndarray::ArrayD;
use serde::Serialize;

use crate::filters::tiles;
use crate::raster::Raster;

/// The parameters of a network.
#[derive(Clone, Debug, Serialize)]
pub struct Layers {
    /// Each parameter.
    pub parameters: Vec<ParameterReport>,
    /// The filters of the first convolution. None if there is no convolution.
    #[serde(skip)]
    pub filters: Option<Filters>,
}

/// A parameter. Sizes are root mean squares over its values.
#[derive(Clone, Debug, Serialize)]
pub struct ParameterReport {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The size of its values.
    pub size: f64,
    /// The size before the first step. None if the job began with weights of a file.
    pub size_at_start: Option<f64>,
    /// The size of the difference from the values before the first step.
    pub moved: Option<f64>,
    /// The size of the last update. None if its learning rate or its momentum is not known.
    pub update: Option<f64>,
}

/// Filters, for a picture.
#[derive(Clone, Debug)]
pub struct Filters {
    /// The layer's name.
    pub layer: String,
    /// The number of filters of each tower, and their picture.
    pub towers: Vec<(usize, Raster)>,
}

impl Layers {
    /// The parameters of a checkpoint. `rate` is the learning rate of its last step. `seeds` decide the values before the first step and the masks, if
    /// the job began with those.
    pub fn new(
        network: &Network,
        weights: &Tensors,
        momentum: &Tensors,
        rate: Option<f64>,
        seeds: Option<[u64; 2]>,
    ) -> Self {
        let report = |parameter: Parameter| {
            let values = weights.get(&parameter.name)?;
            let start = seeds.map(|[init_seed, seed]| parameter.initial(init_seed, seed));
            let moved = start.as_ref().filter(|start| start.shape() == values.shape()).map(|start| values - start);
            Some(ParameterReport {
                size: size(values),
                size_at_start: start.as_ref().map(size),
                moved: moved.as_ref().map(size),
                // SGD as in PyTorch: the rate times the momentum is what was subtracted.
                update: rate.zip(momentum.get(&parameter.name)).map(|(rate, momentum)| rate * size(momentum)),
                shape: parameter.shape,
                name: parameter.name,
            })
        };
        Self {
            parameters: network.parameters().into_iter().filter_map(report).collect(),
            filters: filters(network, weights),
        }
    }
}

fn size(values: &ArrayD<f32>) -> f64 {
    let sum: f64 = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    libm::sqrt(sum / values.len().max(1) as f64)
}

fn filters(network: &Network, weights: &Tensors) -> Option<Filters> {
    let index = network.layers.iter().position(|layer| matches!(layer.kind, LayerKind::Conv(_)))?;
    let layer = &network.layers[index];
    let values = weights.get(&format!("{}.weight", layer.name))?;
    let shape: [usize; 4] = values.shape().try_into().ok()?;
    let largest: Vec<f32> =
        values.outer_iter().map(|filter| filter.iter().fold(0.0, |most, weight| weight.abs().max(most))).collect();
    let of_tower = |tower: usize| {
        let filters: Vec<usize> = network.slice(index, TowerIndex(tower)).collect();
        let picture = tiles(shape, &filters, |filter, channel, row, column| {
            let weight = values[[filter, channel, row, column].as_slice()];
            if largest[filter] > 0.0 { f64::from(weight / largest[filter]) } else { 0.0 }
        });
        (filters.len(), picture)
    };
    Some(Filters { layer: layer.name.clone(), towers: (0..network.towers).map(of_tower).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_root_mean_squares() {
        let text = "name = \"m\"\ntowers = 1\ninput = { channels = 1, height = 2, width = 2 }\n\
                    layer = [{ kind = \"linear\", name = \"fc\", units = 2, bias = false }]";
        let network = Network::parse(text).unwrap();
        let start = network.initial_weights(3, 3);
        let momentum = Tensors::from([("fc.weight".to_owned(), ArrayD::from_elem(vec![2, 4], 2.0))]);
        let moved: Tensors = start.iter().map(|(name, values)| (name.clone(), values + 0.5)).collect();
        let found = Layers::new(&network, &moved, &momentum, Some(0.1), Some([3, 3]));
        let fc = &found.parameters[0];
        assert!((fc.moved.unwrap() - 0.5).abs() < 1e-6 && (fc.update.unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(fc.size_at_start, Some(size(&start["fc.weight"])));
        assert!(found.filters.is_none());
        let of_file = Layers::new(&network, &moved, &momentum, Some(0.1), None);
        assert_eq!((of_file.parameters[0].moved, of_file.parameters[0].size_at_start), (None, None));
    }
}
