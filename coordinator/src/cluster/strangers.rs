//! Remembers which refused or busy workers have been reported. Each is reported once, up to a limit.
//!
//! Not here: why they are refused (`doors`).

use std::collections::HashSet;

use super::member::Elsewhere;

/// The most workers that are reported as refused, and as many as serving another coordinator.
const TOLD_MAX: usize = 64;

/// The workers that were reported.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    elsewhere: Vec<Elsewhere>,
    /// Machines, and why they were refused.
    refused: HashSet<(String, String)>,
}

impl Strangers {
    /// Whether a worker that serves another coordinator should be reported.
    pub(super) fn is_new_elsewhere(&mut self, worker: &Elsewhere) -> bool {
        let is_new = self.elsewhere.len() < TOLD_MAX && !self.elsewhere.contains(worker);
        self.elsewhere.extend(is_new.then(|| worker.clone()));
        is_new
    }

    /// A new wait begins: workers that serve another coordinator are reported again.
    pub(super) fn forget_elsewhere(&mut self) {
        self.elsewhere.clear();
    }

    /// Whether a worker that was refused should be reported. The same machine with the same reason is reported once, because workers try
    /// again, each time from another port.
    pub(super) fn is_new_refusal(&mut self, address: &str, reason: &str) -> bool {
        let machine = address.rsplit_once(':').map_or(address, |(machine, _)| machine);
        self.refused.len() < TOLD_MAX && self.refused.insert((machine.to_owned(), reason.to_owned()))
    }

    /// What to say after the last refusal that is reported.
    pub(super) fn last_refusal(&self) -> Option<String> {
        let is_last = self.refused.len() == TOLD_MAX;
        is_last.then(|| format!("{TOLD_MAX} refusals were reported; further ones are not"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_reported_once_for_each_reason_and_not_too_many_are() {
        let mut strangers = Strangers::default();
        assert!(strangers.is_new_refusal("10.0.0.1:4000", "no token"));
        assert!(!strangers.is_new_refusal("10.0.0.1:4001", "no token"), "the same machine from another port");
        assert!(strangers.is_new_refusal("10.0.0.1:4002", "another version"));
        assert!(strangers.is_new_refusal("10.0.0.2:4000", "no token"));
        assert_eq!(strangers.last_refusal(), None);
        let more = (0..1000).filter(|n| strangers.is_new_refusal(&format!("10.0.1.{n}:4000"), "no token")).count();
        assert_eq!(more, TOLD_MAX - 3);
        assert!(strangers.last_refusal().is_some_and(|text| text.contains("64 refusals were reported")));
        let worker = |host: &str| Elsewhere { host: host.to_owned(), coordinator: "c:1".to_owned(), model: None };
        assert!(strangers.is_new_elsewhere(&worker("a")) && strangers.is_new_elsewhere(&worker("b")));
        assert!(!strangers.is_new_elsewhere(&worker("a")));
    }
}
