//! Examines the workers that connect, before a job: how far away each is, how fast its connection is in both directions, and which workers
//! can connect to each other. Workers get a small network and send its weights back, as for a checkpoint. They compute nothing.
//!
//! Not here: what the figures mean (`convoy_doctor`), and who is there (`cluster`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use convoy_common::batch::{Batches, Division};
use convoy_common::index::{PerWorker, WorkerIndex};
use convoy_common::model::Network;
use convoy_common::parameters::Tensors;
use convoy_common::plan::Plan;
use convoy_common::text::counted;
use convoy_common::wire::{
    Assignment, Chunk, FromWorker, Generation, Hello, Numbered, Payload, Peer, PeerFailed, TensorKey, ToWorker, frames,
};

use crate::cluster::member::{Heard, Undelivered};
use crate::cluster::{Cluster, News};
use crate::deadlines::LOOK_EVERY;
use crate::error::JobError;
use crate::links::{Transport, arranged};
use crate::observe::{Event, Observer};
use crate::running::Running;
use crate::state::JobState;
use crate::unguessable::unguessable;

/// Pings to each worker, or as many as it answers in this time, at least one. The fastest answer counts.
const PINGS: usize = 20;
const PINGED_FOR: Duration = Duration::from_secs(1);
/// A worker must answer a ping within this.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// A worker must have taken the weights, or sent them back, or have connected to the other workers, within this.
const CARRIED_WITHIN: Duration = Duration::from_secs(15);

/// Inputs of the network's first layer.
const INPUTS: usize = 32 * 32;
/// Units of the first layer per worker, before the speed of the connections is known.
const FEW_UNITS: usize = 16;
/// How long the weights of a worker shall take to arrive. If it is less than half of that, a larger network follows.
const LASTS: Duration = Duration::from_millis(250);
/// The most networks that are tried.
const ROUNDS_MAX: usize = 4;
/// The most bytes of weights and momentum, of one worker and of all.
const BYTES_MAX: usize = 32 << 20;
const BYTES_OF_ALL_MAX: usize = 512 << 20;
/// A time without the round trip is at least this, so that a speed is finite.
const TIME_MIN: Duration = Duration::from_micros(10);

/// What an examination has found.
#[derive(Debug)]
pub struct Examination {
    /// The workers that have connected, by number.
    pub workers: PerWorker<Examined>,
    /// Pairs of workers that can't connect to each other.
    pub unlinked: Vec<Unlinked>,
}

/// A worker that has connected.
#[derive(Debug)]
pub struct Examined {
    /// Its own description.
    pub hello: Hello,
    /// Where it connected from.
    pub address: String,
    /// What was measured of its connection.
    pub measured: Result<Measured, Trouble>,
}

/// What was measured of the connection to a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// From a ping to its answer, at best.
    pub round_trip: Duration,
    /// Bytes per second to the worker.
    pub to_worker: f64,
    /// Bytes per second from the worker.
    pub from_worker: f64,
}

impl Measured {
    /// The speed of the slower direction.
    pub fn slower(&self) -> f64 {
        self.to_worker.min(self.from_worker)
    }
}

/// Two workers that can't connect to each other. In a job, the coordinator relays what they send each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlinked {
    /// Both, the smaller index first.
    pub pair: [WorkerIndex; 2],
    /// Why.
    pub why: String,
}

/// Why a worker could not be examined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It is gone.
    #[error("its connection was lost: {0}")]
    Lost(String),
    /// It does not do its part.
    #[error("it did not {0} within {1:.0?}")]
    Late(&'static str, Duration),
    /// It reports a failure.
    #[error("it reports: {0}")]
    Failed(String),
    /// It sends what is not its turn.
    #[error("it sent {0}, which is not allowed now")]
    OutOfTurn(String),
    /// It keeps other weights than it got.
    #[error("it sent back other bytes of {0} than it had received")]
    Altered(String),
    /// A stop was requested.
    #[error("the examination was stopped")]
    Stopped,
}

