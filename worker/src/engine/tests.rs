//! The engine alone: tensors in any order that a network may deliver, unexpected tensors, and commits.

use convoy_common::batch::{Batches, Division};
use convoy_common::placement::Placement;

use super::*;
use crate::probe::Probe;
use convoy_kernels::isa::Isa;

const MODEL: &str = r#"
name = "small"
towers = 2
input = { channels = 1, height = 4, width = 4 }
[[layer]]
kind = "conv"
name = "c"
filters = 4
kernel = 3
pad = 1
[[layer]]
kind = "relu"
[[layer]]
kind = "linear"
name = "fc"
units = 3
"#;

/// Both halves of tower t are on worker `towers[t]`.
fn placed(towers: &[usize]) -> Placement {
    let held: PerTower<WorkerIndex> = towers.iter().copied().map(WorkerIndex).collect();
    Placement { slots: 1, trunk: vec![held.clone()], head: held }
}

fn assignment(placement: &[usize]) -> Assignment {
    Assignment {
        job: 1,
        model: MODEL.to_owned(),
        placement: placed(placement),
        worker: WorkerIndex(0),
        seed: 1,
        dropout_seed: 1,
        momentum: 0.9,
        weight_decay: 0.0,
        batches: Batches { images: 2, batch: 2 },
        division: Division { slots: 1, micro_batches: 2 },
        train: true,
        trace: false,
        peers: Vec::new(),
    }
}

pub(super) fn micro_batch(step: u64, index: u32) -> MicroBatch {
    let first = index as usize;
    MicroBatch {
        id: MicroBatchId { step, phase: Phase::Train, slot: 0, micro_batch: index },
        samples: first..first + 1,
    }
}

impl Engine {
    /// Accepts a tensor of the coordinator.
    fn get(&mut self, compute: &Compute, key: TensorKey, elements: Elements) -> Result<Vec<Out>, EngineError> {
        self.accept(compute, Received { key, elements, from: None })
    }
}

/// An engine with its weights: those of the job's seed.
pub(super) fn ready(compute: &Compute, placement: &[usize]) -> Engine {
    ready_for(compute, assignment(placement))
}

fn ready_for(compute: &Compute, assignment: Assignment) -> Engine {
    let mut engine = Engine::new(assignment, u64::MAX).unwrap();
    let plan = engine.plan();
    let mut last = Vec::new();
    for tower in plan.towers_of(WorkerIndex(0)) {
        for parameter in plan.network.parameters() {
            for state in [State::Weights, State::Momentum] {
                let whole = parameter.initial(1, 1);
                let slice = parameter.slice_of(&plan.network, tower, &whole);
                let values = slice.iter().map(|value| if state == State::Weights { *value } else { 0.0 }).collect();
                let key = TensorKey::Parameter { step: 0, name: parameter.name.clone(), tower, state };
                last = engine.get(compute, key, Elements::Floats(values)).unwrap();
            }
        }
    }
    assert!(matches!(last.as_slice(), [Out::Say(FromWorker::Ready)]));
    engine
}

pub(super) fn images(step: u64, index: u32) -> (TensorKey, Elements) {
    (TensorKey::Images(micro_batch(step, index)), Elements::Bytes((0..16).map(|i| i * 9 + index as u8).collect()))
}

pub(super) fn gradient(step: u64, index: u32, tower: TowerIndex) -> (TensorKey, Elements) {
    let key = TensorKey::Activations {
        micro_batch: micro_batch(step, index),
        exchange: ExchangeIndex(1),
        direction: Direction::Backward,
        from_tower: tower,
        to_tower: Some(tower),
    };
    let units = if tower == TowerIndex(0) { 2 } else { 1 };
    (key, Elements::Floats(vec![0.25; units]))
}

fn means<'a>(compute: &'a Compute, probe: &'a Probe) -> Means<'a> {
    Means { compute, probe, is_dropped: &|| false }
}

