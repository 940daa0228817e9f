//! The part of `convoy plan` that estimates a step on other numbers of workers, and says where more workers stop paying.

use std::cmp::Ordering;
use std::error::Error;

use convoy_common::batch::Division;
use convoy_common::estimate::{self, End, Estimate, Rates};
use convoy_common::plan::Plan;
use convoy_common::text::counted;
use convoy_coordinator::JobError;
use serde_json::{Value, json};

use crate::numbers::rate;
use crate::settings::Misuse;
use crate::table::aligned;

/// The most micro-batches of a step whose duration is estimated. More would take minutes.
const ESTIMATE_MICRO_BATCHES_MAX: usize = 1024;

/// Twice as many workers pay if a step becomes at least this many times as fast.
const PAYS: f64 = 1.25;

/// More replicas of the requested workers get a row if they make a step at least this many times as fast.
const MORE_REPLICAS_PAY: f64 = 1.05;

/// The most workers for which more replicas are tried, and the most numbers of replicas that are tried. Each needs an estimate of its own.
const TRIED_MAX: usize = 32;

/// What machines and links do, as said on the command line.
#[derive(clap::Args)]
pub(super) struct Machines {
    /// GFLOP/s of one worker, as `convoy bench --workers 1` measures it for the same model, batch and threads. With this flag, the
    /// output also has estimates of the duration of a step on 1, 2, 4, ... workers, with as few replicas as possible, and says whether more
    /// replicas make a step on the requested workers shorter
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

/// The job whose step is estimated.
pub(super) struct Planned<'a> {
    pub(super) plan: &'a Plan,
    /// Images per step.
    pub(super) batch: usize,
    /// Divides a batch for a plan.
    pub(super) divided: &'a dyn Fn(&Plan) -> Result<Division, JobError>,
    /// Whether more replicas of the plan's workers are tried.
    pub(super) tries_replicas: bool,
}

impl Planned<'_> {
    /// The estimate for `plan`.
    ///
    /// # Errors
    /// When the step has too many micro-batches.
    fn row(&self, plan: &Plan, rates: Rates) -> Result<Row, Box<dyn Error>> {
        let division = (self.divided)(plan)?;
        check_division(division, self.batch, ESTIMATE_MICRO_BATCHES_MAX, "--gflops can estimate")?;
        let step = estimate::step(plan, self.batch, division, rates);
        let (workers, replicas) = (plan.workers, plan.placement.replicas());
        Ok(Row { workers, replicas, is_requested: false, is_usual: false, step })
    }

    /// The same job on `workers` workers. None if they, or the replicas, are too many.
    fn placed(&self, workers: usize, replicas: Option<usize>) -> Option<Plan> {
        let placed = Plan::new(self.plan.network.clone(), workers, self.plan.placement.slots, replicas).ok()?;
        Some(placed.linked(self.plan.links.clone()))
    }

    /// The best number of replicas for the requested workers, if it is larger than that of `requested` and pays.
    fn better_replicas(&self, requested: &Row, rates: Rates) -> Option<Row> {
        let more = requested.replicas + 1..=self.plan.placement.slots;
        let tried = if self.tries_replicas && requested.workers <= TRIED_MAX { TRIED_MAX } else { 0 };
        let placed = more.take(tried).filter_map(|replicas| self.placed(requested.workers, Some(replicas)));
        let best = placed.filter_map(|plan| self.row(&plan, rates).ok()).min_by(by_duration)?;
        (requested.step.seconds >= MORE_REPLICAS_PAY * best.step.seconds).then_some(best)
    }
}

impl Estimates {
    /// Estimates a step of a plan, and of the same network on 1, 2, 4, ... workers, up to one for each tower of each slot. A number of workers
    /// for which the step has too many micro-batches is left out. None if no rate is given.
    ///
    /// # Errors
    /// When a rate is missing, or the step of the plan has too many micro-batches.
    pub(super) fn of(planned: &Planned<'_>, machines: &Machines) -> Result<Option<Self>, Box<dyn Error>> {
        let Some(rates) = machines.rates()? else { return Ok(None) };
        let mut requested = planned.row(planned.plan, rates)?;
        requested.is_requested = true;
        let doubled = std::iter::successors(Some(1_usize), |workers| workers.checked_mul(2));
        let usual = doubled.map_while(|workers| planned.placed(workers, None));
        let mut rows: Vec<_> = usual.filter_map(|plan| planned.row(&plan, rates).ok()).collect();
        rows.iter_mut().for_each(|row| row.is_usual = true);
        rows.extend(planned.better_replicas(&requested, rates));
        match rows.iter_mut().find(|row| (row.workers, row.replicas) == (requested.workers, requested.replicas)) {
            Some(row) => row.is_requested = true,
            None => rows.push(requested),
        }
        rows.sort_by_key(|row| (row.workers, row.replicas));
        Ok(Some(Self { rates, batch: planned.batch, rows }))
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
        self.rows.iter().min_by(|one, other| by_duration(one, other))
    }

    fn verdict(&self) -> String {
        let Some(fastest) = self.fastest().filter(|_| self.rows.len() > 1) else {
            return "the job can use no more workers".to_owned();
        };
        let shortest = format!(
            "the shortest step of the table is on {} with {}",
            counted(fastest.workers, "worker", "workers"),
            counted(fastest.replicas, "replica", "replicas")
        );
        let pays = match self.pays_up_to() {
            1 => format!("two workers do not make a step {PAYS} times as fast as one"),
            last => format!("each doubling up to {last} workers makes a step at least {PAYS} times as fast"),
        };
        let replicas = self.better_replicas().map(|(requested, better)| {
            let [ms, ms_requested] = [better, requested].map(|row| row.step.seconds * 1e3);
            let workers = counted(better.workers, "worker", "workers");
            format!(
                "\nwith --replicas {}, a step on {workers} takes {ms:.1} ms instead of {ms_requested:.1}",
                better.replicas
            )
        });
        // A row with more replicas is not part of the comparison.
        format!("with as few replicas as possible, {pays}\n{shortest}{}", replicas.unwrap_or_default())
    }

    /// The requested row, and that of as many workers with more replicas, if there is one.
    fn better_replicas(&self) -> Option<(&Row, &Row)> {
        let requested = self.rows.iter().find(|row| row.is_requested)?;
        let is_better = |row: &&Row| row.workers == requested.workers && row.replicas > requested.replicas;
        Some((requested, self.rows.iter().find(is_better)?))
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
            "better_replicas": self.better_replicas().map(|(_, better)| better.replicas),
            "steps": rows.collect::<Vec<_>>(),
        })
    }
}

/// Checks that a step over `batch` images has at most `most` micro-batches.
pub(super) fn check_division(
    Division { slots, micro_batches }: Division,
    batch: usize,
    most: usize,
    what: &str,
) -> Result<(), Misuse> {
    if slots.saturating_mul(micro_batches).min(batch) <= most {
        return Ok(());
    }
    Err(Misuse(format!(
        "--slots {slots} and --micro-batches {micro_batches} make more than {most} micro-batches; {what} a step of at most {most}"
    )))
}

fn by_duration(one: &Row, other: &Row) -> Ordering {
    one.step.seconds.total_cmp(&other.step.seconds)
}
