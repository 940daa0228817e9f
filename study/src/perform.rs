//! A study from beginning to end: its runs, and then its reports.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::conduct::{Progress, conduct};
use crate::error::StudyError;
use crate::file::Study;
use crate::folder::Folder;
use crate::images::Images;
use crate::measured::MEASUREMENTS;
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
    let folder = Folder::open(out, study, &images.sha256)?;
    let run = |study: &Study, folder: &Folder, progress: &mut dyn FnMut(Progress)| {
        let conducted = conduct(study, images, folder, place, stop, progress);
        // Also if some runs are missing: what was measured can be kept without the folders of runs.
        let known: Vec<_> = folder.all_measured(study, images)?.into_values().collect();
        folder.write_json(MEASUREMENTS, &known)?;
        conducted
    };
    let tuned = match study.tuning() {
        None => Vec::new(),
        Some(tuning) => {
            let folder = Folder::open(&out.join(TUNING), &tuning, &images.sha256)?;
            progress(Progress::Tuning);
            study.tuned(&run(&tuning, &folder, progress)?)
        }
    };
    if !tuned.is_empty() {
        progress(Progress::Tuned(&tuned));
    }
    let original = study;
    let study = &study.with_rates(&tuned);
    let measured = run(study, &folder, progress)?;
    let represented = match &study.represent {
        None => Vec::new(),
        Some(what) => {
            let known: Vec<Represented> = folder.read(&out.join(REPRESENTATIONS))?.unwrap_or_default();
            progress(Progress::Representing);
            represent(study, what, images, &folder, &measured, &known)?
        }
    };
    if !represented.is_empty() {
        folder.write_json(REPRESENTATIONS, &represented)?;
    }
    let report = Report::new(original, tuned, &images.sha256, &measured, &represented);
    folder.write_json(REPORT, &report)?;
    folder.write_text(PAGE, &report.page())?;
    Ok(report)
}
