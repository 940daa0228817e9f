//! The state of a job: the weights and the momentum of all towers, and how far the job has come. It is scattered to the workers
//! tower by tower, and gathered from them likewise. Pure: nothing is sent from here.
//!
//! Not here: its form on disk (`checkpoint`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use convoy_common::index::{TowerIndex, WorkerIndex};
use convoy_common::model::Network;
use convoy_common::parameters::{Parameter, Tensors};
use convoy_common::placement::Half;
use convoy_common::plan::Plan;
use convoy_common::wire::{Chunk, Payload, State, TensorKey, WireError, expected_shape};
use serde::{Deserialize, Serialize};

/// Weights and momentum of all towers.
#[derive(Clone, Debug, PartialEq)]
pub struct JobState {
    /// By parameter name.
    pub weights: Tensors,
    /// By parameter name. Empty where nothing is trained.
    pub momentum: Tensors,
}

/// How far a job has come. The position in the data follows from the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps committed.
    pub step: u64,
    /// Sum of the losses of the current epoch's images, in the order of training.
    pub epoch_loss_sum: f64,
    /// Number of those images.
    pub epoch_images: u64,
    /// Mean loss of the last complete epoch.
    pub train_loss: Option<f64>,
    /// Last measured test accuracy.
    pub test_accuracy: Option<f64>,
}

/// Everything needed to continue a job, in memory.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// How far the job had come.
    pub progress: Progress,
    /// The state after the last step of `progress`.
    pub state: JobState,
}

/// The most bytes of the coordinator's memory that snapshots of a job need: two snapshots of weights and momentum, and the contents of
/// a file with the weights or the momentum, while a checkpoint is written.
pub fn snapshot_bytes(network: &Network) -> u64 {
    let floats: usize = network.parameters().iter().map(Parameter::len).sum();
    let (snapshots, file) = (2 * 2 * floats, floats);
    ((snapshots + file) * size_of::<f32>()) as u64
}

impl JobState {
    /// A state of zeros.
    fn zeros(network: &Network) -> Self {
        Self { weights: network.zeros(), momentum: network.zeros() }
    }

    /// Whether it holds the weights and the momentum of every parameter, and nothing else, so that a later state fits into its memory.
    fn is_of(&self, network: &Network) -> bool {
        let parameters = network.parameters();
        let has = |tensors: &Tensors, parameter: &Parameter| {
            let tensor = tensors.get(&parameter.name);
            tensor.is_some_and(|tensor| tensor.shape() == parameter.shape && tensor.is_standard_layout())
        };
        [&self.weights, &self.momentum].into_iter().all(|tensors| {
            tensors.len() == parameters.len() && parameters.iter().all(|parameter| has(tensors, parameter))
        })
    }

    /// The tensors that `worker` needs, as of `step`.
    pub fn slices(&self, plan: &Plan, worker: WorkerIndex, step: u64) -> impl Iterator<Item = Payload> {
        let held = plan.placement.held_by(worker).into_iter();
        held.flat_map(move |(half, tower)| self.slices_of(plan, half, tower, step))
    }

    /// The tensors of a tower of the trunk, or of a slice of the head.
    fn slices_of(&self, plan: &Plan, half: Half, tower: TowerIndex, step: u64) -> impl Iterator<Item = Payload> {
        let both = [(State::Weights, &self.weights), (State::Momentum, &self.momentum)];
        both.into_iter().flat_map(move |(state, tensors)| {
            let of_half =
                plan.network.parameters().into_iter().filter(move |parameter| plan.half_of(parameter.layer) == half);
            of_half.filter_map(move |parameter| {
                let tensor = tensors.get(&parameter.name)?;
                let slice = parameter.slice_of(&plan.network, tower, tensor);
                let key = TensorKey::Parameter { step, name: parameter.name.clone(), tower, state };
                let values: Vec<f32> = slice.iter().copied().collect();
                Some(Payload::floats(key, slice.shape().to_vec(), values))
            })
        })
    }
}

/// The state of a job, while the workers' tensors of it arrive.
#[derive(Debug)]
pub struct Gathering {
    plan: Arc<Plan>,
    step: u64,
    parameters: Vec<Parameter>,
    state: JobState,
    /// Bytes that have arrived of each incomplete tensor.
    received: HashMap<TensorKey, usize>,
    /// Tensors that have arrived whole.
    seen: HashSet<TensorKey>,
}

