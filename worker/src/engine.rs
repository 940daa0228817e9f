//! A worker's part in a job as a value: tensors come in, work that has become possible is done in a fixed order, tensors
//! and words go out. It knows no socket and no clock.
//!
//! ```text
//! parameters -> (all there) Ready
//! images ------------------> forward segment 0 -> own channels out, and into the gather behind it
//! others' channels -> gather -> (complete) forward segment i -> ... -> logits out
//! dlogits -> backward of the last segment -> partial gradients out, and into the sums before it
//! others' partials -> sum in tower order -> (complete) backward segment i -> ... -> BackwardDone
//! Commit -> SGD; images of the next step may have been waiting for it
//! ```
//!
//! Not here: which tensors are sent when by others (the coordinator decides), and the arithmetic (`tower`).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use convoy_common::batch::{MicroBatch, MicroBatchId, Phase};
use convoy_common::model::{ModelError, Network};
use convoy_common::parameters::Parameter;
use convoy_common::plan::{Plan, PlanError};
use convoy_common::trace::SegmentRun;
use convoy_common::wire::{Assignment, Direction, Elements, FromWorker, Payload, State, TensorKey};

use crate::kernels::Compute;
use crate::kernels::elementwise::{Rates, add};
use crate::kernels::memory::Tensor;
use crate::tower::forecast::least_bytes;
use crate::tower::{KeptSegment, Means, NotFinite, Tower};

mod pixels;
use pixels::Pixels;

/// Steps that the coordinator may be ahead of a commit's arrival: it sends a step's images while the one before it is
/// computed, and doesn't wait for commits to be confirmed.
const STEPS_AHEAD: u64 = 3;
/// Micro-batches of an evaluation that may arrive before the commit that it follows.
const EVALUATIONS_AHEAD: usize = 8;

/// What an engine puts out.
#[derive(Debug)]
pub(crate) enum Out {
    /// To go over the tensor connection.
    Tensor(Payload),
    /// To go over the control connection.
    Say(FromWorker),
    /// What the computing side has recorded up to the commit of `step` has been said: it is the sending side's turn.
    HandedOver {
        /// Which.
        step: u64,
    },
}

/// Why an engine can't go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// A number is no longer finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The job's model can't be read.
    #[error("read the job's model")]
    Model(#[from] ModelError),
    /// The job's placement doesn't fit its model.
    #[error("read the job's placement")]
    Placement(#[from] PlanError),
    /// The assignment names another worker than the placement has.
    #[error("assigned as worker {worker} of {workers}")]
    Worker {
        worker: usize,
        workers: usize,
    },
    /// The machine is too small.
    #[error(
        "the job takes at least {needed} bytes of memory here, and the machine has {memory}; use more workers, a \
             smaller --batch or more --slots"
    )]
    Memory {
        needed: u64,
        memory: u64,
    },
    /// A tensor came that isn't wanted now.
    #[error("{key} came unasked: {why}")]
    Unasked {
        key: String,
        why: &'static str,
    },
    /// Gradients came in another order than that of the samples.
    #[error("backward pass of segment {segment} of tower {tower} for {micro_batch:?} after {last:?}")]
    OutOfOrder {
        segment: usize,
        tower: usize,
        micro_batch: MicroBatchId,
        last: Option<MicroBatchId>,
    },
    /// Weights as of a step that isn't the last one.
    #[error("asked for the weights as of step {step} after step {committed}")]
    State {
        step: u64,
        committed: u64,
    },
    /// A commit in the middle of a step.
    #[error("commit of step {step}, of which a micro-batch is still under way")]
    Unfinished {
        step: u64,
    },
    /// A commit that doesn't follow the last one.
    #[error("commit of step {step} after step {committed}")]
    Commit {
        step: u64,
        committed: u64,
    },
}

