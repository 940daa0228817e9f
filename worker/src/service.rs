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
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::chain::chain;
use convoy_common::token::Token;
use tokio::time::{Instant, sleep};

use crate::kernels::Compute;
use crate::kernels::isa::Isa;
use health::Vitals;
use session::{Session, SessionError};

/// Pauses between two tries to find a coordinator: doubled from the first to the last.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A coordinator that stays away is spoken of once in so long.
const COMPLAINT_EVERY: Duration = Duration::from_secs(30);

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where the coordinator is.
    pub join: Address,
    /// Threads of the compute pool, at least 1.
    pub threads: usize,
    /// What the coordinator wants to hear, if anything.
    pub token: Option<Token>,
    /// Where to answer health checks, if anywhere.
    pub health: Option<Address>,
}

/// Why a worker ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The system gives no threads.
    #[error("start {threads} compute threads")]
    Threads {
        /// As asked for.
        threads: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
    /// The system gives no runtime.
    #[error("start the worker's network thread")]
    Runtime(#[source] std::io::Error),
    /// Health checks can't be answered.
    #[error("answer health checks at {address}")]
    Health {
        /// Where.
        address: Address,
        /// Why.
        source: std::io::Error,
    },
    /// The coordinator will never take this worker.
    #[error("the coordinator at {address} refuses this worker: {reason}")]
    Refused {
        /// Where.
        address: Address,
        /// As it said.
        reason: String,
    },
    /// A thread panicked: a bug.
    #[error("the worker's network thread panicked")]
    Panicked,
}

/// Serves jobs until `shutdown` is done.
///
/// # Errors
/// When threads can't be had, or the coordinator refuses for good.
pub fn run(config: &WorkerConfig, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), WorkerError> {
    let threads = config.threads;
    let compute = Compute::new(threads, Isa::detect()).map_err(|source| WorkerError::Threads { threads, source })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerError::Runtime)?;
    let (commands, inbox) = mpsc::channel();
    let isa = compute.isa;
    let (config, vitals) = (config.clone(), Vitals::new());
    let shown = vitals.clone();
    let network = thread::Builder::new().name("network".to_owned()).spawn(move || {
        runtime.block_on(async {
            if let Some(address) = &config.health {
                let wrong = |source| WorkerError::Health { address: address.clone(), source };
                health::serve(address, shown).await.map_err(wrong)?;
            }
            tokio::select! {
                () = shutdown => Ok(()),
                result = serve(&config, isa, commands) => result,
            }
        })
    });
    compute::serve(&compute, &inbox, &vitals);
    network.map_err(WorkerError::Runtime)?.join().map_err(|_| WorkerError::Panicked)?
}

/// One session after another, with pauses while no coordinator is there.
async fn serve(config: &WorkerConfig, isa: Isa, commands: mpsc::Sender<compute::Command>) -> Result<(), WorkerError> {
    let (mut pause, mut complained) = (PAUSE_MIN, None::<Instant>);
    loop {
        match Session::run(config, isa, &commands).await {
            Ok(()) => (pause, complained) = (PAUSE_MIN, None),
            Err(SessionError::Refused { reason }) => {
                return Err(WorkerError::Refused { address: config.join.clone(), reason });
            }
            Err(error) => {
                if error.was_in_a_job() {
                    (pause, complained) = (PAUSE_MIN, None);
                }
                // A worker that ends with its coordinator is gone before the pause is over, and has nothing to complain of.
                sleep(pause).await;
                if complained.is_none_or(|then| then.elapsed() > COMPLAINT_EVERY) {
                    tracing::warn!("{}; trying again", chain(&error));
                    complained = Some(Instant::now());
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
