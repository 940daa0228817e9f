//! A worker's part in a job, as a pure state machine. It accepts tensors, computes what has become possible, in the
//! order of `tasks`, and puts out tensors and messages. It uses no socket and no clock.
//!
//! ```text
//! parameters -> (complete) Ready
//! images ------------------> forward segment 0 -> own channels to other workers, and into the gather
//! others' channels -> gather -> (complete) forward segment i -> ... -> logits to the coordinator
//! dlogits -> backward of the last segment -> partial gradients to other workers, and into the sums
//! others' partials -> sum in tower order -> (complete) backward segment i -> ... -> BackwardDone
//! a layer of the trunk, in the last backward pass of the step -> its sums to other replicas
//! all of a step's samples are through a segment of the head -> weight gradients of its layers, when nothing else can be computed
//! all passes of a step, and all weight gradients -> StepDone
//! Commit -> SGD; then the images of the next step, which may have arrived before it
//! ```
//!
//! Not here: when other processes send tensors (the coordinator decides), and the arithmetic (`tower`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use convoy_common::batch::{MicroBatch, MicroBatchId, Phase};
use convoy_common::bundles::Bundle;
use convoy_common::index::{ExchangeIndex, PerTower, SegmentIndex, TowerIndex, WorkerIndex};
use convoy_common::model::{ModelError, Network};
use convoy_common::parameters::Parameter;
use convoy_common::placement::{Half, PlacementError};
use convoy_common::plan::Plan;
use convoy_common::trace::SegmentRun;
use convoy_common::wire::{Assignment, Direction, Elements, FromWorker, Payload, State, Tally, TensorKey};

use crate::pixels::Pixels;
use crate::tower::forecast::least_bytes;
use crate::tower::{Means, SavedSegment, Stopped, Tower};
use convoy_kernels::Compute;
use convoy_kernels::elementwise::{Rates, add};
use convoy_kernels::memory::Tensor;

mod reduction;
mod tasks;
use reduction::{Reduction, by_node, copy_joined};
use tasks::{Task, Tasks, Work};

/// How many steps the coordinator may be ahead of this worker's last commit: it sends a step's images while the previous
/// step is computed, and does not wait for commits to be confirmed.
const STEPS_AHEAD: u64 = 3;
/// Micro-batches of a measurement that may arrive before the commit that it follows.
const EVALUATIONS_AHEAD: usize = 8;

/// An output of the engine.
#[derive(Debug)]
pub(crate) enum Out {
    /// A tensor for the tensor connection.
    Tensor(Payload),
    /// A message for the control connection.
    Say(FromWorker),
    /// All spans of the compute thread up to the commit of `step` have been put out; the network thread's follow.
    HandedOver {
        /// The committed step.
        step: u64,
    },
}

/// A tensor that has arrived.
#[derive(Debug)]
pub(crate) struct Received {
    /// What it is.
    pub(crate) key: TensorKey,
    /// Its elements.
    pub(crate) elements: Elements,
    /// The worker that sent it directly. None: it came from the coordinator.
    pub(crate) from: Option<WorkerIndex>,
}

