//! The path of each tensor of a step, from the worker that computed it to the worker that waited for it: which worker or link a
//! wait is attributed to, how the critical path goes from worker to worker, and what each exchange moved.

use std::collections::{BTreeMap, HashMap, HashSet};

use convoy_common::batch::MicroBatchId;
use convoy_common::index::{ExchangeIndex, PerWorker, SegmentIndex, WorkerIndex};
use convoy_common::placement::Half;
use convoy_common::plan::Plan;
use convoy_common::trace::{Activity, SegmentRun, Span, Transfer};
use convoy_common::wire::{Direction, TensorKey};

use super::batches::Batches;
use super::figures::{ExchangeAccount, Stretch, Use};
use super::timeline::{Timeline, layer_use, plain_use};
use crate::trace::file::{Part, Source, StepTrace, sent_by, source_of, step_span};

/// No critical path has more stretches.
const STRETCHES_MAX: usize = 100_000;

/// A stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Between {
    from: u64,
    to: u64,
}

impl Between {
    /// How much of it lies between `start` and `end`.
    pub(super) fn within(self, start: u64, end: u64) -> u64 {
        self.to.min(end).saturating_sub(self.from.max(start))
    }
}

/// Where a tensor came from, and when.
#[derive(Clone, Copy, Debug)]
struct Origin {
    /// The worker that computed it, and when it had. None if the coordinator made it.
    producer: Option<(WorkerIndex, u64)>,
    /// When the coordinator had received all of it.
    had: u64,
    /// When the coordinator began to send it.
    sent: u64,
    /// Whether it came straight from its producer. Then the coordinator never had it.
    is_direct: bool,
}

/// When each tensor was computed and relayed.
pub(super) struct Ways<'a> {
    plan: &'a Plan,
    computed: HashMap<SegmentRun, (WorkerIndex, u64)>,
    /// The worker that was the last to compute anything backward, and when it had.
    last: Option<(WorkerIndex, u64)>,
    relayed: HashMap<TensorKey, (u64, u64)>,
    /// The worker that began to send each tensor, and when.
    sending: HashMap<TensorKey, (WorkerIndex, u64)>,
    sent: HashMap<Source, (u64, u64)>,
    /// When the coordinator decided the commit.
    decided: u64,
}

impl<'a> Ways<'a> {
    pub(super) fn of(traced: &StepTrace, plan: &'a Plan) -> Self {
        let (mut computed, mut sending, mut last) = (HashMap::new(), HashMap::new(), None);
        for (worker, part) in traced.workers.iter_enumerated() {
            for span in &part.spans {
                if let Activity::Send(transfer) = &span.activity {
                    sending.insert(transfer.tensor.clone(), (worker, span.start));
                }
                if let Activity::Segment(run) = span.activity {
                    match plan.segments[run.segment].half {
                        // A backward pass is interrupted after each layer with weights. The gradient of its input comes from the end of it.
                        Half::Trunk => drop(computed.insert(run, (worker, span.end))),
                        // The weight gradients of the head, which come later, count as the same run, and no tensor comes from them.
                        Half::Head => drop(computed.entry(run).or_insert((worker, span.end))),
                    }
                    if run.direction == Direction::Backward && last.is_none_or(|(_, end)| end < span.end) {
                        last = Some((worker, span.end));
                    }
                }
            }
        }
        let own = &traced.coordinator.spans;
        let relayed = own.iter().filter_map(|span| match &span.activity {
            Activity::Relay(Transfer { tensor, .. }) => Some((tensor.clone(), (span.start, span.end))),
            _ => None,
        });
        let sent = own.iter().filter_map(|span| Some((sent_by(span)?.0, (span.start, span.end))));
        Self {
            plan,
            computed,
            last,
            relayed: relayed.collect(),
            sending,
            sent: sent.collect(),
            decided: step_span(&traced.coordinator).map_or(0, |span| span.end),
        }
    }