/// Towers at work.
#[derive(Debug)]
pub(crate) struct Engine {
    assignment: Assignment,
    plan: Arc<Plan>,
    pixels: Pixels,
    towers: BTreeMap<usize, Tower>,
    /// Parameters that haven't arrived yet.
    awaited: HashSet<(String, usize, State)>,
    /// The last step that was applied; before Ready, the step that the weights are of.
    committed: u64,
    tasks: VecDeque<Task>,
    /// Tensors that overtook the commit before them, which comes over another connection.
    early: Vec<(TensorKey, Elements)>,
    /// Micro-batches whose images have come, and the samples that they hold: all else about them must agree.
    under_way: HashMap<MicroBatchId, Range<usize>>,
    gathers: HashMap<(MicroBatchId, usize), Gather>,
    sums: HashMap<(MicroBatchId, usize, usize), Partials>,
    kept: HashMap<(MicroBatchId, usize, usize), KeptSegment>,
    /// The last backward pass of each (segment, tower): weight gradients' chains go on in sample order.
    last_backward: HashMap<(usize, usize), MicroBatchId>,
}

#[derive(Debug)]
enum Task {
    Forward {
        micro_batch: MicroBatch,
        segment: usize,
        tower: usize,
        whole: Arc<Tensor>,
    },
    /// The gradient of the segment's output is the sum of `partials`, in this order.
    Backward {
        micro_batch: MicroBatch,
        segment: usize,
        tower: usize,
        partials: Vec<Tensor>,
    },
}

impl Task {
    fn run(&self) -> SegmentRun {
        let (Task::Forward { micro_batch, segment, tower, .. } | Task::Backward { micro_batch, segment, tower, .. }) =
            self;
        let direction = match self {
            Task::Forward { .. } => Direction::Forward,
            Task::Backward { .. } => Direction::Backward,
        };
        SegmentRun { micro_batch: micro_batch.id, segment: *segment, tower: *tower, direction }
    }
}

/// All channels at an exchange, as they come together.
#[derive(Debug)]
struct Gather {
    whole: Tensor,
    arrived: Vec<bool>,
}

/// Every tower's partial gradient of one tower's channels, as they come together.
#[derive(Debug)]
struct Partials(Vec<Option<Tensor>>);

impl Engine {
    /// An engine for what the coordinator assigned, on a machine with `memory` bytes.
    ///
    /// # Errors
    /// When the assignment makes no sense, or can't fit.
    pub(crate) fn new(assignment: Assignment, memory: u64) -> Result<Self, EngineError> {
        let network = Network::parse(&assignment.model)?;
        let plan = Plan::placed(network, assignment.placement.clone())?;
        if assignment.worker >= plan.workers {
            return Err(EngineError::Worker { worker: assignment.worker, workers: plan.workers });
        }
        let samples = assignment.division.largest_micro_batch(assignment.batch);
        let needed = least_bytes(&plan, assignment.worker, samples, assignment.train);
        if needed > memory {
            return Err(EngineError::Memory { needed, memory });
        }
        let own = plan.towers_of(assignment.worker);
        let towers = own.iter().map(|tower| (*tower, Tower::new(&plan, &assignment, *tower))).collect();
        let awaited = states(assignment.train).flat_map(|state| {
            let names = plan.network.parameters().into_iter().map(|parameter| parameter.name);
            let own = own.clone();
            names.flat_map(move |name| own.clone().into_iter().map(move |tower| (name.clone(), tower, state)))
        });
        Ok(Self {
            awaited: awaited.collect(),
            pixels: Pixels::new(&plan.network.input),
            towers,
            plan: Arc::new(plan),
            committed: 0,
            tasks: VecDeque::new(),
            early: Vec::new(),
            under_way: HashMap::new(),
            gathers: HashMap::new(),
            sums: HashMap::new(),
            kept: HashMap::new(),
            last_backward: HashMap::new(),
            assignment,
        })
    }

