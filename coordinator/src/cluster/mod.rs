//! Who is there: the workers of a run, each in its seat, and the messages to and from them, with a limit on every wait.
//! [`formation`] opens the doors and fills the seats, [`doors`] accepts connections, [`local`] starts workers on this machine,
//! [`member`] is a connected worker, `inbox` is where the job's thread waits, `strangers` remembers refused and busy workers, and
//! [`health`] answers health checks.
//!
//! Not here: what a message means for the job. The cluster knows no plan, state, step or trace.

pub mod doors;
pub mod formation;
pub mod health;
mod inbox;
pub mod local;
pub mod member;
mod strangers;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use convoy_common::address::Address;
use convoy_common::index::{PerWorker, WorkerIndex};
use convoy_common::wire::{FromWorker, Numbered, Recorded, Tally, ToWorker};
use convoy_proto::v1;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::deadlines::Deadlines;
use crate::observe::{Event, Observer};
use crate::silence::{Quiet, Verdict};
use crate::trace::Clock;
use doors::Doors;
use health::Vitals;
use inbox::Inbox;
use local::LocalWorkers;
use member::{Elsewhere, Heard, Member, Report, Undelivered, deliver};
use strangers::Strangers;

/// How long a worker may take for its last message.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// The end of a worker's part in a job belongs to no generation.
const GENERATION_OVER: u64 = 0;
/// How long to wait for the reason of a connection that has closed.
const REASON_MAX: Duration = Duration::from_millis(100);

/// The workers of a run.
pub struct Cluster {
    /// The worker of each number, if it is there.
    seats: PerWorker<Option<Member>>,
    /// Number of workers that the job asked for. After a fault there may be fewer seats.
    wanted: usize,
    /// Workers without a seat, in the order of their arrival.
    spares: Vec<Member>,
    strangers: Strangers,
    inbox: Inbox,
    /// Losses that were noticed while something else was waited for.
    postponed: VecDeque<(WorkerIndex, String)>,
    doors: Doors,
    /// Accepts connections.
    serving: JoinHandle<()>,
    local: Option<LocalWorkers>,
    runtime: Runtime,
    vitals: Vitals,
    clock: Clock,
    deadlines: Deadlines,
    /// The address that other machines can connect to.
    address: String,
    /// The command that starts a worker for this cluster.
    start: String,
}

/// What a worker reports when its job is over.
#[derive(Debug)]
pub enum Last {
    /// Spans.
    Recorded(Recorded),
    /// What it has done since its last report.
    Tally(Tally),
}

/// What happened in the cluster.
#[derive(Debug)]
pub enum News {
    /// A seated worker was heard.
    Heard(WorkerIndex, Heard),
    /// A worker has come or gone.
    Changed,
    /// A worker serves another coordinator.
    Elsewhere(Elsewhere),
    /// A worker was refused: its address, and why.
    Refused(String, String),
}

impl Cluster {
    /// Number of seats.
    pub fn seats(&self) -> usize {
        self.seats.len()
    }

    /// Number of workers in seats.
    pub fn present(&self) -> usize {
        self.seats.iter().flatten().count()
    }

    /// The worker of this number, if it is there.
    pub fn member(&self, worker: WorkerIndex) -> Option<&Member> {
        self.seats.get(worker)?.as_ref()
    }

    /// How long each seated worker has been silent, as the last crew left it.
    pub fn quiets(&self) -> PerWorker<Quiet> {
        self.seats.iter().map(|seat| seat.as_ref().map_or_else(Quiet::default, |member| member.quiet)).collect()
    }

    /// Keeps the silence of a seated worker until the next crew begins, or until it is heard.
    pub fn leave_quiet(&mut self, worker: WorkerIndex, quiet: Quiet) {
        if let Some(member) = self.seats.get_mut(worker).and_then(Option::as_mut) {
            member.quiet = quiet;
        }
    }

    /// The coordinator's clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The thread that drives the job is alive.
    pub fn beat(&self) {
        self.vitals.beat();
    }