impl Gathering {
    /// Gathers the state as of `step` from all workers of the plan, into the memory of `outdated` if it is a state of the same job. New
    /// memory from the system is expensive, because the system zeroes it page by page.
    pub fn new(plan: Arc<Plan>, step: u64, outdated: Option<JobState>) -> Self {
        let network = &plan.network;
        let state = outdated.filter(|state| state.is_of(network)).unwrap_or_else(|| JobState::zeros(network));
        let parameters = network.parameters();
        Self { plan, step, parameters, state, received: HashMap::new(), seen: HashSet::new() }
    }

    /// Number of tensors that have not arrived.
    pub fn owed(&self) -> usize {
        let parts = self.parameters.iter().map(|parameter| self.plan.network.parts(parameter.layer));
        parts.sum::<usize>() * 2 - self.seen.len()
    }

    /// Takes a chunk from `worker`.
    ///
    /// # Errors
    /// When the worker does not owe it, or it does not [continue](Chunk::continues) its tensor. It is then ignored.
    pub fn accept(&mut self, worker: WorkerIndex, chunk: Chunk) -> Result<(), WireError> {
        let wrong = |key: &TensorKey, expected| WireError::Value { field: "tensor", value: key.to_string(), expected };
        let shape = expected_shape(&self.plan, 0, &chunk.key)?;
        let key = chunk.key.clone();
        let TensorKey::Parameter { step, name, tower, state } = &key else {
            return Err(wrong(&key, "only weights and momentum are owed"));
        };
        let parameter = self.parameters.iter().find(|parameter| parameter.name == *name).expect("it has a shape");
        // Of those that hold the same weights, the first one answers for them.
        let sharers = self.plan.placement.sharers(self.plan.half_of(parameter.layer), *tower);
        if *step != self.step || sharers.first() != Some(&worker) {
            return Err(wrong(&key, "the worker does not owe it"));
        }
        if self.seen.contains(&key) {
            return Err(wrong(&key, "it must be sent once"));
        }
        let received = self.received.get(&key).copied().unwrap_or(0);
        let is_last = chunk.continues(&shape, received)?;
        let tensors = if *state == State::Weights { &mut self.state.weights } else { &mut self.state.momentum };
        let whole = tensors.get_mut(name).expect("the state holds every parameter");
        let part = parameter.slice_of_mut(&self.plan.network, *tower, whole);
        chunk.copy_to(part.into_slice().expect("a part of the first axis, in standard layout"));
        if is_last {
            self.received.remove(&key);
            self.seen.insert(key);
        } else {
            self.received.insert(key, received + chunk.data.len());
        }
        Ok(())
    }

    /// The whole state, once nothing is owed.
    pub fn finish(self) -> JobState {
        debug_assert_eq!(self.owed(), 0);
        self.state
    }
}

#[cfg(test)]
mod tests {
    use convoy_common::model::{Network, presets};
    use convoy_common::wire::{Generation, chunk_from_frame, frames};
    use proptest::prelude::*;

    use super::*;

    fn plan() -> Arc<Plan> {
        let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
        // Three workers hold two replicas of two towers.
        Arc::new(Plan::new(network, 3, 2, None).unwrap())
    }

    fn some_state(plan: &Plan) -> JobState {
        JobState { weights: plan.network.initial_weights(3, 3), momentum: plan.network.initial_weights(4, 4) }
    }

    /// All chunks of a state, each with the worker that owes it.
    fn owed(plan: &Plan, state: &JobState) -> Vec<(WorkerIndex, Chunk)> {
        let answers = |worker: &WorkerIndex, chunk: &Chunk| {
            let TensorKey::Parameter { name, tower, .. } = &chunk.key else { panic!("{}", chunk.key) };
            let half = plan.half_of(plan.network.parameter(name).unwrap().layer);
            plan.placement.sharers(half, *tower)[0] == *worker
        };
        let of = |worker| state.slices(plan, worker, 7).flat_map(chunks).map(move |chunk| (worker, chunk));
        plan.all_workers().flat_map(of).filter(|(worker, chunk)| answers(worker, chunk)).collect()
    }

    fn chunks(payload: Payload) -> impl Iterator<Item = Chunk> {
        frames(Generation { job: 1, number: 1 }, payload).map(|frame| chunk_from_frame(frame).unwrap())
    }

