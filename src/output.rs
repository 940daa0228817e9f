//! Standard output and standard error, and the progress bar that may stand there. What can't be printed is no panic.

use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;

/// The bar that is to be seen, if any. Whoever prints moves it out of the way.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);
/// Whether everything on standard error is a line of a log that programs read.
static IS_FOR_PROGRAMS: AtomicBool = AtomicBool::new(false);

/// Prints what a command was asked for. A reader that has seen enough, as in `convoy plan | head`, may close the pipe.
pub(crate) fn print(text: &str) -> Result<(), Box<dyn Error>> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("write to standard output: {error}").into()),
        _ => Ok(()),
    }
}

/// Prints a line about something that goes on whether anybody reads or not: what matters of a job is in its folder.
pub(crate) fn tell(line: &str) {
    beside_the_bar(|| {
        let _ = writeln!(io::stdout(), "{line}");
    });
}

/// Prints a line to standard error, if anybody reads there: as one of the log's, where programs read that.
pub(crate) fn complain(line: &str) {
    if IS_FOR_PROGRAMS.load(Ordering::Relaxed) {
        tracing::warn!("{line}");
    } else {
        to_standard_error(format!("{line}\n").as_bytes());
    }
}

/// Says why a command failed, likewise.
pub(crate) fn fail(why: &str) {
    if IS_FOR_PROGRAMS.load(Ordering::Relaxed) {
        tracing::error!("{why}");
    } else {
        complain(&format!("error: {why}"));
    }
}

/// From now on whoever reads standard error reads the log, line by line.
pub(crate) fn is_for_programs() {
    IS_FOR_PROGRAMS.store(true, Ordering::Relaxed);
}

/// Writes a whole line.
pub(crate) fn to_standard_error(line: &[u8]) {
    beside_the_bar(|| {
        // Where nothing can be printed there is the exit code.
        let _ = io::stderr().write_all(line);
    });
}

/// Shows a bar, or none.
pub(crate) fn show_bar(bar: Option<ProgressBar>) {
    if let Some(old) = std::mem::replace(&mut *BAR.lock().unwrap_or_else(PoisonError::into_inner), bar) {
        old.finish_and_clear();
    }
}

/// Standard error, for a log, which writes whole lines.
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
