//! The plan of a storm: which fault strikes which process at which step and phase. It is a pure function of the seed, and has a JSON
//! form, which is the ground truth of a report.

use convoy_common::misdeed::{Deed, Misdeed, Moment};
use convoy_common::random::Source;
use convoy_common::text::{NAME_MAX, brief};
use serde::{Deserialize, Serialize};

/// Steps before the first fault. In containers, also the steps after the last one.
const MARGIN: u64 = 24;
/// Steps after the last fault. Some faults need two workers, and a worker that was lost may be away for seconds.
const AFTER: u64 = 500;
/// Steps from one fault to the next.
const GAP: u64 = 5;
/// The same in containers, where it takes seconds to strike one and to start it again.
const CONTAINER_GAP: u64 = 60;
/// Steps after a container was cut from the network. Its worker notices after 30 seconds without an answer.
const CONTAINER_CUT_GAP: u64 = 1500;
/// Milliseconds for which a worker is stopped at least, so that it is suspected and not given up.
const STOP_MS: u64 = 3500;
/// Milliseconds for which a worker is stopped at least, so that it is given up.
const FREEZE_MS: u64 = 7000;
/// Milliseconds for which a container is cut from the network.
const CUT_MS: u64 = FREEZE_MS;
/// Milliseconds for which a worker sleeps.
const LIMP_MS: u64 = 400;
/// Milliseconds for which a worker's bytes are held back.
const DELAY_MS: u64 = 700;

/// No fault may last longer, in milliseconds.
const MILLISECONDS_MAX: u64 = 60_000;
/// Steps of a storm from a file. A job that is longer would take days.
const STEPS_MAX: u64 = 10_000_000;

/// A planned storm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with seed, steps, workers and faults")]
pub struct Storm {
    /// The seed that it was made from.
    pub seed: u64,
    /// Steps of the job.
    pub steps: u64,
    /// Workers of the job.
    pub workers: usize,
    /// In the order of their steps.
    pub faults: Vec<Planned>,
}

