//! Conducts a run: starts its processes, makes the faults of a storm happen, and listens to what the coordinator says. Processes that
//! end are started again, as a container engine would do.
//!
//! Not here: which faults (`storm`), where the processes live (`place`), and what follows from them (`report`).

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use convoy_common::misdeed::{Misdeed, announcement_in};
use serde::Serialize;
use serde_json::Value;

use crate::error::{ChaosError, HANG};
use crate::place::{Message, Place, Said};
use crate::role::Role;
use crate::storm::{Kind, Planned, Storm};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Interval of the samples of memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// A stopped worker is continued when the coordinator has noticed that it does not answer, or this much later than planned if it
/// has not. On a busy machine, the coordinator notices it late.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// Messages of processes that may wait. A process whose messages are not read waits.
const MESSAGES_MAX: usize = 1024;
/// Lines of a process's standard error that are kept for an error message.
const LINES_KEPT: usize = 12;
/// The events that say that a process was lost.
pub(crate) const LOST: &[&str] = &["fault", "gone"];
/// The event that says that a process does not answer.
pub(crate) const SUSPECTED: &str = "suspected";

/// What happened to a planned fault.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fate {
    /// When it happened, in seconds since the start. None if it did not.
    pub fired: Option<f64>,
    /// When a stopped worker was continued, in seconds since the start. For other faults, when the action that causes the fault had
    /// finished: a container engine may need seconds for it.
    pub over: f64,
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
    /// The process at the other end, if a connection between two workers failed. No process was lost then.
    pub peer: Option<String>,
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
    /// Those that are connected to other workers directly.
    pub linked: BTreeSet<String>,
}

impl Finding {
    /// Whether it says that a process was lost. After a damaged message between two workers, both may stay. That still counts until the
    /// next crew is known.
    pub(crate) fn is_loss(&self) -> bool {
        self.peer.is_none() && LOST.contains(&self.event.as_str())
    }

    /// Whether it is about a process.
    pub(crate) fn names(&self, process: &str) -> bool {
        self.process == process || self.peer.as_deref() == Some(process)
    }
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
    /// The worker, which was stopped by the fault with this number, is continued.
    Proceed { fault: usize },
    /// The worker may connect again.
    Mend,
}

#[derive(Debug, Default)]
struct Worker {
    /// Planned faults that it brings on itself, by number, in order.
    misdeeds: VecDeque<usize>,
    /// The earliest end of the fault that it is under, and how that is ended.
    remedy: Option<(Instant, Remedy)>,
    /// Whether it was killed as planned.
    was_killed: bool,
}

/// A job under way.
struct Conductor<'a> {
    place: &'a mut dyn Place,
    storm: &'a Storm,
    started: Instant,
    /// The same since 1970. Processes say in that clock when something happened.
    began: Duration,
    said: (SyncSender<Message>, Receiver<Message>),
    /// The planned fault by which the coordinator was killed, until it is started again.
    struck_coordinator: Option<usize>,
    workers: Vec<Worker>,
    /// Planned faults that come from outside, by number, in order.
    due: VecDeque<usize>,
    last_heard: (Instant, String),
    has_heard_nothing: bool,
    /// How much longer than planned a worker stays stopped that the coordinator has not noticed.
    noticed_within: Duration,
    /// The last lines of the coordinator's standard error.
    complaints: VecDeque<String>,
    ran: Ran,
}

/// Runs the job of `place` under `storm`.
///
/// # Errors
/// When `stop` is set, when the job fails or hangs, or when a process can't be started or does not leave.
pub fn run(place: &mut dyn Place, storm: &Storm, stop: &AtomicBool) -> Result<Ran, ChaosError> {
    let ran = place.open().and_then(|()| Conductor::new(place, storm).run(stop));
    ran.map_err(|error| match place.abandon() {
        Ok(()) => error,
        Err(remains) => ChaosError::Abandoned { error: Box::new(error), remains: Box::new(remains) },
    })
}

