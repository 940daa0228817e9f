//! A sign of life: a thread that works sets it from time to time, and another thread reads it to see whether the first one hangs.
//! The caller passes the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When the current piece of work began. None while there is nothing to do.
#[derive(Debug, Default)]
pub struct Pulse(AtomicU64);

impl Pulse {
    /// Work begins or makes progress at `now`.
    pub fn beat(&self, now: Duration) {
        self.0.store(now.as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// There is nothing to do.
    pub fn rest(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// How long the current piece of work has lasted at `now`.
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
