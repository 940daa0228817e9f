//! The file of a study: which arms it compares, on which images, with which seeds and settings, and what it will claim.
//!
//! Not here: whether the design can show anything (`design`), and running it (`conduct`).

use std::path::{Path, PathBuf};

use convoy_common::fields::{FieldError, Fields};
use convoy_common::model::{Network, TEXT_BYTES_MAX, presets};
use convoy_common::schedule::Schedule;
use convoy_common::suggest;
use convoy_coordinator::job::Asked;
use convoy_dataset::DataSource;
use serde::Serialize;
use toml::{Table, Value};

use crate::arm::{Arm, RUNS_MAX, Settings};
use crate::builtin;
use crate::error::StudyError;
use crate::model::changed;
use crate::rates::Tune;
use crate::series::Variance;

/// The most arms of a study, the second run of the control included.
const ARMS_MAX: usize = 32;
/// The most epochs of a run.
const EPOCHS_MAX: u64 = 100_000;
/// Test images whose outputs are compared, unless the file says otherwise.
const IMAGES: usize = 500;
/// The most of them.
const IMAGES_MAX: usize = 10_000;
/// The most groups into which channels are divided.
const GROUPS_MAX: usize = 64;
/// The most channels of a layer that are compared.
const CHANNELS_MAX: usize = 512;
/// How far the seeds of the control's second series lie from those of the first.
const AGAIN: u64 = 1_000_000;

/// A study as its file describes it. Every field decides what is run or what is claimed.
#[derive(Clone, Debug, Serialize)]
pub struct Study {
    /// Its name, after which its folder is named.
    pub name: String,
    /// The question that it answers, for people. Texts may change without making it another study.
    #[serde(skip)]
    pub question: String,
    /// What a reader needs to know to understand the question, in paragraphs.
    #[serde(skip)]
    pub background: String,
    /// Where the images come from, as for `--data`.
    pub data: String,
    /// The number of training images that there must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_images: Option<usize>,
    /// Passes over the training images.
    pub epochs: u64,
    /// Settings of all runs.
    pub settings: Settings,
    /// The arms. The first one is the control, and the second one the control with other seeds, if the study has such an arm.
    pub arms: Vec<Arm>,
    /// Arms whose accuracies differ by less than this many points count as equal.
    pub margin: f64,
    /// Confidence of all intervals. One minus this is the level of all tests.
    pub confidence: f64,
    /// The expected standard deviation of differences of accuracy, in points, for the plan.
    pub expected_deviation: f64,
    /// Whether it may run although its design can't reject anything.
    pub exploratory: bool,
    /// Layers whose channels are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub represent: Option<Represent>,
    /// How the learning rate of each arm is chosen. None: it is what the arm or the settings say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune: Option<Tune>,
}

/// Layers whose channels are compared, in all runs.
#[derive(Clone, Debug, Serialize)]
pub struct Represent {
    /// The names of the layers. Arms without such a layer have no result for it.
    pub layers: Vec<String>,
    /// The names of layers whose filters are shown, and compared in how colourful they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    /// Groups into which the channels are divided, in all arms alike.
    pub groups: usize,
    /// Test images, from the first one on.
    pub images: usize,
}

impl Study {
    /// Reads the file at `path`, or the built-in study of that name.
    ///
    /// # Errors
    /// Names the file, the key, the value, and what would be right.
    pub fn open(path: &str) -> Result<Self, StudyError> {
        if let Some(text) = builtin::study(path) {
            return Self::parse(text, &format!("the built-in study {path}"), &|model| {
                builtin::model(model).map(str::to_owned).ok_or_else(|| not_built_in(model))
            });
        }
        let file = Path::new(path);
        let looks_like_a_path = path.contains('/') || path.contains('.') || file.exists();
        if !looks_like_a_path {
            let hint = suggest::hint(path, &builtin::names());
            let reason = format!("there is no built-in study of this name{hint} (or give the path of a study's file)");
            return Err(StudyError::Value { file: format!("\"{path}\""), reason });
        }
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let text = read_text(file)?;
        Self::parse(&text, path, &|model| read_text(&folder.join(model)))
    }