/// Waits at most `patience` for `workers` workers, and examines those that have connected. The observer is told of those that were refused
/// or serve another coordinator.
///
/// # Errors
/// When the address can't be bound, or the model of that many workers is too large.
pub fn examine(
    running: &Running,
    workers: usize,
    patience: Duration,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Examination, JobError> {
    let mut cluster = Cluster::open(running, workers, 1)?;
    cluster.refill(patience, observer, stop)?;
    cluster.close_ranks();
    let workers = counted(cluster.seats(), "worker", "workers");
    observer.on(Event::Notice { text: format!("examining {workers}") });
    let mut examiner = Examiner::of(&mut cluster, stop);
    let examination = examiner.examine();
    let number = examiner.number;
    cluster.dismiss(number, "the examination by convoy doctor has ended", |_, _| {});
    examination
}

/// A generation of the examination: a network, and its weights.
struct Round {
    generation: Generation,
    plan: Plan,
    state: JobState,
}

struct Examiner<'a> {
    cluster: &'a mut Cluster,
    stop: &'a AtomicBool,
    job: u64,
    /// The number of the last generation.
    number: u64,
    /// The ping whose answer is awaited. Others are sent to keep connections open.
    pinged: Option<u64>,
    /// What is wrong with each worker.
    troubles: PerWorker<Option<Trouble>>,
}

impl<'a> Examiner<'a> {
    fn of(cluster: &'a mut Cluster, stop: &'a AtomicBool) -> Self {
        let troubles = vec![None; cluster.seats()].into();
        Self { cluster, stop, job: unguessable().max(1), number: 0, pinged: None, troubles }
    }

    fn examine(&mut self) -> Result<Examination, JobError> {
        let members = self.all_workers().filter_map(|worker| self.cluster.member(worker));
        let hellos: Vec<_> = members.map(|member| (member.hello.clone(), member.address.clone())).collect();
        if hellos.is_empty() {
            return Ok(Examination { workers: Vec::new().into(), unlinked: Vec::new() });
        }
        let unlinked = self.link()?;
        let measured = self.measure_all()?;
        let each = hellos.into_iter().zip(measured).zip(&self.troubles);
        let workers = each.map(|(((hello, address), measured), trouble)| {
            let measured = measured.ok_or_else(|| trouble.clone().unwrap_or(Trouble::Stopped));
            Examined { hello, address, measured }
        });
        Ok(Examination { workers: workers.collect(), unlinked })
    }

    fn all_workers(&self) -> impl Iterator<Item = WorkerIndex> + use<> {
        self.troubles.keys()
    }

    /// Has all workers connect to each other. Returns those that can't.
    fn link(&mut self) -> Result<Vec<Unlinked>, JobError> {
        let (round, peers) = self.begin(FEW_UNITS, Transport::Auto)?;
        let mut unlinked = self.relayed(&round.plan, &peers);
        for worker in self.all_workers() {
            let payloads: Vec<_> = round.state.slices(&round.plan, worker, 0).collect();
            self.attempt(worker, |examiner| examiner.send(worker, round.generation, &payloads, Instant::now()));
        }
        self.hear_of_links(&peers, &mut unlinked);
        Ok(unlinked.into_iter().map(|(pair, why)| Unlinked { pair, why }).collect())
    }

    /// The pairs that are not even told to connect, because one of the two listens at no address that the other one could use.
    fn relayed(&self, plan: &Plan, peers: &PerWorker<Vec<Peer>>) -> BTreeMap<[WorkerIndex; 2], String> {
        let listens = |worker: &WorkerIndex| {
            self.cluster.member(*worker).is_some_and(|member| member.hello.exchange_address.is_some())
        };
        let pairs =
            self.all_workers().flat_map(|worker| plan.partners(worker).into_iter().map(move |peer| [worker, peer]));
        let untold = pairs.filter(|[worker, peer]| worker < peer && !is_told(peers, *worker, *peer));
        let why = |pair: [WorkerIndex; 2]| match pair.into_iter().find(|worker| !listens(worker)) {
            Some(deaf) => format!("worker {deaf} listens at no address for other workers"),
            None => "an address of one of them is for its own machine alone".to_owned(),
        };
        untold.map(|pair| (pair, why(pair))).collect()
    }

