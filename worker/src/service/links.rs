//! The links of a generation: a queue of frames for each peer, and one queue of what arrives from all of them.
//!
//! Not here: how links are opened (`peers`), and what arrives or is sent (`session`).

use std::collections::HashMap;

use convoy_common::chain::chain;
use convoy_common::index::WorkerIndex;
use convoy_common::wire::{Chunk, PeerFailed, PeerFailure, chunk_from_frame};
use convoy_proto::v1;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;

use super::link::{Link, LinkError, Reading};

/// Capacity of a queue, in frames.
const QUEUE: usize = 32;

/// The links of a generation. They are closed when they are dropped.
pub(super) struct OpenLinks {
    /// Frames for each peer. The queue of a link that has ended is closed.
    pub(super) outgoing: HashMap<WorkerIndex, Sender<v1::Frame>>,
    /// What arrives, until all links have ended.
    pub(super) incoming: Receiver<Arrived>,
    /// The tasks that move bytes.
    pub(super) tasks: JoinSet<()>,
}

/// A part of a tensor from a peer, or the end of its link.
pub(super) struct Arrived {
    pub(super) from: WorkerIndex,
    pub(super) chunk: Result<Chunk, PeerFailed>,
}

impl OpenLinks {
    /// Moves bytes over these links from now on.
    pub(super) fn over(links: Vec<(WorkerIndex, Link)>) -> Self {
        let (arrived, incoming) = channel(QUEUE);
        let (mut outgoing, mut tasks) = (HashMap::new(), JoinSet::new());
        for (peer, Link { reading, writing }) in links {
            let (queue, frames) = channel(QUEUE);
            outgoing.insert(peer, queue);
            tasks.spawn(writing.send_all(frames));
            tasks.spawn(receive(peer, reading, arrived.clone()));
        }
        Self { outgoing, incoming, tasks }
    }
}

async fn receive(from: WorkerIndex, mut reading: Reading, arrived: Sender<Arrived>) {
    loop {
        let chunk = next(&mut reading).await.map_err(|(kind, message)| PeerFailed { peer: from, kind, message });
        let is_over = chunk.is_err();
        if arrived.send(Arrived { from, chunk }).await.is_err() || is_over {
            return;
        }
    }
}

async fn next(reading: &mut Reading) -> Result<Chunk, (PeerFailure, String)> {
    let frame = reading.next::<v1::Frame>().await.map_err(|error| {
        let kind = match error {
            LinkError::Closed | LinkError::Broken(_) | LinkError::Stranger => PeerFailure::Broken,
            LinkError::TooLong(_) | LinkError::NoMessage(_) => PeerFailure::Invalid,
        };
        (kind, chain(&error))
    })?;
    chunk_from_frame(frame).map_err(|error| (PeerFailure::Invalid, error.to_string()))
}