fn work_all(engine: &mut Engine, compute: &Compute) -> Vec<Out> {
    let mut all = Vec::new();
    let probe = Probe::new(None, None, None);
    while let Some(out) = engine.work(means(compute, &probe)).unwrap() {
        all.extend(out);
    }
    all
}

/// Everything that an engine gets in a step but the commit, and what it puts out.
fn whole_step(engine: &mut Engine, compute: &Compute, step: u64) -> Vec<Out> {
    let mut out = Vec::new();
    for index in 0..2 {
        let (key, elements) = images(step, index);
        engine.get(compute, key, elements).unwrap();
    }
    out.extend(work_all(engine, compute));
    for index in 0..2 {
        for tower in engine.plan().all_towers() {
            let (key, elements) = gradient(step, index, tower);
            engine.get(compute, key, elements).unwrap();
        }
    }
    out.extend(work_all(engine, compute));
    out
}

/// `rayon` lets a thread belong to one pool alone, so every test computes on a thread of its own.
pub(super) fn on_a_pool(test: impl FnOnce(&Compute) + Send + 'static) {
    std::thread::spawn(move || test(&Compute::new(1, Isa::detect()).unwrap().with_dirty_memory())).join().unwrap();
}

#[test]
fn two_towers_on_one_worker_exchange_nothing_but_logits() {
    on_a_pool(|compute| {
        let mut engine = ready(compute, &[0, 0]);
        let (key, elements) = images(1, 0);
        engine.get(compute, key, elements).unwrap();
        let out = work_all(&mut engine, compute);
        let logits = |out: &Out| {
            matches!(out, Out::Tensor(Payload { key: TensorKey::Activations { exchange: ExchangeIndex(1), .. }, .. }))
        };
        assert!(out.len() == 2 && out.iter().all(logits), "{out:?}");
    });
}

/// A tensor may arrive before the commit that it follows. It waits, and the next step uses the new weights.
#[test]
fn images_that_come_before_their_commit_wait_for_it() {
    on_a_pool(|compute| {
        let mut engine = ready(compute, &[0, 0]);
        let (key, elements) = images(2, 0);
        engine.get(compute, key, elements).unwrap();
        let out = whole_step(&mut engine, compute, 1);
        let count = |is_it: fn(&FromWorker) -> bool| {
            out.iter().filter(|out| matches!(out, Out::Say(message) if is_it(message))).count()
        };
        assert_eq!(
            count(|message| matches!(message, FromWorker::BackwardDone { .. })),
            4,
            "two towers, two micro-batches"
        );
        assert_eq!(count(|message| matches!(message, FromWorker::StepDone { step: 1, .. })), 1);
        assert!(matches!(out.last(), Some(Out::Say(FromWorker::StepDone { .. }))), "nothing of the step comes later");
        assert!(!engine.has_work(), "the second step waits");
        engine.commit(compute, 1, 0.1).unwrap();
        assert_eq!(work_all(&mut engine, compute).len(), 2);
    });
}

