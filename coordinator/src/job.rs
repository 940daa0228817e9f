//! The settings that decide a job's result, and how they follow from the request, the checkpoint and the defaults.
//!
//! Not here: the settings that don't (`running`), reading flags (the program), and checking the model and the data.

use std::str::FromStr;

use convoy_common::batch::{BATCH_MAX, Division};
use convoy_common::placement::Placement;
use convoy_common::schedule::{Schedule, Span};
use convoy_common::suggest;
use convoy_common::text::printable;
use serde::{Deserialize, Serialize};

use convoy_dataset::Selection;

/// The defaults. `convoy train --help` prints them.
pub mod defaults {
    use std::time::Duration;

    use convoy_common::schedule::Schedule;

    /// Passes over the training images.
    pub const EPOCHS: u64 = 8;
    /// Images per step.
    pub const BATCH: usize = 64;
    /// The base learning rate.
    pub const RATE: f64 = 0.02;
    /// Momentum of SGD.
    pub const MOMENTUM: f64 = 0.9;
    /// Weight decay of SGD, for every parameter.
    pub const WEIGHT_DECAY: f64 = 5e-4;
    /// The learning-rate schedule.
    pub const SCHEDULE: Schedule = Schedule::OneCycle;
    /// The job's seed.
    pub const SEED: u64 = 1;
    /// Slots per batch, unless it has fewer images: see [`slots`].
    const SLOTS: usize = 2;
    const _: () = assert!(SLOTS == 2, "the help texts of --slots say so");
    /// Micro-batches of each replica. Its worker computes one while tensors of another are sent.
    const MICRO_BATCHES: usize = 2;
    /// Checkpoints to keep.
    pub const KEEP: usize = 3;
    /// How long to wait for another worker after a fault.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// Slots of a batch of `batch` images: two, so that a network can have two replicas of each tower. docs/PERFORMANCE.md says what more of
    /// them cost.
    pub(super) fn slots(batch: usize) -> usize {
        SLOTS.min(batch)
    }

    /// Micro-batches per slot, for batches of `batch` images in `slots` slots, which at most as many replicas compute: the fewest with which
    /// each replica has at least two, if a slot has as many images.
    pub(crate) fn micro_batches(batch: usize, slots: usize, replicas: usize) -> usize {
        debug_assert!((1..=slots).contains(&replicas), "{replicas} replicas of {slots} slots");
        MICRO_BATCHES.div_ceil(slots / replicas).min(batch.div_ceil(slots))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn each_replica_has_two_micro_batches_where_it_has_the_images() {
            assert_eq!([1, 2, 3, 64].map(slots), [1, 2, 2, 2]);
            for ([batch, slots, replicas], expected) in [
                ([1, 1, 1], 1),
                ([64, 1, 1], 2),
                ([64, 2, 1], 1),
                ([64, 2, 2], 2),
                ([64, 3, 2], 2),
                ([64, 8, 1], 1),
                ([64, 8, 4], 1),
                ([64, 8, 8], 2),
                ([3, 3, 3], 1),
                ([4, 3, 3], 2),
            ] {
                assert_eq!(
                    micro_batches(batch, slots, replicas),
                    expected,
                    "{batch} images, {slots} slots, {replicas} replicas"
                );
            }
        }
    }
}

/// Characters of a model's line that an error shows.
const LINE_SHOWN_MAX: usize = 100;
/// The last step of a job is at most this. Larger whole numbers are not exact in every reader of JSON.
pub(crate) const STEPS_MAX: u64 = 1 << 53;

/// A setting whose value is not allowed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum SettingError {
    /// It has an invalid value.
    #[error("{flag} {value}: must be {expected}")]
    Invalid { flag: String, value: String, expected: String },
    /// A resumed job must keep the settings that decide its result.
    #[error("--{key} is {asked}, but the checkpoint's job has {before}; a resumed job must keep it")]
    ResumeDiffers { key: &'static str, asked: String, before: String },
    /// A resumed job must keep its model.
    #[error(
        "--model or --classes gives another model than the checkpoint's job has: line {line} is {asked}, and there it is {before}; a resumed job must keep its model, so omit both"
    )]
    OtherModel { line: usize, asked: String, before: String },
    /// The training data differ from those of the checkpoint's job.
    #[error(
        "the data are not those of the checkpoint's job: their SHA-256 is {asked}, and that of the original data is {before}; restore \
             the original files, or give --data with their folder, and read it with the same --data-format, --test-share and --bad-images"
    )]
    OtherData { asked: String, before: String },
}

