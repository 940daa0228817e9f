//! Runs a job as real processes, a coordinator and its workers, and makes the faults of a storm happen. Processes that end are started
//! again, as a container engine would do.
//!
//! Not here: which faults (`storm`), and what follows from them (`report`).

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::Value;

use crate::proxy::Proxy;
use crate::storm::{Kind, Planned, Storm};

/// A coordinator that reports nothing for this long hangs: a job that makes no progress ends after 300 seconds.
const HANG: Duration = Duration::from_secs(330);
/// `--patience` of the job, in seconds.
const PATIENCE: u64 = 5;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Interval of the samples of memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Workers have this long to leave at the end.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// Messages of processes that may wait. A process whose messages are not read waits.
const MESSAGES_MAX: usize = 1024;
/// Lines of a process's standard error that are kept for an error message.
const LINES_KEPT: usize = 12;

/// An environment variable of every process of a run: the folder of the run.
pub const MARK: &str = "CHAOS_RUN";

/// What to run.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The program.
    pub program: PathBuf,
    /// Arguments of the job, without its length, workers and folder.
    pub job: Vec<String>,
    /// The run's folder.
    pub out: PathBuf,
}

/// What happened to a planned fault.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fate {
    /// When it happened, in seconds since the start. None if it did not.
    pub fired: Option<f64>,
    /// The process that it happened to.
    pub process_id: Option<u32>,
}

/// What the coordinator said about a worker's process.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// When, in seconds since the start.
    pub at: f64,
    /// The name of the event: `fault`, `gone` or `suspected`.
    pub event: String,
    /// The process.
    pub process_id: u32,
    /// What was said.
    pub what: String,
}

/// The processes that hold the towers, from a moment on.
#[derive(Clone, Debug, Serialize)]
pub struct Crew {
    /// When the coordinator said so, in seconds since the start.
    pub at: f64,
    /// The workers' processes.
    pub process_ids: BTreeSet<u32>,
}

/// A run that has ended well.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ran {
    /// How long it took, in seconds.
    pub seconds: f64,
    /// SHA-256 over its final weights.
    pub weights_sha256: String,
    /// What happened to each planned fault.
    pub fates: Vec<Fate>,
    /// What the coordinator found.
    pub findings: Vec<Finding>,
    /// Who held the towers, in the order of time.
    pub crews: Vec<Crew>,
    /// Ends of worker processes that nobody had planned.
    pub unplanned: Vec<String>,
    /// Faults from which it recovered, as its events describe them.
    pub incidents: Vec<Value>,
    /// The highest resident memory of a coordinator process, in bytes.
    pub coordinator_bytes: u64,
    /// The highest resident memory of a worker process, in bytes.
    pub worker_bytes: u64,
}

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ChaosError {
    /// A process can't be started, or a port not be bound.
    #[error("cannot start {what}")]
    Start { what: String, source: std::io::Error },
    /// The coordinator ended with an error.
    #[error("the coordinator ended with {status}: {said}")]
    Failed { status: String, said: String },
    /// Nothing happens any more.
    #[error("the job hangs: the coordinator reported nothing for {} s; its last event was {last}", HANG.as_secs())]
    Hangs { last: String },
    /// A process did not leave.
    #[error("process {process_id} of worker {worker} did not exit within {} s of SIGTERM", LEAVE_MAX.as_secs())]
    Remains { worker: usize, process_id: u32 },
    /// The user asked for it.
    #[error("interrupted")]
    Interrupted,
    /// The job ended without a result.
    #[error("the coordinator ended without reporting the end of the job")]
    NoResult,
}

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Coordinator,
    Worker(usize),
}

/// What a process says.
enum Said {
    /// A line of standard output.
    Event(String),
    /// A line of standard error.
    Log(String),
    /// Its standard error has ended, and so has the process, or nearly.
    End,
}

/// What a process says, and which.
type Message = (Source, Said);

struct Worker {
    proxy: Proxy,
    process: Child,
    /// Planned faults that it brings on itself, by number, in order.
    misdeeds: VecDeque<usize>,
    /// When it is continued.
    stopped_until: Option<Instant>,
    /// Whether it has killed itself as planned.
    was_killed: bool,
}