    /// Waits until each worker has connected to its peers, or has reported those that it can't reach.
    fn hear_of_links(&mut self, peers: &PerWorker<Vec<Peer>>, unlinked: &mut BTreeMap<[WorkerIndex; 2], String>) {
        let began = Instant::now();
        let mut owed: HashSet<_> = self.all_workers().collect();
        while began.elapsed() < CARRIED_WITHIN {
            owed.retain(|worker| self.troubles[*worker].is_none());
            if owed.is_empty() {
                return;
            }
            let Some((worker, heard)) = self.next() else { continue };
            match heard {
                Heard::Said(Numbered { message: FromWorker::Ready, .. }, _) => drop(owed.remove(&worker)),
                // A worker reports all that it can't reach at once.
                Heard::Said(Numbered { message: FromWorker::PeerFailed(PeerFailed { peer, message, .. }), .. }, _)
                    if is_told(peers, worker, peer) =>
                {
                    unlinked.entry([worker.min(peer), worker.max(peer)]).or_insert(message);
                    owed.remove(&worker);
                }
                other => self.troubles[worker] = Some(out_of_turn(&other)),
            }
        }
        for worker in owed {
            self.troubles[worker].get_or_insert(Trouble::Late("connect to the other workers", CARRIED_WITHIN));
        }
    }

    /// Measures with larger networks, until the slowest connection needs long enough for its weights.
    fn measure_all(&mut self) -> Result<PerWorker<Option<Measured>>, JobError> {
        let mut units = FEW_UNITS;
        let mut measured = self.measure_with(units)?;
        for _ in 1..ROUNDS_MAX {
            let Some(slowest) = measured.iter().flatten().map(Measured::slower).reduce(f64::min) else { break };
            let wanted = units_for(slowest, self.troubles.len());
            if wanted < 2 * units {
                break;
            }
            units = wanted;
            measured = self.measure_with(units)?;
        }
        Ok(measured)
    }

    /// Measures one connection after the other, so that they do not share the network.
    fn measure_with(&mut self, units: usize) -> Result<PerWorker<Option<Measured>>, JobError> {
        let (round, _) = self.begin(units, Transport::Relay)?;
        let workers = self.all_workers();
        Ok(workers.map(|worker| self.attempt(worker, |examiner| examiner.measure(worker, &round))).collect())
    }

    /// Does something with a worker, unless it was in trouble before.
    fn attempt<T>(&mut self, worker: WorkerIndex, act: impl FnOnce(&mut Self) -> Result<T, Trouble>) -> Option<T> {
        if self.troubles[worker].is_some() {
            return None;
        }
        act(self).map_err(|trouble| self.troubles[worker].get_or_insert(trouble)).ok()
    }

    /// Begins the next generation: assigns each worker its part of a network. Returns also what each was told about its peers.
    fn begin(&mut self, units: usize, transport: Transport) -> Result<(Round, PerWorker<Vec<Peer>>), JobError> {
        self.number += 1;
        let workers = self.troubles.len();
        let model = model(workers, units);
        let plan = Plan::new(Network::parse(&model)?, workers, 1, None)?;
        let state = JobState { weights: patterned(plan.network.zeros()), momentum: patterned(plan.network.zeros()) };
        let address_of = |worker| self.cluster.member(worker)?.hello.exchange_address.clone();
        let (links, peers) =
            arranged(&plan, transport, address_of, |one, other| self.cluster.leads_elsewhere(one, other));
        let assignment = Assignment {
            job: self.job,
            model,
            placement: plan.placement.clone(),
            worker: WorkerIndex(0),
            seed: 0,
            dropout_seed: 0,
            momentum: 0.0,
            weight_decay: 0.0,
            batches: Batches { images: 1, batch: 1 },
            division: Division { slots: 1, micro_batches: 1 },
            train: true,
            trace: false,
            peers: Vec::new(),
        };
        for (worker, peers) in peers.iter_enumerated() {
            let own = Assignment { worker, peers: peers.clone(), ..assignment.clone() };
            self.attempt(worker, |examiner| examiner.tell(worker, ToWorker::Assign(own)));
        }
        let generation = Generation { job: self.job, number: self.number };
        Ok((Round { generation, plan: plan.linked(links), state }, peers))
    }

