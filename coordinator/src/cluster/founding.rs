//! How a cluster comes to be: doors are opened, processes of our own are started or others waited for, until every worker
//! of the plan is there.

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

/// Our own processes come within this.
const LOCAL_PATIENCE: Duration = Duration::from_secs(30);
/// So many workers that serve others, or are refused, are spoken of.
const TOLD_MAX: usize = 64;
/// Workers that are started by others come within this, or within this of the last sign of those that serve another job.
const REMOTE_PATIENCE: Duration = Duration::from_secs(600);

/// A cluster with every worker of the plan: our own processes, or those that dial in.
///
/// # Errors
/// When the address can't be listened on, too few workers come, or `stop` is set first.
pub fn found(
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
            let folder = SocketFolder::create().map_err(unusable("a Unix socket in the system's temporary folder"))?;
            (folder.address(), Some(folder))
        }
    };
    let room = plan.workers;
    let opened = runtime.block_on(Listening::open(&address));
    let listening = opened.map_err(unusable(&address.to_string()))?;
    let address = listening.address().to_owned();
    // Nobody else can enter the folder of the socket.
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
    let founding = Founding {
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
    founding.gather(stop, |news| match news {
        News::Have(_) if is_local => {}
        News::Have(have) => observer.on(Event::Waiting { address: address.clone(), have, want: room }),
        News::Elsewhere(Elsewhere { host, coordinator, model }) => {
            observer.on(Event::Elsewhere { host, coordinator, model })
        }
        News::Refused(address, reason) => observer.on(Event::Refused { address, reason }),
    })
}

/// What is to be told while workers are waited for.
enum News {
    /// So many have come.
    Have(usize),
    /// One can't be had.
    Elsewhere(Elsewhere),
    /// One from this address was refused, and why.
    Refused(String, String),
}

/// An address as others may dial it: where every address of this machine is listened on, its name stands for them.
fn dialled(address: &str) -> String {
    match address.parse::<SocketAddr>() {
        Ok(socket) if socket.ip().is_unspecified() => {
            let name = rustix::system::uname();
            format!("{}:{}", name.nodename().to_string_lossy(), socket.port())
        }
        _ => address.to_owned(),
    }
}

/// What a cluster is made of, before all have come.
struct Founding {
    job: u64,
    plan: Arc<Plan>,
    heard: Receiver<Message>,
    local: Option<LocalWorkers>,
    runtime: Runtime,
    vitals: Vitals,
    clock: Clock,
    patience: Duration,
    /// Where workers dial.
    address: String,
}

impl Founding {
    /// Waits until every worker of the plan has come; `tell` hears how many have.
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
                    // Workers that are there and busy are worth waiting for, until their job has ended.
                    if worker.model.is_some() {
                        start = Instant::now();
                    }
                    if elsewhere.len() < TOLD_MAX && !elsewhere.contains(&worker) {
                        elsewhere.push(worker.clone());
                        tell(News::Elsewhere(worker));
                    }
                }
                Some((_, Heard::Refused(address, reason))) => {
                    // Once a machine and reason: they try again, from another port each time.
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
            // Processes are numbered as they were started, whoever was the first to dial.
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
