//! The account of a trace: the time of each worker by what it was spent on, which adds up to the step; the critical path; the
//! bottleneck; bytes and times compared with the plan. Pure: it computes numbers from a trace.
//!
//! What a wait is attributed to depends on when the tensor was computed and relayed. Until another worker has computed it, the wait
//! is for that worker. After that it is for the sender's link, and once the coordinator has the whole tensor, for the receiver's
//! link. Time that nobody recorded is a row of its own.

use std::collections::BTreeMap;

use convoy_common::index::{PerWorker, SegmentIndex, WorkerIndex};
use convoy_common::plan::Plan;
use convoy_common::trace::{Activity, Span};

use super::file::{StepTrace, Trace, step_span};

mod batches;
mod figures;
mod timeline;
mod ways;

use batches::Batches;
pub use figures::{
    Account, ExchangeAccount, PathShare, SegmentAccount, SlowStep, Stretch, Use, Uses, Verdict, WorkerAccount,
};
use timeline::{Timeline, layer_use, plain_use};
use ways::Ways;

/// A bottleneck costs at least this share of a step.
const WORTH_NAMING: f64 = 0.05;
/// The number of slow steps that are described one by one.
const SLOWEST: usize = 3;

/// The account of all complete steps of a trace, or of only one. None if there is no complete step.
pub fn account(trace: &Trace, plan: &Plan, only: Option<u64>) -> Option<Account> {
    let chosen = trace.steps.iter().filter(|(step, _)| only.is_none_or(|only| only == **step));
    let of_step = |(step, traced): (&u64, _)| StepAccount::of(*step, traced, plan, trace.about.batch);
    let all: Vec<_> = chosen.filter_map(of_step).collect();
    // Steps that were kept because they were slow don't count for the mean, unless there are no others.
    let (slow, usual): (Vec<_>, Vec<_>) = all.into_iter().partition(|step| step.traced.is_slow);
    let (steps, slow) = if usual.is_empty() { (slow, usual) } else { (usual, slow) };
    let count = steps.len() as f64;
    if steps.is_empty() {
        return None;
    }
    let mean = |of: &dyn Fn(&StepAccount) -> u64| steps.iter().map(|step| of(step) as f64).sum::<f64>() / count;
    let step_ns = mean(&|step| step.length);
    let workers: PerWorker<_> = plan.all_workers().map(|worker| worker_account(worker, &steps)).collect();
    let path = path_shares(&steps);
    let batches = Batches::of(steps.iter().map(|step| step.images));
    let images = batches.mean(|images| images as u64) * count;
    Some(Account {
        steps: steps.iter().map(|step| step.step).collect(),
        step_ns,
        coordinator_idle_ns: mean(&|step| step.idle),
        coordinator_awaits_images_ns: mean(&|step| step.awaiting),
        images_a_step: images / count,
        images_per_second: images * 1e9 / (step_ns * count).max(1.0),
        verdict: verdict(plan, &workers, &path, (trace.about.batch, step_ns), mean(&|step| step.awaiting)),
        exchanges: ways::exchanges(&steps.iter().map(|step| step.traced).collect::<Vec<_>>(), plan, &batches),
        segments: segments(&steps, plan, &batches),
        slowest: slowest(steps.iter().chain(&slow), &workers, step_ns),
        layers: plan.network.layers.iter().map(|layer| layer.name.clone()).collect(),
        workers,
        path,
    })
}

/// The account of one step.
struct StepAccount<'a> {
    step: u64,
    length: u64,
    idle: u64,
    awaiting: u64,
    images: usize,
    workers: PerWorker<Share>,
    path: BTreeMap<Stretch, u64>,
    traced: &'a StepTrace,
}

/// A worker's share in a step.
struct Share {
    uses: Uses,
    segments: BTreeMap<(SegmentIndex, bool), u64>,
    encoding: u64,
    decoding: u64,
    uncertainty: u64,
    correction: u64,
    dropped: u64,
    resident: u64,
}