/// A value in a job that no job may have.
#[derive(Debug, thiserror::Error)]
#[error("{key} is {value}; it must be {expected}")]
pub(crate) struct Unsound {
    key: &'static str,
    value: String,
    expected: String,
}

impl From<Unsound> for SettingError {
    /// The flag of the same name was given a wrong value.
    fn from(Unsound { key, value, expected }: Unsound) -> Self {
        SettingError::Invalid { flag: format!("--{}", key.replace('_', "-")), value, expected }
    }
}

/// The order of the images in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// A new permutation for each epoch, a function of seed and epoch.
    Shuffled,
    /// The order in the files.
    Sequential,
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Order::Shuffled => "shuffled",
            Order::Sequential => "sequential",
        })
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "shuffled" => Ok(Order::Shuffled),
            "sequential" => Ok(Order::Sequential),
            _ => Err(format!("unknown order \"{text}\"{}", suggest::hint(text, &["shuffled", "sequential"]))),
        }
    }
}

/// The length of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// Passes over the training images.
    Epochs(u64),
    /// Weight updates.
    Steps(u64),
}

impl Length {
    /// The length in steps.
    pub fn steps(self, steps_per_epoch: u64) -> u64 {
        match self {
            Length::Epochs(epochs) => epochs.saturating_mul(steps_per_epoch),
            Length::Steps(steps) => steps,
        }
    }
}

/// Everything that decides a job's result. Every checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The model file, word for word.
    pub model: String,
    /// SHA-256 over the data's dimensions, bytes and labels.
    pub data: String,
    /// Images per step.
    pub batch: usize,
    /// The base learning rate.
    pub lr: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Weight decay of SGD.
    pub weight_decay: f64,
    /// The learning-rate schedule.
    pub schedule: Schedule,
    /// The lengths that the schedule depends on.
    pub span: Span,
    /// The order of the images.
    pub order: Order,
    /// The seed of all random numbers.
    pub seed: u64,
    /// The seed of the initial weights, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_seed: Option<u64>,
    /// The seed of the order of images, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_seed: Option<u64>,
    /// The seed of dropout, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout_seed: Option<u64>,
    /// The training images that are used, if not all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<Selection>,
    /// Slots per batch.
    pub slots: usize,
    /// SHA-256 of the weights that were taken from `--init`, if there were any.
    pub init: Option<String>,
}

/// The requested settings of a job. What is missing comes from the checkpoint, or else from [`defaults`].
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The model file's text.
    pub model: Option<String>,
    /// The length of the job.
    pub length: Option<Length>,
    /// Images per step.
    pub batch: Option<usize>,
    /// The base learning rate.
    pub lr: Option<f64>,
    /// Momentum of SGD.
    pub momentum: Option<f64>,
    /// Weight decay of SGD.
    pub weight_decay: Option<f64>,
    /// The learning-rate schedule.
    pub schedule: Option<Schedule>,
    /// The order of the images.
    pub order: Option<Order>,
    /// The seed.
    pub seed: Option<u64>,
    /// The seed of the initial weights.
    pub init_seed: Option<u64>,
    /// The seed of the order of images.
    pub order_seed: Option<u64>,
    /// The seed of dropout.
    pub dropout_seed: Option<u64>,
    /// The seed of the selection of training images.
    pub split_seed: Option<u64>,
    /// Number of training images that are used.
    pub train_images: Option<usize>,
    /// Number of training images that are held out.
    pub holdout: Option<usize>,
    /// Slots per batch.
    pub slots: Option<usize>,
}

impl Asked {
    /// The model's text: as requested, that of the checkpoint, or else `default`.
    ///
    /// # Errors
    /// When it differs from that of the checkpoint's job, `before`.
    pub fn model_of(&self, before: Option<&Job>, default: String) -> Result<String, SettingError> {
        settle("model", self.model.clone(), before.map(|job| job.model.clone()), default)
    }

    fn batch_of(&self, before: Option<&Job>) -> Result<usize, SettingError> {
        let batch = settle("batch", self.batch, before.map(|job| job.batch), defaults::BATCH)?;
        check_batch(batch)?;
        Ok(batch)
    }

