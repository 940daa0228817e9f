//! `convoy trace`: reads the trace of a run, and prints where the time went.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use convoy_common::index::WorkerIndex;
use convoy_common::model::Network;
use convoy_common::plan::Plan;
use convoy_coordinator::record::TRACE;
use convoy_coordinator::trace::account::{Account, Stretch, Use, Verdict, WorkerAccount, account};
use convoy_coordinator::trace::file::{self, Trace};
use convoy_coordinator::trace::page::page;

use crate::numbers::{AT_LEAST_1, whole};
use crate::pages::Wrote;
use crate::settings::Misuse;
use crate::table::aligned;
use crate::{Outcome, output, pages};

/// The command line of `convoy trace`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a run, or a trace file
    run: PathBuf,
    /// Show only this step. Not with --compare or --html
    #[arg(long, value_name = "N", value_parser = whole::<u64>(AT_LEAST_1))]
    step: Option<u64>,
    /// Compare with another run or trace file, and show the activities whose time differs, and by how much
    #[arg(long, value_name = "RUN", conflicts_with = "step")]
    compare: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Write an HTML page with the same tables, and the timelines of some steps. It works offline. Not with --json, --compare or --step
    /// [default file: trace.html in the run's folder; for a trace file, the same name with .html]
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with_all = ["json", "compare", "step"])]
    html: Option<Option<PathBuf>>,
}

/// Parts of the critical path that are shown.
const PATH_SHOWN: usize = 12;
/// Differences between two runs that are shown.
const DIFFERENCES_SHOWN: usize = 15;

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    let (trace, plan, found) = accounted(&arguments.run, arguments.step)?;
    if let Some(file) = &arguments.html {
        return write_page(
            arguments,
            file.as_deref(),
            &page(&trace, &plan, &found, summary(&plan, &found).trim(), &verdict(&found)),
        );
    }
    let other = arguments.compare.as_deref().map(|run| accounted(run, None)).transpose()?;
    let text = match (&other, arguments.json) {
        (None, true) => format!("{:#}\n", serde_json::to_value(&found)?),
        (Some((_, _, other)), true) => format!("{:#}\n", serde_json::json!({ "run": found, "other": other })),
        (None, false) => described(&trace, &plan, &found),
        (Some((other_trace, other_plan, other)), false) => {
            unlike([(&trace, &plan), (other_trace, other_plan)]) + &compared(&found, other)
        }
    };
    output::print(&text)?;
    Ok(Outcome::Done)
}

fn write_page(arguments: &Arguments, file: Option<&Path>, text: &str) -> Result<Outcome, Box<dyn Error>> {
    let beside =
        || if arguments.run.is_dir() { arguments.run.join("trace.html") } else { arguments.run.with_extension("html") };
    let path = file.map_or_else(beside, Path::to_owned);
    if let Wrote::File = pages::write(&path, text)? {
        output::print(&format!("wrote {}\n", path.display()))?;
    }
    Ok(Outcome::Done)
}

/// A run's trace, its plan, and where the time went.
pub(crate) fn accounted(run: &Path, step: Option<u64>) -> Result<(Trace, Plan, Account), Box<dyn Error>> {
    if !run.exists() {
        return Err(format!("{} does not exist; give a run's folder or its {TRACE}", run.display()).into());
    }
    let path = if run.is_dir() { run.join(TRACE) } else { run.to_owned() };
    let trace = file::read(&path)?;
    let plan = Plan::placed(Network::parse(&trace.about.model)?, trace.about.placement.clone())?;
    let plan = plan.linked(trace.about.links.clone());
    let found = account(&trace, &plan, step).ok_or_else(|| nothing_in(&trace, &plan, &path, step))?;
    Ok((trace, plan, found))
}

fn nothing_in(trace: &Trace, plan: &Plan, path: &Path, step: Option<u64>) -> Box<dyn Error> {
    let is_whole = |step: u64| account(trace, plan, Some(step)).is_some();
    // Without --step, no step is whole.
    let listed = trace.steps.keys().copied().filter(|found| step.is_none() || is_whole(*found));
    let steps: Vec<_> = listed.map(|step| step.to_string()).collect();
    let shown = match steps.as_slice() {
        [only] => format!("step {only}"),
        [] => "no whole step".to_owned(),
        [first, .., last] if steps.len() > 20 => format!("{} of steps {first} to {last}", steps.len()),
        _ => format!("steps {}", steps.join(", ")),
    };
    let path = path.display();
    match step {
        Some(step) => Misuse(format!("--step {step}: {path} does not hold all of this step; it holds {shown}")).into(),
        None => format!("no step is complete in {path}, which holds parts of {shown}").into(),
    }
}

