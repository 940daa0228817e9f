//! Forms a cluster: opens the address, starts worker processes or waits for remote workers, until every seat is taken. After a
//! fault it fills the free seats again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::doors;
use super::health::Vitals;
use super::inbox::Inbox;
use super::local::{LocalPlan, LocalWorkers, SocketFolder};
use super::member::{Elsewhere, Heard};
use super::strangers::Strangers;
use super::{Cluster, News};
use convoy_net::listening::Listening;
use convoy_net::secrets::Secrets;

use crate::deadlines::{Deadlines, LOCAL_CONNECTS, LOOK_EVERY, REMOTE_CONNECTS};
use crate::error::JobError;
use crate::observe::{Event, Observer};
use crate::running::Running;
use crate::trace::Clock;

/// However often workers report that they are busy, a wait ends after this.
const BUSY_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long to wait for workers.
#[derive(Clone, Copy, Debug)]
struct Wait {
    /// For all workers, until every seat is taken.
    for_all: Duration,
    /// Whether the time starts again when a worker reports that it is busy with another job.
    extends: bool,
    /// If one worker is enough: once there is one, the time for the others.
    for_others: Option<Duration>,
}

/// How a wait for workers ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// Every seat is taken.
    All,
    /// Some seats are free, and the patience is over.
    Some,
    /// A stop was requested.
    Interrupted,
}