    /// Parses the text of a file, which errors call `file`. `read` reads the model files that it names.
    fn parse(text: &str, file: &str, read: &dyn Fn(&str) -> Result<String, StudyError>) -> Result<Self, StudyError> {
        let wrong = |source: FieldError| StudyError::File { file: file.to_owned(), source: Box::new(source) };
        let refused = |reason: String| StudyError::Value { file: file.to_owned(), reason };
        let mut fields = Fields::parse(text, "the study").map_err(wrong)?;
        let raw = Raw::read(&mut fields).map_err(wrong)?;
        raw.check().map_err(refused)?;
        let mut arms = Vec::new();
        for arm in &raw.arms {
            arms.push(arm.resolve(&raw, file, read)?);
        }
        let control = arms[0].clone();
        check_arms(&arms).map_err(refused)?;
        raw.settings.check(raw.epochs, &arms).map_err(refused)?;
        raw.represent.as_ref().map_or(Ok(()), |represent| represent.check(&control)).map_err(refused)?;
        if raw.again {
            let name = format!("{}-again", control.name);
            let about = format!("{}, with other seeds", control.about);
            let seeds = control.seeds.iter().map(|seed| seed + AGAIN).collect();
            arms.insert(1, Arm { name, about, seeds, is_again: true, ..control.clone() });
        }
        if let Some(variance) = &raw.variance {
            let series = variance.series(&control, &raw.settings).map_err(refused)?;
            let taken = series.iter().find(|series| arms.iter().any(|arm| arm.name == series.name));
            check(taken.is_none(), || {
                format!(
                    "no arm may be named \"{}\", which is a series of the control",
                    taken.map_or("", |arm| &arm.name)
                )
            })
            .map_err(refused)?;
            arms.extend(series);
        }
        check(arms.len() <= ARMS_MAX, || {
            format!("it has {} arms, with all series of the control; must have at most {ARMS_MAX}", arms.len())
        })
        .map_err(refused)?;
        if let Some(tune) = &raw.tune {
            tune.check(&arms, &raw.settings, raw.epochs).map_err(refused)?;
        }
        Ok(Self {
            name: raw.name,
            question: raw.question,
            background: raw.background,
            data: raw.data,
            train_images: raw.train_images,
            epochs: raw.epochs,
            settings: raw.settings,
            arms,
            margin: raw.margin,
            confidence: raw.confidence,
            expected_deviation: raw.expected_deviation,
            exploratory: raw.exploratory,
            represent: raw.represent,
            tune: raw.tune,
        })
    }

    /// The most workers that a run of any arm can have.
    pub fn workers_max(&self) -> usize {
        let asked = Asked { batch: self.settings.batch, slots: self.settings.slots, ..Asked::default() };
        let slots = asked.slots_of(None).unwrap_or(1);
        self.arms.iter().map(|arm| arm.network.towers * slots).min().unwrap_or(1)
    }

    /// The margin as a share of images.
    pub(crate) fn margin_share(&self) -> f64 {
        self.margin / 100.0
    }

    /// The arm that the others are compared with.
    pub fn control(&self) -> &Arm {
        &self.arms[0]
    }
}

fn not_built_in(model: &str) -> StudyError {
    StudyError::Unreadable { path: PathBuf::from(model), why: "it is not part of the program".to_owned() }
}

/// A text file of limited size.
fn read_text(path: &Path) -> Result<String, StudyError> {
    let unreadable = |why: String| StudyError::Unreadable { path: path.to_owned(), why };
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if !size.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    if size.len() > TEXT_BYTES_MAX as u64 {
        return Err(unreadable(format!("it has {} bytes; at most {TEXT_BYTES_MAX} are allowed", size.len())));
    }
    std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))
}

/// The file as it is written.
struct Raw {
    name: String,
    question: String,
    background: String,
    data: String,
    train_images: Option<usize>,
    epochs: u64,
    first_seed: u64,
    runs: u64,
    again: bool,
    settings: Settings,
    margin: f64,
    confidence: f64,
    expected_deviation: f64,
    exploratory: bool,
    represent: Option<Represent>,
    variance: Option<Variance>,
    tune: Option<Tune>,
    model: Option<String>,
    arms: Vec<RawArm>,
}

struct RawArm {
    name: String,
    about: Option<String>,
    model: Option<String>,
    changes: Table,
    lr: Option<f64>,
    runs: Option<u64>,
}

