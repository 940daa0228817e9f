//! Workers of our own: processes of this program on this machine, over a Unix socket. Each holds the reading end of a pipe
//! whose writing end only we hold, so that none outlives us, however we end.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use convoy_common::address::{Address, SOCKET_PATH_BYTES_MAX};

use super::doors::unguessable;
use crate::error::JobError;
use crate::job::LocalProgram;

/// How long a worker may take to leave before it is killed.
const LEAVE_MAX: Duration = Duration::from_secs(2);
/// A process whose socket has closed is reaped within this.
const REAP_MAX: Duration = Duration::from_millis(500);
const REAP_EVERY: Duration = Duration::from_millis(5);
/// The socket's name in its folder.
const SOCKET: &str = "coordinator";

/// Worker processes that we have started.
pub struct LocalWorkers {
    children: Vec<LocalWorker>,
    folder: Option<SocketFolder>,
}

struct LocalWorker {
    process: Child,
    /// Closing it ends the worker.
    lifeline: Option<ChildStdin>,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct LocalPlan {
    /// This program.
    pub program: LocalProgram,
    /// How many.
    pub workers: usize,
    /// Threads each.
    pub threads: usize,
    /// Instruction set of each, where it isn't to be the best.
    pub isa: Option<String>,
}

/// A folder that only we can enter, with the socket in it.
pub struct SocketFolder(PathBuf);

impl SocketFolder {
    /// Makes the folder in the first place that can have it: the system's temporary folder, unless its name is too long for
    /// a socket in it or it can't be written, or one of the places that most systems have.
    ///
    /// # Errors
    /// When none of them can have it: why the first can't.
    pub fn create() -> std::io::Result<Self> {
        let places = [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into(), "/dev/shm".into()];
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let mut first = None;
        for place in places.into_iter().chain(runtime) {
            match Self::create_in(&place) {
                Ok(folder) => return Ok(folder),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        Err(first.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))
    }

    fn create_in(place: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = place.join(format!("convoy-{:016x}", unguessable()));
        let length = path.join(SOCKET).as_os_str().len();
        if length > SOCKET_PATH_BYTES_MAX {
            let why = format!(
                "a socket's path may have {SOCKET_PATH_BYTES_MAX} bytes, and in {} it has {length}",
                place.display()
            );
            return Err(std::io::Error::other(why));
        }
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// The socket's address.
    pub fn address(&self) -> Address {
        Address::Unix(self.0.join(SOCKET))
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        // What can't be removed is an empty folder in the system's temporary one.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl LocalWorkers {
    /// Starts the processes.
    ///
    /// # Errors
    /// When one can't be started; those before it are ended.
    pub fn start(plan: &LocalPlan, folder: SocketFolder) -> Result<Self, JobError> {
        let address = folder.address();
        let mut workers = Self { children: Vec::new(), folder: Some(folder) };
        for _ in 0..plan.workers {
            let worker = start_one(plan, &address);
            workers
                .children
                .push(worker.map_err(|source| JobError::Spawn { program: plan.program.path.clone(), source })?);
        }
        Ok(workers)
    }

    /// A worker that ended before it came is an error.
    ///
    /// # Errors
    /// With how it ended.
    pub fn check_alive(&mut self) -> Result<(), JobError> {
        for (worker, child) in self.children.iter_mut().enumerate() {
            if let Ok(Some(status)) = child.process.try_wait() {
                let message = format!("its process {}", described(status));
                return Err(JobError::WorkerFailed { worker, step: 0, message });
            }
        }
        Ok(())
    }

    /// Where a process stands among those that were started.
    pub fn position_of(&self, process_id: u32) -> usize {
        self.children.iter().position(|child| child.process.id() == process_id).unwrap_or(usize::MAX)
    }

    /// Everybody is connected: the socket's name is needed no more, and nothing is left behind if we are killed.
    pub fn all_have_come(&mut self) {
        self.folder = None;
    }

    /// How a process ended, if it has. One that hasn't will never answer again, and is killed.
    pub fn give_up(&mut self, process_id: u32) -> Option<String> {
        let child = self.children.iter_mut().find(|child| child.process.id() == process_id)?;
        let status = wait(&mut child.process, REAP_MAX);
        if status.is_none() {
            // If it can't be killed, the end of all workers will wait for it, with a bound.
            let _ = child.process.kill();
        }
        status.map(|status| format!("its process {}", described(status)))
    }

    /// Lets all processes leave, and waits for them.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for LocalWorkers {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.lifeline = None;
        }
        for child in &mut self.children {
            if wait(&mut child.process, LEAVE_MAX).is_none() {
                // It is being killed because it didn't leave; what it says to that doesn't matter.
                let _ = child.process.kill();
                let _ = child.process.wait();
            }
        }
    }
}

fn start_one(plan: &LocalPlan, address: &Address) -> std::io::Result<LocalWorker> {
    use std::os::unix::process::CommandExt;
    let LocalProgram { path, arguments, complaints } = &plan.program;
    let mut command = Command::new(path);
    // What the environment says to a worker is said to those that people start.
    let settings =
        std::env::vars_os().map(|(name, _)| name).filter(|name| name.as_encoded_bytes().starts_with(b"CONVOY_"));
    for name in settings {
        command.env_remove(name);
    }
    if let Some(complaints) = complaints {
        command.stderr(complaints.try_clone()?);
    }
    let mut process = command
        .args(arguments)
        .args(["worker", "--join", &address.to_string(), "--threads", &plan.threads.to_string(), "--lifeline"])
        .args(plan.isa.iter().flat_map(|isa| ["--isa", isa]))
        .stdin(Stdio::piped())
        // A group of its own: Ctrl-C is for the coordinator, which ends its workers in order.
        .process_group(0)
        .spawn()?;
    let lifeline = process.stdin.take();
    Ok(LocalWorker { process, lifeline })
}

fn wait(process: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Ok(Some(status)) = process.try_wait() {
            return Some(status);
        }
        if start.elapsed() > patience {
            return None;
        }
        std::thread::sleep(REAP_EVERY);
    }
}

fn described(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}
