//! What a run wrote into its folder: `run.json` and `metrics.jsonl`.

use std::io;
use std::path::{Path, PathBuf};

use convoy_coordinator::earlier::{METRICS, RECORD};
use convoy_coordinator::files::read_regular;
use convoy_coordinator::incident::Incident;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why the records of a run can't be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum RecordsError {
    /// The folder holds no run.
    #[error("{} holds no run: it has no {RECORD}; give the folder of a run", path.display())]
    None { path: PathBuf },
    /// A file can't be read.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The record is not one.
    #[error("{} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
}

/// What a run wrote.
#[derive(Clone, Debug, Serialize)]
pub struct Records {
    /// Its record.
    pub record: Record,
    /// Its steps.
    #[serde(skip)]
    pub steps: Vec<Step>,
    /// Its epochs.
    pub epochs: Vec<Epoch>,
    /// Lines of the metrics that could not be read.
    pub damaged_lines: usize,
}

/// The part of `run.json` that reports show.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(expecting = "the record of a run")]
pub struct Record {
    /// `running`, `done`, `interrupted` or `failed`.
    pub status: String,
    /// Why it failed.
    pub error: Option<String>,
    /// The steps after which numbers were no longer finite.
    pub diverged_after: Option<u64>,
    /// The model's name.
    pub model: String,
    /// Everything that decides the result.
    pub configuration: Value,
    /// What the data are.
    pub data: String,
    /// Training images per second.
    pub images_per_second: Option<f64>,
    /// Faults from which it recovered.
    #[serde(default)]
    pub incidents: Vec<Incident>,
    /// Its settings that don't change the result.
    #[serde(default)]
    pub running: Value,
}

/// A step.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Step {
    /// Its number.
    pub step: u64,
    /// The mean loss of its images. None if it was not finite.
    pub loss: Option<f64>,
    /// Its learning rate.
    pub lr: f64,
}

/// An epoch.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Epoch {
    /// Counted from 1.
    pub epoch: u64,
    /// Its last step.
    pub through_step: u64,
    /// Mean loss of its images.
    pub train_loss: Option<f64>,
    /// Share of test images that were classified correctly.
    pub test_accuracy: f64,
    /// Mean loss of the test images.
    pub test_loss: Option<f64>,
    /// Seconds of training.
    pub seconds: f64,
    /// Training images per second.
    pub images_per_second: f64,
}

impl Records {
    /// Reads the records of the run in `folder`.
    ///
    /// # Errors
    /// When there is no run, or its record can't be read. Damaged lines of the metrics are counted.
    pub fn read(folder: &Path) -> Result<Self, RecordsError> {
        let path = folder.join(RECORD);
        let text = read_regular(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => RecordsError::None { path: folder.to_owned() },
            _ => RecordsError::Read { path: path.clone(), source },
        })?;
        let damaged = |error: serde_json::Error| RecordsError::Damaged { path: path.clone(), why: error.to_string() };
        let record = serde_json::from_slice(&text).map_err(damaged)?;
        let metrics = folder.join(METRICS);
        let lines = match read_regular(&metrics) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(|source| RecordsError::Read { path: metrics, source })?,
        };
        Ok(Self::of(record, &lines))
    }

    fn of(record: Record, lines: &[u8]) -> Self {
        let mut records = Self { record, steps: Vec::new(), epochs: Vec::new(), damaged_lines: 0 };
        // The last line may have been cut short.
        let whole = lines.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        for line in lines[..whole].split(|byte| *byte == b'\n') {
            match (serde_json::from_slice::<Step>(line), serde_json::from_slice::<Epoch>(line)) {
                (Ok(step), _) => records.steps.push(step),
                (_, Ok(epoch)) if (0.0..=1.0).contains(&epoch.test_accuracy) => records.epochs.push(epoch),
                _ => records.damaged_lines += usize::from(!line.is_empty()),
            }
        }
        records
    }

    /// The settings that decide the result, as text, without the model.
    pub fn settings(&self) -> Vec<(String, String)> {
        let Value::Object(settings) = &self.record.configuration else { return Vec::new() };
        let shown = settings.iter().filter(|(key, value)| *key != "model" && !value.is_null());
        shown
            .map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_lines_are_counted_and_a_cut_one_is_not() {
        let record =
            r#"{"status":"done","model":"m","configuration":{"seed":1,"model":"text","init":null},"data":"d"}"#;
        let lines = "{\"step\":1,\"epoch\":1,\"loss\":2.5,\"lr\":0.1}\n{\"step\":2,\"loss\":null,\"lr\":0.1}\nnoise\n{\"epoch\":1,\
                     \"through_step\":2,\"train_loss\":2.0,\"test_accuracy\":0.5,\"test_loss\":1.0,\"seconds\":1.0,\"images_per_second\":9.0}\n{\"ste";
        let records = Records::of(serde_json::from_str(record).unwrap(), lines.as_bytes());
        assert_eq!((records.steps.len(), records.epochs.len(), records.damaged_lines), (2, 1, 1));
        assert_eq!(records.settings(), [("seed".to_owned(), "1".to_owned())]);
        assert!(records.steps[1].loss.is_none());
    }
}
