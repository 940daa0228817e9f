//! A study from beginning to end: its runs, and then its reports.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::conduct::{Place, Progress, conduct};
use crate::error::StudyError;
use crate::file::Study;
use crate::folder::Folder;
use crate::images::Images;
use crate::measured::MEASUREMENTS;
use crate::report::Report;

/// The report as JSON, in the study's folder.
pub const REPORT: &str = "report.json";
/// The report as a page.
pub const PAGE: &str = "report.html";

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
    let conducted = conduct(study, images, &folder, place, stop, progress);
    // Also if some runs are missing: what was measured can be kept without the folders of runs.
    let known: Vec<_> = folder.all_measured(study, &images.sha256)?.into_values().collect();
    folder.write_json(MEASUREMENTS, &known)?;
    let measured = conducted?;
    let report = Report::new(study, &images.sha256, &measured);
    folder.write_json(REPORT, &report)?;
    folder.write_text(PAGE, &report.page())?;
    Ok(report)
}
