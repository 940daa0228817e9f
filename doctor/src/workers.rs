//! The workers that connect to a coordinator, and the ways between them: what an examination means.
//!
//! Not here: measuring (`convoy_coordinator::examine`).

use convoy_common::text::counted;
use convoy_coordinator::examine::{Examination, Examined, Unlinked};
use convoy_coordinator::observe::{Event, Observer};

use crate::finding::Finding;

/// Bytes per second below which a connection is slow: 100 Mbit/s. AlexNet with a batch of 128 sends each worker some 70 MB per step.
const SLOW: f64 = 12.5e6;
/// A round trip above this, in milliseconds, costs more than most layers: a step has several exchanges, one after the other.
const FAR_MS: f64 = 10.0;

/// What is heard while a coordinator waits for workers.
pub struct Notes<F> {
    /// Called with each line of progress.
    tell: F,
    findings: Vec<Finding>,
}

impl<F: FnMut(&str)> Notes<F> {
    /// Nothing yet.
    pub fn new(tell: F) -> Self {
        Self { tell, findings: Vec::new() }
    }

    /// What was heard, and what an examination of `wanted` workers has found.
    pub fn findings(self, examination: &Examination, wanted: usize) -> Vec<Finding> {
        let workers = examination.workers.iter_enumerated();
        let each = workers.map(|(worker, examined)| of_worker(&format!("worker {worker}"), examined));
        let have = examination.workers.len();
        let missing = (have < wanted).then(|| {
            Finding::wrong(
                "workers",
                format!("{have} of {wanted} have connected"),
                "start the others; if this process has refused some, it says why above; `convoy doctor --join` checks the way from their machines",
            )
        });
        let are_linked = have > 1 && examination.workers.iter().all(|examined| examined.measured.is_ok());
        let links = match examination.unlinked.as_slice() {
            [] if are_linked => vec![Finding::ok("links", "all workers can connect to each other")],
            unlinked => unlinked.iter().map(of_link).collect(),
        };
        self.findings.into_iter().chain(missing).chain(each).chain(links).collect()
    }
}

impl<F: FnMut(&str)> Observer for Notes<F> {
    fn on(&mut self, event: Event) {
        match event {
            Event::Waiting { have, want, start, .. } if have < want => {
                (self.tell)(&format!("waiting for workers: {have} of {want} have connected; start more with: {start}"));
            }
            Event::Notice { text } => (self.tell)(&text),
            Event::Refused { address, reason } => self.findings.push(Finding::warning(
                "worker",
                format!("one at {address} was refused: {reason}"),
                "give it what it lacks, or ignore it if it is none of yours",
            )),
            Event::Elsewhere { host, coordinator, .. } => self.findings.push(Finding::warning(
                "worker",
                format!("one on {host} serves the coordinator at {coordinator}"),
                "end that job, or wait until it has ended",
            )),
            Event::Gone { host, why, .. } => self.findings.push(Finding::warning(
                "worker",
                format!("one on {host} has left again: {why}"),
                "its own log says more",
            )),
            _ => {}
        }
    }
}

fn of_worker(subject: &str, examined: &Examined) -> Finding {
    let hello = &examined.hello;
    let described = format!(
        "{} ({}), version {}, {}, {}",
        hello.host,
        examined.address,
        hello.convoy_version,
        counted(hello.threads, "thread", "threads"),
        hello.instruction_set
    );
    let measured = match &examined.measured {
        Ok(measured) => measured,
        Err(trouble) => {
            return Finding::wrong(
                subject,
                format!("{described}: {trouble}"),
                "its own log says more; run `convoy doctor` on its machine",
            );
        }
    };
    let round_trip = measured.round_trip.as_secs_f64() * 1e3;
    // In the unit of `convoy plan --link-mbit`.
    let [to, from] = [measured.to_worker, measured.from_worker].map(|speed| speed * 8.0 / 1e6);
    let found = format!("{described}; answers in {round_trip:.2} ms; {to:.0} Mbit/s to it, {from:.0} Mbit/s from it");
    if round_trip > FAR_MS {
        let advice = "far away: each exchange of a step takes a round trip; use machines of one site";
        return Finding::warning(subject, found, advice);
    }
    if measured.slower() < SLOW {
        let advice =
            "slower than 100 Mbit/s: check cables, switches and Wi-Fi; `convoy plan` shows the bytes of a step";
        return Finding::warning(subject, found, advice);
    }
    if hello.convoy_version != env!("CARGO_PKG_VERSION") {
        return Finding::warning(
            subject,
            found,
            "it has another version than this coordinator; install the same one everywhere",
        );
    }
    Finding::ok(subject, found)
}

fn of_link(unlinked: &Unlinked) -> Finding {
    let Unlinked { pair: [one, other], why } = unlinked;
    let found = format!("workers {one} and {other} can't connect to each other: {why}");
    let advice = "give both workers an --exchange-listen port that the other one can reach; until then, the coordinator relays what they \
                  send, which doubles the bytes";
    Finding::warning("links", found, advice)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use convoy_common::wire::Hello;
    use convoy_coordinator::examine::{Measured, Trouble};

    use super::*;
    use crate::finding::Verdict;

    fn examined(measured: Result<Measured, Trouble>) -> Examined {
        let hello = Hello {
            protocol_version: 1,
            convoy_version: env!("CARGO_PKG_VERSION").to_owned(),
            process_id: 7,
            threads: 8,
            instruction_set: "avx2".to_owned(),
            host: "w1".to_owned(),
            exchange_address: None,
        };
        Examined { hello, address: "10.0.0.8:4".to_owned(), measured }
    }

    /// Megabits per second in both directions, and microseconds of a round trip.
    fn over(to_worker: f64, from_worker: f64, round_trip: u64) -> Result<Measured, Trouble> {
        let round_trip = Duration::from_micros(round_trip);
        Ok(Measured { round_trip, to_worker: to_worker * 125e3, from_worker: from_worker * 125e3 })
    }

    #[test]
    fn a_worker_is_slow_far_or_of_another_version_by_its_figures() {
        let advice = |examined: &Examined| of_worker("worker 0", examined).advice.unwrap_or_default();
        let well = of_worker("worker 0", &examined(over(940.0, 930.0, 210)));
        let figures = "8 threads, avx2; answers in 0.21 ms; 940 Mbit/s to it, 930 Mbit/s from it";
        assert!(well.verdict == Verdict::Ok && well.found.ends_with(figures), "{well:?}");
        assert!(advice(&examined(over(940.0, 99.0, 210))).starts_with("slower than 100 Mbit/s"));
        // Whatever is far away is slow as well; the distance is the cause.
        assert!(advice(&examined(over(20.0, 20.0, 11_000))).starts_with("far away"));
        let mut other = examined(over(940.0, 930.0, 210));
        other.hello.convoy_version = "0.0.9".to_owned();
        assert!(advice(&other).starts_with("it has another version"));
        let lost = of_worker("worker 0", &examined(Err(Trouble::Lost("reset".to_owned()))));
        assert!(lost.verdict == Verdict::Wrong && lost.found.ends_with("its connection was lost: reset"), "{lost:?}");
    }
}