    fn seed_of(&self, before: Option<&Job>) -> Result<u64, SettingError> {
        settle("seed", self.seed, before.map(|job| job.seed), defaults::SEED)
    }

    /// The training images that are used: as requested, those of the checkpoint's job, `before`, or else all.
    ///
    /// # Errors
    /// When they differ from those of `before`.
    pub fn selection_of(&self, before: Option<&Job>) -> Result<Option<Selection>, SettingError> {
        let known = before.map(|job| job.selection);
        let images = match (self.train_images, known.map(|selection| selection.and_then(|selection| selection.images)))
        {
            (Some(asked), Some(None)) => {
                let (asked, before) = (asked.to_string(), "all".to_owned());
                return Err(SettingError::ResumeDiffers { key: "train-images", asked, before });
            }
            (asked, Some(Some(before))) => Some(settle("train-images", asked, Some(before), before)?),
            (asked, _) => asked,
        };
        let held_out = known.map(|selection| selection.map_or(0, |selection| selection.holdout));
        let holdout = settle("holdout", self.holdout, held_out, 0)?;
        let default = self.seed_of(before)?;
        let before = known.map(|selection| selection.map_or(default, |selection| selection.seed));
        let seed = settle("split-seed", self.split_seed, before, default)?;
        Ok((images.is_some() || holdout > 0).then_some(Selection { seed, holdout, images }))
    }

    /// The slots of a batch: as requested, those of the checkpoint's job, `before`, or else the default.
    ///
    /// # Errors
    /// When the size of the batch or the number is invalid, or one differs from that of `before`.
    pub fn slots_of(&self, before: Option<&Job>) -> Result<usize, SettingError> {
        let batch = self.batch_of(before)?;
        let slots = settle("slots", self.slots, before.map(|job| job.slots), defaults::slots(batch))?;
        check_slots(slots, batch)?;
        Ok(slots)
    }

    /// The job and its last step, for data with `steps_per_epoch(batch)` steps per epoch.
    ///
    /// # Errors
    /// When a value is invalid, or differs from that of `before`, the checkpoint's job and its last step.
    pub fn resolve(
        &self,
        before: Option<(&Job, u64)>,
        data: String,
        init: Option<String>,
        steps_per_epoch: impl Fn(usize) -> u64,
    ) -> Result<(Job, u64), SettingError> {
        let last_step = before.map(|(_, last_step)| last_step);
        let before = before.map(|(job, _)| job);
        let batch = self.batch_of(before)?;
        let steps_per_epoch = steps_per_epoch(batch);
        let length = self.length.unwrap_or(last_step.map_or(Length::Epochs(defaults::EPOCHS), Length::Steps));
        let end = length.steps(steps_per_epoch);
        check("--epochs or --steps", end, (1..=STEPS_MAX).contains(&end), format!("1 to {STEPS_MAX} steps"))?;
        let span = before.map_or(Span { steps: end, steps_per_epoch }, |job| job.span);
        let seed = self.seed_of(before)?;
        let other_seed = |value: u64| (value != seed).then_some(value);
        let job = Job {
            model: settle("model", self.model.clone(), before.map(|job| job.model.clone()), String::new())?,
            data: settle("data", Some(data), before.map(|job| job.data.clone()), String::new())?,
            batch,
            lr: settle("lr", self.lr, before.map(|job| job.lr), defaults::RATE)?,
            momentum: settle("momentum", self.momentum, before.map(|job| job.momentum), defaults::MOMENTUM)?,
            weight_decay: settle(
                "weight-decay",
                self.weight_decay,
                before.map(|job| job.weight_decay),
                defaults::WEIGHT_DECAY,
            )?,
            schedule: settle("schedule", self.schedule, before.map(|job| job.schedule), defaults::SCHEDULE)?,
            span,
            order: settle("order", self.order, before.map(|job| job.order), Order::Shuffled)?,
            seed,
            init_seed: other_seed(settle("init-seed", self.init_seed, before.map(Job::init_seed), seed)?),
            order_seed: other_seed(settle("order-seed", self.order_seed, before.map(Job::order_seed), seed)?),
            dropout_seed: other_seed(settle("dropout-seed", self.dropout_seed, before.map(Job::dropout_seed), seed)?),
            selection: self.selection_of(before)?,
            slots: self.slots_of(before)?,
            init: before.map_or(init, |job| job.init.clone()),
        };
        job.check()?;
        Ok((job, end))
    }
}

