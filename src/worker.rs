//! `convoy worker`: parses, listens for signals, and serves.

use std::error::Error;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::batch::THREADS_MAX;
use convoy_common::wire::Direction;
use convoy_worker::service::{self, Rehearsal, WorkerConfig};
use convoy_worker::{Isa, Metrics, Slow};

use crate::settings::{self, Misuse};
use crate::{Outcome, metrics, signals};

/// Serve towers for a coordinator, one job after another, until told to leave (SIGTERM or Ctrl-C). In the middle of a job it
/// stays until a checkpoint is written; once more, and it leaves at once.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The coordinator's address, HOST:PORT (or unix:PATH on the same machine); a missing coordinator is tried again
    #[arg(long, value_name = "HOST:PORT")]
    join: Address,
    /// Threads that compute [default: the machine's cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Instruction set of the kernels: scalar, avx2, avx512 or neon, with the same bits [default: the best that the machine has]
    #[arg(long, value_name = "NAME")]
    isa: Option<Isa>,
    /// A file with a word that the coordinator may want to hear (its --token-file); it isn't encrypted on its way
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Answer health checks here (the standard protocol of gRPC), for `convoy health` and for orchestrators
    #[arg(long, value_name = "HOST:PORT")]
    health: Option<Address>,
    /// Answer Prometheus here, at /metrics: what the computing thread spends its time on, bytes sent and received
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<Address>,
    /// End when standard input closes: for workers that a coordinator starts itself
    #[arg(long, hide = true)]
    lifeline: bool,
    /// Make a layer slow on purpose, to see whether a trace finds it: LAYER:forward|backward:MS
    #[arg(long, hide = true, value_name = "LAYER:PASS:MS", value_parser = slow)]
    rehearse_slow: Option<Slow>,
    /// Set the clock that traces are made with ahead, to see whether they are aligned
    #[arg(long, hide = true, value_name = "MS", default_value_t = 0)]
    rehearse_clock: u64,
}

fn slow(text: &str) -> Result<Slow, String> {
    let wrong = || format!("\"{text}\" isn't LAYER:forward:MS or LAYER:backward:MS");
    let [layer, pass, by] = text.split(':').collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
    let direction = match pass {
        "forward" => Direction::Forward,
        "backward" => Direction::Backward,
        _ => return Err(wrong()),
    };
    let by = Duration::from_millis(by.parse().map_err(|_| wrong())?);
    Ok(Slow { layer: layer.to_owned(), direction, by })
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = arguments.threads.map_or_else(cores, NonZeroUsize::get);
    if threads > THREADS_MAX {
        return Err(Misuse(format!("--threads {threads}: must be at least 1 and at most {THREADS_MAX}")).into());
    }
    let token = settings::token(arguments.token_file.as_deref())?;
    if arguments.lifeline {
        thread::Builder::new().name("lifeline".to_owned()).spawn(end_with_input)?;
    }
    service::run(
        &WorkerConfig {
            join: arguments.join.clone(),
            threads,
            isa: arguments.isa,
            token,
            health: arguments.health.clone(),
            rehearsal: Rehearsal {
                slow: arguments.rehearse_slow.clone(),
                clock_ahead: Duration::from_millis(arguments.rehearse_clock),
            },
            metrics: metrics::counted(arguments.metrics.as_ref(), Metrics::registered)?,
        },
        signals::any,
    )?;
    Ok(Outcome::Done)
}

/// A coordinator that has gone, however it went, has closed the pipe. What is being computed is for nobody.
fn end_with_input() {
    let mut input = std::io::stdin().lock();
    let mut bytes = [0; 64];
    while !matches!(input.read(&mut bytes), Ok(0) | Err(_)) {}
    std::process::exit(0);
}
