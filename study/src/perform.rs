//! A study from beginning to end: its runs, and then its reports.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::conduct::{Place, Progress, conduct};
use crate::error::StudyError;
use crate::file::Study;
use crate::folder::Folder;
use crate::images::Images;
use crate::report::Report;

/// The report as JSON, in the study's folder.
pub const REPORT: &str = "report.json";
/// The report as a page.
pub const PAGE: &str = "report.html";
/// What was measured in all runs.
const MEASUREMENTS: &str = "measurements.json";

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
    let measured = conduct(study, images, &folder, place, stop, progress)?;
    let report = Report::new(study, &images.sha256, &measured);
    folder.write_json(MEASUREMENTS, &measured)?;
    folder.write_json(REPORT, &report)?;
    folder.write_text(PAGE, &report.page())?;
    Ok(report)
}
