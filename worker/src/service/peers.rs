//! Links to other workers. A door accepts connections from other workers, and `connect` opens connections to them. A peer proves
//! with the secret of the pair who it is, and so does this worker.
//!
//! Not here: what a link carries (`link`, `session`), and which workers are peers (the coordinator decides).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::chain::chain;
use convoy_common::index::WorkerIndex;
use convoy_common::links::CONNECTED_WITHIN;
use convoy_common::wire::{Generation, Peer, PeerFailed, PeerFailure, PeerHello, Secret};
use convoy_net::Socket;
use convoy_net::dial::DialError;
use convoy_net::listening::Listening;
use convoy_net::reception::{Limits, Reception, Stay};
use convoy_net::tls::{Protocol, Tls};
use convoy_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::{Stream, StreamExt};

use super::connection::Place;
use super::link::{Link, LinkError};

/// The pause before the next attempt, if a peer does not listen yet.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// The limits of connections whose other end has not proved who it is.
const UNPROVED: Limits =
    Limits { strangers: 128, grace: Duration::from_millis(10), crowd: 256, patience: CONNECTED_WITHIN, visitors: 0 };

/// Where other workers connect to this one. It is closed when it is dropped.
#[derive(Debug)]
pub(super) struct Door {
    at: Address,
    tls: Option<Tls>,
    awaited: Arc<watch::Sender<Awaited>>,
    _accepting: JoinSet<()>,
}

/// The links of a generation, as far as they could be opened.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub(super) links: Vec<(WorkerIndex, Link)>,
    /// Why the others could not.
    pub(super) failed: Vec<PeerFailed>,
}

/// Whom the door lets in: the peers of one generation.
#[derive(Debug, Default)]
struct Awaited {
    job: u64,
    generation: u64,
    secrets: HashMap<WorkerIndex, Secret>,
    arrived: Option<Arrivals>,
}

/// A peer that has proved who it is, and its link.
type Arrivals = mpsc::Sender<(WorkerIndex, Link)>;

impl Awaited {
    /// The secret of a peer that shows the first half of it, and who takes its link. The secret opens the door once.
    fn admit(&mut self, hello: &PeerHello) -> Option<(Secret, Arrivals)> {
        let is_of_this = (self.job, self.generation) == (hello.job, hello.generation);
        let secret = self.secrets.get(&hello.from).filter(|secret| is_of_this && secret.is_asked_by(&hello.shown));
        let admitted = (*secret?, self.arrived.clone()?);
        self.secrets.remove(&hello.from);
        Some(admitted)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link(..)")
    }
}

