//! Keeps the connections of an address within the limits of a `Room`: closes strangers that are too many or too late, and reports how many.
//!
//! Not here: sockets (`listening`), and bytes (`guest`).

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::fault::Fault;
pub use crate::room::Limits;
use crate::room::{Number, Room};

/// The limits of an address where jobs or machines connect: far fewer than the descriptors of a process.
pub const LIMITS: Limits = Limits {
    strangers: 128,
    grace: Duration::from_millis(25),
    crowd: 512,
    patience: Duration::from_secs(10),
    visitors: 32,
};
/// What each stranger has at least at an address with TLS. A handshake needs one more round trip to the other machine.
pub(crate) const HANDSHAKE_GRACE: Duration = Duration::from_millis(250);
/// Closed connections are reported after the first time, and then at most as often as the second one says.
const REPORTED_AFTER: Duration = Duration::from_secs(1);
const REPORTED_EVERY: Duration = Duration::from_secs(60);

/// The connections of an address.
#[derive(Clone, Debug)]
pub struct Reception(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What its connections are for, as the log says it.
    purpose: &'static str,
    // A std mutex, because it is never held across an await.
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    room: Room,
    closers: HashMap<Number, oneshot::Sender<()>>,
    closed: Closed,
    /// When failures of TLS were last reported, by kind.
    faults: HashMap<Discriminant<Fault>, Instant>,
}

/// The strangers that were closed, and have not been reported.
#[derive(Debug, Default)]
struct Closed {
    count: u64,
    /// When the first of them was closed.
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Closed {
    fn add(&mut self, now: Instant) {
        self.count += 1;
        self.since.get_or_insert(now);
    }

    /// How many to report now, if any.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let has_waited = self.since.is_some_and(|since| now.saturating_duration_since(since) >= REPORTED_AFTER);
        let may_tell = self.told.is_none_or(|told| now.saturating_duration_since(told) >= REPORTED_EVERY);
        if !has_waited || !may_tell {
            return None;
        }
        (self.told, self.since) = (Some(now), None);
        Some(std::mem::take(&mut self.count))
    }
}

/// The stay of an open connection, which ends when this is dropped.
#[derive(Debug)]
pub struct Stay {
    visit: Visit,
    closer: oneshot::Receiver<()>,
    has_ended: bool,
}

/// A connection, for those who handle its requests.
#[derive(Clone, Debug)]
pub struct Visit {
    reception: Reception,
    number: Number,
    peer: Option<SocketAddr>,
    is_member: Arc<AtomicBool>,
}

/// While it exists, its connection is a member: it has no limits here.
#[derive(Debug)]
pub struct Proof(Visit);

impl Reception {
    /// A reception for connections with a purpose, such as "for workers".
    pub fn new(purpose: &'static str, limits: Limits) -> Self {
        let kept = Kept {
            room: Room::new(limits),
            closers: HashMap::new(),
            closed: Closed::default(),
            faults: HashMap::new(),
        };
        Self(Arc::new(Shared { purpose, kept: Mutex::new(kept) }))
    }

    /// Each connection begins with a handshake, so each stranger has more time before it makes room.
    pub(crate) fn expect_handshakes(&self) {
        self.kept().room.extend_grace(HANDSHAKE_GRACE);
    }

    /// Waits until there is room for another connection. So those that are here have some time to prove what they are, however fast others come.
    pub(crate) async fn has_room(&self) {
        loop {
            // The guard must not be held while this waits.
            let full_for = self.kept().room.full_for(Instant::now());
            match full_for {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return,
            }
        }
    }

    /// Lets a new connection in, as a stranger. The oldest strangers are closed if there are too many.
    pub(crate) fn admit(&self, peer: Option<SocketAddr>) -> Stay {
        let (closer, closed) = oneshot::channel();
        let mut kept = self.kept();
        let (number, surplus) = kept.room.arrive(Instant::now());
        kept.closers.insert(number, closer);
        kept.close(surplus);
        drop(kept);
        let visit = Visit { reception: self.clone(), number, peer, is_member: Arc::default() };
        Stay { visit, closer: closed, has_ended: false }
    }

