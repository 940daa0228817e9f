//! Messages about connections between workers, and the first message in each direction on such a connection.

use std::fmt;
use std::time::Duration;

use convoy_proto::v1;

use super::tensor::{Direction, direction_from, direction_to};
use super::{WireError, address_from, description_from, nonzero};
use crate::address::Address;
use crate::index::{ExchangeIndex, WorkerIndex};
use crate::route::Moved;

/// Bytes of one half of a secret.
const HALF: usize = 16;

/// The secret of two workers, of two halves: the worker that opens the connection shows the first one, and the other worker answers with
/// the second. It is never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([[u8; HALF]; 2]);

impl Secret {
    /// The secret that consists of these numbers, which nobody else can guess.
    pub fn of(numbers: [u64; 4]) -> Self {
        let [a, b, c, d] = numbers.map(u128::from);
        Self([a << 64 | b, c << 64 | d].map(u128::to_le_bytes))
    }

    /// The first half, for the worker that opens the connection.
    pub fn question(&self) -> &[u8] {
        &self.0[0]
    }

    /// The second half, for the worker that accepts it.
    pub fn answer(&self) -> &[u8] {
        &self.0[1]
    }

    /// Whether `shown` is the first half.
    pub fn is_asked_by(&self, shown: &[u8]) -> bool {
        is_equal(&self.0[0], shown)
    }

    /// Whether `shown` is the second half.
    pub fn is_answered_by(&self, shown: &[u8]) -> bool {
        is_equal(&self.0[1], shown)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The time this takes does not depend on where they differ.
fn is_equal(own: &[u8], shown: &[u8]) -> bool {
    own.len() == shown.len() && own.iter().zip(shown).fold(0, |found, (own, shown)| found | (own ^ shown)) == 0
}

/// A worker to which another one is connected directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its index.
    pub worker: WorkerIndex,
    /// Where it listens.
    pub address: Address,
    /// The secret of the two.
    pub secret: Secret,
}

/// Who opens a connection to another worker, and for which generation of a job. What it shows is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerHello {
    /// The job.
    pub job: u64,
    /// The generation.
    pub generation: u64,
    /// The worker that opens the connection.
    pub from: WorkerIndex,
    /// What it shows of the secret.
    pub shown: Vec<u8>,
}

impl fmt::Debug for PeerHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, generation, from, shown } = self;
        write!(f, "PeerHello({from} in generation {generation} of job {job:x}, {} bytes of a secret)", shown.len())
    }
}

/// Why a worker cannot exchange tensors with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFailed {
    /// The peer.
    pub peer: WorkerIndex,
    /// What happened.
    pub kind: PeerFailure,
    /// The same for a person.
    pub message: String,
}

/// What can happen to a connection between workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerFailure {
    /// It was not there in time.
    Unreachable,
    /// It broke.
    Broken,
    /// The peer sent an invalid message.
    Invalid,
}

/// What a worker has received from another worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The sender.
    pub from: WorkerIndex,
    /// What it belongs to.
    pub moved: Moved,
    /// Number of whole tensors.
    pub tensors: u64,
    /// Payload bytes.
    pub bytes: u64,
}

/// What a worker has done since its last report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// What it has received from other workers.
    pub carried: Vec<Carried>,
    /// How long its compute thread was busy.
    pub busy: Duration,
}

impl TryFrom<v1::Peer> for Peer {
    type Error = WireError;

    fn try_from(m: v1::Peer) -> Result<Self, WireError> {
        let halves = m.secret.as_chunks::<HALF>();
        let (&[first, second], []) = halves else {
            let value = format!("{} bytes", m.secret.len());
            return Err(WireError::Value { field: "secret", value, expected: "it must have 32 bytes" });
        };
        let address = address_from("address", &m.address)?;
        Ok(Self { worker: m.worker.into(), address, secret: Secret([first, second]) })
    }
}

impl From<Peer> for v1::Peer {
    fn from(peer: Peer) -> Self {
        let secret = peer.secret.0.concat().into();
        Self { worker: peer.worker.into(), address: peer.address.to_string(), secret }
    }
}

impl TryFrom<v1::PeerHello> for PeerHello {
    type Error = WireError;

    fn try_from(m: v1::PeerHello) -> Result<Self, WireError> {
        let (job, generation) = (nonzero("job", m.job)?, nonzero("generation", m.generation)?);
        Ok(Self { job, generation, from: m.from.into(), shown: m.secret.to_vec() })
    }
}

impl From<PeerHello> for v1::PeerHello {
    fn from(hello: PeerHello) -> Self {
        let PeerHello { job, generation, from, shown } = hello;
        Self { job, generation, from: from.into(), secret: shown.into() }
    }
}

