//! The offset between a worker's clock and the coordinator's. It follows from pings, whose round trip bounds the error, and from
//! messages, which can't arrive before they were sent. Pure. All times are nanoseconds.
//!
//! A ping that was sent at `sent`, received at `received`, answered at `replied` and back at `arrived` says that
//! `ours - theirs` is the mean of `sent - received` and `arrived - replied`, give or take half of its round trip.

/// The fastest drift between two clocks: 100 parts per million, twice the specification of common crystals.
const DRIFT: f64 = 100e-6;
/// Number of pings that are remembered, the best ones. Older pings count for less.
const REMEMBERED: usize = 64;

/// The times of a ping and its answer.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrip {
    /// When the ping was sent, by our clock.
    pub sent: u64,
    /// When it was received, by their clock.
    pub received: u64,
    /// When the answer was sent, by their clock.
    pub replied: u64,
    /// When the answer arrived, by our clock.
    pub arrived: u64,
}

/// What to add to a worker's time to get the coordinator's, and how uncertain that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// Our time minus theirs.
    pub offset: i64,
    /// Largest error of the offset, in either direction.
    pub uncertainty: u64,
    /// The part of the offset that is due to messages, which would otherwise have arrived before they were sent.
    pub correction: i64,
}

/// What is known about one worker's clock.
#[derive(Clone, Debug, Default)]
pub struct Alignment {
    round_trips: Vec<RoundTrip>,
}

impl RoundTrip {
    fn offset(&self) -> i64 {
        // A worker may send any numbers. Wrong ones spoil only its own part of the trace.
        let less = |ours: u64, theirs: u64| (ours as i64).saturating_sub(theirs as i64);
        less(self.sent, self.received) / 2 + less(self.arrived, self.replied) / 2
    }

    /// Half of the round trip, plus the possible drift since then.
    fn uncertainty(&self, now: u64) -> u64 {
        let away = self.arrived.saturating_sub(self.sent);
        let there = self.replied.saturating_sub(self.received);
        away.saturating_sub(there) / 2 + (now.abs_diff(self.arrived) as f64 * DRIFT) as u64
    }
}

impl Alignment {
    /// Adds an answered ping.
    pub fn add(&mut self, round_trip: RoundTrip) {
        // Impossible times say nothing about the clock.
        if round_trip.arrived < round_trip.sent || round_trip.replied < round_trip.received {
            return;
        }
        if self.round_trips.len() >= REMEMBERED {
            let uncertainty = |index: &usize| self.round_trips[*index].uncertainty(round_trip.arrived);
            let worst = (0..self.round_trips.len()).max_by_key(uncertainty);
            worst.map(|worst| self.round_trips.swap_remove(worst));
        }
        self.round_trips.push(round_trip);
    }

    /// The offset at `now`. Messages bound it: one that was sent here at `a` and received there at `b` says that it is at least
    /// `a - b` (`earliest`). A message in the other direction bounds it from above (`latest`).
    pub fn offset(&self, now: u64, earliest: Option<i64>, latest: Option<i64>) -> Offset {
        let best = self.round_trips.iter().min_by_key(|round_trip| round_trip.uncertainty(now));
        let (measured, uncertainty) =
            best.map_or((0, u64::MAX), |round_trip| (round_trip.offset(), round_trip.uncertainty(now)));
        let raised = earliest.map_or(measured, |earliest| measured.max(earliest));
        let offset = latest.map_or(raised, |latest| raised.min(latest));
        Offset { offset, uncertainty, correction: offset.saturating_sub(measured) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Their clock is ahead of ours by `ahead`; the ping takes `there` and the answer `back`.
    fn round_trip(at: u64, ahead: u64, there: u64, back: u64) -> RoundTrip {
        let received = at + there + ahead;
        RoundTrip { sent: at, received, replied: received + 7, arrived: at + there + 7 + back }
    }

    proptest! {
        /// However unevenly the ways are, the true offset lies within the uncertainty.
        #[test]
        fn the_offset_is_within_its_uncertainty(ahead in 0u64..10_000_000_000, ways in proptest::collection::vec((0u64..5_000_000, 0u64..5_000_000), 1..100)) {
            let mut alignment = Alignment::default();
            for (index, (there, back)) in ways.iter().enumerate() {
                alignment.add(round_trip(index as u64 * 1_000_000, ahead, *there, *back));
            }
            let found = alignment.offset(ways.len() as u64 * 1_000_000, None, None);
            prop_assert!((found.offset + ahead as i64).unsigned_abs() <= found.uncertainty + 1);
        }
    }

    #[test]
    fn a_message_that_would_arrive_before_it_left_corrects_the_offset_and_says_by_how_much() {
        let mut alignment = Alignment::default();
        alignment.add(round_trip(0, 5_000, 100, 0));
        assert_eq!(alignment.offset(107, None, None).offset, -5_050);
        assert_eq!(
            alignment.offset(107, Some(-5_010), None),
            Offset { offset: -5_010, uncertainty: 50, correction: 40 }
        );
        assert_eq!(
            alignment.offset(107, None, Some(-5_060)),
            Offset { offset: -5_060, uncertainty: 50, correction: -10 }
        );
    }

    #[test]
    fn a_worker_that_lies_about_its_clock_is_not_believed() {
        let mut alignment = Alignment::default();
        alignment.add(RoundTrip { sent: 10, received: 9, replied: 3, arrived: 20 });
        assert_eq!(alignment.offset(20, None, None).uncertainty, u64::MAX);
    }
}