    /// Closes the strangers whose time is over, and reports those that were closed. Must be called several times a second.
    pub(crate) fn close_overdue(&self) {
        let now = Instant::now();
        let mut kept = self.kept();
        let overdue = kept.room.overdue(now);
        kept.close(overdue);
        let told = kept.closed.take(now);
        drop(kept);
        if let Some(count) = told {
            let (purpose, s) = (self.0.purpose, if count == 1 { "" } else { "s" });
            tracing::warn!("closed {count} connection{s} to the address {purpose}: silent, too slow, or too many");
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Whether no failure of this kind was reported within the last minute.
    fn is_new(&mut self, fault: &Fault, now: Instant) -> bool {
        let told = self.faults.get(&discriminant(fault));
        let is_new = told.is_none_or(|told| now.saturating_duration_since(*told) >= REPORTED_EVERY);
        if is_new {
            self.faults.insert(discriminant(fault), now);
        }
        is_new
    }

    fn close(&mut self, numbers: impl IntoIterator<Item = Number>) {
        for number in numbers {
            // The receiver learns of it.
            drop(self.closers.remove(&number));
            self.closed.add(Instant::now());
        }
    }
}

impl Stay {
    /// The connection, for those who handle its requests.
    pub(crate) fn visit(&self) -> &Visit {
        &self.visit
    }

    /// Completes when the connection must be closed.
    pub async fn ended(&mut self) {
        std::future::poll_fn(|context| self.poll_ended(context)).await;
    }

    /// Whether the connection must be closed.
    pub(crate) fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // The sender is dropped without a message. A receiver must not be asked again after that.
        self.has_ended = self.has_ended || Pin::new(&mut self.closer).poll(context).is_ready();
        if self.has_ended { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut kept = self.visit.reception.kept();
        kept.room.forget(self.visit.number);
        kept.closers.remove(&self.visit.number);
    }
}

impl Visit {
    /// Where it comes from, for a person.
    pub fn peer(&self) -> String {
        self.peer.map_or_else(|| "a Unix socket".to_owned(), |address| address.to_string())
    }

    /// The handshake has failed. None: the network did. Each kind of failure is reported at most once a minute.
    pub(crate) fn fails(&self, fault: Option<Fault>) {
        // Port scanners and load balancers connect and leave.
        let Some(fault) = fault.filter(|fault| *fault != Fault::Closed) else { return };
        if self.reception.kept().is_new(&fault, Instant::now()) {
            let purpose = self.reception.0.purpose;
            tracing::warn!("refused a connection from {} to the address {purpose}: {fault}", self.peer());
        }
    }

    /// The connection has made a request that everybody may make, such as a health check. It has no deadline from now on.
    pub fn visits(&self) {
        let mut kept = self.reception.kept();
        let oldest = kept.room.visit(self.number);
        kept.close(oldest);
    }

    /// The connection has proved what it is. None: it has been closed meanwhile.
    pub fn prove(&self) -> Option<Proof> {
        let is_there = self.reception.kept().room.prove(self.number);
        self.is_member.store(is_there, Ordering::Relaxed);
        is_there.then(|| Proof(self.clone()))
    }

    /// Whether it has proved what it is.
    pub(crate) fn is_member(&self) -> bool {
        self.is_member.load(Ordering::Relaxed)
    }
}

impl Drop for Proof {
    fn drop(&mut self) {
        let Visit { reception, number, is_member, .. } = &self.0;
        let mut kept = reception.kept();
        let closed = kept.room.unprove(*number, Instant::now());
        kept.close(closed);
        is_member.store(kept.room.is_member(*number), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: Limits = Limits { strangers: 2, grace: Duration::ZERO, crowd: 2, patience: Duration::ZERO, visitors: 1 };

    fn has_ended(stay: &mut Stay) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        stay.poll_ended(&mut context).is_ready()
    }

    #[test]
    fn strangers_are_closed_and_members_stay() {
        let reception = Reception::new("for tests", FEW);
        let [mut member, mut visitor, mut stranger] = [0, 1, 2].map(|_| {
            let stay = reception.admit(None);
            if stay.visit().number == 1 {
                std::mem::forget(stay.visit().prove());
            } else if stay.visit().number == 2 {
                stay.visit().visits();
            }
            stay
        });
        reception.close_overdue();
        assert_eq!([&mut member, &mut visitor, &mut stranger].map(has_ended), [false, false, true]);
        assert!(stranger.visit().prove().is_none() && member.visit().is_member());
    }

    #[test]
    fn a_member_without_its_proofs_is_a_stranger_and_a_stay_leaves_nothing_behind() {
        let reception = Reception::new("for tests", FEW);
        let mut stay = reception.admit(None);
        let proofs = [stay.visit().prove().unwrap(), stay.visit().prove().unwrap()];
        let [first, second] = proofs;
        drop(first);
        reception.close_overdue();
        assert!(stay.visit().is_member() && !has_ended(&mut stay));
        drop(second);
        assert!(!stay.visit().is_member() && !has_ended(&mut stay));
        reception.close_overdue();
        assert!(has_ended(&mut stay));
        drop(stay);
        assert!(reception.kept().closers.is_empty());
    }

    #[test]
    fn each_kind_of_failure_is_reported_once_a_minute() {
        let (reception, began) = (Reception::new("for tests", FEW), Instant::now());
        let mut kept = reception.kept();
        let mut is_new = |fault, second| kept.is_new(&fault, began + Duration::from_secs(second));
        assert_eq!([0, 59, 60].map(|second| is_new(Fault::Plain, second)), [true, false, true]);
        assert!(is_new(Fault::Issuer, 1), "another kind");
    }

    #[test]
    fn closed_connections_are_reported_together_and_not_again_and_again() {
        let (mut closed, began) = (Closed::default(), Instant::now());
        let after = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(closed.take(after(0)), None);
        closed.add(after(0));
        closed.add(after(0));
        assert_eq!([0, 1, 2].map(|second| closed.take(after(second))), [None, Some(2), None]);
        closed.add(after(3));
        assert_eq!([4, 60, 61, 62].map(|second| closed.take(after(second))), [None, None, Some(1), None]);
    }

    /// Each limit stands in docs/SECURITY.md.
    #[test]
    fn the_docs_say_every_limit() {
        let docs = include_str!("../../docs/SECURITY.md");
        for (what, value) in [
            (
                "strangers that may stay at an address for workers or for health checks; the oldest make room",
                LIMITS.strangers.to_string(),
            ),
            ("what each stranger has at least before it makes room", format!("{} ms", LIMITS.grace.as_millis())),
            ("the same at any address with TLS", format!("{} ms", HANDSHAKE_GRACE.as_millis())),
            ("after this time, a stranger is closed", format!("{} s", LIMITS.patience.as_secs())),
            ("connections that have asked for the health, and have no deadline", LIMITS.visitors.to_string()),
            ("strangers at any time, with those that have just come", LIMITS.crowd.to_string()),
            ("connections that wait to be accepted", crate::listening::BACKLOG.to_string()),
            ("what a stranger may send at once", format!("{} bytes", crate::guest::ALLOWANCE)),
            ("what it may send after that", format!("{} bytes per second", crate::guest::ALLOWANCE_PER_SECOND)),
            ("calls of a connection at once", crate::grpc::REQUESTS_MAX.to_string()),
            ("a message to the health service", format!("{} bytes", crate::grpc::HEALTH_BYTES_MAX)),
        ] {
            assert!(docs.contains(&format!("| {what} | {value} |\n")), "docs/SECURITY.md lacks: | {what} | {value} |");
        }
    }
}
