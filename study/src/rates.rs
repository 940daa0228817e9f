//! The learning rates that each arm of a study tries: the table `tune` of its file.
//!
//! Not here: trying them, and the choice (`tune`).

use convoy_common::fields::{FieldError, Fields};
use serde::Serialize;
use toml::Value;

use crate::arm::{Arm, RUNS_MAX, Settings};

/// The most rates that are tried.
const RATES_MAX: usize = 32;

/// How learning rates are chosen.
#[derive(Clone, Debug, Serialize)]
pub struct Tune {
    /// The rates that are tried, ascending.
    pub rates: Vec<f64>,
    /// Training images that are held out.
    pub holdout: usize,
    /// Runs of each arm with each rate.
    pub runs: u64,
}

impl Tune {
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, FieldError> {
        fields.check_keys(&["rates", "holdout", "runs"])?;
        let number = |value: &Value| value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64));
        let numbers = |value: &Value| value.as_array()?.iter().map(number).collect();
        Ok(Self {
            rates: fields.required("rates", |fields, key| fields.read(key, "a list of learning rates", numbers))?,
            holdout: fields.required("holdout", Fields::count)?,
            runs: fields.count("runs")?.unwrap_or(1) as u64,
        })
    }

    pub(crate) fn check(&self, arms: &[Arm], settings: &Settings, epochs: u64) -> Result<(), String> {
        let Self { rates, holdout, runs } = self;
        // Workers compute with f32, in which rates that are too close are the same.
        let is_ascending = rates.windows(2).all(|two| (two[0] as f32) < two[1] as f32);
        if !(2..=RATES_MAX).contains(&rates.len()) || !is_ascending {
            return Err(format!(
                "tune, rates = {rates:?}; must be 2 to {RATES_MAX} numbers above 0 that differ in f32, in ascending order"
            ));
        }
        if *holdout == 0 {
            return Err("tune, holdout = 0; must be at least 1 training image".to_owned());
        }
        if !(1..=RUNS_MAX).contains(runs) {
            return Err(format!("tune, runs = {runs}; must be 1 to {RUNS_MAX}"));
        }
        if settings.lr.is_some() {
            return Err("train, lr: must be left out, because tune chooses the learning rate of each arm".to_owned());
        }
        if let Some(arm) = arms.iter().find(|arm| arm.lr.is_some()) {
            let name = &arm.name;
            return Err(format!(
                "arm \"{name}\", lr: must be left out, because tune chooses the learning rate of each arm"
            ));
        }
        for rate in rates {
            let with_rate: Vec<Arm> = arms.iter().map(|arm| Arm { lr: Some(*rate), ..arm.clone() }).collect();
            settings.check(epochs, &with_rate).map_err(|reason| format!("tune, rates: {reason}"))?;
        }
        Ok(())
    }
}