impl<'a> Conductor<'a> {
    fn new(place: &'a mut dyn Place, storm: &'a Storm) -> Self {
        let numbered = || storm.faults.iter().enumerate();
        let of_worker = |worker: usize| {
            let own = numbered().filter(|(_, fault)| fault.worker == Some(worker) && fault.misdeed().is_some());
            Worker { misdeeds: own.map(|(number, _)| number).collect(), ..Worker::default() }
        };
        Self {
            place,
            storm,
            started: Instant::now(),
            began: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            said: sync_channel(MESSAGES_MAX),
            struck_coordinator: None,
            workers: (0..storm.workers).map(of_worker).collect(),
            due: numbered().filter(|(_, fault)| fault.misdeed().is_none()).map(|(number, _)| number).collect(),
            last_heard: (Instant::now(), "the start".to_owned()),
            has_heard_nothing: true,
            noticed_within: NOTICED_WITHIN,
            complaints: VecDeque::new(),
            ran: Ran { fates: vec![Fate::default(); storm.faults.len()], ..Ran::default() },
        }
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Ran, ChaosError> {
        self.start(Role::Coordinator)?;
        for worker in 0..self.storm.workers {
            self.start(Role::Worker(worker))?;
        }
        self.conduct(stop)?;
        self.end()
    }

    fn start(&mut self, role: Role) -> Result<(), ChaosError> {
        let own = match role {
            Role::Coordinator => None,
            Role::Worker(worker) => Some(&self.workers[worker].misdeeds),
        };
        let misdeeds: Vec<Misdeed> =
            own.into_iter().flatten().filter_map(|number| self.storm.faults[*number].misdeed()).collect();
        self.place.start(role, &misdeeds, &self.said.0)
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
                Ok(message) => {
                    if self.on_message(message)? {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ChaosError::NoResult),
            }
            if stop.load(Ordering::Relaxed) {
                return Err(ChaosError::Interrupted);
            }
            self.remedy()?;
            if sampled.elapsed() > SAMPLE_EVERY {
                sampled = Instant::now();
                self.sample_memory();
            }
            if self.last_heard.0.elapsed() > HANG {
                return Err(ChaosError::Hangs { last: self.last_heard.1.clone() });
            }
        }
    }

    /// Returns whether the job is done.
    fn on_message(&mut self, Message { role, said, at }: Message) -> Result<bool, ChaosError> {
        let at = at.saturating_duration_since(self.started).as_secs_f64();
        match (role, said) {
            (Role::Coordinator, Said::Event(line)) => self.on_event(&line, at)?,
            (Role::Coordinator, Said::Log(line)) => {
                self.complaints.push_back(line);
                if self.complaints.len() > LINES_KEPT {
                    self.complaints.pop_front();
                }
            }
            (Role::Coordinator, Said::End) => return self.coordinator_has_ended(),
            (Role::Worker(worker), Said::Log(line)) => self.on_worker(worker, &line),
            (Role::Worker(worker), Said::End) => self.restart_worker(worker)?,
            (Role::Worker(_), Said::Event(_)) => {}
        }
        Ok(false)
    }

