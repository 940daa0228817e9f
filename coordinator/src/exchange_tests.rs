//! Which chunks are relayed to whom, what is counted, and what is refused.

use bytes::Bytes;
use convoy_common::batch::Phase;
use convoy_common::index::ExchangeIndex;
use convoy_common::links::Links;
use convoy_common::model::Network;
use convoy_common::model::presets;
use convoy_common::wire::{Direction, Generation};

use super::*;

fn exchanges(workers: usize) -> Exchanges {
    let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
    Exchanges::new(Arc::new(Plan::new(network, workers, 1, None).unwrap()), 8)
}

/// Two replicas of two towers on four workers, in a step over four samples.
fn of_replicas() -> Exchanges {
    let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
    let mut exchanges = Exchanges::new(Arc::new(Plan::new(network, 4, 2, None).unwrap()), 8);
    exchanges.begin_step(1, 4);
    exchanges
}

/// Half of the gradients of the first two convolutions of a tower: 16 filters of 25 weights and 32 filters of 400 weights, with a bias each.
const PIECE: usize = (16 * 26 + 32 * 401) / 2;

/// A piece of the gradients of the first two convolutions of tower 0.
fn piece(piece: usize, node: Option<std::ops::Range<usize>>) -> Chunk {
    let (name, tower) = ("conv1 to conv2".to_owned(), TowerIndex(0));
    let key = TensorKey::Gradient { step: 1, name, tower, piece, node };
    let of_a_pixel = chunk(0, Direction::Forward, 0, None, [1, 1, 1, 8]);
    Chunk { key, shape: vec![PIECE], data: Bytes::from(vec![0; 4 * PIECE]), ..of_a_pixel }
}

#[test]
fn sums_over_nodes_go_to_the_owner_of_a_piece_and_whole_sums_to_all_others() {
    let mut exchanges = of_replicas();
    // Tower 0 is held by workers 0 and 2, which own pieces 0 and 1.
    let to_owner = exchanges.route(WorkerIndex(0), piece(1, Some(0..1))).unwrap();
    assert!(matches!(to_owner, Routed::Relay { to, .. } if to == [WorkerIndex(2)]));
    let to_others = exchanges.route(WorkerIndex(2), piece(1, None)).unwrap();
    assert!(matches!(to_others, Routed::Relay { to, .. } if to == [WorkerIndex(0)]));
    assert_eq!(exchanges.counted().moved[&Moved::Gradients], Counted { tensors: 2, bytes: 2 * 4 * PIECE as u64 });
}

#[test]
fn gradients_that_nobody_owes_are_refused() {
    let of = |change: &dyn Fn(&mut Chunk)| {
        let mut chunk = piece(1, Some(0..1));
        change(&mut chunk);
        chunk
    };
    let key = |change: &dyn Fn(&mut u64, &mut String, &mut TowerIndex)| {
        of(&|chunk| {
            let TensorKey::Gradient { step, name, tower, .. } = &mut chunk.key else { panic!("{}", chunk.key) };
            change(step, name, tower);
        })
    };
    let refused: [(usize, Chunk, &str); 11] = [
        (1, piece(1, Some(0..1)), "has no such sum"),
        (2, piece(1, Some(1..2)), "no other worker needs it"),
        (0, piece(0, Some(0..1)), "no other worker needs it"),
        (0, piece(1, Some(1..2)), "has no such sum"),
        (0, piece(1, Some(0..2)), "no worker has such a sum"),
        (0, piece(1, None), "does not own this piece"),
        (0, piece(7, Some(0..1)), "has no such piece"),
        (0, of(&|chunk| chunk.shape = vec![PIECE + 1]), "the plan requires [6624]"),
        (0, key(&|step, _, _| *step = 2), "this step is not being computed"),
        (0, key(&|_, name, _| *name = "fc6".to_owned()), "a bundle of the plan"),
        (0, key(&|_, _, tower| *tower = TowerIndex(9)), "out of range"),
    ];
    for (worker, chunk, why) in refused {
        let text = chunk.key.to_string();
        let error = of_replicas().route(WorkerIndex(worker), chunk).unwrap_err().to_string();
        assert!(error.contains(why), "{text} from worker {worker}: {error}");
    }
    // Twice.
    let mut exchanges = of_replicas();
    exchanges.route(WorkerIndex(0), piece(1, Some(0..1))).unwrap();
    assert!(exchanges.route(WorkerIndex(0), piece(1, Some(0..1))).is_err());
}

fn micro_batch() -> MicroBatch {
    MicroBatch { id: MicroBatchId { step: 1, phase: Phase::Train, slot: 0, micro_batch: 0 }, samples: 0..2 }
}