impl Door {
    /// Opens a door at `address`.
    pub(super) async fn at(address: &Address, tls: Option<Tls>) -> io::Result<Self> {
        let listener = Listening::open(address).await?;
        let at = match address {
            Address::Tcp(_) => Address::Tcp(listener.address().to_owned()),
            Address::Unix(_) => address.clone(),
        };
        let awaited = Arc::new(watch::Sender::new(Awaited::default()));
        let arrivals =
            listener.arrivals(Reception::new("for other workers", UNPROVED), Protocol::Exchange, tls.as_ref());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(arrivals, awaited.clone()));
        Ok(Self { at, tls, awaited, _accepting: accepting })
    }

    /// Opens a door at a free port of the network interface that leads to the coordinator.
    pub(super) async fn towards(coordinator: &Place, tls: Option<Tls>) -> io::Result<Self> {
        let address = SocketAddr::new(interface(coordinator)?, 0).to_string();
        Self::at(&Address::Tcp(address), tls).await
    }

    /// Where the workers of this coordinator connect. A door on all interfaces is reached by the one that leads to the coordinator.
    pub(super) fn address(&self, coordinator: &Place) -> io::Result<Address> {
        let Address::Tcp(text) = &self.at else { return Ok(self.at.clone()) };
        let listening: SocketAddr = text.parse().map_err(io::Error::other)?;
        let ip = if listening.ip().is_unspecified() { interface(coordinator)? } else { listening.ip() };
        Ok(Address::Tcp(SocketAddr::new(ip, listening.port()).to_string()))
    }

    /// Lets in these peers from now on, and nobody else.
    fn await_peers<'a>(
        &self,
        generation: Generation,
        peers: impl Iterator<Item = &'a Peer>,
    ) -> mpsc::Receiver<(WorkerIndex, Link)> {
        let secrets: HashMap<_, _> = peers.map(|peer| (peer.worker, peer.secret)).collect();
        let (arrived, arrivals) = mpsc::channel(secrets.len().max(1));
        let Generation { job, number } = generation;
        self.awaited.send_replace(Awaited { job, generation: number, secrets, arrived: Some(arrived) });
        arrivals
    }

    /// Opens the links to all peers of worker `own`: of a pair, the one with the smaller index connects.
    pub(super) async fn connect(&self, own: WorkerIndex, generation: Generation, peers: &[Peer]) -> Opened {
        let deadline = Instant::now() + CONNECTED_WITHIN;
        let mut arrivals = self.await_peers(generation, peers.iter().filter(|peer| peer.worker < own));
        let mut dialling = JoinSet::new();
        for peer in peers.iter().filter(|peer| peer.worker > own).cloned() {
            let tls = self.tls.clone();
            dialling.spawn(async move { (peer.worker, dial(&peer, own, generation, tls.as_ref(), deadline).await) });
        }
        let (mut links, mut failed): (HashMap<WorkerIndex, Link>, Vec<PeerFailed>) = Default::default();
        let unreachable = |peer, message| PeerFailed { peer, kind: PeerFailure::Unreachable, message };
        while let Some(dialled) = dialling.join_next().await {
            // A task of this set neither panics nor is it aborted while the set is there.
            let Ok((peer, link)) = dialled else { continue };
            match link {
                Ok(link) => drop(links.insert(peer, link)),
                Err(why) => failed.push(unreachable(peer, why)),
            }
        }
        while links.len() + failed.len() < peers.len()
            && let Ok(Some((peer, link))) = timeout_at(deadline, arrivals.recv()).await
        {
            links.insert(peer, link);
        }
        for missing in peers.iter().filter(|peer| peer.worker < own && !links.contains_key(&peer.worker)) {
            let message = format!("worker {} did not connect within {CONNECTED_WITHIN:?}", missing.worker);
            failed.push(unreachable(missing.worker, message));
        }
        Opened { links: links.into_iter().collect(), failed }
    }
}

impl Opened {
    /// The links of a worker without a door: none.
    pub(super) fn nothing(peers: &[Peer]) -> Self {
        let failed = |peer: &Peer| PeerFailed {
            peer: peer.worker,
            kind: PeerFailure::Unreachable,
            message: "this worker cannot listen for others".to_owned(),
        };
        Self { links: Vec::new(), failed: peers.iter().map(failed).collect() }
    }
}

/// Connects to a peer until `deadline`.
async fn dial(
    peer: &Peer,
    own: WorkerIndex,
    generation: Generation,
    tls: Option<&Tls>,
    deadline: Instant,
) -> Result<Link, String> {
    let mut why = "no answer".to_owned();
    while Instant::now() < deadline {
        match timeout_at(deadline, greet(peer, own, generation, tls)).await {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(error)) => why = chain(&error),
            Err(_) => break,
        }
        sleep(RETRY_EVERY).await;
    }
    Err(format!("cannot connect to worker {} at {} within {CONNECTED_WITHIN:?}: {why}", peer.worker, peer.address))
}

/// Why a peer could not be greeted.
#[derive(Debug, thiserror::Error)]
enum GreetError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Link(#[from] LinkError),
}

async fn greet(peer: &Peer, own: WorkerIndex, generation: Generation, tls: Option<&Tls>) -> Result<Link, GreetError> {
    let mut link = Link::to(&peer.address, tls).await?;
    let Generation { job, number } = generation;
    let hello = PeerHello { job, generation: number, from: own, shown: peer.secret.question().to_vec() };
    link.writing.send(&v1::PeerHello::from(hello)).await.map_err(LinkError::Broken)?;
    let welcome: v1::PeerWelcome = link.reading.next().await?;
    // Whoever listens there now is another process.
    if peer.secret.is_answered_by(&welcome.secret) { Ok(link.trusted()) } else { Err(LinkError::Stranger.into()) }
}

/// Accepts connections, each of which has a short time to prove who it is.
async fn accept(mut arrivals: impl Stream<Item = (Socket, Stay)> + Unpin, awaited: Arc<watch::Sender<Awaited>>) {
    let mut unproved = JoinSet::new();
    while let Some((socket, mut stay)) = arrivals.next().await {
        while unproved.try_join_next().is_some() {}
        let Ok(link) = Link::over(socket) else { continue };
        let admitted = admit(link, awaited.clone());
        unproved.spawn(async move {
            tokio::select! {
                // A stranger is not told why.
                () = stay.ended() => {}
                _ = admitted => {}
            }
        });
    }
}

