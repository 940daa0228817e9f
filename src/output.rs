//! Standard output and standard error, and the progress bar that may be shown there. A failed write never panics.

use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;

/// The visible progress bar, if any. Every print moves it out of the way.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);
/// The first failure to write a line of progress.
static FAILED: Mutex<Option<String>> = Mutex::new(None);
/// Whether programs read standard error as a log.
static IS_FOR_PROGRAMS: AtomicBool = AtomicBool::new(false);

/// Prints the result of a command. A reader may close the pipe early, as in `convoy plan | head`.
pub(crate) fn print(text: &str) -> Result<(), Box<dyn Error>> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(unwritable(&error).into()),
        _ => Ok(()),
    }
}

/// Prints a line of progress. A failed write does not end the job: its folder holds everything that matters.
pub(crate) fn tell(line: &str) {
    let written = beside_the_bar(|| writeln!(io::stdout(), "{line}"));
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| unwritable(&error));
    }
}

/// Why lines of progress were lost, if any were.
pub(crate) fn failure() -> Option<String> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn unwritable(error: &io::Error) -> String {
    format!("cannot write to standard output: {error}")
}

/// Prints a line to standard error, or a log entry where programs read standard error. Failed writes are ignored.
pub(crate) fn complain(line: &str) {
    if IS_FOR_PROGRAMS.load(Ordering::Relaxed) {
        tracing::warn!("{line}");
    } else {
        to_standard_error(format!("{line}\n").as_bytes());
    }
}

/// Prints why a command failed, likewise.
pub(crate) fn fail(why: &str) {
    if IS_FOR_PROGRAMS.load(Ordering::Relaxed) {
        tracing::error!("{why}");
    } else {
        complain(&format!("error: {why}"));
    }
}

/// From now on programs read standard error as a log.
pub(crate) fn set_for_programs() {
    IS_FOR_PROGRAMS.store(true, Ordering::Relaxed);
}

/// Writes a whole line.
pub(crate) fn to_standard_error(line: &[u8]) {
    beside_the_bar(|| {
        // If nothing can be printed, the exit code still tells.
        let _ = io::stderr().write_all(line);
    });
}

/// Shows a progress bar, or none.
pub(crate) fn show_bar(bar: Option<ProgressBar>) {
    if let Some(old) = std::mem::replace(&mut *BAR.lock().unwrap_or_else(PoisonError::into_inner), bar) {
        old.finish_and_clear();
    }
}

/// Standard error for the log, which writes whole lines.
pub(crate) struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        to_standard_error(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn beside_the_bar<T>(print: impl FnOnce() -> T) -> T {
    match &*BAR.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}
