//! `convoy health`: checks one process. The exit code is the answer.
//!
//! Not here: the questions (`convoy_doctor::health`).

use std::error::Error;
use std::time::Duration;

use convoy_common::address::Address;
use convoy_doctor::health::{Asked, Unanswered, ask};
use convoy_net::tls::Role;

use crate::credentials::TlsArguments;
use crate::{Outcome, output};

/// The command line of `convoy health`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Address of a worker's --health or a coordinator's --listen: HOST:PORT or unix:PATH
    #[arg(value_name = "ADDRESS", env = "CONVOY_HEALTH", default_value = "127.0.0.1:7979")]
    address: Address,
    /// Check only that the process is alive. A coordinator that is still waiting for its first workers is alive but not ready
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    tls: TlsArguments,
}

/// A health check that takes longer has failed. Orchestrators allow one second by default, part of which a busy machine needs
/// to start this program.
const LIMIT: Duration = Duration::from_millis(500);

/// Why a process isn't healthy.
#[derive(Debug, thiserror::Error)]
enum Unwell {
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    #[error("the {role} at {address} hangs: it has made no progress for minutes")]
    Wedged { role: Role, address: Address },
    #[error("the {role} at {address} is not ready: it is waiting for workers")]
    Starting { role: Role, address: Address },
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tls = arguments.tls.identity(None)?;
    let asked = runtime.block_on(ask(&arguments.address, tls.as_ref(), LIMIT));
    // A name lookup can't be cancelled, and must not be waited for.
    runtime.shutdown_background();
    let Asked { role, is_alive, is_ready, .. } = asked.map_err(Unwell::from)?;
    let address = arguments.address.clone();
    match (is_alive, is_ready || arguments.live) {
        (false, _) => return Err(Unwell::Wedged { role, address }.into()),
        (true, false) => return Err(Unwell::Starting { role, address }.into()),
        (true, true) => {}
    }
    let how = if arguments.live { "alive" } else { "ready" };
    output::print(&format!("the {role} at {address} is {how}\n"))?;
    Ok(Outcome::Done)
}
