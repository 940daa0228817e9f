//! Reads a trace as far as possible. Invalid lines are counted and ignored.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use convoy_common::batch::BATCH_MAX;
use convoy_common::index::{ExchangeIndex, SegmentIndex, WorkerIndex};
use convoy_common::model::Network;
use convoy_common::plan::Plan;
use convoy_common::text::printable;
use convoy_common::trace::Transfer;

use super::event::{Event, activity_of, nanos};
use super::*;
use crate::earlier::RECORD;
use crate::files::folder_of;

/// The longest line. The first one holds the model.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// The longest run, in nanoseconds: one year.
const TIME_MAX: u64 = 365 * 86_400 * 1_000_000_000;

/// Why a trace can't be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum TraceError {
    /// The file can't be read.
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    /// There is no run.
    #[error("{folder} is not the folder of a run: it has no {RECORD}")]
    NoRun { folder: PathBuf },
    /// The run has no trace.
    #[error("{path} does not exist: the run used --trace off, or has not begun its first step")]
    None { path: PathBuf },
    /// It wasn't written by Convoy.
    #[error("{path} is not a trace of Convoy: {why}")]
    Foreign { path: PathBuf, why: String },
    /// It has no step.
    #[error("{path} holds no step{}", if *.is_cut { ": it was cut short, or its job has just begun" } else { "" })]
    Empty { path: PathBuf, is_cut: bool },
}

/// Reads a trace.
///
/// # Errors
/// When it doesn't exist, isn't Convoy's, or holds no step.
pub fn read(path: &Path) -> Result<Trace, TraceError> {
    let file = match File::open(path) {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
            let folder = folder_of(path);
            return Err(match folder.join(RECORD).exists() {
                true => TraceError::None { path: path.to_owned() },
                false => TraceError::NoRun { folder: folder.to_owned() },
            });
        }
        file => file.map_err(|source| TraceError::Read { path: path.to_owned(), source })?,
    };
    let mut lines = Lines(BufReader::new(file));
    let mut next = || lines.next().map_err(|source| TraceError::Read { path: path.to_owned(), source });
    let about = about(&next()?.unwrap_or_default());
    let (about, plan) = about.map_err(|why| TraceError::Foreign { path: path.to_owned(), why })?;
    let mut trace = Trace { about, steps: BTreeMap::new(), incidents: Vec::new(), is_cut: true, unreadable: 0 };
    while let Some(line) = next()? {
        if line == "]}" {
            trace.is_cut = false;
            break;
        }
        let event = serde_json::from_str::<Event>(line.trim_end_matches(','));
        if !event.is_ok_and(|event| trace.take(event, &plan)) {
            trace.unreadable += 1;
        }
    }
    // The last line of a file that was cut doesn't count as invalid.
    trace.unreadable = trace.unreadable.saturating_sub(usize::from(trace.is_cut));
    if trace.steps.is_empty() {
        return Err(TraceError::Empty { path: path.to_owned(), is_cut: trace.is_cut });
    }
    Ok(trace)
}

/// The lines of a file, which may be endless.
struct Lines(BufReader<File>);

impl Lines {
    fn next(&mut self) -> std::io::Result<Option<String>> {
        let mut line = Vec::new();
        let read = (&mut self.0).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        let text = || String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
        Ok((read > 0).then(text))
    }
}

fn about(line: &str) -> Result<(About, Plan), String> {
    if line.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let whole = format!("{}]}}", line.trim_end());
    let header: serde_json::Value =
        serde_json::from_str(&whole).map_err(|_| "its first line is not the head of a trace".to_owned())?;
    let mut about: About =
        serde_json::from_value(header["otherData"].clone()).map_err(|error| format!("invalid head: {error}"))?;
    about.hosts.iter_mut().for_each(|host| *host = printable(host));
    if about.format != FORMAT {
        return Err(format!("its format is {}, and this program reads format {FORMAT}", about.format));
    }
    if !(1..=BATCH_MAX).contains(&about.batch) {
        return Err(format!("its batch is {}, but a job has 1 to {BATCH_MAX} images per step", about.batch));
    }
    let network = Network::parse(&about.model).map_err(|error| format!("invalid model: {error}"))?;
    let plan = Plan::placed(network, about.placement.clone()).map_err(|error| error.to_string())?;
    if plan.workers == about.hosts.len() {
        Ok((about, plan))
    } else {
        Err(format!("it names {} workers for a plan of {}", about.hosts.len(), plan.workers))
    }
}

/// Whether an activity is possible in the job.
fn is_of(plan: &Plan, activity: &Activity) -> bool {
    let has_segment = |segment: SegmentIndex| segment.0 < plan.segments.len();
    let has_exchange = |exchange: ExchangeIndex| exchange.0 < plan.segments.len();
    match activity {
        Activity::Segment(run) => has_segment(run.segment) && plan.parts(run.segment).any(|part| part == run.tower),
        Activity::Layer { layer, .. } => *layer < plan.network.layers.len(),
        Activity::Take(tensor)
        | Activity::AwaitTensor(tensor)
        | Activity::Send(Transfer { tensor, .. })
        | Activity::Receive(Transfer { tensor, .. })
        | Activity::Relay(Transfer { tensor, .. }) => match tensor {
            TensorKey::Activations { exchange, direction, from_tower, to_tower, .. } => {
                has_exchange(*exchange)
                    && plan.senders(*exchange, *direction).any(|from| from == *from_tower)
                    && to_tower.is_none_or(|to| plan.parts(exchange.segment_before()).any(|part| part == to))
            }
            TensorKey::Gradient { tower, node, .. } => {
                plan.all_towers().any(|of| of == *tower) && node.as_ref().is_none_or(|node| node.start < node.end)
            }
            _ => true,
        },
        _ => true,
    }
}

impl Trace {
    /// Adds an event. Returns whether it was valid.
    fn take(&mut self, event: Event, plan: &Plan) -> bool {
        let (start, args) = (nanos(event.ts), &event.args);
        if event.cat == "incident" {
            self.incidents.push((start, printable(&event.name)));
            return true;
        }
        let Some(step) = args.step else { return true };
        let workers = self.about.hosts.len();
        let of_step = self.steps.entry(step).or_default();
        of_step.workers.resize_with(workers, Part::default);
        let part = match event.pid.checked_sub(FIRST_WORKER) {
            None => &mut of_step.coordinator,
            Some(worker) => match of_step.workers.get_mut(WorkerIndex(worker as usize)) {
                Some(part) => part,
                None => return false,
            },
        };
        if args.images.is_some_and(|images| images > self.about.batch) {
            return false;
        }
        if event.cat == "step" {
            of_step.is_slow = args.is_slow.unwrap_or_default();
            part.resident_bytes = args.resident_bytes.unwrap_or_default();
            of_step.figures = args.loss.zip(args.images).map(|(loss, images)| Figures { loss, images });
        }
        if event.cat == "clock" {
            part.offset = Some(Offset {
                offset: args.offset_ns.unwrap_or_default(),
                uncertainty: args.uncertainty_ns.unwrap_or_default(),
                correction: args.correction_ns.unwrap_or_default(),
            });
            part.dropped = args.dropped.unwrap_or_default();
            part.resident_bytes = args.resident_bytes.unwrap_or_default();
        } else if let (Some(activity), Some(dur)) = (activity_of(&event.cat, args), event.dur) {
            let length = nanos(dur);
            if !is_of(plan, &activity) || dur < 0.0 || start.max(length) > TIME_MAX {
                return false;
            }
            part.spans.push(Span { start, end: start + length, activity });
        }
        true
    }
}
