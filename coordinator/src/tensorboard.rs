//! The metrics of a run as an event file, which TensorBoard shows. A file is a list of records: the length, its checksum, a message, and the
//! checksum of the message.
//!
//! A job that continues begins a file of its own, with what it keeps of the earlier metrics. Its first event tells TensorBoard to forget
//! what earlier files hold.
//!
//! Not here: what is measured (`train`), and `metrics.jsonl` (`record`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use serde_json::Value;

/// Part of the names of all event files, by which TensorBoard finds them.
const PREFIX: &str = "events.out.tfevents.";
/// The first event of a file says that it is one.
const VERSION: &str = "brain.Event:2";
/// The status of a session that starts: TensorBoard forgets earlier events of this step and of later ones.
const STARTS: i32 = 1;
/// The keys of a step's line, and the names of their charts.
const OF_STEP: [(&str, &str); 2] = [("loss", "train/loss"), ("lr", "train/learning_rate")];
/// The same of an epoch's line.
const OF_EPOCH: [(&str, &str); 4] = [
    ("train_loss", "train/epoch_loss"),
    ("test_accuracy", "test/accuracy"),
    ("test_loss", "test/loss"),
    ("images_per_second", "train/images_per_second"),
];

/// An event, with the numbers of its fields in TensorFlow's event.proto.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session: Option<Session>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    value: f32,
}

#[derive(Clone, PartialEq, Message)]
struct Session {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// An event file that is being written.
#[derive(Debug)]
pub(crate) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins a file in `folder` with what these `lines` of metrics say.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn begin(folder: &Path, lines: &[u8]) -> io::Result<Self> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let host = rustix::system::uname().nodename().to_string_lossy().replace(['.', '/'], "-");
        let name = |number: u64| format!("{PREFIX}{seconds:010}.{host}.{}.{number}", std::process::id());
        let free = (0..).map(|number| folder.join(name(number))).find(|path| !path.exists());
        let path = free.expect("there is always another number");
        let file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        let mut events = Self { path, file };
        events.add(&Event { version: Some(VERSION.to_owned()), ..Event::at(0) })?;
        events.add(&Event { session: Some(Session { status: STARTS }), ..Event::at(0) })?;
        let whole = lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        whole.into_iter().try_for_each(|line: Value| events.line(&line))?;
        Ok(events)
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds what a line of the metrics says.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn line(&mut self, line: &Value) -> io::Result<()> {
        let (step, names): (_, &[_]) = match (line["step"].as_u64(), line["through_step"].as_u64()) {
            (Some(step), _) => (step, &OF_STEP),
            (None, Some(step)) => (step, &OF_EPOCH),
            (None, None) => return Ok(()),
        };
        let scalar =
            |(key, name): &(&str, &str)| Some(Scalar { name: (*name).to_owned(), value: line[*key].as_f64()? as f32 });
        let summary = Summary { values: names.iter().filter_map(scalar).collect() };
        self.add(&Event { summary: Some(summary), ..Event::at(step) })
    }

    /// A record is written at once, so that a reader sees whole ones, unless the process is killed.
    fn add(&mut self, event: &Event) -> io::Result<()> {
        let message = event.encode_to_vec();
        let length = (message.len() as u64).to_le_bytes();
        let parts: [&[u8]; 4] = [&length, &masked(&length), &message, &masked(&message)];
        self.file.write_all(&parts.concat())
    }
}

impl Event {
    fn at(step: u64) -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        Self { time, step: i64::try_from(step).unwrap_or(i64::MAX), ..Self::default() }
    }
}

/// The checksum of a record's part: CRC-32C, rotated and shifted, so that checksums of checksums differ from these (TFRecord format).
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every record of a file, after its checksums were compared.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]));
            let message = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked(message));
            events.push(Event::decode(message).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn a_file_has_the_lines_that_were_there_and_those_that_come() {
        let folder = tempfile::tempdir().unwrap();
        let lines = b"{\"step\":1,\"epoch\":1,\"loss\":2.5,\"lr\":0.1}\n{\"epoch\":1,\"through_step\":1,\"train_loss\":2.5,\"test_accuracy\":0.5}\nnoise\n";
        let mut events = Events::begin(folder.path(), lines).unwrap();
        events.line(&serde_json::json!({ "step": 2, "loss": 1.5, "lr": 0.2 })).unwrap();
        let found = read(events.path());
        assert_eq!(found[0].version.as_deref(), Some("brain.Event:2"));
        assert_eq!((found[1].session.clone().unwrap().status, found[1].step), (1, 0));
        let values = |event: &Event| -> Vec<(String, f32)> {
            event.summary.iter().flat_map(|summary| &summary.values).map(|v| (v.name.clone(), v.value)).collect()
        };
        assert_eq!(values(&found[2]), [("train/loss".to_owned(), 2.5), ("train/learning_rate".to_owned(), 0.1)]);
        assert_eq!(values(&found[3]), [("train/epoch_loss".to_owned(), 2.5), ("test/accuracy".to_owned(), 0.5)]);
        assert_eq!((found[4].step, found.len()), (2, 5));
        let second = Events::begin(folder.path(), lines).unwrap();
        assert!(events.path() != second.path() && read(second.path()).len() == 4);
    }
}
