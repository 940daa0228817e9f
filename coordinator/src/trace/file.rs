//! `trace.json`: Chrome's trace format as Perfetto reads it, an event a line, so that a file that was cut short loads up to
//! its last whole line. One process for the coordinator and one a worker; spans on named tracks; tensors as flows from
//! process to process; counters; incidents.
//!
//! Times are microseconds since the recording began, on the coordinator's clock. What was added to a worker's clock stands in
//! an event of its own for each step, with its uncertainty and what of it is a correction.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use convoy_common::batch::{MicroBatch, MicroBatchId, Phase};
use convoy_common::model::Network;
use convoy_common::plan::Plan;
use convoy_common::trace::{Activity, SegmentRun, Span, Transfer};
use convoy_common::wire::{Direction, TensorKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::alignment::Offset;

/// Of the file's form. Raise it when an older reader would misread it.
const FORMAT: u32 = 1;
/// A file that nobody asked to be complete grows no further, incidents aside.
const SAMPLE_BYTES_MAX: u64 = 45_000_000;
/// No trace is read into memory that is larger.
const READ_BYTES_MAX: u64 = 4 << 30;
/// No run goes on for so many nanoseconds: a year.
const TIME_MAX: u64 = 365 * 86_400 * 1_000_000_000;
/// Perfetto wants small numbers, and 0 is special.
const COORDINATOR: u64 = 1;
const FIRST_WORKER: u64 = 2;
/// Tracks of a process: the first is for what it does one thing after another, the others for transfers.
const MAIN_TRACK: u64 = 1;
const SEND_TRACK: u64 = 2;
const LANES: u64 = 10;
/// More transfers at once than that share a track: a worker that makes them up costs no time.
const LANES_MAX: u64 = 32;

/// What a trace is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The program that wrote it.
    pub convoy: String,
    /// The file's form.
    pub format: u32,
    /// When the recording began, in nanoseconds since 1970, by the coordinator's machine.
    pub epoch_unix_ns: u64,
    /// The model file, word for word.
    pub model: String,
    /// Tower t is on worker `placement[t]`.
    pub placement: Vec<usize>,
    /// Machines, by worker.
    pub hosts: Vec<String>,
    /// Images a step.
    pub batch: usize,
}

impl About {
    /// For a trace that this program writes.
    pub fn new(epoch_unix_ns: u64, model: String, placement: Vec<usize>, hosts: Vec<String>, batch: usize) -> Self {
        Self {
            convoy: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            epoch_unix_ns,
            model,
            placement,
            hosts,
            batch,
        }
    }
}

/// One process's part in a step, on the coordinator's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// As they ended.
    pub spans: Vec<Span>,
    /// What its clock was moved by.
    pub offset: Option<Offset>,
    /// Spans for which there was no room.
    pub dropped: u64,
    /// Memory that the process held at its end; 0 where the system didn't say.
    pub resident_bytes: u64,
}

/// What all processes recorded of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTrace {
    /// The coordinator.
    pub coordinator: Part,
    /// The workers, by number.
    pub workers: Vec<Part>,
    /// Loss and images a second, where the step was finished.
    pub figures: Option<Figures>,
    /// Whether it was kept because it took longer than others, which makes it no sample of them.
    pub is_slow: bool,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// The batch's mean loss.
    pub loss: f64,
    /// Images that it held.
    pub images: usize,
}

/// What the coordinator's own part has more than a worker's.
#[derive(Clone, Copy, Default)]
struct Own {
    figures: Option<Figures>,
    is_slow: bool,
}

/// Why a trace can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file can't be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The run has no trace.
    #[error("{path} isn't there: the run was made with --trace off, or hasn't begun its first step")]
    None {
        /// Which.
        path: PathBuf,
    },
    /// It was written by something else.
    #[error("{path} isn't a trace of Convoy's: {why}")]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What is wrong with its first line.
        why: String,
    },
    /// It has no step.
    #[error("{path} holds no step{}", if *.is_cut { ": it was cut short, or its job has only just begun" } else { "" })]
    Empty {
        /// Which.
        path: PathBuf,
        /// Whether it lacks its end.
        is_cut: bool,
    },
}

