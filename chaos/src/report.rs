//! Compares a stormy run with a calm run: whether the bits are equal, and for each fault whether it happened, was found, and was
//! attributed to the right process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::conductor::{Fate, Finding, LOST, Ran, SUSPECTED};
use crate::storm::{Kind, Phase, Planned, Storm};

/// Faults less than this many seconds apart are simultaneous. The first one that is found ends the generation, and messages of the
/// others may be dropped with it.
const OVERLAP: f64 = 0.1;
/// The memory of a process in the stormy run may be this many percent of that in the calm run. What a fault leaves behind would add
/// up.
const GROWTH_MAX: u64 = 150;
/// The system's clock, in which processes say when something happened, may differ by this many seconds from the conductor's.
const SLACK: f64 = 0.02;
/// Seconds after a fault in which more may be said about its process.
const AFTERMATH: f64 = 3.0;

/// The result of a storm.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether every requirement below is met.
    pub survived: bool,
    /// Whether the final weights are the same to the bit.
    pub equal_weights: bool,
    /// Whether the loss of each step is the same to the bit.
    pub equal_losses: bool,
    /// Seconds of the calm run, from its start to its end.
    pub calm_seconds: f64,
    /// Seconds of the stormy run.
    pub stormy_seconds: f64,
    /// Calm time over stormy time.
    pub goodput: f64,
    /// Seconds of the stormy run for each fault.
    pub mean_seconds_between_faults: f64,
    /// Number of faults from which the coordinator recovered, without those of its own process.
    pub recovered: usize,
    /// What became of each planned fault.
    pub faults: Vec<Struck>,
    /// The same by kind.
    pub kinds: BTreeMap<Kind, Tally>,
    /// What the coordinator said about processes to which nothing had happened, in calm or in the storm.
    pub unexplained: Vec<Finding>,
    /// All that the coordinator said about processes in the storm, for those who ask why a fault counts as missed.
    pub findings: Vec<Finding>,
    /// Ends of worker processes that were not planned.
    pub unplanned: Vec<String>,
    /// The phases in which a fault happened.
    pub phases: BTreeSet<Phase>,
    /// Whether no process needed much more memory than in calm.
    pub flat_memory: bool,
    /// Highest resident memory of a coordinator process: calm and stormy, in bytes.
    pub coordinator_bytes: [u64; 2],
    /// Highest resident memory of a worker process, likewise.
    pub worker_bytes: [u64; 2],
}

/// What became of a planned fault.
#[derive(Clone, Debug, Serialize)]
pub struct Struck {
    /// Its kind.
    pub kind: Kind,
    /// Its phase.
    pub phase: Phase,
    /// The step that it was planned for.
    pub step: u64,
    /// Whether, when and to which process it happened.
    #[serde(flatten)]
    pub fate: Fate,
    /// Whether and how it was found.
    pub found: Found,
}

/// Whether and how a fault was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// It was found, and attributed to the right process.
    Named {
        /// Milliseconds from the fault until it was found.
        milliseconds: f64,
        /// What was said.
        what: String,
    },
    /// There was nothing to find: nobody lost anything.
    Nothing,
    /// The coordinator was killed before it could find it.
    Masked,
    /// Another fault happened at the same moment, and was found.
    Overlapped,
    /// It happened in a process that had been given up before, and had not been given towers again. The job lost nothing.
    Outside,
    /// It was not found.
    Missed,
}

/// The faults of a kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// Number that was planned.
    pub planned: usize,
    /// Number that happened.
    pub fired: usize,
    /// Number that was found and named.
    pub named: usize,
    /// Number that was missed.
    pub missed: usize,
    /// Number that happened in a process that had been given up before.
    pub outside: usize,
    /// Number that happened where there was nothing to find.
    pub nothing: usize,
    /// Milliseconds until each was found, ascending.
    pub milliseconds: Vec<f64>,
}

