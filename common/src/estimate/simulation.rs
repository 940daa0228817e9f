//! A few steps, event by event: tensors that arrive, passes that end, commits. It follows a worker's engine, without values: it counts what
//! has arrived, and computes in the same order (`worker/src/engine/tasks.rs`).
//!
//! Not here: that the engine keeps backward passes of the trunk in the order of their samples, that it looks at what has arrived only
//! between two tasks, and that a slow link blocks its compute thread when the queue of the network thread is full.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use super::events::{Events, Time, time};
use super::links::{End, Links};
use super::reductions::Reduction;
use crate::batch::{Division, MicroBatch};
use crate::index::{ExchangeIndex, PerWorker, SegmentIndex, TowerIndex, WorkerIndex};
use crate::placement::Half;
use crate::plan::Plan;
use crate::wire::{CHUNK_BYTES, Direction};

/// Steps that are executed. The images of the first one are not sent ahead, and during the last one, none are sent.
const STEPS: u64 = 5;

/// What machines and their links do per second. Every worker has a link of its own, and so has the coordinator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating-point operations of one worker. A multiply-add counts as two.
    pub operations: f64,
    /// Bits that a link carries in each direction. Infinite where nothing limits it.
    pub bits: f64,
}

/// The estimate of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Seconds from commit to commit.
    pub seconds: f64,
    /// Seconds of them in which the busiest worker computes.
    pub computing: f64,
    /// Seconds of them in which the busiest link sends or receives, whichever takes longer.
    pub carrying: f64,
    /// Whose link that is.
    pub busiest: End,
}

/// A message. Micro-batches are named by their position in the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Message {
    Images {
        step: u64,
        micro_batch: usize,
    },
    /// A part's output of the segment before an exchange. Logits, at the last one.
    Output {
        micro_batch: usize,
        exchange: ExchangeIndex,
    },
    /// A part's share of the gradient of another one's output.
    Partial {
        micro_batch: usize,
        exchange: ExchangeIndex,
        to: TowerIndex,
    },
    /// A worker's partial sums of the pieces of a reduction that others own.
    PartialSums(usize),
    /// The sum of a piece, from its owner.
    WholeSum(usize),
}

/// A message on its way, and the bytes that each receiver gets of it.
#[derive(Debug)]
struct Parcel {
    message: Message,
    to: Vec<(WorkerIndex, u64)>,
}

#[derive(Debug)]
enum Event {
    /// It is handed to the sender's link.
    Sent {
        from: End,
        parcel: Parcel,
    },
    /// Its first byte has left the sender.
    Leaves(Parcel),
    /// The same, for the coordinator, which gets `bytes` bytes for itself, or to relay them.
    LeavesForCoordinator {
        parcel: Parcel,
        bytes: u64,
    },
    /// The first byte of a message for a worker has left the sender.
    Reaches {
        worker: WorkerIndex,
        bytes: u64,
        message: Message,
    },
    Arrived {
        worker: WorkerIndex,
        message: Message,
    },
    LogitsArrived {
        micro_batch: usize,
    },
    Computed {
        worker: WorkerIndex,
    },
    PieceSummed {
        reduction: usize,
        owner: WorkerIndex,
    },
    Reduced {
        worker: WorkerIndex,
    },
}

#[derive(Clone, Copy, Debug)]
enum Task {
    Forward {
        micro_batch: usize,
        segment: SegmentIndex,
        part: TowerIndex,
    },
    /// The backward pass of the layers of a segment that are left: those before `end`.
    Backward {
        micro_batch: usize,
        segment: SegmentIndex,
        part: TowerIndex,
        end: usize,
    },
    /// The weight gradients of a layer of the head, over all samples.
    WeightGradients {
        layer: usize,
        part: TowerIndex,
    },
}

#[derive(Debug, Default)]
struct Worker {
    /// Tasks of the head, which come first.
    head: VecDeque<Task>,
    trunk: VecDeque<Task>,
    /// Those of the head, which come last.
    weight_gradients: VecDeque<Task>,
    computes: Option<Task>,
    computing: Time,
    /// Backward passes, weight gradients and reductions of the step that haven't ended.
    owed: usize,
}

