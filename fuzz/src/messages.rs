//! Messages from the network, as both ends read them.

use std::sync::LazyLock;

use convoy_common::model::Network;
use convoy_common::plan::Plan;
use convoy_common::route::route;
use convoy_common::wire::{
    Assembler, FromWorker, Numbered, PeerHello, ToWorker, chunk_from_frame, expected_shape, session_from_frame,
};
use convoy_proto::v1;
use prost::Message;

use crate::{check_text, checked};

/// Two towers on two replicas, with an exchange and gradients that are summed.
pub(crate) const MODEL: &str = include_str!("../model.toml");
/// Samples of a batch and of the largest micro-batch.
const BATCH: usize = 8;
const MICRO_BATCH: usize = 2;
/// Bytes of incomplete tensors.
const LIMIT: usize = 1 << 16;

static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let network = Network::parse(MODEL).expect("a sound model");
    Plan::new(network, 4, 2, Some(2)).expect("a sound plan")
});

/// Reads messages, each of which follows a byte with its kind and two with its length.
pub fn hear(mut bytes: &[u8]) {
    let mut assembler = Assembler::new(LIMIT);
    while let [kind, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (message, others) = rest.split_at(length);
        match kind % 4 {
            0 => from_worker(message),
            1 => to_worker(message),
            2 => frame(message, &mut assembler),
            _ => peer(message),
        }
        bytes = others;
    }
}

fn from_worker(bytes: &[u8]) {
    let Ok(message) = v1::FromWorker::decode(bytes) else { return };
    if let Some(said) = checked(Numbered::<FromWorker>::try_from(message)) {
        check_texts(&said);
        let again = v1::FromWorker::from(said.clone());
        assert_eq!(checked(Numbered::try_from(again)), Some(said), "another message on the way back");
    }
}

fn to_worker(bytes: &[u8]) {
    let Ok(message) = v1::ToWorker::decode(bytes) else { return };
    if let Some(order) = checked(Numbered::<ToWorker>::try_from(message))
        && let ToWorker::Assign(assignment) = order.message
        && let Some(network) = checked(Network::parse(&assignment.model))
    {
        checked(Plan::placed(network, assignment.placement));
    }
}

fn frame(bytes: &[u8], assembler: &mut Assembler) {
    let Ok(message) = v1::Frame::decode(bytes) else { return };
    checked(session_from_frame(message.clone()));
    let Some(chunk) = checked(chunk_from_frame(message)) else { return };
    check_text(&chunk.key.to_string());
    let Some(shape) = checked(expected_shape(&PLAN, MICRO_BATCH, &chunk.key)) else { return };
    if let Some(route) = checked(route(&PLAN, BATCH, &chunk.key)) {
        for worker in PLAN.all_workers() {
            checked(route.check_sender(&PLAN, worker, &chunk.key));
        }
    }
    if let Some(Some((key, elements))) = checked(assembler.accept(chunk, &shape)) {
        assert_eq!(elements.bytes(), shape.iter().product::<usize>() * key.element_bytes());
    }
}

fn peer(bytes: &[u8]) {
    if let Ok(message) = v1::PeerHello::decode(bytes) {
        checked(PeerHello::try_from(message));
    }
}

/// Texts of a message are short and printable. The way in which Rust shows it escapes what is not.
fn check_texts(said: &Numbered<FromWorker>) {
    let text = match &said.message {
        FromWorker::Hello(hello) => hello.host.clone() + &hello.convoy_version + &hello.instruction_set,
        FromWorker::Failure(failure) => failure.message.clone() + failure.layer.as_deref().unwrap_or_default(),
        FromWorker::PeerFailed(failed) => failed.message.clone(),
        _ => return,
    };
    assert!(!text.chars().any(char::is_control) && text.chars().count() < 2000, "{text:?}");
}
