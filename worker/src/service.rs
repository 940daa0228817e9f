//! The worker as a process: it dials a coordinator, holds towers for one job after another, and leaves when told to.
//! The calling thread computes; another one talks. They share two queues and nothing else.
//!
//! Not here: what is computed (`engine`), and anything that decides.

mod compute;
mod connection;
mod elsewhere;
mod health;
mod session;

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::chain::chain;
use convoy_common::token::Token;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::kernels::Compute;
use crate::kernels::isa::Isa;
use crate::metrics::Metrics;
use crate::probe::{Clock, Slow};
use health::Vitals;
use session::{Session, SessionError};

/// Pauses between two tries to find a coordinator: doubled from the first to the last.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// What keeps a worker from a job is said once, and again after so long if it is still the same.
const COMPLAINT_EVERY: Duration = Duration::from_secs(600);

/// A worker that is told to leave in the middle of a job says so, and stays for so long: time for a checkpoint.
const LEAVE_MAX: Duration = Duration::from_secs(45);

/// Shells and supervisors may signal a process and then its group: what comes closer together is one wish.
const ECHO: Duration = Duration::from_millis(200);

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where the coordinator is.
    pub join: Address,
    /// Threads of the compute pool, at least 1.
    pub threads: usize,
    /// What the kernels use; the best that the machine has where nothing is said.
    pub isa: Option<Isa>,
    /// What the coordinator wants to hear, if anything.
    pub token: Option<Token>,
    /// Where to answer health checks, if anywhere.
    pub health: Option<Address>,
    /// What is to go wrong on purpose.
    pub rehearsal: Rehearsal,
    /// What is counted meanwhile.
    pub metrics: Metrics,
}

/// What is to go wrong on purpose, to see whether a trace finds it.
#[derive(Clone, Debug, Default)]
pub struct Rehearsal {
    /// A layer that takes longer than it must.
    pub slow: Option<Slow>,
    /// How far this worker's clock is ahead of its own start.
    pub clock_ahead: Duration,
}

/// Why a worker ends with an error.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum WorkerError {
    /// The system gives no threads.
    #[error("start {threads} compute threads")]
    Threads {
        threads: usize,
        source: rayon::ThreadPoolBuildError,
    },
    /// The system gives no runtime.
    #[error("start the worker's network thread")]
    Runtime(#[source] std::io::Error),
    /// Health checks can't be answered.
    #[error("answer health checks at {address}")]
    Health {
        address: Address,
        source: std::io::Error,
    },
    /// The coordinator will never take this worker.
    #[error("the coordinator at {address} refuses this worker: {reason}")]
    Refused {
        address: Address,
        reason: String,
    },
    /// A thread panicked: a bug.
    #[error("the worker's network thread panicked")]
    Panicked,
}

/// What all sessions of a worker share, and the rest of it may know of the one at hand.
#[derive(Debug)]
struct Presence {
    clock: Clock,
    /// Whether there is a job.
    in_job: watch::Sender<bool>,
    /// Whether this worker was told to leave.
    leaving: watch::Sender<bool>,
}

/// Serves jobs until `told_to_leave` is done; in the middle of a job until that has ended, but not for ever, and not once
/// `told_to_leave` is done a second time.
///
/// # Errors
/// When threads can't be had, or the coordinator refuses for good.
pub fn run<F>(config: &WorkerConfig, told_to_leave: impl Fn() -> F + Send + 'static) -> Result<(), WorkerError>
where
    F: Future<Output = ()> + Send,
{
    let threads = config.threads;
    let compute = Compute::new(threads, config.isa.unwrap_or_else(Isa::detect))
        .map_err(|source| WorkerError::Threads { threads, source })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerError::Runtime)?;
    let (commands, inbox) = mpsc::channel();
    let isa = compute.isa;
    let (config, vitals) = (config.clone(), Vitals::new());
    let metrics = config.metrics.clone();
    let shown = vitals.clone();
    let network = thread::Builder::new().name("network".to_owned()).spawn(move || {
        let ended = runtime.block_on(async {
            if let Some(address) = &config.health {
                let wrong = |source| WorkerError::Health { address: address.clone(), source };
                health::serve(address, shown).await.map_err(wrong)?;
            }
            serve_until(&config, isa, commands, told_to_leave).await
        });
        // A name that is being looked up by the system can't be called off, and nobody needs it any more.
        runtime.shutdown_background();
        ended
    });
    compute::serve(&compute, &inbox, &vitals, &metrics);
    network.map_err(WorkerError::Runtime)?.join().map_err(|_| WorkerError::Panicked)?
}

async fn serve_until<F: Future<Output = ()>>(
    config: &WorkerConfig,
    isa: Isa,
    commands: mpsc::Sender<compute::Command>,
    told_to_leave: impl Fn() -> F,
) -> Result<(), WorkerError> {
    let clock = Clock::starting(config.rehearsal.clock_ahead);
    let presence = Presence { clock, in_job: watch::Sender::new(false), leaving: watch::Sender::new(false) };
    let mut serving = pin!(serve(config, isa, commands, &presence));
    tokio::select! {
        () = told_to_leave() => {}
        result = &mut serving => return result,
    }
    if *presence.in_job.borrow() {
        tracing::info!("told to leave: in {} s at the latest, for a checkpoint", LEAVE_MAX.as_secs());
    }
    presence.leaving.send_replace(true);
    let mut in_job = presence.in_job.subscribe();
    tokio::select! {
        _ = in_job.wait_for(|in_job| !in_job) => Ok(()),
        () = sleep(LEAVE_MAX) => Ok(()),
        () = async { sleep(ECHO).await; told_to_leave().await } => Ok(()),
        result = &mut serving => result,
    }
}

/// One session after another, with pauses while no coordinator is there.
async fn serve(
    config: &WorkerConfig,
    isa: Isa,
    commands: mpsc::Sender<compute::Command>,
    presence: &Presence,
) -> Result<(), WorkerError> {
    let (mut pause, mut complained) = (PAUSE_MIN, None::<(Instant, String)>);
    loop {
        match Session::run(config, isa, &commands, presence).await {
            Ok(()) => {
                (pause, complained) = (PAUSE_MIN, None);
                sleep(pause).await;
            }
            Err(SessionError::Refused { reason }) => {
                return Err(WorkerError::Refused { address: config.join.clone(), reason });
            }
            Err(error) => {
                if error.was_in_a_job() {
                    (pause, complained) = (PAUSE_MIN, None);
                }
                // The pause before the next try comes first: a worker that ends with its coordinator is gone before it is
                // over, and has nothing to complain of.
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
                let complaint = chain(&error);
                if complained.as_ref().is_none_or(|(at, last)| *last != complaint || at.elapsed() > COMPLAINT_EVERY) {
                    tracing::warn!("{complaint}; trying again");
                    complained = Some((Instant::now(), complaint));
                }
            }
        }
    }
}
