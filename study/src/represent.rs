//! Looks at what the runs of a study represent: loads their weights, computes the outputs of some layers for some test images, and compares
//! channels. It is done after all runs, and again only for runs whose weights were not looked at before.
//!
//! Not here: the comparison of channels (`representation`), and what the report says about it (`report`).

use std::collections::BTreeMap;
use std::thread;

use convoy_common::model::Network;
use convoy_common::parameters::{Tensors, sha256};
use convoy_coordinator::checkpoint::folder as checkpoints;
use convoy_worker::activations::activations;
use serde::{Deserialize, Serialize};

use crate::arm::Arm;
use crate::design::RunId;
use crate::error::StudyError;
use crate::file::{Represent, Study};
use crate::folder::Folder;
use crate::images::Images;
use crate::measured::{Measured, Outcome};
use crate::representation::filters::{Filters, filters};
use crate::representation::matrix::{Covariance, cross, similarity};
use crate::representation::{Correlated, Picture, correlated};

/// What a run represents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Represented {
    /// The name of its arm.
    pub arm: String,
    /// Its seed.
    pub seed: u64,
    /// SHA-256 over its weights, over those of the run that it is compared with, and what was looked at.
    pub of: String,
    /// Each layer that was looked at.
    pub layers: Vec<Layer>,
    /// Each layer whose filters were looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filters>,
}

/// A layer of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// How its channels correlate. None if too few of them vary.
    pub correlated: Option<Correlated>,
    /// The similarity with the same layer of the arm's next run (linear CKA), as a yardstick.
    pub with_next_seed: Option<f64>,
    /// The correlations in full, in the first run of an arm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<Picture>,
}

/// Looks at all runs that did not diverge, in order. `known` is what was looked at before.
///
/// # Errors
/// When the weights of a run that was not looked at before can't be read, or are not those that were measured.
pub fn represent(
    study: &Study,
    what: &Represent,
    images: &Images,
    folder: &Folder,
    measured: &BTreeMap<RunId, Measured>,
    known: &[Represented],
) -> Result<Vec<Represented>, StudyError> {
    let bytes = images.first_test_images(what.images)?;
    let mut all = Vec::new();
    for (id, run) in measured {
        let Some(weights) = weights_of(run) else { continue };
        let next = next_of(study, *id, measured);
        let of = key(what, images, weights, next.map(|(_, hash)| hash));
        let before = known.iter().find(|known| known.of == of && known.arm == run.arm && known.seed == run.seed);
        if let Some(before) = before {
            all.push(before.clone());
            continue;
        }
        let unknown = || {
            let (arm, seed, folder) = (run.arm.clone(), run.seed, folder.path().to_owned());
            StudyError::NotRepresented { arm, seed, folder }
        };
        let bytes = bytes.as_deref().ok_or_else(unknown)?;
        let looker = Looker { what, arm: &study.arms[id.arm], bytes };
        let weights = load(study, folder, *id, weights)?;
        let own = looker.outputs(&weights)?;
        let other = next.map(|(next, hash)| looker.outputs(&load(study, folder, next, hash)?)).transpose()?;
        all.push(Represented {
            arm: run.arm.clone(),
            seed: run.seed,
            of,
            layers: looker.layers(&own, other.as_ref(), id.pair == 0),
            filters: looker.filters(&weights, id.pair == 0),
        });
    }
    Ok(all)
}

fn weights_of(run: &Measured) -> Option<&str> {
    match &run.outcome {
        Outcome::Trained(trained) => Some(&trained.weights_sha256),
        Outcome::DivergedAfter(_) => None,
    }
}

/// The next run of the same arm that did not diverge, or else the first one.
fn next_of<'a>(study: &Study, id: RunId, measured: &'a BTreeMap<RunId, Measured>) -> Option<(RunId, &'a str)> {
    let pairs = study.arms[id.arm].seeds.len();
    let others = (1..pairs).map(|step| RunId { pair: (id.pair + step) % pairs, arm: id.arm });
    others.into_iter().find_map(|other| Some((other, weights_of(measured.get(&other)?)?)))
}

