//! `convoy plan`: parses the command line, plans, and prints a table or JSON.

mod estimate;

use std::collections::HashMap;
use std::error::Error;

use convoy_common::batch::{BATCH_MAX, Division};
use convoy_common::index::{ExchangeIndex, PerWorker, SegmentIndex, TowerIndex, WorkerIndex};
use convoy_common::links::Links;
use convoy_common::model::Network;
use convoy_common::placement::Half;
use convoy_common::plan::{Plan, Traffic};
use convoy_common::text::counted;
use convoy_coordinator::JobError;
use convoy_coordinator::job::defaults::BATCH;
use convoy_coordinator::job::{Asked, micro_batches};
use convoy_coordinator::links::Transport;
use convoy_coordinator::state::snapshot_bytes;
use convoy_worker::forecast;
use serde_json::{Value, json};

use self::estimate::{Estimates, Machines, Planned, check_division};
use crate::numbers::{AT_LEAST_1, whole};
use crate::settings;
use crate::table::aligned;
use crate::{Outcome, output};

/// The command line of `convoy plan`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Preset (alexnet-fashion, alexnet-fashion-dense, alexnet-cifar, alexnet, alexnet-torchvision) or path of a model file
    #[arg(long, value_name = "NAME|FILE", default_value = "alexnet-fashion")]
    model: String,
    /// Worker processes, at most the number of towers times the number of slots [default: one per tower]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    workers: Option<usize>,
    /// Replicas of the trunk, as in `convoy train` [default: the smallest number that gives every worker a tower]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    replicas: Option<usize>,
    /// How workers send each other tensors, as in `convoy train`: auto, direct or relay. Here, auto and direct are the same
    #[arg(long, value_name = "HOW", default_value_t = Transport::Auto)]
    exchange: Transport,
    /// Images per step, at most 1048576
    #[arg(long, value_name = "N", default_value_t = BATCH, value_parser = whole::<usize>(1..=BATCH_MAX as u64))]
    batch: usize,
    /// Slots per batch, as in `convoy train` [default: 2, or 1 if the batch is a single image]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    slots: Option<usize>,
    /// Micro-batches per slot, as in `convoy train` [default: the fewest with which each replica has at least two]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    micro_batches: Option<usize>,
    #[command(flatten)]
    machines: Machines,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    let network = Network::parse(&settings::model_text(&arguments.model)?)?;
    let workers = arguments.workers.unwrap_or(network.towers);
    let asked = Asked { batch: Some(arguments.batch), slots: arguments.slots, ..Asked::default() };
    let slots = asked.slots_of(None).map_err(JobError::from)?;
    let links = if arguments.exchange == Transport::Relay { Links::relayed() } else { Links::direct() };
    let plan = Plan::new(network, workers, slots, arguments.replicas)?.linked(links);
    let divided = |plan: &Plan| division(arguments, plan);
    let step = Step { batch: arguments.batch, division: divided(&plan)? };
    check_division(step.division, step.batch, FORECAST_MICRO_BATCHES_MAX, "convoy plan can go through")?;
    let tries_replicas = arguments.replicas.is_none();
    let planned = Planned { plan: &plan, batch: step.batch, divided: &divided, tries_replicas };
    let estimates = Estimates::of(&planned, &arguments.machines)?;
    let text = if arguments.json {
        let mut planned = as_json(&plan, step);
        if let Some(estimates) = estimates {
            planned["estimate"] = estimates.as_json();
        }
        format!("{planned:#}\n")
    } else {
        as_table(&plan, step) + &estimates.map_or_else(String::new, |estimates| estimates.as_table())
    };
    output::print(&text)?;
    Ok(Outcome::Done)
}

/// The most workers of a table with a column for each.
const COLUMNS_MAX: usize = 12;

/// The most micro-batches of a step. The forecast of memory goes through all of them, and more would take many seconds.
const FORECAST_MICRO_BATCHES_MAX: usize = 1 << 14;

/// A step's images, and how they are divided.
#[derive(Clone, Copy)]
struct Step {
    batch: usize,
    division: Division,
}

/// Slots and micro-batches as a job would have them.
fn division(arguments: &Arguments, plan: &Plan) -> Result<Division, JobError> {
    let micro_batches = micro_batches(arguments.micro_batches, arguments.batch, &plan.placement)?;
    Ok(Division { slots: plan.placement.slots, micro_batches })
}

