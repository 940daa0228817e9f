//! Whole sessions, as scripts that nobody would write: tensors, orders and work in any order. An engine may refuse what it gets, and then its
//! session ends. It never panics, and it commits a step once, when all its gradients are there.

use std::cell::Cell;

use convoy_common::wire::expected_shape;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::tests::{gradient, images, micro_batch, on_a_pool, ready};
use super::*;
use crate::probe::Probe;

/// What happens next in a session.
#[derive(Clone, Debug)]
enum Event {
    /// A tensor arrives.
    Tensor(TensorKey),
    /// So many tasks are computed, as far as there are any.
    Work(usize),
    /// The order to commit the step that is so many behind or ahead of the next one.
    Commit(i64),
    /// The order to send the state of a step, counted in the same way.
    State(i64),
}

fn key() -> impl Strategy<Value = TensorKey> {
    let step = || 0..4_u64;
    let towers = || (0..2_usize).prop_map(TowerIndex);
    let exchanged = (step(), 0..3_u32, 0..3_usize, any::<bool>(), towers(), proptest::option::of(towers()));
    prop_oneof![
        (step(), 0..3_u32).prop_map(|(step, index)| images(step, index).0),
        (step(), 0..3_u32, towers()).prop_map(|(step, index, tower)| gradient(step, index, tower).0),
        exchanged.prop_map(|(step, index, exchange, is_forward, from_tower, to_tower)| TensorKey::Activations {
            micro_batch: micro_batch(step, index),
            exchange: ExchangeIndex(exchange),
            direction: if is_forward { Direction::Forward } else { Direction::Backward },
            from_tower,
            to_tower,
        }),
        (step(), any::<bool>(), towers(), prop_oneof![Just("c.weight"), Just("fc.bias"), Just("nothing")]).prop_map(
            |(step, is_weights, tower, name)| TensorKey::Parameter {
                step,
                name: name.to_owned(),
                tower,
                state: if is_weights { State::Weights } else { State::Momentum },
            }
        ),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => key().prop_map(Event::Tensor),
        3 => (1..9_usize).prop_map(Event::Work),
        2 => (-2..3_i64).prop_map(Event::Commit),
        1 => (-2..3_i64).prop_map(Event::State),
    ]
}

/// The events of a whole step, in an order in which a network may deliver them.
fn step(step: u64) -> Vec<Event> {
    let all = |tensors: Vec<TensorKey>| tensors.into_iter().map(Event::Tensor);
    let gradients = (0..2).flat_map(|index| (0..2).map(move |tower| gradient(step, index, TowerIndex(tower)).0));
    let forward = all((0..2).map(|index| images(step, index).0).collect()).chain([Event::Work(usize::MAX)]);
    forward
        .chain(all(gradients.collect()))
        .chain([Event::Work(usize::MAX), Event::Commit(0), Event::State(-1)])
        .collect()
}

/// Whole steps, between which, and within which, something else may happen.
fn script() -> impl Strategy<Value = Vec<Event>> {
    let steps = (0..3_u64).prop_map(|count| (1..=count).flat_map(step).collect::<Vec<_>>());
    let others = proptest::collection::vec((any::<prop::sample::Index>(), event()), 0..6);
    (steps, others).prop_map(|(mut script, others)| {
        for (place, event) in others {
            script.insert(place.index(script.len() + 1), event);
        }
        script
    })
}

/// A step so many behind or ahead of the one that is next.
fn beside(engine: &Engine, offset: i64) -> u64 {
    (engine.committed() + 1).saturating_add_signed(offset)
}

/// Lets an event happen. An error ends the session.
fn happen(engine: &mut Engine, compute: &Compute, event: &Event) -> Result<Vec<Out>, EngineError> {
    match event {
        Event::Tensor(key) => {
            // Tensors of another shape end the session before the engine sees them.
            let Ok(shape) = expected_shape(&engine.plan(), 1, key) else { return Ok(Vec::new()) };
            let length = shape.iter().product();
            let elements = match key {
                TensorKey::Images(_) => Elements::Bytes(vec![7; length]),
                _ => Elements::Floats(vec![0.25; length]),
            };
            engine.accept(compute, Received { key: key.clone(), elements, from: None })
        }
        Event::Work(tasks) => {
            let (probe, mut all) = (Probe::new(None, None, None), Vec::new());
            for _ in 0..*tasks {
                let Some(out) = engine.work(Means { compute, probe: &probe, is_dropped: &|| false })? else { break };
                all.extend(out);
            }
            Ok(all)
        }
        Event::Commit(offset) => engine.commit(compute, beside(engine, *offset), 0.1),
        Event::State(offset) => engine.state(beside(engine, *offset)),
    }
}

/// Plays a script to its end, or to the first error. How many steps were committed, and whether there was an error.
fn play(compute: &Compute, held: &[usize], script: &[Event]) -> (u64, bool) {
    let mut engine = ready(compute, held);
    for event in script {
        let before = engine.committed();
        let Ok(out) = happen(&mut engine, compute, event) else { return (before, true) };
        let after = engine.committed();
        let is_next = after == before + 1 && matches!(event, Event::Commit(0));
        assert!(after == before || is_next, "from step {before} to step {after} by {event:?}");
        let expects = |key: &TensorKey| expected_shape(&engine.plan(), 1, key).is_ok();
        for out in &out {
            assert!(!matches!(out, Out::Tensor(payload) if !expects(&payload.key)), "nobody expects {out:?}");
        }
    }
    (engine.committed(), false)
}

#[test]
fn no_script_makes_an_engine_panic_or_commit_a_step_twice() {
    on_a_pool(|compute| {
        let mut runner = TestRunner::new(ProptestConfig::with_cases(20_000));
        let (whole, refused) = (Cell::new(0), Cell::new(0));
        let played = runner.run(&(script(), any::<bool>()), |(script, holds_both)| {
            match play(compute, if holds_both { &[0, 0] } else { &[0, 1] }, &script) {
                (_, true) => refused.set(refused.get() + 1),
                (steps, false) => whole.set(whole.get() + usize::from(steps > 0)),
            }
            Ok(())
        });
        if let Err(failed) = played {
            panic!("{failed}");
        }
        assert!(
            whole.get() > 1000 && refused.get() > 1000,
            "{} committed steps, {} were refused",
            whole.get(),
            refused.get()
        );
    });
}

/// The control: a script of whole steps commits them, and a step without a gradient is not committed.
#[test]
fn whole_steps_are_committed_and_others_are_not() {
    on_a_pool(|compute| {
        let two: Vec<_> = (1..=2).flat_map(step).collect();
        assert_eq!(play(compute, &[0, 0], &two), (2, false));
        let is_gradient = |event: &Event| matches!(event, Event::Tensor(TensorKey::Activations { .. }));
        let mut without = two.clone();
        without.remove(two.iter().position(is_gradient).unwrap());
        assert_eq!(play(compute, &[0, 0], &without), (0, true));
    });
}
