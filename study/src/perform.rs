//! A study from beginning to end: its runs, and then its reports; or its reports alone, from what was measured.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::conduct::{Progress, conduct};
use crate::design::RunId;
use crate::error::StudyError;
use crate::file::Study;
use crate::folder::{Folder, images_of};
use crate::images::Images;
use crate::measured::{MEASUREMENTS, Measured};
use crate::place::Place;
use crate::report::Report;
use crate::represent::{Represented, represent};

/// The report as JSON, in the study's folder.
pub const REPORT: &str = "report.json";
/// The report as a page.
pub const PAGE: &str = "report.html";

/// The folder of the runs that choose learning rates.
const TUNING: &str = "tuning";
/// What the runs represent.
const REPRESENTATIONS: &str = "representations.json";

/// Carries out what is left of a study in the folder `out`, and writes its reports.
///
/// # Errors
/// When the folder holds something else, when a run fails, or when `stop` is set. What has ended stays.
pub fn perform(
    study: &Study,
    images: &Images,
    out: &Path,
    place: &Place,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, StudyError> {
    let run = &mut |study: &Study, folder: &Folder, progress: &mut dyn FnMut(Progress)| {
        if study.settings.holdout.is_some() {
            progress(Progress::Tuning);
        }
        let conducted = conduct(study, images, folder, place, stop, progress);
        // Also if some runs are missing: what was measured can be kept without the folders of runs.
        let known: Vec<_> = folder.all_measured(study, images)?.into_values().collect();
        folder.write_json(MEASUREMENTS, &known)?;
        conducted
    };
    reported(study, images, out, run, progress)
}

/// Writes the reports of a study again, from the files of its folder alone: without images, and without the folders of runs.
///
/// # Errors
/// When the folder holds something else, or not all runs.
pub fn report_again(study: &Study, out: &Path) -> Result<Report, StudyError> {
    let (sha256, count) = images_of(out)?;
    let count = count.or(study.train_images);
    let count = count.ok_or_else(|| StudyError::NoCount { folder: out.to_owned() })?;
    let images = Images::not_loaded(study, sha256, count);
    if study.tune.is_some() {
        // Nothing is written before it is known to be there.
        images_of(&out.join(TUNING))?;
    }
    let look_up = &mut |study: &Study, folder: &Folder, _: &mut dyn FnMut(Progress)| {
        let (measured, all) = (folder.all_measured(study, &images)?, study.runs().len());
        if measured.len() < all {
            return Err(StudyError::Missing { folder: folder.path().to_owned(), ended: measured.len(), all });
        }
        Ok(measured)
    };
    reported(study, &images, out, look_up, &mut |_| {})
}

/// Finds out what was measured in all runs of a study, in its folder.
type Measure<'a> =
    dyn FnMut(&Study, &Folder, &mut dyn FnMut(Progress)) -> Result<BTreeMap<RunId, Measured>, StudyError> + 'a;

fn reported(
    study: &Study,
    images: &Images,
    out: &Path,
    measure: &mut Measure,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, StudyError> {
    let folder = Folder::open(out, study, &images.sha256, images.all)?;
    let tuned = match study.tuning() {
        None => Vec::new(),
        Some(tuning) => {
            let folder = Folder::open(&out.join(TUNING), &tuning, &images.sha256, images.all)?;
            let tuned = study.tuned(&measure(&tuning, &folder, progress)?);
            progress(Progress::Tuned(&tuned));
            tuned
        }
    };
    let with_rates = study.with_rates(&tuned);
    let measured = measure(&with_rates, &folder, progress)?;
    let represented = match &study.represent {
        None => Vec::new(),
        Some(what) => {
            let known: Vec<Represented> = folder.read(&out.join(REPRESENTATIONS))?.unwrap_or_default();
            progress(Progress::Representing);
            represent(&with_rates, what, images, &folder, &measured, &known)?
        }
    };
    if !represented.is_empty() {
        folder.write_json(REPRESENTATIONS, &represented)?;
    }
    let report = Report::new(study, tuned, &images.sha256, &measured, &represented);
    folder.write_json(REPORT, &report)?;
    folder.write_text(PAGE, &report.page())?;
    Ok(report)
}