    #[test]
    fn what_is_scattered_is_gathered_again_to_the_bit() {
        let plan = plan();
        let state = some_state(&plan);
        let mut used = some_state(&plan);
        let tensors = used.weights.values_mut().chain(used.momentum.values_mut());
        tensors.for_each(|tensor| tensor.fill(f32::NAN));
        let without_momentum = JobState { momentum: Tensors::new(), ..some_state(&plan) };
        let place = |state: &JobState| state.weights["conv1.weight"].as_ptr();
        let (place_of_used, place_of_other) = (place(&used), place(&without_momentum));
        for (outdated, reused) in [(None, None), (Some(used), Some(place_of_used)), (Some(without_momentum), None)] {
            let mut gathering = Gathering::new(plan.clone(), 7, outdated);
            match reused {
                Some(expected) => {
                    assert_eq!(place(&gathering.state), expected, "it has the memory of the outdated one")
                }
                None => assert_ne!(place(&gathering.state), place_of_other, "it does not fit, and is dropped"),
            }
            for (worker, chunk) in owed(&plan, &state) {
                assert_ne!(gathering.owed(), 0);
                gathering.accept(worker, chunk).unwrap();
            }
            assert_eq!(gathering.owed(), 0);
            assert!(gathering.finish() == state);
        }
    }

    /// Any order in which the chunks of all tensors can arrive: those of one tensor stay in order.
    fn any_order() -> impl Strategy<Value = Vec<TensorKey>> {
        let plan = plan();
        let tensors = owed(&plan, &some_state(&plan)).into_iter().map(|(_, chunk)| chunk.key);
        Just(tensors.collect::<Vec<_>>()).prop_shuffle()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_order_in_which_tensors_arrive_does_not_matter(order in any_order()) {
            let plan = plan();
            let state = some_state(&plan);
            let mut sent: HashMap<TensorKey, Vec<(WorkerIndex, Chunk)>> = HashMap::new();
            for (worker, chunk) in owed(&plan, &state) {
                sent.entry(chunk.key.clone()).or_default().push((worker, chunk));
            }
            let mut gathering = Gathering::new(plan.clone(), 7, None);
            for tensor in order {
                prop_assert_ne!(gathering.owed(), 0);
                let (worker, chunk) = sent.get_mut(&tensor).unwrap().remove(0);
                gathering.accept(worker, chunk).unwrap();
            }
            prop_assert_eq!(gathering.owed(), 0);
            prop_assert!(gathering.finish() == state);
        }
    }

    #[test]
    fn tensors_of_another_step_or_worker_or_sent_twice_are_refused() {
        let plan = plan();
        let state = some_state(&plan);
        let first = |step| chunks(state.slices(&plan, WorkerIndex(0), step).next().unwrap()).next().unwrap();
        let mut gathering = Gathering::new(plan.clone(), 7, None);
        assert!(gathering.accept(WorkerIndex(0), first(8)).is_err(), "another step");
        assert!(gathering.accept(WorkerIndex(1), first(7)).is_err(), "a tower of another worker");
        assert!(first(7).ends().is_some(), "the first tensor has one chunk");
        gathering.accept(WorkerIndex(0), first(7)).unwrap();
        let error = gathering.accept(WorkerIndex(0), first(7)).unwrap_err().to_string();
        assert!(error.contains("sent once"), "{error}");
    }

    #[test]
    fn chunks_of_a_tensor_that_are_out_of_order_are_refused_and_ignored() {
        let plan = plan();
        let state = some_state(&plan);
        let all = owed(&plan, &state);
        let of = |key: &TensorKey| all.iter().filter(|(_, chunk)| chunk.key == *key).cloned().collect::<Vec<_>>();
        let [(worker, first), (_, second)] =
            all.iter().find_map(|(_, chunk)| <[_; 2]>::try_from(of(&chunk.key)).ok()).unwrap();
        let mut gathering = Gathering::new(plan.clone(), 7, None);
        let owed = gathering.owed();
        let mut accept = |chunk: &Chunk| gathering.accept(worker, chunk.clone());
        let is_refused = |result| matches!(result, Err(WireError::Offset { .. }));
        assert!(is_refused(accept(&second)), "a gap");
        accept(&first).unwrap();
        assert!(is_refused(accept(&first)), "a repetition");
        let long = Chunk { data: [&second.data[..], &[0; 4]].concat().into(), ..second.clone() };
        assert!(is_refused(accept(&long)), "an overrun");
        accept(&second).unwrap();
        assert_eq!(gathering.owed(), owed - 1);
    }
}
