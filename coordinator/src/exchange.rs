//! The exchanges, as the coordinator sees them. Every chunk that a worker sends it is checked against the plan and counted. Then it is
//! relayed to the workers that need it or, if it holds logits, kept. What workers send each other directly is counted by their
//! reports. Pure: nothing is sent from here.
//!
//! Chunks are relayed one by one, so that a large tensor is sent on while it still arrives.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use convoy_common::batch::{MicroBatch, MicroBatchId};
use convoy_common::index::{TowerIndex, WorkerIndex};
use convoy_common::plan::Plan;
use convoy_common::route::{Moved, route};
use convoy_common::wire::{
    Assembler, Carried, Chunk, Direction, Elements, Tally, TensorKey, WireError, expected_shape,
};
use serde::Serialize;

/// What to do with a chunk.
#[derive(Debug)]
pub enum Routed {
    /// Send it on.
    Relay {
        /// The workers that need it.
        to: Vec<WorkerIndex>,
        /// The chunk.
        chunk: Chunk,
    },
    /// It completed the logits of a micro-batch.
    Logits {
        /// The micro-batch.
        micro_batch: MicroBatch,
        /// All towers' logits, (sample, class).
        logits: Vec<f32>,
    },
    /// Nothing: it was kept.
    Kept,
}

/// What an exchange has moved in one direction, counted on arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Complete tensors.
    pub tensors: u64,
    /// Payload bytes.
    pub bytes: u64,
}

/// What workers have sent, counted on arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// At each exchange in each direction, and to sum gradients.
    pub moved: BTreeMap<Moved, Counted>,
    /// Payload bytes from each worker to each other one.
    pub pairs: BTreeMap<(WorkerIndex, WorkerIndex), u64>,
}

impl Counts {
    /// Adds what has arrived from `from` at the workers `to`, or at the coordinator.
    fn add(&mut self, moved: Moved, from: WorkerIndex, to: &[WorkerIndex], Counted { tensors, bytes }: Counted) {
        let counted = self.moved.entry(moved).or_default();
        counted.tensors = counted.tensors.saturating_add(tensors);
        counted.bytes = counted.bytes.saturating_add(bytes);
        for to in to {
            let pair = self.pairs.entry((from, *to)).or_default();
            *pair = pair.saturating_add(bytes);
        }
    }

    /// Adds what `worker` has received from others directly. The caller has checked that it can have received it.
    pub fn add_tally(&mut self, worker: WorkerIndex, tally: &Tally) {
        for Carried { from, moved, tensors, bytes } in &tally.carried {
            self.add(*moved, *from, &[worker], Counted { tensors: *tensors, bytes: *bytes });
        }
    }

    /// Adds other counts.
    pub fn add_all(&mut self, other: &Counts) {
        for (moved, counted) in &other.moved {
            self.add(*moved, WorkerIndex(0), &[], *counted);
        }
        for (pair, bytes) in &other.pairs {
            let sum = self.pairs.entry(*pair).or_default();
            *sum = sum.saturating_add(*bytes);
        }
    }

    /// All bytes that were counted.
    pub fn bytes(&self) -> u64 {
        self.moved.values().map(|counted| counted.bytes).fold(0, u64::saturating_add)
    }
}

/// Whether `worker` can have received what it reports.
///
/// # Errors
/// When the plan has no such exchange, or no direct link between the two.
pub fn check_tally(plan: &Plan, worker: WorkerIndex, tally: &Tally) -> Result<(), WireError> {
    for Carried { from, moved, .. } in &tally.carried {
        if from.0 >= plan.workers || *from == worker || !plan.links.is_direct(*from, worker) {
            return Err(unfit("from", from, "it has no direct link to this worker"));
        }
        if let Moved::Exchange(exchange, _) = moved
            && *exchange >= plan.logits_exchange()
        {
            return Err(unfit("exchange", exchange, "workers have no such exchange"));
        }
    }
    Ok(())
}

/// The state of all exchanges of a run.
#[derive(Debug)]
pub struct Exchanges {
    plan: Arc<Plan>,
    samples_max: usize,
    live: HashMap<MicroBatchId, MicroBatch>,
    /// Bytes received so far of each tensor of the live micro-batches.
    received: HashMap<TensorKey, usize>,
    /// It needs no limit of its own: only logits of live micro-batches get here.
    assembler: Assembler,
    logits: HashMap<MicroBatchId, Gathered>,
    counted: Counts,
    /// The step at hand, and its samples.
    step: u64,
    samples: usize,
}

#[derive(Debug)]
struct Gathered {
    values: Vec<f32>,
    /// Slices of the head that have arrived.
    slices: usize,
}

impl Exchanges {
    /// The exchanges of a job whose micro-batches have at most `samples_max` samples.
    pub fn new(plan: Arc<Plan>, samples_max: usize) -> Self {
        Self {
            plan,
            samples_max,
            live: HashMap::new(),
            received: HashMap::new(),
            assembler: Assembler::new(usize::MAX),
            logits: HashMap::new(),
            counted: Counts::default(),
            step: 0,
            samples: 0,
        }
    }

