//! The gRPC service that workers connect to, on TCP or on a Unix socket. It checks tokens and protocol versions, pairs a
//! worker's two connections, and forwards messages. It admits the workers that the job needs, and some spares.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use convoy_common::chain::{chain, with_causes};
use convoy_common::token::Token;
use convoy_common::wire::WireError;
use convoy_common::wire::{
    FRAME_BYTES_MAX, FromWorker, Hello, Numbered, ToWorker, chunk_from_frame, description_from, name_from,
    session_from_frame, tuning,
};
use convoy_net::grpc;
use convoy_net::listening::Listening;
use convoy_net::reception::{LIMITS, Reception, Visit};
use convoy_net::secrets::Secrets;
use convoy_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use convoy_proto::{PROTOCOL_VERSION, v1};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, WeakSender, channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status, Streaming};

use super::health::{Vitals, watch};
use super::member::{Elsewhere, Heard, Lease, Member, Report};
use crate::deadlines::Deadlines;
use crate::silence::Quiet;
use crate::trace::Clock;
use crate::unguessable::unguessable;

/// Frames that may be queued for one worker's socket.
const FRAMES_QUEUED: usize = 64;
/// Orders that may be queued for one worker's socket.
const ORDERS_QUEUED: usize = 32;
/// Messages of all workers that may be queued for the coordinator.
const MESSAGES_QUEUED: usize = 256;
/// The most workers without a seat.
const SPARES_MAX: usize = 16;
/// If all places are taken, a worker whose second connection has not come within this loses its place to the next one.
const PAIRING_MIN: Duration = Duration::from_secs(1);
/// A worker that has connected must send Hello within this.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// Serves on `listening` until the returned task is aborted. What workers do and say comes out of the receiver.
///
/// Workers without the secrets are refused. `seats` workers and some spares are admitted; others are told to
/// try again later. A connection whose other end does not answer pings within [`Deadlines::connection`] is closed.
pub fn serve(
    listening: Listening,
    seats: usize,
    vitals: Vitals,
    secrets: Secrets,
    clock: Clock,
    deadlines: Deadlines,
) -> (Doors, Receiver<Report>, JoinHandle<()>) {
    let Secrets { token, tls } = secrets;
    let (heard, messages) = channel(MESSAGES_QUEUED);
    let refusals = heard.clone();
    let ping_timeout = deadlines.connection;
    let doors = Doors { heard, clock, ping_timeout, seats, requires_token: token.is_some(), sessions: Arc::default() };
    let service = CoordinatorServer::new(doors.clone()).max_decoding_message_size(FRAME_BYTES_MAX);
    let service = InterceptedService::new(service, move |request: Request<()>| {
        let checked = check_token(token.as_ref(), request.metadata());
        checked.inspect_err(|status| tell_of_refusal(&refusals, peer(&request), status)).map(|()| request)
    });
    let (reporter, health) = grpc::health();
    tokio::spawn(watch(reporter, vitals, deadlines.progress));
    let router = grpc::server()
        .initial_stream_window_size(tuning::STREAM_WINDOW)
        .initial_connection_window_size(tuning::CONNECTION_WINDOW)
        .max_frame_size(tuning::FRAME)
        .http2_keepalive_interval(Some(tuning::PING_EVERY))
        .http2_keepalive_timeout(Some(ping_timeout))
        .add_service(service)
        .add_service(health);
    let guests = listening.guests(Reception::new("for workers", LIMITS), tls.as_ref());
    let serving = tokio::spawn(async move {
        if let Err(error) = router.serve_with_incoming(guests).await {
            tracing::error!("the coordinator no longer accepts workers: {}", chain(&error));
        }
    });
    (doors, messages, serving)
}

/// The doors of a cluster: who has been let in.
#[derive(Clone)]
pub struct Doors {
    heard: Sender<Report>,
    clock: Clock,
    ping_timeout: Duration,
    /// Number of workers that the job needs.
    seats: usize,
    requires_token: bool,
    // A std mutex, because it is never held across an await.
    sessions: Arc<Sessions>,
}

/// Sessions by number. None once both connections of the worker are there.
type Sessions = Mutex<HashMap<u64, Option<Arrival>>>;