/// What decides the result.
fn key(what: &Represent, images: &Images, weights: &str, next: Option<&str>) -> String {
    let Represent { layers, filters, groups, images: count } = what;
    let next = next.unwrap_or("none");
    let filters =
        if filters.is_empty() { String::new() } else { format!(", and filters of {}", filters.join(" and ")) };
    let layers = layers.join(" and ");
    format!("{weights} and {next}, {layers} in {groups} groups on {count} images of {}{filters}", images.sha256)
}

/// The weights of a run, which must be those that were measured.
fn load(study: &Study, folder: &Folder, id: RunId, expected: &str) -> Result<Tensors, StudyError> {
    let path = folder.run(study, id);
    let damaged = |why: String| StudyError::Damaged { path: path.clone(), why };
    let opened = checkpoints::open(&path).map_err(|error| damaged(convoy_common::chain::chain(&error)))?;
    let weights = opened.checkpoint.state.weights;
    if sha256(&weights) != expected {
        return Err(damaged("its checkpoint does not have the weights that were measured".to_owned()));
    }
    Ok(weights)
}

/// The outputs of layers, by name: (sample, channel).
type Outputs = BTreeMap<String, Vec<f32>>;

/// Looks at the runs of an arm.
struct Looker<'a> {
    what: &'a Represent,
    arm: &'a Arm,
    /// Images, one after the other.
    bytes: &'a [u8],
}

impl Looker<'_> {
    fn outputs(&self, weights: &Tensors) -> Result<Outputs, StudyError> {
        if self.what.layers.is_empty() {
            return Ok(Outputs::new());
        }
        let network = &self.arm.network;
        let layers: Vec<usize> = self.what.layers.iter().filter_map(|name| index_of(network, name)).collect();
        // Each computation needs a thread of its own.
        let computed = thread::scope(|scope| scope.spawn(|| activations(network, weights, self.bytes, &layers)).join());
        let failed = |why: String| StudyError::Outputs { arm: self.arm.name.clone(), why };
        let outputs = computed.map_err(|_| failed("the computation ended unexpectedly".to_owned()))?;
        let outputs = outputs.map_err(|error| failed(convoy_common::chain::chain(&error)))?;
        Ok(outputs.into_iter().map(|(layer, values)| (network.layers[layer].name.clone(), values)).collect())
    }

    fn layers(&self, own: &Outputs, other: Option<&Outputs>, pictured: bool) -> Vec<Layer> {
        let layer = |name: &String| {
            let (values, channels) = (own.get(name)?, self.channels(name)?);
            let covariance = Covariance::of(values, channels);
            let found = correlated(&covariance, self.what.groups);
            let with_next_seed = other.and_then(|other| other.get(name)).map(|other| {
                let between = cross(values, channels, other, channels);
                similarity(&between, covariance.values(), Covariance::of(other, channels).values())
            });
            let (correlated, picture) = found.unzip();
            Some(Layer { name: name.clone(), correlated, with_next_seed, picture: picture.filter(|_| pictured) })
        };
        self.what.layers.iter().filter_map(layer).collect()
    }

    fn filters(&self, weights: &Tensors, pictured: bool) -> Vec<Filters> {
        let of = |name: &String| filters(name, weights.get(&format!("{name}.weight"))?, self.what.groups, pictured);
        self.what.filters.iter().filter_map(of).collect()
    }

    fn channels(&self, name: &str) -> Option<usize> {
        let network = &self.arm.network;
        index_of(network, name).map(|layer| network.layers[layer].output.channels)
    }
}

fn index_of(network: &Network, name: &str) -> Option<usize> {
    network.layers.iter().position(|layer| layer.name == name)
}