    fn measure(&mut self, worker: WorkerIndex, round: &Round) -> Result<Measured, Trouble> {
        let round_trip = self.ping(worker)?;
        let sent: Vec<_> = round.state.slices(&round.plan, worker, 0).collect();
        let bytes: usize = sent.iter().map(|payload| payload.data.len()).sum();
        // What a connection carries does not depend on how far it leads.
        let speed =
            |began: Instant| bytes as f64 / began.elapsed().saturating_sub(round_trip).max(TIME_MIN).as_secs_f64();
        let began = Instant::now();
        self.send(worker, round.generation, &sent, began)?;
        let left = CARRIED_WITHIN.saturating_sub(began.elapsed());
        self.hear(worker, "take weights", left, |heard| match heard {
            Heard::Said(Numbered { message: FromWorker::Ready, .. }, _) => Ok(Some(())),
            other => Err(out_of_turn(&other)),
        })?;
        let to_worker = speed(began);
        let began = Instant::now();
        self.get_back(worker, &sent)?;
        Ok(Measured { round_trip, to_worker, from_worker: speed(began) })
    }

    /// Sends a worker its weights and momentum.
    fn send(
        &mut self,
        worker: WorkerIndex,
        generation: Generation,
        payloads: &[Payload],
        began: Instant,
    ) -> Result<(), Trouble> {
        let (given_up, stop) = (self.cluster.deadlines().given_up, self.stop);
        for frame in payloads.iter().flat_map(|payload| frames(generation, payload.clone())) {
            if stop.load(Ordering::Relaxed) {
                return Err(Trouble::Stopped);
            }
            if began.elapsed() > CARRIED_WITHIN {
                return Err(Trouble::Late("take weights", CARRIED_WITHIN));
            }
            let delivered = self.cluster.send(worker, frame, stop, |_, _| {});
            delivered.map_err(|why| undelivered(why, given_up))?;
        }
        Ok(())
    }

    fn tell(&mut self, worker: WorkerIndex, message: ToWorker) -> Result<(), Trouble> {
        let given_up = self.cluster.deadlines().given_up;
        let delivered = self.cluster.tell(worker, Numbered { generation: self.number, message }, self.stop);
        delivered.map_err(|why| undelivered(why, given_up))
    }

    /// The shortest of several round trips.
    fn ping(&mut self, worker: WorkerIndex) -> Result<Duration, Trouble> {
        let (began, mut shortest) = (Instant::now(), Duration::MAX);
        for number in 0..PINGS {
            if number > 0 && began.elapsed() > PINGED_FOR {
                break;
            }
            let sent = self.cluster.clock().now();
            self.pinged = Some(sent);
            self.tell(worker, ToWorker::Ping { sent })?;
            let nanoseconds = self.hear(worker, "answer a ping", ANSWERED_WITHIN, |heard| match heard {
                Heard::Said(Numbered { message: FromWorker::Pong(_), .. }, at) => Ok(Some(at.saturating_sub(sent))),
                other => Err(out_of_turn(&other)),
            })?;
            shortest = shortest.min(Duration::from_nanos(nanoseconds));
        }
        self.pinged = None;
        Ok(shortest)
    }

