//! An arm of a study, and the settings of its runs: everything that decides a job, and nothing else.
//!
//! Not here: reading the file of a study (`file`).

use convoy_common::fields::{FieldError, Fields};
use convoy_common::model::Network;
use convoy_coordinator::job::{Asked, Job, Length, SettingError};
use serde::Serialize;

use crate::vary::Varies;

/// The most runs of an arm.
pub(crate) const RUNS_MAX: u64 = 1000;

/// Settings of runs that decide their result. None: the default of `convoy train`. Those that are left out are not part of a study's hash,
/// so a later version may have more of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Settings {
    /// Images per step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// The base learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Momentum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Weight decay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// The learning-rate schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Slots per batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<usize>,
    /// Number of training images that are used, chosen by the run's seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
    /// Number of training images that are held out, and measured instead of the test images. No study's file has it: it is for choosing
    /// learning rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holdout: Option<usize>,
}

/// An arm: a network, and its runs.
#[derive(Clone, Debug, Serialize)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// What it is, for people.
    #[serde(skip)]
    pub about: String,
    /// The model's text.
    pub model: String,
    /// The learning rate, if it is not that of all arms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// The seed of each run. Runs of different arms with the same place in these lists form a pair.
    pub seeds: Vec<u64>,
    /// Whether it is the control with other seeds, which shows whether the method finds differences where there are none.
    pub is_again: bool,
    /// The single source of randomness that varies, if it is the control with such runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub varies: Option<Varies>,
    /// The network.
    #[serde(skip)]
    pub network: Network,
}

impl Settings {
    /// Each arm has a job with allowed values.
    pub(crate) fn check(&self, epochs: u64, arms: &[Arm]) -> Result<(), String> {
        for arm in arms {
            // The number of images is not known yet.
            let job = self.job(arm, epochs, 1, String::new(), |_| 1);
            job.map_err(|error| format!("arm \"{}\": {error}", arm.name))?;
        }
        Ok(())
    }

    /// Number of training images that a run uses, of `all` that there are.
    pub(crate) fn trained_of(&self, all: usize) -> usize {
        self.images.unwrap_or(all.saturating_sub(self.holdout.unwrap_or(0)))
    }

    /// The job of a run.
    pub(crate) fn job(
        &self,
        arm: &Arm,
        epochs: u64,
        seed: u64,
        images: String,
        steps_per_epoch: impl Fn(usize) -> u64,
    ) -> Result<Job, SettingError> {
        let mut asked = Asked {
            model: Some(arm.model.clone()),
            length: Some(Length::Epochs(epochs)),
            batch: self.batch,
            lr: arm.lr.or(self.lr),
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            // It is known to be one.
            schedule: self.schedule.as_ref().and_then(|text| text.parse().ok()),
            order: None,
            seed: Some(seed),
            slots: self.slots,
            train_images: self.images,
            holdout: self.holdout,
            ..Asked::default()
        };
        if let Some(varies) = arm.varies {
            varies.seed(&mut asked, seed);
        }
        asked.resolve(None, images, None, steps_per_epoch).map(|(job, _)| job)
    }

    pub(crate) fn read(train: &mut Fields) -> Result<Self, FieldError> {
        train.check_keys(&["batch", "lr", "momentum", "weight_decay", "schedule", "slots", "images"])?;
        Ok(Self {
            batch: train.count("batch")?,
            lr: train.number("lr")?,
            momentum: train.number("momentum")?,
            weight_decay: train.number("weight_decay")?,
            schedule: train.text("schedule")?,
            slots: train.count("slots")?,
            images: train.count("images")?,
            holdout: None,
        })
    }
}

impl Arm {
    /// Whether it is another series of runs of the control, and no arm of its own.
    pub(crate) fn is_series(&self) -> bool {
        self.is_again || self.varies.is_some()
    }
}