/// A job under way.
struct Conductor<'a> {
    setting: &'a Setting,
    storm: &'a Storm,
    started: Instant,
    address: SocketAddr,
    said: (SyncSender<Message>, Receiver<Message>),
    coordinator: Child,
    /// Whether it was killed as planned.
    coordinator_was_killed: bool,
    workers: Vec<Worker>,
    /// Planned faults that this process brings about, by number, in order.
    due: VecDeque<usize>,
    last_heard: (Instant, String),
    /// The last lines of the coordinator's standard error.
    complaints: VecDeque<String>,
    ran: Ran,
}

/// Runs the job of `setting` under `storm`.
///
/// # Errors
/// When `stop` is set, when the job fails or hangs, or when a process can't be started or does not leave. No process is left then either.
pub fn run(setting: &Setting, storm: &Storm, stop: &AtomicBool) -> Result<Ran, ChaosError> {
    let mut conductor = Conductor::start(setting, storm)?;
    conductor.conduct(stop)?;
    conductor.end()
}

impl<'a> Conductor<'a> {
    fn start(setting: &'a Setting, storm: &'a Storm) -> Result<Self, ChaosError> {
        let wrong = |source| ChaosError::Start { what: "a listener on loopback".to_owned(), source };
        let address = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).map_err(wrong)?;
        let said = sync_channel(MESSAGES_MAX);
        let coordinator = start_coordinator(setting, storm, address, &said.0)?;
        let numbered = || storm.faults.iter().enumerate();
        let mut conductor = Self {
            setting,
            storm,
            started: Instant::now(),
            address,
            said,
            coordinator,
            coordinator_was_killed: false,
            workers: Vec::new(),
            due: numbered().filter(|(_, fault)| fault.misdeed().is_none()).map(|(number, _)| number).collect(),
            last_heard: (Instant::now(), "the start".to_owned()),
            complaints: VecDeque::new(),
            ran: Ran { fates: vec![Fate::default(); storm.faults.len()], ..Ran::default() },
        };
        for worker in 0..storm.workers {
            let own = numbered().filter(|(_, fault)| fault.worker == Some(worker) && fault.misdeed().is_some());
            let misdeeds = own.map(|(number, _)| number).collect();
            let proxy = Proxy::start(address).map_err(wrong)?;
            let process = start_worker(setting, storm, worker, &proxy, &misdeeds, &conductor.said.0)?;
            conductor.workers.push(Worker { proxy, process, misdeeds, stopped_until: None, was_killed: false });
        }
        Ok(conductor)
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn fault(&self, number: usize) -> &'a Planned {
        &self.storm.faults[number]
    }

    /// Conducts until the job is done.
    fn conduct(&mut self, stop: &AtomicBool) -> Result<(), ChaosError> {
        let mut sampled = Instant::now();
        loop {
            match self.said.1.recv_timeout(LOOK_EVERY) {
                Ok((Source::Coordinator, Said::Event(line))) => self.on_event(&line)?,
                Ok((Source::Coordinator, Said::Log(line))) => {
                    self.complaints.push_back(line);
                    if self.complaints.len() > LINES_KEPT {
                        self.complaints.pop_front();
                    }
                }
                Ok((Source::Coordinator, Said::End)) => {
                    if self.coordinator_has_ended()? {
                        return Ok(());
                    }
                }
                Ok((Source::Worker(worker), Said::Log(line))) => self.on_worker(worker, &line),
                Ok((Source::Worker(worker), Said::End)) => self.restart_worker(worker)?,
                Ok((Source::Worker(_), Said::Event(_))) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ChaosError::NoResult),
            }
            if stop.load(Ordering::Relaxed) {
                return Err(ChaosError::Interrupted);
            }
            self.continue_stopped();
            if sampled.elapsed() > SAMPLE_EVERY {
                sampled = Instant::now();
                self.sample_memory();
            }
            if self.last_heard.0.elapsed() > HANG {
                return Err(ChaosError::Hangs { last: self.last_heard.1.clone() });
            }
        }
    }

    fn on_event(&mut self, line: &str) -> Result<(), ChaosError> {
        self.last_heard = (Instant::now(), line.to_owned());
        let Ok(event) = serde_json::from_str::<Value>(line) else { return Ok(()) };
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str().unwrap_or_default() {
            "step" => self.bring_about(event["step"].as_u64().unwrap_or(0)),
            "started" | "regrouped" => {
                let workers = event["workers"].as_array().into_iter().flatten();
                let process_ids = workers.filter_map(|worker| process_id_in(worker)).collect();
                self.ran.crews.push(Crew { at: self.seconds(), process_ids });
            }
            "recovered" => self.ran.incidents.push(event),
            "ended" => self.ran.weights_sha256 = text("weights_sha256"),
            name @ ("fault" | "gone" | "suspected") => {
                if let Some(process_id) = process_id_in(&event) {
                    let what = if name == "gone" { text("why") } else { text("what") };
                    let (at, event) = (self.seconds(), name.to_owned());
                    self.ran.findings.push(Finding { at, event, process_id, what });
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Brings about the faults that are due once `step` is committed.
    fn bring_about(&mut self, step: u64) {
        while let Some(number) = self.due.front().copied() {
            let fault = self.fault(number);
            if step < fault.step {
                return;
            }
            let process_id = match (fault.kind, fault.worker.and_then(|worker| self.workers.get(worker))) {
                (Kind::Cut, Some(worker)) => (worker.proxy.cut() > 0).then(|| worker.process.id()),
                (Kind::Delay, Some(worker)) => {
                    let held = worker.proxy.hold(Duration::from_millis(fault.milliseconds));
                    (held > 0).then(|| worker.process.id())
                }
                _ => {
                    // It is started again when its output has ended.
                    let _ = self.coordinator.kill();
                    self.coordinator_was_killed = true;
                    Some(self.coordinator.id())
                }
            };
            // A worker that is not connected now is tried again after the next step.
            let Some(process_id) = process_id else { return };
            self.ran.fates[number] = Fate { fired: Some(self.seconds()), process_id: Some(process_id) };
            self.due.pop_front();
            if fault.kind == Kind::Coordinator {
                return;
            }
        }
    }

    /// A worker has logged something: that it does to itself what was planned, perhaps.
    fn on_worker(&mut self, worker: usize, line: &str) {
        let Some(number) = self.workers[worker].misdeeds.front().copied() else { return };
        let fault = self.fault(number);
        if !fault.misdeed().is_some_and(|misdeed| line.contains(&format!("rehearsal: {misdeed}, "))) {
            return;
        }
        self.workers[worker].misdeeds.pop_front();
        self.workers[worker].was_killed = fault.kind == Kind::Kill;
        self.ran.fates[number] =
            Fate { fired: Some(self.seconds()), process_id: Some(self.workers[worker].process.id()) };
        if matches!(fault.kind, Kind::Stop | Kind::Freeze) {
            self.workers[worker].stopped_until = Some(Instant::now() + Duration::from_millis(fault.milliseconds));
        }
    }

    fn continue_stopped(&mut self) {
        for worker in &mut self.workers {
            if worker.stopped_until.is_some_and(|until| Instant::now() >= until) {
                worker.stopped_until = None;
                send(&worker.process, Signal::CONT);
            }
        }
    }

    fn restart_worker(&mut self, worker: usize) -> Result<(), ChaosError> {
        let Worker { proxy, process, misdeeds, stopped_until, was_killed } = &mut self.workers[worker];
        // It has closed its standard error, so it ends, if it has not yet.
        let status = process.wait();
        if !std::mem::take(was_killed) {
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            self.ran.unplanned.push(format!("worker {worker}, process {}: {status}", process.id()));
        }
        *stopped_until = None;
        *process = start_worker(self.setting, self.storm, worker, proxy, misdeeds, &self.said.0)?;
        Ok(())
    }

    /// Returns whether the job is done. A coordinator that was killed is started again.
    fn coordinator_has_ended(&mut self) -> Result<bool, ChaosError> {
        use std::os::unix::process::ExitStatusExt;
        let wrong = |source| ChaosError::Start { what: "the coordinator".to_owned(), source };
        let status = self.coordinator.wait().map_err(wrong)?;
        if status.success() {
            return Ok(true);
        }
        let is_planned = std::mem::take(&mut self.coordinator_was_killed);
        if !is_planned || status.signal() != Some(Signal::KILL.as_raw()) {
            let said = self.complaints.iter().cloned().collect::<Vec<_>>().join("; ");
            return Err(ChaosError::Failed { status: status.to_string(), said });
        }
        self.coordinator = start_coordinator(self.setting, self.storm, self.address, &self.said.0)?;
        Ok(false)
    }

    fn sample_memory(&mut self) {
        self.ran.coordinator_bytes = self.ran.coordinator_bytes.max(resident_bytes(self.coordinator.id()));
        let of_workers = self.workers.iter().map(|worker| resident_bytes(worker.process.id())).max();
        self.ran.worker_bytes = self.ran.worker_bytes.max(of_workers.unwrap_or(0));
    }

    /// Lets the workers leave.
    fn end(mut self) -> Result<Ran, ChaosError> {
        self.ran.seconds = self.seconds();
        if self.ran.weights_sha256.is_empty() {
            return Err(ChaosError::NoResult);
        }
        for worker in &self.workers {
            send(&worker.process, Signal::CONT);
            send(&worker.process, Signal::TERM);
        }
        let began = Instant::now();
        for (number, worker) in self.workers.iter_mut().enumerate() {
            while matches!(worker.process.try_wait(), Ok(None)) {
                if began.elapsed() > LEAVE_MAX {
                    return Err(ChaosError::Remains { worker: number, process_id: worker.process.id() });
                }
                thread::sleep(LOOK_EVERY);
            }
        }
        Ok(std::mem::take(&mut self.ran))
    }
}

impl Drop for Conductor<'_> {
    /// However a run ends, no process is left.
    fn drop(&mut self) {
        for process in self.workers.iter_mut().map(|worker| &mut worker.process).chain([&mut self.coordinator]) {
            // One that has ended needs nothing.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn start_coordinator(
    setting: &Setting,
    storm: &Storm,
    address: SocketAddr,
    said: &SyncSender<Message>,
) -> Result<Child, ChaosError> {
    let mut command = command(setting);
    command.arg("train").args(&setting.job).args(["--lifeline", "--json", "--resume", "auto", "--trace", "off"]);
    command.args(["--listen", &address.to_string(), "--patience", &PATIENCE.to_string()]);
    command.args(["--workers", &storm.workers.to_string(), "--steps", &storm.steps.to_string()]);
    command.arg("--out").arg(&setting.out);
    started(command, Source::Coordinator, said)
}

fn start_worker(
    setting: &Setting,
    storm: &Storm,
    worker: usize,
    proxy: &Proxy,
    misdeeds: &VecDeque<usize>,
    said: &SyncSender<Message>,
) -> Result<Child, ChaosError> {
    let mut command = command(setting);
    command.args(["worker", "--threads", "1", "--lifeline", "--join", &proxy.address().to_string()]);
    let misdeeds = misdeeds.iter().filter_map(|number| storm.faults[*number].misdeed());
    let misdeeds: Vec<_> = misdeeds.map(|misdeed| misdeed.to_string()).collect();
    if !misdeeds.is_empty() {
        command.args(["--rehearse", &misdeeds.join(",")]);
    }
    started(command, Source::Worker(worker), said)
}

fn command(setting: &Setting) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(&setting.program);
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.as_encoded_bytes().starts_with(b"CONVOY_") && name != "CONVOY_OFFLINE") {
        command.env_remove(name);
    }
    // Every process ends with this one, even if this one is killed: its standard input closes. Ctrl-C reaches this process alone.
    command.stdin(Stdio::piped()).process_group(0);
    // The mark tells whose processes these are.
    command.env("RUST_LOG", "warn").env(MARK, &setting.out).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a process, and forwards what it says.
fn started(mut command: Command, source: Source, said: &SyncSender<Message>) -> Result<Child, ChaosError> {
    let what = format!("{source:?}").to_lowercase();
    let wrong = |source| ChaosError::Start { what, source };
    let mut start = || -> std::io::Result<Child> {
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
                            let _ = said.send((source, wrap(line)));
                        }
                    });
                }
            });
            let _ = said.send((source, Said::End));
        })?;
        Ok(child)
    };
    start().map_err(wrong)
}

fn process_id_in(event: &Value) -> Option<u32> {
    event["process_id"].as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A process that has ended gets no signal.
fn send(process: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The highest resident memory of a process so far; 0 if it has ended.
fn resident_bytes(process: u32) -> u64 {
    let mut text = String::new();
    let read = File::open(format!("/proc/{process}/status")).and_then(|mut file| file.read_to_string(&mut text));
    let line = read.ok().and_then(|_| text.lines().find_map(|line| line.strip_prefix("VmHWM:")));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kilobytes| kilobytes * 1024)
}