/// A planned fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with kind, worker, step, phase and milliseconds")]
pub struct Planned {
    /// What happens.
    pub kind: Kind,
    /// The worker that it happens to. None for the coordinator.
    pub worker: Option<usize>,
    /// It happens in this step, or in the next later one that has the phase.
    pub step: u64,
    /// The moment within the step.
    pub phase: Phase,
    /// How long it lasts at least, in milliseconds; 0 if it has no length.
    pub milliseconds: u64,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum Kind {
    /// A worker is killed.
    Kill,
    /// A worker is stopped, and continued before it is given up.
    Stop,
    /// A worker is stopped, and continued after it was given up.
    Freeze,
    /// A worker is slow.
    Limp,
    /// The connections of a worker to the coordinator are cut.
    Cut,
    /// A worker closes its connections to other workers.
    Unlink,
    /// The bytes of a worker are held back for a while.
    Delay,
    /// A worker sends a message with a bit flipped.
    Flip,
    /// A worker sends a truncated message.
    Truncate,
    /// A worker sends a message twice.
    Replay,
    /// A worker sends messages in the wrong order.
    Reorder,
    /// A worker sends a message that is too large.
    Oversize,
    /// The coordinator is killed, and started again.
    Coordinator,
}

/// A moment of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum Phase {
    /// A worker connects.
    Join,
    /// A worker is assigned its towers.
    Assign,
    /// A forward pass.
    Forward,
    /// A tensor is sent to other towers.
    Exchange,
    /// A backward pass.
    Backward,
    /// A piece of a gradient is sent to another replica.
    Reduce,
    /// A commit.
    Commit,
    /// A worker sends its state, for a snapshot or a checkpoint.
    State,
    /// A measurement.
    Measure,
    /// When the coordinator has reported the step.
    Reported,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 13] = [
        Kind::Kill,
        Kind::Stop,
        Kind::Freeze,
        Kind::Limp,
        Kind::Cut,
        Kind::Unlink,
        Kind::Delay,
        Kind::Flip,
        Kind::Truncate,
        Kind::Replay,
        Kind::Reorder,
        Kind::Oversize,
        Kind::Coordinator,
    ];

    /// Those that can happen to containers.
    pub const OF_CONTAINERS: [Kind; 5] = [Kind::Kill, Kind::Stop, Kind::Freeze, Kind::Cut, Kind::Coordinator];

    /// The fault that a worker causes itself, if it can. `milliseconds` is its duration.
    fn deed(self, milliseconds: u64) -> Option<Deed> {
        match self {
            Kind::Kill => Some(Deed::Kill),
            Kind::Stop | Kind::Freeze => Some(Deed::Stop),
            Kind::Limp => Some(Deed::Limp(milliseconds)),
            Kind::Unlink => Some(Deed::Unlink),
            Kind::Flip => Some(Deed::Flip),
            Kind::Truncate => Some(Deed::Truncate),
            Kind::Replay => Some(Deed::Replay),
            Kind::Reorder => Some(Deed::Reorder),
            Kind::Oversize => Some(Deed::Oversize),
            Kind::Cut | Kind::Delay | Kind::Coordinator => None,
        }
    }

    /// The phases in which it can happen.
    fn phases(self) -> &'static [Phase] {
        use Phase::{Assign, Backward, Commit, Exchange, Forward, Join, Measure, Reduce, Reported, State};
        match self {
            Kind::Kill => &[Forward, Exchange, Backward, Reduce, Commit, State, Assign, Join, Measure, Reported],
            Kind::Stop | Kind::Freeze => &[Forward, Exchange, Backward, Reduce, Commit, State, Reported],
            Kind::Limp => &[Forward, Backward, Commit],
            Kind::Unlink => &[Forward, Exchange, Backward, Reduce, Commit],
            Kind::Flip | Kind::Truncate | Kind::Replay | Kind::Reorder | Kind::Oversize => &[Exchange, Reduce, State],
            Kind::Cut | Kind::Delay | Kind::Coordinator => &[Reported],
        }
    }

    /// The phases that a planned storm of processes uses: those within a step, if there are any, because a worker causes such
    /// faults itself. With several replicas, `State` is left out: only one of them sends the state of its towers, so a worker may
    /// never do this. With a single replica, `Reduce` is left out, because no gradients are summed over replicas.
    fn planned_phases(self, has_replicas: bool) -> Vec<Phase> {
        let phases = self.phases();
        let within = phases.strip_suffix(&[Phase::Reported]).filter(|rest| !rest.is_empty()).unwrap_or(phases);
        let never = if has_replicas { Phase::State } else { Phase::Reduce };
        within.iter().copied().filter(|phase| *phase != never).collect()
    }

    fn milliseconds(self) -> u64 {
        match self {
            Kind::Stop => STOP_MS,
            Kind::Freeze => FREEZE_MS,
            Kind::Limp => LIMP_MS,
            Kind::Delay => DELAY_MS,
            _ => 0,
        }
    }
}

impl TryFrom<String> for Kind {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        of_name("kind", &name, &Kind::ALL)
    }
}

impl TryFrom<String> for Phase {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        of_name("phase", &name, &Phase::ALL)
    }
}

/// The item that a storm file calls `name`.
fn of_name<T: Copy + std::fmt::Debug>(key: &str, name: &str, all: &[T]) -> Result<T, String> {
    let named = |item: &T| format!("{item:?}").to_lowercase();
    all.iter().find(|item| named(item) == name).copied().ok_or_else(|| {
        let names: Vec<_> = all.iter().map(named).collect();
        format!("\"{key}\" is \"{}\", and must be one of {}", brief(name, NAME_MAX), names.join(", "))
    })
}

impl Phase {
    /// All phases.
    pub const ALL: [Phase; 10] = [
        Phase::Join,
        Phase::Assign,
        Phase::Forward,
        Phase::Exchange,
        Phase::Backward,
        Phase::Reduce,
        Phase::Commit,
        Phase::State,
        Phase::Measure,
        Phase::Reported,
    ];

    /// The moment of a worker, if it is one.
    fn moment(self, step: u64) -> Option<Moment> {
        match self {
            Phase::Join => Some(Moment::Join),
            Phase::Assign => Some(Moment::Assign),
            Phase::Measure => Some(Moment::Measure),
            Phase::Forward => Some(Moment::Forward(step)),
            Phase::Exchange => Some(Moment::Exchange(step)),
            Phase::Backward => Some(Moment::Backward(step)),
            Phase::Reduce => Some(Moment::Reduce(step)),
            Phase::Commit => Some(Moment::Commit(step)),
            Phase::State => Some(Moment::State(step)),
            Phase::Reported => None,
        }
    }
}