/// A worker whose replica has no samples in a step may get all gradients of the step before the commit that they follow. Its answers come
/// with the commit.
#[test]
fn gradients_that_come_before_their_commit_are_answered_after_it() {
    on_a_pool(|compute| {
        // Workers 0 and 1 hold a replica each. Steps have two images and one image in turns, so worker 1 has none in the second step.
        let held = |worker| [worker, worker].map(WorkerIndex).into_iter().collect::<PerTower<_>>();
        let placement = Placement { slots: 2, trunk: vec![held(0), held(1)], head: held(0) };
        let assignment = Assignment {
            placement,
            worker: WorkerIndex(1),
            batches: Batches { images: 3, batch: 2 },
            division: Division { slots: 2, micro_batches: 1 },
            ..assignment(&[0, 0])
        };
        let mut engine = Engine::new(assignment, u64::MAX).unwrap();
        let plan = engine.plan();
        for parameter in plan.bundles.iter().flat_map(|bundle| &bundle.parameters) {
            for tower in plan.all_towers() {
                for state in [State::Weights, State::Momentum] {
                    let name = parameter.name.clone();
                    let values = vec![0.0; parameter.slice_shape(&plan.network, tower).iter().product()];
                    let key = TensorKey::Parameter { step: 0, name, tower, state };
                    engine.get(compute, key, Elements::Floats(values)).unwrap();
                }
            }
        }
        engine.begin_step_after(0);
        // The first step is over for this worker, by hand.
        engine.micro_batches.clear();
        engine.reductions.clear();
        for bundle in &plan.bundles {
            for tower in plan.all_towers() {
                for (piece, described) in plan.pieces(bundle, tower).into_iter().enumerate() {
                    let node = (described.owner == WorkerIndex(1)).then_some(0..1);
                    let key = TensorKey::Gradient { step: 2, name: bundle.name.clone(), tower, piece, node };
                    let values = Elements::Floats(vec![0.5; described.floats.len()]);
                    if !described.floats.is_empty() {
                        assert!(engine.get(compute, key, values).unwrap().is_empty(), "it is early");
                    }
                }
            }
        }
        let out = engine.commit(compute, 1, 0.1).unwrap();
        let sums = out.iter().filter(|out| matches!(out, Out::Tensor(_))).count();
        assert_eq!(sums, 2, "pieces of two towers: {out:?}");
        assert!(matches!(out.last(), Some(Out::Say(FromWorker::StepDone { step: 2, .. }))), "{out:?}");
    });
}

/// An engine of worker 0 in a job with two slots of one image. `layers` stand before the linear one. All weights and momentums are 0.1.
fn engine_of_two_slots(compute: &Compute, layers: &str, trunk: [[usize; 2]; 2], head: [usize; 2]) -> Engine {
    let held = |towers: [usize; 2]| towers.map(WorkerIndex).into_iter().collect::<PerTower<_>>();
    let assignment = Assignment {
        model: MODEL.replace("[[layer]]\nkind = \"linear\"", &format!("{layers}[[layer]]\nkind = \"linear\"")),
        placement: Placement { slots: 2, trunk: trunk.map(held).into(), head: held(head) },
        division: Division { slots: 2, micro_batches: 1 },
        ..assignment(&[0, 0])
    };
    let mut engine = Engine::new(assignment, u64::MAX).unwrap();
    let plan = engine.plan();
    let own = plan.placement.held_by(WorkerIndex(0));
    for (_, tower) in own.iter().filter(|(half, _)| *half == Half::Trunk) {
        for parameter in plan.bundles.iter().flat_map(|bundle| &bundle.parameters) {
            for state in [State::Weights, State::Momentum] {
                let key = TensorKey::Parameter { step: 0, name: parameter.name.clone(), tower: *tower, state };
                get_filled(&mut engine, compute, key);
            }
        }
    }
    engine
}

/// Lets an engine accept a tensor whose elements are all 0.1.
fn get_filled(engine: &mut Engine, compute: &Compute, key: TensorKey) {
    let shape = convoy_common::wire::expected_shape(&engine.plan(), usize::MAX, &key).unwrap();
    engine.get(compute, key, Elements::Floats(vec![0.1; shape.iter().product()])).unwrap();
}

fn exchanged(exchange: usize, direction: Direction, from_tower: usize, to_tower: Option<usize>) -> TensorKey {
    TensorKey::Activations {
        micro_batch: micro_batch(1, 0),
        exchange: ExchangeIndex(exchange),
        direction,
        from_tower: TowerIndex(from_tower),
        to_tower: to_tower.map(TowerIndex),
    }
}

/// What an engine sends, in short: the names of bundles whose gradients it sends, "input" for the gradient of a segment's input, and
/// "done" for that of the images.
fn sent(out: &[Out]) -> Vec<String> {
    let name = |out: &Out| match out {
        Out::Tensor(payload) => match &payload.key {
            TensorKey::Gradient { name, .. } => Some(name.clone()),
            _ => Some("input".to_owned()),
        },
        Out::Say(FromWorker::BackwardDone { .. }) => Some("done".to_owned()),
        _ => None,
    };
    out.iter().filter_map(name).collect()
}

