//! One step as a state machine: from logits to their gradients, until every tower has finished its backward pass, every worker has
//! all its gradients, and the step may be committed. Pure: it returns the values to send.
//!
//! ```text
//! Computing --all logits, then all BackwardDone, then all StepDone--> done --(the driver sends Commit)
//!     \--a loss that isn't finite--> nothing of the step is applied
//! ```
//!
//! A step without a finite loss never completes: BackwardDone is accepted only after all logits of its micro-batch have arrived.

use std::collections::BTreeSet;
use std::sync::Arc;

use convoy_common::batch::{MicroBatch, MicroBatchId};
use convoy_common::index::{SegmentIndex, TowerIndex, WorkerIndex};
use convoy_common::plan::Plan;
use convoy_common::wire::{Direction, Payload, TensorKey};

use crate::loss::cross_entropy;

/// A step in progress.
#[derive(Debug)]
pub struct Step {
    plan: Arc<Plan>,
    /// The micro-batches of this step.
    micro_batches: Vec<MicroBatch>,
    /// Labels by position in the batch.
    labels: Vec<u16>,
    /// Losses by position in the batch. NaN until known.
    losses: Vec<f64>,
    /// Backward passes that haven't finished.
    owed: BTreeSet<(MicroBatchId, TowerIndex)>,
    /// Workers whose gradients aren't complete.
    unfinished: BTreeSet<WorkerIndex>,
}

impl Step {
    /// A step over a batch with these labels, divided into these micro-batches.
    pub fn new(plan: Arc<Plan>, labels: Vec<u16>, micro_batches: &[MicroBatch]) -> Self {
        let towers = plan.parts(SegmentIndex(0));
        let owed = micro_batches.iter().flat_map(|m| towers.clone().map(move |tower| (m.id, tower))).collect();
        let losses = vec![f64::NAN; labels.len()];
        let unfinished = plan.all_workers().collect();
        Self { plan, micro_batches: micro_batches.to_vec(), labels, losses, owed, unfinished }
    }

    /// Whether a micro-batch belongs to this step, with the same samples.
    pub fn holds(&self, micro_batch: &MicroBatch) -> bool {
        self.micro_batches.contains(micro_batch)
    }

    /// Records the losses of a micro-batch that this step [holds](Self::holds). Returns the gradient of the logits for every slice of the head, or None if a loss isn't finite.
    pub fn on_logits(&mut self, micro_batch: &MicroBatch, logits: &[f32]) -> Option<Vec<(TowerIndex, Payload)>> {
        let classes = self.plan.network.classes();
        let mut gradient = vec![0.0; logits.len()];
        let rows = logits.chunks_exact(classes).zip(gradient.chunks_exact_mut(classes));
        for (position, (logits, gradient)) in micro_batch.samples.clone().zip(rows) {
            let label = usize::from(self.labels[position]);
            self.losses[position] = cross_entropy(logits, label, self.labels.len(), gradient).loss;
        }
        let finite = self.losses[micro_batch.samples.clone()].iter().all(|loss| loss.is_finite());
        let slices = self.plan.senders(self.plan.logits_exchange(), Direction::Backward);
        finite.then(|| slices.map(|slice| (slice, self.slice(micro_batch, slice, &gradient))).collect())
    }

    /// Records that a tower has finished a micro-batch's backward pass. Returns whether that was owed and possible: no tower can
    /// finish before it has the gradient of its logits.
    pub fn on_backward_done(&mut self, micro_batch: &MicroBatch, tower: TowerIndex) -> bool {
        let has_losses = || self.losses[micro_batch.samples.clone()].iter().all(|loss| loss.is_finite());
        self.holds(micro_batch) && has_losses() && self.owed.remove(&(micro_batch.id, tower))
    }

    /// Records that all gradients of a worker are complete. Returns whether that was owed and possible: the backward passes of its towers
    /// come first.
    pub fn on_step_done(&mut self, worker: WorkerIndex) -> bool {
        let computes = |id, tower| self.plan.holder(SegmentIndex(0), tower, id) == worker;
        !self.owed.iter().any(|(id, tower)| computes(*id, *tower)) && self.unfinished.remove(&worker)
    }