impl Planned {
    /// What the worker is told to do, if it does this to itself.
    pub fn misdeed(&self) -> Option<Misdeed> {
        Some(Misdeed { deed: self.kind.deed(self.milliseconds)?, moment: self.phase.moment(self.step)? })
    }
}

impl Storm {
    /// No fault at all, in a job of the same length.
    pub fn calm(&self) -> Self {
        Self { faults: Vec::new(), ..self.clone() }
    }

    /// Checks a storm that was read from a file, for a job with one replica or with several.
    ///
    /// # Errors
    /// When a fault can't happen: which, and why.
    pub fn check(&self, has_replicas: bool) -> Result<(), String> {
        if self.workers == 0 || self.steps == 0 {
            return Err(format!(
                "\"workers\" is {} and \"steps\" is {}; both must be at least 1",
                self.workers, self.steps
            ));
        }
        if self.steps > STEPS_MAX {
            return Err(format!("\"steps\" is {}; at most {STEPS_MAX} are allowed", self.steps));
        }
        if self.faults.is_empty() {
            return Err("\"faults\" is empty; it must hold at least one fault".to_owned());
        }
        if !self.faults.is_sorted_by_key(|fault| fault.step) {
            return Err("the faults are not in the order of their steps".to_owned());
        }
        for (index, Planned { kind, worker, step, phase, milliseconds }) in self.faults.iter().enumerate() {
            let wrong = |why: String| Err(format!("fault {}: {why}", index + 1));
            match worker {
                Some(_) if *kind == Kind::Coordinator => {
                    return wrong("\"worker\" must be null for the coordinator".to_owned());
                }
                None if *kind != Kind::Coordinator => return wrong("\"worker\" is missing or null".to_owned()),
                Some(worker) if *worker >= self.workers => {
                    return wrong(format!("\"worker\" is {worker}; must be from 0 to {}", self.workers - 1));
                }
                _ => {}
            }
            if !kind.phases().contains(phase) {
                let text = format!("{kind:?} can happen at {:?}, not at {phase:?}", kind.phases());
                return wrong(text.to_lowercase());
            }
            if *phase == Phase::Reduce && !has_replicas {
                return wrong(
                    "\"phase\" is reduce; the job has a single replica, and sums no gradients over replicas".to_owned(),
                );
            }
            if *milliseconds > MILLISECONDS_MAX {
                return wrong(format!("\"milliseconds\" is {milliseconds}; at most {MILLISECONDS_MAX} are allowed"));
            }
            if *milliseconds == 0 && kind.milliseconds() > 0 {
                return wrong("\"milliseconds\" is 0; this kind of fault lasts at least 1".to_owned());
            }
            if !(1..=self.steps).contains(step) {
                return wrong(format!("\"step\" is {step}; must be from 1 to {}", self.steps));
            }
        }
        Ok(())
    }

    /// Checks that all faults can happen to containers.
    ///
    /// # Errors
    /// When one can't: which.
    pub fn check_for_containers(&self) -> Result<(), String> {
        let can_happen = |fault: &Planned| Kind::OF_CONTAINERS.contains(&fault.kind) && fault.phase == Phase::Reported;
        let Some(index) = self.faults.iter().position(|fault| !can_happen(fault)) else { return Ok(()) };
        let Planned { kind, phase, .. } = &self.faults[index];
        let text = format!(
            "{kind:?} at {phase:?} can't happen to a container; its \"kind\" must be one of {:?}, and its \"phase\" {:?}",
            Kind::OF_CONTAINERS,
            Phase::Reported
        );
        Err(format!("fault {}: {}", index + 1, text.to_lowercase()))
    }

    /// A storm of `count` faults over `workers` workers in containers. The faults come from outside, so their phase is always
    /// [`Phase::Reported`].
    pub fn of_containers(seed: u64, count: usize, workers: usize) -> Self {
        let source = Source::new(seed, "storm of containers");
        let (mut step, mut faults) = (MARGIN, Vec::new());
        for round in 0.. {
            let place = |index: usize| round as u64 * 64 + index as u64;
            for kind in shuffled(&Kind::OF_CONTAINERS, |index| source.word(place(index))) {
                let worker = source.word(place(32 + kind as usize)) as usize % workers;
                let worker = (kind != Kind::Coordinator).then_some(worker);
                let milliseconds = if kind == Kind::Cut { CUT_MS } else { kind.milliseconds() };
                if faults.len() == count {
                    return Self { seed, steps: step + MARGIN, workers, faults };
                }
                faults.push(Planned { kind, worker, step, phase: Phase::Reported, milliseconds });
                step += if kind == Kind::Cut { CONTAINER_CUT_GAP } else { CONTAINER_GAP };
            }
        }
        Self { seed, steps: step + MARGIN, workers, faults }
    }

