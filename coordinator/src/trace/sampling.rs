//! Which steps are kept in `trace.json`. A pure function of the step, except for slow steps.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::str::FromStr;

use convoy_common::random::Source;

/// The most steps of a sample, besides the first ones.
const SAMPLED: u64 = 50;
/// At most one step in this many is kept, on average. A kept step may take some 4 % longer, and the default may cost at most 1 %.
const APART: u64 = 5;
/// The first steps of a run are always kept, because their caches are cold.
const FIRST: u64 = 3;

/// Number of previous steps that a step is compared with.
const PACE_STEPS: usize = 15;
/// The most slow steps that are kept beside a sample.
const SLOW_MAX: usize = 30;

/// The purpose of the random numbers that place sampled steps.
const PLACES: &str = "steps of a trace";

/// Which steps to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sampling {
    /// None. Nothing is recorded.
    Off,
    /// A sample, spread over the run.
    #[default]
    Sample,
    /// A range.
    Steps(RangeInclusive<u64>),
    /// All.
    All,
}

impl Sampling {
    /// Whether `step` of a run from `first` to `last` is kept.
    pub fn keeps(&self, step: u64, first: u64, last: u64) -> bool {
        match self {
            Sampling::Off => false,
            Sampling::All => true,
            Sampling::Steps(range) => range.contains(&step),
            Sampling::Sample => {
                let every = (last + 1).saturating_sub(first).div_ceil(SAMPLED).max(APART);
                // A random place in each stretch: if stretches were as long as epochs, all sampled steps would begin one.
                let (stretch, place) = ((step - first) / every, (step - first) % every);
                step < first + FIRST || place == u64::from(Source::new(0, PLACES).word(stretch)) % every
            }
        }
    }

    /// Whether the file may grow without limit, because the user asked for these steps.
    pub fn is_unbounded(&self) -> bool {
        matches!(self, Sampling::All | Sampling::Steps(_))
    }
}

/// The usual length of steps, for finding slow ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// Nanoseconds of at most the last [`PACE_STEPS`] steps.
    recent: VecDeque<u64>,
    found: usize,
}

impl Pace {
    /// Whether a step of `ns` is slow: longer than one and a half times the median of those before it. At most [`SLOW_MAX`] steps
    /// are.
    pub(super) fn finds_slow(&mut self, ns: u64) -> bool {
        let mut sorted: Vec<_> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let is_slow = sorted.len() == PACE_STEPS && ns > sorted[PACE_STEPS / 2].saturating_mul(3) / 2;
        if self.recent.len() == PACE_STEPS {
            self.recent.pop_front();
        }
        self.recent.push_back(ns);
        self.found += usize::from(is_slow);
        is_slow && self.found <= SLOW_MAX
    }
}

impl FromStr for Sampling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" must be off, sample, all or steps:FROM-TO, for example steps:10-20");
        match text {
            "off" => Ok(Sampling::Off),
            "sample" => Ok(Sampling::Sample),
            "all" => Ok(Sampling::All),
            _ => {
                let (from, to) =
                    text.strip_prefix("steps:").and_then(|range| range.split_once('-')).ok_or_else(wrong)?;
                let (from, to) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
                if from <= to && from > 0 { Ok(Sampling::Steps(from..=to)) } else { Err(wrong()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_sample_lies_all_over_the_run_and_has_a_bound() {
        for (first, last) in [(1, 20), (1, 7_504), (400, 1_000_000)] {
            let kept: Vec<_> = (first..=last).filter(|step| Sampling::Sample.keeps(*step, first, last)).collect();
            assert!(kept.len() as u64 <= SAMPLED + FIRST && kept[0] == first);
            let every = ((last - first) / SAMPLED + 1).max(APART);
            assert!(kept[kept.len() - 1] + 2 * every >= last, "the end is not left out");
            let places: HashSet<_> = kept[3..].iter().map(|step| (step - first) % every).collect();
            assert!(kept.len() < 20 || places.len() > 10 || every == APART, "they don't fall in step with epochs");
        }
    }

    #[test]
    fn a_step_that_takes_half_as_long_again_is_slow_and_a_new_pace_is_soon_the_usual_one() {
        let mut pace = Pace::default();
        assert!(!pace.finds_slow(1_000_000), "the first steps have nothing to be compared with");
        assert!((0..40).all(|step| !pace.finds_slow(100 + step)));
        assert!(pace.finds_slow(250) && !pace.finds_slow(140));
        assert_eq!((0..20).filter(|_| pace.finds_slow(300)).count(), 7, "until they are the most");
        let mut restless = Pace::default();
        let found = (0..10_000).filter(|step| restless.finds_slow(if step % 16 == 15 { 900 } else { 100 })).count();
        assert_eq!(found, SLOW_MAX);
    }

    #[test]
    fn what_is_said_is_read_or_refused() {
        assert_eq!("steps:3-9".parse(), Ok(Sampling::Steps(3..=9)));
        assert!(Sampling::Steps(3..=9).keeps(9, 1, 99) && !Sampling::Steps(3..=9).keeps(10, 1, 99));
        for wrong in ["", "steps", "steps:9-3", "steps:0-3", "steps:a-b", "some"] {
            assert!(wrong.parse::<Sampling>().is_err(), "{wrong}");
        }
    }
}
