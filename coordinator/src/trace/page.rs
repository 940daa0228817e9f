//! A trace as an HTML page that needs no network: the timelines of a few steps, the account, and curves over the run. The drawing
//! is in `page.html`. This file prepares its data.

use convoy_common::plan::Plan;
use convoy_common::trace::{Activity, Span};
use convoy_common::wire::TensorKey;
use serde_json::{Value, json};

use super::account::Account;
use super::file::{StepTrace, Trace, described, sent_by, source_of, step_span};

const PAGE: &str = include_str!("page.html");
/// The placeholder for the data.
const PLACE: &str = "/* the data */ null";
/// The most timelines on a page, so that it stays small enough to mail.
const TIMELINES_MAX: usize = 8;

/// The page.
pub fn page(trace: &Trace, plan: &Plan, account: &Account, summary: &str, verdict: &str) -> String {
    let chosen = chosen(account);
    let timelines = trace.steps.iter().filter(|(step, _)| chosen.contains(step));
    let timelines: Vec<_> = timelines.map(|(step, traced)| timeline(*step, traced, plan)).collect();
    let course = trace.steps.iter().filter_map(|(step, traced)| {
        let (figures, span) = (traced.figures?, step_span(&traced.coordinator)?);
        let seconds = span.length().max(1) as f64 / 1e9;
        Some(json!([step, span.end as f64 / 1e9, figures.loss, figures.images as f64 / seconds]))
    });
    let incidents = trace.incidents.iter().map(|(at, what)| json!([*at as f64 / 1e9, what]));
    let data = json!({
        "title": format!("{}: {} towers on {} workers", plan.network.name, plan.network.towers, plan.workers),
        "summary": summary, "verdict": verdict, "is_cut": trace.is_cut,
        "account": account, "timelines": timelines,
        "course": course.collect::<Vec<_>>(), "incidents": incidents.collect::<Vec<_>>(),
    });
    // Text of a model must not end the script that contains it.
    PAGE.replacen(PLACE, &data.to_string().replace('<', "\\u003c"), 1)
}

/// The steps to draw: the middle one, the first, the last, and the slowest.
fn chosen(account: &Account) -> Vec<u64> {
    let steps = &account.steps;
    let mut chosen: Vec<u64> =
        [steps.get(steps.len() / 2), steps.first(), steps.last()].into_iter().flatten().copied().collect();
    chosen.extend(account.slowest.iter().map(|slow| slow.step));
    chosen.dedup();
    chosen.truncate(TIMELINES_MAX);
    chosen
}

/// Rows of boxes, in microseconds from the start of the step, and the ways of tensors between boxes.
fn timeline(step: u64, traced: &StepTrace, plan: &Plan) -> Value {
    let origin = step_span(&traced.coordinator).map_or(0, |span| span.start);
    let end = step_span(&traced.coordinator).map_or(origin, |span| span.end);
    let micros = |at: u64| (at as i64 - origin as i64) as f64 / 1e3;
    let mut rows = Vec::new();
    let mut ways: Vec<Value> = Vec::new();
    let (mut places, mut received) = (std::collections::HashMap::new(), Vec::new());
    let parts = std::iter::once(("coordinator".to_owned(), &traced.coordinator));
    let workers = traced.workers.iter_enumerated().map(|(worker, part)| (format!("worker {worker}"), part));
    for (process, part) in parts.chain(workers) {
        for kind in KINDS {
            let is_here = |span: &&Span| kind_of(&span.activity) == kind && span.end >= origin && span.start <= end;
            let mut spans: Vec<&Span> = part.spans.iter().filter(is_here).collect();
            if spans.is_empty() {
                continue;
            }
            spans.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
            let boxes = spans.iter().map(|span| {
                let (cat, name) = described(&plan.network, &span.activity);
                json!([micros(span.start), micros(span.end), cat, name])
            });
            let row = rows.len();
            for (index, span) in spans.iter().enumerate() {
                note(&mut places, &mut ways, &mut received, span, (row, index));
            }
            let relays = process == "coordinator" && kind == "receive";
            let name = if relays { "relay" } else { kind };
            rows.push(json!({ "process": process, "kind": name, "boxes": boxes.collect::<Vec<_>>() }));
        }
    }
    // All places are known now.
    for (tensor, place) in received {
        let source = format!("{:?}", source_of(tensor));
        let from = places.get(&tensor.to_string()).or_else(|| places.get(&source));
        ways.extend(from.map(|from| json!([from, place])));
    }
    json!({ "step": step, "length": micros(end), "rows": rows, "ways": ways })
}

/// The rows of a process: sequential work, its layers, and transfers.
const KINDS: [&str; 4] = ["", "layers", "send", "receive"];

fn kind_of(activity: &Activity) -> &'static str {
    match activity {
        Activity::Layer { .. } => "layers",
        Activity::Send(_) => "send",
        Activity::Receive(_) | Activity::Relay(_) => "receive",
        _ => "",
    }
}

/// The row of a box, and its index in the row.
type Place = (usize, usize);

/// Notes a box, and the way from a sender to the coordinator, whose boxes come first. What is received is noted for later.
fn note<'a>(
    places: &mut std::collections::HashMap<String, Place>,
    ways: &mut Vec<Value>,
    received: &mut Vec<(&'a TensorKey, Place)>,
    span: &'a Span,
    place: Place,
) {
    match &span.activity {
        Activity::Relay(transfer) => drop(places.insert(transfer.tensor.to_string(), place)),
        Activity::Send(transfer) => {
            let tensor = transfer.tensor.to_string();
            // What goes straight to its receivers has no relay.
            match places.get(&tensor) {
                Some(relay) => ways.push(json!([place, relay])),
                None => drop(places.insert(tensor, place)),
            }
        }
        Activity::Receive(transfer) => received.push((&transfer.tensor, place)),
        _ => {
            if let Some((source, _)) = sent_by(span) {
                places.insert(format!("{source:?}"), place);
            }
        }
    }
}
