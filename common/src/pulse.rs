//! Whether something that works still gets on: a mark that it sets as it goes, and that another thread looks at. Time is
//! told by the caller.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The moment at which a piece of work began, or none while there is nothing to do.
#[derive(Debug, Default)]
pub struct Pulse(AtomicU64);

impl Pulse {
    /// Work begins, or has got on, at `now`.
    pub fn beat(&self, now: Duration) {
        self.0.store(now.as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// There is nothing to do.
    pub fn rest(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// For how long the piece of work at hand has been going on at `now`.
    pub fn busy_for(&self, now: Duration) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => now.saturating_sub(Duration::from_millis(began - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_tells_how_long_work_has_been_going_on() {
        let (pulse, at) = (Pulse::default(), Duration::from_secs);
        assert_eq!(pulse.busy_for(at(9)), at(0));
        pulse.beat(at(0));
        assert_eq!(pulse.busy_for(at(9)), at(9));
        pulse.beat(at(7));
        assert_eq!((pulse.busy_for(at(9)), pulse.busy_for(at(6))), (at(2), at(0)));
        pulse.rest();
        assert_eq!(pulse.busy_for(at(9)), at(0));
    }
}