/// Lets a peer in that shows the right secret, once. It may be told of the generation before this worker is.
async fn admit(mut link: Link, awaited: Arc<watch::Sender<Awaited>>) -> Option<()> {
    let hello: v1::PeerHello = link.reading.next().await.ok()?;
    let hello = PeerHello::try_from(hello).ok()?;
    // A door may outlive a job, and the numbers of generations begin anew.
    let is_told = |awaited: &Awaited| awaited.job == hello.job && awaited.generation >= hello.generation;
    awaited.subscribe().wait_for(is_told).await.ok()?;
    let mut admitted = None;
    awaited.send_if_modified(|awaited| {
        admitted = awaited.admit(&hello);
        admitted.is_some()
    });
    let (secret, arrived) = admitted?;
    if link.writing.send(&v1::PeerWelcome::from(&secret)).await.is_err() {
        // The peer has gone before it was let in, and may come again.
        awaited.send_modify(|awaited| {
            if (awaited.job, awaited.generation) == (hello.job, hello.generation) {
                awaited.secrets.insert(hello.from, secret);
            }
        });
        return None;
    }
    arrived.try_send((hello.from, link.trusted())).ok()
}

/// The address of this machine's interface by which the coordinator is reached.
fn interface(coordinator: &Place) -> io::Result<IpAddr> {
    let Place::Tcp(coordinator) = coordinator else { return Ok(IpAddr::from([127, 0, 0, 1])) };
    let any: IpAddr = if coordinator.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
    // No packet is sent: the system only looks up the route.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(coordinator)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const GENERATION: Generation = Generation { job: 7, number: 3 };

    async fn door() -> Door {
        Door::towards(&here(), None).await.unwrap()
    }

    /// A coordinator on this machine.
    fn here() -> Place {
        Place::Unix(PathBuf::new())
    }

    fn secret() -> Secret {
        Secret::of([1, 2, 3, 4])
    }

    fn peer(worker: usize, door: &Door) -> Peer {
        Peer { worker: WorkerIndex(worker), address: door.address(&here()).unwrap(), secret: secret() }
    }

    #[tokio::test]
    async fn two_workers_connect_whoever_hears_of_the_generation_first() {
        for first in [0, 1] {
            let doors = [door().await, door().await];
            let of = |own: usize| {
                let peers = [peer(1 - own, &doors[1 - own])];
                let door = &doors[own];
                async move {
                    if own != first {
                        sleep(Duration::from_millis(100)).await;
                    }
                    door.connect(WorkerIndex(own), GENERATION, &peers).await
                }
            };
            let (one, other) = tokio::join!(of(0), of(1));
            let [(_, mut one)] = <[_; 1]>::try_from(one.links).unwrap();
            let [(_, mut other)] = <[_; 1]>::try_from(other.links).unwrap();
            let frame = convoy_common::wire::open_frame(5);
            one.writing.send(&frame).await.unwrap();
            assert_eq!(other.reading.next::<v1::Frame>().await.unwrap(), frame);
            other.writing.send(&frame).await.unwrap();
            assert_eq!(one.reading.next::<v1::Frame>().await.unwrap(), frame);
        }
    }

    /// Nobody gets in without the secret of the pair, for another worker, job or generation, or by repeating what a door says.
    #[tokio::test]
    async fn strangers_get_no_answer() {
        let door = door().await;
        let peers = [peer(0, &door)];
        let mut arrivals = door.await_peers(GENERATION, peers.iter());
        let right = PeerHello { job: 7, generation: 3, from: WorkerIndex(0), shown: secret().question().to_vec() };
        let wrong = [
            PeerHello { shown: Vec::new(), ..right.clone() },
            PeerHello { shown: secret().answer().to_vec(), ..right.clone() },
            PeerHello { from: WorkerIndex(2), ..right.clone() },
            PeerHello { job: 8, ..right.clone() },
            PeerHello { generation: 2, ..right.clone() },
        ];
        let shows = async |hello: PeerHello| {
            let mut link = Link::to(&peers[0].address, None).await.unwrap();
            link.writing.send(&v1::PeerHello::from(hello)).await.unwrap();
            link.reading.next::<v1::PeerWelcome>().await
        };
        for hello in wrong {
            assert!(matches!(shows(hello.clone()).await, Err(LinkError::Closed)), "{hello:?}");
        }
        assert!(shows(right.clone()).await.is_ok());
        assert_eq!(arrivals.recv().await.unwrap().0, WorkerIndex(0));
        assert!(matches!(shows(right).await, Err(LinkError::Closed)), "a secret opens the door once");
    }

    /// Silent connections make room for others, and are closed after a short time.
    #[tokio::test]
    async fn silent_connections_keep_nobody_out() {
        let door = door().await;
        let peers = [peer(0, &door)];
        let _arrivals = door.await_peers(GENERATION, peers.iter());
        let mut silent = Vec::new();
        for _ in 0..UNPROVED.strangers {
            silent.push(Link::to(&peers[0].address, None).await.unwrap());
        }
        let hello = PeerHello { job: 7, generation: 3, from: WorkerIndex(0), shown: secret().question().to_vec() };
        let mut link = Link::to(&peers[0].address, None).await.unwrap();
        link.writing.send(&v1::PeerHello::from(hello)).await.unwrap();
        let began = Instant::now();
        assert!(link.reading.next::<v1::PeerWelcome>().await.is_ok());
        assert!(silent.remove(0).reading.next::<v1::PeerWelcome>().await.is_err(), "it made room");
        assert!(began.elapsed() < CONNECTED_WITHIN, "nobody has to wait for the end of their time");
        for mut link in silent {
            assert!(link.reading.next::<v1::PeerWelcome>().await.is_err(), "its time is over");
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_not_there_or_has_another_secret_is_named() {
        let doors = [door().await, door().await];
        let nobody = Peer { address: "127.0.0.1:1".parse().unwrap(), ..peer(1, &doors[1]) };
        let failed = doors[0].connect(WorkerIndex(0), GENERATION, &[nobody]).await.failed.remove(0);
        assert_eq!((failed.peer, failed.kind), (WorkerIndex(1), PeerFailure::Unreachable));
        assert!(failed.message.contains("127.0.0.1:1 within 2s"), "{}", failed.message);
        let failed = doors[1].connect(WorkerIndex(1), GENERATION, &[peer(0, &doors[0])]).await.failed.remove(0);
        assert!(failed.message.contains("worker 0 did not connect"), "{}", failed.message);
        let other = Peer { secret: Secret::of([9; 4]), ..peer(0, &doors[0]) };
        let peers = ([peer(1, &doors[1])], [other]);
        let (one, two) = tokio::join!(
            doors[0].connect(WorkerIndex(0), GENERATION, &peers.0),
            doors[1].connect(WorkerIndex(1), GENERATION, &peers.1)
        );
        assert!(one.links.is_empty() && two.links.is_empty());
    }

    /// The link to one peer opens although another one cannot be reached.
    #[tokio::test]
    async fn a_peer_that_is_not_there_does_not_close_the_link_to_another_one() {
        let doors = [door().await, door().await];
        let nobody = Peer { address: "127.0.0.1:1".parse().unwrap(), ..peer(2, &doors[1]) };
        let peers = ([peer(1, &doors[1]), nobody], [peer(0, &doors[0])]);
        let (one, two) = tokio::join!(
            doors[0].connect(WorkerIndex(0), GENERATION, &peers.0),
            doors[1].connect(WorkerIndex(1), GENERATION, &peers.1)
        );
        let reached = |opened: &Opened| opened.links.iter().map(|(peer, _)| peer.0).collect::<Vec<_>>();
        assert_eq!((reached(&one), reached(&two)), (vec![1], vec![0]));
        assert_eq!(one.failed.iter().map(|failed| failed.peer.0).collect::<Vec<_>>(), [2]);
    }

    #[tokio::test]
    async fn a_door_on_all_interfaces_says_the_one_that_leads_to_the_coordinator() {
        let door = Door::at(&"0.0.0.0:0".parse().unwrap(), None).await.unwrap();
        let address = door.address(&Place::Tcp("127.0.0.1:7878".parse().unwrap())).unwrap().to_string();
        assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{address}");
    }

    /// Each limit stands in docs/SECURITY.md.
    #[test]
    fn the_docs_say_every_limit() {
        let docs = include_str!("../../../docs/SECURITY.md");
        for (what, value) in [
            ("strangers at the address where a worker listens for others", UNPROVED.strangers.to_string()),
            ("what each of them has at least before it makes room", format!("{} ms", UNPROVED.grace.as_millis())),
            ("after this time, a stranger at that address is closed", format!("{} s", UNPROVED.patience.as_secs())),
        ] {
            assert!(docs.contains(&format!("| {what} | {value} |\n")), "docs/SECURITY.md lacks: | {what} | {value} |");
        }
    }
}