/// A job of a few steps, as it goes on.
#[derive(Debug)]
pub(super) struct Simulation<'a> {
    plan: &'a Plan,
    batch: usize,
    micro_batches: Vec<MicroBatch>,
    seconds_an_operation: f64,
    now: Time,
    events: Events<Event>,
    links: Links,
    workers: PerWorker<Worker>,
    /// The step at hand, counted from 1, and when each one ended.
    step: u64,
    commits: Vec<Time>,
    /// Workers that owe something.
    unfinished: usize,
    /// Images that arrived before their step.
    early: HashSet<(u64, usize, WorkerIndex)>,
    /// Outputs that are missing for the input of the next segment, and partial gradients for a backward pass.
    gathers: HashMap<(usize, ExchangeIndex, WorkerIndex), usize>,
    partials: HashMap<(usize, ExchangeIndex, TowerIndex), usize>,
    logits: HashMap<usize, usize>,
    /// Backward passes that are left of each segment, part and worker.
    left: HashMap<(SegmentIndex, TowerIndex, WorkerIndex), usize>,
    reductions: Vec<Reduction>,
}

impl<'a> Simulation<'a> {
    pub(super) fn new(plan: &'a Plan, batch: usize, division: Division, rates: Rates) -> Self {
        let division = Division { slots: plan.placement.slots, ..division };
        Self {
            plan,
            batch,
            micro_batches: division.of(1, batch),
            seconds_an_operation: 1.0 / rates.operations,
            now: 0,
            events: Events::new(),
            links: Links::new(plan.workers, rates.bits),
            workers: plan.all_workers().map(|_| Worker::default()).collect(),
            step: 0,
            commits: Vec::new(),
            unfinished: 0,
            early: HashSet::new(),
            gathers: HashMap::new(),
            partials: HashMap::new(),
            logits: HashMap::new(),
            left: HashMap::new(),
            reductions: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Estimate {
        self.send_images(1);
        self.begin_step();
        while let Some((at, event)) = self.events.next() {
            self.now = at;
            self.happens(event);
        }
        let seconds = |time: Time| time as f64 / 1e9;
        let computing = self.workers.iter().map(|worker| worker.computing).max().unwrap_or(0);
        let (busiest, carrying) = self.links.busiest();
        // The mean of the steps in the middle.
        assert_eq!(self.commits.len() as u64, STEPS, "every step of a plan ends");
        let usual = ((self.commits[3] - self.commits[1]) / 2).max(1);
        Estimate {
            seconds: seconds(usual),
            computing: seconds(computing / STEPS),
            carrying: seconds(carrying / STEPS),
            busiest,
        }
    }

    /// The coordinator has committed the step before. It sends the images of the step that follows this one.
    fn begin_step(&mut self) {
        self.step += 1;
        self.gathers.clear();
        self.partials.clear();
        self.logits.clear();
        self.reductions = Reduction::all(self.plan, self.batch);
        self.count_what_is_owed();
        if self.step < STEPS {
            self.send_images(self.step + 1);
        }
        for micro_batch in 0..self.micro_batches.len() {
            for worker in self.holders(SegmentIndex(0), micro_batch) {
                if self.early.remove(&(self.step, micro_batch, worker)) {
                    self.queue_forward(worker, micro_batch, SegmentIndex(0));
                }
            }
        }
    }

    fn count_what_is_owed(&mut self) {
        let plan = self.plan;
        self.left.clear();
        for micro_batch in &self.micro_batches {
            for segment in plan.segments.keys() {
                for part in plan.parts(segment) {
                    let worker = plan.holder(segment, part, micro_batch.id);
                    *self.left.entry((segment, part, worker)).or_default() += 1;
                }
            }
        }
        for ((segment, _, worker), passes) in &self.left {
            let in_head = plan.segments[*segment].half == Half::Head;
            let weights = if in_head { self.layers_with_weights(*segment).count() } else { 0 };
            self.workers[*worker].owed += passes + weights;
        }
        for reduction in &self.reductions {
            reduction.sharers.iter().for_each(|worker| self.workers[*worker].owed += 1);
        }
        self.unfinished = self.workers.iter().filter(|worker| worker.owed > 0).count();
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Sent { from, parcel } => self.hand_to_link(from, parcel),
            Event::Leaves(parcel) => self.spread(&parcel),
            Event::LeavesForCoordinator { parcel, bytes } => self.reach_coordinator(parcel, bytes),
            Event::Reaches { worker, bytes, message } => {
                let (_, ends) = self.links.receive(End::Worker(worker), bytes, self.now);
                self.events.add(ends, Event::Arrived { worker, message });
            }
            Event::Arrived { worker, message } => self.arrived(worker, message),
            Event::LogitsArrived { micro_batch } => self.send_gradients_of_logits(micro_batch),
            Event::Computed { worker } => self.computed(worker),
            Event::PieceSummed { reduction, owner } => self.share_sum(reduction, owner),
            Event::Reduced { worker } => self.settles(worker),
        }
    }

    /// Sends a parcel: straight to those with a direct link, and once to the coordinator for all others.
    fn hand_to_link(&mut self, from: End, Parcel { message, to }: Parcel) {
        let links = &self.plan.links;
        let is_direct = |(to, _): &(WorkerIndex, u64)| match from {
            End::Coordinator => true,
            End::Worker(from) => links.is_direct(from, *to),
        };
        let (direct, relayed): (Vec<_>, Vec<_>) = to.into_iter().partition(is_direct);
        let all = |to: &[(WorkerIndex, u64)]| to.iter().map(|(_, bytes)| bytes).sum::<u64>();
        if !direct.is_empty() {
            let begins = self.links.send(from, all(&direct), self.now);
            self.events.add(begins, Event::Leaves(Parcel { message, to: direct }));
        }
        if let Some((_, of_one)) = relayed.first() {
            // One tensor for all receivers, but a piece of a gradient for each.
            let is_one = matches!(message, Message::Output { .. } | Message::WholeSum(_));
            let bytes = if is_one { *of_one } else { all(&relayed) };
            let begins = self.links.send(from, bytes, self.now);
            let parcel = Parcel { message, to: relayed };
            self.events.add(begins, Event::LeavesForCoordinator { parcel, bytes });
        }
    }

    fn reach_coordinator(&mut self, parcel: Parcel, bytes: u64) {
        let (begins, ends) = self.links.receive(End::Coordinator, bytes, self.now);
        match parcel.message {
            Message::Output { micro_batch, exchange } if exchange == self.plan.logits_exchange() => {
                self.events.add(ends, Event::LogitsArrived { micro_batch });
            }
            // It relays chunk by chunk.
            _ => {
                let chunk = self.links.duration(bytes.min(CHUNK_BYTES as u64));
                self.events.add(begins.saturating_add(chunk), Event::Sent { from: End::Coordinator, parcel });
            }
        }
    }

    /// The receivers of a parcel get it one after another.
    fn spread(&mut self, Parcel { message, to }: &Parcel) {
        let mut leaves = self.now;
        for (worker, bytes) in to {
            let (worker, bytes, message) = (*worker, *bytes, *message);
            match message {
                // An event for each would be too many where hundreds of replicas sum.
                Message::PartialSums(reduction) => {
                    let arrives = self.receive_later(worker, bytes, leaves);
                    self.partial_sum_arrives(reduction, worker, arrives);
                }
                Message::WholeSum(reduction) => {
                    let arrives = self.receive_later(worker, bytes, leaves);
                    self.whole_sum_arrives(reduction, worker, arrives);
                }
                message => self.events.add(leaves, Event::Reaches { worker, bytes, message }),
            }
            leaves = leaves.saturating_add(self.links.duration(bytes));
        }
    }

    /// When the last byte of a message arrives whose first byte will leave the sender at `leaves`. The receiver's link counts the message
    /// from now on, so that it is never idle until `leaves` while other messages wait for it.
    fn receive_later(&mut self, worker: WorkerIndex, bytes: u64, leaves: Time) -> Time {
        let (_, ends) = self.links.receive(End::Worker(worker), bytes, self.now);
        ends.max(leaves.saturating_add(self.links.duration(bytes)))
    }

    fn send(&mut self, from: End, to: Vec<WorkerIndex>, bytes: u64, message: Message) {
        let to: Vec<_> = to.into_iter().map(|worker| (worker, bytes)).collect();
        if !to.is_empty() {
            self.events.add(self.now, Event::Sent { from, parcel: Parcel { message, to } });
        }
    }

    fn send_images(&mut self, step: u64) {
        let image = self.plan.network.input.shape.len();
        for index in 0..self.micro_batches.len() {
            let bytes = (self.micro_batches[index].samples.len() * image) as u64;
            let to = self.holders(SegmentIndex(0), index);
            self.send(End::Coordinator, to, bytes, Message::Images { step, micro_batch: index });
        }
    }

    fn send_gradients_of_logits(&mut self, micro_batch: usize) {
        let exchange = self.plan.logits_exchange();
        let parts = self.plan.parts(exchange.segment_before());
        let arrived = self.logits.entry(micro_batch).or_default();
        *arrived += 1;
        if *arrived < parts.clone().count() {
            return;
        }
        for to in parts {
            let holder = self.holder(exchange.segment_before(), to, micro_batch);
            let bytes = self.bytes(exchange, to, micro_batch);
            self.send(End::Coordinator, vec![holder], bytes, Message::Partial { micro_batch, exchange, to });
        }
    }

    /// Something that a worker owed has ended. After the last one of all workers, the coordinator commits.
    fn settles(&mut self, worker: WorkerIndex) {
        self.workers[worker].owed -= 1;
        if self.workers[worker].owed > 0 {
            return;
        }
        self.unfinished -= 1;
        if self.unfinished == 0 {
            self.commits.push(self.now);
            if self.step < STEPS {
                self.begin_step();
            }
        }
    }

    fn arrived(&mut self, worker: WorkerIndex, message: Message) {
        match message {
            Message::Images { step, micro_batch } if step == self.step => {
                self.queue_forward(worker, micro_batch, SegmentIndex(0));
            }
            Message::Images { step, micro_batch } => drop(self.early.insert((step, micro_batch, worker))),
            Message::Output { micro_batch, exchange } => self.gather(worker, micro_batch, exchange),
            Message::Partial { micro_batch, exchange, to } if exchange == self.plan.logits_exchange() => {
                self.queue_backward(worker, micro_batch, exchange.segment_before(), to);
            }
            Message::Partial { micro_batch, exchange, to } => self.add_partial(worker, micro_batch, exchange, to),
            // They were counted when they were sent.
            Message::PartialSums(_) | Message::WholeSum(_) => {}
        }
    }

    /// A part's output has arrived, or was computed here. After the last one, the next segment can be computed.
    fn gather(&mut self, worker: WorkerIndex, micro_batch: usize, exchange: ExchangeIndex) {
        let all = self.plan.senders(exchange, Direction::Forward).count();
        let arrived = self.gathers.entry((micro_batch, exchange, worker)).or_default();
        *arrived += 1;
        if *arrived == all {
            self.queue_forward(worker, micro_batch, exchange.segment_after());
        }
    }

    fn add_partial(&mut self, worker: WorkerIndex, micro_batch: usize, exchange: ExchangeIndex, to: TowerIndex) {
        let all = self.plan.senders(exchange, Direction::Backward).count();
        let arrived = self.partials.entry((micro_batch, exchange, to)).or_default();
        *arrived += 1;
        if *arrived == all {
            self.queue_backward(worker, micro_batch, exchange.segment_before(), to);
        }
    }

    fn queue_forward(&mut self, worker: WorkerIndex, micro_batch: usize, segment: SegmentIndex) {
        for part in self.plan.parts(segment) {
            if self.holder(segment, part, micro_batch) == worker {
                self.queue(worker, segment, Task::Forward { micro_batch, segment, part });
            }
        }
    }

    fn queue_backward(&mut self, worker: WorkerIndex, micro_batch: usize, segment: SegmentIndex, part: TowerIndex) {
        let end = self.plan.segments[segment].layers.end;
        self.queue(worker, segment, Task::Backward { micro_batch, segment, part, end });
    }

    fn queue(&mut self, worker: WorkerIndex, segment: SegmentIndex, task: Task) {
        let held = &mut self.workers[worker];
        match self.plan.segments[segment].half {
            Half::Head => held.head.push_back(task),
            Half::Trunk => held.trunk.push_back(task),
        }
        self.compute(worker);
    }

    /// Begins the next task, if the worker has one and is free.
    fn compute(&mut self, worker: WorkerIndex) {
        let held = &mut self.workers[worker];
        if held.computes.is_some() {
            return;
        }
        let Worker { head, trunk, weight_gradients, .. } = held;
        let Some(task) = [head, trunk, weight_gradients].into_iter().find_map(VecDeque::pop_front) else { return };
        held.computes = Some(task);
        let duration = time(2.0 * self.multiply_adds(task) as f64 * self.seconds_an_operation);
        self.workers[worker].computing = self.workers[worker].computing.saturating_add(duration);
        self.events.add(self.now.saturating_add(duration), Event::Computed { worker });
    }

    fn computed(&mut self, worker: WorkerIndex) {
        match self.workers[worker].computes.take() {
            Some(Task::Forward { micro_batch, segment, part }) => self.put_out(worker, micro_batch, segment, part),
            Some(Task::Backward { micro_batch, segment, part, end }) => {
                let layers = self.at_once(segment, end);
                let is_last = self.is_last(worker, segment, part);
                if layers.start == self.plan.segments[segment].layers.start {
                    self.pass_back(worker, micro_batch, segment, part);
                } else {
                    let rest = Task::Backward { micro_batch, segment, part, end: layers.start };
                    self.workers[worker].trunk.push_front(rest);
                }
                if is_last {
                    self.end_layers(worker, segment, part, layers);
                }
            }
            Some(Task::WeightGradients { .. }) => self.settles(worker),
            None => {}
        }
        self.compute(worker);
    }

    /// Sends the output of a segment to those that need it.
    fn put_out(&mut self, worker: WorkerIndex, micro_batch: usize, segment: SegmentIndex, part: TowerIndex) {
        let plan = self.plan;
        let (exchange, id) = (segment.exchange_after(), self.micro_batches[micro_batch].id);
        let bytes = self.bytes(exchange, part, micro_batch);
        let message = Message::Output { micro_batch, exchange };
        if exchange == plan.logits_exchange() {
            let begins = self.links.send(End::Worker(worker), bytes, self.now);
            let logits = Event::LeavesForCoordinator { parcel: Parcel { message, to: Vec::new() }, bytes };
            return self.events.add(begins, logits);
        }
        if plan.holders(exchange.segment_after(), id).contains(&worker) {
            self.gather(worker, micro_batch, exchange);
        }
        self.send(End::Worker(worker), plan.receivers(exchange, part, id), bytes, message);
    }

    /// A backward pass has ended: the gradient of its input goes to the parts that computed it.
    fn pass_back(&mut self, worker: WorkerIndex, micro_batch: usize, segment: SegmentIndex, part: TowerIndex) {
        // Counted first, because `add_partial` may begin the next task. If that is the last pass of this segment, it must be known as such.
        let left = self.left.entry((segment, part, worker)).or_default();
        *left = left.saturating_sub(1);
        if let Some(exchange) = segment.exchange_before() {
            for to in self.plan.parts(exchange.segment_before()) {
                let owner = self.holder(exchange.segment_before(), to, micro_batch);
                if owner == worker {
                    self.add_partial(worker, micro_batch, exchange, to);
                } else {
                    let bytes = self.bytes(exchange, to, micro_batch);
                    let message = Message::Partial { micro_batch, exchange, to };
                    self.send(End::Worker(worker), vec![owner], bytes, message);
                }
            }
        }
        self.settles(worker);
    }

    /// Whether a worker computes its last backward pass of a segment in this step.
    fn is_last(&self, worker: WorkerIndex, segment: SegmentIndex, part: TowerIndex) -> bool {
        self.left.get(&(segment, part, worker)) == Some(&1)
    }

    /// The layers of a backward pass that are computed at once. In the trunk, the pass is interrupted after each layer with weights.
    fn at_once(&self, segment: SegmentIndex, end: usize) -> Range<usize> {
        let first = self.plan.segments[segment].layers.start;
        let is_in_trunk = self.plan.segments[segment].half == Half::Trunk;
        let with_weights = (first..end).rev().find(|layer| self.plan.network.layers[*layer].has_weights());
        with_weights.filter(|_| is_in_trunk).unwrap_or(first)..end
    }

    /// The last backward pass of these layers has ended: weight gradients of the head can be computed, those of the trunk can be summed.
    fn end_layers(&mut self, worker: WorkerIndex, segment: SegmentIndex, part: TowerIndex, layers: Range<usize>) {
        if self.plan.segments[segment].half == Half::Head {
            let layers = self.layers_with_weights(segment).rev();
            let tasks = layers.map(|layer| Task::WeightGradients { layer, part });
            self.workers[worker].weight_gradients.extend(tasks.collect::<Vec<_>>());
            return;
        }
        for reduction in (0..self.reductions.len()).rev() {
            let summed = &self.reductions[reduction];
            if !layers.contains(&summed.layer) || summed.tower != part {
                continue;
            }
            let parcel = Parcel { message: Message::PartialSums(reduction), to: summed.partial_sums_of(worker) };
            self.events.add(self.now, Event::Sent { from: End::Worker(worker), parcel });
            self.partial_sum_arrives(reduction, worker, self.now);
        }
    }

    fn partial_sum_arrives(&mut self, reduction: usize, owner: WorkerIndex, at: Time) {
        if let Some(at) = self.reductions[reduction].partial_arrives(owner, at) {
            self.events.add(at, Event::PieceSummed { reduction, owner });
        }
    }

    fn whole_sum_arrives(&mut self, reduction: usize, worker: WorkerIndex, at: Time) {
        if let Some(at) = self.reductions[reduction].whole_arrives(worker, at) {
            self.events.add(at, Event::Reduced { worker });
        }
    }

    fn share_sum(&mut self, reduction: usize, owner: WorkerIndex) {
        let to = self.reductions[reduction].whole_sums_of(owner);
        let parcel = Parcel { message: Message::WholeSum(reduction), to };
        self.events.add(self.now, Event::Sent { from: End::Worker(owner), parcel });
        self.whole_sum_arrives(reduction, owner, self.now);
    }

    fn holder(&self, segment: SegmentIndex, part: TowerIndex, micro_batch: usize) -> WorkerIndex {
        self.plan.holder(segment, part, self.micro_batches[micro_batch].id)
    }

    fn holders(&self, segment: SegmentIndex, micro_batch: usize) -> Vec<WorkerIndex> {
        self.plan.holders(segment, self.micro_batches[micro_batch].id)
    }

    /// Bytes of a part's output at an exchange.
    fn bytes(&self, exchange: ExchangeIndex, part: TowerIndex, micro_batch: usize) -> u64 {
        let samples = self.micro_batches[micro_batch].samples.len();
        (self.plan.slice_floats(exchange, part) * samples * size_of::<f32>()) as u64
    }

    fn layers_with_weights(&self, segment: SegmentIndex) -> impl DoubleEndedIterator<Item = usize> + use<'a> {
        let plan = self.plan;
        plan.segments[segment].layers.clone().filter(|layer| plan.network.layers[*layer].has_weights())
    }

    /// Multiply-adds of a task.
    fn multiply_adds(&self, task: Task) -> u64 {
        let plan = self.plan;
        let of_layers =
            |layers: Range<usize>, part| layers.map(|layer| plan.network.multiply_adds_of(layer, part)).sum::<u64>();
        match task {
            Task::Forward { micro_batch, segment, part } => {
                let samples = self.micro_batches[micro_batch].samples.len() as u64;
                of_layers(plan.segments[segment].layers.clone(), part) * samples
            }
            Task::Backward { micro_batch, segment, part, end } => {
                let samples = self.micro_batches[micro_batch].samples.len() as u64;
                let layers = self.at_once(segment, end);
                // The gradient of the images is not computed. Weight gradients of the head come later.
                let inputs = of_layers(layers.start.max(1)..layers.end, part);
                let weights = if plan.segments[segment].half == Half::Head { 0 } else { of_layers(layers, part) };
                (inputs + weights) * samples
            }
            Task::WeightGradients { layer, part } => of_layers(layer..layer + 1, part) * self.batch as u64,
        }
    }
}
