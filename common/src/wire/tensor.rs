//! Splits tensors into chunks of raw little-endian bytes, each with a header; checks and reassembles them.

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;
use convoy_proto::v1;

use super::{WireError, name_from, nonzero, required, step_from};
use crate::batch::{MicroBatch, MicroBatchId, Phase};
use crate::index::{ExchangeIndex, TowerIndex};
use crate::slots::Node;

#[cfg(target_endian = "big")]
compile_error!("tensors are sent as little-endian memory; this target is big-endian");

/// Payload of a chunk, in bytes. Measured: the fastest size over Unix sockets, and as fast as any over TCP.
pub const CHUNK_BYTES: usize = 256 << 10;

/// The largest frame, in bytes: a chunk and its header.
pub const FRAME_BYTES_MAX: usize = CHUNK_BYTES + (64 << 10);
/// The largest control message, in bytes. A model file is the largest part of any.
pub const CONTROL_BYTES_MAX: usize = crate::model::TEXT_BYTES_MAX + (64 << 10);

/// The longest name of a parameter or of a bundle. A bundle's name holds those of two layers, which have at most 100 characters.
const TENSOR_NAME_MAX: usize = 256;
/// The most axes of a tensor. Errors show the lengths of all.
const AXES_MAX: usize = 8;

/// Identifies a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TensorKey {
    /// Pixels of a micro-batch, in the order (sample, channel, row, column).
    Images(MicroBatch),
    /// Activations or gradients at an exchange, in the order (sample, row, column, channel).
    Activations {
        /// The micro-batch.
        micro_batch: MicroBatch,
        /// The exchange.
        exchange: ExchangeIndex,
        /// Activations or gradients.
        direction: Direction,
        /// The tower that computed it.
        from_tower: TowerIndex,
        /// In the backward direction, the tower that owns the channels. Unset in the forward direction, where every
        /// other tower receives the same channels.
        to_tower: Option<TowerIndex>,
    },
    /// A tower's slice of a parameter or of its momentum.
    Parameter {
        /// The number of steps committed when it was read.
        step: u64,
        /// The parameter's name, as PyTorch would call it.
        name: String,
        /// The tower that holds the slice.
        tower: TowerIndex,
        /// Weights or momentum.
        state: State,
    },
    /// A piece of a tower's gradients of a bundle, one parameter after the other, in the layout of panels.
    Gradient {
        /// The step.
        step: u64,
        /// The bundle's name.
        name: String,
        /// The tower.
        tower: TowerIndex,
        /// Index of the piece in the plan's list.
        piece: usize,
        /// The node of the slot tree over which it is the sum, for the owner of the piece. None: the sum over all slots, from the owner.
        node: Option<Node>,
    },
}

/// Forward or backward over an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Activations.
    Forward,
    /// Gradients.
    Backward,
}

/// The two tensors that training keeps per parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Its values.
    Weights,
    /// SGD's velocity.
    Momentum,
}

/// A generation of a job: one formation of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The job.
    pub job: u64,
    /// The number of the generation, counted from 1.
    pub number: u64,
}

/// A part of a tensor, checked as far as is possible without the plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// The generation that it belongs to.
    pub generation: Generation,
    /// The tensor.
    pub key: TensorKey,
    /// The whole tensor's shape.
    pub shape: Vec<usize>,
    /// Where `data` starts in the whole tensor's bytes.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
    /// CRC-32C of `data`, already verified.
    pub checksum: u32,
}