    /// Where a tensor that `receiver` waited for came from.
    fn origin(&self, receiver: WorkerIndex, tensor: &TensorKey) -> Option<Origin> {
        let sender = self.sending.get(tensor).copied();
        let is_direct = sender.is_some_and(|(sender, _)| self.plan.links.is_direct(sender, receiver));
        if let TensorKey::Gradient { .. } = tensor {
            if is_direct {
                let (_, began) = sender?;
                return Some(Origin { producer: sender, had: began, sent: began, is_direct });
            }
            let (began, ended) = self.relayed.get(tensor).copied()?;
            return Some(Origin {
                producer: Some((self.sender_of(tensor)?, began)),
                had: ended,
                sent: ended,
                is_direct,
            });
        }
        // What a worker sent is a worker's, whatever its key looks like.
        let source = if sender.is_some() { Source::Worker } else { source_of(tensor) };
        if source == Source::Worker {
            let TensorKey::Activations { micro_batch, exchange, direction, from_tower, .. } = tensor else {
                return None;
            };
            let segment = match direction {
                Direction::Forward => exchange.segment_before(),
                Direction::Backward => exchange.segment_after(),
            };
            let run = SegmentRun { micro_batch: micro_batch.id, segment, tower: *from_tower, direction: *direction };
            let producer = self.computed.get(&run).copied()?;
            let had = if is_direct { producer.1 } else { self.relayed.get(tensor)?.1 };
            return Some(Origin { producer: Some(producer), had, sent: had, is_direct });
        }
        let (had, sent) = self.sent.get(&source).copied()?;
        let producer = match source {
            Source::Loss(id) => {
                let last = self.plan.logits_exchange().segment_before();
                Some(self.last_logits(id).or_else(|| self.last_of(id, last, Direction::Forward))?)
            }
            _ => None,
        };
        Some(Origin { producer, had, sent, is_direct })
    }

    /// The worker that sends a piece of a gradient. The owner of the piece sends the sum over all slots. The worker that computes
    /// the slots of a node sends the sum over this node.
    fn sender_of(&self, tensor: &TensorKey) -> Option<WorkerIndex> {
        let TensorKey::Gradient { name, tower, piece, node, .. } = tensor else { return None };
        let holds = |worker: &WorkerIndex, slot| self.plan.placement.slots_at(*worker, *tower).any(|held| held == slot);
        match node {
            Some(node) => {
                let sharers = self.plan.placement.sharers(Half::Trunk, *tower);
                sharers.into_iter().find(|worker| holds(worker, node.start))
            }
            None => {
                let bundle = self.plan.bundle(name)?;
                self.plan.pieces(bundle, *tower).get(*piece).map(|piece| piece.owner)
            }
        }
    }

    /// Where the commit came from: from the worker that was the last to have its gradients.
    fn origin_of_commit(&self) -> Option<Origin> {
        Some(Origin { producer: Some(self.last?), had: self.decided, sent: self.decided, is_direct: false })
    }

    /// The worker whose logits of a micro-batch were the last to arrive, and when it had computed them.
    fn last_logits(&self, id: MicroBatchId) -> Option<(WorkerIndex, u64)> {
        let logits = self.plan.logits_exchange();
        let arrived = self.relayed.iter().filter_map(|(tensor, (_, end))| match tensor {
            TensorKey::Activations { micro_batch, exchange, direction: Direction::Forward, from_tower, .. }
                if micro_batch.id == id && *exchange == logits =>
            {
                Some((*end, *from_tower))
            }
            _ => None,
        });
        let (_, tower) = arrived.max()?;
        let run =
            SegmentRun { micro_batch: id, segment: logits.segment_before(), tower, direction: Direction::Forward };
        self.computed.get(&run).copied()
    }

    fn last_of(&self, id: MicroBatchId, segment: SegmentIndex, direction: Direction) -> Option<(WorkerIndex, u64)> {
        let run = |tower| SegmentRun { micro_batch: id, segment, tower, direction };
        let parts = self.plan.parts(segment);
        parts.filter_map(|tower| self.computed.get(&run(tower)).copied()).max_by_key(|(_, end)| *end)
    }

    fn origin_of_wait(&self, worker: WorkerIndex, wait: &Span) -> Option<Origin> {
        match &wait.activity {
            Activity::AwaitTensor(tensor) => self.origin(worker, tensor),
            _ => self.origin_of_commit().filter(|origin| origin.producer.is_some_and(|(_, end)| end <= wait.end)),
        }
    }

