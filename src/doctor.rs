//! `convoy doctor`: checks a machine, or a whole cluster, before a job, and prints what is wrong and what to do.
//!
//! Not here: the checks (`convoy_doctor`).

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use convoy_common::address::Address;
use convoy_common::chain::chain;
use convoy_common::text::{counted, printable};
use convoy_coordinator::JobError;
use convoy_coordinator::examine::examine;
use convoy_coordinator::running::Running;
use convoy_doctor::workers::Notes;
use convoy_doctor::{Finding, Verdict, addresses, machine, names, tls};
use convoy_net::secrets::Secrets;
use convoy_net::tls::{Role, Tls};
use convoy_proto::PROTOCOL_VERSION;
use tokio::runtime::{self, Runtime};

use crate::credentials::Credentials;
use crate::log::Log;
use crate::numbers::whole;
use crate::sockets::{NoSocket, SocketFile};
use crate::table::aligned;
use crate::{Outcome, eval, output, signals};

/// Workers to wait for, and for how long, unless the command line says otherwise.
const WORKERS: usize = 2;
const WAIT: Duration = Duration::from_secs(30);

/// The command line of `convoy doctor`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Check this machine as one of a worker that will connect to these coordinators
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', conflicts_with = "listen")]
    join: Vec<Address>,
    /// Check this machine as that of a coordinator. Workers that connect to this address are examined: how far away each is, how fast its
    /// connection is, and whether the workers can connect to each other. Workers that wait for a job connect by themselves
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<Address>,
    /// Workers to wait for, with --listen [default: 2]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=1024), requires = "listen")]
    workers: Option<usize>,
    /// Seconds to wait for them, with --listen [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = whole::<u64>(0..=86_400), requires = "listen")]
    wait: Option<u64>,
    #[command(flatten)]
    credentials: Credentials,
    /// Address on which the worker will accept connections from other workers, with --join
    #[arg(long, value_name = "HOST:PORT", requires = "join")]
    exchange_listen: Option<Address>,
    /// Address on which the worker will answer health checks, with --join
    #[arg(long, value_name = "HOST:PORT")]
    health: Option<Address>,
    /// Address on which the process will serve metrics
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<Address>,
    /// Folder of the run, on whose disk a job would write
    #[arg(long, value_name = "DIR", default_value = "runs")]
    out: PathBuf,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// What the process will be whose place this one takes. None: either.
    fn role(&self) -> Option<Role> {
        match (&self.listen, self.join.is_empty()) {
            (Some(_), _) => Some(Role::Coordinator),
            (None, false) => Some(Role::Worker),
            (None, true) => None,
        }
    }
}

/// Something is wrong: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}: a job would fail")]
struct Unfit(String);

pub(crate) fn run(arguments: Arguments, log: &Log) -> Result<Outcome, Box<dyn Error>> {
    let json = arguments.json;
    let stop = signals::stop_flag("stopping", "quit".to_owned())?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = findings(arguments, &runtime, log, &stop);
    // A name lookup can't be cancelled, and must not be waited for.
    runtime.shutdown_background();
    let findings = findings?;
    output::print(&if json { format!("{:#}\n", serde_json::to_value(&findings)?) } else { described(&findings) })?;
    let wrong = findings.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
    match wrong {
        _ if stop.load(Ordering::Relaxed) => Ok(Outcome::Interrupted),
        0 => Ok(Outcome::Done),
        _ => Err(Unfit(counted(wrong, "thing is wrong", "things are wrong")).into()),
    }
}

