//! The part of `convoy plan` that estimates a step on other numbers of workers, and says where more workers stop paying.

use convoy_common::batch::Division;
use convoy_common::estimate::{self, End, Estimate, Rates};
use convoy_common::links::Links;
use convoy_common::model::Network;
use convoy_common::plan::Plan;
use serde_json::{Value, json};

use crate::numbers::rate;
use crate::table::aligned;

/// The most micro-batches of a step that is estimated. More would take minutes.
const MICRO_BATCHES_MAX: usize = 4096;

/// Twice as many workers pay if a step becomes at least this many times as fast.
const PAYS: f64 = 1.25;

/// What machines and links do, as said on the command line.
#[derive(clap::Args)]
pub(super) struct Machines {
    /// For the estimate: Mbit/s of the link of each worker and of the coordinator, in each direction [default: no limit]
    #[arg(long, value_name = "N", value_parser = rate, requires = "gflops")]
    link_mbit: Option<f64>,
    /// Estimate the step on 1, 2, 4, ... workers, each with as few replicas as possible: GFLOP/s of one worker, as `convoy bench --workers 1`
    /// measures it
    #[arg(long, value_name = "N", value_parser = rate)]
    gflops: Option<f64>,
}

impl Machines {
    /// The rates, if an estimate is wanted.
    fn rates(&self) -> Option<Rates> {
        let bits = self.link_mbit.map_or(f64::INFINITY, |mbit| mbit * 1e6);
        self.gflops.map(|gflops| Rates { operations: gflops * 1e9, bits })
    }
}

/// A step that is too long to be estimated.
#[derive(Debug, thiserror::Error)]
#[error(
    "--gflops: cannot estimate a step of {micro_batches} micro-batches; at most {MICRO_BATCHES_MAX} are possible, with fewer --slots or \
     --micro-batches"
)]
pub(super) struct TooLong {
    micro_batches: usize,
}

/// The estimates of a step on several numbers of workers.
pub(super) struct Estimates {
    rates: Rates,
    batch: usize,
    rows: Vec<Row>,
}

/// The estimate for one number of workers.
struct Row {
    workers: usize,
    replicas: usize,
    is_requested: bool,
    step: Estimate,
}

impl Estimates {
    /// Estimates a step of `plan`, and of the same network on 1, 2, 4, ... workers, up to one for each tower of each slot. None if no rate
    /// is given.
    ///
    /// # Errors
    /// When the step has too many micro-batches.
    pub(super) fn of(
        plan: &Plan,
        batch: usize,
        division: Division,
        machines: &Machines,
    ) -> Result<Option<Self>, TooLong> {
        let Some(rates) = machines.rates() else { return Ok(None) };
        let micro_batches = division.slots.saturating_mul(division.micro_batches).min(batch);
        if micro_batches > MICRO_BATCHES_MAX {
            return Err(TooLong { micro_batches });
        }
        let row = |plan: &Plan, is_requested| {
            let step = estimate::step(plan, batch, division, rates);
            Row { workers: plan.workers, replicas: plan.placement.replicas(), is_requested, step }
        };
        let doubled = std::iter::successors(Some(1_usize), |workers| workers.checked_mul(2));
        let others = doubled.map_while(|workers| placed(&plan.network, workers, division.slots, &plan.links));
        let mut rows: Vec<_> =
            others.filter(|other| other.workers != plan.workers).map(|other| row(&other, false)).collect();
        rows.push(row(plan, true));
        rows.sort_by_key(|row| row.workers);
        Ok(Some(Self { rates, batch, rows }))
    }

    /// A table, and a sentence about the number of workers up to which more of them pay.
    pub(super) fn as_table(&self) -> String {
        let head =
            ["workers", "replicas", "ms per step", "images/s", "speedup", "busiest worker computes", "busiest link"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.rows.iter().map(|row| self.cells(row)));
        let link = if self.rates.bits.is_finite() {
            format!("links of {} Mbit/s", self.rates.bits / 1e6)
        } else {
            "links without a limit".to_owned()
        };
        let gflops = self.rates.operations / 1e9;
        format!(
            "\nestimate of a step with {gflops} GFLOP/s per worker and {link}\n{}{}\n",
            aligned(&rows, &[6]),
            self.verdict()
        )
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let Estimate { seconds, computing, carrying, busiest } = row.step;
        let ms = |seconds: f64| format!("{:.1}", seconds * 1e3);
        let whose = match busiest {
            End::Coordinator => "the coordinator's".to_owned(),
            End::Worker(worker) => format!("worker {worker}'s"),
        };
        vec![
            format!("{}{}", row.workers, if row.is_requested { " *" } else { "" }),
            row.replicas.to_string(),
            ms(seconds),
            format!("{:.1}", self.batch as f64 / seconds),
            format!("{:.2}", self.speedup(row)),
            format!("{} ms", ms(computing)),
            if carrying > 0.0 { format!("{whose}: {} ms", ms(carrying)) } else { String::new() },
        ]
    }

    /// How many times as fast as with one worker.
    fn speedup(&self, row: &Row) -> f64 {
        self.rows.first().map_or(1.0, |one| one.step.seconds / row.step.seconds)
    }

    /// The first number of workers from which twice as many do not pay.
    fn pays_up_to(&self) -> Option<(usize, usize, f64)> {
        let times = |one: &Row, other: &Row| one.step.seconds / other.step.seconds;
        let doubles = |one: &Row| self.rows.iter().find(|other| other.workers == 2 * one.workers);
        let mut pairs = self
            .rows
            .iter()
            .filter_map(|one| doubles(one).map(|other| (one.workers, other.workers, times(one, other))));
        pairs.find(|(_, _, times)| *times < PAYS)
    }

    /// The most workers of the table.
    fn most(&self) -> usize {
        self.rows.last().map_or(1, |row| row.workers)
    }

    fn verdict(&self) -> String {
        match self.pays_up_to() {
            Some((last, next, times)) => {
                format!(
                    "more workers stop paying at {last}: with {next}, a step is {times:.2} times as fast as with {last}"
                )
            }
            None if self.rows.len() < 2 => "the job can use no more workers; more --slots allow more".to_owned(),
            None => format!("each doubling of the workers makes a step at least {PAYS} times as fast"),
        }
    }

    pub(super) fn as_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let Estimate { seconds, computing, carrying, .. } = row.step;
            json!({
                "workers": row.workers, "replicas": row.replicas, "step_ms": seconds * 1e3,
                "images_per_second": self.batch as f64 / seconds, "speedup": self.speedup(row),
                "computing_ms": computing * 1e3, "link_ms": carrying * 1e3,
            })
        });
        json!({
            "gflops": self.rates.operations / 1e9,
            "link_mbit": if self.rates.bits.is_finite() { Some(self.rates.bits / 1e6) } else { None },
            "pays_up_to_workers": self.pays_up_to().map_or_else(|| self.most(), |(last, _, _)| last),
            "steps": rows.collect::<Vec<_>>(),
        })
    }
}

/// The network on `workers` workers. None if there are too many.
fn placed(network: &Network, workers: usize, slots: usize, links: &Links) -> Option<Plan> {
    Some(Plan::new(network.clone(), workers, slots, None).ok()?.linked(links.clone()))
}