/// A trace that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What it is of.
    pub about: About,
    /// By step.
    pub steps: BTreeMap<u64, StepTrace>,
    /// What went wrong, and when.
    pub incidents: Vec<(u64, String)>,
    /// Whether the file lacks its end: its job goes on, or was killed.
    pub is_cut: bool,
    /// Lines in its midst that make no sense.
    pub unreadable: usize,
}

#[derive(Serialize, Deserialize)]
struct Event {
    name: String,
    cat: String,
    ph: String,
    pid: u64,
    tid: u64,
    ts: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// How a flow's end or an instant is to be drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bp: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s: Option<String>,
    #[serde(default)]
    args: Value,
}

/// A trace on its way into its file.
#[derive(Debug)]
pub struct Writer {
    file: BufWriter<File>,
    network: Network,
    bytes: u64,
    first: bool,
    flows: u64,
    /// When each track was last in use.
    busy_until: HashMap<(u64, u64), u64>,
    named: HashMap<(u64, u64), String>,
}

impl Writer {
    /// Begins a trace. A file that is there is replaced.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn create(path: &Path, about: &About, network: Network) -> std::io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        let about_text = serde_json::to_string(about).map_err(std::io::Error::other)?;
        write!(file, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about_text},\"traceEvents\":[")?;
        let (busy_until, named) = (HashMap::new(), HashMap::new());
        let mut writer = Self { file, network, bytes: 0, first: true, flows: 0, busy_until, named };
        writer.name_process(COORDINATOR, "coordinator")?;
        for (worker, host) in about.hosts.iter().enumerate() {
            let held = about.placement.iter().enumerate().filter(|(_, holder)| **holder == worker);
            let towers: Vec<_> = held.map(|(tower, _)| format!("tower {tower}")).collect();
            let name = format!("worker {worker}: {} on {host}", towers.join(", "));
            writer.name_process(FIRST_WORKER + worker as u64, &name)?;
        }
        writer.file.flush()?;
        Ok(writer)
    }

    /// Whether a sample has filled the file.
    pub fn is_full(&self) -> bool {
        self.bytes > SAMPLE_BYTES_MAX
    }

    /// Adds a step.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add(&mut self, step: u64, trace: &StepTrace) -> std::io::Result<()> {
        let mut flows = Flows::default();
        let own = Own { figures: trace.figures, is_slow: trace.is_slow };
        self.part(COORDINATOR, step, &trace.coordinator, own, &mut flows)?;
        for (worker, part) in trace.workers.iter().enumerate() {
            let process = FIRST_WORKER + worker as u64;
            if let Some(frame) = frame(part, step_span(&trace.coordinator)) {
                self.frame(process, step, frame)?;
            }
            self.part(process, step, part, Own::default(), &mut flows)?;
        }
        self.flows(&flows)?;
        if let (Some(figures), Some(span)) = (trace.figures, step_span(&trace.coordinator)) {
            let seconds = span.length().max(1) as f64 / 1e9;
            let sent: u64 = trace.coordinator.spans.iter().map(relayed_bytes).sum();
            self.counter(COORDINATOR, "loss", span.end, figures.loss)?;
            self.counter(COORDINATOR, "images/s", span.end, figures.images as f64 / seconds)?;
            self.counter(COORDINATOR, "relayed MB/s", span.end, sent as f64 / 1e6 / seconds)?;
            for (process, part) in (COORDINATOR..).zip([&trace.coordinator].into_iter().chain(&trace.workers)) {
                if part.resident_bytes > 0 {
                    self.counter(process, "resident MB", span.end, part.resident_bytes as f64 / 1e6)?;
                }
            }
        }
        self.file.flush()
    }

    /// Adds something that went wrong.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn incident(&mut self, at: u64, what: &str) -> std::io::Result<()> {
        self.event(&Event { s: Some("g".to_owned()), ..event("i", "incident", what, (COORDINATOR, MAIN_TRACK), at) })?;
        self.file.flush()
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn finish(mut self) -> std::io::Result<()> {
        writeln!(self.file, "\n]}}")?;
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    fn part(&mut self, process: u64, step: u64, part: &Part, own: Own, flows: &mut Flows) -> std::io::Result<()> {
        if let Some(Offset { offset, uncertainty, correction }) = part.offset {
            let at = part.spans.iter().map(|span| span.start).min().unwrap_or(0);
            let args = json!({
                "step": step, "offset_ns": offset, "uncertainty_ns": uncertainty, "correction_ns": correction,
                "dropped": part.dropped, "resident_bytes": part.resident_bytes,
            });
            let clock = event("i", "clock", "clock", (process, MAIN_TRACK), at);
            self.event(&Event { s: Some("p".to_owned()), args, ..clock })?;
        }
        let mut spans: Vec<_> = part.spans.iter().collect();
        // Of those that begin together the longest comes first: it holds the others.
        spans.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
        // An offset that is known better than in the step before may move this one's beginning into that one's end.
        let is_moved = part.offset.is_some();
        let until = |track| self.busy_until.get(&(process, track)).copied().filter(|_| is_moved).unwrap_or(0);
        let floors = [MAIN_TRACK, SEND_TRACK].map(until);
        for span in spans {
            let track = self.track(process, span)?;
            let floor = floors.get(track as usize - 1).copied().unwrap_or(0);
            let span = Span { start: span.start.max(floor), end: span.end.max(floor), ..span.clone() };
            flows.note(process, track, &span);
            let until = self.busy_until.entry((process, track)).or_default();
            *until = span.end.max(*until);
            let (cat, name, mut args) = described(&self.network, &span.activity);
            args["step"] = step.into();
            if let (Activity::Step { .. }, Own { figures, is_slow }) = (&span.activity, own) {
                args["is_slow"] = is_slow.into();
                args["resident_bytes"] = part.resident_bytes.into();
                if let Some(Figures { loss, images }) = figures {
                    (args["loss"], args["images"]) = (json!(loss), images.into());
                }
            }
            let dur = Some(micros(span.length()));
            self.event(&Event { dur, args, ..event("X", cat, &name, (process, track), span.start) })?;
        }
        Ok(())
    }

    /// A worker's step, around all that it did in it: for the eye alone, since it says nothing new.
    fn frame(&mut self, process: u64, step: u64, (start, end): (u64, u64)) -> std::io::Result<()> {
        let track = self.name_track(process, MAIN_TRACK, "compute".to_owned())?;
        let start = start.max(self.busy_until.get(&(process, track)).copied().unwrap_or(0));
        let name = format!("step {step}");
        let dur = Some(micros(end.saturating_sub(start)));
        self.event(&Event { dur, args: json!({ "step": step }), ..event("X", "frame", &name, (process, track), start) })
    }

    /// Where a span is drawn. Transfers may overlap, and then they get a track each.
    fn track(&mut self, process: u64, span: &Span) -> std::io::Result<u64> {
        let (first, name) = match span.activity {
            Activity::Send(_) => (SEND_TRACK, "send"),
            Activity::Receive(_) => (LANES, "receive"),
            Activity::Relay(_) => (LANES, "relay"),
            _ => {
                let name = if process == COORDINATOR { "steps" } else { "compute" };
                return self.name_track(process, MAIN_TRACK, name.to_owned());
            }
        };
        let mut track = first;
        let is_busy = |track| self.busy_until.get(&(process, track)).is_some_and(|until| *until > span.start);
        while first == LANES && track < LANES + LANES_MAX && is_busy(track) {
            track += 1;
        }
        let name = if track == first { name.to_owned() } else { format!("{name} {}", track - first + 1) };
        self.name_track(process, track, name)
    }

    fn name_process(&mut self, process: u64, name: &str) -> std::io::Result<()> {
        let args = json!({ "name": name });
        self.event(&Event { args, ..event("M", "", "process_name", (process, 0), 0) })?;
        let args = json!({ "sort_index": process });
        self.event(&Event { args, ..event("M", "", "process_sort_index", (process, 0), 0) })
    }

    fn name_track(&mut self, process: u64, track: u64, name: String) -> std::io::Result<u64> {
        if !self.named.contains_key(&(process, track)) {
            let args = json!({ "name": name });
            self.event(&Event { args, ..event("M", "", "thread_name", (process, track), 0) })?;
            let args = json!({ "sort_index": track });
            self.event(&Event { args, ..event("M", "", "thread_sort_index", (process, track), 0) })?;
            self.named.insert((process, track), name);
        }
        Ok(track)
    }

    /// A tensor's way: from where it begins, over the coordinator, to whoever gets it.
    fn flows(&mut self, flows: &Flows) -> std::io::Result<()> {
        for (tensor, stops) in &flows.ways {
            let Some(from) = stops.from.or_else(|| flows.sources.get(&source_of(tensor)).copied()) else { continue };
            let ends = if stops.to.is_empty() { vec![None] } else { stops.to.iter().copied().map(Some).collect() };
            for to in ends {
                let stops: Vec<_> = [Some(from), stops.over, to].into_iter().flatten().collect();
                if stops.len() < 2 {
                    continue;
                }
                self.flows += 1;
                let last = stops.len() - 1;
                for (index, (process, track, at)) in stops.into_iter().enumerate() {
                    let ph = if index == 0 {
                        "s"
                    } else if index == last {
                        "f"
                    } else {
                        "t"
                    };
                    let bp = (index > 0).then(|| "e".to_owned());
                    let id = Some(self.flows);
                    self.event(&Event { id, bp, ..event(ph, "tensor", &tensor.to_string(), (process, track), at) })?;
                }
            }
        }
        Ok(())
    }

    fn counter(&mut self, process: u64, name: &str, at: u64, value: f64) -> std::io::Result<()> {
        // A number that is none would stop Perfetto.
        let args = json!({ "value": value.is_finite().then_some(value) });
        self.event(&Event { args, ..event("C", "figure", name, (process, 0), at) })
    }

    fn event(&mut self, event: &Event) -> std::io::Result<()> {
        let text = serde_json::to_string(event).map_err(std::io::Error::other)?;
        let before = if std::mem::take(&mut self.first) { "\n" } else { ",\n" };
        self.bytes += (before.len() + text.len()) as u64;
        write!(self.file, "{before}{text}")
    }
}

