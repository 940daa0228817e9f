//! The mean of some runs and how they vary.

use serde::Serialize;

use crate::statistics::{deviation, mean};

/// The mean of some runs and how they vary.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Summary {
    /// Number of runs.
    pub runs: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub deviation: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of at least one value.
    pub(super) fn of(values: &[f64]) -> Self {
        Self {
            runs: values.len(),
            mean: mean(values),
            deviation: if values.len() > 1 { deviation(values) } else { 0.0 },
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}