impl Job {
    /// Checks that every setting has an allowed value.
    ///
    /// # Errors
    /// Names the first that has not.
    pub(crate) fn check(&self) -> Result<(), Unsound> {
        check_batch(self.batch)?;
        let Span { steps, steps_per_epoch } = self.span;
        demand("span.steps", steps, (1..=STEPS_MAX).contains(&steps), format!("1 to {STEPS_MAX}"))?;
        demand("span.steps_per_epoch", steps_per_epoch, steps_per_epoch >= 1, "at least 1")?;
        // Workers compute with f32, where larger numbers are infinite.
        let sound = |value: f64| (value as f32).is_finite() && value >= 0.0;
        demand("lr", self.lr, sound(self.lr) && self.lr as f32 > 0.0, "a number above 0 that fits into f32")?;
        demand(
            "momentum",
            self.momentum,
            sound(self.momentum) && (self.momentum as f32) < 1.0,
            "at least 0, and below 1 when rounded to f32",
        )?;
        demand(
            "weight_decay",
            self.weight_decay,
            sound(self.weight_decay),
            "a number of at least 0 that fits into f32",
        )?;
        check_slots(self.slots, self.batch)
    }

    /// The seed of the initial weights.
    pub fn init_seed(&self) -> u64 {
        self.init_seed.unwrap_or(self.seed)
    }

    /// The seed of the order of images.
    pub fn order_seed(&self) -> u64 {
        self.order_seed.unwrap_or(self.seed)
    }

    /// The seed of dropout.
    pub fn dropout_seed(&self) -> u64 {
        self.dropout_seed.unwrap_or(self.seed)
    }

    /// Whether it has settings that programs before them would not see.
    pub(crate) fn is_of_format_2(&self) -> bool {
        let seeds = [self.init_seed, self.order_seed, self.dropout_seed];
        self.selection.is_some() || seeds.iter().any(Option::is_some)
    }

    /// Slots and micro-batches of a run of this job.
    pub fn division(&self, micro_batches: usize) -> Division {
        Division { slots: self.slots, micro_batches }
    }
}

/// The requested value, that of the checkpoint, or the default. A requested value that differs from the checkpoint's is an
/// error.
fn settle<T: PartialEq + std::fmt::Display>(
    key: &'static str,
    asked: Option<T>,
    before: Option<T>,
    default: T,
) -> Result<T, SettingError> {
    match (asked, before) {
        (Some(asked), Some(before)) if asked != before => {
            let (asked, before) = (asked.to_string(), before.to_string());
            Err(match key {
                "data" => SettingError::OtherData { asked, before },
                "model" => other_model(&asked, &before),
                _ => SettingError::ResumeDiffers { key, asked, before },
            })
        }
        (asked, before) => Ok(asked.or(before).unwrap_or(default)),
    }
}

/// How two models differ: by their names, or else in a line of their texts.
fn other_model(asked: &str, before: &str) -> SettingError {
    let name = |text: &str| text.lines().find(|line| line.starts_with("name = ")).map(printable).unwrap_or_default();
    if name(asked) != name(before) {
        let shown = |text| format!("the one with {}", name(text));
        return SettingError::ResumeDiffers { key: "model", asked: shown(asked), before: shown(before) };
    }
    let (mut asked, mut before) = (asked.lines(), before.lines());
    let shown = |line: Option<&str>| match line.map(|line| printable(line.trim())) {
        Some(line) => format!("\"{}\"", line.chars().take(LINE_SHOWN_MAX).collect::<String>()),
        None => "missing".to_owned(),
    };
    let mut line = 0;
    loop {
        line += 1;
        match (asked.next(), before.next()) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => return SettingError::OtherModel { line, asked: shown(a), before: shown(b) },
        }
    }
}

pub(crate) fn check(
    flag: &'static str,
    value: impl std::fmt::Display,
    sound: bool,
    expected: impl Into<String>,
) -> Result<(), SettingError> {
    let wrong = |Unsound { key, value, expected }| SettingError::Invalid { flag: key.to_owned(), value, expected };
    demand(flag, value, sound, expected).map_err(wrong)
}

