//! `convoy worker`: parses the command line, handles signals, and serves jobs.

use std::error::Error;
use std::thread;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::batch::THREADS_MAX;
use convoy_common::misdeed::Misdeed;
use convoy_common::wire::Direction;
use convoy_net::tls::Role;
use convoy_worker::service::{self, WorkerConfig};
use convoy_worker::{Isa, Metrics, Rehearsal, Slow};

use crate::credentials::Credentials;
use crate::numbers::whole;
use crate::sockets::SocketFile;
use crate::{Outcome, metrics, signals};

/// The command line of `convoy worker`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Address of the coordinator, HOST:PORT (or unix:PATH on the same machine). The worker retries until a coordinator answers. With
    /// several addresses, separated by commas, it serves a coordinator that waits for workers, and then the next one
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    join: Vec<Address>,
    /// Compute threads [default: the machine's cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=THREADS_MAX as u64))]
    threads: Option<usize>,
    /// Instruction set of the kernels: scalar, avx2, avx512 or neon. It does not change the result
    /// [default: the best that the machine has]
    #[arg(long, value_name = "NAME")]
    isa: Option<Isa>,
    #[command(flatten)]
    credentials: Credentials,
    /// Address on which this worker accepts direct connections from other workers: HOST:PORT, or unix:PATH if all workers are on one machine
    /// [default: a free port of the network interface that this worker uses to reach the coordinator]
    #[arg(long, value_name = "HOST:PORT")]
    exchange_listen: Option<Address>,
    /// Address on which to answer health checks (gRPC's standard protocol): HOST:PORT or unix:PATH. For `convoy health` and for
    /// orchestrators
    #[arg(long, value_name = "HOST:PORT")]
    health: Option<Address>,
    /// Address on which to serve metrics to Prometheus, at /metrics: seconds per activity, bytes sent and received
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<Address>,
    /// Exit when standard input closes. For workers that a coordinator starts
    #[arg(long, hide = true)]
    lifeline: bool,
    /// Slow a layer down, to test whether a trace finds it: LAYER:forward|backward:MS
    #[arg(long, hide = true, value_name = "LAYER:PASS:MS", value_parser = slow)]
    rehearse_slow: Option<Slow>,
    /// Cause these faults to test recovery, each once and in this order. DEED: kill, stop, limp:MS, double, flip, truncate, replay,
    /// reorder, stale, oversize, unlink, reconnect. PHASE: join, assign, measure, or forward, exchange, backward, reduce, commit or state
    /// with :STEP
    #[arg(long, hide = true, value_name = "DEED@PHASE:STEP,...", value_delimiter = ',')]
    rehearse: Vec<Misdeed>,
    /// Set the clock of traces ahead, to test whether traces are aligned
    #[arg(long, hide = true, value_name = "MS", default_value_t = 0)]
    rehearse_clock: u64,
}

fn slow(text: &str) -> Result<Slow, String> {
    let wrong = || format!("\"{text}\" is neither LAYER:forward:MS nor LAYER:backward:MS");
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
    let cores = || thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS_MAX);
    let threads = arguments.threads.unwrap_or_else(cores);
    let secrets = arguments.credentials.secrets(Role::Worker, "--join", &arguments.join)?;
    let metrics = metrics::counted(arguments.metrics.as_ref(), secrets.tls.as_ref(), Metrics::registered)?;
    if arguments.lifeline {
        signals::end_with_input()?;
    }
    let _health = SocketFile::at(arguments.health.as_ref())?;
    let _exchange = SocketFile::at(arguments.exchange_listen.as_ref())?;
    service::run(
        &WorkerConfig {
            join: arguments.join.clone(),
            threads,
            isa: arguments.isa,
            secrets,
            exchange_listen: arguments.exchange_listen.clone(),
            health: arguments.health.clone(),
            rehearsal: Rehearsal {
                slow: arguments.rehearse_slow.clone(),
                clock_ahead: Duration::from_millis(arguments.rehearse_clock),
                misdeeds: arguments.rehearse.iter().copied().collect(),
                ..Rehearsal::default()
            },
            metrics,
        },
        signals::any,
    )?;
    Ok(Outcome::Done)
}
