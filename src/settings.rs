//! Settings that several commands share: the model, the places of data.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use convoy_common::batch::THREADS_MAX;
use convoy_common::model::classes::with_classes;
use convoy_common::model::{ModelError, Network, TEXT_BYTES_MAX, presets};
use convoy_common::placement::PlacementError;
use convoy_coordinator::JobError;
use convoy_dataset::{DataSource, Format, Places, Reading, Resources, class_count};
use convoy_study::error::StudyError;

use crate::numbers::{bytes, whole};

/// The command was used wrongly: exit code 2.
#[derive(Debug)]
pub(crate) struct Misuse(pub(crate) String);

impl std::fmt::Display for Misuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Misuse {}

/// Whether an error means that the command was used wrongly.
pub(crate) fn is_misuse(error: &(dyn Error + 'static)) -> bool {
    let job = error.downcast_ref::<JobError>();
    let study = error.downcast_ref::<StudyError>();
    study.is_some_and(StudyError::is_misuse)
        || error.is::<Misuse>()
        || error.is::<PlacementError>()
        || job.is_some_and(JobError::is_misuse)
}

/// The text of a model, which is known to parse. `name` is a preset or the path of a file.
pub(crate) fn model_text(name: &str) -> Result<String, Box<dyn Error>> {
    if let Some(text) = presets::text(name) {
        return Ok(text.to_owned());
    }
    let path = Path::new(name);
    let looks_like_a_path = name.contains('/') || name.contains('.') || path.exists();
    if !looks_like_a_path {
        return Err(Misuse(format!(
            "unknown model \"{name}\"{} (or give the path of a model file)",
            presets::hint(name)
        ))
        .into());
    }
    let wrong = |why: String| Misuse(format!("cannot read the model file {name}: {why}"));
    let text = read_text(path, TEXT_BYTES_MAX as u64 + 1).map_err(|error| wrong(error.to_string()))?;
    match Network::parse(&text) {
        Ok(_) => Ok(text),
        Err(source) => Err(ModelFile { path: name.to_owned(), source }.into()),
    }
}

/// The classes of a model, as `--classes` says them.
#[derive(Clone, Debug)]
pub(crate) enum Classes {
    /// As many as the data have.
    OfData,
    /// This many.
    Number(usize),
}

impl FromStr for Classes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Classes::OfData),
            number => match number.parse() {
                Ok(number @ 1..=65_535) => Ok(Classes::Number(number)),
                _ => Err("must be auto, or a number from 1 to 65535".to_owned()),
            },
        }
    }
}

impl Classes {
    /// The text of a model with these classes.
    pub(crate) fn applied(&self, text: &str, data: &DataSource, reading: &Reading) -> Result<String, Box<dyn Error>> {
        let classes = match self {
            Classes::Number(number) => Some(*number),
            Classes::OfData => class_count(data, reading)?,
        };
        let unknown = || Misuse(format!("--classes auto: {data} does not say how many classes it has; give a number"));
        with_classes(text, classes.ok_or_else(unknown)?).map_err(|error| Misuse(format!("--classes: {error}")).into())
    }
}

/// The first `limit` bytes of a text file. Some files never end.
pub(crate) fn read_text(path: &Path, limit: u64) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| std::io::Error::other("it is not UTF-8 text"))
}

/// The names of layers in a file of weights, by the model's own: a TOML file of texts.
pub(crate) fn layer_names(path: &Path) -> Result<BTreeMap<String, String>, Misuse> {
    let wrong = |why: String| Misuse(format!("cannot read the names of layers in {}: {why}", path.display()));
    let text = read_text(path, TEXT_BYTES_MAX as u64 + 1).map_err(|error| wrong(error.to_string()))?;
    if text.len() > TEXT_BYTES_MAX {
        return Err(wrong(format!("it is longer than {TEXT_BYTES_MAX} bytes")));
    }
    let right = "it must have lines such as \"fc8\" = \"classifier.6\": the model's name and the file's name of a layer, both in quotes";
    let line = |error: &toml::de::Error| error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
    toml::from_str(&text).map_err(|error| wrong(format!("line {}: {}; {right}", line(&error), error.message())))
}

/// A model file that can be read but is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{path}")]
struct ModelFile {
    path: String,
    source: ModelError,
}

/// How image files are kept in memory and decoded.
#[derive(clap::Args)]
pub(crate) struct DataArguments {
    /// Format of the files of --data: idx, images (JPEG and PNG files), cifar, npz or parquet [default: the one that is found there]
    #[arg(long, value_name = "FORMAT")]
    data_format: Option<Format>,
    /// Threads that decode image files. This number does not change the result [default: the machine's cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=THREADS_MAX as u64))]
    data_threads: Option<usize>,
    /// Memory for the decoded images of files, such as 512M or 4G. Images that do not fit are decoded again whenever they are needed (or see --cache), ahead of the step that
    /// needs them, for which there is a quarter of this size in addition, and at most 256M. This size does not change the result [default: 2G]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    data_memory: Option<usize>,
    /// Folder for decoded images that do not fit into --data-memory: they are written to a file without a name, and read again instead of decoded.
    /// The file is gone when the process ends. This does not change the result
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
}

impl DataArguments {
    /// The format of the files, if it is given.
    pub(crate) fn format(&self) -> Option<Format> {
        self.data_format
    }

    /// Where images may be on this machine, kept as these arguments say.
    pub(crate) fn places(&self) -> Result<Places, Misuse> {
        let default = Resources::default();
        let resources = Resources {
            threads: self.data_threads.unwrap_or(default.threads),
            memory: self.data_memory.unwrap_or(default.memory),
            cache: self.cache.clone(),
        };
        Ok(Places { resources, ..places()? })
    }
}

/// Where images may be on this machine.
pub(crate) fn places() -> Result<Places, Misuse> {
    Ok(Places::of_this_machine(offline()?))
}

/// Where to send traced steps: OpenTelemetry's own variable.
pub(crate) fn otlp_endpoint() -> Option<String> {
    std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty())
}

/// Whether downloads are forbidden.
fn offline() -> Result<bool, Misuse> {
    let value = std::env::var_os("CONVOY_OFFLINE").unwrap_or_default();
    match value.to_string_lossy().to_lowercase().as_str() {
        "" | "0" | "false" | "no" | "off" => Ok(false),
        "1" | "true" | "yes" | "on" => Ok(true),
        other => Err(Misuse(format!("CONVOY_OFFLINE={other}: must be 1, true, yes or on, or 0, false, no or off"))),
    }
}