    /// The first worker that has announced that it will stop, and its machine.
    pub fn leaving(&self) -> Option<(WorkerIndex, String)> {
        let leaving = |member: &Option<Member>| member.as_ref().is_some_and(|member| member.is_leaving);
        let worker = self.seats.position(leaving)?;
        Some((worker, self.seats[worker].as_ref()?.hello.host.clone()))
    }

    /// Waits for news, at most for `patience`.
    pub fn poll(&mut self, patience: Duration) -> Option<News> {
        if let Some((worker, why)) = self.postponed.pop_front() {
            return Some(News::Heard(worker, Heard::Lost(why)));
        }
        let (session, heard) = match self.inbox.next(patience)? {
            Report::Joined(member) => {
                self.seat(*member);
                return Some(News::Changed);
            }
            Report::Elsewhere(elsewhere) => return Some(News::Elsewhere(elsewhere)),
            Report::Refused(address, reason) => return Some(News::Refused(address, reason)),
            Report::Heard(session, heard) => (session, heard),
        };
        let is_it = |member: &Member| member.session == session;
        let Some(worker) = self.seats.position(|seat| seat.as_ref().is_some_and(is_it)) else {
            if matches!(heard, Heard::Lost(_)) {
                self.spares.retain(|member| !is_it(member));
                self.doors.forget(session);
            } else if let Some(spare) = self.spares.iter_mut().find(|member| is_it(member)) {
                spare.quiet.heard();
            }
            return Some(News::Changed);
        };
        if let Some(member) = &mut self.seats[worker] {
            member.quiet.heard();
            if let Heard::Said(Numbered { message, .. }, _) = &heard {
                member.is_leaving |= matches!(message, FromWorker::Leaving);
                member.has_failed |= matches!(message, FromWorker::Failure(_));
            }
        }
        Some(News::Heard(worker, heard))
    }

    /// Queues a frame for a worker. While the worker does not read, `waits` is called with how long that has lasted.
    ///
    /// # Errors
    /// When it is gone, or does not read.
    pub fn send(
        &mut self,
        worker: WorkerIndex,
        frame: v1::Frame,
        stop: &AtomicBool,
        mut waits: impl FnMut(&Member, Duration),
    ) -> Result<(), Undelivered> {
        let member = self.seats[worker].as_ref().ok_or(Undelivered::Gone)?;
        let waits = |lasted| {
            self.vitals.beat();
            waits(member, lasted);
        };
        deliver(&self.runtime, &member.frames, frame, (self.deadlines.given_up, waits), stop)
    }

    /// Queues a control message for a worker. Control messages are few: a worker that does not read is noticed by its silence
    /// before the queue is full.
    ///
    /// # Errors
    /// When it is gone, or does not read.
    pub fn tell(
        &mut self,
        worker: WorkerIndex,
        order: Numbered<ToWorker>,
        stop: &AtomicBool,
    ) -> Result<(), Undelivered> {
        let member = self.seats[worker].as_ref().ok_or(Undelivered::Gone)?;
        deliver(&self.runtime, &member.control, order.into(), (self.deadlines.given_up, |_| self.vitals.beat()), stop)
    }

    /// Queues a control message for a worker if there is room. Returns whether there was.
    pub fn try_tell(&self, worker: WorkerIndex, order: Numbered<ToWorker>) -> bool {
        self.member(worker).is_some_and(|member| member.try_tell(order.generation, order.message))
    }

    /// Reports a worker that was refused, once.
    pub fn report_refused(&mut self, address: String, reason: String, observer: &mut dyn Observer) {
        if self.strangers.is_new_refusal(&address, &reason) {
            observer.on(Event::Refused { address, reason });
            if let Some(text) = self.strangers.last_refusal() {
                observer.on(Event::Notice { text });
            }
        }
    }

