//! Processes of a study: the program's own commands, each with workers of its own or with workers that connect. They end with this process,
//! however it ends.
//!
//! Not here: what the commands are for (`run`, `identity`).

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::error::StudyError;
use crate::place::{Lane, Place, TOO_FEW_WORKERS};

/// How often a lane looks whether it was stopped, and reads what its run has said.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a process that was asked to stop may take: it writes a checkpoint.
const STOP_MAX: Duration = Duration::from_secs(60);
/// The most lines of output that are read before the next look.
const LINES_AT_ONCE: usize = 10_000;
/// The most lines of a process's errors that are kept for a message.
const ERRORS_MAX: usize = 20;
/// The most bytes of a process's output that are kept. Those of `convoy eval` are far fewer.
const OUTPUT_MAX: usize = 1 << 20;

/// The program and what all its commands are told.
#[derive(Clone, Copy)]
pub(crate) struct Program<'a> {
    pub(crate) place: &'a Place,
    pub(crate) lane: &'a Lane,
    /// The value of `--data`.
    pub(crate) data: &'a str,
}

impl Program<'_> {
    /// A command of the program, on the workers of the lane.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = undisturbed(&self.place.program, name);
        command.args(["--workers", &self.place.workers.to_string()]);
        match self.lane {
            Lane::Own { threads } => drop(command.args(["--threads", &threads.to_string()])),
            Lane::Listening { at, credentials } => {
                command.args(["--listen", &at.to_string()]).args(credentials);
            }
        }
        command
    }

    /// Whether a process ended because no workers came. That is no failure of the run: other runs have all the workers.
    pub(crate) fn has_waited(&self, status: ExitStatus) -> bool {
        matches!(self.lane, Lane::Listening { .. }) && status.code() == Some(i32::from(TOO_FEW_WORKERS))
    }
}

/// A command of the program that ends with this process, and hears of no setting by accident.
pub(crate) fn undisturbed(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars_os() {
        if variable.as_encoded_bytes().starts_with(b"CONVOY_") && variable != "CONVOY_OFFLINE" {
            command.env_remove(variable);
        }
    }
    command.env("RUST_LOG", "warn").env_remove("OTEL_EXPORTER_OTLP_ENDPOINT");
    command.args([name, "--lifeline"]);
    command
}

/// How a process ended.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    /// Its last errors.
    pub(crate) errors: String,
    /// Its standard output, if it was kept.
    pub(crate) output: String,
}

/// Runs a process to its end. Each line of its output that is a JSON object goes to `on_event`.
///
/// # Errors
/// When it can't be started, or when `is_over`: then it was asked to stop, and has ended.
pub(crate) fn run(
    command: &mut Command,
    is_over: &dyn Fn() -> bool,
    on_event: &mut dyn FnMut(&Value),
) -> Result<End, StudyError> {
    let failed = |source| StudyError::Start { what: "a process for a run".to_owned(), source };
    // It ends with this process, even if this one is killed: its standard input closes. Ctrl-C reaches only this process.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed(std::io::Error::other("it has no pipes")));
    };
    let errors = thread::spawn(move || last_lines(errors));
    let (said, lines) = channel();
    let (ended, end) = channel::<()>();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if said.send(line).is_err() {
                break;
            }
        }
        drop(ended);
    });
    let (mut text, mut stopped) = (String::new(), None);
    loop {
        // A small network has hundreds of steps per second. Only the reader wakes up for each of them.
        let has_ended = end.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Disconnected);
        for line in lines.try_iter().take(if has_ended { usize::MAX } else { LINES_AT_ONCE }) {
            serde_json::from_str::<Value>(&line).iter().for_each(&mut *on_event);
            text = text + &line + "\n";
            if text.len() > OUTPUT_MAX {
                text.clear();
            }
        }
        if has_ended {
            break;
        }
        if is_over() && stopped.is_none() {
            stopped = Some(Instant::now());
            signal(&child, Signal::TERM);
        }
        if stopped.is_some_and(|since: Instant| since.elapsed() > STOP_MAX) {
            // What it did since its last checkpoint is computed again.
            let _ = child.kill();
        }
    }
    let status = child.wait().map_err(failed)?;
    // Both have seen the end of their pipes.
    let _ = reader.join();
    let errors = errors.join().unwrap_or_default();
    if stopped.is_some() {
        return Err(StudyError::Interrupted);
    }
    Ok(End { status, errors, output: text })
}

/// The last lines that a process says on standard error.
fn last_lines(errors: impl Read) -> String {
    let mut kept = VecDeque::new();
    for line in BufReader::new(errors).lines().map_while(Result::ok) {
        // A note is not why a process ends.
        if line.starts_with("note: ") {
            continue;
        }
        kept.push_back(line);
        if kept.len() > ERRORS_MAX {
            kept.pop_front();
        }
    }
    Vec::from(kept).join("\n")
}

fn signal(child: &Child, signal: Signal) {
    // A process that has ended, and was not waited for, keeps its number.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