fn as_json(plan: &Plan, step: Step) -> Value {
    let batch = step.batch;
    let network = &plan.network;
    let layers = network.layers.iter().enumerate().map(|(index, layer)| {
        let parameters: usize = network.parameters_of(index).iter().map(|parameter| parameter.len()).sum();
        json!({
            "name": layer.name, "kind": layer.kind_name(), "groups": layer.groups(),
            "input": [layer.input.channels, layer.input.height, layer.input.width],
            "output": [layer.output.channels, layer.output.height, layer.output.width],
            "parameters": parameters, "multiply_adds": layer.multiply_adds(),
            "multiply_adds_a_tower": multiply_adds_a_tower(plan, index),
            "exchange_before": plan.needs_exchange(index), "reason": plan.reason(index),
        })
    });
    let layers = layers.collect::<Vec<_>>();
    let exchanges = plan.all_exchanges().map(|exchange| {
        json!({
            "exchange": exchange, "before": name_behind(plan, exchange),
            "forward": plan.forward_traffic(exchange, batch), "backward": plan.backward_traffic(exchange, batch),
        })
    });
    let exchanges = exchanges.collect::<Vec<_>>();
    let total = plan.step_traffic(batch);
    json!({
        "model": network.name, "towers": network.towers, "slices": network.slices, "workers": plan.workers, "placement": plan.placement,
        "batch": batch, "parameters": network.parameters().iter().map(|p| p.len()).sum::<usize>(),
        "multiply_adds": network.multiply_adds(), "layers": Value::Array(layers), "images": plan.image_traffic(batch),
        "replicas": plan.placement.replicas(), "gradients": plan.reduction_traffic(batch),
        "holds": of_each(plan, |worker| plan.placement.described(worker)),
        "slots": step.division.slots, "micro_batches": step.division.micro_batches,
        "memory_bytes_a_worker": memory_of_each(plan, step),
        "snapshot_bytes_a_worker": bytes_of_each(plan, batch, |worker| forecast::snapshot_bytes(plan, worker)),
        "snapshot_bytes_of_the_coordinator": snapshot_bytes(network),
        "exchanges": Value::Array(exchanges), "step": total,
        "sent": plan.pair_bytes(batch).into_iter().map(|((from, to), bytes)| json!({ "from": from, "to": to, "bytes": bytes })).collect::<Vec<_>>(),
        "floats_leaving_a_tower_an_image": floats_leaving(plan, Half::Trunk),
        "floats_leaving_a_slice_an_image": floats_leaving(plan, Half::Head),
    })
}