/// Another worker waits for the gradient of a segment's input. Only the commit waits for the sum of its weight gradients over replicas, so
/// that is sent later.
#[test]
fn gradients_that_others_wait_for_are_sent_before_sums_over_replicas() {
    on_a_pool(|compute| {
        // Large enough for a bundle of its own.
        let second = "[[layer]]\nkind = \"conv\"\nname = \"d\"\nfilters = 1312\nkernel = 5\npad = 2\n";
        let mut engine = engine_of_two_slots(compute, second, [[0, 1], [2, 2]], [1, 1]);
        get_filled(&mut engine, compute, exchanged(0, Direction::Forward, 1, None));
        let (key, elements) = images(1, 0);
        engine.get(compute, key, elements).unwrap();
        work_all(&mut engine, compute);
        for slice in 0..2 {
            get_filled(&mut engine, compute, exchanged(1, Direction::Backward, slice, Some(0)));
        }
        assert_eq!(sent(&work_all(&mut engine, compute)), ["input", "d"]);
    });
}

/// A segment with two layers that have weights. The gradients of the second one travel while the first one is computed.
#[test]
fn gradients_of_a_layer_are_sent_before_the_layers_before_it_are_computed() {
    on_a_pool(|compute| {
        // Large enough for a bundle of its own.
        let second = "[[layer]]\nkind = \"conv\"\nname = \"d\"\nfilters = 2624\nkernel = 5\npad = 2\ngroups = 2\n";
        let mut engine = engine_of_two_slots(compute, second, [[0, 0], [1, 1]], [1, 1]);
        let (key, elements) = images(1, 0);
        engine.get(compute, key, elements).unwrap();
        work_all(&mut engine, compute);
        let probe = Probe::new(None, None, None);
        for tower in 0..2 {
            for slice in 0..2 {
                get_filled(&mut engine, compute, exchanged(0, Direction::Backward, slice, Some(tower)));
            }
            let mut next = || sent(&engine.work(means(compute, &probe)).unwrap().unwrap());
            assert_eq!(next(), ["d"]);
            assert_eq!(next(), ["done", "c"]);
            assert!(!engine.has_work());
        }
    });
}

/// A pass of the trunk is under way when passes of the head become possible. They are computed after its next layer with weights, and the
/// rest of it after them.
#[test]
fn a_backward_pass_of_the_trunk_gives_way_to_the_head() {
    on_a_pool(|compute| {
        let second = "[[layer]]\nkind = \"conv\"\nname = \"d\"\nfilters = 4\nkernel = 3\npad = 1\ngroups = 2\n";
        let model = MODEL.replace("[[layer]]\nkind = \"linear\"", &format!("{second}[[layer]]\nkind = \"linear\""));
        let mut engine = ready_for(compute, Assignment { model, ..assignment(&[0, 0]) });
        for index in 0..2 {
            let (key, elements) = images(1, index);
            engine.get(compute, key, elements).unwrap();
        }
        work_all(&mut engine, compute);
        let get_gradients = |engine: &mut Engine, index| {
            for slice in 0..2 {
                let (key, elements) = gradient(1, index, TowerIndex(slice));
                engine.get(compute, key, elements).unwrap();
            }
        };
        let probe = Probe::new(None, None, None);
        let work = |engine: &mut Engine| {
            let run = engine.next_run().unwrap();
            engine.work(means(compute, &probe)).unwrap();
            (engine.plan.segments[run.segment].half, run.tower.0, run.micro_batch.micro_batch)
        };
        get_gradients(&mut engine, 0);
        let head = |micro_batch| [(Half::Head, 0, micro_batch), (Half::Head, 1, micro_batch)];
        assert_eq!([work(&mut engine), work(&mut engine)], head(0));
        assert_eq!(work(&mut engine), (Half::Trunk, 0, 0), "the second convolution");
        get_gradients(&mut engine, 1);
        assert_eq!([work(&mut engine), work(&mut engine)], head(1));
        let rest = [(); 7].map(|()| work(&mut engine));
        let pass = |tower, micro_batch| (Half::Trunk, tower, micro_batch);
        assert_eq!(rest[..3], [pass(0, 0), pass(1, 0), pass(1, 0)]);
        assert_eq!(rest[3..], [pass(0, 1), pass(0, 1), pass(1, 1), pass(1, 1)]);
        let weight_gradients = [work(&mut engine), work(&mut engine)];
        assert_eq!(weight_gradients, head(1), "of the linear layer");
        assert!(!engine.has_work());
    });
}

