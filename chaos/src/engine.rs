//! Commands of the container engine, with a time limit.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{COMMAND_MAX, ChaosError};

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Runs `docker` with these arguments. What it prints.
///
/// # Errors
/// When it fails, or takes too long.
pub(crate) fn docker(arguments: &[&str]) -> Result<String, ChaosError> {
    succeed(Command::new("docker").args(arguments))
}

/// Runs a command to its end. What it prints. Ctrl-C reaches only this process.
///
/// # Errors
/// When it can't be started, fails, or takes too long.
pub(crate) fn succeed(command: &mut Command) -> Result<String, ChaosError> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let wrong = |source| ChaosError::Start { what: words.clone(), source };
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(wrong)?;
    let (output, errors) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let began = Instant::now();
    let status = loop {
        match child.try_wait().map_err(wrong)? {
            Some(status) => break status,
            None if began.elapsed() > COMMAND_MAX => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(ChaosError::Slow { command: words });
            }
            None => thread::sleep(LOOK_EVERY),
        }
    };
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).trim().to_owned()
    };
    let (output, errors) = (text(output), text(errors));
    if status.success() {
        Ok(output)
    } else {
        Err(ChaosError::Engine { command: words, said: errors.replace('\n', "; ") })
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until an error is all there is.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        bytes
    })
}