/// What the coordinator itself sends: images, and gradients of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Images(MicroBatchId),
    Loss(MicroBatchId),
    Worker,
}

/// Where a tensor begins its way.
pub(super) fn source_of(tensor: &TensorKey) -> Source {
    match tensor {
        TensorKey::Images(micro_batch) => Source::Images(micro_batch.id),
        // A tower's partial gradient for itself stays at home: what comes to it under its own name is of its logits.
        TensorKey::Activations { micro_batch, from_tower, to_tower: Some(to), .. } if from_tower == to => {
            Source::Loss(micro_batch.id)
        }
        _ => Source::Worker,
    }
}

/// What a span of the coordinator's sends, and since when.
pub(super) fn sent_by(span: &Span) -> Option<(Source, u64)> {
    match span.activity {
        Activity::SendImages(id) => Some((Source::Images(id), span.start)),
        Activity::Loss(id) => Some((Source::Loss(id), span.start)),
        _ => None,
    }
}

/// Where tensors were seen: (process, track, when).
#[derive(Default)]
struct Flows {
    ways: HashMap<TensorKey, Way>,
    sources: HashMap<Source, (u64, u64, u64)>,
}

#[derive(Default)]
struct Way {
    from: Option<(u64, u64, u64)>,
    over: Option<(u64, u64, u64)>,
    to: Vec<(u64, u64, u64)>,
}