    /// Has a worker send back what it was sent.
    fn get_back(&mut self, worker: WorkerIndex, sent: &[Payload]) -> Result<(), Trouble> {
        self.tell(worker, ToWorker::SendState { step: 0 })?;
        let mut owed: HashMap<_, _> = sent.iter().map(|payload| (&payload.key, &payload.data[..])).collect();
        self.hear(worker, "send weights back", CARRIED_WITHIN, |heard| match heard {
            Heard::Chunk(chunk, _) => {
                take(&mut owed, &chunk)?;
                Ok(owed.is_empty().then_some(()))
            }
            other => Err(out_of_turn(&other)),
        })
    }

    /// Hears a worker until `take` has what it waits for. Messages of other workers, which are not measured now, don't count.
    fn hear<T>(
        &mut self,
        worker: WorkerIndex,
        what: &'static str,
        within: Duration,
        mut take: impl FnMut(Heard) -> Result<Option<T>, Trouble>,
    ) -> Result<T, Trouble> {
        let began = Instant::now();
        while began.elapsed() < within {
            if let Some((_, heard)) = self.next().filter(|(from, _)| *from == worker)
                && let Some(taken) = take(heard)?
            {
                return Ok(taken);
            }
            if let Some(trouble) = &self.troubles[worker] {
                return Err(trouble.clone());
            }
        }
        Err(Trouble::Late(what, within))
    }

    /// The next message of this generation, if one comes soon. Notes which workers are in trouble.
    fn next(&mut self) -> Option<(WorkerIndex, Heard)> {
        self.cluster.beat();
        if self.stop.load(Ordering::Relaxed) {
            for trouble in &mut self.troubles {
                trouble.get_or_insert(Trouble::Stopped);
            }
        }
        let Some(News::Heard(from, heard)) = self.cluster.poll(LOOK_EVERY) else { return None };
        let trouble = match heard {
            Heard::Lost(why) => Trouble::Lost(why),
            Heard::Said(Numbered { message: FromWorker::Failure(failure), .. }, _) => Trouble::Failed(failure.message),
            heard => return self.counts(&heard).then_some((from, heard)),
        };
        self.troubles[from].get_or_insert(trouble);
        None
    }

    /// Whether a message is of this generation, and not the answer to a ping that only keeps a connection open.
    fn counts(&self, heard: &Heard) -> bool {
        match heard {
            Heard::Said(Numbered { message: FromWorker::Leaving, .. }, _) => false,
            Heard::Said(Numbered { message: FromWorker::Pong(pong), .. }, _) => self.pinged == Some(pong.ping_sent),
            Heard::Said(Numbered { generation, .. }, _) => *generation == self.number,
            Heard::Chunk(chunk, _) => chunk.generation.number == self.number,
            Heard::Lost(_) => true,
        }
    }
}

/// Whether a worker was told to connect to a peer.
fn is_told(peers: &PerWorker<Vec<Peer>>, worker: WorkerIndex, peer: WorkerIndex) -> bool {
    peers[worker].iter().any(|told| told.worker == peer)
}

/// Takes a chunk that continues one of the tensors that are owed.
fn take(owed: &mut HashMap<&TensorKey, &[u8]>, chunk: &Chunk) -> Result<(), Trouble> {
    let left = owed.get_mut(&chunk.key).ok_or_else(|| Trouble::OutOfTurn(chunk.key.to_string()))?;
    *left = left.strip_prefix(&chunk.data[..]).ok_or_else(|| Trouble::Altered(chunk.key.to_string()))?;
    if left.is_empty() {
        owed.remove(&chunk.key);
    }
    Ok(())
}

fn undelivered(why: Undelivered, given_up: Duration) -> Trouble {
    match why {
        Undelivered::Gone => Trouble::Lost("it closed".to_owned()),
        Undelivered::Unread => Trouble::Late("read its messages", given_up),
        Undelivered::Stopped => Trouble::Stopped,
    }
}