impl Chunk {
    /// The whole tensor's size in bytes if this is its last chunk. The shape may be untrusted: the products are checked.
    pub fn ends(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1, |all: usize, length| all.checked_mul(*length))?;
        let whole = elements.checked_mul(self.key.element_bytes())? as u64;
        (self.offset.checked_add(self.data.len() as u64)? == whole).then_some(whole)
    }

    /// Checks that this is the next chunk of a tensor of shape `expected`, of which `received` bytes have arrived. Returns whether it is
    /// the last one.
    ///
    /// # Errors
    /// When the shape differs, or the chunk does not start where the previous one ended, exceeds the tensor, or does not hold a whole
    /// number of elements.
    pub fn continues(&self, expected: &[usize], received: usize) -> Result<bool, WireError> {
        let key = || self.key.to_string();
        if self.shape != expected {
            return Err(WireError::Shape { key: key(), found: self.shape.clone(), expected: expected.to_vec() });
        }
        let (length, total) = (self.data.len(), self.key.bytes_of(expected));
        let fits = self.offset == received as u64 && received + length <= total;
        if !fits || length == 0 || !length.is_multiple_of(self.key.element_bytes()) {
            return Err(WireError::Offset { key: key(), offset: self.offset, length, expected: received, total });
        }
        Ok(received + length == total)
    }

    /// Copies its floats to their place in the whole tensor.
    ///
    /// # Panics
    /// When the chunk exceeds the tensor. [`Chunk::continues`] excludes that.
    pub fn copy_to(&self, whole: &mut [f32]) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(whole);
        bytes[self.offset as usize..][..self.data.len()].copy_from_slice(&self.data);
    }
}

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// Pixels.
    Bytes(Vec<u8>),
    /// Activations, gradients and parameters.
    Floats(Vec<f32>),
}

impl Elements {
    /// Their size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Elements::Bytes(bytes) => bytes.len(),
            Elements::Floats(floats) => size_of_val(floats.as_slice()),
        }
    }

    /// Appends elements. `data` must hold a whole number of them.
    fn extend(&mut self, data: &[u8]) {
        match self {
            Elements::Bytes(bytes) => bytes.extend_from_slice(data),
            Elements::Floats(floats) => {
                floats.extend(data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
        }
    }
}

/// A whole tensor to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload {
    /// The tensor's identity.
    pub key: TensorKey,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub data: Bytes,
}

impl Payload {
    /// A tensor of floats, without a copy. `values` is dropped when the last of its frames has been written or discarded,
    /// on whichever thread does that.
    pub fn floats(key: TensorKey, shape: Vec<usize>, values: impl AsRef<[f32]> + Send + 'static) -> Self {
        struct Owner<T>(T);
        impl<T: AsRef<[f32]>> AsRef<[u8]> for Owner<T> {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(self.0.as_ref())
            }
        }
        debug_assert_eq!(shape.iter().product::<usize>(), values.as_ref().len());
        Self { key, shape, data: Bytes::from_owner(Owner(values)) }
    }

    /// A tensor of bytes.
    pub fn bytes(key: TensorKey, shape: Vec<usize>, values: Vec<u8>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        Self { key, shape, data: values.into() }
    }
}

impl TensorKey {
    /// The micro-batch that it belongs to, if it belongs to one.
    pub fn micro_batch(&self) -> Option<&MicroBatch> {
        match self {
            TensorKey::Images(micro_batch) | TensorKey::Activations { micro_batch, .. } => Some(micro_batch),
            TensorKey::Parameter { .. } | TensorKey::Gradient { .. } => None,
        }
    }

    /// The training step that it belongs to, unless it is a parameter or belongs to a measurement.
    pub fn training_step(&self) -> Option<u64> {
        if let TensorKey::Gradient { step, .. } = self {
            return Some(*step);
        }
        self.micro_batch().filter(|m| m.id.phase == Phase::Train).map(|m| m.id.step)
    }

    /// Size of an element in bytes.
    pub fn element_bytes(&self) -> usize {
        if matches!(self, TensorKey::Images(_)) { 1 } else { size_of::<f32>() }
    }

    /// Size in bytes of a tensor of this shape.
    fn bytes_of(&self, shape: &[usize]) -> usize {
        shape.iter().product::<usize>() * self.element_bytes()
    }
}

