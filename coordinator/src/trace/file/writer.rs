//! Writes a trace, step by step.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use convoy_common::model::Network;
use convoy_common::trace::{Activity, Span};
use convoy_common::wire::TensorKey;

use super::event::{Args, Event, args_of, described, micros};
use super::*;

/// The limit of a file with a sample. Steps around an incident may exceed it.
const SAMPLE_BYTES_MAX: u64 = 45_000_000;
/// About the size of a step, which is written at once.
const STEP_BYTES: usize = 256 * 1024;
/// Tracks of a process: the first for sequential work, the others for transfers.
const MAIN_TRACK: u64 = 1;
const SEND_TRACK: u64 = 2;
const LANES: u64 = 10;
/// More simultaneous transfers share a track, so that a worker that makes them up costs no time.
const LANES_MAX: u64 = 32;

/// A trace that is being written.
#[derive(Debug)]
pub struct Writer {
    file: BufWriter<File>,
    network: Network,
    /// The current line.
    line: Vec<u8>,
    bytes: u64,
    first: bool,
    flows: u64,
    /// When each track was last in use.
    busy_until: HashMap<(u64, u64), u64>,
    named: HashMap<(u64, u64), String>,
}

impl Writer {
    /// Begins a trace. An existing file is replaced.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn create(path: &Path, about: &About, network: Network) -> std::io::Result<Self> {
        let mut file = BufWriter::with_capacity(STEP_BYTES, File::create(path)?);
        let about_text = serde_json::to_string(about).map_err(std::io::Error::other)?;
        write!(file, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about_text},\"traceEvents\":[")?;
        let (busy_until, named) = (HashMap::new(), HashMap::new());
        let mut writer = Self { file, network, line: Vec::new(), bytes: 0, first: true, flows: 0, busy_until, named };
        writer.name_process(COORDINATOR, "coordinator")?;
        for (worker, host) in about.hosts.iter_enumerated() {
            let name = format!("worker {worker}: {} on {host}", about.placement.described(worker));
            writer.name_process(FIRST_WORKER + worker.0 as u64, &name)?;
        }
        writer.file.flush()?;
        Ok(writer)
    }

    /// Whether the file has reached the limit of a sample.
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
        for (worker, part) in trace.workers.iter_enumerated() {
            let process = FIRST_WORKER + worker.0 as u64;
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

    /// Adds an incident.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn incident(&mut self, at: u64, what: &str) -> std::io::Result<()> {
        let incident = Event::new("i", "incident", what, (COORDINATOR, MAIN_TRACK), at);
        self.event(&Event { s: Some("g".into()), ..incident })?;
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
            let args = Args {
                step: Some(step),
                offset_ns: Some(offset),
                uncertainty_ns: Some(uncertainty),
                correction_ns: Some(correction),
                dropped: Some(part.dropped),
                resident_bytes: Some(part.resident_bytes),
                ..Args::default()
            };
            let clock = Event::new("i", "clock", "clock", (process, MAIN_TRACK), at);
            self.event(&Event { s: Some("p".into()), args, ..clock })?;
        }
        let mut spans: Vec<_> = part.spans.iter().collect();
        // Of spans that begin together, the longest comes first, because it contains the others.
        spans.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
        // A better offset than in the previous step may move this step's beginning before that step's end.
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
            let (cat, name) = described(&self.network, &span.activity);
            let mut args = Args { step: Some(step), ..args_of(&span.activity) };
            if let (Activity::Step { .. }, Own { figures, is_slow }) = (&span.activity, own) {
                args.is_slow = Some(is_slow);
                args.resident_bytes = Some(part.resident_bytes);
                args.loss = figures.map(|figures| figures.loss);
                args.images = figures.map(|figures| figures.images);
            }
            let dur = Some(micros(span.length()));
            self.event(&Event { dur, args, ..Event::new("X", cat, name, (process, track), span.start) })?;
        }
        Ok(())
    }

    /// A frame around everything that a worker did in a step. It only helps the eye.
    fn frame(&mut self, process: u64, step: u64, (start, end): (u64, u64)) -> std::io::Result<()> {
        let track = self.name_track(process, MAIN_TRACK, "compute".to_owned())?;
        let start = start.max(self.busy_until.get(&(process, track)).copied().unwrap_or(0));
        let name = format!("step {step}");
        let dur = Some(micros(end.saturating_sub(start)));
        let args = Args { step: Some(step), ..Args::default() };
        self.event(&Event { dur, args, ..Event::new("X", "frame", name, (process, track), start) })
    }

    /// The track of a span. Transfers that overlap get a track each.
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
        self.name("process_name", "process_sort_index", (process, 0), name, process)
    }

    fn name(
        &mut self,
        naming: &'static str,
        sorting: &'static str,
        place: (u64, u64),
        name: &str,
        order: u64,
    ) -> std::io::Result<()> {
        let args = Args { name: Some(name.into()), ..Args::default() };
        self.event(&Event { args, ..Event::new("M", "", naming, place, 0) })?;
        let args = Args { sort_index: Some(order), ..Args::default() };
        self.event(&Event { args, ..Event::new("M", "", sorting, place, 0) })
    }

    fn name_track(&mut self, process: u64, track: u64, name: String) -> std::io::Result<u64> {
        if !self.named.contains_key(&(process, track)) {
            self.name("thread_name", "thread_sort_index", (process, track), &name, track)?;
            self.named.insert((process, track), name);
        }
        Ok(track)
    }

    /// The flow of each tensor: from its sender, over the coordinator, to its receivers.
    fn flows(&mut self, flows: &Flows) -> std::io::Result<()> {
        for (tensor, stops) in &flows.ways {
            let Some(from) = stops.from.or_else(|| flows.sources.get(&source_of(tensor)).copied()) else { continue };
            let ends = if stops.to.is_empty() { vec![None] } else { stops.to.iter().copied().map(Some).collect() };
            let name = tensor.to_string();
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
                    let bp = (index > 0).then(|| "e".into());
                    let id = Some(self.flows);
                    self.event(&Event { id, bp, ..Event::new(ph, "tensor", name.as_str(), (process, track), at) })?;
                }
            }
        }
        Ok(())
    }

    fn counter(&mut self, process: u64, name: &str, at: u64, value: f64) -> std::io::Result<()> {
        // NaN is written as null, which Perfetto ignores.
        let args = Args { value: Some(value), ..Args::default() };
        self.event(&Event { args, ..Event::new("C", "figure", name, (process, 0), at) })
    }

    fn event(&mut self, event: &Event) -> std::io::Result<()> {
        self.line.clear();
        self.line.extend_from_slice(if std::mem::take(&mut self.first) { b"\n" } else { b",\n" });
        serde_json::to_writer(&mut self.line, event).map_err(std::io::Error::other)?;
        self.bytes += self.line.len() as u64;
        self.file.write_all(&self.line)
    }
}

/// What only the coordinator's part has.
#[derive(Clone, Copy, Default)]
struct Own {
    figures: Option<Figures>,
    is_slow: bool,
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

/// From when a worker began a step, possibly with a wait, to when it had finished.
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

fn relayed_bytes(span: &Span) -> u64 {
    if let Activity::Relay(transfer) = &span.activity { transfer.bytes } else { 0 }
}