impl<'a> StepAccount<'a> {
    /// None unless every process has committed the step. `batch` is the number of images of a full batch.
    fn of(step: u64, traced: &'a StepTrace, plan: &Plan, batch: usize) -> Option<Self> {
        let own = step_span(&traced.coordinator)?;
        let ways = Ways::of(traced, plan);
        let timelines =
            traced.workers.iter().map(|part| Timeline::of(&part.spans, own.start)).collect::<Option<PerWorker<_>>>()?;
        let within = |span: &&Span| span.start >= own.start && span.end <= own.end;
        let own_spans = || traced.coordinator.spans.iter().filter(within);
        let idle = own_spans().filter(|span| span.activity == Activity::Idle).map(Span::length).sum();
        let awaiting = own_spans().filter(|span| matches!(span.activity, Activity::AwaitImages(_)));
        let awaiting = awaiting.map(Span::length).sum();
        let workers = timelines.iter_enumerated().map(|(worker, timeline)| {
            let part = &traced.workers[worker];
            let (encoding, decoding) = transfers(&part.spans);
            let offset = part.offset;
            Share {
                uses: uses(timeline, worker, &ways),
                segments: timeline.segments(),
                encoding,
                decoding,
                uncertainty: offset.map_or(0, |offset| offset.uncertainty),
                correction: offset.map_or(0, |offset| offset.correction.unsigned_abs()),
                dropped: part.dropped,
                resident: part.resident_bytes,
            }
        });
        let workers = workers.collect();
        let path = ways.critical_path(&timelines, own);
        let images = traced.figures.map_or(batch, |figures| figures.images);
        Some(Self { step, length: own.length(), idle, awaiting, images, workers, path, traced })
    }
}

fn transfers(spans: &[Span]) -> (u64, u64) {
    spans.iter().fold((0, 0), |(encoding, decoding), span| match &span.activity {
        Activity::Send(transfer) => (transfer.busy.saturating_add(encoding), decoding),
        Activity::Receive(transfer) => (encoding, transfer.busy.saturating_add(decoding)),
        _ => (encoding, decoding),
    })
}

/// What a worker spent a step on.
fn uses(timeline: &Timeline, worker: WorkerIndex, ways: &Ways) -> Uses {
    let mut uses = Uses::new();
    let mut add = |doing, ns| *uses.entry(doing).or_default() += ns;
    let mut at = timeline.start;
    for span in &timeline.main {
        let start = span.start.max(at);
        add(Use::Unexplained, start - at);
        at = span.end.max(at);
        match &span.activity {
            Activity::Segment(_) => {
                let mut rest = at - start;
                for (doing, ns) in timeline.within(span).filter_map(layer_use) {
                    let ns = ns.min(rest);
                    rest -= ns;
                    add(doing, ns);
                }
                add(Use::Segments, rest);
            }
            Activity::AwaitTensor(_) | Activity::AwaitOrder => {
                ways.blame(worker, span).into_iter().for_each(|(doing, part)| add(doing, part.within(start, at)));
            }
            activity => add(plain_use(activity), at - start),
        }
    }
    uses
}

fn worker_account(worker: WorkerIndex, steps: &[StepAccount]) -> WorkerAccount {
    let count = steps.len() as f64;
    let shares = || steps.iter().map(|step| &step.workers[worker]);
    let mut uses: BTreeMap<Use, f64> = BTreeMap::new();
    for (doing, ns) in shares().flat_map(|share| &share.uses) {
        *uses.entry(*doing).or_default() += *ns as f64 / count;
    }
    let unexplained = |share: &Share| {
        let all: u64 = share.uses.values().sum();
        share.uses.get(&Use::Unexplained).copied().unwrap_or(0) as f64 / all.max(1) as f64
    };
    WorkerAccount {
        worker,
        step_ns: uses.values().sum(),
        uses: uses.into_iter().collect(),
        unexplained_share_max: shares().map(unexplained).fold(0.0, f64::max),
        encoding_ns: shares().map(|share| share.encoding as f64).sum::<f64>() / count,
        decoding_ns: shares().map(|share| share.decoding as f64).sum::<f64>() / count,
        clock_uncertainty_ns: shares().map(|share| share.uncertainty).max().unwrap_or(0),
        clock_correction_ns: shares().map(|share| share.correction).max().unwrap_or(0),
        dropped: shares().map(|share| share.dropped).sum(),
        resident_bytes: shares().map(|share| share.resident).max().unwrap_or(0),
    }
}

