//! The recording of a job: the coordinator's own spans, those that workers hand over, and their clocks. A step that is kept is
//! written as soon as all of it is there. The current step is always held, in case of an incident.
//!
//! Not here: which steps are kept (`sampling`), and the file's format (`file`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use convoy_common::batch::Phase;
use convoy_common::index::{PerWorker, WorkerIndex};
use convoy_common::model::Network;
use convoy_common::trace::{Activity, Buffer, Span, Transfer};
use convoy_common::wire::{Pong, Recorded, TensorKey};
use memory_stats::memory_stats;

use super::alignment::{Alignment, RoundTrip};
use super::file::{About, Figures, Part, StepTrace, Writer, sent_by, source_of};
use super::otlp::{self, Exporter};
use super::sampling::Pace;
use super::{Clock, Sampling};

/// The most spans of a process in a step, so that a hostile worker can't fill the memory.
const SPANS_OF_STEP_MAX: usize = 64 * 1024;
/// The most steps whose spans are incomplete.
const OPEN_STEPS_MAX: usize = 4;

/// Records a job, or does nothing.
#[derive(Debug)]
pub struct Recorder {
    clock: Clock,
    recording: Option<Box<Recording>>,
}

/// A trace that is being recorded.
#[derive(Debug)]
pub struct Recording {
    writer: Option<Writer>,
    exporter: Option<Exporter>,
    about: About,
    network: Network,
    sampling: Sampling,
    pace: Pace,
    /// Steps that are kept because they are slow.
    slow: HashSet<u64>,
    first: u64,
    last: u64,
    /// The current step.
    at: u64,
    open: BTreeMap<u64, Open>,
    clocks: PerWorker<Alignment>,
    /// Tensors that have arrived in part: since when.
    arriving: HashMap<TensorKey, u64>,
    /// Steps that were left out because the file was full.
    left_out: u64,
    /// Steps up to this one have been written or dropped.
    closed_through: u64,
    /// The first error of writing the file.
    trouble: Option<std::io::Error>,
}

/// Which steps to close.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// Complete steps.
    Whole,
    /// Steps that are kept, complete or not.
    Kept,
    /// All steps.
    Everything,
}

/// A step whose spans are still arriving. Those of workers have their own clocks.
#[derive(Debug)]
struct Open {
    own: Buffer,
    workers: PerWorker<Buffer>,
    dropped: PerWorker<u64>,
    resident: PerWorker<u64>,
    own_resident: u64,
    complete: HashSet<WorkerIndex>,
    figures: Option<Figures>,
}

impl Open {
    fn new(workers: usize) -> Self {
        Self {
            own: Buffer::new(SPANS_OF_STEP_MAX),
            workers: (0..workers).map(|_| Buffer::new(SPANS_OF_STEP_MAX)).collect(),
            dropped: vec![0; workers].into(),
            resident: vec![0; workers].into(),
            own_resident: 0,
            complete: HashSet::new(),
            figures: None,
        }
    }
}