    /// The plan that the assignment makes.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    /// Takes a tensor whose shape fits the plan.
    ///
    /// # Errors
    /// When it isn't one that this worker should get, or not now.
    pub(crate) fn accept(
        &mut self,
        compute: &Compute,
        key: TensorKey,
        elements: Elements,
    ) -> Result<Vec<Out>, EngineError> {
        if self.is_early(&key) {
            if self.early.len() >= self.early_max() {
                return Err(unasked(&key, "too many tensors came before their commit"));
            }
            self.early.push((key, elements));
            return Ok(Vec::new());
        }
        match (&key, elements) {
            (TensorKey::Images(micro_batch), Elements::Bytes(bytes)) => {
                self.accept_images(compute, micro_batch.clone(), &bytes, &key)?
            }
            (
                TensorKey::Activations { micro_batch, exchange, direction, from_tower, to_tower },
                Elements::Floats(values),
            ) => {
                self.check_under_way(micro_batch, &key)?;
                match (direction, to_tower) {
                    (Direction::Forward, _) => {
                        self.accept_channels(compute, micro_batch.clone(), *exchange, *from_tower, &values, &key)?
                    }
                    (Direction::Backward, Some(to)) => {
                        self.accept_partial(micro_batch.clone(), *exchange, *from_tower, *to, values.into(), &key)?;
                    }
                    (Direction::Backward, None) => return Err(unasked(&key, "it names no tower")),
                }
            }
            (TensorKey::Parameter { step, name, tower, state }, Elements::Floats(values)) => {
                return self.accept_parameter(*step, name, *tower, *state, values, &key);
            }
            _ => return Err(unasked(&key, "it has elements of another kind")),
        }
        Ok(Vec::new())
    }

    /// Does the next piece of work, if there is one.
    ///
    /// # Errors
    /// When a number is no longer finite.
    pub(crate) fn work(&mut self, means: Means) -> Result<Option<Vec<Out>>, EngineError> {
        let Some(task) = self.tasks.pop_front() else { return Ok(None) };
        let out = match task {
            Task::Forward { micro_batch, segment, tower, whole } => {
                self.forward(means, micro_batch, segment, tower, whole)
            }
            Task::Backward { micro_batch, segment, tower, partials } => {
                self.backward(means, micro_batch, segment, tower, partials)
            }
        }?;
        Ok(Some(out))
    }

    /// What the next piece of work is, if there is one.
    pub(crate) fn next_run(&self) -> Option<SegmentRun> {
        self.tasks.front().map(Task::run)
    }

    /// Whether the coordinator wants to know what is done.
    pub(crate) fn traces(&self) -> bool {
        self.assignment.trace
    }

