//! The images of a study: loaded once before it runs, so that a missing or a wrong set is found at once.

use convoy_dataset::{DataSource, Places, Reading, Split, View, Wanted, load};

use crate::arm::Arm;
use crate::error::StudyError;
use crate::file::Study;
use crate::vary::Source;

/// The images of a study.
#[derive(Clone, Debug)]
pub struct Images {
    /// Where they come from, as for `--data`.
    pub source: String,
    /// SHA-256 over all of them.
    pub sha256: String,
    /// What they are, in one line for people.
    pub origin: String,
    /// Number of training images.
    pub(crate) all: usize,
    /// None if they are not loaded.
    test: Option<Split>,
}

impl Study {
    /// Whether a series varies the choice of training images although all of them are chosen.
    fn splits_all_of(&self, found: usize) -> bool {
        let varies = |arm: &Arm| arm.varies.is_some_and(|varies| varies.source == Source::Split);
        self.settings.images == Some(found) && self.arms.iter().any(varies)
    }

    /// The fewest training images with which it can run.
    fn images_needed(&self) -> usize {
        let held_out = self.tune.as_ref().map_or(0, |tune| tune.holdout);
        self.settings.images.unwrap_or(1).saturating_add(held_out)
    }
}

impl Images {
    /// Loads the images of a study from where its file says, or from `instead`.
    ///
    /// # Errors
    /// When they can't be read, don't fit the models, or are another number than the study needs.
    pub fn load(study: &Study, instead: Option<&DataSource>, places: &Places) -> Result<Self, StudyError> {
        let source = match instead {
            Some(source) => source.clone(),
            None => study.data.parse()?,
        };
        let seed = study.control().seeds.first().copied().unwrap_or(1);
        let set = load(&source, &Wanted::by(&study.control().network, seed), places, &Reading::default())?;
        let found = set.train.len();
        match study.train_images {
            Some(wanted) if wanted != found => {
                let (origin, help) = (set.origin, set.notices.join("; "));
                let help =
                    if help.is_empty() { "give --data with the folder of the right ones".to_owned() } else { help };
                Err(StudyError::OtherData { wanted, found, origin, help })
            }
            _ if found < study.images_needed() => {
                let wanted = study.images_needed();
                let help = "make train, images (or tune, holdout) smaller";
                Err(StudyError::OtherData { wanted, found, origin: set.origin, help: help.to_owned() })
            }
            _ if study.splits_all_of(found) => Err(StudyError::Value {
                file: study.name.clone(),
                reason: format!(
                    "variance, sources: \"split\" can't vary, because train, images = {found} are all training images"
                ),
            }),
            _ => Ok(Self {
                source: source.remembered()?,
                sha256: set.fingerprint,
                origin: set.origin,
                all: found,
                test: Some(set.test),
            }),
        }
    }

    /// Images that are not loaded, but known by their SHA-256 and by the number of training images: for writing a report again.
    pub(crate) fn not_loaded(study: &Study, sha256: String, all: usize) -> Self {
        Self { source: study.data.clone(), sha256, origin: "not loaded".to_owned(), all, test: None }
    }

    /// The bytes of the first `count` test images, or of all if there are fewer, one after the other. None if they are not loaded.
    ///
    /// # Errors
    /// When a file has changed since, or is gone.
    pub(crate) fn first_test_images(&self, count: usize) -> Result<Option<Vec<u8>>, StudyError> {
        let Some(test) = &self.test else { return Ok(None) };
        let mut bytes = Vec::new();
        for image in 0..count.min(test.len()) {
            bytes.extend_from_slice(&test.image(image, View::Centre)?);
        }
        Ok(Some(bytes))
    }

    /// SHA-256 over the images, if runs with different seeds use the same ones.
    pub(crate) fn of_all_seeds(&self) -> Option<&str> {
        (self.source != DataSource::Synthetic.to_string()).then_some(&self.sha256)
    }
}
