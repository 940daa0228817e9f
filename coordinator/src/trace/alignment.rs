//! What a worker's clock shows when ours shows something: from pings, whose round trip bounds the error, and from messages,
//! which can't arrive before they left. Pure; all times are nanoseconds.
//!
//! A ping that left at `sent`, came at `received`, was answered at `replied` and came back at `arrived` says that
//! `ours - theirs` lies within half its round trip of the middle of `sent - received` and `arrived - replied`.

/// No clock drifts faster from another: 100 parts in a million, twice what crystals are sold with.
const DRIFT: f64 = 100e-6;
/// Pings that are remembered: the best of so many, older ones counting for less.
const REMEMBERED: usize = 64;

/// A ping and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// When it left, by our clock.
    pub sent: u64,
    /// When it came, by theirs.
    pub received: u64,
    /// When it was answered, by theirs.
    pub replied: u64,
    /// When the answer came, by ours.
    pub arrived: u64,
}

/// What to add to a worker's time for ours, and how far that may be off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// Ours less theirs.
    pub offset: i64,
    /// Either way.
    pub uncertainty: u64,
    /// What of the offset is due to messages that would have arrived before they left.
    pub correction: i64,
}

/// What is known of one worker's clock.
#[derive(Clone, Debug, Default)]
pub struct Alignment {
    exchanges: Vec<Exchange>,
}

impl Exchange {
    fn offset(&self) -> i64 {
        // A worker may say anything; what it says of its clock is its own loss.
        let less = |ours: u64, theirs: u64| (ours as i64).saturating_sub(theirs as i64);
        less(self.sent, self.received) / 2 + less(self.arrived, self.replied) / 2
    }

    /// Half its round trip, and what clocks may have drifted apart since.
    fn uncertainty(&self, now: u64) -> u64 {
        let away = self.arrived.saturating_sub(self.sent);
        let there = self.replied.saturating_sub(self.received);
        away.saturating_sub(there) / 2 + (now.abs_diff(self.arrived) as f64 * DRIFT) as u64
    }
}

impl Alignment {
    /// Another ping has been answered.
    pub fn add(&mut self, exchange: Exchange) {
        // One that makes no sense is a worker's lie or mistake, and says nothing of its clock.
        if exchange.arrived < exchange.sent || exchange.replied < exchange.received {
            return;
        }
        if self.exchanges.len() >= REMEMBERED {
            let worst = (0..self.exchanges.len()).max_by_key(|i| self.exchanges[*i].uncertainty(exchange.arrived));
            worst.map(|worst| self.exchanges.swap_remove(worst));
        }
        self.exchanges.push(exchange);
    }

    /// The offset at `now`. `earliest` and `latest` are what messages say of it: a message that left us at `a` and came at
    /// `b` there bounds it from below by `a - b`, and one the other way from above.
    pub fn offset(&self, now: u64, earliest: Option<i64>, latest: Option<i64>) -> Offset {
        let best = self.exchanges.iter().min_by_key(|exchange| exchange.uncertainty(now));
        let (measured, uncertainty) =
            best.map_or((0, u64::MAX), |exchange| (exchange.offset(), exchange.uncertainty(now)));
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
    fn exchange(at: u64, ahead: u64, there: u64, back: u64) -> Exchange {
        let received = at + there + ahead;
        Exchange { sent: at, received, replied: received + 7, arrived: at + there + 7 + back }
    }

    proptest! {
        /// However unevenly the ways are, the true offset lies within the uncertainty.
        #[test]
        fn the_offset_is_within_its_uncertainty(ahead in 0u64..10_000_000_000, ways in proptest::collection::vec((0u64..5_000_000, 0u64..5_000_000), 1..100)) {
            let mut alignment = Alignment::default();
            for (index, (there, back)) in ways.iter().enumerate() {
                alignment.add(exchange(index as u64 * 1_000_000, ahead, *there, *back));
            }
            let found = alignment.offset(ways.len() as u64 * 1_000_000, None, None);
            prop_assert!((found.offset + ahead as i64).unsigned_abs() <= found.uncertainty + 1);
        }
    }

    #[test]
    fn a_message_that_would_arrive_before_it_left_corrects_the_offset_and_says_by_how_much() {
        let mut alignment = Alignment::default();
        alignment.add(exchange(0, 5_000, 100, 0));
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
        alignment.add(Exchange { sent: 10, received: 9, replied: 3, arrived: 20 });
        assert_eq!(alignment.offset(20, None, None).uncertainty, u64::MAX);
    }
}