    /// The deadlines of the job.
    pub fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// What a worker whose connection has closed said at last, if that comes soon. Messages of other workers are dropped: the
    /// generation is over.
    pub fn last_words(&mut self, worker: WorkerIndex) -> Option<Heard> {
        let (start, mut lost) = (Instant::now(), VecDeque::new());
        let mut last = None;
        while let Some(left) = REASON_MAX.checked_sub(start.elapsed()) {
            match self.poll(left) {
                Some(News::Heard(from, heard)) if from == worker => {
                    if matches!(
                        heard,
                        Heard::Lost(_) | Heard::Said(Numbered { message: FromWorker::Failure(_), .. }, _)
                    ) {
                        last = Some(heard);
                        break;
                    }
                }
                Some(News::Heard(other, Heard::Lost(why))) => lost.push_back((other, why)),
                Some(_) => {}
                None => break,
            }
        }
        self.postponed.append(&mut lost);
        last
    }

    /// Frees a worker's seat, tells the worker why if it still listens, closes its connections, and ends its process if this
    /// process has started it. Returns how the process ended, if it did.
    pub fn give_up(&mut self, worker: WorkerIndex, why: &str) -> Option<String> {
        let mut member = self.seats.get_mut(worker)?.take()?;
        member.try_tell(GENERATION_OVER, ToWorker::EndJob { reason: why.to_owned() });
        member.hang_up();
        self.doors.forget(member.session);
        self.local.as_mut().and_then(|local| local.give_up(member.hello.process_id))
    }

    /// From now on, the coordinator relays what these two workers send each other.
    pub fn relay(&mut self, one: WorkerIndex, other: WorkerIndex) {
        for (worker, peer) in [(one, other), (other, one)] {
            let session = self.member(peer).map(|member| member.session);
            if let (Some(session), Some(Some(member))) = (session, self.seats.get_mut(worker)) {
                member.relayed.push(session);
            }
        }
    }

    /// Whether the coordinator must relay what these two workers send each other.
    pub fn must_relay(&self, one: WorkerIndex, other: WorkerIndex) -> bool {
        let session = self.member(other).map(|member| member.session);
        self.member(one).is_none_or(|member| session.is_none_or(|session| member.relayed.contains(&session)))
    }

    /// Whether one of these two workers listens at an address that leads elsewhere on the other one's machine.
    pub fn leads_elsewhere(&self, one: WorkerIndex, other: WorkerIndex) -> bool {
        let hello = |worker| self.member(worker).map(|member| &member.hello);
        let is_local = |worker| {
            let address = hello(worker).and_then(|hello| hello.exchange_address.as_ref());
            address.is_some_and(Address::is_local)
        };
        hello(one).map(|hello| &hello.host) != hello(other).map(|hello| &hello.host)
            && (is_local(one) || is_local(other))
    }

    /// Removes the seats that are empty. The workers are numbered anew.
    pub fn close_ranks(&mut self) {
        self.seats.retain(Option::is_some);
    }

    /// Whether there are as many seats as the job asked for.
    pub fn is_whole(&self) -> bool {
        self.seats.len() == self.wanted
    }

    /// Whether there are fewer seats than the job asked for, and a spare that could take another one.
    pub fn can_grow(&self) -> bool {
        self.seats.len() < self.wanted && self.spares.iter().any(Member::is_available)
    }

    /// Gives seats to spares, up to the number of workers that the job asked for.
    pub fn grow(&mut self) {
        let available = self.spares.iter().filter(|spare| spare.is_available()).count();
        let seats = (self.seats.len() + available).min(self.wanted.max(self.seats.len()));
        self.seats.resize_with(seats, || None);
        self.seat_spares();
    }

    /// Gives the free seats to spares that answer.
    fn seat_spares(&mut self) {
        for spare in std::mem::take(&mut self.spares) {
            if spare.is_available() {
                self.seat(spare);
            } else {
                self.spares.push(spare);
            }
        }
    }

