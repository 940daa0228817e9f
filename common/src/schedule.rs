//! The learning rate of each step, in f64, by the formulas of docs/NUMERICS.md. The span of a schedule is fixed when the job
//! starts. A job that is resumed with a later end keeps the last rate of its span.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::suggest;

/// How the learning rate changes over a job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Schedule {
    /// Always the base rate.
    Constant,
    /// The rate is multiplied by `factor` after every `epochs` epochs.
    Step {
        /// Epochs between two changes, at least 1.
        epochs: u64,
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// Half a cosine from the base rate to almost zero.
    Cosine,
    /// A linear rise over the first 30 % of the span, then half a cosine down to almost zero (Smith's 1cycle, in fastai's form).
    OneCycle,
}

/// The lengths that a rate depends on, in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Steps of the schedule.
    pub steps: u64,
    /// Steps per epoch.
    pub steps_per_epoch: u64,
}

/// An invalid schedule.
#[derive(Debug, thiserror::Error, PartialEq)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ScheduleError {
    /// There is no schedule of this name.
    #[error("unknown schedule \"{given}\"{hint}")]
    Unknown { given: String, hint: String },
    /// The values of a step schedule are not allowed.
    #[error(
        "schedule \"{given}\" must be step:EPOCHS:FACTOR, with EPOCHS a whole number of at least 1, and FACTOR a finite number above 0; step alone means step:5:0.1"
    )]
    Step { given: String },
}

impl Schedule {
    /// The rate of `step`, counted from 1.
    pub fn rate(&self, base: f64, step: u64, span: Span) -> f64 {
        let done = (step.clamp(1, span.steps.max(1)) - 1) as f64;
        let total = span.steps as f64;
        match *self {
            Schedule::Constant => base,
            Schedule::Step { epochs, factor } => {
                let changes = (done as u64 / span.steps_per_epoch.max(1)) / epochs;
                (0..changes).fold(base, |rate, _| rate * factor)
            }
            Schedule::Cosine => base * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done / total)),
            Schedule::OneCycle => {
                let warm = 0.3 * total;
                if done < warm {
                    base * (0.04 + 0.96 * (done / warm))
                } else {
                    base * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * ((done - warm) / (total - warm))))
                }
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Constant => f.write_str("constant"),
            Schedule::Step { epochs, factor } => write!(f, "step:{epochs}:{factor}"),
            Schedule::Cosine => f.write_str("cosine"),
            Schedule::OneCycle => f.write_str("one-cycle"),
        }
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> String {
        schedule.to_string()
    }
}

impl TryFrom<String> for Schedule {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, ScheduleError> {
        text.parse()
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let unknown = || {
            let known = ["constant", "step:EPOCHS:FACTOR", "cosine", "one-cycle"];
            ScheduleError::Unknown { given: text.to_owned(), hint: suggest::hint(text, &known) }
        };
        let wrong_step = || ScheduleError::Step { given: text.to_owned() };
        let mut parts = text.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("constant"), None, None, None) => Ok(Schedule::Constant),
            (Some("cosine"), None, None, None) => Ok(Schedule::Cosine),
            (Some("one-cycle"), None, None, None) => Ok(Schedule::OneCycle),
            (Some("step"), epochs, factor, None) => {
                let epochs = epochs.unwrap_or("5").parse().map_err(|_| wrong_step())?;
                let factor: f64 = factor.unwrap_or("0.1").parse().map_err(|_| wrong_step())?;
                let is_sound = epochs > 0 && factor.is_finite() && factor > 0.0;
                if is_sound { Ok(Schedule::Step { epochs, factor }) } else { Err(wrong_step()) }
            }
            (Some("step"), ..) => Err(wrong_step()),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { steps: 100, steps_per_epoch: 10 };

    #[test]
    fn each_schedule_starts_peaks_and_ends_where_it_should() {
        let rates = |text: &str| -> Vec<f64> {
            let schedule: Schedule = text.parse().unwrap();
            (1..=120).map(|step| schedule.rate(0.1, step, SPAN)).collect()
        };
        assert!(rates("constant").iter().all(|r| *r == 0.1));
        let step = rates("step:2:0.5");
        assert_eq!((step[19], step[20], step[40]), (0.1, 0.05, 0.025));
        let cosine = rates("cosine");
        assert!(cosine[0] == 0.1 && cosine[99] < 1e-4 && cosine.is_sorted_by(|a, b| a >= b));
        let cycle = rates("one-cycle");
        assert!(cycle[0] < 0.005 && cycle[30] == 0.1 && cycle[99] < 1e-3);
        assert_eq!(cycle[119], cycle[99], "past its span the rate stays");
    }

    #[test]
    fn what_is_written_reads_back_and_nonsense_is_refused() {
        for text in ["constant", "step:3:0.2", "cosine", "one-cycle"] {
            assert_eq!(text.parse::<Schedule>().unwrap().to_string(), text);
        }
        for text in ["cosin", "step:0:0.1", "step:1:0", "step:1:0.1:9", "constant:1", ""] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
        assert!("cosin".parse::<Schedule>().unwrap_err().to_string().contains("did you mean \"cosine\"?"));
        for text in ["step:0:0.1", "step:x", "step:5:0", "step:5:inf", "step:5:0.1:2"] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains("EPOCHS a whole number of at least 1"), "{error}");
        }
    }
}
