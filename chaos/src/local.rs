//! A run on this machine: a coordinator and its workers as child processes, each worker behind a proxy.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use convoy_common::misdeed::Misdeed;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::error::{ChaosError, LEAVE_MAX};
use crate::place::{End, Message, Place, forget_settings, listen_to, peak_bytes_of};
use crate::proxy::{Proxy, Target};
use crate::role::Role;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An environment variable of every process of a run: the folder of the run.
pub const MARK: &str = "CHAOS_RUN";

/// Processes of this machine.
#[derive(Debug)]
pub struct Local {
    program: PathBuf,
    job: Vec<String>,
    out: PathBuf,
    /// Where the coordinator listens.
    target: Target,
    /// One for each worker.
    proxies: Vec<Proxy>,
    processes: BTreeMap<Role, Child>,
}

impl Local {
    /// Runs `program` with the flags `job` of `convoy train`, in the folder `out`.
    pub fn new(program: PathBuf, job: Vec<String>, out: PathBuf) -> Self {
        Self { program, job, out, target: Target::default(), proxies: Vec::new(), processes: BTreeMap::new() }
    }

    /// Returns whether there was a process to signal.
    fn signal(&mut self, role: Role, signal: Signal) -> Result<bool, ChaosError> {
        let process = self.processes.get_mut(&role).ok_or(ChaosError::Absent { role })?;
        // One that has ended, and was not waited for, keeps its number.
        let is_running = process.try_wait().map_err(|source| ChaosError::Wait { role, source })?.is_none();
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).filter(|_| is_running);
        Ok(pid.is_some_and(|pid| kill_process(pid, signal).is_ok()))
    }

    fn command(&self) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&self.program);
        forget_settings(&mut command, &["CONVOY_OFFLINE"]);
        // Every process ends with this one, even if this one is killed: its standard input closes. Ctrl-C reaches only this process.
        command.stdin(Stdio::piped()).process_group(0);
        // The mark tells whose processes these are.
        command.env("RUST_LOG", "warn").env(MARK, &self.out).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn coordinator(&self) -> Command {
        let mut command = self.command();
        command.arg("train").args(&self.job).args(["--lifeline", "--json", "--resume", "auto"]);
        // A free port, which no other process can take before the coordinator does.
        command.args(["--listen", "127.0.0.1:0"]).arg("--out").arg(&self.out);
        command
    }

    fn worker(&mut self, worker: usize, misdeeds: &[Misdeed]) -> std::io::Result<Command> {
        if worker == self.proxies.len() {
            self.proxies.push(Proxy::start(self.target.clone())?);
        }
        let mut command = self.command();
        command.args(["worker", "--threads", "1", "--lifeline"]);
        command.args(["--join", &self.proxies[worker].address().to_string()]);
        if !misdeeds.is_empty() {
            let misdeeds: Vec<_> = misdeeds.iter().map(ToString::to_string).collect();
            command.args(["--rehearse", &misdeeds.join(",")]);
        }
        Ok(command)
    }
}

impl Place for Local {
    fn open(&mut self) -> Result<(), ChaosError> {
        Ok(())
    }

    fn start(&mut self, role: Role, misdeeds: &[Misdeed], said: &SyncSender<Message>) -> Result<(), ChaosError> {
        let command = match role {
            Role::Coordinator => Ok(self.coordinator()),
            Role::Worker(worker) => self.worker(worker, misdeeds),
        };
        let process = command.and_then(|mut command| listen_to(&mut command, role, said));
        let process = process.map_err(|source| ChaosError::Start { what: role.to_string(), source })?;
        self.processes.insert(role, process);
        Ok(())
    }

    fn name(&self, role: Role) -> String {
        self.processes.get(&role).map_or_else(|| role.to_string(), |process| format!("process {}", process.id()))
    }

    fn named_in(&self, event: &Value) -> Option<String> {
        event["process_id"].as_u64().map(|id| format!("process {id}"))
    }

    fn on_listening(&mut self, address: &str) {
        self.target.set(address.parse().ok());
    }

    fn kill(&mut self, role: Role) -> Result<bool, ChaosError> {
        if role == Role::Coordinator {
            self.target.set(None);
        }
        self.signal(role, Signal::KILL)
    }

    fn stop(&mut self, worker: usize) -> Result<bool, ChaosError> {
        self.signal(Role::Worker(worker), Signal::STOP)
    }

    fn proceed(&mut self, worker: usize) -> Result<(), ChaosError> {
        self.signal(Role::Worker(worker), Signal::CONT).map(drop)
    }

    fn cut(&mut self, worker: usize) -> Result<bool, ChaosError> {
        Ok(self.proxies[worker].cut() > 0)
    }

    /// It may connect again at once.
    fn mend(&mut self, _worker: usize) -> Result<(), ChaosError> {
        Ok(())
    }

    fn hold(&mut self, worker: usize, time: Duration) -> bool {
        self.proxies[worker].hold(time) > 0
    }

    fn end(&mut self, role: Role) -> Result<End, ChaosError> {
        use std::os::unix::process::ExitStatusExt;
        if role == Role::Coordinator {
            self.target.set(None);
        }
        let process = self.processes.get_mut(&role).ok_or(ChaosError::Absent { role })?;
        // It has closed its standard error, so it ends, if it has not yet.
        let status = process.wait().map_err(|source| ChaosError::Wait { role, source })?;
        let was_killed = status.signal() == Some(Signal::KILL.as_raw());
        Ok(End { is_success: status.success(), was_killed, status: status.to_string() })
    }

    fn peak_bytes(&self, role: Role) -> u64 {
        self.processes.get(&role).map_or(0, |process| peak_bytes_of(process.id()))
    }

    fn leave(&mut self) -> Result<(), ChaosError> {
        let workers: Vec<Role> = (0..self.proxies.len()).map(Role::Worker).collect();
        for role in &workers {
            self.signal(*role, Signal::CONT)?;
            self.signal(*role, Signal::TERM)?;
        }
        let began = Instant::now();
        for role in workers {
            while self.processes.get_mut(&role).is_some_and(|process| matches!(process.try_wait(), Ok(None))) {
                if began.elapsed() > LEAVE_MAX {
                    return Err(ChaosError::Remains { process: format!("{} ({role})", self.name(role)) });
                }
                thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }

    fn abandon(&mut self) -> Result<(), ChaosError> {
        for (role, process) in &mut self.processes {
            // One that has ended needs nothing.
            let _ = process.kill();
            process.wait().map_err(|source| ChaosError::Wait { role: *role, source })?;
        }
        Ok(())
    }
}

impl Drop for Local {
    /// However a run ends, no process is left.
    fn drop(&mut self) {
        let _ = self.abandon();
    }
}
