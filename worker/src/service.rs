//! The worker process: it connects to a coordinator, holds towers for one job after another, and stops on request.
//! The compute thread computes; the network thread handles the network. They exchange messages over two queues, and share nothing else but
//! counters and signs of life.
//!
//! Not here: what is computed (`engine`), and decisions, which the coordinator makes.

mod compute;
mod config;
mod connection;
mod elsewhere;
mod health;
mod link;
mod links;
mod peers;
mod session;

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::chain::chain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::probe::Clock;
use crate::vitals::Vitals;
use config::Presence;
pub use config::WorkerConfig;
use convoy_kernels::Compute;
use convoy_kernels::isa::Isa;
use peers::Door;
use session::{Session, SessionError};

/// Pauses between two attempts to reach a coordinator, doubled from the first to the last. The first one is short, because the next run of a
/// study soon follows the last one.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a worker looks whether its compute thread has dropped an earlier job.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A worker does not log why it has no job until its pauses are this long. A worker that is stopped together with its coordinator ends before.
const PAUSE_WITH_COMPLAINT: Duration = Duration::from_millis(80);
/// A worker logs once why it has no job, and repeats an unchanged reason after this time.
const COMPLAINT_EVERY: Duration = Duration::from_secs(600);

/// After this time, a worker without a job complains about a compute thread that is still busy.
const HANGS_AFTER: Duration = Duration::from_secs(30);

/// A worker that is asked to stop during a job waits for a checkpoint, but no longer than this.
const LEAVE_MAX: Duration = Duration::from_secs(45);

/// Shells and supervisors may signal a process and then its group. Signals that are closer together count as one.
const ECHO: Duration = Duration::from_millis(200);

/// Why a worker process fails.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum WorkerError {
    /// The compute threads could not be started.
    #[error("cannot start {threads} compute threads")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
    /// The network thread could not be started.
    #[error("cannot start the worker's network thread")]
    Runtime(#[source] std::io::Error),
    /// The address for health checks could not be used.
    #[error("cannot serve health checks at {address}")]
    Health { address: Address, source: std::io::Error },
    /// The address for other workers could not be used.
    #[error("cannot listen for other workers at {address}")]
    Exchange { address: Address, source: std::io::Error },
    /// The coordinator refuses this worker permanently.
    #[error("the coordinator at {address} refuses this worker: {reason}")]
    Refused { address: String, reason: String },
    /// A thread panicked: a bug.
    #[error("the worker's network thread panicked")]
    Panicked,
}

/// Serves jobs until `stop_requested` completes. During a job it then waits until the coordinator has written a checkpoint and lets it
/// go, up to 45 seconds, or until `stop_requested` completes a second time.
///
/// # Errors
/// When threads cannot be started, or the coordinator refuses this worker permanently.
pub fn run<F>(config: &WorkerConfig, stop_requested: impl Fn() -> F + Send + 'static) -> Result<(), WorkerError>
where
    F: Future<Output = ()> + Send,
{
    let threads = config.threads;
    let compute = Compute::new(threads, config.isa.unwrap_or_else(Isa::detect))
        .map_err(|source| WorkerError::Threads { threads, source })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerError::Runtime)?;
    let (messages, inbox) = mpsc::channel();
    let isa = compute.isa;
    let (config, vitals) = (config.clone(), Vitals::new());
    let metrics = config.metrics.clone();
    let shown = vitals.clone();
    let network = thread::Builder::new().name("network".to_owned()).spawn(move || {
        let ended = runtime.block_on(async {
            if let Some(address) = &config.health {
                let wrong = |source| WorkerError::Health { address: address.clone(), source };
                health::serve(address, config.secrets.tls.as_ref(), shown.clone()).await.map_err(wrong)?;
            }
            let door = match &config.exchange_listen {
                None => None,
                Some(address) => {
                    let wrong = |source| WorkerError::Exchange { address: address.clone(), source };
                    Some(Door::at(address, config.secrets.tls.clone()).await.map_err(wrong)?)
                }
            };
            let presence = Presence {
                clock: Clock::starting(config.rehearsal.clock_ahead),
                door,
                vitals: shown,
                in_job: watch::Sender::new(false),
                leaving: watch::Sender::new(false),
            };
            serve_until(&config, isa, messages, &presence, stop_requested).await
        });
        // A name lookup in progress cannot be cancelled, and its result is no longer needed.
        runtime.shutdown_background();
        ended
    });
    compute::serve(&compute, &inbox, &vitals, &metrics);
    network.map_err(WorkerError::Runtime)?.join().map_err(|_| WorkerError::Panicked)?
}