fn chunk(
    exchange: usize,
    direction: Direction,
    from_tower: usize,
    to_tower: Option<usize>,
    shape: [usize; 4],
) -> Chunk {
    let bytes = shape.iter().product::<usize>() * 4;
    let (exchange, from_tower) = (ExchangeIndex(exchange), TowerIndex(from_tower));
    let (micro_batch, to_tower) = (micro_batch(), to_tower.map(TowerIndex));
    let key = TensorKey::Activations { micro_batch, exchange, direction, from_tower, to_tower };
    Chunk {
        generation: Generation { job: 1, number: 1 },
        key,
        shape: shape.to_vec(),
        offset: 0,
        data: Bytes::from(vec![0; bytes]),
        checksum: 0,
    }
}

#[test]
fn channels_go_to_the_other_worker_and_partial_gradients_to_the_towers_owner() {
    let mut exchanges = exchanges(2);
    exchanges.open(&micro_batch());
    let forward = exchanges.route(WorkerIndex(0), chunk(0, Direction::Forward, 0, None, [2, 7, 7, 32])).unwrap();
    assert!(matches!(forward, Routed::Relay { to, .. } if to == [WorkerIndex(1)]));
    let backward = exchanges.route(WorkerIndex(1), chunk(0, Direction::Backward, 1, Some(0), [2, 7, 7, 32])).unwrap();
    assert!(matches!(backward, Routed::Relay { to, .. } if to == [WorkerIndex(0)]));
    let counted = exchanges.counted().moved[&Moved::Exchange(ExchangeIndex(0), Direction::Forward)];
    assert_eq!(counted, Counted { tensors: 1, bytes: 2 * 7 * 7 * 32 * 4 });
}

#[test]
fn what_goes_straight_to_its_receiver_is_not_relayed() {
    let mut exchanges = exchanges(2);
    exchanges.plan = Arc::new((*exchanges.plan).clone().linked(Links::direct()));
    exchanges.open(&micro_batch());
    let error = exchanges.route(WorkerIndex(0), chunk(0, Direction::Forward, 0, None, [2, 7, 7, 32])).unwrap_err();
    assert!(error.to_string().contains("straight"), "{error}");
    // Logits have no receiver but the coordinator.
    let logits = chunk(exchanges.plan.logits_exchange().0, Direction::Forward, 0, None, [2, 1, 1, 5]);
    assert!(matches!(exchanges.route(WorkerIndex(0), logits).unwrap(), Routed::Kept));
}

#[test]
fn logits_come_together_class_by_class() {
    let mut exchanges = exchanges(2);
    exchanges.open(&micro_batch());
    let logits = exchanges.plan.logits_exchange().0;
    let own = |tower: usize| {
        let mut chunk = chunk(logits, Direction::Forward, tower, None, [2, 1, 1, 5]);
        let values: Vec<u8> = (0..10).flat_map(|i| (i as f32 + 100.0 * tower as f32).to_le_bytes()).collect();
        chunk.data = Bytes::from(values);
        chunk
    };
    assert!(matches!(exchanges.route(WorkerIndex(1), own(1)).unwrap(), Routed::Kept));
    let Routed::Logits { logits, .. } = exchanges.route(WorkerIndex(0), own(0)).unwrap() else { panic!("not whole") };
    assert_eq!(logits[..10], [0.0, 1.0, 2.0, 3.0, 4.0, 100.0, 101.0, 102.0, 103.0, 104.0]);
}

#[test]
fn what_a_worker_must_not_send_is_refused() {
    let forward = || chunk(0, Direction::Forward, 0, None, [2, 7, 7, 32]);
    let mut exchanges = exchanges(2);
    assert!(exchanges.route(WorkerIndex(0), forward()).is_err(), "its micro-batch isn't under way");
    exchanges.open(&micro_batch());
    assert!(exchanges.route(WorkerIndex(1), forward()).is_err(), "another worker's tower");
    assert!(
        exchanges.route(WorkerIndex(0), chunk(0, Direction::Forward, 0, None, [2, 7, 7, 31])).is_err(),
        "another shape"
    );
    assert!(
        exchanges.route(WorkerIndex(0), chunk(9, Direction::Forward, 0, None, [2, 7, 7, 32])).is_err(),
        "no such exchange"
    );
    assert!(
        exchanges.route(WorkerIndex(0), chunk(0, Direction::Backward, 0, Some(0), [2, 7, 7, 32])).is_err(),
        "to itself"
    );
    assert!(exchanges.route(WorkerIndex(0), Chunk { offset: 4, ..forward() }).is_err(), "a gap");
    exchanges.route(WorkerIndex(0), forward()).unwrap();
    assert!(exchanges.route(WorkerIndex(0), forward()).is_err(), "twice");
    exchanges.close(micro_batch().id);
    assert!(exchanges.route(WorkerIndex(0), forward()).is_err(), "it is over");
}

/// The micro-batches of a step of two slots.
fn two_micro_batches() -> [MicroBatch; 2] {
    [0, 1].map(|slot| MicroBatch {
        id: MicroBatchId { step: 1, phase: Phase::Train, slot, micro_batch: 0 },
        samples: slot as usize * 2..slot as usize * 2 + 2,
    })
}

