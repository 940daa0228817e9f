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
