//! Which connections may stay. Pure bookkeeping: connections are numbers, and the caller says what time it is.
//!
//! Not here: the connections themselves (`reception`).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Limits of a room.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The strangers that may stay. If there are more, the oldest ones are closed after their grace.
    pub strangers: usize,
    /// What each stranger has at least, to prove what it is.
    pub grace: Duration,
    /// The most strangers at any time, with those that have their grace. Others wait.
    pub crowd: usize,
    /// How long a connection may remain a stranger.
    pub patience: Duration,
    /// The most visitors. If another one comes, the oldest one is closed.
    pub visitors: usize,
}

/// The number of a connection.
pub(crate) type Number = u64;

/// The connections that are open.
#[derive(Debug)]
pub(crate) struct Room {
    limits: Limits,
    /// Connections that have proved nothing, the oldest first, and since when.
    strangers: VecDeque<(Number, Instant)>,
    /// Connections with a small request that everybody may make, such as a health check. They have no deadline, and are as few as strangers.
    visitors: VecDeque<Number>,
    /// Connections that have proved what they are, and how many of their proofs count. Whoever accepts a proof limits their number.
    members: HashMap<Number, usize>,
    arrived: Number,
}

impl Room {
    pub(crate) fn new(limits: Limits) -> Self {
        let (strangers, visitors, members) = Default::default();
        Self { limits, strangers, visitors, members, arrived: 0 }
    }

    /// Gives each stranger at least this grace.
    pub(crate) fn extend_grace(&mut self, grace: Duration) {
        self.limits.grace = self.limits.grace.max(grace);
    }

    /// How long the next connection must wait: until the oldest stranger has had its grace.
    pub(crate) fn full_for(&self, now: Instant) -> Option<Duration> {
        let (_, since) = self.strangers.front().filter(|_| self.strangers.len() >= self.limits.crowd)?;
        Some((*since + self.limits.grace).saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }

    /// A connection has arrived. Returns its number, and the strangers that must be closed.
    pub(crate) fn arrive(&mut self, now: Instant) -> (Number, Vec<Number>) {
        self.arrived += 1;
        self.strangers.push_back((self.arrived, now));
        (self.arrived, self.surplus(now))
    }

    /// Takes out the strangers that are too many and have had their grace.
    fn surplus(&mut self, now: Instant) -> Vec<Number> {
        let grace = self.limits.grace;
        let is_old = |(_, since): &(Number, Instant)| now.saturating_duration_since(*since) >= grace;
        let surplus = self.strangers.len().saturating_sub(self.limits.strangers);
        let count = self.strangers.iter().take(surplus).take_while(|stranger| is_old(stranger)).count();
        self.strangers.drain(..count).map(|(number, _)| number).collect()
    }

    /// A connection has made a request that everybody may make. Returns the visitor that must be closed for it: the one whose last request
    /// is the oldest.
    pub(crate) fn visit(&mut self, number: Number) -> Option<Number> {
        if self.members.contains_key(&number) || !self.forget(number) {
            return None;
        }
        self.visitors.push_back(number);
        (self.visitors.len() > self.limits.visitors).then(|| self.visitors.pop_front()).flatten()
    }

    /// A connection has proved what it is. Returns whether it is still there.
    pub(crate) fn prove(&mut self, number: Number) -> bool {
        let proofs = self.members.get(&number).copied().unwrap_or(0);
        let is_there = self.forget(number);
        if is_there {
            self.members.insert(number, proofs + 1);
        }
        is_there
    }

    /// A proof of a connection no longer counts. Without any, it is a stranger again. If there are enough of them, it must be closed itself:
    /// returns its number then.
    pub(crate) fn unprove(&mut self, number: Number, now: Instant) -> Option<Number> {
        let proofs = self.members.get_mut(&number)?;
        *proofs -= 1;
        if *proofs > 0 {
            return None;
        }
        self.members.remove(&number);
        if self.strangers.len() >= self.limits.strangers {
            return Some(number);
        }
        self.strangers.push_back((number, now));
        None
    }

    /// Whether a connection has proved what it is.
    pub(crate) fn is_member(&self, number: Number) -> bool {
        self.members.contains_key(&number)
    }

    /// A connection has closed. Returns whether it was there.
    pub(crate) fn forget(&mut self, number: Number) -> bool {
        let before = self.len();
        self.strangers.retain(|(other, _)| *other != number);
        self.visitors.retain(|other| *other != number);
        self.members.remove(&number);
        self.len() < before
    }

    /// Takes out the strangers whose time is over, and those that are too many.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<Number> {
        let patience = self.limits.patience;
        let is_overdue = |(_, since): &(Number, Instant)| now.saturating_duration_since(*since) >= patience;
        let count = self.strangers.iter().take_while(|stranger| is_overdue(stranger)).count();
        let late = self.strangers.drain(..count).map(|(number, _)| number).collect();
        [late, self.surplus(now)].concat()
    }