fn described(trace: &Trace, plan: &Plan, found: &Account) -> String {
    let mut text = summary(plan, found);
    notes(trace).into_iter().for_each(|note| text += &format!("note: {note}\n"));
    text += "\n";
    text += &worker_table(found);
    text += "\n";
    text += &path_table(found);
    let _ = write!(text, "\nbottleneck: {}\n\n", verdict(found));
    text += &exchange_table(plan, found);
    text += "\n";
    text += &segment_table(found);
    if !found.slowest.is_empty() {
        text += "\n";
        text += &slowest(found);
    }
    text
}

fn summary(plan: &Plan, found: &Account) -> String {
    let network = &plan.network;
    let (first, last) = (found.steps.first().unwrap_or(&0), found.steps.last().unwrap_or(&0));
    let steps = match found.steps.len() {
        1 => format!("step {first}"),
        count => format!("the mean of {count} steps between {first} and {last}"),
    };
    format!(
        "{}, {} tower{} on {} worker{}, {} image{} per step: {steps};\na step takes {:.2} ms, {:.0} images/s; the coordinator is idle {:.0} % of the time{}\n",
        network.name,
        network.towers,
        s(network.towers),
        plan.workers,
        s(plan.workers),
        images(found.images_a_step),
        if found.images_a_step == 1.0 { "" } else { "s" },
        found.step_ns / 1e6,
        found.images_per_second,
        found.coordinator_idle_ns / found.step_ns.max(1.0) * 100.0,
        match found.coordinator_awaits_images_ns / found.step_ns.max(1.0) * 100.0 {
            0.0 => String::new(),
            percent => format!(", and waits for images {percent:.0} %"),
        }
    )
}

/// The number of images per step, with a fraction only if steps differ.
fn images(mean: f64) -> String {
    if mean.fract() == 0.0 { format!("{mean:.0}") } else { format!("{mean:.1}") }
}

fn notes(trace: &Trace) -> Vec<String> {
    let mut notes = Vec::new();
    if trace.is_cut {
        notes.push("the trace is incomplete: its job is still running, or was killed".to_owned());
    }
    if trace.unreadable > 0 {
        notes.push(format!("invalid lines of the trace, which were ignored: {}", trace.unreadable));
    }
    let dropped: u64 = trace.steps.values().flat_map(|step| &step.workers).map(|part| part.dropped).sum();
    if dropped > 0 {
        notes.push(format!("spans that are missing because a buffer was full: {dropped}"));
    }
    notes.extend(trace.incidents.iter().map(|(at, what)| format!("at {:.1} s: {what}", *at as f64 / 1e9)));
    notes
}

pub(crate) fn worker_table(found: &Account) -> String {
    aligned(&worker_rows(found), &[0])
}