impl From<&Secret> for v1::PeerWelcome {
    fn from(secret: &Secret) -> Self {
        Self { secret: secret.answer().to_vec().into() }
    }
}

impl TryFrom<v1::PeerFailed> for PeerFailed {
    type Error = WireError;

    fn try_from(m: v1::PeerFailed) -> Result<Self, WireError> {
        let kind = match m.kind() {
            v1::PeerFailureKind::Unreachable => PeerFailure::Unreachable,
            v1::PeerFailureKind::Broken => PeerFailure::Broken,
            v1::PeerFailureKind::Invalid => PeerFailure::Invalid,
            v1::PeerFailureKind::Unspecified => return Err(WireError::Missing("kind")),
        };
        Ok(Self { peer: m.peer.into(), kind, message: description_from(&m.message) })
    }
}

impl From<PeerFailed> for v1::PeerFailed {
    fn from(failed: PeerFailed) -> Self {
        let kind = match failed.kind {
            PeerFailure::Unreachable => v1::PeerFailureKind::Unreachable,
            PeerFailure::Broken => v1::PeerFailureKind::Broken,
            PeerFailure::Invalid => v1::PeerFailureKind::Invalid,
        };
        Self { peer: failed.peer.into(), kind: kind.into(), message: description_from(&failed.message) }
    }
}

impl TryFrom<v1::Carried> for Carried {
    type Error = WireError;

    fn try_from(m: v1::Carried) -> Result<Self, WireError> {
        let moved = match m.exchange {
            Some(exchange) => Moved::Exchange(ExchangeIndex::from(exchange), direction_from(m.direction())?),
            None => Moved::Gradients,
        };
        Ok(Self { from: m.from.into(), moved, tensors: m.tensors, bytes: m.bytes })
    }
}

impl From<Carried> for v1::Carried {
    fn from(carried: Carried) -> Self {
        let Carried { from, moved, tensors, bytes } = carried;
        let (exchange, direction): (_, Option<Direction>) = match moved {
            Moved::Exchange(exchange, direction) => (Some(exchange.into()), Some(direction)),
            Moved::Gradients => (None, None),
        };
        let direction = direction.map_or(0, |direction| direction_to(direction).into());
        Self { from: from.into(), exchange, direction, tensors, bytes }
    }
}

/// The tally of a message.
pub(super) fn tally_from(carried: Vec<v1::Carried>, busy_ns: u64) -> Result<Tally, WireError> {
    let carried = carried.into_iter().map(Carried::try_from).collect::<Result<_, _>>()?;
    Ok(Tally { carried, busy: Duration::from_nanos(busy_ns) })
}

/// A tally as a message has it.
pub(super) fn tally_to(tally: Tally) -> (Vec<v1::Carried>, u64) {
    (tally.carried.into_iter().map(v1::Carried::from).collect(), tally.busy.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_by_its_halves_alone() {
        let secret = Secret::of([1, 2, 3, 4]);
        assert!(secret.is_asked_by(secret.question()) && secret.is_answered_by(secret.answer()));
        assert!(!secret.is_asked_by(secret.answer()) && !secret.is_answered_by(secret.question()));
        assert!(!secret.is_asked_by(&[]) && !secret.is_asked_by(&secret.question()[1..]));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[test]
    fn messages_about_peers_survive_the_way() {
        let peer =
            Peer { worker: WorkerIndex(3), address: "10.0.0.7:80".parse().unwrap(), secret: Secret::of([1, 2, 3, 4]) };
        assert_eq!(Peer::try_from(v1::Peer::from(peer.clone())), Ok(peer.clone()));
        let exchange = Moved::Exchange(ExchangeIndex(0), Direction::Backward);
        for moved in [exchange, Moved::Gradients] {
            let carried = Carried { from: WorkerIndex(1), moved, tensors: 2, bytes: 300 };
            assert_eq!(Carried::try_from(v1::Carried::from(carried.clone())), Ok(carried));
        }
        for kind in [PeerFailure::Unreachable, PeerFailure::Broken, PeerFailure::Invalid] {
            let failed = PeerFailed { peer: WorkerIndex(1), kind, message: "it is gone".to_owned() };
            assert_eq!(PeerFailed::try_from(v1::PeerFailed::from(failed.clone())), Ok(failed));
        }
        let short = v1::Peer { secret: vec![0; 31].into(), ..peer.clone().into() };
        assert!(Peer::try_from(short).unwrap_err().to_string().contains("31 bytes"));
        let nowhere = v1::Peer { address: "x\n".to_owned(), ..peer.into() };
        assert!(Peer::try_from(nowhere).unwrap_err().to_string().contains("\"address\" is x ;"));
    }
}