    /// The step that was committed last.
    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    /// Whether there is work to do.
    pub(crate) fn has_work(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Applies the gradients of `step`. Doing so twice does it once.
    ///
    /// # Errors
    /// When `step` is neither the next step nor the last, or its backward passes haven't all been.
    pub(crate) fn commit(&mut self, compute: &Compute, step: u64, learning: f32) -> Result<Vec<Out>, EngineError> {
        if step == self.committed + 1 {
            if self.has_work() || !self.kept.is_empty() {
                return Err(EngineError::Unfinished { step });
            }
            let (momentum, weight_decay) = (self.assignment.momentum as f32, self.assignment.weight_decay as f32);
            for tower in self.towers.values_mut() {
                tower.commit(compute, Rates { learning, momentum, weight_decay });
            }
            compute.committed();
            self.committed = step;
            self.under_way.clear();
            self.gathers.clear();
            self.sums.clear();
            for (key, elements) in std::mem::take(&mut self.early) {
                self.accept(compute, key, elements)?;
            }
        } else if step != self.committed {
            return Err(EngineError::Commit { step, committed: self.committed });
        }
        Ok(vec![Out::Say(FromWorker::Committed { step })])
    }

    /// Every tower's weights, and its momentum where there is one, as of `step`.
    ///
    /// # Errors
    /// When the last commit was of another step.
    pub(crate) fn state(&self, step: u64) -> Result<Vec<Out>, EngineError> {
        if step != self.committed {
            return Err(EngineError::State { step, committed: self.committed });
        }
        let parameters = self.plan.network.parameters();
        let train = self.assignment.train;
        let each = self
            .towers
            .iter()
            .flat_map(|(index, tower)| parameters.iter().map(move |parameter| (index, tower, parameter)));
        let out = each.flat_map(|(index, tower, parameter)| {
            states(train).map(move |state| {
                let (name, step) = (parameter.name.clone(), self.committed);
                let key = TensorKey::Parameter { step, name, tower: *index, state };
                let shape = parameter.slice_shape(&self.plan.network, *index);
                Out::Tensor(Payload::floats(key, shape, tower.read(parameter, state)))
            })
        });
        Ok(out.collect())
    }

    fn accept_parameter(
        &mut self,
        step: u64,
        name: &str,
        tower: usize,
        state: State,
        values: Vec<f32>,
        key: &TensorKey,
    ) -> Result<Vec<Out>, EngineError> {
        if !self.awaited.remove(&(name.to_owned(), tower, state)) {
            return Err(unasked(key, "it has come before, or belongs to another worker"));
        }
        let parameter: Option<Parameter> = self.plan.network.parameter(name);
        if let (Some(parameter), Some(tower)) = (parameter, self.towers.get_mut(&tower)) {
            tower.load(&parameter, state, values);
        }
        self.committed = step;
        Ok(if self.awaited.is_empty() { vec![Out::Say(FromWorker::Ready)] } else { Vec::new() })
    }

    fn accept_images(
        &mut self,
        compute: &Compute,
        micro_batch: MicroBatch,
        bytes: &[u8],
        key: &TensorKey,
    ) -> Result<(), EngineError> {
        self.check_current(&micro_batch, key)?;
        let most = match micro_batch.id.phase {
            Phase::Train => self.assignment.division.slots * self.assignment.division.micro_batches,
            Phase::Evaluate => EVALUATIONS_AHEAD,
        };
        let of_phase = self.under_way.keys().filter(|id| id.phase == micro_batch.id.phase).count();
        if self.under_way.insert(micro_batch.id, micro_batch.samples.clone()).is_some() {
            return Err(unasked(key, "it has come before"));
        }
        if of_phase >= most {
            return Err(unasked(key, "more micro-batches are under way than a step has"));
        }
        let mut whole = compute.tensor(bytes.len());
        self.pixels.normalise(bytes, &mut whole);
        self.queue_forward(&micro_batch, 0, Arc::new(whole));
        Ok(())
    }

    /// Whether a tensor is of a micro-batch whose images have come, with as many samples.
    fn check_under_way(&self, micro_batch: &MicroBatch, key: &TensorKey) -> Result<(), EngineError> {
        self.check_current(micro_batch, key)?;
        match self.under_way.get(&micro_batch.id) {
            Some(samples) if *samples == micro_batch.samples => Ok(()),
            Some(_) => Err(unasked(key, "its micro-batch has other samples")),
            None => Err(unasked(key, "its micro-batch's images haven't come")),
        }
    }

    /// Whether a tensor waits for a commit that is on its way.
    pub(crate) fn is_early(&self, key: &TensorKey) -> bool {
        let (TensorKey::Images(micro_batch) | TensorKey::Activations { micro_batch, .. }) = key else { return false };
        let at_hand = self.at_hand(micro_batch.id.phase);
        micro_batch.id.step > at_hand && micro_batch.id.step <= at_hand + STEPS_AHEAD
    }

    /// Every tensor of the steps ahead, and of an evaluation's start.
    fn early_max(&self) -> usize {
        let division = self.assignment.division;
        let of_micro_batch = 1 + 2 * self.plan.segments.len() * self.plan.network.towers * self.plan.network.towers;
        (division.slots * division.micro_batches * STEPS_AHEAD as usize + EVALUATIONS_AHEAD) * of_micro_batch
    }

    /// The step whose micro-batches may be computed now.
    fn at_hand(&self, phase: Phase) -> u64 {
        match phase {
            Phase::Train => self.committed + 1,
            Phase::Evaluate => self.committed,
        }
    }

    /// Whether a micro-batch is of the step at hand.
    fn check_current(&self, micro_batch: &MicroBatch, key: &TensorKey) -> Result<(), EngineError> {
        let MicroBatchId { phase, step, .. } = micro_batch.id;
        let current = step == self.at_hand(phase) && (self.assignment.train || phase == Phase::Evaluate);
        match (self.awaited.is_empty(), current) {
            (true, true) => Ok(()),
            (false, _) => Err(unasked(key, "the weights haven't all come")),
            (_, false) => Err(unasked(key, "it isn't of the step at hand")),
        }
    }

    fn queue_forward(&mut self, micro_batch: &MicroBatch, segment: usize, whole: Arc<Tensor>) {
        for tower in self.towers.keys() {
            let (micro_batch, whole) = (micro_batch.clone(), whole.clone());
            self.tasks.push_back(Task::Forward { micro_batch, segment, tower: *tower, whole });
        }
    }

    /// A tower's channels at an exchange: into the gather, and on when all have come.
    fn accept_channels(
        &mut self,
        compute: &Compute,
        micro_batch: MicroBatch,
        exchange: usize,
        from: usize,
        values: &[f32],
        key: &TensorKey,
    ) -> Result<(), EngineError> {
        let own = self.towers.contains_key(&from);
        if own || exchange == self.plan.logits_exchange() {
            return Err(unasked(key, "no other worker computes it for this one"));
        }
        self.gather(compute, micro_batch, exchange, from, values).map_err(|why| unasked(key, why))
    }

    fn gather(
        &mut self,
        compute: &Compute,
        micro_batch: MicroBatch,
        exchange: usize,
        from: usize,
        values: &[f32],
    ) -> Result<(), &'static str> {
        let output = self.plan.segments[exchange].output;
        let towers = self.plan.network.towers;
        let id = (micro_batch.id, exchange);
        let length = output.len() * micro_batch.samples.len();
        let gather = self
            .gathers
            .entry(id)
            .or_insert_with(|| Gather { whole: compute.tensor(length), arrived: vec![false; towers] });
        let slice = self.plan.output_slice(exchange, from);
        if std::mem::replace(&mut gather.arrived[from], true) {
            return Err("it has come before");
        }
        for (whole, own) in gather.whole.chunks_exact_mut(output.channels).zip(values.chunks_exact(slice.len())) {
            whole[slice.clone()].copy_from_slice(own);
        }
        if gather.arrived.iter().all(|arrived| *arrived) {
            let gather = self.gathers.remove(&id).expect("it was filled just now");
            self.queue_forward(&micro_batch, exchange + 1, Arc::new(gather.whole));
        }
        Ok(())
    }

