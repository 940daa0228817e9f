//! Round trips, and the refusal of chunks that are truncated, forged, out of order or too long.

use proptest::prelude::*;

use super::*;

fn micro_batch() -> MicroBatch {
    MicroBatch { id: MicroBatchId { step: 3, phase: Phase::Train, slot: 1, micro_batch: 2 }, samples: 8..12 }
}

fn activations() -> TensorKey {
    TensorKey::Activations {
        micro_batch: micro_batch(),
        exchange: ExchangeIndex(1),
        direction: Direction::Backward,
        from_tower: TowerIndex(0),
        to_tower: Some(TowerIndex(1)),
    }
}

const GENERATION: Generation = Generation { job: 7, number: 2 };

fn chunks(payload: Payload) -> Vec<Chunk> {
    frames(GENERATION, payload).map(|frame| chunk_from_frame(frame).unwrap()).collect()
}

proptest! {
    /// Tensors of any length arrive as they left, over however many chunks.
    #[test]
    fn a_tensor_survives_the_way(length in 1usize..200_000, start in any::<u32>()) {
        let values: Vec<f32> = (0..length).map(|i| f32::from_bits(start.wrapping_add(i as u32))).collect();
        let mut assembler = Assembler::new(1 << 20);
        let mut whole = None;
        for chunk in chunks(Payload::floats(activations(), vec![length], values.clone())) {
            prop_assert!(whole.is_none());
            whole = assembler.accept(chunk, &[length]).unwrap();
        }
        let Some((key, Elements::Floats(found))) = whole else { panic!("not whole") };
        prop_assert_eq!(key, activations());
        prop_assert!(found.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
fn a_changed_byte_is_found_by_the_checksum() {
    let mut frame = frames(GENERATION, Payload::floats(activations(), vec![2], vec![1.0, 2.0])).next().unwrap();
    if let Some(v1::frame::Frame::Chunk(chunk)) = &mut frame.frame {
        chunk.data = Bytes::from_static(&[0, 0, 128, 63, 0, 0, 0, 65]);
    }
    assert!(matches!(chunk_from_frame(frame), Err(WireError::Checksum { .. })));
}

#[test]
fn another_shape_a_gap_and_an_overrun_are_refused() {
    let cut = chunks(Payload::bytes(TensorKey::Images(micro_batch()), vec![CHUNK_BYTES * 2], vec![1; CHUNK_BYTES * 2]));
    let mut assembler = Assembler::new(1 << 20);
    assert!(matches!(assembler.accept(cut[0].clone(), &[5]), Err(WireError::Shape { .. })));
    let shape = [CHUNK_BYTES * 2];
    assert!(matches!(assembler.accept(cut[1].clone(), &shape), Err(WireError::Offset { .. })));
    assembler.accept(cut[0].clone(), &shape).unwrap();
    assert!(matches!(assembler.accept(cut[0].clone(), &shape), Err(WireError::Offset { .. })));
    let mut long = cut[0].clone();
    long.shape = vec![5];
    assert!(matches!(assembler.accept(long, &[5]), Err(WireError::Offset { .. })));
    assert!(assembler.accept(cut[1].clone(), &shape).unwrap().is_some(), "what was refused is ignored");
}

#[test]
fn what_is_under_way_at_once_has_a_limit_and_elements_come_whole() {
    let tensor = |step| {
        let id = MicroBatchId { step, ..micro_batch().id };
        let key = TensorKey::Images(MicroBatch { id, ..micro_batch() });
        chunks(Payload::bytes(key, vec![CHUNK_BYTES * 2], vec![1; CHUNK_BYTES * 2]))
    };
    let mut assembler = Assembler::new(CHUNK_BYTES * 4);
    let shape = [CHUNK_BYTES * 2];
    for step in [1, 2] {
        assert_eq!(assembler.accept(tensor(step)[0].clone(), &shape), Ok(None));
    }
    assert!(matches!(assembler.accept(tensor(3)[0].clone(), &shape), Err(WireError::Flood { .. })));
    assert!(assembler.accept(tensor(1)[1].clone(), &shape).unwrap().is_some());
    assert_eq!(assembler.accept(tensor(3)[0].clone(), &shape), Ok(None), "there is room again");
    let mut split = chunks(Payload::floats(activations(), vec![2], vec![1.0, 2.0])).remove(0);
    split.data.truncate(3);
    assert!(matches!(Assembler::new(8).accept(split, &[2]), Err(WireError::Offset { .. })));
    let endless = Chunk { shape: vec![1 << 40], ..tensor(4)[0].clone() };
    assert!(matches!(Assembler::new(usize::MAX).accept(endless, &[1 << 40]), Err(WireError::Memory { .. })));
}

#[test]
fn frames_without_a_needed_field_are_refused_by_name() {
    assert_eq!(chunk_from_frame(v1::Frame { frame: None }), Err(WireError::Missing("chunk")));
    assert_eq!(session_from_frame(open_frame(0)), Err(WireError::Missing("open")));
    let chunk = v1::Chunk { job: 1, ..Default::default() };
    let frame = v1::Frame { frame: Some(v1::frame::Frame::Chunk(chunk)) };
    assert_eq!(chunk_from_frame(frame), Err(WireError::Missing("tensor")));
    let images = v1::chunk::Tensor::Images(v1::Images { micro_batch: Some(v1::MicroBatch::default()) });
    let chunk = v1::Chunk { job: 1, tensor: Some(images), ..Default::default() };
    let frame = v1::Frame { frame: Some(v1::frame::Frame::Chunk(chunk)) };
    assert_eq!(chunk_from_frame(frame), Err(WireError::Missing("phase")));
}

proptest! {
    /// Whatever bytes pass for a frame, the answer is a chunk or an error.
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        use prost::Message;
        if let Ok(Ok(chunk)) = v1::Frame::decode(bytes.as_slice()).map(chunk_from_frame) {
            let _ = Assembler::new(1 << 20).accept(chunk, &[3]);
        }
        if let Ok(message) = v1::ToWorker::decode(bytes.as_slice()) {
            let _ = crate::wire::Numbered::<super::super::ToWorker>::try_from(message);
        }
        if let Ok(message) = v1::FromWorker::decode(bytes.as_slice()) {
            let _ = crate::wire::Numbered::<crate::wire::FromWorker>::try_from(message);
        }
    }
}

#[test]
fn what_a_worker_says_of_itself_commands_no_terminal() {
    let hello = v1::Hello { host: "\u{1b}[2Jx\nerror: y\u{7}".to_owned(), ..v1::Hello::default() };
    let message = v1::FromWorker { generation: 3, message: Some(v1::from_worker::Message::Hello(hello)) };
    let numbered = crate::wire::Numbered::<crate::wire::FromWorker>::try_from(message).unwrap();
    assert_eq!(numbered.generation, 3);
    let crate::wire::FromWorker::Hello(hello) = numbered.message else { panic!("it is a hello") };
    assert_eq!(hello.host, "\u{fffd}[2Jx error: y\u{fffd}");
}

/// No text of a message is long, and none commands a terminal, whichever message carries it.
#[test]
fn long_and_hostile_texts_are_short_and_printable() {
    use crate::wire::{FromWorker, Numbered, ToWorker};
    use v1::from_worker::Message;
    let hostile = "\u{1b}[31m\n\u{202e}x".repeat(1 << 18);
    let failure = v1::Failure { kind: 2, message: hostile.clone(), layer: Some(hostile.clone()), ..Default::default() };
    let failed = v1::PeerFailed { kind: 1, message: hostile.clone(), ..Default::default() };
    let hello = v1::Hello {
        convoy_version: hostile.clone(),
        instruction_set: hostile.clone(),
        host: hostile.clone(),
        ..Default::default()
    };
    for message in [Message::Failure(failure), Message::PeerFailed(failed), Message::Hello(hello)] {
        let message = v1::FromWorker { generation: 1, message: Some(message) };
        assert_brief(&format!("{:?}", Numbered::<FromWorker>::try_from(message).unwrap()));
    }
    let end = v1::to_worker::Message::EndJob(v1::EndJob { reason: hostile.clone() });
    let end = v1::ToWorker { generation: 1, message: Some(end) };
    assert_brief(&format!("{:?}", Numbered::<ToWorker>::try_from(end).unwrap()));
    let of = |exchange_address| v1::Hello { exchange_address, ..Default::default() };
    let hello = v1::FromWorker { generation: 0, message: Some(Message::Hello(of(hostile.clone()))) };
    assert_brief(&Numbered::<FromWorker>::try_from(hello).unwrap_err().to_string());
    let parameter = v1::Parameter { name: hostile.clone(), state: 1, ..Default::default() };
    let gradient = v1::Gradient { step: 1, name: hostile, ..Default::default() };
    for tensor in [v1::chunk::Tensor::Parameter(parameter), v1::chunk::Tensor::Gradient(gradient)] {
        let chunk = v1::Chunk { job: 1, tensor: Some(tensor), ..Default::default() };
        assert_brief(
            &chunk_from_frame(v1::Frame { frame: Some(v1::frame::Frame::Chunk(chunk)) }).unwrap_err().to_string(),
        );
    }
    let tensor = v1::chunk::Tensor::Gradient(v1::Gradient { step: 1, name: "a".to_owned(), ..Default::default() });
    let data = Bytes::from_static(&[0; 4]);
    let crc32c = crc32c::crc32c(&data);
    let chunk = v1::Chunk { job: 1, tensor: Some(tensor), shape: vec![1; 1 << 16], data, crc32c, ..Default::default() };
    assert_brief(&chunk_from_frame(v1::Frame { frame: Some(v1::frame::Frame::Chunk(chunk)) }).unwrap_err().to_string());
}

fn assert_brief(text: &str) {
    assert!(text.chars().count() < 3000, "{} characters: {}", text.chars().count(), &text[..300]);
    assert!(!text.contains(['\u{1b}', '\n', '\u{202e}']) && !text.contains("\\u{"), "{text}");
}

/// Each limit stands in docs/SECURITY.md.
#[test]
fn the_docs_say_every_limit() {
    let docs = include_str!("../../../docs/SECURITY.md");
    for (what, value) in [
        ("characters of a reason or a description from another process", crate::text::DESCRIPTION_MAX),
        ("characters of a name from another process", crate::text::NAME_MAX),
        ("axes of a tensor", AXES_MAX),
        ("images of a step", crate::batch::BATCH_MAX),
    ] {
        assert!(docs.contains(&format!("| {what} | {value} |\n")), "docs/SECURITY.md lacks: | {what} | {value} |");
    }
}
