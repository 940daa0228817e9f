//! Standard output and standard error. What can't be printed is no panic.

use std::error::Error;
use std::io::{self, ErrorKind, Write};

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
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints a line to standard error, if anybody reads there.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