/// The commit accepts the tensors that came before it. One of them is wrong: its sender is named, and not the coordinator.
#[test]
fn a_wrong_tensor_that_came_early_is_laid_on_its_sender() {
    on_a_pool(|compute| {
        let mut engine = ready(compute, &[0, 1]);
        engine.micro_batches.clear();
        engine.reductions.clear();
        let key = TensorKey::Activations {
            micro_batch: micro_batch(2, 7),
            exchange: ExchangeIndex(0),
            direction: Direction::Forward,
            from_tower: TowerIndex(1),
            to_tower: None,
        };
        let early = |key: &TensorKey, floats: usize| Received {
            key: key.clone(),
            elements: Elements::Floats(vec![0.5; floats]),
            from: Some(WorkerIndex(1)),
        };
        assert!(engine.accept(compute, early(&key, 32)).unwrap().is_empty());
        let repeated = engine.accept(compute, early(&key, 32)).unwrap_err();
        assert!(matches!(repeated, EngineError::FromPeer { peer: WorkerIndex(1), .. }), "{repeated}");
        let error = engine.commit(compute, 1, 0.1).unwrap_err();
        assert!(matches!(error, EngineError::FromPeer { peer: WorkerIndex(1), .. }), "{error}");
        assert!(error.to_string().contains("the step has no such micro-batch"), "{error}");
    });
}

/// However few tensors they are, early ones take no more memory than the plan allows.
#[test]
fn early_tensors_are_bounded_by_their_bytes() {
    on_a_pool(|compute| {
        let mut engine = ready(compute, &[0, 1]);
        let most = engine.early_bytes_max;
        let (key, _) = images(2, 0);
        let error = engine.get(compute, key.clone(), Elements::Bytes(vec![0; most as usize + 1])).unwrap_err();
        assert!(error.to_string().contains("too many tensors"), "{error}");
        engine.get(compute, key, Elements::Bytes(vec![0; most as usize])).unwrap();
        let (key, one_more) = images(2, 1);
        assert!(engine.get(compute, key, one_more).is_err());
    });
}

/// Chains of weight gradients continue in sample order: the trunk waits for the earlier micro-batch, and the weights are the same.
#[test]
fn gradients_in_any_order_give_the_same_weights() {
    on_a_pool(|compute| {
        let weights = [[0, 1], [1, 0]].map(|order| {
            let mut engine = ready(compute, &[0, 0]);
            for index in order {
                let (key, elements) = images(1, index);
                engine.get(compute, key, elements).unwrap();
            }
            work_all(&mut engine, compute);
            for index in order {
                for tower in engine.plan().all_towers() {
                    let (key, mut elements) = gradient(1, index, tower);
                    if let Elements::Floats(values) = &mut elements {
                        values.iter_mut().for_each(|value| *value += index as f32 / 3.0);
                    }
                    engine.get(compute, key.clone(), elements.clone()).unwrap();
                    let error = engine.get(compute, key, elements).unwrap_err().to_string();
                    assert!(error.contains("arrived before"), "{error}");
                }
                work_all(&mut engine, compute);
            }
            engine.commit(compute, 1, 0.1).unwrap();
            engine.state(1).unwrap().into_iter().map(|out| format!("{out:?}")).collect::<Vec<_>>()
        });
        assert_eq!(weights[0], weights[1]);
    });
}