impl Cluster {
    /// Opens the doors, and starts local workers unless there is an address to listen on. All seats are free.
    ///
    /// # Errors
    /// When the address can't be bound, or a process can't be started.
    pub fn open(running: &Running, workers: usize, threads: usize) -> Result<Self, JobError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(JobError::Runtime)?;
        let unusable = |address: &str| {
            let address = address.to_owned();
            move |source| JobError::Listen { address, source }
        };
        let (address, folder) = match &running.listen {
            Some(address) => (address.clone(), None),
            None => {
                let folder =
                    SocketFolder::create().map_err(unusable("a Unix socket in a temporary folder (TMPDIR)"))?;
                (folder.address(), Some(folder))
            }
        };
        let opened = runtime.block_on(Listening::open(&address));
        let listening = opened.map_err(unusable(&address.to_string()))?;
        let address = dialled(listening.address());
        // Only this user can enter the socket's folder, so it needs no token.
        let Secrets { token, tls } = running.secrets.clone();
        let secrets = Secrets { token: token.filter(|_| folder.is_none()), tls };
        let start = secrets.command_of_worker(&address);
        let (vitals, clock) = (Vitals::starting(), Clock::starting());
        let deadlines = Deadlines::of(running.patience);
        let shown = vitals.clone();
        let (doors, reports, serving) =
            runtime.block_on(async { doors::serve(listening, workers, shown, secrets, clock, deadlines) });
        let local = folder.map(|folder| {
            let plan = LocalPlan { program: running.local.clone(), workers, threads, isa: running.isa.clone() };
            LocalWorkers::start(plan, folder)
        });
        let (local, seats) = (local.transpose()?, (0..workers).map(|_| None).collect());
        Ok(Self {
            seats,
            wanted: workers,
            spares: Vec::new(),
            strangers: Strangers::default(),
            inbox: Inbox::new(reports),
            postponed: VecDeque::new(),
            doors,
            serving,
            local,
            runtime,
            vitals,
            clock,
            deadlines,
            address,
            start,
        })
    }

    /// Waits until every seat is taken, as long as at the start of a job. The observer gets the news.
    ///
    /// # Errors
    /// When too few workers connect in time, or a local worker ends before it connects.
    pub fn gather(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<bool, JobError> {
        let (patience, extends) = if self.local.is_some() { (LOCAL_CONNECTS, false) } else { (REMOTE_CONNECTS, true) };
        match self.fill(Wait { for_all: patience, extends, for_others: None }, observer, stop)? {
            Gathered::All => Ok(true),
            Gathered::Interrupted => Ok(false),
            Gathered::Some => Err(self.too_few(self.seats.len(), patience)),
        }
    }

    /// After all workers were lost, or the coordinator was started again: waits for one worker as long as at the start of a job, and then
    /// at most for `patience` until every seat is taken.
    ///
    /// # Errors
    /// When none connects in time.
    pub fn gather_any(
        &mut self,
        patience: Duration,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Gathered, JobError> {
        let wait = Wait { for_all: REMOTE_CONNECTS, extends: true, for_others: Some(patience) };
        match self.fill(wait, observer, stop)? {
            Gathered::Some if self.present() == 0 => Err(self.too_few(1, wait.for_all)),
            Gathered::Some => {
                self.vitals.set_ready();
                Ok(Gathered::Some)
            }
            gathered => Ok(gathered),
        }
    }

    fn too_few(&self, want: usize, patience: Duration) -> JobError {
        let (have, seconds) = (self.present(), patience.as_secs());
        let advice = match self.local {
            Some(_) => "RUST_LOG=info shows what the worker processes do".to_owned(),
            None => format!("start more with: {}", self.start),
        };
        JobError::TooFewWorkers { have, want, seconds, advice }
    }

    /// After a fault before the job began: starts local workers again, and waits as [`Self::gather`] does.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn gather_again(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<bool, JobError> {
        self.restart_local()?;
        self.gather(observer, stop)
    }

    /// After a fault: starts local workers again, or waits at most for `patience` until every seat is taken.
    ///
    /// # Errors
    /// When a local worker can't be started, or doesn't connect.
    pub fn refill(
        &mut self,
        patience: Duration,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Gathered, JobError> {
        if self.local.is_none() {
            return self.fill(Wait { for_all: patience, extends: false, for_others: None }, observer, stop);
        }
        self.restart_local()?;
        if self.gather(observer, stop)? { Ok(Gathered::All) } else { Ok(Gathered::Interrupted) }
    }

    fn restart_local(&mut self) -> Result<(), JobError> {
        let free: Vec<_> = self.seats.keys().filter(|worker| self.seats[*worker].is_none()).collect();
        self.local.as_mut().map_or(Ok(()), |local| local.restart(&free))
    }

    /// Fills the seats.
    fn fill(&mut self, wait: Wait, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Gathered, JobError> {
        let (first, want) = (Instant::now(), self.seats.len());
        let mut start = first;
        let (mut told, mut has_one_since) = (None, None::<Instant>);
        self.strangers.forget_elsewhere();
        loop {
            self.seat_spares();
            let have = self.present();
            if told != Some(have) && self.local.is_none() {
                let (address, start) = (self.address.clone(), self.start.clone());
                observer.on(Event::Waiting { address, start, have, want });
            }
            told = Some(have);
            if have == want {
                self.vitals.set_ready();
                return Ok(Gathered::All);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(Gathered::Interrupted);
            }
            if have == 0 && has_one_since.take().is_some() && wait.for_others.is_some() {
                // The only one has gone: the wait for one begins again.
                start = Instant::now();
            } else if have > 0 {
                has_one_since.get_or_insert_with(Instant::now);
            }
            let is_over = match (wait.for_others, has_one_since) {
                (Some(patience), Some(since)) => since.elapsed() >= patience,
                _ => start.elapsed() > wait.for_all,
            };
            if is_over || first.elapsed() > BUSY_MAX {
                return Ok(Gathered::Some);
            }
            self.vitals.beat();
            match self.poll(LOOK_EVERY) {
                Some(News::Heard(worker, Heard::Lost(why))) => {
                    if let Some(member) = self.member(worker) {
                        let (process_id, host) = (member.hello.process_id, member.hello.host.clone());
                        observer.on(Event::Gone { worker, process_id, host, why: why.clone() });
                    }
                    self.give_up(worker, &why);
                    // It had connected before. One that ends before it connects is a fault.
                    self.local.as_mut().map_or(Ok(()), |local| local.restart(&[worker]))?;
                }
                Some(News::Heard(..) | News::Changed) => {}
                Some(News::Elsewhere(worker)) => {
                    // Busy workers are worth waiting for until their job has ended.
                    if worker.model.is_some() && wait.extends {
                        start = Instant::now();
                    }
                    if self.strangers.is_new_elsewhere(&worker) {
                        let Elsewhere { host, coordinator, model } = worker;
                        observer.on(Event::Elsewhere { host, coordinator, model });
                    }
                }
                Some(News::Refused(address, reason)) => self.report_refused(address, reason, observer),
                None => {
                    if let Some(local) = &mut self.local {
                        local.check_alive(|worker| self.seats[worker].is_some())?;
                    }
                }
            }
        }
    }
}

/// An address that other machines can connect to. If every address of this machine is bound, that is the machine's name.
fn dialled(address: &str) -> String {
    match address.parse::<SocketAddr>() {
        Ok(socket) if socket.ip().is_unspecified() => {
            let name = rustix::system::uname();
            format!("{}:{}", name.nodename().to_string_lossy(), socket.port())
        }
        _ => address.to_owned(),
    }
}
