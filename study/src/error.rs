//! What can go wrong with a study, in words for the person who runs it.

use std::path::PathBuf;

use convoy_common::fields::FieldError;
use convoy_common::model::ModelError;
use convoy_dataset::DataError;

/// Why a study can't be run or reported.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum StudyError {
    /// A key of the study's file or its value.
    #[error("{file}")]
    File { file: String, source: Box<FieldError> },
    /// A value of the study's file that does not fit the others.
    #[error("{file}: {reason}")]
    Value { file: String, reason: String },
    /// A file that the study names, or its own file.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
    /// The model of an arm.
    #[error("{file}: the model of arm \"{arm}\"")]
    Model { file: String, arm: String, source: Box<ModelError> },
    /// The design can't show anything.
    #[error("{0}")]
    Weak(String),
    /// The images.
    #[error(transparent)]
    Data(Box<DataError>),
    /// There are other images than the study needs.
    #[error("the study needs {wanted} training images, but there are {found}: {origin}; {help}")]
    OtherData { wanted: usize, found: usize, origin: String, help: String },
    /// The images changed while the study ran.
    #[error(
        "the images changed while the study ran: their SHA-256 was {before}, and in the run in {} it is {now}; restore the images, remove that \
         folder, and run the study again",
        folder.display()
    )]
    ChangedData { before: String, now: String, folder: PathBuf },
    /// The folder holds a study that differs.
    #[error(
        "{} holds a study that differs: {what}; to run another study, give it another name or --out, or remove the folder",
        folder.display()
    )]
    Changed { folder: PathBuf, what: String },
    /// There is a file instead of a folder.
    #[error("{} is not a folder; must be a folder, or not exist yet", path.display())]
    NotAFolder { path: PathBuf },
    /// The folder holds something else.
    #[error("{} holds files, but no study; give an empty folder, or one that does not exist", folder.display())]
    Occupied { folder: PathBuf },
    /// Another process runs the study.
    #[error("another process uses {}", folder.display())]
    Busy { folder: PathBuf },
    /// A file of the study's folder can't be written.
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    /// A file of the study's folder is damaged.
    #[error("{} is damaged: {why}; remove it, and run the study again", path.display())]
    Damaged { path: PathBuf, why: String },
    /// A run can't be carried out.
    #[error("the run of arm \"{arm}\" with seed {seed} failed ({attempts} of at most 3 attempts without progress): {why}; its folder is {}", folder.display())]
    Run { arm: String, seed: u64, attempts: usize, why: String, folder: PathBuf },
    /// The file that says which study a folder holds is damaged, so the rest of the folder can't be trusted.
    #[error("{} is damaged: {why}; remove {}, and run the study again", path.display(), folder.display())]
    DamagedStudy { path: PathBuf, folder: PathBuf, why: String },
    /// A report can't be written again before all runs have ended.
    #[error("{ended} of {all} runs have ended in {}; run the study without --report-only to its end", folder.display())]
    Missing { folder: PathBuf, ended: usize, all: usize },
    /// Nor before all representations are known.
    #[error(
        "representations.json in {} does not have the run of arm \"{arm}\" with seed {seed}; run the study without --report-only",
        folder.display()
    )]
    NotRepresented { arm: String, seed: u64, folder: PathBuf },
    /// Images that are not loaded are not counted.
    #[error("{} does not have the number of training images; run the study without --report-only", folder.display())]
    NoCount { folder: PathBuf },
    /// The outputs of layers can't be computed.
    #[error("cannot compute the outputs of the layers of arm \"{arm}\": {why}")]
    Outputs { arm: String, why: String },
    /// A measurement of costs ended early.
    #[error("cannot measure what arm \"{arm}\" costs: {why}")]
    Costs { arm: String, why: String },
    /// A process can't be started.
    #[error("cannot start {what}")]
    Start { what: String, source: std::io::Error },
    /// It was asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl StudyError {
    /// Whether the command was used wrongly: exit code 2.
    pub fn is_misuse(&self) -> bool {
        !matches!(
            self,
            StudyError::Write { .. }
                | StudyError::Run { .. }
                | StudyError::Outputs { .. }
                | StudyError::Costs { .. }
                | StudyError::Start { .. }
                | StudyError::Interrupted
        )
    }
}

impl From<DataError> for StudyError {
    fn from(error: DataError) -> Self {
        Self::Data(Box::new(error))
    }
}