impl Raw {
    fn read(study: &mut Fields) -> Result<Self, FieldError> {
        study.check_keys(&[
            "name",
            "question",
            "background",
            "data",
            "train_images",
            "epochs",
            "first_seed",
            "runs",
            "again",
            "margin",
            "confidence",
            "expected_deviation",
            "exploratory",
            "represent",
            "variance",
            "tune",
            "model",
            "train",
            "arm",
        ])?;
        let count = |value: Option<usize>| value.map(|value| value as u64);
        let arms = study.list("arm", "a list of tables, each under [[arm]]")?.unwrap_or_default();
        Ok(Self {
            name: study.required("name", Fields::text)?,
            question: study.text("question")?.unwrap_or_default(),
            background: study.text("background")?.unwrap_or_default(),
            data: study.text("data")?.unwrap_or_else(|| "auto".to_owned()),
            train_images: study.count("train_images")?,
            epochs: count(Some(study.required("epochs", Fields::count)?)).unwrap_or_default(),
            first_seed: count(study.count("first_seed")?).unwrap_or(1),
            runs: count(Some(study.required("runs", Fields::count)?)).unwrap_or_default(),
            again: study.flag("again")?.unwrap_or(true),
            settings: match study.table("train")? {
                None => Settings::default(),
                Some(mut train) => Settings::read(&mut train)?,
            },
            margin: study.number("margin")?.unwrap_or(0.2),
            confidence: study.number("confidence")?.unwrap_or(0.95),
            expected_deviation: study.number("expected_deviation")?.unwrap_or(0.3),
            exploratory: study.flag("exploratory")?.unwrap_or(false),
            represent: study.table("represent")?.map(|mut represent| Represent::read(&mut represent)).transpose()?,
            variance: study.table("variance")?.map(|mut variance| Variance::read(&mut variance)).transpose()?,
            tune: study.table("tune")?.map(|mut tune| Tune::read(&mut tune)).transpose()?,
            model: study.text("model")?,
            arms: arms.into_iter().enumerate().map(|(i, arm)| RawArm::read(i + 1, arm)).collect::<Result<_, _>>()?,
        })
    }

    fn check(&self) -> Result<(), String> {
        check_name("name", &self.name)?;
        for (key, text) in [("question", &self.question), ("background", &self.background)] {
            check(text.chars().all(|c| c == '\n' || !c.is_control()), || {
                format!("{key}: it has control characters; must be plain text")
            })?;
        }
        let least = if self.variance.is_some() { 1 } else { 2 };
        check(self.arms.len() >= least, || {
            format!(
                "it has {} [[arm]] tables; must have at least 2, the control first, or a control and a table [variance]",
                self.arms.len()
            )
        })?;
        check(self.arms.len() < ARMS_MAX, || {
            format!("it has {} [[arm]] tables; must have fewer than {ARMS_MAX}", self.arms.len())
        })?;
        check((1..=EPOCHS_MAX).contains(&self.epochs), || {
            format!("epochs = {}; must be 1 to {EPOCHS_MAX}", self.epochs)
        })?;
        check((1..=AGAIN).contains(&self.first_seed), || {
            format!("first_seed = {}; must be 1 to {AGAIN}", self.first_seed)
        })?;
        check(self.margin > 0.0 && self.margin <= 100.0, || {
            format!("margin = {}; must be above 0, and at most 100 points", self.margin)
        })?;
        check((0.5..1.0).contains(&self.confidence), || {
            format!("confidence = {}; must be at least 0.5, and below 1", self.confidence)
        })?;
        check(self.settings.images != Some(0), || "train, images = 0; must be at least 1".to_owned())?;
        check(self.expected_deviation > 0.0 && self.expected_deviation.is_finite(), || {
            format!("expected_deviation = {}; must be a finite number above 0, in points", self.expected_deviation)
        })?;
        self.data.parse::<DataSource>().map_err(|error| format!("data = \"{}\": {error}", self.data))?;
        if let Some(schedule) = &self.settings.schedule {
            schedule.parse::<Schedule>().map_err(|error| format!("train, schedule: {error}"))?;
        }
        Ok(())
    }
}

impl Represent {
    fn read(represent: &mut Fields) -> Result<Self, FieldError> {
        represent.check_keys(&["layers", "filters", "groups", "images"])?;
        let expected = "a list of names of layers";
        Ok(Self {
            layers: represent.texts("layers", expected)?.unwrap_or_default(),
            filters: represent.texts("filters", expected)?.unwrap_or_default(),
            groups: represent.count("groups")?.unwrap_or(2),
            images: represent.count("images")?.unwrap_or(IMAGES),
        })
    }

    /// The control has each layer, and its channels can be divided.
    fn check(&self, control: &Arm) -> Result<(), String> {
        check((2..=GROUPS_MAX).contains(&self.groups), || {
            format!("represent, groups = {}; must be 2 to {GROUPS_MAX}", self.groups)
        })?;
        check((1..=IMAGES_MAX).contains(&self.images), || {
            format!("represent, images = {}; must be 1 to {IMAGES_MAX}", self.images)
        })?;
        check(!self.layers.is_empty() || !self.filters.is_empty(), || {
            "represent: it names neither layers nor filters; must name at least one layer".to_owned()
        })?;
        for name in self.layers.iter().chain(&self.filters) {
            let layers = &control.network.layers;
            let found = layers.iter().find(|layer| layer.name == *name);
            let names = || layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>().join(", ");
            check(found.is_some(), || {
                format!("represent: the control has no layer named \"{name}\"; its layers are {}", names())
            })?;
            check(found.is_some_and(|layer| layer.output.channels <= CHANNELS_MAX), || {
                format!("represent: \"{name}\" has more than {CHANNELS_MAX} channels, the most that are compared")
            })?;
        }
        for name in &self.filters {
            let layer = control.network.layers.iter().find(|layer| layer.name == *name);
            check(
                layer.is_some_and(|layer| layer.kind_name() == "conv" && layer.output.channels >= self.groups),
                || format!("represent, filters: \"{name}\" is not a convolution with at least {} filters", self.groups),
            )?;
        }
        Ok(())
    }
}