#[test]
fn what_nobody_asked_for_is_refused() {
    on_a_pool(|compute| {
        let mut engine = ready(compute, &[0, 1]);
        let refused = |engine: &mut Engine, (key, elements): (TensorKey, Elements)| {
            let text = key.to_string();
            assert!(matches!(engine.get(compute, key, elements), Err(EngineError::Unexpected { .. })), "{text}");
        };
        refused(&mut engine, images(9, 0));
        refused(&mut engine, gradient(1, 0, TowerIndex(0)));
        refused(&mut engine, gradient(1, 0, TowerIndex(1)));
        let weights =
            TensorKey::Parameter { step: 0, name: "c.bias".to_owned(), tower: TowerIndex(1), state: State::Weights };
        refused(&mut engine, (weights, Elements::Floats(vec![0.0; 2])));
        let own = TensorKey::Activations {
            micro_batch: micro_batch(1, 0),
            exchange: ExchangeIndex(0),
            direction: Direction::Forward,
            from_tower: TowerIndex(0),
            to_tower: None,
        };
        refused(&mut engine, (own, Elements::Floats(vec![0.0; 32])));
        assert!(matches!(engine.commit(compute, 5, 0.1), Err(EngineError::Commit { step: 5, committed: 0 })));
    });
}

/// What agrees with the plan but not with what came before would break a kernel's bounds, if it got that far.
#[test]
fn a_micro_batch_that_comes_twice_or_with_other_samples_is_refused() {
    on_a_pool(|compute| {
        let refused = |engine: &mut Engine, (key, elements): (TensorKey, Elements), why: &str| {
            let error = engine.get(compute, key, elements).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        let channels = |samples: Range<usize>| {
            let micro_batch = MicroBatch { samples: samples.clone(), ..micro_batch(1, 0) };
            let (direction, to_tower) = (Direction::Forward, None);
            let key = TensorKey::Activations {
                micro_batch,
                exchange: ExchangeIndex(0),
                direction,
                from_tower: TowerIndex(1),
                to_tower,
            };
            (key, Elements::Floats(vec![0.0; samples.len() * 32]))
        };
        let mut engine = ready(compute, &[0, 1]);
        // What other workers send may overtake the images, but not with other samples.
        let (key, elements) = channels(0..2);
        assert!(engine.get(compute, key, elements).is_err());
        let (key, elements) = images(1, 0);
        engine.get(compute, key, elements).unwrap();
        refused(&mut engine, images(1, 0), "arrived before");
        work_all(&mut engine, compute);
        refused(&mut engine, images(1, 0), "arrived before");
        refused(&mut engine, channels(0..2), "other samples");
        let (key, elements) = channels(0..1);
        engine.get(compute, key, elements).unwrap();
        work_all(&mut engine, compute);
        let (key, _) = gradient(1, 0, TowerIndex(0));
        let TensorKey::Activations { exchange, direction, from_tower, to_tower, .. } = key else { panic!() };
        let micro_batch = MicroBatch { samples: 0..2, ..micro_batch(1, 0) };
        let key = TensorKey::Activations { micro_batch, exchange, direction, from_tower, to_tower };
        refused(&mut engine, (key, Elements::Floats(vec![0.25; 4])), "other samples");
        assert!(matches!(engine.commit(compute, 1, 0.1), Err(EngineError::Unfinished { step: 1 })));
    });
}

#[test]
fn a_micro_batch_that_a_step_does_not_have_is_refused() {
    on_a_pool(|compute| {
        let mut engine = ready(compute, &[0, 1]);
        for index in 0..2 {
            let (key, elements) = images(1, index);
            engine.get(compute, key, elements).unwrap();
        }
        let (key, elements) = images(1, 2);
        let error = engine.get(compute, key, elements).unwrap_err().to_string();
        assert!(error.contains("the step has no such micro-batch"), "{error}");
    });
}

/// The first segment has two layers. The coordinator assigns another job while the first one is computed.
#[test]
fn a_job_that_is_dropped_ends_before_the_next_layer() {
    on_a_pool(|compute| {
        let mut engine = ready(compute, &[0, 0]);
        let (key, elements) = images(1, 0);
        engine.get(compute, key, elements).unwrap();
        let (asked, probe) = (std::cell::Cell::new(0), Probe::new(None, None, None));
        let is_dropped = || asked.replace(asked.get() + 1) == 1;
        let ended = engine.work(Means { compute, probe: &probe, is_dropped: &is_dropped });
        assert!(matches!(ended, Err(EngineError::Stopped(Stopped::Dropped))) && asked.get() == 2, "{ended:?}");
    });
}

#[test]
fn committing_a_step_twice_does_it_once() {
    on_a_pool(|compute| {
        let mut engine = ready(compute, &[0, 0]);
        whole_step(&mut engine, compute, 1);
        let weights = |engine: &Engine| {
            engine.towers[&(Half::Trunk, TowerIndex(0))]
                .read(&engine.plan.network.parameter("c.weight").unwrap(), State::Weights)
        };
        let before = weights(&engine);
        engine.commit(compute, 1, 0.1).unwrap();
        let once = weights(&engine);
        engine.commit(compute, 1, 0.1).unwrap();
        assert_ne!(before, once);
        assert_eq!(once, weights(&engine));
    });
}

#[test]
fn an_assignment_that_makes_no_sense_is_refused() {
    for placement in [&[0][..], &[0, 2], &[1, 2], &[]] {
        assert!(Engine::new(assignment(placement), u64::MAX).is_err());
    }
    assert!(Engine::new(Assignment { worker: WorkerIndex(7), ..assignment(&[0, 1]) }, u64::MAX).is_err());
    assert!(Engine::new(Assignment { model: "x".to_owned(), ..assignment(&[0, 1]) }, u64::MAX).is_err());
    let error = Engine::new(assignment(&[0, 1]), 1000).unwrap_err().to_string();
    assert!(error.contains("memory") && error.contains("1000"), "{error}");
}

#[test]
fn the_memory_of_a_tensor_serves_again_once_it_has_been_sent() {
    on_a_pool(|compute| {
        let mut engine = ready(compute, &[0, 0]);
        let (key, elements) = images(1, 0);
        engine.get(compute, key, elements).unwrap();
        let mut out = work_all(&mut engine, compute);
        let Some(Out::Tensor(logits)) = out.pop() else { panic!("no logits: {out:?}") };
        let place = logits.data.as_ptr();
        let length = logits.data.len() / size_of::<f32>();
        // So many that nothing idle is left of this length.
        let others: Vec<_> = (0..100).map(|_| compute.tensor(length)).collect();
        assert!(others.iter().all(|other| other.as_ptr().cast() != place), "it is being sent");
        std::thread::spawn(move || drop(logits)).join().unwrap();
        assert_eq!(compute.tensor(length).as_ptr().cast(), place);
    });
}

/// What needs the weights is refused while some of them are missing, and so are weights of another step.
#[test]
fn nothing_is_committed_or_read_before_all_weights_have_arrived() {
    on_a_pool(|compute| {
        let mut engine = Engine::new(assignment(&[0, 1]), u64::MAX).unwrap();
        let refused = |error: EngineError| assert!(error.to_string().contains("before all weights"), "{error}");
        refused(engine.commit(compute, 1, 0.1).unwrap_err());
        refused(engine.state(0).unwrap_err());
        let (key, elements) = images(1, 0);
        let error = engine.get(compute, key, elements).unwrap_err();
        assert!(error.to_string().contains("some weights have not arrived"), "{error}");
        let plan = engine.plan();
        let mut give = |step, parameter: &Parameter| {
            let values = vec![0.0; parameter.slice_shape(&plan.network, TowerIndex(0)).iter().product()];
            let (name, tower, state) = (parameter.name.clone(), TowerIndex(0), State::Weights);
            engine.get(compute, TensorKey::Parameter { step, name, tower, state }, Elements::Floats(values))
        };
        let parameters = plan.network.parameters();
        give(7, &parameters[0]).unwrap();
        let error = give(8, &parameters[1]).unwrap_err();
        assert!(error.to_string().contains("of another step"), "{error}");
    });
}