    /// Another tower's partial gradient of this one's channels, or the gradient of its logits.
    fn accept_partial(
        &mut self,
        micro_batch: MicroBatch,
        exchange: usize,
        from: usize,
        to: usize,
        values: Tensor,
        key: &TensorKey,
    ) -> Result<(), EngineError> {
        if !self.towers.contains_key(&to) || micro_batch.id.phase == Phase::Evaluate {
            return Err(unasked(key, "it isn't for this worker"));
        }
        if !self.kept.contains_key(&(micro_batch.id, exchange, to)) {
            return Err(unasked(key, "its forward pass hasn't been"));
        }
        if exchange == self.plan.logits_exchange() {
            self.tasks.push_back(Task::Backward { micro_batch, segment: exchange, tower: to, partials: vec![values] });
            return Ok(());
        }
        if self.towers.contains_key(&from) {
            return Err(unasked(key, "no other worker computes it"));
        }
        self.add_partial(micro_batch, exchange, from, to, values).map_err(|why| unasked(key, why))
    }

    /// Partials are added up once all have come, in tower order, so that the order of their arrival leaves no trace.
    fn add_partial(
        &mut self,
        micro_batch: MicroBatch,
        exchange: usize,
        from: usize,
        to: usize,
        values: Tensor,
    ) -> Result<(), &'static str> {
        let id = (micro_batch.id, exchange, to);
        let towers = self.plan.network.towers;
        let partials = self.sums.entry(id).or_insert_with(|| Partials((0..towers).map(|_| None).collect()));
        if partials.0[from].replace(values).is_some() {
            return Err("it has come before");
        }
        if partials.0.iter().all(Option::is_some) {
            let partials = self.sums.remove(&id).expect("it was filled just now").0.into_iter().flatten().collect();
            self.tasks.push_back(Task::Backward { micro_batch, segment: exchange, tower: to, partials });
        }
        Ok(())
    }

    fn forward(
        &mut self,
        means: Means,
        micro_batch: MicroBatch,
        segment: usize,
        tower: usize,
        whole: Arc<Tensor>,
    ) -> Result<Vec<Out>, EngineError> {
        let plan = self.plan.clone();
        let computed = self.tower(tower).forward(means, &plan, segment, &micro_batch, whole)?;
        let (y, kept) = computed;
        match micro_batch.id.phase {
            Phase::Train => drop(self.kept.insert((micro_batch.id, segment, tower), kept)),
            Phase::Evaluate if segment == plan.logits_exchange() && self.towers.keys().last() == Some(&tower) => {
                self.under_way.remove(&micro_batch.id);
            }
            Phase::Evaluate => {}
        }
        let leaves = segment == plan.logits_exchange() || plan.workers > 1;
        if segment < plan.logits_exchange() {
            self.gather(means.compute, micro_batch.clone(), segment, tower, &y)
                .expect("each tower computes a segment once");
        }
        let key = TensorKey::Activations {
            micro_batch,
            exchange: segment,
            direction: Direction::Forward,
            from_tower: tower,
            to_tower: None,
        };
        Ok(if leaves { vec![self.payload(key, Sent(y))] } else { Vec::new() })
    }

    fn backward(
        &mut self,
        means: Means,
        micro_batch: MicroBatch,
        segment: usize,
        tower: usize,
        partials: Vec<Tensor>,
    ) -> Result<Vec<Out>, EngineError> {
        let plan = self.plan.clone();
        let last = self.last_backward.insert((segment, tower), micro_batch.id);
        if last.is_some_and(|last| last >= micro_batch.id) {
            return Err(EngineError::OutOfOrder { segment, tower, micro_batch: micro_batch.id, last });
        }
        let kept = self.kept.remove(&(micro_batch.id, segment, tower)).expect("its forward pass has been");
        let mut partials = partials.into_iter();
        let mut dy = partials.next().expect("a gradient has at least one part");
        partials.for_each(|partial| add(means.compute, &mut dy, &partial));
        let gradient = self.tower(tower).backward(means, &plan, segment, &micro_batch, (dy, kept))?;
        let Some(whole) = gradient else {
            return Ok(vec![Out::Say(FromWorker::BackwardDone { micro_batch, tower })]);
        };
        let exchange = segment - 1;
        let mut out = Vec::new();
        for to in 0..plan.network.towers {
            let channels = plan.segments[exchange].output.channels;
            let values = channels_of(means.compute, &whole, channels, plan.output_slice(exchange, to));
            if self.towers.contains_key(&to) {
                self.add_partial(micro_batch.clone(), exchange, tower, to, values)
                    .expect("each tower computes a partial once");
            } else {
                let key = TensorKey::Activations {
                    micro_batch: micro_batch.clone(),
                    exchange,
                    direction: Direction::Backward,
                    from_tower: tower,
                    to_tower: Some(to),
                };
                out.push(self.payload(key, values));
            }
        }
        Ok(out)
    }

    fn tower(&mut self, index: usize) -> &mut Tower {
        self.towers.get_mut(&index).expect("tasks are queued for this worker's towers alone")
    }

    fn payload(&self, key: TensorKey, values: impl AsRef<[f32]> + Send + 'static) -> Out {
        let shape = convoy_common::wire::expected_shape(&self.plan, usize::MAX, &key).expect("a tensor of this plan");
        Out::Tensor(Payload::floats(key, shape, values))
    }
}

/// A segment's output on its way out, which the backward pass may still read.
struct Sent(Arc<Tensor>);

impl AsRef<[f32]> for Sent {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

/// What of a parameter a worker holds.
fn states(train: bool) -> impl Iterator<Item = State> {
    [State::Weights, State::Momentum].into_iter().take(if train { 2 } else { 1 })
}

/// Some channels of each pixel.
fn channels_of(compute: &Compute, whole: &[f32], channels: usize, slice: std::ops::Range<usize>) -> Tensor {
    let mut some = compute.tensor(whole.len() / channels * slice.len());
    for (some, pixel) in some.chunks_exact_mut(slice.len()).zip(whole.chunks_exact(channels)) {
        some.copy_from_slice(&pixel[slice.clone()]);
    }
    some
}

fn unasked(key: &TensorKey, why: &'static str) -> EngineError {
    EngineError::Unasked { key: key.to_string(), why }
}

#[cfg(test)]
mod tests;