impl Flows {
    fn note(&mut self, process: u64, track: u64, span: &Span) {
        let here = (process, track, span.start);
        match &span.activity {
            Activity::Send(transfer) => self.way(&transfer.tensor).from = Some(here),
            Activity::Relay(transfer) => self.way(&transfer.tensor).over = Some(here),
            Activity::Receive(transfer) => self.way(&transfer.tensor).to.push(here),
            _ => {
                self.sources.extend(sent_by(span).map(|(source, _)| (source, here)));
            }
        }
    }

    fn way(&mut self, tensor: &TensorKey) -> &mut Way {
        self.ways.entry(tensor.clone()).or_default()
    }
}

/// From when a worker began a step, which may be with a wait for it, to when it had done with it.
fn frame(part: &Part, step: Option<&Span>) -> Option<(u64, u64)> {
    let began = step?.start;
    let is_of_it = |span: &&Span| {
        let is_segment = matches!(span.activity, Activity::Segment(_));
        !is_transfer(&span.activity) && (is_segment || span.end > began)
    };
    let start = part.spans.iter().filter(is_of_it).map(|span| span.start).min()?;
    let end = part.spans.iter().filter(is_of_it).map(|span| span.end).max()?;
    Some((start, end))
}

/// Whether it is a tensor on its way, which may overlap with others.
pub(super) fn is_transfer(activity: &Activity) -> bool {
    matches!(activity, Activity::Send(_) | Activity::Receive(_) | Activity::Relay(_))
}