/// A worker whose tensor connection isn't there yet.
struct Arrival {
    hello: Hello,
    address: String,
    control: Sender<v1::ToWorker>,
    lease: Lease,
    since: Instant,
}

type Replies<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Doors {
    type ControlStream = Replies<v1::ToWorker>;
    type TensorsStream = Replies<v1::Frame>;

    async fn control(
        &self,
        request: Request<Streaming<v1::FromWorker>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let visit = visit(&request)?;
        let address = visit.peer();
        let mut messages = request.into_inner();
        let hello = greeting(&mut messages).await?;
        check_version(&hello).inspect_err(|status| tell_of_refusal(&self.heard, address.clone(), status))?;
        let (control, orders) = channel(ORDERS_QUEUED);
        // A connection that was closed meanwhile gets no place.
        let proof = visit.prove().ok_or_else(closed_meanwhile)?;
        let (lease, mut end) = Lease::new();
        let since = Instant::now();
        let session = self.let_in(Arrival { hello, address, control: control.clone(), lease, since })?;
        let message = ToWorker::Welcome { session, requires_token: self.requires_token };
        // The queue is empty.
        let _ = control.try_send(Numbered { generation: 0, message }.into());
        let (heard, sessions, clock) = (self.heard.clone(), self.sessions.clone(), self.clock);
        let ping_timeout = self.ping_timeout;
        tokio::spawn(give_up_unless_paired(session, sessions.clone()));
        tokio::spawn(keep_in_touch(control.downgrade(), clock));
        tokio::spawn(async move {
            let why = tokio::select! {
                why = listen(&mut messages, session, &heard, clock) => {
                    Some(why.unwrap_or_else(|| closed("control", ping_timeout)))
                }
                () = end.comes() => None,
            };
            drop(proof);
            sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
            if let Some(why) = why {
                // The coordinator may have ended already.
                let _ = heard.send(Report::Heard(session, Heard::Lost(why))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(orders).map(Ok))))
    }

    async fn tensors(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Self::TensorsStream>, Status> {
        let visit = visit(&request)?;
        let mut incoming = request.into_inner();
        let first = timeout(GREETING_MAX, incoming.message()).await.map_err(|_| late())??;
        let first =
            first.ok_or_else(|| Status::invalid_argument("the tensor connection closed before its first frame"))?;
        let session = session_from_frame(first).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (frames, outgoing) = channel(FRAMES_QUEUED);
        let proof = visit.prove().ok_or_else(closed_meanwhile)?;
        let member = self.pair(session, frames)?;
        let (may_send, mut end) = (member.may_send.clone(), member.lease.end());
        let (heard, clock, ping_timeout) = (self.heard.clone(), self.clock, self.ping_timeout);
        tokio::spawn(async move {
            if heard.send(Report::Joined(Box::new(member))).await.is_err() {
                return;
            }
            let why = tokio::select! {
                why = pass_on(&mut incoming, session, &may_send, &heard, clock) => why,
                () = end.comes() => return,
            };
            let why = why.unwrap_or_else(|| closed("tensor", ping_timeout));
            drop(proof);
            let _ = heard.send(Report::Heard(session, Heard::Lost(why))).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing).map(Ok))))
    }

    async fn elsewhere(&self, request: Request<v1::WorkerElsewhere>) -> Result<Response<v1::ElsewhereAnswer>, Status> {
        let v1::WorkerElsewhere { host, coordinator, model, session } = request.into_inner();
        let model = Some(name_from(&model)).filter(|model| !model.is_empty());
        let said = Elsewhere { host: name_from(&host), coordinator: name_from(&coordinator), model };
        let wanted = {
            let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.len() < self.seats && !sessions.contains_key(&session)
        };
        if wanted {
            tell_people(&self.heard, Report::Elsewhere(said));
        }
        Ok(Response::new(v1::ElsewhereAnswer { wanted }))
    }
}

