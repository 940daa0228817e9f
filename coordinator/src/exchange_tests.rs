//! Which chunks are relayed to whom, what is counted, and what is refused.

use bytes::Bytes;
use convoy_common::batch::Phase;
use convoy_common::model::Network;
use convoy_common::model::presets;
use convoy_common::wire::Generation;

use super::*;

fn exchanges(workers: usize) -> Exchanges {
    let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
    Exchanges::new(Arc::new(Plan::new(network, workers, 1, None).unwrap()), 8)
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
    let counted = exchanges.counted()[&Moved::Exchange(ExchangeIndex(0), Direction::Forward)];
    assert_eq!(counted, Counted { tensors: 1, bytes: 2 * 7 * 7 * 32 * 4 });
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