fn relayed_bytes(span: &Span) -> u64 {
    if let Activity::Relay(transfer) = &span.activity { transfer.bytes } else { 0 }
}

/// The coordinator's span of the step itself.
pub(super) fn step_span(coordinator: &Part) -> Option<&Span> {
    coordinator.spans.iter().find(|span| matches!(span.activity, Activity::Step { .. }))
}

fn event(ph: &str, cat: &str, name: &str, (pid, tid): (u64, u64), at: u64) -> Event {
    let (ph, cat, name) = (ph.to_owned(), cat.to_owned(), name.to_owned());
    Event { name, cat, ph, pid, tid, ts: micros(at), dur: None, id: None, bp: None, s: None, args: json!({}) }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

fn nanos(micros: f64) -> u64 {
    (micros * 1e3).round().max(0.0) as u64
}

/// Category, name and what else is to be known of an activity.
pub(super) fn described(network: &Network, activity: &Activity) -> (&'static str, String, Value) {
    let plain = |cat, name: &str| (cat, name.to_owned(), json!({}));
    match activity {
        Activity::Segment(run) => {
            let SegmentRun { micro_batch, segment, tower, direction } = run;
            let name = format!("segment {segment} {} of tower {tower}", way(*direction));
            let args =
                json!({ "of": of(micro_batch), "segment": segment, "tower": tower, "direction": way(*direction) });
            ("segment", name, args)
        }
        Activity::Layer { layer, direction } => {
            let name = network.layers.get(*layer).map_or("?", |layer| layer.name.as_str());
            let args = json!({ "layer": layer, "direction": way(*direction) });
            ("layer", format!("{name} {}", way(*direction)), args)
        }
        Activity::Commit { step } => ("commit", "commit".to_owned(), json!({ "commit": step })),
        Activity::Take(tensor) => ("take", format!("take {tensor}"), tensor_args(tensor)),
        Activity::AwaitTensor(tensor) => ("await", format!("wait for {tensor}"), tensor_args(tensor)),
        Activity::AwaitOrder => plain("await_order", "wait for an order"),
        Activity::HandOut => plain("hand_out", "hand out"),
        Activity::ReadState => plain("read_state", "read weights"),
        Activity::Send(transfer) => transfer_described("send", transfer),
        Activity::Receive(transfer) => transfer_described("receive", transfer),
        Activity::Relay(transfer) => transfer_described("relay", transfer),
        Activity::Step { step } => ("step", format!("step {step}"), json!({})),
        Activity::SendImages(id) => ("send_images", "send images".to_owned(), json!({ "of": of(id) })),
        Activity::Loss(id) => ("loss", "loss".to_owned(), json!({ "of": of(id) })),
        Activity::Idle => plain("idle", "wait for workers"),
        Activity::Measure => plain("measure", "measure"),
        Activity::Checkpoint => plain("checkpoint", "checkpoint"),
    }
}

fn transfer_described(cat: &'static str, transfer: &Transfer) -> (&'static str, String, Value) {
    let mut args = tensor_args(&transfer.tensor);
    args["bytes"] = transfer.bytes.into();
    args["busy_ns"] = transfer.busy.into();
    (cat, format!("{cat} {}", transfer.tensor), args)
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Backward => "backward",
    }
}