impl fmt::Display for TensorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorKey::Images(m) => write!(f, "images of step {} micro-batch {}", m.id.step, m.id.micro_batch),
            TensorKey::Activations { micro_batch: m, exchange, direction, from_tower, to_tower } => {
                let what = if *direction == Direction::Forward { "activations" } else { "gradients" };
                write!(f, "{what} of step {} slot {} micro-batch {}", m.id.step, m.id.slot, m.id.micro_batch)?;
                write!(f, " at exchange {exchange} from tower {from_tower}")?;
                to_tower.map_or(Ok(()), |to| write!(f, " to tower {to}"))
            }
            TensorKey::Parameter { step, name, tower, state } => {
                let what = if *state == State::Weights { "weights" } else { "momentum" };
                write!(f, "{what} {name} of tower {tower} at step {step}")
            }
            TensorKey::Gradient { step, name, tower, piece, node } => {
                write!(f, "piece {piece} of the gradients of {name} of tower {tower} at step {step}, over ")?;
                match node {
                    Some(node) => write!(f, "slots {} to {}", node.start, node.end - 1),
                    None => f.write_str("all slots"),
                }
            }
        }
    }
}

/// Reassembles tensors from chunks that arrive in order. The total size of incomplete tensors is limited, and memory
/// becomes resident only as bytes arrive.
#[derive(Debug)]
pub struct Assembler {
    incomplete: HashMap<TensorKey, Elements>,
    /// Total size that the incomplete tensors will have, in bytes.
    promised: usize,
    limit: usize,
}

impl Assembler {
    /// An assembler that holds at most `limit` bytes of incomplete tensors.
    pub fn new(limit: usize) -> Self {
        Self { incomplete: HashMap::new(), promised: 0, limit }
    }

    /// Adds a chunk of a tensor whose shape must be `expected`. Returns the tensor when this was its last chunk.
    ///
    /// # Errors
    /// When the chunk does not [continue](Chunk::continues) its tensor, or the limit is exceeded. The chunk is then ignored.
    pub fn accept(&mut self, chunk: Chunk, expected: &[usize]) -> Result<Option<(TensorKey, Elements)>, WireError> {
        let is_last = chunk.continues(expected, self.incomplete.get(&chunk.key).map_or(0, Elements::bytes))?;
        let mut elements = match self.incomplete.remove(&chunk.key) {
            Some(elements) => elements,
            None => self.begin(&chunk.key, chunk.key.bytes_of(expected))?,
        };
        elements.extend(&chunk.data);
        if !is_last {
            self.incomplete.insert(chunk.key, elements);
            return Ok(None);
        }
        self.promised -= elements.bytes();
        Ok(Some((chunk.key, elements)))
    }

    fn begin(&mut self, key: &TensorKey, bytes: usize) -> Result<Elements, WireError> {
        if self.promised.checked_add(bytes).is_none_or(|promised| promised > self.limit) {
            return Err(WireError::Flood { key: key.to_string(), bytes, limit: self.limit });
        }
        let (elements, reserved) = match key {
            TensorKey::Images(_) => {
                let mut room = Vec::new();
                let reserved = room.try_reserve_exact(bytes);
                (Elements::Bytes(room), reserved)
            }
            _ => {
                let mut room = Vec::new();
                let reserved = room.try_reserve_exact(bytes / size_of::<f32>());
                (Elements::Floats(room), reserved)
            }
        };
        reserved.map_err(|_| WireError::Memory { key: key.to_string(), bytes })?;
        self.promised += bytes;
        Ok(elements)
    }
}

/// Splits a tensor into frames of at most [`CHUNK_BYTES`] of payload, in order.
pub fn frames(generation: Generation, payload: Payload) -> impl Iterator<Item = v1::Frame> {
    let Payload { key, shape, data } = payload;
    let count = data.len().div_ceil(CHUNK_BYTES).max(1);
    (0..count).map(move |index| {
        let offset = index * CHUNK_BYTES;
        let part = data.slice(offset..data.len().min(offset + CHUNK_BYTES));
        let checksum = crc32c::crc32c(&part);
        chunk_to_frame(Chunk {
            generation,
            key: key.clone(),
            shape: shape.clone(),
            offset: offset as u64,
            data: part,
            checksum,
        })
    })
}