impl Report {
    /// Compares two runs of `storm`.
    pub fn new(storm: &Storm, calm: (&Ran, &Path), stormy: (&Ran, &Path)) -> Self {
        let ((calm, calm_out), (ran, out)) = (calm, stormy);
        let (faults, mut unexplained) = struck(storm, ran);
        unexplained.extend(calm.findings.iter().cloned());
        let unplanned = [calm.unplanned.clone(), ran.unplanned.clone()].concat();
        let (mut kinds, mut phases) = (BTreeMap::<Kind, Tally>::new(), BTreeSet::new());
        for fault in &faults {
            let tally = kinds.entry(fault.kind).or_default();
            tally.planned += 1;
            tally.fired += usize::from(fault.fate.fired.is_some());
            tally.missed += usize::from(fault.found == Found::Missed);
            tally.outside += usize::from(fault.found == Found::Outside);
            tally.nothing += usize::from(fault.found == Found::Nothing);
            if fault.fate.fired.is_some() {
                phases.insert(fault.phase);
            }
            if let Found::Named { milliseconds, .. } = fault.found {
                tally.named += 1;
                tally.milliseconds.push(milliseconds);
            }
        }
        kinds.values_mut().for_each(|tally| tally.milliseconds.sort_by(f64::total_cmp));
        let equal_weights = calm.weights_sha256 == ran.weights_sha256;
        let losses = [calm_out, out].map(steps_of);
        let equal_losses = losses[0] == losses[1] && losses[0].len() as u64 == storm.steps;
        let all_fired = faults.iter().all(|fault| fault.fate.fired.is_some());
        let none_missed = kinds.values().all(|tally| tally.missed == 0);
        let (coordinator_bytes, worker_bytes) =
            ([calm.coordinator_bytes, ran.coordinator_bytes], [calm.worker_bytes, ran.worker_bytes]);
        let flat_memory = [coordinator_bytes, worker_bytes]
            .iter()
            .all(|[calm, stormy]| *calm == 0 || *stormy <= calm * GROWTH_MAX / 100);
        Self {
            survived: equal_weights
                && equal_losses
                && all_fired
                && none_missed
                && unexplained.is_empty()
                && unplanned.is_empty()
                && flat_memory,
            equal_weights,
            equal_losses,
            calm_seconds: calm.seconds,
            stormy_seconds: ran.seconds,
            goodput: calm.seconds / ran.seconds,
            mean_seconds_between_faults: ran.seconds / faults.len().max(1) as f64,
            recovered: ran.incidents.len(),
            faults,
            kinds,
            unexplained,
            findings: ran.findings.clone(),
            unplanned,
            phases,
            flat_memory,
            coordinator_bytes,
            worker_bytes,
        }
    }
}

/// The lines of the steps in a run's metrics. A step that is recorded twice is there twice.
fn steps_of(out: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter(|line| line.contains("\"step\":")).map(str::to_owned).collect()
}

/// What became of each fault, and the findings that have no fault as their cause.
fn struck(storm: &Storm, ran: &Ran) -> (Vec<Struck>, Vec<Finding>) {
    let (mut named, mut unexplained) = (vec![None; storm.faults.len()], Vec::new());
    for finding in &ran.findings {
        match cause_of(finding, storm, ran, &named) {
            Some(number) => named[number] = Some(finding),
            None if is_aftermath(finding, storm, ran) => {}
            None => unexplained.push(finding.clone()),
        }
    }
    let fates = || storm.faults.iter().zip(&ran.fates);
    let deaths: Vec<f64> =
        fates().filter(|(fault, _)| fault.kind == Kind::Coordinator).filter_map(|(_, fate)| fate.fired).collect();
    let is_masked =
        |fault: &Planned, fate: &Fate, within: f64| deaths.iter().any(|death| is_within(*death, fault, fate, within));
    let struck = fates().enumerate().map(|(number, (fault, fate))| {
        let found = match (fate.fired, wanted(fault, fate, ran), named[number]) {
            (None, ..) => Found::Missed,
            (Some(_), None, _) => Found::Nothing,
            (Some(fired), _, Some(finding)) => {
                Found::Named { milliseconds: (finding.at - fired).max(0.0) * 1e3, what: finding.what.clone() }
            }
            (_, Some((_, within)), None) if is_masked(fault, fate, within) => Found::Masked,
            (Some(fired), ..) if is_overlapped(number, fired, ran, &named) => Found::Overlapped,
            _ if is_outside(fault, fate, storm, ran) => Found::Outside,
            _ => Found::Missed,
        };
        Struck { kind: fault.kind, phase: fault.phase, step: fault.step, fate: fate.clone(), found }
    });
    (struck.collect(), unexplained)
}