/// The same for a value in a job, by its key.
pub(crate) fn demand(
    key: &'static str,
    value: impl std::fmt::Display,
    sound: bool,
    expected: impl Into<String>,
) -> Result<(), Unsound> {
    if sound { Ok(()) } else { Err(Unsound { key, value: value.to_string(), expected: expected.into() }) }
}

fn check_batch(batch: usize) -> Result<(), Unsound> {
    demand("batch", batch, (1..=BATCH_MAX).contains(&batch), "1 to 1048576")
}

fn check_slots(slots: usize, batch: usize) -> Result<(), Unsound> {
    demand("slots", slots, (1..=batch).contains(&slots), format!("{}, the size of a batch", up_to(batch)))
}

/// Micro-batches per slot of batches of `batch` images that are placed as in `placement`: as requested, or else the default.
///
/// # Errors
/// When the requested number is 0, or larger than a slot.
pub fn micro_batches(requested: Option<usize>, batch: usize, placement: &Placement) -> Result<usize, SettingError> {
    let largest_slot = batch.div_ceil(placement.slots);
    let micro_batches =
        requested.unwrap_or_else(|| defaults::micro_batches(batch, placement.slots, placement.replicas()));
    let expected = format!("{}, the size of a slot", up_to(largest_slot));
    check("--micro-batches", micro_batches, (1..=largest_slot).contains(&micro_batches), expected)?;
    Ok(micro_batches)
}

/// The numbers from 1 to `most`, for an error message.
fn up_to(most: usize) -> String {
    if most == 1 { "1".to_owned() } else { format!("1 to {most}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Asked::default().resolve(None, "d".to_owned(), None, |batch| 1000 / batch as u64).unwrap().0
    }

    #[test]
    fn what_is_left_out_comes_from_the_checkpoint_and_what_differs_is_refused_with_both_values() {
        let before = Job { lr: 0.5, ..job() };
        let resolve =
            |asked: Asked| asked.resolve(Some((&before, 100)), "d".to_owned(), None, |batch| 1000 / batch as u64);
        assert_eq!(resolve(Asked::default()).unwrap().0, before);
        let error = resolve(Asked { lr: Some(0.1), ..Asked::default() }).unwrap_err().to_string();
        assert!(error.contains("0.1") && error.contains("0.5") && error.contains("lr"), "{error}");
        let later = resolve(Asked { length: Some(Length::Steps(500)), ..Asked::default() }).unwrap();
        assert_eq!((later.0.span, later.1), (before.span, 500), "a later end leaves the schedule's span as it was");
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_what_would_be_right() {
        let cases = [
            Asked { lr: Some(-1.0), ..Asked::default() },
            Asked { lr: Some(f64::NAN), ..Asked::default() },
            Asked { lr: Some(1e39), ..Asked::default() },
            Asked { weight_decay: Some(1e39), ..Asked::default() },
            Asked { momentum: Some(1.0), ..Asked::default() },
            Asked { batch: Some(0), ..Asked::default() },
            Asked { slots: Some(0), ..Asked::default() },
            Asked { slots: Some(65), ..Asked::default() },
            Asked { length: Some(Length::Epochs(0)), ..Asked::default() },
            Asked { length: Some(Length::Epochs(u64::MAX)), ..Asked::default() },
        ];
        for asked in cases {
            let error = asked.resolve(None, String::new(), None, |_| 10).unwrap_err().to_string();
            assert!(error.contains("must be"), "{error}");
        }
    }

    /// A job that was read from a file may hold anything.
    #[test]
    fn a_job_with_a_value_that_is_not_allowed_is_not_sound() {
        assert!(job().check().is_ok());
        let Span { steps, steps_per_epoch } = job().span;
        let cases = [
            (Job { batch: 0, ..job() }, "batch is 0"),
            (Job { slots: 0, ..job() }, "slots is 0"),
            (Job { lr: 0.0, ..job() }, "lr is 0"),
            (Job { weight_decay: -1.0, ..job() }, "weight_decay is -1"),
            (Job { span: Span { steps: 0, steps_per_epoch }, ..job() }, "span.steps is 0"),
            (Job { span: Span { steps, steps_per_epoch: 0 }, ..job() }, "span.steps_per_epoch is 0"),
        ];
        for (job, part) in cases {
            let error = job.check().unwrap_err().to_string();
            // A flag in an error would be laid on the command line or the environment.
            assert!(error.contains(part) && error.contains("must be") && !error.contains("--"), "{error}");
        }
    }
}