    /// Whether every worker has all its gradients.
    pub fn is_done(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// A worker whose gradients aren't complete, and one of its towers that hasn't finished its backward passes, if there is one.
    pub fn waiting_for(&self) -> Option<(WorkerIndex, Option<TowerIndex>)> {
        let holder = |id, tower| self.plan.holder(SegmentIndex(0), tower, id);
        let owed = self.owed.first().map(|(id, tower)| (holder(*id, *tower), Some(*tower)));
        owed.or_else(|| self.unfinished.first().map(|worker| (*worker, None)))
    }

    /// The sum of all losses, in sample order.
    pub fn loss_sum(&self) -> f64 {
        self.losses.iter().fold(0.0, |sum, loss| sum + loss)
    }

    /// The batch's mean loss.
    pub fn loss(&self) -> f64 {
        self.loss_sum() / self.labels.len() as f64
    }

    fn slice(&self, micro_batch: &MicroBatch, tower: TowerIndex, gradient: &[f32]) -> Payload {
        let exchange = self.plan.logits_exchange();
        let slice = self.plan.contribution(exchange, tower);
        let rows = gradient.chunks_exact(self.plan.network.classes());
        let values: Vec<f32> = rows.flat_map(|row| &row[slice.clone()]).copied().collect();
        let key = TensorKey::Activations {
            micro_batch: micro_batch.clone(),
            exchange,
            direction: Direction::Backward,
            from_tower: tower,
            to_tower: Some(tower),
        };
        Payload::floats(key, vec![micro_batch.samples.len(), 1, 1, slice.len()], values)
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::batch::Division;
    use convoy_common::model::{Network, presets};
    use proptest::prelude::*;

    use super::*;

    /// What a step hears.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Heard {
        /// The logits of a micro-batch.
        Logits(usize),
        /// A tower has finished the backward pass of a micro-batch.
        BackwardDone(usize, usize),
        /// A worker has all its gradients.
        StepDone(usize),
    }

    const TOWERS: usize = 2;
    const MICRO_BATCHES: usize = 6;

    /// Everything that a step must hear, in any order, and all but logits twice.
    fn any_order() -> impl Strategy<Value = Vec<Heard>> {
        let of = |m| {
            let backward = (0..TOWERS).flat_map(move |tower| [Heard::BackwardDone(m, tower); 2]);
            std::iter::once(Heard::Logits(m)).chain(backward)
        };
        let done = (0..TOWERS).flat_map(|worker| [Heard::StepDone(worker); 2]);
        Just((0..MICRO_BATCHES).flat_map(of).chain(done).collect::<Vec<_>>()).prop_shuffle()
    }

    proptest! {
        /// Whatever the order, a step ends, counts each backward pass once, and has the same loss to the bit. What comes too early is
        /// refused, and is sent again after everything else.
        #[test]
        fn every_order_of_messages_gives_the_same_step(order in any_order()) {
            let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
            let plan = Arc::new(Plan::new(network, TOWERS, 2, None).unwrap());
            let micro_batches = Division { slots: 2, micro_batches: MICRO_BATCHES / 2 }.of(1, 12);
            let labels: Vec<u16> = (0..12).map(|sample| sample % 10).collect();
            let logits = |m: usize| (0..20).map(|i| ((m * 20 + i) as f32).sin()).collect::<Vec<f32>>();
            let mut in_order = Step::new(plan.clone(), labels.clone(), &micro_batches);
            for (m, micro_batch) in micro_batches.iter().enumerate() {
                prop_assert!(in_order.on_logits(micro_batch, &logits(m)).is_some());
            }
            let mut step = Step::new(plan, labels, &micro_batches);
            let mut counted = Vec::new();
            for heard in order.iter().chain(&order).chain(&order) {
                match *heard {
                    Heard::Logits(m) if !counted.contains(heard) => {
                        prop_assert!(step.on_logits(&micro_batches[m], &logits(m)).is_some());
                        counted.push(*heard);
                    }
                    Heard::Logits(_) => {}
                    Heard::BackwardDone(m, tower) => {
                        let is_due = counted.contains(&Heard::Logits(m)) && !counted.contains(heard);
                        prop_assert_eq!(step.on_backward_done(&micro_batches[m], TowerIndex(tower)), is_due, "{:?}", heard);
                        counted.extend(is_due.then_some(*heard));
                    }
                    Heard::StepDone(worker) => {
                        let mut passes = (0..MICRO_BATCHES).map(|m| Heard::BackwardDone(m, worker));
                        let is_due = passes.all(|pass| counted.contains(&pass)) && !counted.contains(heard);
                        prop_assert_eq!(step.on_step_done(WorkerIndex(worker)), is_due, "{:?}", heard);
                        counted.extend(is_due.then_some(*heard));
                    }
                }
                prop_assert_eq!(step.is_done(), counted.len() == MICRO_BATCHES * (1 + TOWERS) + TOWERS);
            }
            prop_assert!(step.is_done());
            prop_assert_eq!(step.loss().to_bits(), in_order.loss().to_bits());
        }
    }

    #[test]
    fn no_backward_pass_counts_before_the_logits_of_its_micro_batch_or_with_other_samples() {
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        let micro_batches = Division { slots: 1, micro_batches: 2 }.of(1, 4);
        let plan = Arc::new(Plan::new(network, 2, 1, None).unwrap());
        let begun = || Step::new(plan.clone(), vec![3; 4], &micro_batches);
        let mut step = begun();
        assert!(step.on_logits(&micro_batches[0], &[0.0; 20]).is_some());
        let forged = MicroBatch { samples: micro_batches[0].samples.clone(), ..micro_batches[1].clone() };
        assert!(
            !step.on_backward_done(&forged, TowerIndex(0)),
            "the samples whose losses are known are another micro-batch's"
        );
        let next = Division { slots: 1, micro_batches: 2 }.of(2, 4);
        assert!(step.holds(&micro_batches[1]) && !step.holds(&forged) && !step.holds(&next[0]));
        let mut step = begun();
        for micro_batch in &micro_batches {
            assert!(!step.on_backward_done(micro_batch, TowerIndex(0)), "its logits have not arrived");
            assert!(step.on_logits(micro_batch, &[0.0; 20]).is_some());
            let longer = MicroBatch { samples: 0..5, ..micro_batch.clone() };
            assert!(!step.on_backward_done(&longer, TowerIndex(0)), "it has other samples");
            assert!(!step.is_done());
            assert!(
                step.on_backward_done(micro_batch, TowerIndex(0)) && step.on_backward_done(micro_batch, TowerIndex(1))
            );
            assert!(!step.on_backward_done(micro_batch, TowerIndex(1)), "it was counted before");
        }
        assert!(!step.is_done() && step.on_step_done(WorkerIndex(0)) && step.on_step_done(WorkerIndex(1)));
        assert!(step.is_done() && step.loss().is_finite());
        assert!(step.on_logits(&micro_batches[0], &[f32::NAN; 20]).is_none());
    }
}