fn path_shares(steps: &[StepAccount]) -> Vec<PathShare> {
    let mut shares: BTreeMap<Stretch, (f64, usize)> = BTreeMap::new();
    for step in steps {
        let largest = step.path.iter().max_by_key(|(_, ns)| **ns).map(|(stretch, _)| *stretch);
        for (stretch, ns) in &step.path {
            let (mean, bound) = shares.entry(*stretch).or_default();
            *mean += *ns as f64 / steps.len() as f64;
            *bound += usize::from(largest == Some(*stretch));
        }
    }
    let shares = shares.into_iter();
    let mut shares: Vec<_> = shares.map(|(stretch, (mean_ns, bound))| PathShare { stretch, mean_ns, bound }).collect();
    shares.sort_by(|a, b| b.mean_ns.total_cmp(&a.mean_ns));
    shares
}

/// The layer or the link with the largest excess over the others of its kind, or the images, if steps wait longer for them.
fn verdict(
    plan: &Plan,
    workers: &PerWorker<WorkerAccount>,
    path: &[PathShare],
    (batch, step_ns): (usize, f64),
    image_wait_ns: f64,
) -> Verdict {
    let images = Some(Verdict::Images { excess_ns: image_wait_ns });
    let found = [slowest_layer(plan, workers, batch), slowest_link(plan, path), slowest_peer_link(plan, path), images];
    let excess = |verdict: &Option<Verdict>| match verdict {
        Some(
            Verdict::Layer { excess_ns, .. }
            | Verdict::Link { excess_ns, .. }
            | Verdict::PeerLink { excess_ns, .. }
            | Verdict::Images { excess_ns },
        ) => *excess_ns,
        _ => 0.0,
    };
    let largest = found.into_iter().max_by(|a, b| excess(a).total_cmp(&excess(b))).flatten();
    largest.filter(|found| excess(&Some(found.clone())) > WORTH_NAMING * step_ns).unwrap_or(Verdict::Balanced)
}

fn slowest_layer(plan: &Plan, workers: &PerWorker<WorkerAccount>, batch: usize) -> Option<Verdict> {
    let segment_of =
        |layer: usize| plan.segments.position(|segment| segment.layers.contains(&layer)).unwrap_or(SegmentIndex(0));
    let load = |worker: WorkerIndex, layer: usize| {
        let work = plan.work_of(worker, segment_of(layer), batch);
        work.into_iter().map(|(_, samples)| samples).sum::<usize>() as f64
    };
    // Per tower and image: a worker that holds more towers has more to do, but isn't slow.
    let of_one = |account: &WorkerAccount, doing: Use| {
        let Use::Layer { layer, .. } = doing else { return None };
        let spent = account.uses.iter().find(|(other, _)| *other == doing)?;
        Some(spent.1 / load(account.worker, layer)).filter(|ns| ns.is_finite())
    };
    let mut found: Option<(f64, Verdict)> = None;
    for account in workers {
        for (doing, _) in &account.uses {
            let Use::Layer { layer, backward } = *doing else { continue };
            let others = workers.iter().filter(|other| other.worker != account.worker);
            let others: Vec<_> = others.filter_map(|other| of_one(other, *doing)).collect();
            let (Some(own), Some(usual)) = (of_one(account, *doing), median(others)) else { continue };
            let excess_ns = (own - usual) * load(account.worker, layer);
            if found.as_ref().is_none_or(|(most, _)| excess_ns > *most) {
                let segment = segment_of(layer);
                let (worker, layer) = (account.worker, plan.network.layers[layer].name.clone());
                found = Some((excess_ns, Verdict::Layer { worker, segment, layer, backward, excess_ns }));
            }
        }
    }
    found.map(|(_, verdict)| verdict)
}