    /// Asks spares from time to time whether they are there, after `time` has passed. One that does not answer gets no seat, and is given
    /// up after as long as any other worker.
    pub fn attend_to_spares(&mut self, time: Duration) {
        let (given_up, now) = (self.deadlines.given_up, self.clock.now());
        let mut gone = Vec::new();
        for spare in &mut self.spares {
            spare.quiet.passed(time);
            match spare.quiet.verdict(given_up) {
                Some(Verdict::Ask) => {
                    // A worker that does not read has a full queue.
                    spare.try_tell(GENERATION_OVER, ToWorker::Ping { sent: now });
                    spare.quiet.asked();
                }
                Some(Verdict::Suspect) => tracing::info!(host = spare.hello.host, "a spare does not answer"),
                Some(Verdict::GiveUp) => gone.push(spare.session),
                None => {}
            }
        }
        for session in gone {
            self.spares.retain(|spare| spare.session != session);
            self.doors.forget(session);
        }
    }

    /// Sets up as many seats as the job asked for.
    pub fn restore_seats(&mut self) {
        self.seats.resize_with(self.wanted, || None);
    }

    /// Ends the job for every worker. Returns the number of threads of each that did any work, if it reported that in time.
    /// `last` gets what they report meanwhile.
    pub fn dismiss(
        mut self,
        generation: u64,
        reason: &str,
        mut last: impl FnMut(WorkerIndex, Last),
    ) -> PerWorker<Option<usize>> {
        let mut busy_threads = PerWorker::from(vec![None; self.seats.len()]);
        let mut owed = HashSet::new();
        for spare in &self.spares {
            spare.try_tell(GENERATION_OVER, ToWorker::EndJob { reason: reason.to_owned() });
        }
        for (worker, seat) in self.seats.iter_mut_enumerated() {
            let Some(member) = seat else { continue };
            // A worker that is gone gets no message and sends none.
            if member.try_tell(generation, ToWorker::EndJob { reason: reason.to_owned() }) {
                owed.insert(worker);
            }
            if member.has_failed {
                member.hang_up();
            }
        }
        let start = Instant::now();
        while !owed.is_empty() && start.elapsed() < FAREWELL_MAX {
            let left = FAREWELL_MAX.saturating_sub(start.elapsed());
            let Some(News::Heard(worker, heard)) = self.poll(left) else { continue };
            let message = match heard {
                Heard::Said(Numbered { message, .. }, _) => message,
                Heard::Lost(_) => {
                    owed.remove(&worker);
                    continue;
                }
                Heard::Chunk(..) => continue,
            };
            match message {
                FromWorker::Finished { busy_threads: busy, tally } => {
                    busy_threads[worker] = Some(busy);
                    last(worker, Last::Tally(tally));
                    owed.remove(&worker);
                }
                FromWorker::Recorded(spans) => last(worker, Last::Recorded(spans)),
                FromWorker::Failure(_) => self.seats[worker].iter_mut().for_each(Member::hang_up),
                _ => {}
            }
        }
        if let Some(local) = self.local.take() {
            local.end();
        }
        // Nobody listens any more when this returns.
        self.serving.abort();
        let _ = self.runtime.block_on(&mut self.serving);
        // Connections end with the runtime. Without a limit this would wait forever for peers that are gone.
        self.runtime.shutdown_timeout(Duration::from_millis(200));
        busy_threads
    }

    /// Gives a worker a seat: a local one that of its process, a remote one the first that is free. Without a seat it is a spare.
    fn seat(&mut self, mut member: Member) {
        // Its control connection may have closed while the other one was opened.
        if member.control.is_closed() {
            return;
        }
        let seat = match &self.local {
            Some(local) => local.position_of(member.hello.process_id),
            None => self.seats.position(Option::is_none),
        };
        match seat.filter(|seat| self.seats.get(*seat).is_some_and(Option::is_none)) {
            Some(seat) => {
                member.may_send.store(true, Ordering::Relaxed);
                self.seats[seat] = Some(member);
            }
            None => {
                // A spare that does not learn it now still gets a seat later.
                if !std::mem::replace(&mut member.is_spare, true) {
                    member.try_tell(GENERATION_OVER, ToWorker::Standby);
                }
                self.spares.push(member);
            }
        }
    }
}