impl RawArm {
    fn read(position: usize, arm: Value) -> Result<Self, FieldError> {
        let place = format!("arm {position}");
        let Value::Table(table) = arm else {
            return Err(Fields::new(Table::new(), place).wrong("arm", &arm, "a table under [[arm]]"));
        };
        let mut arm = Fields::new(table, place);
        arm.check_keys(&["name", "about", "model", "changes", "lr", "runs"])?;
        Ok(Self {
            name: arm.required("name", Fields::text)?,
            about: arm.text("about")?,
            model: arm.text("model")?,
            changes: arm.read("changes", "a table of layers", |value| value.as_table().cloned())?.unwrap_or_default(),
            lr: arm.number("lr")?,
            runs: arm.count("runs")?.map(|runs| runs as u64),
        })
    }

    fn resolve(
        &self,
        study: &Raw,
        file: &str,
        read: &dyn Fn(&str) -> Result<String, StudyError>,
    ) -> Result<Arm, StudyError> {
        let name = &self.name;
        let refused =
            |reason: String| StudyError::Value { file: file.to_owned(), reason: format!("arm \"{name}\": {reason}") };
        check_name("name", name).map_err(refused)?;
        let runs = self.runs.unwrap_or(study.runs);
        check((2..=RUNS_MAX).contains(&runs), || format!("runs = {runs}; must be 2 to {RUNS_MAX}")).map_err(refused)?;
        check(runs <= study.runs, || {
            format!("runs = {runs}; must be at most {}, the runs of the study, so that each run has a pair", study.runs)
        })
        .map_err(refused)?;
        let base = self.model.as_ref().or(study.model.as_ref());
        let base = base.ok_or_else(|| refused("it needs a model, because the study names none for all arms".into()))?;
        let text = match presets::text(base) {
            Some(text) => text.to_owned(),
            None => read(base).map_err(|error| {
                let presets = presets::names().join(", ");
                refused(format!(
                    "model = \"{base}\": {error}; must be a preset ({presets}), or the path of a model file, relative to the folder of the study's file"
                ))
            })?,
        };
        let model = changed(&text, name, &self.changes).map_err(refused)?;
        let of_model =
            |source| StudyError::Model { file: file.to_owned(), arm: name.clone(), source: Box::new(source) };
        let network = Network::parse(&model).map_err(of_model)?;
        Ok(Arm {
            name: name.clone(),
            about: self.about.clone().unwrap_or_else(|| name.clone()),
            model,
            lr: self.lr,
            seeds: (study.first_seed..study.first_seed + runs).collect(),
            is_again: false,
            varies: None,
            network,
        })
    }
}

/// Arms have names of their own and take the same images, and the control has all runs.
fn check_arms(arms: &[Arm]) -> Result<(), String> {
    let control = &arms[0];
    for (index, arm) in arms.iter().enumerate() {
        // Folders are named after arms, and some file systems ignore case.
        check(arms[..index].iter().all(|other| !other.name.eq_ignore_ascii_case(&arm.name)), || {
            format!("two arms are named \"{}\", if case is ignored; each needs a name of its own", arm.name)
        })?;
        check(arm.name != format!("{}-again", control.name), || {
            format!("no arm may be named \"{}\", which is the control with other seeds", arm.name)
        })?;
        check(arm.seeds.len() <= control.seeds.len(), || {
            format!(
                "arm \"{}\" has {} runs, and the control has {}; must have at most as many",
                arm.name,
                arm.seeds.len(),
                control.seeds.len()
            )
        })?;
        let shapes = |arm: &Arm| (arm.network.input.shape, arm.network.classes());
        check(shapes(arm) == shapes(control), || {
            format!(
                "arm \"{}\" takes images of {} in {} classes, and the control {} in {}; must be the same",
                arm.name,
                arm.network.input.shape,
                arm.network.classes(),
                control.network.input.shape,
                control.network.classes()
            )
        })?;
    }
    Ok(())
}

fn check_name(key: &str, name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_sound = (1..=24).contains(&name.len()) && name.chars().all(is_plain) && !name.starts_with(['.', '-']);
    check(is_sound, || {
        format!(
            "{key} = {name:?}; must be 1 to 24 letters, digits, \"-\", \"_\" and \".\", and begin with a letter, a digit or \"_\", because \
             folders are named after it"
        )
    })
}

fn check(sound: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if sound { Ok(()) } else { Err(reason()) }
}
