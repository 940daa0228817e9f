//! The interface to the place where the processes of a run live: it starts them, makes faults happen from outside, and identifies them by
//! name.
//!
//! Not here: the two places, this machine (`local`) and a container engine (`compose`).

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use convoy_common::misdeed::Misdeed;
use serde_json::Value;

use crate::error::ChaosError;
use crate::role::Role;

/// A part of what a process says.
#[derive(Debug)]
pub enum Said {
    /// A line of standard output.
    Event(String),
    /// A line of standard error.
    Log(String),
    /// Both have ended, and the process has ended or is about to.
    End,
}

/// What a process says.
#[derive(Debug)]
pub struct Message {
    /// Which process.
    pub role: Role,
    /// What it says.
    pub said: Said,
    /// When it was read from the process. Until the conductor handles it, time may pass.
    pub at: Instant,
}

impl Message {
    /// A message that was just read.
    pub fn now(role: Role, said: Said) -> Self {
        Self { role, said, at: Instant::now() }
    }
}

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
pub trait Place {
    /// Prepares the place. Called once, before anything else.
    ///
    /// # Errors
    /// When it can't be prepared.
    fn open(&mut self) -> Result<(), ChaosError>;

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

    /// The coordinator has said where it listens.
    fn on_listening(&mut self, address: &str);

    /// Kills a process. Returns whether it was running.
    ///
    /// # Errors
    /// When it can't be killed.
    fn kill(&mut self, role: Role) -> Result<bool, ChaosError>;

    /// Stops a worker, until it is continued. Returns whether it was running.
    ///
    /// # Errors
    /// When it can't be stopped.
    fn stop(&mut self, worker: usize) -> Result<bool, ChaosError>;

    /// Continues a worker. One that has ended needs nothing.
    ///
    /// # Errors
    /// When it can't be continued.
    fn proceed(&mut self, worker: usize) -> Result<(), ChaosError>;

    /// Cuts the connections of a worker. Returns whether there were any.
    ///
    /// # Errors
    /// When they can't be cut.
    fn cut(&mut self, worker: usize) -> Result<bool, ChaosError>;

    /// Lets a worker that was cut connect again.
    ///
    /// # Errors
    /// When that fails.
    fn mend(&mut self, worker: usize) -> Result<(), ChaosError>;

    /// Holds back the bytes of a worker for a while. Returns whether that is possible.
    fn hold(&mut self, worker: usize, time: Duration) -> bool;

    /// How a process ended. The caller has seen its [`Said::End`].
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

    /// Ends all processes at once.
    ///
    /// # Errors
    /// When something remains.
    fn abandon(&mut self) -> Result<(), ChaosError>;
}

/// Removes Convoy's variables from the environment of a command, except those in `kept`.
pub(crate) fn forget_settings(command: &mut Command, kept: &[&str]) {
    let settings = std::env::vars_os().map(|(name, _)| name);
    for name in settings.filter(|name| name.as_encoded_bytes().starts_with(b"CONVOY_")) {
        if !kept.iter().any(|kept| name == *kept) {
            command.env_remove(name);
        }
    }
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
                        let _ = said.send(Message::now(role, wrap(line)));
                    }
                });
            }
        });
        let _ = said.send(Message::now(role, Said::End));
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