/// Why the engine cannot continue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// A pass ended early.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The job's model is invalid.
    #[error("cannot read the job's model")]
    Model(#[from] ModelError),
    /// The job's placement does not fit its model.
    #[error("cannot use the job's placement of towers")]
    Placement(#[from] PlacementError),
    /// The assignment names a worker that the placement does not have.
    #[error("the coordinator made this process worker {worker}, but the workers of the job are 0 to {}", .workers.saturating_sub(1))]
    Worker { worker: WorkerIndex, workers: usize },
    /// This process may use too little memory.
    #[error(
        "the job needs at least {needed} bytes of memory in this process, which may use {memory}; use more workers{}",
        if *.trains { ", a smaller --batch or more --micro-batches" } else { "" }
    )]
    Memory { needed: u64, memory: u64, trains: bool },
    /// A tensor that another worker sent directly, and that the engine cannot use.
    #[error("{why}")]
    FromPeer { peer: WorkerIndex, why: Box<EngineError> },
    /// A tensor that the engine cannot use in its current state.
    #[error("unexpected {key}: {why}")]
    Unexpected { key: String, why: &'static str },
    /// A request for the weights of a step other than the last one.
    #[error("the coordinator requested the weights of step {step}; the last commit was step {committed}")]
    State { step: u64, committed: u64 },
    /// An order that needs the weights.
    #[error("the coordinator sent {order} before all weights")]
    NoWeights { order: &'static str },
    /// A commit before the step is complete.
    #[error("the coordinator committed step {step} before all its gradients were complete")]
    Unfinished { step: u64 },
    /// A commit that does not follow the last one.
    #[error("the coordinator committed step {step}; the next step is {}", .committed + 1)]
    Commit { step: u64, committed: u64 },
}

/// The towers of a worker in a job, and the state of every micro-batch in progress.
#[derive(Debug)]
pub(crate) struct Engine {
    assignment: Assignment,
    plan: Arc<Plan>,
    pixels: Pixels,
    /// Towers of the trunk, and slices of the head.
    towers: BTreeMap<(Half, TowerIndex), Tower>,
    /// Parameters that have not arrived yet.
    awaited: HashSet<(String, TowerIndex, State)>,
    /// Whether any has arrived.
    has_parameters: bool,
    /// The last step that was applied. Before Ready, the step after which the weights were saved.
    committed: u64,
    tasks: Tasks,
    /// Tensors that arrived before the commit that they follow, which uses another connection.
    early: Vec<Received>,
    /// The most bytes of them.
    early_bytes_max: u64,
    /// Micro-batches whose images have arrived, or of a measurement, any tensor. Later tensors must name the same samples.
    in_progress: HashMap<MicroBatchId, InProgress>,
    /// The micro-batches of the step at hand.
    micro_batches: Vec<MicroBatch>,
    /// Gradients of the step at hand that are summed over replicas.
    reductions: HashMap<(String, TowerIndex), Reduction>,
    /// Whether StepDone was said for the step at hand.
    has_said_done: bool,
    gathers: HashMap<(MicroBatchId, ExchangeIndex), Gather>,
    /// Gathers that were complete.
    gathered: HashSet<(MicroBatchId, ExchangeIndex)>,
    sums: HashMap<(MicroBatchId, ExchangeIndex, TowerIndex), Partials>,
    kept: HashMap<(MicroBatchId, SegmentIndex, TowerIndex), SavedSegment>,
    /// Backward passes of the step at hand that each (segment, tower) has computed.
    passed: HashMap<(SegmentIndex, TowerIndex), usize>,
    /// Backward passes of the step at hand whose gradients have all arrived.
    begun: HashSet<(SegmentIndex, TowerIndex, MicroBatchId)>,
    /// Backward passes of each (segment, tower) of the trunk that have been queued, in the order of their samples, and those that came too
    /// early for that order, with their partial gradients.
    queued: HashMap<(SegmentIndex, TowerIndex), usize>,
    too_early: HashMap<(SegmentIndex, TowerIndex, MicroBatchId), Vec<Tensor>>,
}

/// A micro-batch of which something has arrived.
#[derive(Debug)]
struct InProgress {
    samples: Range<usize>,
    /// Whether its images have arrived. Tensors of other workers may overtake them.
    has_images: bool,
    /// Forward passes that were computed.
    computed: usize,
}

/// The channels of all towers at an exchange, while they arrive.
#[derive(Debug)]
struct Gather {
    whole: Tensor,
    arrived: PerTower<bool>,
}

/// The partial gradients of one tower's channels from every tower, while they arrive.
#[derive(Debug)]
struct Partials(PerTower<Option<Tensor>>);

impl Engine {
    /// An engine for an assignment, in a process that may use `memory` bytes.
    ///
    /// # Errors
    /// When the assignment is invalid, or needs more memory.
    pub(crate) fn new(assignment: Assignment, memory: u64) -> Result<Self, EngineError> {
        let network = Network::parse(&assignment.model)?;
        let plan = Plan::placed(network, assignment.placement.clone())?;
        if assignment.worker.0 >= plan.workers {
            return Err(EngineError::Worker { worker: assignment.worker, workers: plan.workers });
        }
        let samples = assignment.division.largest_micro_batch(assignment.batches.batch);
        let needed = least_bytes(&plan, assignment.worker, samples, assignment.train);
        if needed > memory {
            return Err(EngineError::Memory { needed, memory, trains: assignment.train });
        }
        let own = plan.placement.held_by(assignment.worker);
        let tower = |(half, index)| ((half, index), Tower::new(&plan, &assignment, half, index));
        let towers = own.iter().copied().map(tower).collect();
        let mut awaited = HashSet::new();
        for parameter in plan.network.parameters() {
            for (_, tower) in own.iter().filter(|(half, _)| *half == plan.half_of(parameter.layer)) {
                awaited.extend(states(assignment.train).map(|state| (parameter.name.clone(), *tower, state)));
            }
        }
        let early_bytes_max = early_bytes_max(&plan, assignment.batches.batch, samples);
        Ok(Self {
            awaited,
            has_parameters: false,
            early_bytes_max,
            pixels: Pixels::new(&plan.network.input),
            towers,
            plan: Arc::new(plan),
            committed: 0,
            tasks: Tasks::default(),
            early: Vec::new(),
            in_progress: HashMap::new(),
            micro_batches: Vec::new(),
            reductions: HashMap::new(),
            has_said_done: false,
            gathers: HashMap::new(),
            gathered: HashSet::new(),
            sums: HashMap::new(),
            kept: HashMap::new(),
            passed: HashMap::new(),
            begun: HashSet::new(),
            queued: HashMap::new(),
            too_early: HashMap::new(),
            assignment,
        })
    }

    /// The plan of the assigned job.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    /// Accepts a tensor whose shape fits the plan.
    ///
    /// # Errors
    /// When the tensor is not for this worker, or not expected now. The error names the worker that sent it directly.
    pub(crate) fn accept(&mut self, compute: &Compute, received: Received) -> Result<Vec<Out>, EngineError> {
        let peer = received.from;
        let accepted = if self.is_early(&received.key) {
            self.keep_early(received).map(|()| Vec::new())
        } else {
            self.accept_now(compute, received.key, received.elements)
        };
        accepted.map_err(|error| match peer {
            Some(peer) => EngineError::FromPeer { peer, why: Box::new(error) },
            None => error,
        })
    }

    /// Stores a tensor until the commit that it follows.
    fn keep_early(&mut self, received: Received) -> Result<(), EngineError> {
        let Received { key, elements, .. } = &received;
        if self.early.iter().any(|known| known.key == *key) {
            return Err(unexpected(key, "it arrived before"));
        }
        let bytes: usize = self.early.iter().map(|known| known.elements.bytes()).sum();
        if self.early.len() >= self.early_max() || (bytes + elements.bytes()) as u64 > self.early_bytes_max {
            return Err(unexpected(key, "too many tensors arrived before the commit that they follow"));
        }
        self.early.push(received);
        Ok(())
    }

    fn accept_now(&mut self, compute: &Compute, key: TensorKey, elements: Elements) -> Result<Vec<Out>, EngineError> {
        match (&key, elements) {
            (TensorKey::Images(micro_batch), Elements::Bytes(bytes)) => {
                self.accept_images(compute, micro_batch.clone(), &bytes, &key)?
            }
            (
                TensorKey::Activations { micro_batch, exchange, direction, from_tower, to_tower },
                Elements::Floats(values),
            ) => {
                self.check_in_progress(micro_batch, &key)?;
                match (direction, to_tower) {
                    (Direction::Forward, _) => {
                        self.accept_channels(compute, micro_batch.clone(), *exchange, *from_tower, &values, &key)?
                    }
                    (Direction::Backward, Some(to)) => {
                        self.accept_partial(micro_batch.clone(), *exchange, *from_tower, *to, values.into(), &key)?;
                    }
                    (Direction::Backward, None) => {
                        return Err(unexpected(&key, "it does not name the tower that owns the channels"));
                    }
                }
            }
            (TensorKey::Parameter { step, name, tower, state }, Elements::Floats(values)) => {
                return self.accept_parameter(*step, name, *tower, *state, values, &key);
            }
            (TensorKey::Gradient { .. }, Elements::Floats(values)) => {
                let mut out = self.accept_gradient(compute, &key, values)?;
                out.extend(self.step_done());
                return Ok(out);
            }
            _ => return Err(unexpected(&key, "its elements have the wrong type")),
        }
        Ok(Vec::new())
    }

    /// Computes the next task, if there is one.
    ///
    /// # Errors
    /// When a number is no longer finite, or the job was dropped meanwhile.
    pub(crate) fn work(&mut self, means: Means) -> Result<Option<Vec<Out>>, EngineError> {
        let Some(task) = self.tasks.next() else { return Ok(None) };
        let is_backward = task.run().direction == Direction::Backward;
        let Task { micro_batch, segment, tower, work } = task;
        let mut out = match work {
            Work::Forward(whole) => self.forward(means, micro_batch, segment, tower, whole),
            Work::Backward(partials) => {
                let dy = summed(means.compute, partials);
                let kept = self.kept.remove(&(micro_batch.id, segment, tower)).expect("its forward pass has run");
                self.backward(means, micro_batch, (segment, tower), dy, kept)
            }
            Work::RestOfBackward(dy, kept) => self.backward(means, micro_batch, (segment, tower), dy, kept),
            Work::WeightGradients { layer } => {
                self.tower(segment, tower).form_gradients(means, layer, &micro_batch)?;
                Ok(Vec::new())
            }
        }?;
        if is_backward {
            out.extend(self.step_done());
        }
        Ok(Some(out))
    }

    /// The next task, if there is one.
    pub(crate) fn next_run(&self) -> Option<SegmentRun> {
        self.tasks.next_run()
    }

    /// Whether spans are recorded.
    pub(crate) fn traces(&self) -> bool {
        self.assignment.trace
    }

    /// The step that was committed last.
    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    /// Whether there is a task to compute.
    pub(crate) fn has_work(&self) -> bool {
        self.next_run().is_some()
    }

    /// What is said once, when the gradients of the step at hand are complete.
    fn step_done(&mut self) -> Option<Out> {
        if self.has_said_done || !self.has_all_gradients() {
            return None;
        }
        self.has_said_done = true;
        // The network thread adds the tally.
        Some(Out::Say(FromWorker::StepDone { step: self.committed + 1, tally: Tally::default() }))
    }

    /// Whether the gradients of the step at hand are complete.
    fn has_all_gradients(&self) -> bool {
        let is_through = |(segment, tower): (SegmentIndex, TowerIndex)| {
            let passed = self.passed.get(&(segment, tower)).copied().unwrap_or(0);
            passed == self.own_micro_batches(segment, tower).count()
        };
        let segments = self.plan.segments.iter_enumerated();
        let mut held = segments.flat_map(|(index, segment)| self.held(segment.half).map(move |tower| (index, tower)));
        !self.tasks.owes_weight_gradients() && self.reductions.values().all(Reduction::is_done) && held.all(is_through)
    }

    /// The towers of the trunk, or the slices of the head, that this worker holds.
    fn held(&self, half: Half) -> impl Iterator<Item = TowerIndex> {
        self.towers.keys().filter(move |(of, _)| *of == half).map(|(_, tower)| *tower)
    }

    /// The micro-batches of the step at hand for which this worker computes a segment of a tower.
    fn own_micro_batches(&self, segment: SegmentIndex, tower: TowerIndex) -> impl Iterator<Item = &MicroBatch> {
        self.micro_batches.iter().filter(move |micro_batch| self.computes(segment, tower, micro_batch.id))
    }

    /// Whether this worker computes a segment of a tower for a micro-batch.
    fn computes(&self, segment: SegmentIndex, tower: TowerIndex, id: MicroBatchId) -> bool {
        self.plan.holder(segment, tower, id) == self.assignment.worker
    }

    /// Applies the gradients of `step`. A repeated commit of the same step has no effect.
    ///
    /// # Errors
    /// When `step` is neither the next step nor the last one, or a backward pass of it is missing.
    pub(crate) fn commit(&mut self, compute: &Compute, step: u64, learning: f32) -> Result<Vec<Out>, EngineError> {
        self.check_weights("Commit")?;
        if step == self.committed + 1 {
            if !self.has_all_gradients() {
                return Err(EngineError::Unfinished { step });
            }
            let (momentum, weight_decay) = (self.assignment.momentum as f32, self.assignment.weight_decay as f32);
            for tower in self.towers.values_mut() {
                tower.commit(compute, Rates { learning, momentum, weight_decay });
            }
            compute.committed();
            self.begin_step_after(step);
            self.in_progress.clear();
            self.passed.clear();
            self.begun.clear();
            self.queued.clear();
            self.too_early.clear();
            self.gathers.clear();
            self.sums.clear();
            self.gathered.clear();
            let mut out = vec![Out::Say(FromWorker::Committed { step })];
            // Gradients of other replicas may complete a sum, or the step of a worker without samples.
            for received in std::mem::take(&mut self.early) {
                out.extend(self.accept(compute, received)?);
            }
            return Ok(out);
        } else if step != self.committed {
            return Err(EngineError::Commit { step, committed: self.committed });
        }
        Ok(vec![Out::Say(FromWorker::Committed { step })])
    }

    /// The weights of every tower after `step`, and the momentum if the job trains.
    ///
    /// # Errors
    /// When the last commit was of another step.
    pub(crate) fn state(&self, step: u64) -> Result<Vec<Out>, EngineError> {
        self.check_weights("SendState")?;
        if step != self.committed {
            return Err(EngineError::State { step, committed: self.committed });
        }
        let parameters = self.plan.network.parameters();
        let train = self.assignment.train;
        // Of those that hold the same weights, one sends them.
        let answers = |half, tower| self.plan.placement.sharers(half, tower).first() == Some(&self.assignment.worker);
        let own = self.towers.iter().filter(|((half, index), _)| answers(*half, *index));
        let each = own.flat_map(|((half, index), tower)| {
            let of_half = parameters.iter().filter(|parameter| self.plan.half_of(parameter.layer) == *half);
            of_half.map(move |parameter| (*index, tower, parameter))
        });
        let out = each.flat_map(|(index, tower, parameter)| {
            states(train).map(move |state| {
                let (name, step) = (parameter.name.clone(), self.committed);
                let key = TensorKey::Parameter { step, name, tower: index, state };
                let shape = parameter.slice_shape(&self.plan.network, index);
                Out::Tensor(Payload::floats(key, shape, tower.read(parameter, state)))
            })
        });
        Ok(out.collect())
    }

    /// Checks that the weights have arrived, which an order needs.
    fn check_weights(&self, order: &'static str) -> Result<(), EngineError> {
        if self.awaited.is_empty() { Ok(()) } else { Err(EngineError::NoWeights { order }) }
    }

    fn accept_parameter(
        &mut self,
        step: u64,
        name: &str,
        tower: TowerIndex,
        state: State,
        values: Vec<f32>,
        key: &TensorKey,
    ) -> Result<Vec<Out>, EngineError> {
        if !self.awaited.remove(&(name.to_owned(), tower, state)) {
            return Err(unexpected(key, "it arrived before, or it belongs to another worker"));
        }
        if self.has_parameters && step != self.committed {
            return Err(unexpected(key, "the weights that arrived before are of another step"));
        }
        self.has_parameters = true;
        let parameter: Option<Parameter> = self.plan.network.parameter(name);
        if let Some(parameter) = parameter
            && let Some(tower) = self.towers.get_mut(&(self.plan.half_of(parameter.layer), tower))
        {
            tower.load(&parameter, state, values);
        }
        self.committed = step;
        if !self.awaited.is_empty() {
            return Ok(Vec::new());
        }
        self.begin_step_after(step);
        Ok(vec![Out::Say(FromWorker::Ready)])
    }

    /// The last step was `committed`, and the next one begins.
    fn begin_step_after(&mut self, committed: u64) {
        let Assignment { batches, division, .. } = &self.assignment;
        let samples = batches.positions(committed + 1).len();
        self.committed = committed;
        self.micro_batches = division.of(committed + 1, samples);
        self.has_said_done = false;
        let (plan, worker) = (&self.plan, self.assignment.worker);
        let shared = self.held(Half::Trunk).flat_map(|tower| {
            let of = move |bundle: &Bundle| {
                let reduction = Reduction::new(plan, bundle, tower, worker, samples)?;
                Some(((bundle.name.clone(), tower), reduction))
            };
            plan.bundles.iter().filter_map(of)
        });
        self.reductions = shared.collect();
    }

    fn accept_images(
        &mut self,
        compute: &Compute,
        micro_batch: MicroBatch,
        bytes: &[u8],
        key: &TensorKey,
    ) -> Result<(), EngineError> {
        if !self.plan.holders(SegmentIndex(0), micro_batch.id).contains(&self.assignment.worker) {
            return Err(unexpected(key, "this worker does not compute its micro-batch"));
        }
        self.check_in_progress(&micro_batch, key)?;
        if self.in_progress.get_mut(&micro_batch.id).is_some_and(|begun| std::mem::replace(&mut begun.has_images, true))
        {
            return Err(unexpected(key, "it arrived before"));
        }
        let mut whole = compute.tensor(bytes.len());
        self.pixels.normalise(bytes, &mut whole);
        self.queue_forward(&micro_batch, SegmentIndex(0), Arc::new(whole));
        Ok(())
    }

    /// Notes that something of a micro-batch has arrived.
    fn begin_micro_batch(&mut self, micro_batch: &MicroBatch, key: &TensorKey) -> Result<(), EngineError> {
        let measured = || self.in_progress.keys().filter(|id| id.phase == Phase::Evaluate).count();
        match micro_batch.id.phase {
            Phase::Train if !self.micro_batches.contains(micro_batch) => {
                return Err(unexpected(key, "the step has no such micro-batch"));
            }
            Phase::Evaluate if measured() >= EVALUATIONS_AHEAD => {
                return Err(unexpected(key, "too many micro-batches of a measurement are in progress"));
            }
            _ => {}
        }
        let began = InProgress { samples: micro_batch.samples.clone(), has_images: false, computed: 0 };
        self.in_progress.insert(micro_batch.id, began);
        Ok(())
    }

    /// Checks that a tensor's micro-batch is one of the step.
    fn check_in_progress(&mut self, micro_batch: &MicroBatch, key: &TensorKey) -> Result<(), EngineError> {
        self.check_current(micro_batch, key)?;
        match self.in_progress.get(&micro_batch.id) {
            Some(begun) if begun.samples == micro_batch.samples => Ok(()),
            Some(_) => Err(unexpected(key, "its micro-batch has other samples")),
            None => self.begin_micro_batch(micro_batch, key),
        }
    }

    /// Whether a tensor belongs to a step whose predecessor is not committed yet.
    pub(crate) fn is_early(&self, key: &TensorKey) -> bool {
        let (step, phase) = match key {
            TensorKey::Images(micro_batch) | TensorKey::Activations { micro_batch, .. } => {
                (micro_batch.id.step, micro_batch.id.phase)
            }
            TensorKey::Gradient { step, .. } => (*step, Phase::Train),
            TensorKey::Parameter { .. } => return false,
        };
        let current_step = self.current_step(phase);
        step > current_step && step <= current_step + STEPS_AHEAD
    }

    /// The most tensors that can be early: all of the steps ahead, and of the first micro-batches of a measurement.
    fn early_max(&self) -> usize {
        let parts = self.plan.network.towers.max(self.plan.network.slices);
        let of_micro_batch = 1 + 2 * self.plan.segments.len() * parts * parts;
        let of_gradients: usize = self.reductions.values().map(Reduction::most_tensors).sum();
        (self.most_micro_batches() * STEPS_AHEAD as usize + EVALUATIONS_AHEAD) * of_micro_batch
            + of_gradients * STEPS_AHEAD as usize
    }

    /// Micro-batches of a full batch.
    fn most_micro_batches(&self) -> usize {
        self.assignment.division.of(1, self.assignment.batches.batch).len()
    }

    /// The step whose micro-batches may be computed now.
    fn current_step(&self, phase: Phase) -> u64 {
        match phase {
            Phase::Train => self.committed + 1,
            Phase::Evaluate => self.committed,
        }
    }

    /// Checks that a micro-batch belongs to the current step.
    fn check_current(&self, micro_batch: &MicroBatch, key: &TensorKey) -> Result<(), EngineError> {
        let MicroBatchId { phase, step, .. } = micro_batch.id;
        let current = step == self.current_step(phase) && (self.assignment.train || phase == Phase::Evaluate);
        match (self.awaited.is_empty(), current) {
            (true, true) => Ok(()),
            (false, _) => Err(unexpected(key, "some weights have not arrived")),
            (_, false) => Err(unexpected(key, "it does not belong to the current step")),
        }
    }

    fn queue_forward(&mut self, micro_batch: &MicroBatch, segment: SegmentIndex, whole: Arc<Tensor>) {
        let own = self.plan.parts(segment).filter(|tower| self.computes(segment, *tower, micro_batch.id));
        for tower in own.collect::<Vec<_>>() {
            self.queue(micro_batch.clone(), segment, tower, Work::Forward(whole.clone()));
        }
    }

    fn queue(&mut self, micro_batch: MicroBatch, segment: SegmentIndex, tower: TowerIndex, work: Work) {
        self.tasks.add(self.plan.segments[segment].half, Task { micro_batch, segment, tower, work });
    }

    /// Adds another tower's channels at an exchange, and queues the next segment when the gather is complete.
    fn accept_channels(
        &mut self,
        compute: &Compute,
        micro_batch: MicroBatch,
        exchange: ExchangeIndex,
        from: TowerIndex,
        values: &[f32],
        key: &TensorKey,
    ) -> Result<(), EngineError> {
        if !self.plan.receivers(exchange, from, micro_batch.id).contains(&self.assignment.worker) {
            return Err(unexpected(key, "this worker computes it itself, or does not need it"));
        }
        self.gather(compute, micro_batch, exchange, from, values).map_err(|why| unexpected(key, why))
    }

    fn gather(
        &mut self,
        compute: &Compute,
        micro_batch: MicroBatch,
        exchange: ExchangeIndex,
        from: TowerIndex,
        values: &[f32],
    ) -> Result<(), &'static str> {
        let output = self.plan.exchanged(exchange);
        let id = (micro_batch.id, exchange);
        if self.gathered.contains(&id) {
            return Err("it arrived before");
        }
        let length = output.len() * micro_batch.samples.len();
        let gather = self.gathers.entry(id).or_insert_with(|| Gather {
            whole: compute.tensor(length),
            arrived: self.plan.senders(exchange, Direction::Forward).map(|_| false).collect(),
        });
        let slice = self.plan.contribution(exchange, from);
        if std::mem::replace(&mut gather.arrived[from], true) {
            return Err("it arrived before");
        }
        for (whole, own) in gather.whole.chunks_exact_mut(output.channels).zip(values.chunks_exact(slice.len())) {
            whole[slice.clone()].copy_from_slice(own);
        }
        if gather.arrived.iter().all(|arrived| *arrived) {
            let gather = self.gathers.remove(&id).expect("it was filled just now");
            self.gathered.insert(id);
            self.queue_forward(&micro_batch, exchange.segment_after(), Arc::new(gather.whole));
        }
        Ok(())
    }

    /// Accepts another tower's partial gradient of an own tower's channels, or the gradient of its logits.
    fn accept_partial(
        &mut self,
        micro_batch: MicroBatch,
        exchange: ExchangeIndex,
        from: TowerIndex,
        to: TowerIndex,
        values: Tensor,
        key: &TensorKey,
    ) -> Result<(), EngineError> {
        let segment = exchange.segment_before();
        if !self.computes(segment, to, micro_batch.id) || micro_batch.id.phase == Phase::Evaluate {
            return Err(unexpected(key, "it is not for this worker"));
        }
        if !self.kept.contains_key(&(micro_batch.id, segment, to)) {
            return Err(unexpected(key, "its forward pass has not run"));
        }
        if exchange == self.plan.logits_exchange() {
            return self.queue_backward(micro_batch, segment, to, vec![values]).map_err(|why| unexpected(key, why));
        }
        if self.computes(exchange.segment_after(), from, micro_batch.id) {
            return Err(unexpected(key, "this worker computes it itself"));
        }
        self.add_partial(micro_batch, exchange, from, to, values).map_err(|why| unexpected(key, why))
    }

    /// Adds a partial gradient. The backward pass sums them in tower order once all have arrived, so that the order of
    /// arrival does not change the result.
    fn add_partial(
        &mut self,
        micro_batch: MicroBatch,
        exchange: ExchangeIndex,
        from: TowerIndex,
        to: TowerIndex,
        values: Tensor,
    ) -> Result<(), &'static str> {
        let id = (micro_batch.id, exchange, to);
        let none = || Partials(self.plan.senders(exchange, Direction::Backward).map(|_| None).collect());
        let partials = self.sums.entry(id).or_insert_with(none);
        if partials.0[from].replace(values).is_some() {
            return Err("it arrived before");
        }
        if partials.0.iter().all(Option::is_some) {
            let partials = self.sums.remove(&id).expect("it was filled just now").0.into_iter().flatten().collect();
            let segment = exchange.segment_before();
            return self.queue_backward(micro_batch, segment, to, partials);
        }
        Ok(())
    }

    /// Queues a backward pass. In the trunk, those of a tower go in the order of their samples, because chains of weight gradients do; one
    /// that comes too early waits. The head puts its operands in order later.
    fn queue_backward(
        &mut self,
        micro_batch: MicroBatch,
        segment: SegmentIndex,
        tower: TowerIndex,
        partials: Vec<Tensor>,
    ) -> Result<(), &'static str> {
        if !self.begun.insert((segment, tower, micro_batch.id)) {
            return Err("it arrived before");
        }
        if self.plan.segments[segment].half == Half::Head {
            self.queue(micro_batch, segment, tower, Work::Backward(partials));
            return Ok(());
        }
        self.too_early.insert((segment, tower, micro_batch.id), partials);
        let queued = self.queued.get(&(segment, tower)).copied().unwrap_or(0);
        let mut ready = Vec::new();
        for micro_batch in self.own_micro_batches(segment, tower).skip(queued).cloned() {
            if !self.too_early.contains_key(&(segment, tower, micro_batch.id)) {
                break;
            }
            ready.push(micro_batch);
        }
        self.queued.insert((segment, tower), queued + ready.len());
        for micro_batch in ready {
            let partials = self.too_early.remove(&(segment, tower, micro_batch.id)).expect("it is there");
            self.queue(micro_batch, segment, tower, Work::Backward(partials));
        }
        Ok(())
    }

    fn forward(
        &mut self,
        means: Means,
        micro_batch: MicroBatch,
        segment: SegmentIndex,
        tower: TowerIndex,
        whole: Arc<Tensor>,
    ) -> Result<Vec<Out>, EngineError> {
        let plan = self.plan.clone();
        let computed = self.tower(segment, tower).forward(means, &plan, segment, &micro_batch, whole)?;
        let (y, kept) = computed;
        let exchange = segment.exchange_after();
        match micro_batch.id.phase {
            Phase::Train => drop(self.kept.insert((micro_batch.id, segment, tower), kept)),
            Phase::Evaluate => self.measured_forward(micro_batch.id),
        }
        let is_logits = exchange == plan.logits_exchange();
        let leaves = is_logits || !plan.receivers(exchange, tower, micro_batch.id).is_empty();
        let goes_on =
            !is_logits && plan.holders(exchange.segment_after(), micro_batch.id).contains(&self.assignment.worker);
        if goes_on {
            self.gather(means.compute, micro_batch.clone(), exchange, tower, &y)
                .expect("each tower computes a segment once");
        }
        let key = TensorKey::Activations {
            micro_batch,
            exchange,
            direction: Direction::Forward,
            from_tower: tower,
            to_tower: None,
        };
        Ok(if leaves { vec![self.payload(key, Sent(y))] } else { Vec::new() })
    }

    /// Counts a forward pass of a measurement. After the last one, nothing of the micro-batch is expected any more.
    fn measured_forward(&mut self, id: MicroBatchId) {
        let engine = &*self;
        let held =
            |segment| engine.plan.parts(segment).filter(move |tower| engine.computes(segment, *tower, id)).count();
        let all: usize = engine.plan.segments.keys().map(held).sum();
        let Some(begun) = self.in_progress.get_mut(&id) else { return };
        begun.computed += 1;
        if begun.computed >= all {
            self.in_progress.remove(&id);
            self.gathered.retain(|(gathered, _)| *gathered != id);
        }
    }

    /// Computes the backward pass of the layers of a segment that are left. In the trunk, the pass ends after the next layer with weights,
    /// and the rest is another task: tasks of the head come before it, and in the last micro-batch of a step, the bundles that are complete are
    /// sent to other replicas.
    fn backward(
        &mut self,
        means: Means,
        micro_batch: MicroBatch,
        (segment, tower): (SegmentIndex, TowerIndex),
        dy: Tensor,
        mut kept: SavedSegment,
    ) -> Result<Vec<Out>, EngineError> {
        let passed = self.passed.get(&(segment, tower)).copied().unwrap_or(0);
        let is_last = self.own_micro_batches(segment, tower).count() == passed + 1;
        let first = self.plan.segments[segment].layers.start;
        let mut layers = first..first + kept.layers_left();
        if self.plan.segments[segment].half == Half::Trunk {
            layers.start = self.last_with_weights(layers.clone()).unwrap_or(first);
        }
        let gradient = self.tower(segment, tower).backward(means, layers.clone(), &micro_batch, dy, &mut kept)?;
        let mut sums = Vec::new();
        if is_last {
            sums = self.end_layers(means.compute, layers.clone(), (segment, tower), &micro_batch);
        }
        if layers.start > first {
            let dy = gradient.expect("only images have no gradient");
            self.queue(micro_batch, segment, tower, Work::RestOfBackward(dy, kept));
            return Ok(sums);
        }
        self.passed.insert((segment, tower), passed + 1);
        // Other workers wait for this gradient. Only the commit waits for the sums over replicas, so those of bundles that were completed just
        // now are sent later. Those of later bundles have been sent already: their link was idle, and `convoy plan` estimates shorter steps.
        let mut out = match gradient {
            Some(whole) => self.share_input_gradient(means.compute, &micro_batch, segment, tower, &whole),
            None => vec![Out::Say(FromWorker::BackwardDone { micro_batch, tower })],
        };
        out.extend(sums);
        Ok(out)
    }

    fn last_with_weights(&self, layers: Range<usize>) -> Option<usize> {
        layers.rev().find(|layer| self.plan.network.layers[*layer].has_weights())
    }

    /// Sends the gradient of a segment's input to those who computed it, and keeps what is for this worker's own towers.
    fn share_input_gradient(
        &mut self,
        compute: &Compute,
        micro_batch: &MicroBatch,
        segment: SegmentIndex,
        tower: TowerIndex,
        whole: &[f32],
    ) -> Vec<Out> {
        let (plan, mut out) = (self.plan.clone(), Vec::new());
        let exchange = segment.exchange_before().expect("the first segment has no gradient of its input");
        for to in plan.parts(exchange.segment_before()) {
            let channels = plan.exchanged(exchange).channels;
            let values = channels_of(compute, whole, channels, plan.contribution(exchange, to));
            if self.computes(exchange.segment_before(), to, micro_batch.id) {
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
        out
    }

    /// The last micro-batch of the step has passed layers of a segment backward. In the head, the weight gradients can be formed. In the
    /// trunk, they are complete but for those of other replicas.
    fn end_layers(
        &mut self,
        compute: &Compute,
        layers: Range<usize>,
        (segment, tower): (SegmentIndex, TowerIndex),
        micro_batch: &MicroBatch,
    ) -> Vec<Out> {
        let plan = self.plan.clone();
        if plan.segments[segment].half == Half::Head {
            for layer in layers.rev().filter(|layer| plan.network.layers[*layer].has_weights()) {
                self.queue(micro_batch.clone(), segment, tower, Work::WeightGradients { layer });
            }
            return Vec::new();
        }
        let complete = plan.bundles.iter().rev().filter(|bundle| layers.contains(&bundle.layers.start));
        complete.flat_map(|bundle| self.share_gradients(compute, bundle, tower)).collect()
    }

    /// Sends the pieces of a bundle's gradients to their owners, and keeps this worker's own one.
    fn share_gradients(&mut self, compute: &Compute, bundle: &Bundle, tower: TowerIndex) -> Vec<Out> {
        let Some(reduction) = self.reductions.get_mut(&(bundle.name.clone(), tower)) else { return Vec::new() };
        let holder = self.towers.get_mut(&(Half::Trunk, tower)).expect("it has computed the gradients");
        let (mut out, mut complete) = (Vec::new(), None);
        let step = self.committed + 1;
        let key = |piece, node| TensorKey::Gradient { step, name: bundle.name.clone(), tower, piece, node };
        let sums = bundle.parameters.iter().map(|parameter| holder.take_sums(compute, parameter));
        for (node, sums) in by_node(sums) {
            assert_eq!(sums.len(), bundle.parameters.len(), "every parameter has sums over the same nodes");
            for (index, piece) in reduction.of_others() {
                let mut values = compute.tensor(piece.floats.len());
                copy_joined(&sums, piece.floats.start, &mut values);
                out.push(Out::Tensor(Payload::floats(key(index, Some(node.clone())), vec![values.len()], values)));
            }
            let own = reduction.own().map(|(_, piece)| {
                let mut values = vec![0.0; piece.floats.len()];
                copy_joined(&sums, piece.floats.start, &mut values);
                values
            });
            if let Some(own) = own {
                complete = reduction.add_own(compute, &node, own).expect("a worker forms each of its sums once");
            }
            bundle.parameters.iter().zip(sums).for_each(|(parameter, sum)| holder.give_back(parameter, sum));
        }
        out.extend(complete.map(|(piece, sum)| Out::Tensor(Payload::floats(key(piece, None), vec![sum.len()], sum))));
        self.finish_reduction(&bundle.name, tower);
        out
    }

    /// Takes over the sums of a bundle's gradients over all slots, once all pieces are there.
    fn finish_reduction(&mut self, name: &str, tower: TowerIndex) {
        let sum = self.reductions.get_mut(&(name.to_owned(), tower)).and_then(Reduction::finish);
        let Some((sum, bundle)) = sum.zip(self.plan.bundle(name)) else { return };
        let holder = self.towers.get_mut(&(Half::Trunk, tower)).expect("it has a reduction");
        for (parameter, range) in bundle.parameters.iter().zip(self.plan.ranges(bundle, tower)) {
            holder.set_sum(parameter, &sum[range]);
        }
    }

    /// Accepts another worker's sum of a piece: over a node, for this worker's own piece, or over all slots, from its owner.
    fn accept_gradient(
        &mut self,
        compute: &Compute,
        key: &TensorKey,
        values: Vec<f32>,
    ) -> Result<Vec<Out>, EngineError> {
        let TensorKey::Gradient { step, name, tower, piece, node } = key else { return Ok(Vec::new()) };
        let wrong = |why| unexpected(key, why);
        if !self.awaited.is_empty() || *step != self.committed + 1 || !self.assignment.train {
            return Err(wrong("it does not belong to the current step"));
        }
        let reduction = self.reductions.get_mut(&(name.clone(), *tower));
        let reduction = reduction.ok_or_else(|| wrong("this worker does not share the tower"))?;
        let is_own = reduction.own().is_some_and(|(own, _)| own == *piece);
        let complete = match node {
            Some(node) if is_own => reduction.add_others(compute, node, values).map_err(wrong)?,
            None if !is_own => reduction.place(*piece, &values).map(|()| None).map_err(wrong)?,
            _ => {
                return Err(wrong(
                    "the owner of a piece sends its sum to the others, and they send theirs to the owner",
                ));
            }
        };
        self.finish_reduction(name, *tower);
        Ok(complete.into_iter().map(|(_, sum)| self.payload_of_sum(key, sum)).collect())
    }

    fn payload_of_sum(&self, of: &TensorKey, sum: Vec<f32>) -> Out {
        let mut key = of.clone();
        if let TensorKey::Gradient { node, .. } = &mut key {
            *node = None;
        }
        Out::Tensor(Payload::floats(key, vec![sum.len()], sum))
    }

    fn tower(&mut self, segment: SegmentIndex, index: TowerIndex) -> &mut Tower {
        let half = self.plan.segments[segment].half;
        self.towers.get_mut(&(half, index)).expect("tasks are queued only for this worker's towers")
    }

    fn payload(&self, key: TensorKey, values: impl AsRef<[f32]> + Send + 'static) -> Out {
        let shape = convoy_common::wire::expected_shape(&self.plan, usize::MAX, &key).expect("a tensor of this plan");
        Out::Tensor(Payload::floats(key, shape, values))
    }
}

/// The most bytes of tensors that can be early: those of the steps ahead, and of the first micro-batches of a measurement, which have at
/// most `samples_max` samples.
fn early_bytes_max(plan: &Plan, batch: usize, samples_max: usize) -> u64 {
    let of_steps = plan.step_traffic(batch).to_workers().saturating_mul(STEPS_AHEAD);
    let measured = plan.measurement_traffic(samples_max).to_workers().saturating_mul(EVALUATIONS_AHEAD as u64);
    of_steps.saturating_add(measured)
}

/// A segment's output while it is sent. The backward pass may still read it.
struct Sent(Arc<Tensor>);

impl AsRef<[f32]> for Sent {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

/// The sum of partial gradients, in their order.
fn summed(compute: &Compute, partials: Vec<Tensor>) -> Tensor {
    let mut partials = partials.into_iter();
    let mut sum = partials.next().expect("a gradient has at least one partial");
    partials.for_each(|partial| add(compute, &mut sum, &partial));
    sum
}

/// The states of a parameter that a worker holds.
fn states(train: bool) -> impl Iterator<Item = State> {
    [State::Weights, State::Momentum].into_iter().take(if train { 2 } else { 1 })
}

/// The channels of `slice` of each pixel.
fn channels_of(compute: &Compute, whole: &[f32], channels: usize, slice: std::ops::Range<usize>) -> Tensor {
    let mut some = compute.tensor(whole.len() / channels * slice.len());
    for (some, pixel) in some.chunks_exact_mut(slice.len()).zip(whole.chunks_exact(channels)) {
        some.copy_from_slice(&pixel[slice.clone()]);
    }
    some
}

fn unexpected(key: &TensorKey, why: &'static str) -> EngineError {
    EngineError::Unexpected { key: key.to_string(), why }
}

#[cfg(test)]
mod scripts;
#[cfg(test)]
mod tests;