    /// What a worker waited for, and when.
    pub(super) fn blame(&self, worker: WorkerIndex, wait: &Span) -> Vec<(Use, Between)> {
        let between = |from, to| Between { from, to };
        let Some(Origin { producer, had, sent, is_direct }) = self.origin_of_wait(worker, wait) else {
            return vec![(Use::WaitingForCoordinator, between(wait.start, wait.end))];
        };
        // Clocks are uncertain, and no time must be counted twice.
        let computed = producer.map_or(had, |(_, end)| end).min(wait.end);
        let (had, sent) = (had.clamp(computed, wait.end), sent.clamp(computed, wait.end));
        let before = match producer {
            Some((other, _)) if other != worker => Use::WaitingForWorker { worker: other },
            _ => Use::WaitingForCoordinator,
        };
        if let (true, Some((other, _))) = (is_direct, producer) {
            let link = Use::WaitingForPeerLink { worker: other };
            return vec![(before, between(0, computed)), (link, between(computed, wait.end))];
        }
        let up = producer.map_or(Use::WaitingForCoordinator, |(worker, _)| Use::WaitingForLink { worker });
        vec![
            (before, between(0, computed)),
            (up, between(computed, had)),
            (Use::WaitingForCoordinator, between(had, sent.max(had))),
            (Use::WaitingForLink { worker }, between(sent.max(had), wait.end)),
        ]
    }

    /// From the commit back to the images. The path stays with a worker while that worker is busy. Where it waited for a tensor
    /// that another worker had not computed yet, the path continues with that worker.
    pub(super) fn critical_path(&self, timelines: &PerWorker<Timeline>, step: &Span) -> BTreeMap<Stretch, u64> {
        let mut path = BTreeMap::new();
        let Some(Origin { producer: Some((mut worker, mut at)), .. }) = self.origin_of_commit() else { return path };
        let mut add = |stretch, ns| *path.entry(stretch).or_default() += ns;
        add(Stretch::Link { worker }, step.end.saturating_sub(at));
        for _ in 0..STRETCHES_MAX {
            let timeline = &timelines[worker];
            let before = timeline.main.partition_point(|span| span.start < at);
            let Some(span) = before.checked_sub(1).map(|index| timeline.main[index]) else { break };
            if at <= timeline.start {
                break;
            }
            if span.end < at {
                add(Stretch::Work { worker, doing: Use::Unexplained }, at - span.end.max(timeline.start));
                at = span.end;
                continue;
            }
            let start = span.start.max(timeline.start);
            match &span.activity {
                Activity::AwaitTensor(_) => {
                    let producer = self.origin_of_wait(worker, span).and_then(|origin| origin.producer);
                    let late = producer.filter(|(_, computed)| (start..at).contains(computed));
                    let until = late.map_or(start, |(_, computed)| computed);
                    for (doing, part) in self.blame(worker, span) {
                        let stretch = match doing {
                            Use::WaitingForLink { worker } => Stretch::Link { worker },
                            Use::WaitingForPeerLink { worker: from } => Stretch::PeerLink { from, to: worker },
                            _ => Stretch::Coordinator,
                        };
                        add(stretch, part.within(until, at));
                    }
                    (worker, at) = late.unwrap_or((worker, start));
                }
                Activity::AwaitOrder => {
                    add(Stretch::Coordinator, at - start);
                    at = start;
                }
                Activity::Segment(_) => {
                    let mut rest = at - start;
                    for (doing, ns) in timeline.within(span).filter_map(layer_use) {
                        let ns = ns.min(rest);
                        rest -= ns;
                        add(Stretch::Work { worker, doing }, ns);
                    }
                    add(Stretch::Work { worker, doing: Use::Segments }, rest);
                    at = start;
                }
                activity => {
                    add(Stretch::Work { worker, doing: plain_use(activity) }, at - start);
                    at = start;
                }
            }
        }
        // A step begins when the coordinator decides the previous commit, which the worker still has to get and to apply. Its span belongs to
        // the step before, so it counts with the length of this step's commit.
        let rest = at.saturating_sub(step.start);
        let commits = timelines[worker].main.iter().filter(|span| matches!(span.activity, Activity::Commit { .. }));
        let committing = commits.map(|span| span.length()).max().unwrap_or(0).min(rest);
        add(Stretch::Work { worker, doing: Use::Committing }, committing);
        add(Stretch::Link { worker }, rest - committing);
        path.retain(|_, ns| *ns > 0);
        path
    }
}

