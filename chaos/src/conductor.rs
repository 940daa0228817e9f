//! Conducts a run: starts its processes, makes the faults of a storm happen, and listens to what the coordinator says. Processes that
//! end are started again, as a container engine would do.
//!
//! Not here: which faults (`storm`), where the processes live (`site`), and what follows from them (`report`).

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use convoy_common::misdeed::Misdeed;
use serde::Serialize;
use serde_json::Value;

use crate::error::{ChaosError, HANG};
use crate::site::{Message, Role, Said, Site};
use crate::storm::{Kind, Planned, Storm};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Interval of the samples of memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Messages of processes that may wait. A process whose messages are not read waits.
const MESSAGES_MAX: usize = 1024;
/// Lines of a process's standard error that are kept for an error message.
const LINES_KEPT: usize = 12;
/// The events that say that a process was lost.
pub(crate) const LOST: &[&str] = &["fault", "gone"];

/// What happened to a planned fault.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fate {
    /// When it happened, in seconds since the start. None if it did not.
    pub fired: Option<f64>,
    /// The process that it happened to, by name.
    pub process: Option<String>,
}

/// What the coordinator said about a worker's process.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// When, in seconds since the start.
    pub at: f64,
    /// The name of the event: `fault`, `gone` or `suspected`.
    pub event: String,
    /// The process, by name.
    pub process: String,
    /// What was said.
    pub what: String,
}

/// The processes that hold the towers, from a moment on.
#[derive(Clone, Debug, Serialize)]
pub struct Crew {
    /// When the coordinator said so, in seconds since the start.
    pub at: f64,
    /// The workers' processes.
    pub processes: BTreeSet<String>,
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

/// What is done to end a fault that lasts.
#[derive(Clone, Copy, Debug)]
enum Remedy {
    /// The worker is continued.
    Proceed,
    /// The worker may connect again.
    Mend,
}

#[derive(Debug, Default)]
struct Worker {
    /// Planned faults that it brings on itself, by number, in order.
    misdeeds: VecDeque<usize>,
    /// When the fault that it is under ends, and how.
    remedy: Option<(Instant, Remedy)>,
    /// Whether it was killed as planned.
    was_killed: bool,
}

/// A job under way.
struct Conductor<'a> {
    site: &'a mut dyn Site,
    storm: &'a Storm,
    started: Instant,
    said: (SyncSender<Message>, Receiver<Message>),
    /// Whether the coordinator was killed as planned.
    coordinator_was_killed: bool,
    workers: Vec<Worker>,
    /// Planned faults that come from outside, by number, in order.
    due: VecDeque<usize>,
    last_heard: (Instant, String),
    /// The last lines of the coordinator's standard error.
    complaints: VecDeque<String>,
    ran: Ran,
}

/// Runs the job of `site` under `storm`.
///
/// # Errors
/// When `stop` is set, when the job fails or hangs, or when a process can't be started or does not leave.
pub fn run(site: &mut dyn Site, storm: &Storm, stop: &AtomicBool) -> Result<Ran, ChaosError> {
    let mut conductor = Conductor::new(site, storm);
    conductor.start(Role::Coordinator)?;
    for worker in 0..storm.workers {
        conductor.start(Role::Worker(worker))?;
    }
    conductor.conduct(stop)?;
    conductor.end()
}

impl<'a> Conductor<'a> {
    fn new(site: &'a mut dyn Site, storm: &'a Storm) -> Self {
        let numbered = || storm.faults.iter().enumerate();
        let of_worker = |worker: usize| {
            let own = numbered().filter(|(_, fault)| fault.worker == Some(worker) && fault.misdeed().is_some());
            Worker { misdeeds: own.map(|(number, _)| number).collect(), ..Worker::default() }
        };
        Self {
            site,
            storm,
            started: Instant::now(),
            said: sync_channel(MESSAGES_MAX),
            coordinator_was_killed: false,
            workers: (0..storm.workers).map(of_worker).collect(),
            due: numbered().filter(|(_, fault)| fault.misdeed().is_none()).map(|(number, _)| number).collect(),
            last_heard: (Instant::now(), "the start".to_owned()),
            complaints: VecDeque::new(),
            ran: Ran { fates: vec![Fate::default(); storm.faults.len()], ..Ran::default() },
        }
    }