    /// The coordinator said `line`, which was read at `at`, in seconds since the start.
    fn on_event(&mut self, line: &str, at: f64) -> Result<(), ChaosError> {
        let is_first = std::mem::take(&mut self.has_heard_nothing);
        self.last_heard = (Instant::now(), line.to_owned());
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            return if is_first { Err(ChaosError::NoEvents { line: line.to_owned() }) } else { Ok(()) };
        };
        // On a busy machine, a line may be read long after it was written.
        let at = event["at"].as_f64().map_or(at, |written| written - self.began.as_secs_f64());
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str().unwrap_or_default() {
            "waiting" => self.place.on_listening(&text("address")),
            "step" => self.bring_about(event["step"].as_u64().unwrap_or(0))?,
            "started" | "regrouped" => {
                let workers = || event["workers"].as_array().into_iter().flatten();
                let is_linked = |worker: &&Value| worker["direct"].as_array().is_some_and(|direct| !direct.is_empty());
                let named = |worker: &Value| self.place.named_in(worker);
                let processes: BTreeSet<_> = workers().filter_map(named).collect();
                let linked = workers().filter(is_linked).filter_map(named).collect();
                let ours = (0..self.workers.len()).map(|worker| self.place.name(Role::Worker(worker)));
                if processes.is_disjoint(&ours.collect()) {
                    return Err(ChaosError::Unknown { found: Vec::from_iter(processes).join(" and ") });
                }
                self.ran.crews.push(Crew { at, processes, linked });
            }
            "recovered" => self.ran.incidents.push(event),
            "ended" => self.ran.weights_sha256 = text("weights_sha256"),
            name if LOST.contains(&name) || name == SUSPECTED => {
                if let Some(process) = self.place.named_in(&event) {
                    let what = if name == "gone" { text("why") } else { text("what") };
                    let peer = self.place.named_in(&event["peer"]);
                    self.ran.findings.push(Finding { at, event: name.to_owned(), process, peer, what });
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Brings about the next fault if it is due once `step` is committed. It is one for each step, so that each can be found by itself.
    fn bring_about(&mut self, step: u64) -> Result<(), ChaosError> {
        let due = self.due.front().map(|number| (*number, self.fault(*number))).filter(|(_, fault)| fault.step <= step);
        // Steps may be reported after their coordinator was killed.
        let Some((number, fault)) = due.filter(|_| self.struck_coordinator.is_none()) else { return Ok(()) };
        let fired = Some(self.seconds());
        // A process that can't be struck now is tried again after the next step.
        let Some(process) = self.strike(number)? else { return Ok(()) };
        if fault.kind == Kind::Coordinator {
            self.struck_coordinator = Some(number);
        }
        self.ran.fates[number] = Fate { fired, over: self.seconds(), process: Some(process) };
        self.due.pop_front();
        Ok(())
    }

    /// Makes a fault, by its number, happen from outside. The process that it has happened to; none if that has no part in the job at the
    /// moment.
    fn strike(&mut self, number: usize) -> Result<Option<String>, ChaosError> {
        let fault = self.fault(number);
        let Some(worker) = fault.worker else {
            let process = self.place.name(Role::Coordinator);
            return Ok(self.place.kill(Role::Coordinator)?.then_some(process));
        };
        let (process, lasts) = (self.place.name(Role::Worker(worker)), Duration::from_millis(fault.milliseconds));
        if self.workers[worker].remedy.is_some() || !self.holds_towers(&process) {
            return Ok(None);
        }
        let (is_struck, remedy) = match fault.kind {
            Kind::Cut => (self.place.cut(worker)?, Some(Remedy::Mend)),
            Kind::Delay => (self.place.hold(worker, lasts), None),
            Kind::Stop | Kind::Freeze => (self.place.stop(worker)?, Some(Remedy::Proceed { fault: number })),
            _ => (self.place.kill(Role::Worker(worker))?, None),
        };
        let worker = &mut self.workers[worker];
        worker.was_killed |= is_struck && fault.kind == Kind::Kill;
        worker.remedy = remedy.filter(|_| is_struck).map(|remedy| (Instant::now() + lasts, remedy));
        Ok(is_struck.then_some(process))
    }

    /// Whether a process holds towers, by the coordinator's word.
    fn holds_towers(&self, process: &str) -> bool {
        self.ran.crews.last().is_some_and(|crew| {
            let is_lost = |finding: &Finding| finding.at >= crew.at && finding.process == process && finding.is_loss();
            crew.processes.contains(process) && !self.ran.findings.iter().any(is_lost)
        })
    }

    /// A worker has logged something: that it does to itself what was planned, perhaps.
    fn on_worker(&mut self, worker: usize, line: &str) {
        let Some(number) = self.workers[worker].misdeeds.front().copied() else { return };
        let fault = self.fault(number);
        let Some((announced, at)) = announcement_in(line) else { return };
        if fault.misdeed() != Some(announced) {
            return;
        }
        let at = at.as_secs_f64() - self.began.as_secs_f64();
        self.workers[worker].misdeeds.pop_front();
        self.workers[worker].was_killed = fault.kind == Kind::Kill;
        let process = Some(self.place.name(Role::Worker(worker)));
        self.ran.fates[number] = Fate { fired: Some(at), over: at, process };
        if matches!(fault.kind, Kind::Stop | Kind::Freeze) {
            let until = Instant::now() + Duration::from_millis(fault.milliseconds);
            self.workers[worker].remedy = Some((until, Remedy::Proceed { fault: number }));
        }
    }

    /// Ends the faults that have lasted long enough.
    fn remedy(&mut self) -> Result<(), ChaosError> {
        for worker in 0..self.workers.len() {
            let Some((until, remedy)) = self.workers[worker].remedy else { continue };
            if !self.is_due(until, remedy) {
                continue;
            }
            self.workers[worker].remedy = None;
            match remedy {
                Remedy::Proceed { fault } => {
                    self.place.proceed(worker)?;
                    self.ran.fates[fault].over = self.seconds();
                }
                Remedy::Mend => self.place.mend(worker)?,
            }
        }
        Ok(())
    }

    fn is_due(&self, until: Instant, remedy: Remedy) -> bool {
        let late = Instant::now().checked_duration_since(until);
        late.is_some_and(|late| match remedy {
            Remedy::Proceed { fault } => late >= self.noticed_within || self.is_noticed(fault),
            Remedy::Mend => true,
        })
    }

    /// Whether the coordinator knows that the worker of this fault is stopped, or has no need to know it: because the worker has no towers,
    /// or because the coordinator was killed in the meantime.
    fn is_noticed(&self, number: usize) -> bool {
        let (fault, fate) = (self.fault(number), &self.ran.fates[number]);
        let (Some(fired), Some(process)) = (fate.fired, &fate.process) else { return true };
        let is_suspected =
            |finding: &Finding| finding.at >= fired && finding.process == *process && finding.event == SUSPECTED;
        let is_death = |(other, fate): (&Planned, &Fate)| {
            other.kind == Kind::Coordinator && fate.fired.is_some_and(|death| death >= fired)
        };
        !self.holds_towers(process)
            || self.storm.faults.iter().zip(&self.ran.fates).any(is_death)
            || (fault.kind == Kind::Stop && self.ran.findings.iter().any(is_suspected))
    }

    fn restart_worker(&mut self, number: usize) -> Result<(), ChaosError> {
        let (role, worker) = (Role::Worker(number), &mut self.workers[number]);
        let end = self.place.end(role)?;
        if !std::mem::take(&mut worker.was_killed) {
            self.ran.unplanned.push(format!("{role}, {}: {}", self.place.name(role), end.status));
        }
        worker.remedy.take_if(|(_, remedy)| matches!(remedy, Remedy::Proceed { .. }));
        self.start(role)
    }

    /// Returns whether the job is done. A coordinator that was killed is started again.
    fn coordinator_has_ended(&mut self) -> Result<bool, ChaosError> {
        let end = self.place.end(Role::Coordinator)?;
        let struck = self.struck_coordinator.take();
        if end.is_success {
            // It had finished the job before it was killed: the fault did not happen.
            struck.into_iter().for_each(|number| self.ran.fates[number] = Fate::default());
            return Ok(true);
        }
        if struck.is_none() || !end.was_killed {
            let complaint = |line: &String| line.strip_prefix("error: ").unwrap_or(line).to_owned();
            let said = self.complaints.iter().map(complaint).collect::<Vec<_>>().join("; ");
            return Err(ChaosError::Failed { status: end.status, said });
        }
        self.start(Role::Coordinator)?;
        Ok(false)
    }

    fn sample_memory(&mut self) {
        self.ran.coordinator_bytes = self.ran.coordinator_bytes.max(self.place.peak_bytes(Role::Coordinator));
        let of_workers = (0..self.workers.len()).map(|worker| self.place.peak_bytes(Role::Worker(worker))).max();
        self.ran.worker_bytes = self.ran.worker_bytes.max(of_workers.unwrap_or(0));
    }

    /// Lets the workers leave.
    fn end(mut self) -> Result<Ran, ChaosError> {
        self.ran.seconds = self.seconds();
        if self.ran.weights_sha256.is_empty() {
            return Err(ChaosError::NoResult);
        }
        self.place.leave()?;
        Ok(self.ran)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::place::End;
    use crate::storm::Phase;

    /// A place without processes. Its coordinator says what a script has for each of its lives. A process is called after its role.
    #[derive(Default)]
    struct Scripted {
        /// The lines of each life, and how it ends.
        lives: VecDeque<(Vec<Value>, &'static str)>,
        /// How the present life ends.
        ends: &'static str,
        /// What the conductor did.
        deeds: Vec<String>,
        /// Answers to strikes, in order. Without one, a strike succeeds.
        answers: BTreeMap<&'static str, VecDeque<bool>>,
        was_abandoned: bool,
    }

    impl Scripted {
        fn answer(&mut self, deed: &'static str) -> Result<bool, ChaosError> {
            self.deeds.push(deed.to_owned());
            Ok(self.answers.get_mut(deed).and_then(VecDeque::pop_front).unwrap_or(true))
        }
    }

    impl Place for Scripted {
        fn open(&mut self) -> Result<(), ChaosError> {
            Ok(())
        }

        fn start(&mut self, role: Role, _: &[Misdeed], said: &SyncSender<Message>) -> Result<(), ChaosError> {
            if role == Role::Coordinator {
                let (lines, ends) = self.lives.pop_front().unwrap();
                self.ends = ends;
                for line in lines {
                    let line = line.as_str().map_or_else(|| line.to_string(), str::to_owned);
                    said.send(Message::now(role, Said::Event(line))).unwrap();
                }
                said.send(Message::now(role, Said::End)).unwrap();
            }
            Ok(())
        }

        fn name(&self, role: Role) -> String {
            role.to_string()
        }

        fn named_in(&self, event: &Value) -> Option<String> {
            event["host"].as_str().map(str::to_owned)
        }

        fn on_listening(&mut self, _address: &str) {}

        fn kill(&mut self, role: Role) -> Result<bool, ChaosError> {
            self.answer(if role == Role::Coordinator { "kill the coordinator" } else { "kill" })
        }

        fn stop(&mut self, _worker: usize) -> Result<bool, ChaosError> {
            self.answer("stop")
        }

        fn proceed(&mut self, _worker: usize) -> Result<(), ChaosError> {
            self.answer("proceed").map(drop)
        }

        fn cut(&mut self, _worker: usize) -> Result<bool, ChaosError> {
            self.answer("cut")
        }

        fn mend(&mut self, _worker: usize) -> Result<(), ChaosError> {
            self.answer("mend").map(drop)
        }

        fn hold(&mut self, _worker: usize, _time: Duration) -> bool {
            false
        }

        fn end(&mut self, _role: Role) -> Result<End, ChaosError> {
            let (is_success, was_killed) = (self.ends == "done", self.ends == "killed");
            Ok(End { is_success, was_killed, status: self.ends.to_owned() })
        }

        fn peak_bytes(&self, _role: Role) -> u64 {
            0
        }

        fn leave(&mut self) -> Result<(), ChaosError> {
            Ok(())
        }

        fn abandon(&mut self) -> Result<(), ChaosError> {
            self.was_abandoned = true;
            Ok(())
        }
    }

    fn started() -> Value {
        json!({ "event": "started", "workers": [{ "host": "worker 0" }, { "host": "worker 1" }] })
    }

    fn step(step: u64) -> Value {
        json!({ "event": "step", "step": step })
    }

    fn ended() -> Value {
        json!({ "event": "ended", "weights_sha256": "12" })
    }

    fn storm(faults: &[(Kind, Option<usize>, u64)]) -> Storm {
        let planned = |(kind, worker, step): &(Kind, Option<usize>, u64)| Planned {
            kind: *kind,
            worker: *worker,
            step: *step,
            phase: Phase::Reported,
            milliseconds: 0,
        };
        Storm { seed: 0, steps: 9, workers: 2, faults: faults.iter().map(planned).collect() }
    }

    fn conduct(place: &mut Scripted, storm: &Storm) -> Result<Ran, ChaosError> {
        run(place, storm, &AtomicBool::new(false))
    }

    /// One fault for each step; a worker that holds no tower, or is not running, is struck at a later step.
    #[test]
    fn a_worker_is_struck_while_it_holds_towers() {
        let lost = json!({ "event": "fault", "host": "worker 1", "what": "it was lost" });
        let lines = vec![started(), step(1), step(2), lost, step(3), started(), step(4), step(5), step(6), ended()];
        let answers = BTreeMap::from([("kill", VecDeque::from([false, true]))]);
        let mut place = Scripted { lives: VecDeque::from([(lines, "done")]), answers, ..Scripted::default() };
        let faults = [(Kind::Cut, Some(0), 2), (Kind::Cut, Some(1), 2), (Kind::Kill, Some(0), 2)];
        let ran = conduct(&mut place, &storm(&faults)).unwrap();
        let strikes: Vec<_> = place.deeds.iter().filter(|deed| *deed != "mend").collect();
        assert_eq!(strikes, ["cut", "cut", "kill", "kill"], "worker 1 is not cut at step 3, when it is lost");
        let struck: Vec<_> = ran.fates.iter().map(|fate| fate.process.clone().unwrap()).collect();
        assert_eq!(struck, ["worker 0", "worker 1", "worker 0"]);
        assert!(!place.was_abandoned && ran.weights_sha256 == "12");
    }

    /// A stopped worker is continued when it is suspected, one that must be given up when it has been given up, and neither before.
    #[test]
    fn a_stopped_worker_is_continued_once_the_coordinator_has_noticed_it() {
        // The script is read before anything happens, so an event says that it was written later.
        let said = |event: &str| json!({ "event": event, "at": 4e9, "host": "worker 0", "what": "it does not answer" });
        for (kind, noticed, continues) in [
            (Kind::Stop, None, false),
            (Kind::Stop, Some("suspected"), true),
            (Kind::Stop, Some("fault"), true),
            (Kind::Freeze, None, false),
            (Kind::Freeze, Some("suspected"), false),
            (Kind::Freeze, Some("fault"), true),
        ] {
            let lines =
                [vec![started(), step(1)], noticed.map(said).into_iter().collect(), vec![step(2), ended()]].concat();
            let mut place = Scripted { lives: VecDeque::from([(lines, "done")]), ..Scripted::default() };
            let ran = conduct(&mut place, &storm(&[(kind, Some(0), 1)])).unwrap();
            let deeds: &[&str] = if continues { &["stop", "proceed"] } else { &["stop"] };
            assert_eq!(place.deeds, deeds, "{kind:?}, {noticed:?}");
            assert_eq!(ran.findings.len(), usize::from(noticed.is_some()));
        }
    }

    /// A worker that the coordinator never notices, or that it need not notice, is continued, too.
    #[test]
    fn a_stopped_worker_that_nobody_notices_is_continued() {
        let others = json!({ "event": "regrouped", "at": 4e9, "workers": [{ "host": "worker 1" }] });
        for (noticed_within, more) in [(Duration::ZERO, None), (NOTICED_WITHIN, Some(others))] {
            let lines = [vec![started(), step(1)], more.into_iter().collect(), vec![step(2), ended()]].concat();
            let mut place = Scripted { lives: VecDeque::from([(lines, "done")]), ..Scripted::default() };
            let storm = storm(&[(Kind::Freeze, Some(0), 1)]);
            let conductor = Conductor { noticed_within, ..Conductor::new(&mut place, &storm) };
            let fate = &conductor.run(&AtomicBool::new(false)).unwrap().fates[0];
            assert!(fate.over >= fate.fired.unwrap(), "{fate:?}");
            assert_eq!(place.deeds, ["stop", "proceed"]);
        }
    }

    /// A coordinator that was killed is started again. Steps that it had reported before strike nobody. If it had finished before it was
    /// killed, the fault did not happen.
    #[test]
    fn a_killed_coordinator_is_started_again_and_a_finished_one_was_not_killed() {
        let faults = [(Kind::Coordinator, None, 1), (Kind::Coordinator, None, 1)];
        let lives = [(vec![started(), step(1), step(2)], "killed"), (vec![started(), step(2), ended()], "done")];
        let mut place = Scripted { lives: VecDeque::from(lives), ..Scripted::default() };
        let ran = conduct(&mut place, &storm(&faults)).unwrap();
        assert_eq!(place.deeds, ["kill the coordinator", "kill the coordinator"]);
        assert!(ran.fates[0].fired.is_some() && ran.fates[1].fired.is_none(), "{:?}", ran.fates);
    }

    /// A connection between two workers that fails is the loss of neither. The events say who is connected directly.
    #[test]
    fn a_failed_connection_names_both_ends_and_nobody_is_lost() {
        let worker = |number: usize, direct: Value| json!({ "host": format!("worker {number}"), "direct": direct });
        let crew = |event: &str, direct: [Value; 2]| {
            let [first, second] = direct;
            json!({ "event": event, "workers": [worker(0, first), worker(1, second)] })
        };
        let broken =
            json!({ "event": "fault", "host": "worker 0", "peer": { "host": "worker 1" }, "what": "it broke" });
        let lines = vec![
            crew("started", [json!([1]), json!([0])]),
            broken,
            step(1),
            crew("regrouped", [json!([]), json!([])]),
            step(2),
            ended(),
        ];
        let mut place = Scripted { lives: VecDeque::from([(lines, "done")]), ..Scripted::default() };
        let ran = conduct(&mut place, &storm(&[(Kind::Kill, Some(0), 1)])).unwrap();
        assert_eq!(ran.findings[0].peer.as_deref(), Some("worker 1"));
        let linked: Vec<_> = ran.crews.iter().map(|crew| crew.linked.len()).collect();
        assert_eq!(linked, [2, 0]);
        assert_eq!(place.deeds, ["kill"], "worker 0 still holds towers at step 1");
    }

    /// What is wrong with a place is said, and nothing is left of the run.
    #[test]
    fn a_place_that_cannot_be_understood_is_an_error() {
        let strangers = json!({ "event": "started", "workers": [{ "host": "elsewhere" }] });
        for (line, expected) in [
            (json!("epoch 1"), "printed \"epoch 1\" instead of an event"),
            (strangers, "elsewhere, and none of them"),
            (step(1), "ended with"),
        ] {
            let mut place = Scripted { lives: VecDeque::from([(vec![line], "failed")]), ..Scripted::default() };
            let error = conduct(&mut place, &storm(&[])).unwrap_err().to_string();
            assert!(error.contains(expected) && place.was_abandoned, "{error}");
        }
    }
}
