//! The part of `convoy plan` that estimates a step on other numbers of workers, and says where more workers stop paying.

use convoy_common::batch::Division;
use convoy_common::estimate::{self, End, Estimate, Rates};
use convoy_common::plan::Plan;
use serde_json::{Value, json};

use crate::numbers::{counted, rate};
use crate::settings::Misuse;
use crate::table::aligned;

/// The most micro-batches of a step that is estimated. More would take minutes.
const MICRO_BATCHES_MAX: usize = 1024;

/// Twice as many workers pay if a step becomes at least this many times as fast.
const PAYS: f64 = 1.25;

/// More replicas of the requested number of workers are worth a row if they make a step at least this many times as fast.
const MORE_REPLICAS_PAY: f64 = 1.05;
/// Numbers of replicas that are tried, and the most workers for which they are. Each takes an estimate of its own.
const REPLICAS_TRIED: usize = 8;
const WORKERS_TRIED: usize = 64;

/// What machines and links do, as said on the command line.
#[derive(clap::Args)]
pub(super) struct Machines {
    /// GFLOP/s of one worker, as `convoy bench --workers 1` measures it for the same model, batch and threads. With this flag, the
    /// output also has estimates of the duration of a step on 1, 2, 4, ... workers, with as few replicas as possible
    #[arg(long, value_name = "N", value_parser = rate)]
    gflops: Option<f64>,
    /// For the estimate (--gflops): Mbit/s of the link of each worker and of the coordinator, in each direction [default: no limit]
    #[arg(long, value_name = "N", value_parser = rate)]
    link_mbit: Option<f64>,
}

impl Machines {
    /// The rates, if an estimate is wanted.
    fn rates(&self) -> Result<Option<Rates>, Misuse> {
        match (self.gflops, self.link_mbit) {
            (None, None) => Ok(None),
            (None, Some(mbit)) => {
                Err(Misuse(format!("--link-mbit {mbit}: an estimate also needs --gflops, the rate of a worker")))
            }
            (Some(gflops), mbit) => {
                let bits = mbit.map_or(f64::INFINITY, |mbit| mbit * 1e6);
                Ok(Some(Rates { operations: gflops * 1e9, bits }))
            }
        }
    }
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
    /// Whether it is what the command line asks for.
    is_requested: bool,
    /// Whether it is one of 1, 2, 4, ... workers with as few replicas as possible.
    is_usual: bool,
    step: Estimate,
}

