//! The sources of randomness of a run, each of which has a seed of its own.
//!
//! Not here: the series of runs in which one of them varies (`series`).

use convoy_common::suggest;
use convoy_coordinator::job::Asked;
use serde::Serialize;

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

    pub(crate) fn named(name: &str) -> Result<Self, String> {
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
