//! Where the variation of runs comes from: series of runs of the control in which a single source of randomness varies.
//!
//! Not here: the sources (`vary`), and how large the variation is (`report`).

use convoy_common::fields::{FieldError, Fields};
use convoy_common::model::LayerKind;

use crate::arm::{Arm, RUNS_MAX, Settings};
use crate::vary::{Source, Varies};

/// How far the seeds of these series lie from those of the control.
const AWAY: u64 = 2_000_000;

/// The table `variance` of a study's file.
pub(crate) struct Variance {
    sources: Vec<String>,
    runs: u64,
}

impl Variance {
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, FieldError> {
        fields.check_keys(&["sources", "runs"])?;
        Ok(Self {
            sources: fields.required("sources", |fields, key| fields.texts(key, "a list of names of sources"))?,
            runs: fields.required("runs", Fields::count)? as u64,
        })
    }

    /// The series of the control.
    ///
    /// # Errors
    /// Says which source can't vary in it.
    pub(crate) fn series(&self, control: &Arm, settings: &Settings) -> Result<Vec<Arm>, String> {
        let Self { sources, runs } = self;
        if !(2..=RUNS_MAX).contains(runs) {
            return Err(format!("variance, runs = {runs}; must be 2 to {RUNS_MAX}"));
        }
        if sources.is_empty() {
            return Err("variance, sources: it names no source; must name at least one".to_owned());
        }
        let mut series: Vec<Arm> = Vec::new();
        for name in sources {
            let source = Source::named(name)?;
            check(source, control, settings)?;
            if series.iter().any(|arm| arm.varies.is_some_and(|varies| varies.source == source)) {
                return Err(format!("variance, sources: \"{name}\" is there twice; must be named once"));
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
