//! What a run needs of the place where its processes live: to start them, to strike them from outside, and to know them by name.
//!
//! Not here: the two places, this machine (`local`) and a container engine (`compose`).

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use convoy_common::misdeed::Misdeed;
use serde_json::Value;

use crate::error::ChaosError;

/// A part in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The coordinator.
    Coordinator,
    /// A worker. Its number is that of its place in the storm, not the one that the coordinator gives it.
    Worker(usize),
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Coordinator => write!(formatter, "the coordinator"),
            Role::Worker(worker) => write!(formatter, "worker {worker}"),
        }
    }
}

/// What a process says.
#[derive(Debug)]
pub enum Said {
    /// A line of standard output.
    Event(String),
    /// A line of standard error.
    Log(String),
    /// Both have ended, and so has the process, or nearly.
    End,
}

/// What a process says, and which.
pub type Message = (Role, Said);

/// How a process ended.
#[derive(Clone, Debug)]
pub struct End {
    /// Whether its exit code was 0.
    pub is_success: bool,
    /// Whether it was killed by SIGKILL.
    pub was_killed: bool,
    /// The same in words.
    pub status: String,
}

/// The place where the processes of a run live. Whatever is left of them ends when it is dropped.
pub trait Site {
    /// Starts a process, or starts it again after it has ended. Its lines go to `said`, and then its end. The coordinator is started
    /// first, and then the workers in the order of their numbers.
    ///
    /// # Errors
    /// When it can't be started.
    fn start(&mut self, role: Role, misdeeds: &[Misdeed], said: &SyncSender<Message>) -> Result<(), ChaosError>;

    /// What a process is called: "process 4711", for example.
    fn name(&self, role: Role) -> String;

    /// The process that an event of the coordinator names, if it names one.
    fn named_in(&self, event: &Value) -> Option<String>;

    /// Kills a process. One that has ended needs nothing.
    fn kill(&mut self, role: Role);

    /// Stops a worker, until it is continued.
    fn stop(&mut self, worker: usize);

    /// Continues a worker.
    fn proceed(&mut self, worker: usize);

    /// Cuts the connections of a worker. Returns whether there were any.
    fn cut(&mut self, worker: usize) -> bool;

    /// Lets a worker that was cut connect again.
    fn mend(&mut self, worker: usize);

    /// Holds back the bytes of a worker for a while. Returns whether that is possible.
    fn hold(&mut self, worker: usize, time: Duration) -> bool;

    /// How a process ended whose end was said.
    ///
    /// # Errors
    /// When that can't be found out.
    fn end(&mut self, role: Role) -> Result<End, ChaosError>;

    /// The highest resident memory of a process so far, in bytes; 0 if it has ended.
    fn peak_bytes(&self, role: Role) -> u64;

    /// Lets the workers leave.
    ///
    /// # Errors
    /// When one remains.
    fn leave(&mut self) -> Result<(), ChaosError>;
}

/// Starts a command with pipes for its output, and forwards what it says.
pub(crate) fn listen_to(command: &mut Command, role: Role, said: &SyncSender<Message>) -> std::io::Result<Child> {
    let mut child = command.spawn()?;
    let output = child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    let errors = child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    let said = said.clone();
    let wrap: [fn(String) -> Said; 2] = [Said::Event, Said::Log];
    // Both pipes are read to their end before the end is reported.
    thread::Builder::new().name("listen".to_owned()).spawn(move || {
        thread::scope(|scope| {
            for (pipe, wrap) in [output, errors].into_iter().flatten().zip(wrap) {
                let said = said.clone();
                scope.spawn(move || {
                    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                        let _ = said.send((role, wrap(line)));
                    }
                });
            }
        });
        let _ = said.send((role, Said::End));
    })?;
    Ok(child)
}

/// The highest resident memory of a process of this machine, in bytes; 0 if it has ended.
pub(crate) fn peak_bytes_of(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kilobytes| kilobytes * 1024)
}