impl Estimates {
    /// Estimates a step of `plan`, and of the same network on 1, 2, 4, ... workers, up to one for each tower of each slot. `divided` divides
    /// the batch for a plan. With `tries_replicas`, it also looks for a better number of replicas for the workers of `plan`. None if no rate
    /// is given.
    ///
    /// # Errors
    /// When a rate is missing, or the step has too many micro-batches.
    pub(super) fn of(
        plan: &Plan,
        batch: usize,
        divided: impl Fn(&Plan) -> Division,
        tries_replicas: bool,
        machines: &Machines,
    ) -> Result<Option<Self>, Misuse> {
        let Some(rates) = machines.rates()? else { return Ok(None) };
        let row = |plan: &Plan, is_usual| {
            let division = divided(plan);
            check_division(division, batch)?;
            let step = estimate::step(plan, batch, division, rates);
            Ok(Row { workers: plan.workers, replicas: plan.placement.replicas(), is_requested: false, is_usual, step })
        };
        let doubled = std::iter::successors(Some(1_usize), |workers| workers.checked_mul(2));
        let usual = doubled.map_while(|workers| placed(plan, workers));
        let mut rows = usual.map(|usual| row(&usual, true)).collect::<Result<Vec<_>, Misuse>>()?;
        let is_it = |row: &Row| (row.workers, row.replicas) == (plan.workers, plan.placement.replicas());
        if !rows.iter().any(is_it) {
            rows.push(row(plan, false)?);
        }
        rows.iter_mut().for_each(|row| row.is_requested = is_it(row));
        if tries_replicas {
            let more = with_more_replicas(plan).map(|plan| row(&plan, false)).collect::<Result<Vec<_>, Misuse>>()?;
            let requested = rows.iter().find(|row| row.is_requested);
            let pays =
                |more: &Row| requested.is_some_and(|row| row.step.seconds >= MORE_REPLICAS_PAY * more.step.seconds);
            rows.extend(fastest(more.into_iter().filter(pays)));
        }
        rows.sort_by_key(|row| (row.workers, row.replicas));
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
            "\nestimate of a step with {gflops} GFLOP/s per worker and {link} (*: as requested)\n{}{}\n",
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

    /// The number of workers up to which each doubling pays.
    fn pays_up_to(&self) -> usize {
        let mut usual = self.rows.iter().filter(|row| row.is_usual);
        let Some(mut last) = usual.next() else { return 1 };
        for next in usual {
            if last.step.seconds < PAYS * next.step.seconds {
                break;
            }
            last = next;
        }
        last.workers
    }

    /// The row with the shortest step.
    fn fastest(&self) -> Option<&Row> {
        fastest(self.rows.iter())
    }

    fn verdict(&self) -> String {
        let Some(fastest) = self.fastest().filter(|_| self.rows.len() > 1) else {
            return "the job can use no more workers".to_owned();
        };
        let shortest = format!("the shortest step of the table has {}", counted(fastest.workers, "worker", "workers"));
        let pays = match self.pays_up_to() {
            1 => format!("two workers do not make a step {PAYS} times as fast as one"),
            last => format!("each doubling up to {last} workers makes a step at least {PAYS} times as fast"),
        };
        let replicas = self.better_replicas().map(|better| {
            let workers = counted(better.workers, "worker", "workers");
            format!(
                "; with --replicas {}, {workers} take {:.1} ms per step",
                better.replicas,
                better.step.seconds * 1e3
            )
        });
        format!("{pays}; {shortest}{}", replicas.unwrap_or_default())
    }

    /// The row of the requested number of workers with more replicas than requested, if there is one.
    fn better_replicas(&self) -> Option<&Row> {
        let requested = self.rows.iter().find(|row| row.is_requested)?;
        self.rows.iter().find(|row| row.workers == requested.workers && row.replicas > requested.replicas)
    }

    pub(super) fn as_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let Estimate { seconds, computing, carrying, busiest } = row.step;
            let whose = match busiest {
                End::Coordinator => None,
                End::Worker(worker) => Some(worker),
            };
            json!({
                "workers": row.workers, "replicas": row.replicas, "step_ms": seconds * 1e3,
                "images_per_second": self.batch as f64 / seconds, "speedup": self.speedup(row),
                "computing_ms": computing * 1e3, "link_ms": carrying * 1e3, "link_of_worker": whose, "requested": row.is_requested,
            })
        });
        json!({
            "gflops": self.rates.operations / 1e9,
            "link_mbit": if self.rates.bits.is_finite() { Some(self.rates.bits / 1e6) } else { None },
            "pays_up_to_workers": self.pays_up_to(), "fastest_workers": self.fastest().map(|row| row.workers),
            "better_replicas": self.better_replicas().map(|row| row.replicas),
            "steps": rows.collect::<Vec<_>>(),
        })
    }
}

/// The row with the shortest step.
fn fastest<R: std::borrow::Borrow<Row>>(rows: impl Iterator<Item = R>) -> Option<R> {
    rows.min_by(|one, other| one.borrow().step.seconds.total_cmp(&other.borrow().step.seconds))
}

/// The same job on as many workers, with more replicas.
fn with_more_replicas(plan: &Plan) -> impl Iterator<Item = Plan> {
    let placement = &plan.placement;
    let tried = if plan.workers <= WORKERS_TRIED { REPLICAS_TRIED } else { 0 };
    (placement.replicas() + 1..=placement.slots).take(tried).filter_map(|replicas| {
        let placed = Plan::new(plan.network.clone(), plan.workers, placement.slots, Some(replicas)).ok()?;
        Some(placed.linked(plan.links.clone()))
    })
}

/// Checks that a step has no more micro-batches than can be estimated.
fn check_division(Division { slots, micro_batches }: Division, batch: usize) -> Result<(), Misuse> {
    if slots.saturating_mul(micro_batches).min(batch) <= MICRO_BATCHES_MAX {
        return Ok(());
    }
    Err(Misuse(format!(
        "--slots {slots} and --micro-batches {micro_batches} make more than {MICRO_BATCHES_MAX} micro-batches; \
         --gflops can estimate a step of at most {MICRO_BATCHES_MAX}"
    )))
}

/// The same job on `workers` workers. None if there are too many.
fn placed(plan: &Plan, workers: usize) -> Option<Plan> {
    let placed = Plan::new(plan.network.clone(), workers, plan.placement.slots, None).ok()?;
    Some(placed.linked(plan.links.clone()))
}