/// Whether a finding is about a process to which something had happened not long before: one that was stopped is suspected before it is
/// given up, for example, and a worker that is continued finds its connections closed.
fn is_aftermath(finding: &Finding, storm: &Storm, ran: &Ran) -> bool {
    storm.faults.iter().zip(&ran.fates).any(|(fault, fate)| {
        // These close no connection between workers.
        let may_unlink = !matches!(fault.kind, Kind::Limp | Kind::Delay);
        (finding.peer.is_none() || may_unlink)
            && fate.process.as_deref().is_some_and(|process| finding.names(process))
            && is_within(finding.at, fault, fate, AFTERMATH)
    })
}

/// Whether a moment is during a fault that happened, or up to `seconds` after its end.
fn is_within(moment: f64, fault: &Planned, fate: &Fate, seconds: f64) -> bool {
    fate.fired.is_some_and(|fired| (fired - SLACK..end_of(fault, fate) + seconds).contains(&moment))
}

/// When a fault ended. A stopped worker may be continued later than planned.
fn end_of(fault: &Planned, fate: &Fate) -> f64 {
    let planned = fault.milliseconds as f64 / 1e3;
    match (fault.kind, fate.fired) {
        (Kind::Stop | Kind::Freeze, Some(fired)) => fate.over.max(fired + planned),
        _ => fate.over + planned,
    }
}

/// The fault that a finding is about: the latest one of its process before it that is still unnamed, and not too long ago. Without one,
/// it may be a fault that was reported a little later, because the two come through different pipes.
fn cause_of(finding: &Finding, storm: &Storm, ran: &Ran, named: &[Option<&Finding>]) -> Option<usize> {
    let is_it = |number: &usize| {
        let (fault, fate) = (&storm.faults[*number], &ran.fates[*number]);
        let Some((events, within)) = wanted(fault, fate, ran) else { return false };
        // Of a connection that fails, one end or the other may report it.
        let is_about = |process| match fault.kind {
            Kind::Unlink => finding.peer.is_some() && finding.names(process),
            _ => finding.peer.is_none() && finding.process == process,
        };
        named[*number].is_none()
            && fate.process.as_deref().is_some_and(is_about)
            && is_within(finding.at, fault, fate, within)
            && events.contains(&finding.event.as_str())
    };
    let fired = |number: &usize| ran.fates[*number].fired.unwrap_or(0.0);
    let (before, after): (Vec<_>, Vec<_>) =
        (0..storm.faults.len()).filter(is_it).partition(|number| fired(number) <= finding.at);
    let latest = before.into_iter().max_by(|a, b| fired(a).total_cmp(&fired(b)));
    latest.or_else(|| after.into_iter().min_by(|a, b| fired(a).total_cmp(&fired(b))))
}

/// Whether a fault that was found happened at the same moment.
fn is_overlapped(number: usize, fired: f64, ran: &Ran, named: &[Option<&Finding>]) -> bool {
    let is_near = |other: f64| (other - fired).abs() < OVERLAP;
    (0..named.len())
        .any(|other| other != number && named[other].is_some() && ran.fates[other].fired.is_some_and(is_near))
}

/// Whether a fault happened in the old session of a process that had been given up, and did not know it because it was stopped: the
/// coordinator had reported its loss, and had not given it towers since. When such a process is continued, it sends frames of its old
/// session, and its next misdeed happens in them.
fn is_outside(fault: &Planned, fate: &Fate, storm: &Storm, ran: &Ran) -> bool {
    // These belong to a new session.
    if matches!(fault.phase, Phase::Join | Phase::Assign) {
        return false;
    }
    let (Some(fired), Some(process)) = (fate.fired, &fate.process) else { return false };
    let losses = ran.findings.iter().filter(|finding| finding.process == *process && finding.is_loss());
    let lost = losses.map(|finding| finding.at).filter(|at| *at < fired);
    let Some(lost) = lost.max_by(f64::total_cmp) else { return false };
    let was_stopped = storm.faults.iter().zip(&ran.fates).any(|(fault, fate)| {
        matches!(fault.kind, Kind::Stop | Kind::Freeze)
            && fate.process.as_ref() == Some(process)
            && fate.fired.is_some_and(|stopped| stopped < fired && end_of(fault, fate) + SLACK >= lost)
    });
    let is_between = |at: f64| (lost..fired).contains(&at);
    was_stopped && !ran.crews.iter().any(|crew| is_between(crew.at) && crew.processes.contains(process))
}