/// What one worker sends: a tensor, cut into two chunks.
fn sent(plan: &Plan, key: &TensorKey) -> [Chunk; 2] {
    let shape = expected_shape(plan, 8, key).unwrap();
    let elements: usize = shape.iter().product();
    let (first, whole) = (elements / 2 * 4, elements * 4);
    [0..first, first..whole].map(|part| Chunk {
        generation: Generation { job: 1, number: 1 },
        key: key.clone(),
        shape: shape.clone(),
        offset: part.start as u64,
        data: Bytes::from(vec![0; part.len()]),
        checksum: 0,
    })
}

/// All tensors of the forward direction of two micro-batches: who sends them, and their chunks.
fn forward(plan: &Plan) -> Vec<(WorkerIndex, [Chunk; 2])> {
    let of = |micro_batch: &MicroBatch, exchange: ExchangeIndex| {
        let senders = plan.senders(exchange, Direction::Forward);
        let key = |from_tower| TensorKey::Activations {
            micro_batch: micro_batch.clone(),
            exchange,
            direction: Direction::Forward,
            from_tower,
            to_tower: None,
        };
        let holder = |tower| plan.holder(exchange.segment_before(), tower, micro_batch.id);
        senders.map(|tower| (holder(tower), sent(plan, &key(tower)))).collect::<Vec<_>>()
    };
    let each = two_micro_batches();
    each.iter().flat_map(|micro_batch| plan.all_exchanges().flat_map(|exchange| of(micro_batch, exchange))).collect()
}

/// A chunk that is changed so that no worker may send it, or not now.
fn spoiled(mut chunk: Chunk, how: u8, plan: &Plan) -> Chunk {
    let TensorKey::Activations { micro_batch, exchange, from_tower, to_tower, direction } = &mut chunk.key else {
        panic!("{}", chunk.key)
    };
    match how {
        0 => micro_batch.id.step += 1,
        1 => micro_batch.samples = 0..3,
        2 => *exchange = ExchangeIndex(plan.logits_exchange().0 + 1),
        3 => *from_tower = TowerIndex(7),
        4 => *to_tower = Some(*from_tower),
        5 => *direction = Direction::Backward,
        6 => chunk.offset += 4,
        7 => chunk.shape.push(1),
        8 => chunk.data = Bytes::new(),
        9 => chunk.data = Bytes::from(vec![0; 4 * chunk.shape.iter().product::<usize>() + 4]),
        _ => chunk.data = chunk.data.slice(..chunk.data.len() - 1),
    }
    chunk
}

/// Whole sessions, as scripts: the chunks of all tensors in any order that a network allows, and among them some that are sent twice, by
/// another worker, or spoiled.
#[test]
fn every_script_gives_the_logits_of_each_micro_batch_once_and_what_does_not_belong_there_is_refused() {
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
    let plan = Arc::new(Plan::new(network, 2, 2, None).unwrap());
    let tensors = forward(&plan);
    let count = tensors.len();
    let order = Just((0..count).flat_map(|tensor| [tensor; 2]).collect::<Vec<_>>()).prop_shuffle();
    let others = proptest::collection::vec((any::<prop::sample::Index>(), 0..count, 0..13_u8), 0..8);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(20_000));
    let played = runner.run(&(order, others), |(order, others)| {
        let mut exchanges = Exchanges::new(plan.clone(), 8);
        two_micro_batches().iter().for_each(|micro_batch| exchanges.open(micro_batch));
        exchanges.begin_step(1, 4);
        let (mut next, mut whole) = (vec![0; count], Vec::new());
        for (at, tensor) in order.iter().enumerate() {
            for (_, other, how) in others.iter().filter(|(place, ..)| place.index(order.len()) == at) {
                let (worker, chunks) = &tensors[*other];
                let (worker, chunk) = match how {
                    11 => (WorkerIndex(1 - worker.0), chunks[next[*other].min(1)].clone()),
                    12 if next[*other] > 0 => (*worker, chunks[0].clone()),
                    12 => (*worker, chunks[1].clone()),
                    how => (*worker, spoiled(chunks[next[*other].min(1)].clone(), *how, &plan)),
                };
                let key = chunk.key.to_string();
                prop_assert!(exchanges.route(worker, chunk).is_err(), "{} of {} by {}", how, key, worker);
            }
            let (worker, chunks) = &tensors[*tensor];
            match exchanges.route(*worker, chunks[next[*tensor]].clone()) {
                Ok(Routed::Logits { micro_batch, .. }) => whole.push(micro_batch.id.slot),
                Ok(_) => {}
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
            next[*tensor] += 1;
        }
        whole.sort_unstable();
        prop_assert_eq!(whole, vec![0, 1]);
        Ok(())
    });
    if let Err(failed) = played {
        panic!("{failed}");
    }
}