    fn len(&self) -> usize {
        self.strangers.len() + self.visitors.len() + self.members.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { strangers: 2, grace: Duration::ZERO, crowd: 2, patience: Duration::from_secs(10), visitors: 2 };

    fn after(seconds: u64) -> Instant {
        // One origin for all, so that times can be compared.
        static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *BEGAN + Duration::from_secs(seconds)
    }

    #[test]
    fn the_oldest_stranger_makes_room_for_another_one() {
        let mut room = Room::new(LIMITS);
        let closed: Vec<_> = (0..5).map(|_| room.arrive(after(0)).1).collect();
        assert_eq!(closed, [vec![], vec![], vec![1], vec![2], vec![3]]);
        assert_eq!(room.len(), 2);
    }

    #[test]
    fn each_stranger_has_its_grace_and_a_crowd_waits() {
        let mut room = Room::new(Limits { grace: Duration::from_secs(1), crowd: 4, ..LIMITS });
        for _ in 0..4 {
            assert_eq!((room.full_for(after(0)), room.arrive(after(0)).1), (None, vec![]));
        }
        assert_eq!(room.full_for(after(0)), Some(Duration::from_secs(1)));
        assert_eq!(room.full_for(after(1)), None, "the oldest one has had its grace");
        assert_eq!(room.arrive(after(1)).1, [1, 2, 3]);
        let mut room = Room::new(Limits { grace: Duration::from_secs(1), crowd: 4, ..LIMITS });
        (0..4).for_each(|_| drop(room.arrive(after(0))));
        assert_eq!((room.overdue(after(0)), room.overdue(after(1))), (vec![], vec![1, 2]));
    }

    #[test]
    fn strangers_are_overdue_after_the_patience_and_no_others_are() {
        let mut room = Room::new(Limits { strangers: 9, crowd: 9, ..LIMITS });
        let [visitor, member, early, late] = [0, 0, 1, 2].map(|second| room.arrive(after(second)).0);
        assert_eq!(room.visit(visitor), None);
        assert!(room.prove(member));
        assert_eq!(room.overdue(after(10)), []);
        assert_eq!(room.overdue(after(11)), [early]);
        assert_eq!(room.overdue(after(60)), [late]);
        assert_eq!((room.overdue(after(600)), room.len()), (vec![], 2));
    }

    #[test]
    fn members_are_not_limited_by_strangers_and_become_strangers_again() {
        let mut room = Room::new(LIMITS);
        let arrived: Vec<_> = (0..5).map(|_| room.arrive(after(0)).0).collect();
        // The first three have made room for the others.
        let proved: Vec<_> = arrived.iter().map(|number| room.prove(*number)).collect();
        assert_eq!(proved, [false, false, false, true, true]);
        for _ in 0..9 {
            room.arrive(after(1));
        }
        assert!(room.is_member(4) && room.is_member(5));
        assert!(
            room.prove(4) && room.unprove(4, after(15)).is_none() && room.is_member(4),
            "one of two proofs still counts"
        );
        assert_eq!(room.unprove(5, after(15)), Some(5), "there are enough strangers");
        room.overdue(after(20));
        assert_eq!(room.unprove(4, after(20)), None);
        assert!(!room.is_member(4) && room.overdue(after(29)).is_empty());
        assert_eq!(room.overdue(after(30)), [4]);
        assert_eq!(room.unprove(4, after(30)), None, "it is gone");
    }

    #[test]
    fn the_oldest_visitor_makes_room_for_another_one() {
        let mut room = Room::new(LIMITS);
        let mut come = |_| {
            let (number, _) = room.arrive(after(0));
            room.visit(number)
        };
        let closed: Vec<_> = (0..4).map(&mut come).collect();
        assert_eq!(closed, [None, None, Some(1), Some(2)]);
        assert_eq!(room.visit(3), None, "it is a visitor already");
        let next = room.arrive(after(0)).0;
        assert_eq!(room.visit(next), Some(4), "the last request of 3 is newer");
        assert!(room.forget(3) && !room.forget(3) && room.visit(3).is_none());
    }
}