/// The events that say that a fault was found, and within how many seconds of its end. None if there is nothing to find.
fn wanted(fault: &Planned, fate: &Fate, ran: &Ran) -> Option<(&'static [&'static str], f64)> {
    match fault.kind {
        // The coordinator may relay all that this worker exchanges already.
        Kind::Unlink if !had_links(fate, ran) => None,
        Kind::Unlink => Some((LOST, 3.0)),
        // A worker that has no part in the job yet is no loss.
        Kind::Kill if fault.phase == Phase::Join => None,
        Kind::Kill => Some((LOST, 3.0)),
        // The loss is found at once where connections are closed, and by silence where a machine leaves the network.
        Kind::Cut => Some((LOST, 3.0)),
        Kind::Flip | Kind::Truncate | Kind::Replay | Kind::Reorder | Kind::Oversize => Some((LOST, 3.0)),
        Kind::Freeze => Some((LOST, 1.0)),
        Kind::Stop => Some((&[SUSPECTED], 0.5)),
        Kind::Limp | Kind::Delay | Kind::Coordinator => None,
    }
}

/// Whether the process of a fault was connected to other workers directly when the fault happened.
fn had_links(fate: &Fate, ran: &Ran) -> bool {
    let (Some(fired), Some(process)) = (fate.fired, &fate.process) else { return false };
    let crew = ran.crews.iter().rfind(|crew| crew.at <= fired);
    crew.is_some_and(|crew| crew.linked.contains(process))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conductor::Crew;

    fn finding(at: f64, event: &str, process: u32) -> Finding {
        let (event, process) = (event.to_owned(), process.to_string());
        Finding { at, event, process, peer: None, what: "it said so".to_owned() }
    }

    fn planned(kind: Kind) -> Planned {
        let milliseconds = match kind {
            Kind::Freeze => 7000,
            Kind::Stop => 3500,
            _ => 0,
        };
        Planned { kind, worker: Some(0), step: 9, phase: Phase::Forward, milliseconds }
    }

    fn storm(kinds: &[Kind]) -> Storm {
        Storm { seed: 1, steps: 20, workers: 2, faults: kinds.iter().map(|kind| planned(*kind)).collect() }
    }

    fn fate(fired: f64, process: u32) -> Fate {
        Fate { fired: Some(fired), over: fired, process: Some(process.to_string()) }
    }

    fn crew(at: f64, processes: &[u32]) -> Crew {
        let processes: BTreeSet<_> = processes.iter().map(ToString::to_string).collect();
        Crew { at, linked: processes.clone(), processes }
    }

    /// A worker that closes its links is named as one end of a broken one. Without links, there is nothing to find.
    #[test]
    fn closed_links_are_found_by_their_other_end_if_there_were_any() {
        let storm = storm(&[Kind::Unlink, Kind::Unlink, Kind::Kill]);
        let broken = |at: f64, process: u32, peer: u32| Finding {
            peer: Some(peer.to_string()),
            ..finding(at, "fault", process)
        };
        let relayed = Crew { linked: BTreeSet::new(), ..crew(1.005, &[7, 8]) };
        let ran = Ran {
            fates: vec![fate(1.0, 7), fate(2.0, 7), fate(30.0, 8)],
            findings: vec![broken(1.001, 8, 7), broken(30.1, 8, 7)],
            crews: vec![crew(0.5, &[7, 8]), relayed, crew(20.0, &[7, 8])],
            ..Ran::default()
        };
        let (found, unexplained) = struck(&storm, &ran);
        let found: Vec<_> = found.into_iter().map(|struck| struck.found).collect();
        assert!(matches!(found[0], Found::Named { .. }) && unexplained.is_empty(), "{found:?} {unexplained:?}");
        assert_eq!(found[1..], [Found::Nothing, Found::Missed], "a link that broke is not the loss of a worker");
        let linked = Ran { crews: vec![crew(0.5, &[7, 8])], ..ran.clone() };
        assert_eq!(struck(&storm, &linked).0[1].found, Found::Missed, "the links were there");
        let mut slow = storm;
        slow.faults[0].kind = Kind::Limp;
        assert_eq!(struck(&slow, &ran).1.len(), 1, "a slow worker closes no connection");
    }

    #[test]
    fn a_fault_is_found_if_its_own_process_is_named_afterwards_and_once() {
        let storm = storm(&[Kind::Kill, Kind::Kill, Kind::Kill, Kind::Stop, Kind::Flip, Kind::Cut]);
        let ran = Ran {
            fates: vec![fate(1.0, 7), fate(2.0, 7), fate(3.0, 8), fate(4.0, 9), fate(9.0, 7), fate(9.0, 8)],
            findings: vec![
                finding(1.1, "fault", 7),
                finding(3.1, "fault", 9),
                finding(6.1, "suspected", 9),
                finding(9.1, "fault", 8),
            ],
            crews: vec![crew(0.5, &[7, 8, 9]), crew(1.5, &[7, 8, 9])],
            ..Ran::default()
        };
        let found: Vec<_> = struck(&storm, &ran).0.into_iter().map(|struck| struck.found).collect();
        assert!(
            matches!(found[0], Found::Named { milliseconds, .. } if (99.0..101.0).contains(&milliseconds)),
            "{found:?}"
        );
        assert_eq!(found[1..3], [Found::Missed, Found::Missed], "found already, and another process");
        assert!(matches!(found[3], Found::Named { .. }) && matches!(found[5], Found::Named { .. }), "{found:?}");
        assert_eq!(found[4], Found::Overlapped);
        let unexplained = struck(&storm, &ran).1;
        assert!(
            unexplained.len() == 1 && unexplained[0].at == 3.1,
            "nothing had happened to process 9 yet: {unexplained:?}"
        );
        let accused = Ran { findings: vec![finding(5.0, "fault", 6)], ..ran };
        assert_eq!(struck(&storm, &accused).1.len(), 1, "nothing had happened to process 6");
    }

    /// The engine of a busy machine takes seconds to cut off a container. The time to find that begins when it is done.
    #[test]
    fn a_fault_that_takes_a_while_is_sought_from_its_end() {
        let storm = storm(&[Kind::Cut]);
        let ran = |over: f64| Ran {
            fates: vec![Fate { over, ..fate(1.0, 7) }],
            findings: vec![finding(8.0, "suspected", 7), finding(11.0, "fault", 7)],
            ..Ran::default()
        };
        let (slow, unexplained) = struck(&storm, &ran(9.0));
        assert!(matches!(slow[0].found, Found::Named { .. }) && unexplained.is_empty(), "{slow:?} {unexplained:?}");
        let (quick, unexplained) = struck(&storm, &ran(1.1));
        assert!(quick[0].found == Found::Missed && unexplained.len() == 2, "{quick:?} {unexplained:?}");
    }

    /// On a busy machine, a stopped worker is noticed and continued late. After that, nothing about it is laid on the stop.
    #[test]
    fn a_stop_ends_when_the_worker_is_continued() {
        let storm = storm(&[Kind::Freeze, Kind::Flip]);
        let ran = |over: f64, flipped: f64, lost: f64, later: f64| Ran {
            fates: vec![Fate { over, ..fate(1.0, 7) }, fate(flipped, 7)],
            findings: vec![finding(lost, "fault", 7), finding(later, "fault", 7)],
            crews: vec![crew(0.5, &[7, 8])],
            ..Ran::default()
        };
        // The clocks of the two processes differ a little.
        let (late, _) = struck(&storm, &ran(12.001, 13.0, 12.003, 12.003));
        assert!(matches!(late[0].found, Found::Named { .. }) && late[1].found == Found::Outside, "{late:?}");
        let (_, unexplained) = struck(&storm, &ran(8.0, 99.0, 6.0, 10.9));
        assert!(unexplained.is_empty(), "an aftermath: {unexplained:?}");
        let (_, unexplained) = struck(&storm, &ran(8.0, 99.0, 6.0, 14.0));
        assert_eq!(unexplained.len(), 1, "it had been continued long before");
    }

    /// A finding belongs to a fault before it, even if another one was reported right after it.
    #[test]
    fn a_finding_belongs_to_the_fault_before_it() {
        let storm = storm(&[Kind::Kill, Kind::Kill]);
        let findings = vec![finding(1.2, "fault", 7), finding(1.4, "fault", 7)];
        let ran = Ran { fates: vec![fate(1.0, 7), fate(1.2001, 7)], findings, ..Ran::default() };
        let found: Vec<_> = struck(&storm, &ran).0.into_iter().map(|struck| struck.found).collect();
        let milliseconds = |found: &Found| match found {
            Found::Named { milliseconds, .. } => *milliseconds as u64,
            _ => u64::MAX,
        };
        assert!(
            (199..=200).contains(&milliseconds(&found[0])) && (199..=200).contains(&milliseconds(&found[1])),
            "{found:?}"
        );
    }

    /// A process that was given up has nothing to lose, until it holds towers again.
    #[test]
    fn a_fault_of_a_process_that_was_given_up_is_not_sought_until_it_holds_towers_again() {
        let storm = storm(&[Kind::Freeze, Kind::Flip, Kind::Flip]);
        let ran = Ran {
            fates: vec![fate(1.0, 7), fate(9.0, 7), fate(30.0, 7)],
            findings: vec![finding(6.0, "fault", 7)],
            crews: vec![crew(0.5, &[7, 8]), crew(6.5, &[8, 9]), crew(20.0, &[7, 8])],
            ..Ran::default()
        };
        let found: Vec<_> = struck(&storm, &ran).0.into_iter().map(|struck| struck.found).collect();
        assert!(matches!(found[0], Found::Named { .. }), "{found:?}");
        assert_eq!(found[1..], [Found::Outside, Found::Missed], "at 30 s it holds towers");
        let lost_before = Ran { findings: vec![finding(0.9, "gone", 7)], ..ran.clone() };
        assert_eq!(
            struck(&storm, &lost_before).0[1].found,
            Found::Outside,
            "it was stopped before it noticed its loss"
        );
        let long_before = Ran { fates: vec![fate(-30.0, 7), fate(9.0, 7), fate(30.0, 7)], ..ran.clone() };
        assert_eq!(struck(&storm, &long_before).0[1].found, Found::Missed, "it had been continued before it was lost");
        let suspected = Ran { findings: vec![finding(6.0, "suspected", 7)], ..ran.clone() };
        assert_eq!(struck(&storm, &suspected).0[1].found, Found::Missed, "it was not given up");
        let mut assigned = storm.clone();
        assigned.faults[1].phase = Phase::Assign;
        assert_eq!(struck(&assigned, &ran).0[1].found, Found::Missed, "an assignment belongs to a new session");
        let mut cut = storm.clone();
        cut.faults[0].kind = Kind::Cut;
        let cut = struck(&cut, &Ran { findings: vec![finding(1.1, "fault", 7)], ..ran }).0;
        assert_eq!(cut[1].found, Found::Missed, "a process that was not stopped has no old session to go on with");
    }

    #[test]
    fn a_fault_before_the_death_of_the_coordinator_may_be_masked_and_one_that_did_not_happen_is_missed() {
        let storm = storm(&[Kind::Kill, Kind::Coordinator, Kind::Limp, Kind::Limp]);
        let fates = vec![fate(1.0, 7), fate(1.5, 3), fate(2.0, 7), Fate::default()];
        let found: Vec<_> =
            struck(&storm, &Ran { fates, ..Ran::default() }).0.into_iter().map(|struck| struck.found).collect();
        assert_eq!(found, [Found::Masked, Found::Nothing, Found::Nothing, Found::Missed]);
    }
}
