//! The records of the run that a job continues: what the job keeps of them, and what is damaged there.
//!
//! Not here: the records of the job itself (`record`).

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::CheckpointError;
use crate::files::read_regular;
use crate::incident::Incident;

/// The file of a run's metrics.
pub const METRICS: &str = "metrics.jsonl";
/// The file of a run's record.
pub const RECORD: &str = "run.json";

/// What a job keeps of earlier records.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Lines of the metrics.
    pub lines: Vec<u8>,
    /// Incidents of the run.
    pub incidents: Vec<Incident>,
    /// What is damaged, one line each.
    pub damage: Vec<String>,
}

/// The lines that a resumed run keeps of earlier metrics.
pub struct EarlierMetrics<'a> {
    /// Keep steps up to this one.
    pub steps_through: u64,
    /// Keep the epochs that end at a step for which this is true.
    pub ends_epoch: &'a dyn Fn(u64) -> bool,
}

impl Earlier {
    /// Reads the records in the folder `run`. They are for people, so that the job continues even if they are damaged.
    ///
    /// # Errors
    /// When the metrics exist but can't be read.
    pub fn read(run: &Path, kept: &EarlierMetrics) -> Result<Self, CheckpointError> {
        let path = run.join(METRICS);
        let text = match read_regular(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.map_err(|source| CheckpointError::Read { path: path.clone(), source })?,
        };
        let Kept { lines, damaged, last } = kept_lines(&text, kept);
        let mut damage = Vec::new();
        if damaged > 0 {
            damage.push(format!("damaged lines in {}: {damaged}; the job continues without them", path.display()));
        } else if text.is_empty() && kept.steps_through > 0 {
            damage.push(format!("{} is missing or empty; the job begins a new one", path.display()));
        } else if last < kept.steps_through {
            let (path, first, end) = (path.display(), last + 1, kept.steps_through);
            damage.push(format!("{path} ends before the checkpoint: steps {first} to {end} are missing in it"));
        }
        let incidents = incidents_of(run).unwrap_or_else(|text| {
            damage.push(text);
            Vec::new()
        });
        Ok(Self { lines, incidents, damage })
    }
}

/// The incidents that an earlier process has recorded in `run`, or why they can't be read.
fn incidents_of(run: &Path) -> Result<Vec<Incident>, String> {
    #[derive(Deserialize)]
    struct Record {
        incidents: Vec<Incident>,
    }
    let path = run.join(RECORD);
    let text = read_regular(&path).map_err(|error| error.to_string());
    let record = text.and_then(|text| serde_json::from_slice::<Record>(&text).map_err(|error| error.to_string()));
    record.map(|record| record.incidents).map_err(|error| {
        format!("cannot read {}: {error}; the job continues without the earlier incidents", path.display())
    })
}

/// What is kept of metrics.
struct Kept {
    lines: Vec<u8>,
    /// Number of damaged lines.
    damaged: usize,
    /// The last step of the lines.
    last: u64,
}

/// The lines to keep, and how many are damaged: those that are not JSON, and steps out of order. The last line may have been cut short by
/// a crash, which is no damage.
fn kept_lines(text: &[u8], kept: &EarlierMetrics) -> Kept {
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = text[..whole].split_inclusive(|byte| *byte == b'\n');
    let parsed: Vec<(&[u8], Option<Value>)> = lines.map(|line| (line, serde_json::from_slice(line).ok())).collect();
    let number = |value: &Option<Value>, key: &str| value.as_ref().and_then(|value| value.get(key)?.as_u64());
    let (mut found, mut damaged, mut last) = (Vec::new(), 0, 0);
    for (index, (line, value)) in parsed.iter().enumerate() {
        let is_kept = match (number(value, "step"), number(value, "through_step")) {
            (Some(step), _) => {
                let next = parsed[index + 1..].iter().find_map(|(_, value)| number(value, "step"));
                let is_in_order = step > last && !next.is_some_and(|next| next > last && next <= step);
                damaged += usize::from(!is_in_order);
                is_in_order && step <= kept.steps_through
            }
            // A partial epoch was measured because the job ended there. It will be measured again as a whole.
            (None, Some(through)) => through <= kept.steps_through && (kept.ends_epoch)(through),
            (None, None) => {
                damaged += 1;
                false
            }
        };
        if is_kept {
            found.extend_from_slice(line);
            last = number(value, "step").unwrap_or(last);
        }
    }
    Kept { lines: found, damaged, last }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(lines: &[&str]) -> (Vec<u64>, usize) {
        let text = lines.concat();
        let kept = EarlierMetrics { steps_through: 6, ends_epoch: &|step| step == 4 };
        let Kept { lines, damaged, .. } = kept_lines(text.as_bytes(), &kept);
        let lines: Vec<Value> =
            String::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let number =
            |line: &Value| line["step"].as_u64().or_else(|| Some(100 + line["through_step"].as_u64()?)).unwrap();
        (lines.iter().map(number).collect(), damaged)
    }

    fn step(step: u64) -> String {
        format!("{{\"step\":{step}}}\n")
    }

    #[test]
    fn lines_up_to_the_checkpoint_are_kept_and_a_line_that_was_cut_short_is_no_damage() {
        let lines: Vec<String> = (1..=8).map(step).collect();
        let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        lines.insert(4, "{\"through_step\":4}\n");
        lines.insert(6, "{\"through_step\":5}\n");
        let expected = vec![1, 2, 3, 4, 104, 5, 6];
        assert_eq!(kept(&lines), (expected.clone(), 0));
        lines.push("{\"step\":9");
        assert_eq!(kept(&lines), (expected, 0));
        assert_eq!(kept(&[]), (vec![], 0));
    }

    /// Each line in turn is damaged, in each of these ways. No other line is lost.
    #[test]
    fn a_damaged_line_costs_no_other_line() {
        for damaged in 1..=7 {
            for wrong in ["garbage\n", "\n", "{}\n", "{\"step\":0}\n", "{\"step\":500}\n", "{\"step\":\"6\"}\n"] {
                let lines: Vec<String> =
                    (1..=8).map(|number| if number == damaged { wrong.to_owned() } else { step(number) }).collect();
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                let expected: Vec<u64> = (1..=6).filter(|number| *number != damaged).collect();
                assert_eq!(kept(&lines), (expected, 1), "{lines:?}");
            }
        }
    }
}