fn out_of_turn(heard: &Heard) -> Trouble {
    Trouble::OutOfTurn(match heard {
        Heard::Said(Numbered { message, .. }, _) => message.name().to_owned(),
        Heard::Chunk(chunk, _) => chunk.key.to_string(),
        Heard::Lost(why) => why.clone(),
    })
}

/// A network with a tower for each worker, and `units` of its first layer in each.
fn model(workers: usize, units: usize) -> String {
    let (wide, last) = (workers * units, workers.max(2));
    format!(
        "name = \"examination\"\ntowers = {workers}\n[input]\nchannels = 1\nheight = 32\nwidth = 32\nmean = [0.5]\nstd = [0.5]\n\
         [[layer]]\nkind = \"linear\"\nname = \"wide\"\nunits = {wide}\n[[layer]]\nkind = \"linear\"\nname = \"last\"\nunits = {last}\n"
    )
}

/// Bytes of weights and momentum that a unit of the first layer brings with it: its inputs, and its part of the second layer.
fn bytes_of_unit(workers: usize) -> usize {
    2 * size_of::<f32>() * (INPUTS + workers.max(2))
}

/// Units per worker whose weights take about [`LASTS`] at a speed in bytes per second.
fn units_for(speed: f64, workers: usize) -> usize {
    let most = BYTES_MAX.min(BYTES_OF_ALL_MAX / workers.max(1)) / bytes_of_unit(workers);
    let wanted = speed * LASTS.as_secs_f64() / bytes_of_unit(workers) as f64;
    (wanted as usize).min(most).max(FEW_UNITS)
}

/// Tensors of values that differ, so that nothing on the way can compress them, and a byte in a wrong place is found.
fn patterned(tensors: Tensors) -> Tensors {
    const SPREAD: u32 = 0x9E37_79B1;
    let mut index = 0_u32;
    let mut next = || {
        index = index.wrapping_add(1);
        (index.wrapping_mul(SPREAD) >> 8) as f32 / (1 << 24) as f32
    };
    tensors.into_iter().map(|(name, tensor)| (name, tensor.mapv(|_: f32| next()))).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use convoy_common::index::TowerIndex;
    use convoy_common::wire::State;

    use super::*;

    #[test]
    fn networks_fit_any_number_of_workers_and_any_speed() {
        for (workers, speed) in [(1, 1e5), (2, 1.25e8), (3, f64::INFINITY), (64, 1e10), (1000, 1e9)] {
            let units = units_for(speed, workers);
            let plan = Plan::new(Network::parse(&model(workers, units)).unwrap(), workers, 1, None).unwrap();
            let bytes: usize = plan.network.parameters().iter().map(|parameter| parameter.len() * 8).sum();
            // Biases come on top.
            assert!(bytes <= BYTES_OF_ALL_MAX + BYTES_OF_ALL_MAX / 64, "{workers} workers: {bytes}");
            let partners = plan.all_workers().map(|worker| plan.partners(worker).len());
            assert!(partners.into_iter().all(|partners| partners == workers - 1), "all pairs must connect");
        }
    }

    #[test]
    fn weights_must_come_back_whole_and_in_order() {
        let key = TensorKey::Parameter {
            step: 0,
            name: "wide.weight".to_owned(),
            tower: TowerIndex(0),
            state: State::Weights,
        };
        let chunk = |data: &'static [u8]| Chunk {
            generation: Generation { job: 1, number: 1 },
            key: key.clone(),
            shape: vec![2],
            offset: 0,
            data: Bytes::from_static(data),
            checksum: 0,
        };
        let mut owed = HashMap::from([(&key, &b"12345678"[..])]);
        assert_eq!(take(&mut owed, &chunk(b"1234")), Ok(()));
        assert_eq!(take(&mut owed, &chunk(b"1234")), Err(Trouble::Altered(key.to_string())));
        assert_eq!(take(&mut owed, &chunk(b"5678")), Ok(()));
        assert!(owed.is_empty());
        assert_eq!(take(&mut owed, &chunk(b"5678")), Err(Trouble::OutOfTurn(key.to_string())));
    }
}
