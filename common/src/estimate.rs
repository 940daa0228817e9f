//! How long a step takes: the plan of a job, executed on paper. Every worker computes at a given rate, in the order of a real worker, and every
//! link carries a given number of bits per second in each direction. Pure.
//!
//! Not here: the latency of a link, the time of the loss and of a commit, layers without multiply-adds, measurements and snapshots. A rate
//! that was measured over whole steps covers what a worker does besides multiplying.

mod events;
mod links;
mod reductions;
mod simulation;

use crate::batch::Division;
use crate::plan::Plan;

pub use links::End;
pub use simulation::{Estimate, Rates};

/// Estimates a step over `batch` images, divided as `division` says. The slots are those of the plan.
pub fn step(plan: &Plan, batch: usize, division: Division, rates: Rates) -> Estimate {
    simulation::Simulation::new(plan, batch, division, rates).run()
}

#[cfg(test)]
mod tests;