fn findings(
    arguments: Arguments,
    runtime: &Runtime,
    log: &Log,
    stop: &AtomicBool,
) -> Result<Vec<Finding>, Box<dyn Error>> {
    let token = match arguments.role() {
        Some(Role::Worker) => arguments.credentials.token("--join", &arguments.join)?,
        Some(Role::Coordinator) => arguments.credentials.token("--listen", &arguments.listen)?,
        None => None,
    };
    let version = format!("{}, protocol {PROTOCOL_VERSION}", env!("CARGO_PKG_VERSION"));
    let mut findings = vec![Finding::ok("version", version)];
    findings.extend(machine::findings(&arguments.out, arguments.role()));
    let (tls, of_tls) = match arguments.credentials.tls_files()? {
        Some(files) => tls::findings(&files, arguments.role()),
        None => (None, Vec::new()),
    };
    let has_bad_files = of_tls.iter().any(|finding| finding.verdict == Verdict::Wrong);
    findings.extend(of_tls);
    findings.extend(of_listening(&arguments, runtime, tls.as_ref()));
    if has_bad_files {
        return Ok(findings);
    }
    let secrets = Secrets { token, tls };
    for address in arguments.join.iter().take_while(|_| !stop.load(Ordering::Relaxed)) {
        findings.extend(runtime.block_on(addresses::reaches(address, &secrets)));
    }
    if let Some(address) = &arguments.listen {
        if !address.is_local() {
            findings.extend(runtime.block_on(names::own()));
        }
        if !findings.iter().any(|finding| finding.subject == "--listen" && finding.verdict == Verdict::Wrong) {
            let running = Running { listen: Some(address.clone()), secrets, ..eval::running(log)? };
            let wait = arguments.wait.map_or(WAIT, Duration::from_secs);
            findings.extend(of_workers(&running, arguments.workers.unwrap_or(WORKERS), wait, stop)?);
        }
    }
    Ok(findings)
}

/// The addresses on which the process will listen. All are tried together.
fn of_listening(arguments: &Arguments, runtime: &Runtime, tls: Option<&Tls>) -> Vec<Finding> {
    let of_worker = [("--exchange-listen", &arguments.exchange_listen), ("--health", &arguments.health)];
    let of_worker = of_worker.into_iter().filter(|_| arguments.role() == Some(Role::Worker));
    let flags = of_worker.chain([("--metrics", &arguments.metrics), ("--listen", &arguments.listen)]);
    let given = flags.filter_map(|(flag, address)| Some((flag, address.as_ref()?)));
    let (findings, _listening): (Vec<_>, Vec<_>) = given
        .map(|(flag, address)| match SocketFile::at(Some(address)) {
            Ok(file) => {
                let (finding, listening) = runtime.block_on(addresses::listens(flag, address, tls));
                (finding, Some((file, listening)))
            }
            Err(NoSocket::InUse { .. }) => (runtime.block_on(addresses::in_use(flag, address, tls)), None),
            Err(error) => (Finding::wrong(flag, error.to_string(), "remove it, or give another path"), None),
        })
        .unzip();
    findings
}

/// Examines the workers that connect.
fn of_workers(
    running: &Running,
    workers: usize,
    wait: Duration,
    stop: &AtomicBool,
) -> Result<Vec<Finding>, Box<dyn Error>> {
    let _socket = SocketFile::at(running.listen.as_ref())?;
    let mut notes = Notes::new(output::complain);
    match examine(running, workers, wait, &mut notes, stop) {
        Err(error @ JobError::Listen { .. }) => {
            let advice = "another process has begun to listen there; check again";
            Ok(vec![Finding::wrong("--listen", chain(&error), advice)])
        }
        // What is missing is so because of the stop.
        Ok(_) if stop.load(Ordering::Relaxed) => Ok(Vec::new()),
        Ok(examination) => Ok(notes.findings(&examination, workers)),
        Err(error) => Err(error.into()),
    }
}

/// The findings, one below the other, and how many are how bad.
fn described(findings: &[Finding]) -> String {
    let word = |verdict| match verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Wrong => "WRONG",
    };
    let row = |first: &str, subject: &str, text: String| vec![first.to_owned(), subject.to_owned(), text];
    let mut rows = Vec::new();
    for finding in findings {
        rows.push(row(word(finding.verdict), &finding.subject, printable(&finding.found)));
        rows.extend(finding.advice.iter().map(|advice| row("", "", format!("-> {advice}"))));
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let [ok, warnings, wrong] = [Verdict::Ok, Verdict::Warning, Verdict::Wrong].map(count);
    aligned(&rows, &[0, 1, 2]) + &format!("{ok} ok, {}, {wrong} wrong\n", counted(warnings, "warning", "warnings"))
}