impl Recording {
    /// Begins a recording of steps `first` to `last`, into `path`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn begin(
        path: &Path,
        sampling: Sampling,
        (first, last): (u64, u64),
        about: About,
        network: Network,
        exporter: Option<Exporter>,
    ) -> std::io::Result<Self> {
        let writer = Some(Writer::create(path, &about, network.clone())?);
        let clocks = vec![Alignment::default(); about.hosts.len()].into();
        let (open, arriving) = (BTreeMap::new(), HashMap::new());
        Ok(Self {
            writer,
            exporter,
            about,
            network,
            sampling,
            pace: Pace::default(),
            slow: HashSet::new(),
            first,
            last,
            at: first,
            open,
            clocks,
            arriving,
            left_out: 0,
            closed_through: 0,
            trouble: None,
        })
    }

    /// Whether a step belongs to the sample.
    fn samples(&self, step: u64) -> bool {
        self.sampling.keeps(step, self.first, self.last)
    }

    fn keeps(&self, step: u64) -> bool {
        self.samples(step) || self.slow.contains(&step)
    }

    fn open(&mut self, step: u64) -> &mut Open {
        let workers = self.clocks.len();
        self.open.entry(step).or_insert_with(|| Open::new(workers))
    }

    fn note(&mut self, span: Span) {
        let step = match &span.activity {
            Activity::Step { step } => *step,
            Activity::Relay(Transfer { tensor, .. }) => tensor.training_step().unwrap_or(self.at),
            // Measurements belong to no step.
            Activity::AwaitImages(id) if id.phase == Phase::Evaluate => self.at,
            Activity::AwaitImages(id) | Activity::SendImages(id) | Activity::Loss(id) => id.step,
            _ => self.at,
        };
        self.open(step).own.push(span);
    }

    /// Takes what a worker hands over. Transfers belong to the step of their tensor, everything else to the step that the message
    /// names.
    fn take(&mut self, worker: WorkerIndex, recorded: Recorded) {
        // A worker can be one step behind, and no more.
        if recorded.step.saturating_add(OPEN_STEPS_MAX as u64) <= self.at || recorded.step > self.at + 1 {
            return;
        }
        if recorded.step <= self.closed_through {
            return;
        }
        let allowed = self.closed_through.max(self.at.saturating_sub(2)) + 1..=self.at + 2;
        for span in recorded.spans {
            let step = match &span.activity {
                Activity::Send(transfer) | Activity::Receive(transfer) => transfer.tensor.training_step(),
                _ => Some(recorded.step),
            };
            if let Some(step) = step.filter(|step| allowed.contains(step) || *step == recorded.step) {
                self.open(step).workers[worker].push(span);
            }
        }
        let open = self.open(recorded.step);
        open.dropped[worker] = open.dropped[worker].saturating_add(recorded.dropped);
        open.resident[worker] = open.resident[worker].max(recorded.resident_bytes);
        if !recorded.more {
            open.complete.insert(worker);
        }
    }

    /// Closes steps up to `through`: writes those that are kept, and drops the rest.
    fn close(&mut self, through: u64, which: Closing) {
        while let Some((step, open)) = self.open.first_key_value() {
            let step = *step;
            let keeps = which == Closing::Everything || self.keeps(step);
            let is_whole = open.complete.len() == self.clocks.len() || self.open.len() > OPEN_STEPS_MAX;
            if step > through || (keeps && !is_whole && which == Closing::Whole) {
                return;
            }
            let is_replay = step <= self.closed_through;
            self.closed_through = self.closed_through.max(step);
            if let Some((_, open)) = self.open.pop_first().filter(|_| keeps && !is_replay) {
                let trace = StepTrace { is_slow: self.slow.contains(&step), ..self.aligned(open) };
                self.slow.remove(&step);
                self.write(step, &trace, which == Closing::Everything);
            }
        }
    }

    /// A sample has a limit, which the steps around an incident may exceed.
    fn write(&mut self, step: u64, trace: &StepTrace, of_incident: bool) {
        if let Some(exporter) = &mut self.exporter {
            exporter.export(otlp::request(step, trace, &self.about, &self.network));
        }
        let Some(writer) = &mut self.writer else { return };
        if writer.is_full() && !self.sampling.is_unbounded() && !of_incident {
            self.left_out += 1;
            return;
        }
        if let Err(error) = writer.add(step, trace) {
            // A trace that can't be written doesn't stop the job. It is reported at the end.
            self.trouble.get_or_insert(error);
            self.writer = None;
        }
    }

    /// All parts on the coordinator's clock.
    fn aligned(&self, mut open: Open) -> StepTrace {
        let (own, own_dropped) = open.own.take();
        let began: HashMap<&TensorKey, u64> = own.iter().filter_map(began_here).collect();
        let step_began = own.iter().map(|span| span.start).min().unwrap_or(0);
        let sent_here: HashMap<_, _> = own.iter().filter_map(sent_by).collect();
        let workers = open.workers.iter_mut_enumerated().map(|(worker, buffer)| {
            let (clock, dropped, resident_bytes) = (&self.clocks[worker], open.dropped[worker], open.resident[worker]);
            let (spans, unkept) = buffer.take();
            let bounds = |span: &Span| match &span.activity {
                // It can't arrive here before it was sent there.
                Activity::Send(t) => {
                    (None, began.get(&t.tensor).map(|ours| (*ours as i64).saturating_sub(span.start as i64)))
                }
                // It can't arrive there before a part of it was here.
                Activity::Receive(t) => {
                    let ours = began.get(&t.tensor).or_else(|| sent_here.get(&source_of(&t.tensor)));
                    (ours.map(|ours| (*ours as i64).saturating_sub(span.start as i64)), None)
                }
                _ => (None, None),
            };
            let (earliest, latest): (Vec<_>, Vec<_>) = spans.iter().map(bounds).unzip();
            let earliest = earliest.into_iter().flatten().max();
            let latest = latest.into_iter().flatten().min();
            let offset = clock.offset(step_began, earliest, latest);
            let ours = |theirs: u64| (theirs as i64).saturating_add(offset.offset).max(0) as u64;
            let spans = spans.into_iter().map(|span| Span { start: ours(span.start), end: ours(span.end), ..span });
            let dropped = dropped.saturating_add(unkept);
            Part { spans: spans.collect(), offset: Some(offset), dropped, resident_bytes }
        });
        let mut workers = workers.collect();
        keep_causes_first(&mut workers);
        let resident_bytes = open.own_resident;
        let coordinator = Part { spans: own, offset: None, dropped: own_dropped, resident_bytes };
        StepTrace { coordinator, workers, figures: open.figures, is_slow: false }
    }
}