impl Doors {
    /// Frees the place of a worker that was given up.
    pub(super) fn forget(&self, session: u64) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }

    fn let_in(&self, arrival: Arrival) -> Result<u64, Status> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= self.seats + SPARES_MAX {
            free_a_place(&mut sessions);
        }
        if sessions.len() >= self.seats + SPARES_MAX {
            let text =
                format!("the job already has its {} workers and {SPARES_MAX} spares; try again later", self.seats);
            return Err(Status::unavailable(text));
        }
        let session = loop {
            let number = unguessable();
            if number != 0 && !sessions.contains_key(&number) {
                break number;
            }
        };
        sessions.insert(session, Some(arrival));
        Ok(session)
    }

    fn pair(&self, session: u64, frames: Sender<v1::Frame>) -> Result<Member, Status> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let arrival = sessions.get_mut(&session).and_then(Option::take);
        let arrival =
            arrival.ok_or_else(|| Status::invalid_argument("the tensor connection names an unknown session"))?;
        let Arrival { hello, address, control, lease, .. } = arrival;
        let quiet = Quiet::default();
        let (is_leaving, is_spare, has_failed, relayed) = (false, false, false, Vec::new());
        let may_send = Arc::default();
        Ok(Member {
            session,
            hello,
            address,
            control,
            frames,
            is_leaving,
            is_spare,
            quiet,
            has_failed,
            relayed,
            may_send,
            lease,
        })
    }
}

/// Frees the place of the worker that has been without its second connection for the longest time, unless it has just come.
fn free_a_place(sessions: &mut HashMap<u64, Option<Arrival>>) {
    let arrivals = sessions.iter().filter_map(|(session, arrival)| Some((*session, arrival.as_ref()?.since)));
    let oldest = arrivals.min_by_key(|(_, since)| *since).filter(|(_, since)| since.elapsed() >= PAIRING_MIN);
    oldest.map(|(session, _)| sessions.remove(&session));
}

/// Frees the place of a worker whose second connection doesn't come in time.
async fn give_up_unless_paired(session: u64, sessions: Arc<Sessions>) {
    tokio::time::sleep(GREETING_MAX).await;
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(sessions.get(&session), Some(Some(_))) {
        sessions.remove(&session);
    }
}

/// Sends a worker a message from time to time, whatever the job does. A worker leaves a coordinator that sends nothing.
async fn keep_in_touch(orders: WeakSender<v1::ToWorker>, clock: Clock) {
    loop {
        tokio::time::sleep(tuning::MESSAGE_EVERY).await;
        let Some(orders) = orders.upgrade() else { return };
        // A full queue holds other messages.
        let ping = Numbered { generation: 0, message: ToWorker::Ping { sent: clock.now() } };
        if let Err(TrySendError::Closed(_)) = orders.try_send(ping.into()) {
            return;
        }
    }
}

async fn greeting(messages: &mut Streaming<v1::FromWorker>) -> Result<Hello, Status> {
    let first = timeout(GREETING_MAX, messages.message()).await.map_err(|_| late())??;
    let first = first.ok_or_else(|| Status::invalid_argument("the worker closed the connection before Hello"))?;
    let first: Numbered<FromWorker> =
        first.try_into().map_err(|error: WireError| Status::invalid_argument(error.to_string()))?;
    match first.message {
        FromWorker::Hello(hello) => Ok(hello),
        _ => Err(Status::invalid_argument("a worker's first message must be Hello")),
    }
}

/// Reports a refusal.
fn tell_of_refusal(heard: &Sender<Report>, address: String, status: &Status) {
    tell_people(heard, Report::Refused(address, status.message().to_owned()));
}

/// Reports what is only for people. It must leave room in the queue for what workers say, so it may be dropped.
fn tell_people(heard: &Sender<Report>, report: Report) {
    if heard.capacity() > MESSAGES_QUEUED / 2 {
        let _ = heard.try_send(report);
    }
}

/// Without a token, every worker may connect.
fn check_token(token: Option<&Token>, headers: &MetadataMap) -> Result<(), Status> {
    let said = headers.get("authorization").map_or(&b""[..], |header| header.as_bytes());
    match token {
        Some(_) if said.is_empty() => Err(Status::unauthenticated("the coordinator requires a token (--token-file)")),
        Some(token) if !token.is_carried_by(said) => {
            Err(Status::unauthenticated("the worker's token differs from the coordinator's (--token-file)"))
        }
        _ => Ok(()),
    }
}