fn slowest_link(plan: &Plan, path: &[PathShare]) -> Option<Verdict> {
    let of = |worker: WorkerIndex| {
        let own = path.iter().find(|share| share.stretch == Stretch::Link { worker });
        own.map_or(0.0, |share| share.mean_ns)
    };
    let worker = plan.all_workers().max_by(|a, b| of(*a).total_cmp(&of(*b)))?;
    let usual = median(plan.all_workers().filter(|other| *other != worker).map(of).collect())?;
    Some(Verdict::Link { worker, excess_ns: of(worker) - usual })
}

fn slowest_peer_link(plan: &Plan, path: &[PathShare]) -> Option<Verdict> {
    let partners = |from: WorkerIndex| plan.partners(from).into_iter().map(move |to| (from, to));
    let direct = plan.all_workers().flat_map(partners).filter(|(from, to)| plan.links.is_direct(*from, *to));
    let of = |(from, to): (WorkerIndex, WorkerIndex)| {
        let own = path.iter().find(|share| share.stretch == Stretch::PeerLink { from, to });
        own.map_or(0.0, |share| share.mean_ns)
    };
    let mut all: Vec<_> = direct.map(|link| (link, of(link))).collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    let ((from, to), longest) = all.pop()?;
    let usual = median(all.into_iter().map(|(_, ns)| ns).collect())?;
    Some(Verdict::PeerLink { from, to, excess_ns: longest - usual })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

fn segments(steps: &[StepAccount], plan: &Plan, batches: &Batches) -> Vec<SegmentAccount> {
    let mut means: BTreeMap<(SegmentIndex, bool, WorkerIndex), f64> = BTreeMap::new();
    for step in steps {
        for (worker, share) in step.workers.iter_enumerated() {
            for ((segment, backward), ns) in &share.segments {
                *means.entry((*segment, *backward, worker)).or_default() += *ns as f64 / steps.len() as f64;
            }
        }
    }
    let account = |((segment, backward, worker), mean_ns)| {
        let planned_multiply_adds = batches.mean(|images| multiply_adds(plan, segment, (worker, images), backward));
        SegmentAccount { segment, worker, backward, planned_multiply_adds, mean_ns }
    };
    means.into_iter().map(account).collect()
}

/// Multiply-adds of a worker in a step. A backward pass computes the gradients of weights and of inputs, each at the cost of the forward
/// pass. The first layer's inputs are images, which need no gradient.
fn multiply_adds(plan: &Plan, segment: SegmentIndex, (worker, batch): (WorkerIndex, usize), backward: bool) -> u64 {
    let network = &plan.network;
    let work = plan.work_of(worker, segment, batch);
    let of_layer = |index: usize| -> u64 {
        let layer = &network.layers[index];
        let units: usize = work.iter().map(|(tower, samples)| network.slice(index, *tower).len() * samples).sum();
        let forward = layer.fan_in() as u64 * (units * layer.output.pixels()) as u64;
        match backward {
            true if index > 0 => 2 * forward,
            _ => forward,
        }
    };
    plan.segments[segment].layers.clone().map(of_layer).sum()
}

fn slowest<'a>(
    steps: impl Iterator<Item = &'a StepAccount<'a>>,
    workers: &PerWorker<WorkerAccount>,
    step_ns: f64,
) -> Vec<SlowStep> {
    let mut slowest: Vec<_> = steps.filter(|step| step.length as f64 > step_ns).collect();
    slowest.sort_by_key(|step| std::cmp::Reverse(step.length));
    slowest.truncate(SLOWEST);
    let slow = |step: &StepAccount| {
        let mut longer: Vec<_> = workers
            .iter()
            .flat_map(|account| {
                let usual: BTreeMap<_, _> = account.uses.iter().copied().collect();
                let own = step.workers[account.worker].uses.iter();
                own.map(move |(doing, ns)| (account.worker, *doing, *ns as f64 - usual.get(doing).unwrap_or(&0.0)))
            })
            .filter(|(_, _, ns)| *ns > 0.0)
            .collect();
        longer.sort_by(|a, b| b.2.total_cmp(&a.2));
        longer.truncate(SLOWEST);
        SlowStep { step: step.step, step_ns: step.length, longer }
    };
    slowest.into_iter().map(slow).collect()
}