fn of(id: &MicroBatchId) -> Value {
    json!([id.step, id.slot, id.micro_batch])
}

fn tensor_args(tensor: &TensorKey) -> Value {
    match tensor {
        TensorKey::Images(m) => json!({ "of": of(&m.id), "samples": [m.samples.start, m.samples.end] }),
        TensorKey::Activations { micro_batch: m, exchange, direction, from_tower, to_tower } => json!({
            "of": of(&m.id), "samples": [m.samples.start, m.samples.end], "exchange": exchange,
            "direction": way(*direction), "from_tower": from_tower, "to_tower": to_tower,
        }),
        TensorKey::Parameter { .. } => json!({}),
    }
}

fn activity_of(event: &Event) -> Option<Activity> {
    let args = &event.args;
    let number = |key: &str| args[key].as_u64().map(|number| number as usize);
    let direction = || match args["direction"].as_str()? {
        "forward" => Some(Direction::Forward),
        "backward" => Some(Direction::Backward),
        _ => None,
    };
    let id = || {
        let at = |index: usize| args["of"][index].as_u64();
        let (slot, micro_batch) = (u32::try_from(at(1)?).ok()?, u32::try_from(at(2)?).ok()?);
        Some(MicroBatchId { step: at(0)?, phase: Phase::Train, slot, micro_batch })
    };
    let tensor = || {
        let at = |index: usize| args["samples"][index].as_u64().map(|sample| sample as usize);
        let micro_batch = MicroBatch { id: id()?, samples: at(0)?..at(1)? };
        let Some(exchange) = number("exchange") else { return Some(TensorKey::Images(micro_batch)) };
        let (from_tower, to_tower) = (number("from_tower")?, number("to_tower"));
        Some(TensorKey::Activations { micro_batch, exchange, direction: direction()?, from_tower, to_tower })
    };
    let transfer =
        || Some(Transfer { tensor: tensor()?, bytes: args["bytes"].as_u64()?, busy: args["busy_ns"].as_u64()? });
    Some(match event.cat.as_str() {
        "segment" => Activity::Segment(SegmentRun {
            micro_batch: id()?,
            segment: number("segment")?,
            tower: number("tower")?,
            direction: direction()?,
        }),
        "layer" => Activity::Layer { layer: number("layer")?, direction: direction()? },
        "commit" => Activity::Commit { step: args["commit"].as_u64()? },
        "take" => Activity::Take(tensor()?),
        "await" => Activity::AwaitTensor(tensor()?),
        "await_order" => Activity::AwaitOrder,
        "hand_out" => Activity::HandOut,
        "read_state" => Activity::ReadState,
        "send" => Activity::Send(transfer()?),
        "receive" => Activity::Receive(transfer()?),
        "relay" => Activity::Relay(transfer()?),
        "step" => Activity::Step { step: args["step"].as_u64()? },
        "send_images" => Activity::SendImages(id()?),
        "loss" => Activity::Loss(id()?),
        "idle" => Activity::Idle,
        "measure" => Activity::Measure,
        "checkpoint" => Activity::Checkpoint,
        _ => return None,
    })
}

/// Reads a trace, as far as it goes.
///
/// # Errors
/// When it isn't there, isn't Convoy's, or holds no step.
pub fn read(path: &Path) -> Result<Trace, TraceError> {
    let file = match File::open(path) {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(TraceError::None { path: path.to_owned() });
        }
        file => file.map_err(|source| TraceError::Read { path: path.to_owned(), source })?,
    };
    let mut bytes = Vec::new();
    let read = file.take(READ_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let about = about(lines.next().unwrap_or_default());
    let (about, plan) = about.map_err(|why| TraceError::Foreign { path: path.to_owned(), why })?;
    let mut trace = Trace { about, steps: BTreeMap::new(), incidents: Vec::new(), is_cut: true, unreadable: 0 };
    for line in lines {
        if line == "]}" {
            trace.is_cut = false;
            break;
        }
        let event = serde_json::from_str::<Event>(line.trim_end_matches(','));
        if !event.is_ok_and(|event| trace.take(event, &plan)) {
            trace.unreadable += 1;
        }
    }
    // The last line of a file that was cut is no fault of the file's.
    trace.unreadable = trace.unreadable.saturating_sub(usize::from(trace.is_cut));
    if trace.steps.is_empty() {
        return Err(TraceError::Empty { path: path.to_owned(), is_cut: trace.is_cut });
    }
    Ok(trace)
}

