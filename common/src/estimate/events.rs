//! What happens when: events in the order of their times. Those of the same time come in the order in which they were added.

use std::collections::BTreeMap;

/// Nanoseconds since the beginning.
pub(super) type Time = u64;

/// Nanoseconds of `seconds`. A longer time than 584 years counts as 584 years.
pub(super) fn time(seconds: f64) -> Time {
    (seconds * 1e9).round() as Time
}

/// The events to come.
#[derive(Debug)]
pub(super) struct Events<E> {
    added: u64,
    to_come: BTreeMap<(Time, u64), E>,
}

impl<E> Events<E> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { added: 0, to_come: BTreeMap::new() }
    }

    /// Adds an event at `at`.
    pub(super) fn add(&mut self, at: Time, event: E) {
        self.to_come.insert((at, self.added), event);
        self.added += 1;
    }

    /// The next event.
    pub(super) fn next(&mut self) -> Option<(Time, E)> {
        let ((at, _), event) = self.to_come.pop_first()?;
        Some((at, event))
    }
}