/// What each exchange moved, and how long it took.
pub(super) fn exchanges(steps: &[&StepTrace], plan: &Plan, batches: &Batches) -> Vec<ExchangeAccount> {
    let mut found: BTreeMap<(Option<ExchangeIndex>, bool), Moved> = BTreeMap::new();
    for step in steps {
        let mut began: HashMap<TensorKey, u64> = HashMap::new();
        let sources: HashMap<_, _> = step.coordinator.spans.iter().filter_map(sent_by).collect();
        let relayed: HashSet<_> = step.coordinator.spans.iter().filter_map(relayed_tensor).collect();
        for span in step.workers.iter().flat_map(|part| &part.spans) {
            if let Activity::Send(transfer) = &span.activity {
                began.insert(transfer.tensor.clone(), span.start);
                let moved = found.entry(exchange_of(&transfer.tensor)).or_default();
                // What goes straight to its receivers counts where it arrives.
                if relayed.contains(&transfer.tensor) {
                    moved.bytes = moved.bytes.saturating_add(transfer.bytes);
                }
                // Logits end at the coordinator.
                if exchange_of(&transfer.tensor) == (Some(plan.logits_exchange()), false) {
                    moved.took(span.length());
                }
            }
        }
        for part in &step.workers {
            let computing = computing(part);
            for span in &part.spans {
                let Activity::Receive(transfer) = &span.activity else { continue };
                let moved = found.entry(exchange_of(&transfer.tensor)).or_default();
                moved.bytes = moved.bytes.saturating_add(transfer.bytes);
                let from = began.get(&transfer.tensor).or_else(|| sources.get(&source_of(&transfer.tensor)));
                if let Some(from) = from {
                    moved.took(span.end.saturating_sub(*from));
                    moved.hidden = moved.hidden.saturating_add(time_within(&computing, *from, span.end));
                }
            }
        }
    }
    let account = |((exchange, backward), moved): ((Option<ExchangeIndex>, bool), Moved)| ExchangeAccount {
        exchange,
        backward,
        planned_bytes: batches.mean(|images| match exchange {
            None if backward => plan.reduction_traffic(images).total(),
            None => plan.image_traffic(images).total(),
            Some(exchange) if backward => plan.backward_traffic(exchange, images).total(),
            Some(exchange) => plan.forward_traffic(exchange, images).total(),
        }),
        bytes: moved.bytes as f64 / steps.len() as f64,
        mean_ns: moved.total as f64 / moved.count.max(1) as f64,
        max_ns: moved.max,
        hidden_share: (moved.total > 0)
            .then(|| moved.hidden as f64 / moved.total as f64)
            .filter(|_| backward || exchange.is_some_and(|exchange| exchange != plan.logits_exchange())),
    };
    found.into_iter().map(account).collect()
}

/// When a worker computed, in order.
fn computing(part: &Part) -> Vec<Between> {
    let segments = part.spans.iter().filter(|span| matches!(span.activity, Activity::Segment(_)));
    let mut all: Vec<_> = segments.map(|span| Between { from: span.start, to: span.end }).collect();
    all.sort_by_key(|between| between.from);
    all
}

/// How much of `all`, which are in order and do not overlap, lies between `start` and `end`.
fn time_within(all: &[Between], start: u64, end: u64) -> u64 {
    let first = all.partition_point(|between| between.to <= start);
    let of_these = all[first..].iter().take_while(|between| between.from < end);
    of_these.map(|between| between.within(start, end)).sum()
}

fn relayed_tensor(span: &Span) -> Option<&TensorKey> {
    match &span.activity {
        Activity::Relay(transfer) => Some(&transfer.tensor),
        _ => None,
    }
}

#[derive(Default)]
struct Moved {
    bytes: u64,
    count: u64,
    total: u64,
    max: u64,
    /// The part of `total` during which the receivers computed.
    hidden: u64,
}

impl Moved {
    fn took(&mut self, ns: u64) {
        self.count += 1;
        self.total += ns;
        self.max = self.max.max(ns);
    }
}