/// One column per worker: first computing, then other work, then waits.
pub(crate) fn worker_rows(found: &Account) -> Vec<Vec<String>> {
    let of = |worker: WorkerIndex, doing: Use| {
        let uses = &found.workers[worker].uses;
        uses.iter().find(|(other, _)| *other == doing).map_or(0.0, |(_, ns)| *ns)
    };
    let row = |name: String, value: &dyn Fn(WorkerIndex) -> f64| {
        let cells = found.workers.keys().map(|worker| ms(value(worker)));
        [name].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let mut all: Vec<Use> =
        found.workers.iter().flat_map(|worker| worker.uses.iter().map(|(doing, _)| *doing)).collect();
    all.push(Use::Unexplained);
    all.sort();
    all.dedup();
    let is_layer = |doing: &Use| matches!(doing, Use::Layer { .. });
    let computing =
        |worker: WorkerIndex| all.iter().filter(|doing| is_layer(doing)).map(|doing| of(worker, *doing)).sum();
    let mut rows = vec![
        ["ms per step".to_owned()]
            .into_iter()
            .chain(found.workers.keys().map(|w| format!("worker {w}")))
            .collect::<Vec<_>>(),
    ];
    rows.push(row("computing".to_owned(), &computing));
    for doing in &all {
        let indent = if is_layer(doing) { "  " } else { "" };
        rows.push(row(format!("{indent}{}", name(found, *doing)), &|worker| of(worker, *doing)));
    }
    rows.push(row("the step".to_owned(), &|worker| found.workers[worker].step_ns));
    rows.push(row("network thread: encoding sent tensors".to_owned(), &|worker| found.workers[worker].encoding_ns));
    rows.push(row("network thread: decoding received tensors".to_owned(), &|worker| found.workers[worker].decoding_ns));
    rows.push(row("uncertainty of its clock".to_owned(), &|worker| found.workers[worker].clock_uncertainty_ns as f64));
    let megabytes = |worker: &WorkerAccount| format!("{:.0}", worker.resident_bytes as f64 / 1e6);
    rows.push(["MB of resident memory".to_owned()].into_iter().chain(found.workers.iter().map(megabytes)).collect());
    rows
}

fn path_table(found: &Account) -> String {
    let mut rows = vec![["critical path", "ms per step", "steps where it was largest"].map(str::to_owned).to_vec()];
    let shown = found.path.iter().take(PATH_SHOWN);
    rows.extend(shown.map(|share| {
        let through = match share.stretch {
            Stretch::Work { worker, doing } => format!("worker {worker}: {}", name(found, doing)),
            Stretch::Link { worker } => format!("the link of worker {worker}"),
            Stretch::PeerLink { from, to } => format!("the link from worker {from} to worker {to}"),
            Stretch::Coordinator => "the coordinator".to_owned(),
        };
        let bound = if share.bound > 0 { format!("{} step{}", share.bound, s(share.bound)) } else { String::new() };
        vec![through, ms(share.mean_ns), bound]
    }));
    let rest: f64 = found.path.iter().skip(PATH_SHOWN).map(|share| share.mean_ns).sum();
    if rest > 0.0 {
        rows.push(vec!["all else".to_owned(), ms(rest), String::new()]);
    }
    aligned(&rows, &[0])
}

pub(crate) fn verdict(found: &Account) -> String {
    match &found.verdict {
        Verdict::Layer { worker, segment, layer, backward, excess_ns } => format!(
            "worker {worker}, in the {} pass of {layer} (segment {segment}): {} ms per step longer than the median of the other workers",
            pass(*backward),
            ms(*excess_ns)
        ),
        Verdict::Link { worker, excess_ns } => format!(
            "the link between worker {worker} and the coordinator, which is on the critical path for {} ms more per step than the median of the other links",
            ms(*excess_ns)
        ),
        Verdict::PeerLink { from, to, excess_ns } => format!(
            "the link from worker {from} to worker {to}, which is on the critical path for {} ms more per step than the median of the other links between workers",
            ms(*excess_ns)
        ),
        Verdict::Images { excess_ns } => format!(
            "the images, which steps wait for {} ms until they are decoded (run.json says which part of that is reading, decoding and scaling); more cores, --data-threads or --data-memory help",
            ms(*excess_ns)
        ),
        Verdict::Balanced => "none: no worker and no link delays the others by more than 5 % of a step".to_owned(),
    }
}

fn exchange_table(plan: &Plan, found: &Account) -> String {
    let head = ["exchange", "before", "pass", "MB planned", "MB sent", "ms per tensor", "max ms", "% hidden"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for exchange in &found.exchanges {
        let (index, before) = match exchange.exchange {
            None if exchange.backward => ("gradients".to_owned(), "the commit".to_owned()),
            None => ("images".to_owned(), plan.network.layers[0].name.clone()),
            Some(index) if index == plan.logits_exchange() => ("logits".to_owned(), "the loss".to_owned()),
            Some(index) => {
                (index.to_string(), plan.network.layers[plan.segments[index.segment_after()].layers.start].name.clone())
            }
        };
        rows.push(vec![
            index,
            before,
            pass(exchange.backward).to_owned(),
            format!("{:.3}", exchange.planned_bytes / 1e6),
            format!("{:.3}", exchange.bytes / 1e6),
            ms(exchange.mean_ns),
            ms(exchange.max_ns as f64),
            exchange.hidden_share.map(|share| format!("{:.0}", share * 100.0)).unwrap_or_default(),
        ]);
    }
    aligned(&rows, &[0, 1, 2])
}

fn segment_table(found: &Account) -> String {
    let head = ["segment", "worker", "pass", "M multiply-adds planned", "ms", "GFLOP/s"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for segment in &found.segments {
        let flops = 2.0 * segment.planned_multiply_adds;
        rows.push(vec![
            segment.segment.to_string(),
            segment.worker.to_string(),
            pass(segment.backward).to_owned(),
            format!("{:.1}", segment.planned_multiply_adds / 1e6),
            ms(segment.mean_ns),
            format!("{:.1}", flops / segment.mean_ns.max(1.0)),
        ]);
    }
    aligned(&rows, &[2])
}

fn slowest(found: &Account) -> String {
    let mut text = "slowest steps\n".to_owned();
    for slow in &found.slowest {
        let longer = slow
            .longer
            .iter()
            .map(|(worker, doing, ns)| format!("worker {worker} {} +{}", name(found, *doing), ms(*ns)));
        let more = (slow.step_ns as f64 - found.step_ns) / 1e6;
        let took = slow.step_ns as f64 / 1e6;
        let longer = longer.collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "  step {} took {took:.2} ms, {more:.2} ms more than the mean: {longer}", slow.step);
    }
    text
}

/// A note about each setting in which two runs differ.
fn unlike(runs: [(&Trace, &Plan); 2]) -> String {
    let different = |what: &str, value: &dyn Fn(&Trace, &Plan) -> String| {
        let [here, other] = runs.map(|(trace, plan)| value(trace, plan));
        (here != other).then(|| format!("note: the runs differ in {what}: {here} here, {other} in the other\n"))
    };
    let [model, other_model] = runs.map(|(trace, _)| &trace.about.model);
    let [name, other_name] = runs.map(|(_, plan)| &plan.network.name);
    let is_edited = (model != other_model && name == other_name)
        .then(|| format!("note: the runs differ in the model file, although both models are called {name}\n"));
    let notes = [
        different("the model", &|_, plan| plan.network.name.clone()),
        is_edited,
        different("workers", &|_, plan| plan.workers.to_string()),
        different("replicas", &|_, plan| plan.placement.replicas().to_string()),
        different("slots", &|_, plan| plan.placement.slots.to_string()),
        different("images per step", &|trace, _| trace.about.batch.to_string()),
        different("bytes from worker to worker without the coordinator", &|trace, plan| {
            plan.step_traffic(trace.about.batch).across.to_string()
        }),
    ];
    notes.into_iter().flatten().collect()
}

/// What takes longer in `found` than in `other`, and what takes less.
fn compared(found: &Account, other: &Account) -> String {
    let uses = |account: &Account| -> BTreeMap<String, f64> {
        let each = account
            .workers
            .iter()
            .flat_map(|worker| worker.uses.iter().map(move |(doing, ns)| (worker.worker, *doing, *ns)));
        each.map(|(worker, doing, ns)| (format!("worker {worker}: {}", name(account, doing)), ns)).collect()
    };
    let (mut here, there) = (uses(found), uses(other));
    for key in there.keys() {
        here.entry(key.clone()).or_default();
    }
    let mut all: Vec<_> =
        here.into_iter().map(|(key, ns)| (ns, there.get(&key).copied().unwrap_or(0.0), key)).collect();
    all.sort_by(|a, b| (b.0 - b.1).abs().total_cmp(&(a.0 - a.1).abs()));
    let mut rows = vec![["ms per step", "this run", "the other", "difference"].map(str::to_owned).to_vec()];
    let row = |name: &str, here: f64, there: f64| {
        vec![name.to_owned(), ms(here), ms(there), format!("{:+.2}", (here - there) / 1e6)]
    };
    rows.push(row("the step", found.step_ns, other.step_ns));
    rows.extend(all.iter().take(DIFFERENCES_SHOWN).map(|(here, there, name)| row(name, *here, *there)));
    aligned(&rows, &[0])
}

fn name(found: &Account, doing: Use) -> String {
    match doing {
        Use::Layer { layer, backward } => {
            format!("{} {}", found.layers.get(layer).map_or("?", String::as_str), pass(backward))
        }
        Use::Segments => "between layers".to_owned(),
        Use::Taking => "taking tensors in".to_owned(),
        Use::HandingOut => "handing tensors out".to_owned(),
        Use::Committing => "committing".to_owned(),
        Use::ReadingState => "reading weights".to_owned(),
        Use::WaitingForWorker { worker } => format!("waiting for worker {worker}"),
        Use::WaitingForLink { worker } => format!("waiting for the link of worker {worker}"),
        Use::WaitingForPeerLink { worker } => format!("waiting for the link from worker {worker}"),
        Use::WaitingForCoordinator => "waiting for the coordinator".to_owned(),
        Use::Unexplained => "unexplained".to_owned(),
    }
}

fn pass(backward: bool) -> &'static str {
    if backward { "backward" } else { "forward" }
}

fn s(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn ms(ns: f64) -> String {
    format!("{:.2}", ns / 1e6)
}