async fn serve_until<F: Future<Output = ()>>(
    config: &WorkerConfig,
    isa: Isa,
    messages: mpsc::Sender<compute::Message>,
    presence: &Presence,
    stop_requested: impl Fn() -> F,
) -> Result<(), WorkerError> {
    let mut serving = pin!(serve(config, isa, messages, presence));
    tokio::select! {
        () = stop_requested() => {}
        result = &mut serving => return result,
    }
    if *presence.in_job.borrow() {
        tracing::info!("stopping after the checkpoint, in {} s at the latest", LEAVE_MAX.as_secs());
    }
    presence.leaving.send_replace(true);
    let mut in_job = presence.in_job.subscribe();
    tokio::select! {
        _ = in_job.wait_for(|in_job| !in_job) => Ok(()),
        () = sleep(LEAVE_MAX) => Ok(()),
        () = async { sleep(ECHO).await; stop_requested().await } => Ok(()),
        result = &mut serving => result,
    }
}

/// Waits until the compute thread has dropped an earlier job. A worker whose computation hangs would only hinder the next one.
async fn until_idle(vitals: &Vitals) {
    let mut complained = false;
    while !vitals.busy_for().is_zero() {
        if vitals.busy_for() > HANGS_AFTER && !std::mem::replace(&mut complained, true) {
            tracing::warn!(
                "this worker cannot join a job: its compute thread is still busy with an earlier job, after {HANGS_AFTER:?}"
            );
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Runs one session after another, with pauses while no coordinator is reachable.
async fn serve(
    config: &WorkerConfig,
    isa: Isa,
    messages: mpsc::Sender<compute::Message>,
    presence: &Presence,
) -> Result<(), WorkerError> {
    let (mut pause, mut complained) = (PAUSE_MIN, None::<(Instant, String)>);
    // The first of several reasons that come too soon after each other to be logged.
    let mut unsaid = None::<String>;
    loop {
        until_idle(&presence.vitals).await;
        let began = Instant::now();
        let ended = Session::run(config, isa, &messages, presence).await;
        let lasted = began.elapsed() > PAUSE_MAX;
        match ended {
            Ok(served) => {
                if served || lasted {
                    (pause, complained, unsaid) = (PAUSE_MIN, None, None);
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(SessionError::Refused { reason }) => {
                let addresses: Vec<String> = config.join.iter().map(Address::to_string).collect();
                return Err(WorkerError::Refused { address: addresses.join(" or "), reason });
            }
            Err(error) => {
                if error.was_in_a_job() {
                    (pause, complained, unsaid) = (PAUSE_WITH_COMPLAINT, None, None);
                }
                sleep(pause).await;
                let is_brief = pause < PAUSE_WITH_COMPLAINT;
                pause = (pause * 2).min(PAUSE_MAX);
                let reason = unsaid.take().unwrap_or_else(|| chain(&error));
                if is_brief {
                    unsaid = Some(reason);
                    continue;
                }
                let complaint = reason;
                if complained.as_ref().is_none_or(|(at, last)| *last != complaint || at.elapsed() > COMPLAINT_EVERY) {
                    tracing::warn!("{complaint}; retrying");
                    complained = Some((Instant::now(), complaint));
                }
            }
        }
    }
}