/// A worker with another protocol version would misread messages, so it is refused for good.
fn check_version(hello: &Hello) -> Result<(), Status> {
    if hello.protocol_version == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "the worker has protocol version {} (convoy {}), and the coordinator has version {PROTOCOL_VERSION} (convoy {}); \
         use the same version of the program for both",
        hello.protocol_version,
        hello.convoy_version,
        env!("CARGO_PKG_VERSION"),
    )))
}

/// Forwards a worker's control messages until the connection ends. Returns why it ended; None if it was closed.
async fn listen(
    messages: &mut Streaming<v1::FromWorker>,
    session: u64,
    heard: &Sender<Report>,
    clock: Clock,
) -> Option<String> {
    loop {
        let received = messages.message().await;
        let at = clock.now();
        let message = match received {
            Ok(message) => Numbered::try_from(message?),
            Err(status) => return Some(broken("control", &status)),
        };
        let said = match message {
            Ok(message) => Heard::Said(message, at),
            Err(error) => return Some(error.to_string()),
        };
        if heard.send(Report::Heard(session, said)).await.is_err() {
            return Some("the coordinator has ended".to_owned());
        }
    }
}

/// Forwards a worker's tensors until the connection ends. Returns why it ended; None if it was closed.
async fn pass_on(
    incoming: &mut Streaming<v1::Frame>,
    session: u64,
    may_send: &AtomicBool,
    heard: &Sender<Report>,
    clock: Clock,
) -> Option<String> {
    loop {
        let received = incoming.message().await;
        let at = clock.now();
        let chunk = match received {
            Ok(frame) => chunk_from_frame(frame?),
            Err(status) => return Some(broken("tensor", &status)),
        };
        if !may_send.load(Ordering::Relaxed) {
            return Some("it sent a tensor before it was assigned to the job".to_owned());
        }
        let sent = match chunk {
            Ok(chunk) => Heard::Chunk(chunk, at),
            Err(error) => return Some(error.to_string()),
        };
        if heard.send(Report::Heard(session, sent)).await.is_err() {
            return Some("the coordinator has ended".to_owned());
        }
    }
}

/// A connection that broke. The reason is for those who look into the log: for everybody else, the worker is gone, unless it sent too much.
fn broken(which: &str, status: &Status) -> String {
    let reason = description_from(&with_causes(status.message(), status));
    tracing::info!("a worker's {which} connection broke: {reason}");
    match status.code() {
        Code::OutOfRange => format!("its {which} connection broke: {reason}"),
        _ => format!("its {which} connection broke"),
    }
}

/// A connection whose other end does not answer pings ends in the same way as one that it has closed.
fn closed(which: &str, ping_timeout: Duration) -> String {
    format!("its {which} connection closed: the worker ended, or did not answer pings for {ping_timeout:?}")
}

fn late() -> Status {
    Status::deadline_exceeded(format!("the connection sent nothing within {GREETING_MAX:?}"))
}

fn closed_meanwhile() -> Status {
    Status::unavailable("this connection took too long to introduce itself, and was closed")
}

fn peer<T>(request: &Request<T>) -> String {
    request.extensions().get::<Visit>().map_or_else(|| "an unknown address".to_owned(), Visit::peer)
}

/// The connection of a request. Every connection has been let in by the reception.
fn visit<T>(request: &Request<T>) -> Result<Visit, Status> {
    request.extensions().get::<Visit>().cloned().ok_or_else(|| Status::internal("the connection is unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each limit stands in docs/SECURITY.md.
    #[test]
    fn the_docs_say_every_limit() {
        let docs = include_str!("../../../docs/SECURITY.md");
        for (what, value) in [
            ("a message to the coordinator", format!("{FRAME_BYTES_MAX} bytes")),
            ("workers without a seat", SPARES_MAX.to_string()),
            ("a connected worker must open its second connection within", format!("{} s", GREETING_MAX.as_secs())),
            (
                "if all places are taken, after this time it makes room for the next worker",
                format!("{} s", PAIRING_MIN.as_secs()),
            ),
        ] {
            assert!(docs.contains(&format!("| {what} | {value} |\n")), "docs/SECURITY.md lacks: | {what} | {value} |");
        }
    }
}