    /// A storm of `count` faults over `workers` workers, which may hold several replicas. All kinds are equally frequent, and the phases of
    /// each kind take turns. A fault at the moment of joining or assignment comes after a cut connection, which counts as a fault, too.
    pub fn planned(seed: u64, count: usize, workers: usize, has_replicas: bool) -> Self {
        let source = Source::new(seed, "storm");
        let mut faults: Vec<Planned> = Vec::new();
        let (mut step, mut round) = (MARGIN, 0);
        while faults.len() < count {
            for kind in shuffled(&Kind::ALL, |place| source.word(round as u64 * 64 + place as u64)) {
                let phases = kind.planned_phases(has_replicas);
                let phase = phases[round % phases.len()];
                let worker = source.word(round as u64 * 64 + 32 + kind as u64) as usize % workers;
                let worker = (kind != Kind::Coordinator).then_some(worker);
                let planned =
                    |kind: Kind, phase| Planned { kind, worker, step, phase, milliseconds: kind.milliseconds() };
                if matches!(phase, Phase::Join | Phase::Assign) {
                    faults.push(planned(Kind::Cut, Phase::Reported));
                }
                faults.push(planned(kind, phase));
                step += GAP;
            }
            round += 1;
        }
        faults.truncate(count);
        let last = faults.last().map_or(0, |fault| fault.step);
        Self { seed, steps: last + AFTER, workers, faults }
    }
}

/// The same in another order, which `word` gives for each place.
fn shuffled(kinds: &[Kind], word: impl Fn(usize) -> u32) -> Vec<Kind> {
    let mut kinds = kinds.to_vec();
    for place in (1..kinds.len()).rev() {
        kinds.swap(place, word(place) as usize % (place + 1));
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_a_function_of_its_seed_and_survives_json() {
        let storm = Storm::planned(7, 200, 2, false);
        assert_eq!(storm, Storm::planned(7, 200, 2, false));
        assert_ne!(storm, Storm::planned(8, 200, 2, false));
        let over_replicas = Storm::planned(7, 200, 4, true);
        assert!(over_replicas.faults.iter().all(|fault| fault.phase != Phase::State));
        assert_eq!(serde_json::from_str::<Storm>(&serde_json::to_string(&storm).unwrap()).unwrap(), storm);
    }

    #[test]
    fn containers_are_struck_from_outside() {
        let storm = Storm::of_containers(3, 20, 2);
        assert_eq!((storm.faults.len(), storm.check(false)), (20, Ok(())));
        for kind in Kind::OF_CONTAINERS {
            assert_eq!(storm.faults.iter().filter(|fault| fault.kind == kind).count(), 4, "{kind:?}");
        }
        assert!(storm.faults.iter().all(|fault| fault.misdeed().is_none()), "{storm:?}");
        assert_ne!(storm, Storm::of_containers(4, 20, 2));
    }

    #[test]
    fn two_hundred_faults_hold_fifteen_of_each_kind_in_every_phase() {
        for (seed, workers, has_replicas) in (0..20).flat_map(|seed| [(seed, 2, false), (seed, 4, true)]) {
            let storm = Storm::planned(seed, 200, workers, has_replicas);
            assert_eq!((storm.faults.len(), storm.check(has_replicas)), (200, Ok(())));
            for kind in Kind::ALL {
                let of_kind: Vec<_> = storm.faults.iter().filter(|fault| fault.kind == kind).collect();
                assert!(of_kind.len() >= 15, "{kind:?}: {}", of_kind.len());
                for phase in kind.planned_phases(has_replicas) {
                    assert!(of_kind.iter().any(|fault| fault.phase == phase), "{kind:?} {phase:?}");
                }
            }
            assert!(storm.faults.is_sorted_by_key(|fault| fault.step));
            assert!(
                storm
                    .faults
                    .iter()
                    .all(|fault| fault.step + AFTER <= storm.steps && fault.worker.is_none_or(|w| w < workers))
            );
        }
    }
}
