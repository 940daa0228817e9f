//! Local workers: processes of this program on this machine, connected over a Unix socket. Each holds the reading end of a
//! pipe whose writing end only this process holds, so no worker outlives it, however it ends.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use convoy_common::address::{Address, SOCKET_PATH_BYTES_MAX};
use convoy_common::index::{PerWorker, WorkerIndex};

use crate::error::JobError;
use crate::fault::Fault;
use crate::running::LocalProgram;
use crate::unguessable::unguessable;

/// How long a worker may take to exit before it is killed.
const LEAVE_MAX: Duration = Duration::from_secs(2);
/// How long to wait for the exit code of a process whose socket has closed.
const REAP_MAX: Duration = Duration::from_millis(500);
const REAP_EVERY: Duration = Duration::from_millis(5);
/// The socket's name in its folder.
const SOCKET: &str = "coordinator";

/// Worker processes that this process has started.
pub struct LocalWorkers {
    plan: LocalPlan,
    /// The process of each worker.
    children: PerWorker<LocalWorker>,
    /// Workers that are started again need the socket, so it stays until the end.
    folder: SocketFolder,
    /// Number of processes that were started.
    started: usize,
}

struct LocalWorker {
    process: Child,
    /// The worker exits when this is closed.
    lifeline: Option<ChildStdin>,
}

/// Which processes to start.
#[derive(Clone, Debug)]
pub struct LocalPlan {
    /// This program.
    pub program: LocalProgram,
    /// Number of processes.
    pub workers: usize,
    /// Compute threads of each.
    pub threads: usize,
    /// Instruction set of each. None: the best that the machine has.
    pub isa: Option<String>,
}

/// A folder for the socket, which only this user can enter.
pub struct SocketFolder(PathBuf);

impl SocketFolder {
    /// Creates the folder in the first place that allows it: the system's temporary folder, or one of the places that most
    /// systems have. A temporary folder is unusable if it can't be written, or if its name is too long for a socket's path.
    ///
    /// # Errors
    /// When no place allows it: the error of the first.
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
                "a socket's path may have at most {SOCKET_PATH_BYTES_MAX} bytes, and in {} it has {length}",
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

    /// Where the worker that is started as number `number` waits for others. The path is no longer than that of the other socket.
    fn exchange_address(&self, number: usize) -> Address {
        Address::Unix(self.0.join(format!("w{number}")))
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        // If it can't be removed, an empty temporary folder stays.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl LocalWorkers {
    /// Starts the processes.
    ///
    /// # Errors
    /// When one can't be started. Those before it are stopped.
    pub fn start(plan: LocalPlan, folder: SocketFolder) -> Result<Self, JobError> {
        let mut workers = Self { plan, children: PerWorker::new(), folder, started: 0 };
        for _ in 0..workers.plan.workers {
            let worker = workers.start_one()?;
            workers.children.push(worker);
        }
        Ok(workers)
    }

    /// Starts the processes of these workers again. Those that still run are killed.
    ///
    /// # Errors
    /// When one can't be started.
    pub fn restart(&mut self, workers: &[WorkerIndex]) -> Result<(), JobError> {
        for worker in workers {
            let new = self.start_one()?;
            let mut old = std::mem::replace(&mut self.children[*worker], new);
            // It can't be killed if it has ended already.
            let _ = old.process.kill();
            let _ = old.process.wait();
        }
        Ok(())
    }

    fn start_one(&mut self) -> Result<LocalWorker, JobError> {
        self.started += 1;
        let started = start_one(&self.plan, &self.folder.address(), &self.folder.exchange_address(self.started));
        started.map_err(|source| JobError::Spawn { program: self.plan.program.path.clone(), source })
    }

    /// Checks that no worker has ended before it connected. The end of one that `is_connected` is heard from its connection.
    ///
    /// # Errors
    /// When one has: how it ended.
    pub fn check_alive(&mut self, is_connected: impl Fn(WorkerIndex) -> bool) -> Result<(), JobError> {
        for (worker, child) in self.children.iter_mut_enumerated().filter(|(worker, _)| !is_connected(*worker)) {
            if let Ok(Some(status)) = child.process.try_wait() {
                let why = format!("its process {}", described(status));
                let was_killed = std::os::unix::process::ExitStatusExt::signal(&status).is_some();
                return Err(Fault::Ended { worker, why, was_killed }.into());
            }
        }
        Ok(())
    }

    /// The worker whose process this is. Workers are numbered in the order of their start, not of their connecting.
    pub fn position_of(&self, process_id: u32) -> Option<WorkerIndex> {
        self.children.position(|child| child.process.id() == process_id)
    }

    /// How a lost process ended. One that is still running is killed, because it will never answer again.
    pub fn give_up(&mut self, process_id: u32) -> Option<String> {
        let child = self.children.iter_mut().find(|child| child.process.id() == process_id)?;
        let status = wait(&mut child.process, REAP_MAX);
        if status.is_none() {
            // If it can't be killed, the end of all workers waits for it, with a limit.
            let _ = child.process.kill();
        }
        status.map(|status| format!("its process {}", described(status)))
    }

    /// Lets all processes exit, and waits for them.
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
                // It didn't exit in time. Errors of the kill change nothing.
                let _ = child.process.kill();
                let _ = child.process.wait();
            }
        }
    }
}

fn start_one(plan: &LocalPlan, address: &Address, exchange: &Address) -> std::io::Result<LocalWorker> {
    use std::os::unix::process::CommandExt;
    let LocalProgram { path, arguments, complaints } = &plan.program;
    let mut command = Command::new(path);
    // CONVOY_ variables are for workers that people start.
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
        .args(["--exchange-listen", &exchange.to_string()])
        .args(plan.isa.iter().flat_map(|isa| ["--isa", isa]))
        .stdin(Stdio::piped())
        // Its own process group, so that Ctrl-C reaches only the coordinator, which then stops its workers in order.
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