/// The first frame of a worker's tensor connection.
pub fn open_frame(session: u64) -> v1::Frame {
    v1::Frame { frame: Some(v1::frame::Frame::Open(session)) }
}

/// The session that a first frame names.
///
/// # Errors
/// When it is a chunk, or empty.
pub fn session_from_frame(frame: v1::Frame) -> Result<u64, WireError> {
    match frame.frame {
        Some(v1::frame::Frame::Open(session)) => nonzero("open", session),
        _ => Err(WireError::Missing("open")),
    }
}

/// The chunk of any later frame, with a verified checksum.
///
/// # Errors
/// When a field is missing or invalid, or the checksum does not match.
pub fn chunk_from_frame(frame: v1::Frame) -> Result<Chunk, WireError> {
    let Some(v1::frame::Frame::Chunk(chunk)) = frame.frame else { return Err(WireError::Missing("chunk")) };
    let key = key_from(required("tensor", chunk.tensor)?)?;
    let length = chunk.data.len();
    if length == 0 || length > CHUNK_BYTES || !length.is_multiple_of(key.element_bytes()) {
        let expected = "it must be a whole number of elements, and at most 262144 bytes";
        return Err(WireError::Value { field: "data", value: format!("{length} bytes of {key}"), expected });
    }
    let found = crc32c::crc32c(&chunk.data);
    if found != chunk.crc32c {
        return Err(WireError::Checksum { key: key.to_string(), offset: chunk.offset, found, stated: chunk.crc32c });
    }
    if chunk.shape.len() > AXES_MAX {
        let (value, expected) = (format!("a list of {}", chunk.shape.len()), "it must have at most 8 axes");
        return Err(WireError::Value { field: "shape", value, expected });
    }
    let shape = chunk.shape.into_iter().map(|length| length as usize).collect();
    let generation = Generation { job: nonzero("job", chunk.job)?, number: nonzero("generation", chunk.generation)? };
    Ok(Chunk { generation, key, shape, offset: chunk.offset, data: chunk.data, checksum: found })
}

/// A chunk as a frame. The coordinator uses this to relay a chunk unchanged.
pub fn chunk_to_frame(chunk: Chunk) -> v1::Frame {
    let chunk = v1::Chunk {
        job: chunk.generation.job,
        generation: chunk.generation.number,
        tensor: Some(key_to(chunk.key)),
        shape: chunk.shape.into_iter().map(|length| length as u32).collect(),
        offset: chunk.offset,
        crc32c: chunk.checksum,
        data: chunk.data,
    };
    v1::Frame { frame: Some(v1::frame::Frame::Chunk(chunk)) }
}

pub(super) fn key_from(tensor: v1::chunk::Tensor) -> Result<TensorKey, WireError> {
    Ok(match tensor {
        v1::chunk::Tensor::Images(m) => TensorKey::Images(micro_batch_from(m.micro_batch)?),
        v1::chunk::Tensor::Activations(m) => TensorKey::Activations {
            direction: direction_from(m.direction())?,
            micro_batch: micro_batch_from(m.micro_batch)?,
            exchange: m.exchange.into(),
            from_tower: m.from_tower.into(),
            to_tower: m.to_tower.map(TowerIndex::from),
        },
        v1::chunk::Tensor::Parameter(m) => TensorKey::Parameter {
            state: match m.state() {
                v1::State::Weights => State::Weights,
                v1::State::Momentum => State::Momentum,
                v1::State::Unspecified => return Err(WireError::Missing("state")),
            },
            step: step_from(m.step)?,
            name: tensor_name(m.name)?,
            tower: m.tower.into(),
        },
        v1::chunk::Tensor::Gradient(m) => {
            let first = m.first_slot as usize;
            TensorKey::Gradient {
                step: nonzero("step", step_from(m.step)?)?,
                name: tensor_name(m.name)?,
                tower: m.tower.into(),
                piece: m.piece as usize,
                node: (m.slots > 0).then(|| first..first + m.slots as usize),
            }
        }
    })
}

