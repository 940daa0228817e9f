//! Where the variation of runs comes from: series of the control in which a single source of randomness varies.
//!
//! Not here: how large the variation is (`report`).

use convoy_common::fields::{FieldError, Fields};
use convoy_common::model::LayerKind;
use convoy_common::suggest;
use convoy_coordinator::job::Asked;
use serde::Serialize;

use crate::file::{Arm, Settings};

/// How far the seeds of these series lie from those of the control.
const AWAY: u64 = 2_000_000;

/// A source of randomness, which has a seed of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The initial weights.
    Initial,
    /// The order of the images.
    Order,
    /// The units that dropout drops.
    Dropout,
    /// The choice of training images.
    Split,
}

const SOURCES: [Source; 4] = [Source::Initial, Source::Order, Source::Dropout, Source::Split];

impl Source {
    /// Its name in a study's file.
    pub fn name(self) -> &'static str {
        match self {
            Source::Initial => "initial",
            Source::Order => "order",
            Source::Dropout => "dropout",
            Source::Split => "split",
        }
    }

    /// What it decides, for people.
    pub fn about(self) -> &'static str {
        match self {
            Source::Initial => "the initial weights",
            Source::Order => "the order of the images",
            Source::Dropout => "the units that dropout drops",
            Source::Split => "the choice of training images",
        }
    }

    /// The flag of `convoy train` for its seed.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Source::Initial => "--init-seed",
            Source::Order => "--order-seed",
            Source::Dropout => "--dropout-seed",
            Source::Split => "--split-seed",
        }
    }

    fn named(name: &str) -> Result<Self, String> {
        let names = SOURCES.map(Source::name);
        let found = SOURCES.into_iter().find(|source| source.name() == name);
        found.ok_or_else(|| {
            format!(
                "variance, sources: unknown source \"{name}\"{}; must be some of {}",
                suggest::hint(name, &names),
                names.join(", ")
            )
        })
    }
}

/// What decides a run of an arm in which a single source varies. The run's own seed is that of the source.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Varies {
    /// What varies.
    pub source: Source,
    /// The seed of everything else.
    pub seed: u64,
}

impl Varies {
    /// The seeds of a job: that of the source, and that of everything else.
    pub(crate) fn seed(self, asked: &mut Asked, of_source: u64) {
        asked.seed = Some(self.seed);
        let seed = match self.source {
            Source::Initial => &mut asked.init_seed,
            Source::Order => &mut asked.order_seed,
            Source::Dropout => &mut asked.dropout_seed,
            Source::Split => &mut asked.split_seed,
        };
        *seed = Some(of_source);
    }
}

/// The table `variance` of a study's file.
pub(crate) struct Variance {
    sources: Vec<String>,
    runs: u64,
}

impl Variance {
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, FieldError> {
        fields.check_keys(&["sources", "runs"])?;
        let texts =
            |value: &toml::Value| value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect();
        Ok(Self {
            sources: fields.required("sources", |fields, key| fields.read(key, "a list of names of sources", texts))?,
            runs: fields.required("runs", Fields::count)? as u64,
        })
    }

    /// The series of the control.
    ///
    /// # Errors
    /// Says which source can't vary in it.
    pub(crate) fn series(&self, control: &Arm, settings: &Settings, runs_max: u64) -> Result<Vec<Arm>, String> {
        let Self { sources, runs } = self;
        if !(2..=runs_max).contains(runs) {
            return Err(format!("variance, runs = {runs}; must be 2 to {runs_max}"));
        }
        if sources.is_empty() {
            return Err("variance, sources: it names no source; must name at least one".to_owned());
        }
        let mut series: Vec<Arm> = Vec::new();
        for name in sources {
            let source = Source::named(name)?;
            check(source, control, settings)?;
            if series.iter().any(|arm| arm.varies.is_some_and(|varies| varies.source == source)) {
                return Err(format!("variance, sources: \"{name}\" is there twice"));
            }
            series.push(control.varying(source, *runs));
        }
        Ok(series)
    }
}

fn check(source: Source, control: &Arm, settings: &Settings) -> Result<(), String> {
    let has_dropout = || control.network.layers.iter().any(|layer| matches!(layer.kind, LayerKind::Dropout { .. }));
    match source {
        Source::Dropout if !has_dropout() => {
            Err(format!("variance, sources: \"dropout\" can't vary, because {} has no dropout", control.name))
        }
        Source::Split if settings.images.is_none() => Err(
            "variance, sources: \"split\" can't vary, because all training images are used; must have train = { images = N }"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

impl Arm {
    /// The series of this arm in which only `source` varies.
    fn varying(&self, source: Source, runs: u64) -> Self {
        let seed = self.seeds.first().copied().unwrap_or_default();
        Self {
            name: format!("{}-{}", self.name, source.name()),
            about: format!("{}; only {} varies", self.about, source.about()),
            seeds: (AWAY + seed..AWAY + seed + runs).collect(),
            varies: Some(Varies { source, seed }),
            ..self.clone()
        }
    }
}