fn as_table(plan: &Plan, step: Step) -> String {
    let batch = step.batch;
    let network = &plan.network;
    let head = if network.slices == network.towers {
        String::new()
    } else {
        format!(" and {}", counted(network.slices, "slice of the head", "slices of the head"))
    };
    let mut text = format!(
        "{} in {}{head} on {}, {} per step in {} of {}\n\n",
        network.name,
        counted(network.towers, "tower", "towers"),
        counted(plan.workers, "worker", "workers"),
        counted(batch, "image", "images"),
        counted(step.division.slots, "slot", "slots"),
        counted(step.division.micro_batches, "micro-batch", "micro-batches"),
    );
    if !plan.placement.is_alike() {
        let each =
            plan.all_workers().map(|worker| format!("worker {worker} holds {}\n", plan.placement.described(worker)));
        if plan.placement.replicas() > 1 {
            text += &format!("{} replicas compute {} slots\n", plan.placement.replicas(), plan.placement.slots);
        }
        text += &format!("{}\n", each.collect::<String>());
    }
    let mut rows = vec![
        ["layer", "kind", "output", "groups", "parameters", "multiply-adds", "per tower", "input"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (index, layer) in network.layers.iter().enumerate() {
        let parameters: usize = network.parameters_of(index).iter().map(|parameter| parameter.len()).sum();
        let some = |number: u64| if number == 0 { String::new() } else { number.to_string() };
        let way = if plan.needs_exchange(index) { "exchanged" } else { "local" };
        rows.push(vec![
            layer.name.clone(),
            layer.kind_name().to_owned(),
            layer.output.to_string(),
            if layer.has_weights() { layer.groups().to_string() } else { String::new() },
            some(parameters as u64),
            some(layer.multiply_adds()),
            some(multiply_adds_a_tower(plan, index)),
            format!("{way}: {}", plan.reason(index)),
        ]);
    }
    let parameters: usize = network.parameters().iter().map(|parameter| parameter.len()).sum();
    let a_tower: u64 = (0..network.layers.len()).map(|index| multiply_adds_a_tower(plan, index)).sum();
    let totals =
        ["total", "", "", "", &parameters.to_string(), &network.multiply_adds().to_string(), &a_tower.to_string(), ""];
    rows.push(totals.map(str::to_owned).to_vec());
    text += &aligned(&rows, &[0, 1, 7]);
    text += "\n";
    text += &exchange_table(plan, batch);
    text += &pair_table(plan, batch);
    let mb = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    let listed = |bytes: PerWorker<u64>| {
        let each = bytes.into_iter_enumerated().map(|(worker, bytes)| format!("worker {worker} {}", mb(bytes)));
        each.collect::<Vec<_>>().join(", ")
    };
    let held = listed(memory_of_each(plan, step));
    let copied = listed(bytes_of_each(plan, batch, |worker| forecast::snapshot_bytes(plan, worker)));
    text += &format!("memory of each worker: {held}\n");
    text += &format!("additional memory of each worker while it sends a snapshot: {copied}\n");
    text += &format!("memory of the coordinator for snapshots and checkpoints: {}\n", mb(snapshot_bytes(network)));
    text
}

/// Bytes of each worker. Workers that hold and compute as much as each other are forecast once.
fn bytes_of_each(plan: &Plan, batch: usize, bytes: impl Fn(WorkerIndex) -> u64) -> PerWorker<u64> {
    let mut known = HashMap::new();
    let of = |worker| {
        let held = plan.placement.held_by(worker);
        *known.entry((held, plan.work_of(worker, SegmentIndex(0), batch))).or_insert_with(|| bytes(worker))
    };
    plan.all_workers().map(of).collect()
}

/// Something for each worker.
fn of_each<T>(plan: &Plan, of: impl Fn(WorkerIndex) -> T) -> PerWorker<T> {
    plan.all_workers().map(of).collect()
}

/// Bytes that each worker will hold between snapshots.
fn memory_of_each(plan: &Plan, Step { batch, division }: Step) -> PerWorker<u64> {
    let exchanged = forecast::exchanged_bytes(plan, batch, division);
    bytes_of_each(plan, batch, |worker| forecast::worker_bytes(plan, worker, batch, division) + exchanged)
}

/// Bytes per step. A byte counts once for each socket that it crosses.
fn exchange_table(plan: &Plan, batch: usize) -> String {
    let mut rows = vec![
        ["exchange", "before", "forward up", "down", "across", "backward up", "down", "across"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let images = plan.image_traffic(batch);
    let row = |name: String, before: String, forward: Traffic, backward: Traffic| {
        let bytes = [forward, backward].into_iter().flat_map(|traffic| [traffic.up, traffic.down, traffic.across]);
        [name, before].into_iter().chain(bytes.map(|bytes| bytes.to_string())).collect::<Vec<_>>()
    };
    rows.push(row("images".to_owned(), name_of_first(plan), images, Traffic::default()));
    for exchange in plan.all_exchanges() {
        let (forward, backward) = (plan.forward_traffic(exchange, batch), plan.backward_traffic(exchange, batch));
        let name = if exchange == plan.logits_exchange() { "logits".to_owned() } else { exchange.to_string() };
        rows.push(row(name, name_behind(plan, exchange), forward, backward));
    }
    if plan.placement.replicas() > 1 {
        let sums = plan.reduction_traffic(batch);
        rows.push(row("gradients".to_owned(), "the commit".to_owned(), Traffic::default(), sums));
    }
    let total = plan.step_traffic(batch);
    let listed = |half| floats_leaving(plan, half).iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "bytes per step (up: to the coordinator, down: to workers, across: from worker to worker)\n{}\
         total {} bytes per step: {} up, {} down, {} across\nfloats per image sent over sockets, forward: by each tower of the trunk {}; by each slice of the head, without logits, {}\n",
        aligned(&rows, &[0, 1]),
        total.total(),
        total.up,
        total.down,
        total.across,
        listed(Half::Trunk),
        listed(Half::Head)
    )
}

/// Floats per image that leave each tower, or each slice of the head, over a socket, forward, without logits.
fn floats_leaving(plan: &Plan, half: Half) -> Vec<usize> {
    let parts = if half == Half::Trunk { plan.network.towers } else { plan.network.slices };
    TowerIndex::all(parts).map(|part| plan.floats_leaving(half, part)).collect()
}

/// Bytes that each worker sends to each other one in a step. With many workers, the table would not fit a terminal.
fn pair_table(plan: &Plan, batch: usize) -> String {
    if !(3..=COLUMNS_MAX).contains(&plan.workers) {
        return String::new();
    }
    let pairs = plan.pair_bytes(batch);
    let header = std::iter::once("from".to_owned()).chain(plan.all_workers().map(|to| format!("to {to}")));
    let row = |from: WorkerIndex| {
        let bytes = plan.all_workers().map(move |to| (from, to)).map(|pair| match pairs.get(&pair) {
            Some(bytes) => bytes.to_string(),
            None => "-".to_owned(),
        });
        std::iter::once(format!("worker {from}")).chain(bytes).collect::<Vec<_>>()
    };
    let rows: Vec<_> = std::iter::once(header.collect()).chain(plan.all_workers().map(row)).collect();
    format!("bytes per step from worker to worker\n{}", aligned(&rows, &[0]))
}

/// Multiply-adds of the first tower, or, in the head, of the first slice. If parts are uneven, the first one is the largest.
fn multiply_adds_a_tower(plan: &Plan, index: usize) -> u64 {
    plan.network.multiply_adds_of(index, TowerIndex(0))
}

fn name_of_first(plan: &Plan) -> String {
    plan.network.layers.first().map_or_else(String::new, |layer| layer.name.clone())
}

/// The layer that comes after an exchange. After the last exchange comes the loss.
fn name_behind(plan: &Plan, exchange: ExchangeIndex) -> String {
    let next = plan.segments.get(exchange.segment_after());
    next.map_or_else(|| "the loss".to_owned(), |segment| plan.network.layers[segment.layers.start].name.clone())
}