    /// Expects tensors of this micro-batch from now on.
    pub fn open(&mut self, micro_batch: &MicroBatch) {
        self.live.insert(micro_batch.id, micro_batch.clone());
    }

    /// Expects no more tensors of this micro-batch.
    pub fn close(&mut self, id: MicroBatchId) {
        self.live.remove(&id);
        self.received.retain(|key, _| key.micro_batch().is_none_or(|m| m.id != id));
    }

    /// What workers have sent.
    pub fn counted(&self) -> &Counts {
        &self.counted
    }

    /// Checks a chunk from `worker`, and says what to do with it.
    ///
    /// # Errors
    /// When the worker must not send it.
    pub fn route(&mut self, worker: WorkerIndex, chunk: Chunk) -> Result<Routed, WireError> {
        let expected = expected_shape(&self.plan, self.samples_max, &chunk.key)?;
        match &chunk.key {
            TensorKey::Activations { micro_batch, .. } if self.live.get(&micro_batch.id) != Some(micro_batch) => {
                return Err(unfit("micro_batch", &chunk.key, "this micro-batch is not being computed"));
            }
            TensorKey::Gradient { step, .. } if *step != self.step => {
                return Err(unfit("step", step, "this step is not being computed"));
            }
            _ => {}
        }
        let route = route(&self.plan, self.samples, &chunk.key)?;
        route.check_sender(&self.plan, worker, &chunk.key)?;
        let is_direct = |to: &WorkerIndex| self.plan.links.is_direct(worker, *to);
        let to: Vec<_> = route.to.into_iter().filter(|to| !is_direct(to)).collect();
        // A key does not name the sender of a sum over a node, but no two workers have the same node.
        self.count(&chunk, &expected, (route.moved, worker, &to))?;
        match chunk.key.clone() {
            TensorKey::Activations { micro_batch, exchange, from_tower, .. }
                if exchange == self.plan.logits_exchange() =>
            {
                self.keep_logits(micro_batch, from_tower, chunk, &expected)
            }
            key if to.is_empty() => Err(unfit("tensor", &key, "it must go straight to the workers that need it")),
            _ => Ok(Routed::Relay { to, chunk }),
        }
    }

    /// Counts what a worker has received from others directly.
    ///
    /// # Errors
    /// When the plan has no such exchange, or no direct link between the two.
    pub fn add(&mut self, worker: WorkerIndex, tally: &Tally) -> Result<(), WireError> {
        check_tally(&self.plan, worker, tally)?;
        self.counted.add_tally(worker, tally);
        Ok(())
    }

    /// Expects gradients of `step`, which has `samples` samples, and no others.
    pub fn begin_step(&mut self, step: u64, samples: usize) {
        (self.step, self.samples) = (step, samples);
        self.received.retain(|key, _| key.micro_batch().is_some());
    }

    /// Checks and counts a chunk.
    fn count(
        &mut self,
        chunk: &Chunk,
        expected: &[usize],
        (moved, from, to): (Moved, WorkerIndex, &[WorkerIndex]),
    ) -> Result<(), WireError> {
        let received = self.received.entry(chunk.key.clone()).or_default();
        let is_last = chunk.continues(expected, *received)?;
        *received += chunk.data.len();
        let counted = Counted { tensors: u64::from(is_last), bytes: chunk.data.len() as u64 };
        self.counted.add(moved, from, to, counted);
        Ok(())
    }

    fn keep_logits(
        &mut self,
        micro_batch: MicroBatch,
        tower: TowerIndex,
        chunk: Chunk,
        expected: &[usize],
    ) -> Result<Routed, WireError> {
        let Some((_, Elements::Floats(values))) = self.assembler.accept(chunk, expected)? else {
            return Ok(Routed::Kept);
        };
        let classes = self.plan.network.classes();
        let slices = self.plan.senders(self.plan.logits_exchange(), Direction::Forward).count();
        let slice = self.plan.contribution(self.plan.logits_exchange(), tower);
        let gathered = self
            .logits
            .entry(micro_batch.id)
            .or_insert_with(|| Gathered { values: vec![0.0; classes * micro_batch.samples.len()], slices: 0 });
        for (row, own) in gathered.values.chunks_exact_mut(classes).zip(values.chunks_exact(slice.len())) {
            row[slice.clone()].copy_from_slice(own);
        }
        gathered.slices += 1;
        if gathered.slices < slices {
            return Ok(Routed::Kept);
        }
        let logits = self.logits.remove(&micro_batch.id).map_or_else(Vec::new, |gathered| gathered.values);
        Ok(Routed::Logits { micro_batch, logits })
    }
}

fn unfit(field: &'static str, value: &dyn std::fmt::Display, expected: &'static str) -> WireError {
    WireError::Value { field, value: value.to_string(), expected }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