/// Between two workers, clocks are uncertain by the sum of both uncertainties. Nothing is received before its sender began to send it.
fn keep_causes_first(workers: &mut PerWorker<Part>) {
    let mut sent: HashMap<TensorKey, u64> = HashMap::new();
    for span in workers.iter().flat_map(|part| &part.spans) {
        if let Activity::Send(transfer) = &span.activity {
            sent.insert(transfer.tensor.clone(), span.start);
        }
    }
    for span in workers.iter_mut().flat_map(|part| &mut part.spans) {
        if let Activity::Receive(transfer) = &span.activity
            && let Some(began) = sent.get(&transfer.tensor)
        {
            span.start = span.start.max(*began);
            span.end = span.end.max(span.start);
        }
    }
}

/// When the coordinator received the first part of a tensor that it relayed.
fn began_here(span: &Span) -> Option<(&TensorKey, u64)> {
    match &span.activity {
        Activity::Relay(transfer) => Some((&transfer.tensor, span.start)),
        _ => None,
    }
}

impl Recorder {
    /// A recorder with this clock that records nothing yet.
    pub fn off(clock: Clock) -> Self {
        Self { clock, recording: None }
    }

    /// Starts recording.
    pub fn begin(&mut self, recording: Recording) {
        self.recording = Some(Box::new(recording));
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.recording.is_some()
    }

    /// Whether a step belongs to the sample.
    pub fn samples(&self, step: u64) -> bool {
        self.recording.as_ref().is_some_and(|recording| recording.samples(step))
    }

    /// Decides whether a step that began at `start` and is about to be committed is kept: as part of the sample, or because it is
    /// slow.
    pub fn decide(&mut self, step: u64, start: u64) -> bool {
        let took = self.now().saturating_sub(start);
        let Some(recording) = &mut self.recording else { return false };
        let is_slow = recording.pace.finds_slow(took);
        let keeps = recording.samples(step);
        if is_slow && !keeps && recording.sampling == Sampling::Sample {
            recording.slow.insert(step);
        }
        recording.keeps(step)
    }

    /// Its clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The time now, or 0 if nothing is recorded.
    pub fn now(&self) -> u64 {
        if self.is_on() { self.clock.now() } else { 0 }
    }