fn about(line: &str) -> Result<(About, Plan), String> {
    if line.is_empty() {
        return Err("it is empty".to_owned());
    }
    let whole = format!("{}]}}", line.trim_end());
    let header: Value = serde_json::from_str(&whole).map_err(|_| "its first line isn't the head of one".to_owned())?;
    let about: About =
        serde_json::from_value(header["otherData"].clone()).map_err(|error| format!("its head: {error}"))?;
    if about.format != FORMAT {
        return Err(format!("it is of format {}; this program reads format {FORMAT}", about.format));
    }
    let network = Network::parse(&about.model).map_err(|error| format!("its model: {error}"))?;
    let plan = Plan::placed(network, about.placement.clone()).map_err(|error| error.to_string())?;
    if plan.workers == about.hosts.len() {
        Ok((about, plan))
    } else {
        Err("its towers and workers don't fit".to_owned())
    }
}

/// Whether there is such a thing in the job.
fn is_of(plan: &Plan, activity: &Activity) -> bool {
    let has_tower = |tower: usize| tower < plan.network.towers;
    let has_segment = |segment: usize| segment < plan.segments.len();
    match activity {
        Activity::Segment(run) => has_segment(run.segment) && has_tower(run.tower),
        Activity::Layer { layer, .. } => *layer < plan.network.layers.len(),
        Activity::Take(tensor)
        | Activity::AwaitTensor(tensor)
        | Activity::Send(Transfer { tensor, .. })
        | Activity::Receive(Transfer { tensor, .. })
        | Activity::Relay(Transfer { tensor, .. }) => match tensor {
            TensorKey::Activations { exchange, from_tower, to_tower, .. } => {
                has_segment(*exchange) && has_tower(*from_tower) && to_tower.is_none_or(has_tower)
            }
            _ => true,
        },
        _ => true,
    }
}

impl Trace {
    /// Whether the event makes sense.
    fn take(&mut self, event: Event, plan: &Plan) -> bool {
        let start = nanos(event.ts);
        if event.cat == "incident" {
            self.incidents.push((start, event.name));
            return true;
        }
        let Some(step) = event.args["step"].as_u64() else { return true };
        let workers = self.about.hosts.len();
        let of_step = self.steps.entry(step).or_default();
        of_step.workers.resize_with(workers, Part::default);
        let part = match event.pid.checked_sub(FIRST_WORKER) {
            None => &mut of_step.coordinator,
            Some(worker) if (worker as usize) < workers => &mut of_step.workers[worker as usize],
            Some(_) => return false,
        };
        if event.cat == "step" {
            of_step.is_slow = event.args["is_slow"].as_bool().unwrap_or_default();
            part.resident_bytes = event.args["resident_bytes"].as_u64().unwrap_or_default();
            if let (Some(loss), Some(images)) = (event.args["loss"].as_f64(), event.args["images"].as_u64()) {
                of_step.figures = Some(Figures { loss, images: images as usize });
            }
        }
        if event.cat == "clock" {
            let number = |key: &str| event.args[key].as_i64().unwrap_or_default();
            let uncertainty = event.args["uncertainty_ns"].as_u64().unwrap_or_default();
            let (offset, correction) = (number("offset_ns"), number("correction_ns"));
            part.offset = Some(Offset { offset, uncertainty, correction });
            part.dropped = event.args["dropped"].as_u64().unwrap_or_default();
            part.resident_bytes = event.args["resident_bytes"].as_u64().unwrap_or_default();
        } else if let (Some(activity), Some(dur)) = (activity_of(&event), event.dur) {
            let length = nanos(dur);
            if !is_of(plan, &activity) || start.max(length) > TIME_MAX {
                return false;
            }
            part.spans.push(Span { start, end: start + length, activity });
        }
        true
    }
}
