//! Forms a cluster: opens the address, starts worker processes or waits for remote workers, until the plan has all its
//! workers.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use convoy_common::plan::Plan;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

use super::doors::{self, Listening};
use super::health::Vitals;
use super::local::{LocalPlan, LocalWorkers, SocketFolder};
use super::{Cluster, Elsewhere, Heard, LOOK_EVERY, Member, Message, receive};
use crate::error::JobError;
use crate::job::Running;
use crate::observe::{Event, Observer};
use crate::trace::{Clock, Recorder};

/// Workers that this process starts must connect within this.
const LOCAL_PATIENCE: Duration = Duration::from_secs(30);
/// The most workers that are reported as refused or as serving another coordinator.
const TOLD_MAX: usize = 64;
/// Remote workers must connect within this. The time starts again when a worker reports that it is busy with another job.
const REMOTE_PATIENCE: Duration = Duration::from_secs(600);

/// Forms a cluster with every worker of the plan: local processes, or remote workers if there is an address to listen on.
///
/// # Errors
/// When the address can't be bound, too few workers connect, or `stop` is set first.
pub fn form(
    job: u64,
    plan: Arc<Plan>,
    running: &Running,
    threads: usize,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Cluster, JobError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(JobError::Runtime)?;
    let unusable = |address: &str| {
        let address = address.to_owned();
        move |source| JobError::Listen { address, source }
    };
    let (address, folder) = match &running.listen {
        Some(address) => (address.clone(), None),
        None => {
            let folder = SocketFolder::create().map_err(unusable("a Unix socket in a temporary folder (TMPDIR)"))?;
            (folder.address(), Some(folder))
        }
    };
    let room = plan.workers;
    let opened = runtime.block_on(Listening::open(&address));
    let listening = opened.map_err(unusable(&address.to_string()))?;
    let address = listening.address().to_owned();
    // Only this user can enter the socket's folder, so it needs no token.
    let token = running.token.clone().filter(|_| folder.is_none());
    let vitals = Vitals::starting();
    let shown = vitals.clone();
    let clock = Clock::starting();
    let heard = runtime.block_on(async { doors::serve(listening, room, shown, token, clock) });
    let is_local = folder.is_some();
    let local = folder.map(|folder| {
        let plan = LocalPlan { program: running.local.clone(), workers: room, threads, isa: running.isa.clone() };
        LocalWorkers::start(&plan, folder)
    });
    let patience = if is_local { LOCAL_PATIENCE } else { REMOTE_PATIENCE };
    let address = dialled(&address);
    let formation = Formation {
        job,
        plan,
        heard,
        local: local.transpose()?,
        runtime,
        patience,
        vitals,
        clock,
        address: address.clone(),
    };
    formation.gather(stop, |news| match news {
        News::Have(_) if is_local => {}
        News::Have(have) => observer.on(Event::Waiting { address: address.clone(), have, want: room }),
        News::Elsewhere(Elsewhere { host, coordinator, model }) => {
            observer.on(Event::Elsewhere { host, coordinator, model })
        }
        News::Refused(address, reason) => observer.on(Event::Refused { address, reason }),
    })
}

/// What is reported while the coordinator waits for workers.
enum News {
    /// The number of connected workers.
    Have(usize),
    /// A worker serves another coordinator.
    Elsewhere(Elsewhere),
    /// A worker was refused: its address, and why.
    Refused(String, String),
}

/// An address that other machines can connect to. If every address of this machine is bound, that is the machine's name.
fn dialled(address: &str) -> String {
    match address.parse::<SocketAddr>() {
        Ok(socket) if socket.ip().is_unspecified() => {
            let name = rustix::system::uname();
            format!("{}:{}", name.nodename().to_string_lossy(), socket.port())
        }
        _ => address.to_owned(),
    }
}

/// The parts of a cluster, before all workers are there.
struct Formation {
    job: u64,
    plan: Arc<Plan>,
    heard: Receiver<Message>,
    local: Option<LocalWorkers>,
    runtime: Runtime,
    vitals: Vitals,
    clock: Clock,
    patience: Duration,
    /// Where workers connect to.
    address: String,
}

impl Formation {
    /// Waits until every worker of the plan is connected. `tell` gets the news.
    fn gather(mut self, stop: &AtomicBool, mut tell: impl FnMut(News)) -> Result<Cluster, JobError> {
        let (mut start, want) = (Instant::now(), self.plan.workers);
        let mut members: Vec<Member> = Vec::new();
        tell(News::Have(0));
        let (mut elsewhere, mut refused) = (Vec::new(), HashSet::new());
        while members.len() < want {
            if stop.load(Ordering::Relaxed) {
                return Err(JobError::Interrupted);
            }
            self.vitals.beat();
            match receive(&self.runtime, &mut self.heard, LOOK_EVERY) {
                Some((_, Heard::Joined(member))) => {
                    members.push(*member);
                    tell(News::Have(members.len()));
                }
                Some((session, Heard::Lost(_))) => {
                    let had = members.len();
                    members.retain(|member| member.session != session);
                    if members.len() < had {
                        tell(News::Have(members.len()));
                    }
                }
                Some((_, Heard::Elsewhere(worker))) => {
                    // Busy workers are worth waiting for until their job has ended.
                    if worker.model.is_some() {
                        start = Instant::now();
                    }
                    if elsewhere.len() < TOLD_MAX && !elsewhere.contains(&worker) {
                        elsewhere.push(worker.clone());
                        tell(News::Elsewhere(worker));
                    }
                }
                Some((_, Heard::Refused(address, reason))) => {
                    // Once per machine and reason, because workers try again, each time from another port.
                    let machine = address.rsplit_once(':').map_or(address.clone(), |(machine, _)| machine.to_owned());
                    if refused.len() < TOLD_MAX && refused.insert((machine, reason.clone())) {
                        tell(News::Refused(address, reason));
                    }
                }
                Some(_) => {}
                None => {
                    if let Some(local) = &mut self.local {
                        local.check_alive()?;
                    }
                }
            }
            if start.elapsed() > self.patience {
                let (have, seconds, address) = (members.len(), self.patience.as_secs(), self.address);
                return Err(JobError::TooFewWorkers { have, want, seconds, address });
            }
        }
        if let Some(local) = &mut self.local {
            // Processes are numbered in the order of their start, not of their connecting.
            members.sort_by_key(|member| local.position_of(member.hello.process_id));
            local.all_have_come();
        }
        self.vitals.set_ready();
        let state_bytes = vec![0; want];
        Ok(Cluster {
            job: self.job,
            plan: self.plan,
            members,
            heard: self.heard,
            local: self.local,
            state_bytes,
            runtime: self.runtime,
            vitals: self.vitals,
            leaving: None,
            failed: HashSet::new(),
            recorder: Recorder::off(self.clock),
        })
    }
}
