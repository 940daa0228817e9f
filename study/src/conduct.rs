//! Carries out the runs of a study that have not ended: each in processes of its own, several at a time, from one queue. A run that was
//! killed continues from its last checkpoint. What ended is never computed again.
//!
//! Not here: which runs there are (`design`), what they mean (`report`), and printing (the program).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::design::RunId;
use crate::error::StudyError;
use crate::file::Study;
use crate::folder::Folder;
use crate::images::Images;
use crate::measured::Measured;
use crate::place::{Lane, Place};
use crate::process::Program;
use crate::run::{Heard, Run};
use crate::tune::Tuned;

/// What happens while a study is carried out.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Some runs have ended already.
    Begun {
        /// Runs that have ended.
        ended: usize,
        /// All runs.
        all: usize,
    },
    /// A run has ended.
    Ended {
        /// What was measured.
        measured: &'a Measured,
        /// Whether it was measured on held-out images instead of test images.
        held_out: bool,
        /// Runs that have ended.
        ended: usize,
        /// All runs.
        all: usize,
        /// How long the rest will take, in seconds.
        seconds_left: f64,
    },
    /// Runs that choose learning rates begin.
    Tuning,
    /// Learning rates are chosen, and the runs of the study begin.
    Tuned(&'a [Tuned]),
    /// All runs have ended, and their layers are compared.
    Representing,
    /// Too few workers have come to a run. It goes on waiting.
    Waits {
        /// The name of its arm.
        arm: &'a str,
        /// Its seed.
        seed: u64,
    },
    /// A run was lost, and continues from its last checkpoint.
    Lost {
        /// The name of its arm.
        arm: &'a str,
        /// Its seed.
        seed: u64,
        /// How it ended.
        why: &'a str,
    },
}

/// What a lane tells.
enum Told {
    /// A step of a run was committed: which, of how many.
    Stepped(RunId, f64),
    Waits(RunId),
    Lost(RunId, String),
    Ended(RunId, Box<Measured>),
    Failed(StudyError),
}

/// Carries out all runs that have not ended, and returns what was measured in all of them.
///
/// # Errors
/// When a run fails for another reason than numbers that are no longer finite, or when `stop` is set. What has ended stays.
pub fn conduct(
    study: &Study,
    images: &Images,
    folder: &Folder,
    place: &Place,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<BTreeMap<RunId, Measured>, StudyError> {
    let runs = study.runs();
    let mut ended = folder.all_measured(study, images)?;
    progress(Progress::Begun { ended: ended.len(), all: runs.len() });
    let queue: VecDeque<RunId> = runs.iter().copied().filter(|id| !ended.contains_key(id)).collect();
    let mut pace = Pace::new(study, &queue);
    let queue = Mutex::new(queue);
    let failed = AtomicBool::new(false);
    let (told, heard) = channel();
    let run_lane = |lane: &Lane, told: Sender<Told>| {
        let is_over = || stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed);
        while !is_over() {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(id) = next else { break };
            let arm = &study.arms[id.arm];
            let program = Program { place, lane, data: &images.source };
            let job_sha256 = study.job_sha256(id, images);
            let run = Run { study, job_sha256, images: images.of_all_seeds(), arm, seed: arm.seeds[id.pair], program };
            let mut hear = |heard: Heard| {
                let told = match heard {
                    Heard::Stepped(share) => told.send(Told::Stepped(id, share)),
                    Heard::Waits => told.send(Told::Waits(id)),
                    Heard::Lost(why) => told.send(Told::Lost(id, why)),
                };
                // The receiver outlives all lanes.
                let _ = told;
            };
            let outcome = run.carry_out(&folder.run(study, id), &folder.model(&arm.name), &is_over, &mut hear);
            let said = match outcome {
                Ok(measured) => Told::Ended(id, Box::new(measured)),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    Told::Failed(error)
                }
            };
            let _ = told.send(said);
        }
    };
    let mut error = None;
    thread::scope(|scope| {
        // More lanes than runs would have nothing to do.
        for lane in place.lanes.iter().take(runs.len()) {
            let (told, run_lane) = (told.clone(), &run_lane);
            scope.spawn(move || run_lane(lane, told));
        }
        drop(told);
        for told in heard {
            match told {
                Told::Stepped(id, share) => pace.stepped(id, share),
                Told::Waits(id) => {
                    let arm = &study.arms[id.arm];
                    progress(Progress::Waits { arm: &arm.name, seed: arm.seeds[id.pair] });
                }
                Told::Lost(id, why) => {
                    let arm = &study.arms[id.arm];
                    progress(Progress::Lost { arm: &arm.name, seed: arm.seeds[id.pair], why: &why });
                }
                Told::Ended(id, measured) => {
                    pace.stepped(id, 1.0);
                    ended.insert(id, *measured);
                    let seconds_left = pace.seconds_left();
                    progress(Progress::Ended {
                        measured: &ended[&id],
                        held_out: study.settings.holdout.is_some(),
                        ended: ended.len(),
                        all: runs.len(),
                        seconds_left,
                    });
                }
                // A lane that was stopped because of another one's failure says less than the other one.
                Told::Failed(failure) => match &error {
                    None | Some(StudyError::Interrupted) => error = Some(failure),
                    Some(_) => {}
                },
            }
        }
    });
    match error {
        Some(error) => Err(error),
        None if ended.len() < runs.len() => Err(StudyError::Interrupted),
        None => Ok(ended),
    }
}

/// How fast the study goes.
struct Pace {
    began: Instant,
    /// Multiply-adds of an image of each run that had not ended, and which share of it is done.
    runs: BTreeMap<RunId, (f64, f64)>,
}

impl Pace {
    fn new(study: &Study, queue: &VecDeque<RunId>) -> Self {
        let cost = |id: &RunId| study.arms[id.arm].network.multiply_adds() as f64;
        Self { began: Instant::now(), runs: queue.iter().map(|id| (*id, (cost(id), 0.0))).collect() }
    }

    fn stepped(&mut self, id: RunId, share: f64) {
        if let Some((_, done)) = self.runs.get_mut(&id) {
            *done = share;
        }
    }

    fn seconds_left(&self) -> f64 {
        let total: f64 = self.runs.values().map(|(cost, _)| cost).sum();
        let done: f64 = self.runs.values().map(|(cost, share)| cost * share).sum();
        if done > 0.0 { self.began.elapsed().as_secs_f64() * (total - done) / done } else { 0.0 }
    }
}
