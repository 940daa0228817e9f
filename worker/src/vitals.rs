//! Signs of life of the compute thread, which other threads read: since when it has been busy with its current piece of work, what
//! that is, and how long the longest piece took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use convoy_common::pulse::Pulse;
use convoy_common::wire::Direction;

/// Signs of life. Copies share them.
#[derive(Clone, Debug)]
pub(crate) struct Vitals {
    pulse: Arc<Pulse>,
    began: Instant,
    /// The layer at hand: twice its index, plus 1 forward and 2 backward. 0: no layer.
    layer: Arc<AtomicU64>,
    /// The longest piece of work so far, in milliseconds.
    longest: Arc<AtomicU64>,
}

impl Vitals {
    /// The signs of a thread that has nothing to do.
    pub(crate) fn new() -> Self {
        Self { pulse: Arc::default(), began: Instant::now(), layer: Arc::default(), longest: Arc::default() }
    }

    /// A piece of work begins: a message, or the time between two layers.
    pub(crate) fn beat(&self) {
        self.begins(0);
    }

    /// A layer begins.
    pub(crate) fn layer_begins(&self, layer: usize, direction: Direction) {
        self.begins(2 * layer as u64 + if direction == Direction::Forward { 1 } else { 2 });
    }

    /// There is nothing to do.
    pub(crate) fn rest(&self) {
        self.ended();
        self.layer.store(0, Ordering::Relaxed);
        self.pulse.rest();
    }

    /// How long the current piece of work has lasted.
    pub(crate) fn busy_for(&self) -> Duration {
        self.pulse.busy_for(self.began.elapsed())
    }

    /// The longest piece of work that has ended.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_millis(self.longest.load(Ordering::Relaxed))
    }

    /// The layer at hand.
    pub(crate) fn layer(&self) -> Option<(usize, Direction)> {
        let code = self.layer.load(Ordering::Relaxed).checked_sub(1)?;
        let direction = if code.is_multiple_of(2) { Direction::Forward } else { Direction::Backward };
        Some(((code / 2) as usize, direction))
    }

    fn begins(&self, layer: u64) {
        self.ended();
        self.layer.store(layer, Ordering::Relaxed);
        self.pulse.beat(self.began.elapsed());
    }

    fn ended(&self) {
        // Rounded up: a piece of work that has ended has taken some time.
        self.longest.fetch_max(self.busy_for().as_millis() as u64 + 1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_at_hand_is_named_and_forgotten_at_rest() {
        let vitals = Vitals::new();
        assert_eq!((vitals.layer(), vitals.busy_for()), (None, Duration::ZERO));
        for (layer, direction) in [(0, Direction::Forward), (0, Direction::Backward), (7, Direction::Forward)] {
            vitals.layer_begins(layer, direction);
            assert_eq!(vitals.layer(), Some((layer, direction)));
        }
        vitals.rest();
        assert_eq!((vitals.layer(), vitals.busy_for()), (None, Duration::ZERO));
    }
}