fn exchange_of(tensor: &TensorKey) -> (Option<ExchangeIndex>, bool) {
    match tensor {
        TensorKey::Activations { exchange, direction, .. } => (Some(*exchange), *direction == Direction::Backward),
        TensorKey::Gradient { .. } => (None, true),
        TensorKey::Images(_) | TensorKey::Parameter { .. } => (None, false),
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::batch::{MicroBatch, Phase};
    use convoy_common::index::TowerIndex;
    use convoy_common::links::Links;
    use convoy_common::model::{Network, presets};

    use super::*;

    /// `alexnet-fashion` on four workers: workers 0 and 1 hold the head and replica 0, workers 2 and 3 hold replica 1.
    fn plan() -> Plan {
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        Plan::new(network, 4, 2, None).unwrap().linked(Links::direct())
    }

    fn id(slot: u32) -> MicroBatchId {
        MicroBatchId { step: 1, phase: Phase::Train, slot, micro_batch: 0 }
    }

    fn traced(spans: Vec<(usize, u64, u64, Activity)>) -> StepTrace {
        let mut workers: PerWorker<Part> = (0..4).map(|_| Part::default()).collect();
        for (worker, start, end, activity) in spans {
            workers[WorkerIndex(worker)].spans.push(Span { start, end, activity });
        }
        StepTrace { workers, ..StepTrace::default() }
    }

    /// In the trunk, the gradient of the input comes from the end of an interrupted pass. In the head, it comes from the pass itself, and the
    /// weight gradients, which count as the same run, come later.
    #[test]
    fn the_gradient_of_an_input_comes_from_the_pass_that_computed_it() {
        let plan = plan();
        let run = |segment| SegmentRun {
            micro_batch: id(0),
            segment: SegmentIndex(segment),
            tower: TowerIndex(0),
            direction: Direction::Backward,
        };
        let head = plan.segments.len() - 1;
        let twice = |run| [(0, 10, 20, Activity::Segment(run)), (0, 30, 40, Activity::Segment(run))];
        let traced = traced([twice(run(1)), twice(run(head))].concat());
        let ways = Ways::of(&traced, &plan);
        assert_eq!(plan.segments[SegmentIndex(1)].half, Half::Trunk);
        assert_eq!(ways.computed[&run(1)], (WorkerIndex(0), 40));
        assert_eq!(ways.computed[&run(head)], (WorkerIndex(0), 20));
    }

    /// Slice 0 of the head sends the gradient of its input to tower 0 of another worker. It is no gradient of logits.
    #[test]
    fn a_gradient_from_the_slice_with_the_same_number_comes_from_its_worker() {
        let plan = plan();
        let (from, to) = (WorkerIndex(0), WorkerIndex(2));
        let exchange =
            plan.all_exchanges().find(|exchange| plan.segments[exchange.segment_after()].half == Half::Head).unwrap();
        let tensor = TensorKey::Activations {
            micro_batch: MicroBatch { id: id(1), samples: 0..1 },
            exchange,
            direction: Direction::Backward,
            from_tower: TowerIndex(0),
            to_tower: Some(TowerIndex(0)),
        };
        let run = SegmentRun {
            micro_batch: id(1),
            segment: exchange.segment_after(),
            tower: TowerIndex(0),
            direction: Direction::Backward,
        };
        let sending = Activity::Send(Transfer { tensor: tensor.clone(), bytes: 4, busy: 1 });
        let mut traced = traced(vec![(0, 10, 20, Activity::Segment(run)), (0, 21, 22, sending)]);
        traced.coordinator.spans.push(Span { start: 1, end: 2, activity: Activity::Loss(id(1)) });
        let origin = Ways::of(&traced, &plan).origin(to, &tensor).unwrap();
        assert_eq!((origin.producer, origin.is_direct), (Some((from, 20)), true));
    }

    #[test]
    fn the_time_within_a_stretch_counts_parts_of_what_overlaps_it() {
        let all = [(10, 20), (20, 30), (40, 50)].map(|(from, to)| Between { from, to });
        for (start, end, expected) in [(0, 10, 0), (0, 100, 30), (15, 45, 20), (30, 40, 0), (41, 42, 1), (50, 60, 0)] {
            assert_eq!(time_within(&all, start, end), expected, "from {start} to {end}");
        }
        assert_eq!(time_within(&[], 0, 10), 0);
    }
}