/// The name of a parameter or of a bundle, which consists of names of layers. Errors and logs show it.
fn tensor_name(name: String) -> Result<String, WireError> {
    if name.len() <= TENSOR_NAME_MAX && name.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
        return Ok(name);
    }
    let expected = "it must have at most 256 characters, all of them printable and of ASCII";
    Err(WireError::Value { field: "name", value: format!("\"{}\"", name_from(&name)), expected })
}

pub(super) fn key_to(key: TensorKey) -> v1::chunk::Tensor {
    match key {
        TensorKey::Images(m) => v1::chunk::Tensor::Images(v1::Images { micro_batch: Some(micro_batch_to(&m)) }),
        TensorKey::Activations { micro_batch, exchange, direction, from_tower, to_tower } => {
            v1::chunk::Tensor::Activations(v1::Activations {
                micro_batch: Some(micro_batch_to(&micro_batch)),
                exchange: exchange.into(),
                direction: direction_to(direction).into(),
                from_tower: from_tower.into(),
                to_tower: to_tower.map(u32::from),
            })
        }
        TensorKey::Parameter { step, name, tower, state } => {
            let state = match state {
                State::Weights => v1::State::Weights,
                State::Momentum => v1::State::Momentum,
            };
            v1::chunk::Tensor::Parameter(v1::Parameter { step, name, tower: tower.into(), state: state.into() })
        }
        TensorKey::Gradient { step, name, tower, piece, node } => {
            let node = node.unwrap_or_default();
            v1::chunk::Tensor::Gradient(v1::Gradient {
                step,
                name,
                tower: tower.into(),
                piece: piece as u32,
                first_slot: node.start as u32,
                slots: node.len() as u32,
            })
        }
    }
}

pub(super) fn direction_from(direction: v1::Direction) -> Result<Direction, WireError> {
    match direction {
        v1::Direction::Forward => Ok(Direction::Forward),
        v1::Direction::Backward => Ok(Direction::Backward),
        v1::Direction::Unspecified => Err(WireError::Missing("direction")),
    }
}

pub(super) fn direction_to(direction: Direction) -> v1::Direction {
    match direction {
        Direction::Forward => v1::Direction::Forward,
        Direction::Backward => v1::Direction::Backward,
    }
}

pub(super) fn micro_batch_from(message: Option<v1::MicroBatch>) -> Result<MicroBatch, WireError> {
    let m = required("micro_batch", message)?;
    let phase = match m.phase() {
        v1::Phase::Train => Phase::Train,
        v1::Phase::Evaluate => Phase::Evaluate,
        v1::Phase::Unspecified => return Err(WireError::Missing("phase")),
    };
    let first = m.first_sample as usize;
    let samples = first..first + nonzero("samples", m.samples.into())? as usize;
    Ok(MicroBatch {
        id: MicroBatchId { step: step_from(m.step)?, phase, slot: m.slot, micro_batch: m.micro_batch },
        samples,
    })
}

pub(super) fn micro_batch_to(m: &MicroBatch) -> v1::MicroBatch {
    let phase = match m.id.phase {
        Phase::Train => v1::Phase::Train,
        Phase::Evaluate => v1::Phase::Evaluate,
    };
    v1::MicroBatch {
        step: m.id.step,
        phase: phase.into(),
        slot: m.id.slot,
        micro_batch: m.id.micro_batch,
        first_sample: m.samples.start as u32,
        samples: m.samples.len() as u32,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