    /// Records that an activity that began at `start` has ended.
    pub fn ended(&mut self, start: u64, activity: impl FnOnce() -> Activity) {
        if let Some(recording) = &mut self.recording {
            recording.note(Span { start, end: self.clock.now(), activity: activity() });
        }
    }

    /// Records that a chunk of a relayed tensor arrived at `at`. `bytes`, the size of the tensor, is given with its last chunk.
    pub fn relayed(&mut self, tensor: Option<TensorKey>, at: u64, bytes: Option<u64>) {
        let Some(tensor) = tensor.filter(|tensor| tensor.training_step().is_some()) else { return };
        let Some(recording) = &mut self.recording else { return };
        let Some(bytes) = bytes else {
            recording.arriving.entry(tensor).or_insert(at);
            return;
        };
        let start = recording.arriving.remove(&tensor).unwrap_or(at);
        let transfer = Transfer { tensor, bytes, busy: 0 };
        recording.note(Span { start, end: self.clock.now(), activity: Activity::Relay(transfer) });
    }

    /// Takes a worker's answer to a ping, which arrived at `arrived`.
    pub fn on_pong(&mut self, worker: WorkerIndex, pong: Pong, arrived: u64) {
        if let Some(recording) = &mut self.recording {
            let Pong { ping_sent: sent, received, replied, .. } = pong;
            recording.clocks[worker].add(RoundTrip { sent, received, replied, arrived });
        }
    }

    /// Takes what a worker hands over.
    pub fn on_recorded(&mut self, worker: WorkerIndex, recorded: Recorded) {
        if let Some(recording) = &mut self.recording {
            recording.take(worker, recorded);
        }
    }

    /// Records a step that lasted from `start` to `end` and was committed.
    pub fn step_ended(&mut self, step: u64, (start, end): (u64, u64), figures: Figures) {
        if let Some(recording) = &mut self.recording {
            recording.note(Span { start, end, activity: Activity::Step { step } });
            if recording.keeps(step) {
                recording.open(step).own_resident = memory_stats().map_or(0, |memory| memory.physical_mem as u64);
            }
            recording.open(step).figures = Some(figures);
            recording.at = step + 1;
            // Workers have yet to hand over the step that has just ended.
            recording.close(step.saturating_sub(1), Closing::Whole);
        }
    }

    /// Goes back to the commit of `step`, with other workers. Steps that have been written are not written again.
    pub fn rewind(&mut self, step: u64) {
        if let Some(recording) = &mut self.recording {
            recording.at = step + 1;
            recording.open.clear();
            recording.arriving.clear();
            recording.clocks.fill(Alignment::default());
        }
    }

    /// Records an incident. What is known about the current step and the one before it is kept.
    pub fn incident(&mut self, what: &str) {
        let now = self.clock.now();
        let Some(recording) = &mut self.recording else { return };
        // The images of the next step may have been sent already; it has not begun.
        recording.close(recording.at, Closing::Everything);
        if let Some(writer) = &mut recording.writer
            && let Err(error) = writer.incident(now, what)
        {
            recording.trouble.get_or_insert(error);
            recording.writer = None;
        }
    }

    /// Ends the recording. Returns notices for people about what couldn't be written or sent.
    pub fn finish(&mut self) -> Vec<String> {
        let Some(mut recording) = self.recording.take() else { return Vec::new() };
        recording.close(u64::MAX, Closing::Kept);
        let written = match (recording.trouble, recording.writer) {
            (Some(trouble), _) => Err(trouble),
            (None, Some(writer)) => writer.finish(),
            (None, None) => Ok(()),
        };
        let unwritten =
            written.err().map(|error| format!("the trace is incomplete, because writing it failed: {error}"));
        let left_out = (recording.left_out > 0).then(|| {
            let steps = recording.left_out;
            format!("trace.json is full: {steps} steps of the sample are missing; --trace steps:FROM-TO has no limit")
        });
        unwritten.into_iter().chain(left_out).chain(recording.exporter.and_then(Exporter::finish)).collect()
    }
}
