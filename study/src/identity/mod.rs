//! Is a grouped convolution the same as an ungrouped one? Claims that are checked to the bit: for a single layer, and for two models in
//! training.
//!
//! Not here: statistics. Each claim holds or does not hold.

mod embedding;
mod layer;
mod page;
mod training;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use convoy_coordinator::files::{remove_any, write_atomically};
use convoy_dataset::{DataSource, Places};
use serde::Serialize;

use crate::error::StudyError;
use crate::folder::write_json;
use crate::place::Place;

pub use training::Models;

/// The claims as JSON, in the folder.
pub const CLAIMS: &str = "identity.json";
/// The file that says whose folder it is.
const MARK: &str = "study.json";
/// The page.
pub const PAGE: &str = "identity.html";

/// What was checked.
#[derive(Clone, Debug, Serialize)]
pub struct Identity {
    /// The layer that was looked at.
    pub layer: LayerFacts,
    /// The two models that were trained.
    pub models: ModelFacts,
    /// Each claim.
    pub claims: Vec<Claim>,
}

/// A claim, and whether it holds.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    /// The claim.
    pub claim: String,
    /// Whether it holds.
    pub holds: bool,
    /// What was counted or measured.
    pub found: String,
}

/// The layer, with and without groups.
#[derive(Clone, Debug, Serialize)]
pub struct LayerFacts {
    /// Rows, columns and channels of its input.
    pub input: [usize; 3],
    /// Its filters.
    pub filters: usize,
    /// Side of a kernel.
    pub kernel: usize,
    /// Its groups.
    pub groups: usize,
    /// Two-dimensional kernels with groups, and without.
    pub kernels: [usize; 2],
    /// Multiply-adds with groups, and without.
    pub multiply_adds: [u64; 2],
}

/// The two models in training.
#[derive(Clone, Debug, Serialize)]
pub struct ModelFacts {
    /// The model with groups.
    pub grouped: String,
    /// The model without.
    pub dense: String,
    /// The layers that differ, with the number of groups.
    pub layers: Vec<(String, usize)>,
    /// Steps of training.
    pub steps: u64,
    /// SHA-256 over the weights of the grouped model after these steps.
    pub weights_sha256: String,
    /// For each of these layers: the mean absolute gradient of the first step within blocks and outside of them, in the model without groups.
    pub gradients: Vec<[f64; 2]>,
}

impl Identity {
    /// Whether all claims hold.
    pub fn holds(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds)
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let line = |claim: &Claim| {
            let word = if claim.holds { "holds" } else { "FAILS" };
            format!("{word}  {}\n       {}\n", claim.claim, claim.found)
        };
        self.claims.iter().map(line).collect()
    }
}

/// Checks all claims in the folder `out`, and writes what was found. The images of the training are those of `data`.
///
/// # Errors
/// When the models don't fit each other, when a job fails, or when `stop` is set.
pub fn check(
    models: &Models,
    data: &DataSource,
    places: &Places,
    out: &Path,
    place: &Place,
    stop: &AtomicBool,
) -> Result<Identity, StudyError> {
    models.check_data(data, places)?;
    claim(out)?;
    let (layer, of_layer) = layer::check()?;
    let (facts, of_models) = training::check(models, data, out, place, stop)?;
    let identity = Identity { layer, models: facts, claims: [of_layer, of_models].concat() };
    write_json(&out.join(CLAIMS), &identity)?;
    let path = out.join(PAGE);
    let written = write_atomically(&path, identity.page().as_bytes());
    written.map_err(|source| StudyError::Write { path, source })?;
    Ok(identity)
}

/// Makes sure that the folder is this study's own: what earlier jobs left there is removed.
fn claim(out: &Path) -> Result<(), StudyError> {
    let failed = |source| StudyError::Write { path: out.to_owned(), source };
    std::fs::create_dir_all(out).map_err(failed)?;
    let is_empty = std::fs::read_dir(out).map_err(failed)?.next().is_none();
    if !is_empty && !out.join(MARK).is_file() {
        return Err(StudyError::Occupied { folder: out.to_owned() });
    }
    write_json(&out.join(MARK), &"identity")?;
    remove_any(&out.join(training::RUNS)).map_err(failed)
}

/// How many values are equal to the bit.
fn equal(a: &[f32], b: &[f32]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a.to_bits() == b.to_bits()).count()
}

/// A claim that two lists are equal to the bit.
fn same(claim: &str, what: &str, a: &[f32], b: &[f32]) -> Claim {
    let count = equal(a, b);
    let holds = count == a.len() && a.len() == b.len() && count > 0;
    Claim { claim: claim.to_owned(), holds, found: format!("{count} of {} {what} are equal to the bit", a.len()) }
}