    fn start(&mut self, role: Role) -> Result<(), ChaosError> {
        let own = match role {
            Role::Coordinator => None,
            Role::Worker(worker) => Some(&self.workers[worker].misdeeds),
        };
        let misdeeds: Vec<Misdeed> =
            own.into_iter().flatten().filter_map(|number| self.storm.faults[*number].misdeed()).collect();
        self.site.start(role, &misdeeds, &self.said.0)
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
                Ok((Role::Coordinator, Said::Event(line))) => self.on_event(&line)?,
                Ok((Role::Coordinator, Said::Log(line))) => {
                    self.complaints.push_back(line);
                    if self.complaints.len() > LINES_KEPT {
                        self.complaints.pop_front();
                    }
                }
                Ok((Role::Coordinator, Said::End)) => {
                    if self.coordinator_has_ended()? {
                        return Ok(());
                    }
                }
                Ok((Role::Worker(worker), Said::Log(line))) => self.on_worker(worker, &line),
                Ok((Role::Worker(worker), Said::End)) => self.restart_worker(worker)?,
                Ok((Role::Worker(_), Said::Event(_))) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ChaosError::NoResult),
            }
            if stop.load(Ordering::Relaxed) {
                return Err(ChaosError::Interrupted);
            }
            self.remedy();
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
                let processes = workers.filter_map(|worker| self.site.named_in(worker)).collect();
                self.ran.crews.push(Crew { at: self.seconds(), processes });
            }
            "recovered" => self.ran.incidents.push(event),
            "ended" => self.ran.weights_sha256 = text("weights_sha256"),
            name @ ("fault" | "gone" | "suspected") => {
                if let Some(process) = self.site.named_in(&event) {
                    let what = if name == "gone" { text("why") } else { text("what") };
                    let (at, event) = (self.seconds(), name.to_owned());
                    self.ran.findings.push(Finding { at, event, process, what });
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
            // It takes a while to strike a container, which may be found before that is over.
            let fired = Some(self.seconds());
            // A worker that can't be struck now is tried again after the next step.
            let Some(process) = self.strike(fault) else { return };
            self.ran.fates[number] = Fate { fired, process: Some(process) };
            self.due.pop_front();
            if fault.kind == Kind::Coordinator {
                return;
            }
        }
    }

    /// Makes a fault happen from outside. The process that it has happened to; none if that has no part in the job at the moment.
    fn strike(&mut self, fault: &Planned) -> Option<String> {
        let Some(number) = fault.worker else {
            self.site.kill(Role::Coordinator);
            self.coordinator_was_killed = true;
            return Some(self.site.name(Role::Coordinator));
        };
        let (process, lasts) = (self.site.name(Role::Worker(number)), Duration::from_millis(fault.milliseconds));
        if self.workers[number].remedy.is_some() || !self.holds_towers(&process) {
            return None;
        }
        let (is_struck, remedy) = match fault.kind {
            Kind::Cut => (self.site.cut(number), Some(Remedy::Mend)),
            Kind::Delay => (self.site.hold(number, lasts), None),
            Kind::Stop | Kind::Freeze => {
                self.site.stop(number);
                (true, Some(Remedy::Proceed))
            }
            _ => {
                self.site.kill(Role::Worker(number));
                self.workers[number].was_killed = true;
                (true, None)
            }
        };
        self.workers[number].remedy = remedy.filter(|_| is_struck).map(|remedy| (Instant::now() + lasts, remedy));
        is_struck.then_some(process)
    }

    /// Whether a process holds towers, by the coordinator's word.
    fn holds_towers(&self, process: &str) -> bool {
        self.ran.crews.last().is_some_and(|crew| {
            let is_lost = |finding: &Finding| {
                finding.at >= crew.at && finding.process == process && LOST.contains(&finding.event.as_str())
            };
            crew.processes.contains(process) && !self.ran.findings.iter().any(is_lost)
        })
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
        let process = Some(self.site.name(Role::Worker(worker)));
        self.ran.fates[number] = Fate { fired: Some(self.seconds()), process };
        if matches!(fault.kind, Kind::Stop | Kind::Freeze) {
            let until = Instant::now() + Duration::from_millis(fault.milliseconds);
            self.workers[worker].remedy = Some((until, Remedy::Proceed));
        }
    }

    /// Ends the faults that have lasted as long as planned.
    fn remedy(&mut self) {
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let Some((_, remedy)) = worker.remedy.take_if(|(until, _)| Instant::now() >= *until) else { continue };
            match remedy {
                Remedy::Proceed => self.site.proceed(number),
                Remedy::Mend => self.site.mend(number),
            }
        }
    }

    fn restart_worker(&mut self, number: usize) -> Result<(), ChaosError> {
        let (role, worker) = (Role::Worker(number), &mut self.workers[number]);
        let end = self.site.end(role)?;
        if !std::mem::take(&mut worker.was_killed) {
            self.ran.unplanned.push(format!("{role}, {}: {}", self.site.name(role), end.status));
        }
        worker.remedy.take_if(|(_, remedy)| matches!(remedy, Remedy::Proceed));
        self.start(role)
    }

    /// Returns whether the job is done. A coordinator that was killed is started again.
    fn coordinator_has_ended(&mut self) -> Result<bool, ChaosError> {
        let end = self.site.end(Role::Coordinator)?;
        if end.is_success {
            return Ok(true);
        }
        let is_planned = std::mem::take(&mut self.coordinator_was_killed);
        if !is_planned || !end.was_killed {
            let said = self.complaints.iter().cloned().collect::<Vec<_>>().join("; ");
            return Err(ChaosError::Failed { status: end.status, said });
        }
        self.start(Role::Coordinator)?;
        Ok(false)
    }

    fn sample_memory(&mut self) {
        self.ran.coordinator_bytes = self.ran.coordinator_bytes.max(self.site.peak_bytes(Role::Coordinator));
        let of_workers = (0..self.workers.len()).map(|worker| self.site.peak_bytes(Role::Worker(worker))).max();
        self.ran.worker_bytes = self.ran.worker_bytes.max(of_workers.unwrap_or(0));
    }

    /// Lets the workers leave.
    fn end(mut self) -> Result<Ran, ChaosError> {
        self.ran.seconds = self.seconds();
        if self.ran.weights_sha256.is_empty() {
            return Err(ChaosError::NoResult);
        }
        self.site.leave()?;
        Ok(self.ran)
    }
}
