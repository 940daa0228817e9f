//! `convoy certs`: makes a CA for a cluster, and certificates for its processes.
//!
//! Not here: what a certificate says (`convoy_net::authority`).

use std::error::Error;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use convoy_coordinator::files::{quoted, remove_temporary, write_atomically, write_privately};
use convoy_net::authority::{Authority, Issued};
use convoy_net::tls::{Role, Tls, TlsError, TlsFiles};

use convoy_common::text::counted;

use crate::numbers::whole;
use crate::settings::{Misuse, read_text};
use crate::{Outcome, output};

/// The longest file of a CA, in bytes.
const PEM_BYTES_MAX: u64 = 1 << 16;
/// The most workers for which this command makes certificates.
const WORKERS_MAX: u64 = 10_000;
/// The longest time for which a certificate is valid: as long as its CA's.
const DAYS_MAX: u64 = 3650;
const AUTHORITY: &str = "ca";
const COORDINATOR: &str = "coordinator";

/// The command line of `convoy certs`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder for the files. If it is new, only its user can enter it
    dir: PathBuf,
    /// Workers that get a certificate. Several workers may also share one
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole::<usize>(1..=WORKERS_MAX))]
    workers: usize,
    /// Days for which the certificates are valid
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = whole::<u32>(1..=DAYS_MAX))]
    days: u32,
    /// Replace all certificates in the folder, for example because they expire soon. The CA stays
    #[arg(long)]
    renew: bool,
}

/// The names of a certificate's files.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn of(dir: &Path, name: &str) -> Self {
        Self { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}-key.pem")) }
    }

    fn is_there(&self) -> bool {
        self.certificate.exists() && self.key.exists()
    }

    /// Writes the key first: a certificate without its key would look complete.
    fn write(&self, issued: &Issued) -> Result<(), Misuse> {
        let wrong = |path: &Path| {
            let path = path.display().to_string();
            move |error: std::io::Error| Misuse(format!("cannot write {path}: {error}"))
        };
        write_privately(&self.key, issued.key.as_bytes()).map_err(wrong(&self.key))?;
        write_atomically(&self.certificate, issued.certificate.as_bytes()).map_err(wrong(&self.certificate))
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    let dir = &arguments.dir;
    let wrong = |error: std::io::Error| Misuse(format!("cannot use the folder {}: {error}", dir.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(wrong)?;
    // Two processes must not mix their files. The lock ends with the process.
    let _locked = File::open(dir).and_then(|folder| folder.lock().map(|()| folder)).map_err(wrong)?;
    let authority = authority(dir)?;
    let last =
        if arguments.renew { arguments.workers.max(last_worker(dir).map_err(wrong)?) } else { arguments.workers };
    let workers = (1..=last).map(|number| (Role::Worker, format!("worker-{number}")));
    let (mut made, mut kept) = (0, 0);
    for (role, name) in [(Role::Coordinator, COORDINATOR.to_owned())].into_iter().chain(workers) {
        let pair = Pair::of(dir, &name);
        remove_temporary(dir, &format!("{name}-key.pem"));
        if pair.is_there() && !arguments.renew {
            kept += 1;
        } else {
            pair.write(&authority.issue(role, &name, arguments.days)?)?;
            made += 1;
        }
        check(dir, pair, role)?;
    }
    output::print(&summary(dir, made, kept, arguments.days))?;
    Ok(Outcome::Done)
}

/// The largest number of a worker's certificate in a folder; 0 if there is none.
fn last_worker(dir: &Path) -> std::io::Result<usize> {
    let number = |name: &str| name.strip_prefix("worker-")?.strip_suffix(".pem")?.parse::<usize>().ok();
    let names = std::fs::read_dir(dir)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|name| number(&name)).filter(|found| *found <= WORKERS_MAX as usize).max().unwrap_or(0))
}

/// The CA in a folder. It is made if there is none.
fn authority(dir: &Path) -> Result<Authority, Box<dyn Error>> {
    let pair = Pair::of(dir, AUTHORITY);
    let missing = |what: &Path, there: &Path| {
        let (what, there) = (what.display(), there.display());
        Misuse(format!("{what} is missing, although {there} exists: put it there, or use another folder for a new CA"))
    };
    match (pair.certificate.exists(), pair.key.exists()) {
        (false, false) if Pair::of(dir, COORDINATOR).is_there() => Err(Misuse(format!(
            "{} has certificates but no CA: put {} and {} there, or use another folder for a new CA",
            dir.display(),
            pair.certificate.display(),
            pair.key.display()
        ))
        .into()),
        (false, false) => {
            let (authority, issued) = Authority::new()?;
            pair.write(&issued)?;
            Ok(authority)
        }
        (true, false) => Err(missing(&pair.key, &pair.certificate).into()),
        (false, true) => Err(missing(&pair.certificate, &pair.key).into()),
        (true, true) => {
            let wrong =
                |why: &dyn Error| Misuse(format!("cannot use the key of the CA in {}: {why}", pair.key.display()));
            let [certificate, key] = [&pair.certificate, &pair.key].map(|path| read_text(path, PEM_BYTES_MAX));
            let certificate = certificate.map_err(|error| {
                Misuse(format!("cannot use the certificate of the CA in {}: {error}", pair.certificate.display()))
            })?;
            let key = key.map_err(|error| wrong(&error))?;
            Ok(Authority::of(certificate.as_bytes(), &key).map_err(|error| wrong(&error))?)
        }
    }
}

/// Checks a certificate as the process that uses it will.
fn check(dir: &Path, pair: Pair, role: Role) -> Result<(), Misuse> {
    let authorities = Pair::of(dir, AUTHORITY).certificate;
    let files = TlsFiles { certificate: pair.certificate, key: pair.key, authorities };
    let advice = |error: TlsError| Misuse(format!("{error}; --renew makes the certificates again"));
    Tls::load(&files, Some(role)).map(drop).map_err(advice)
}

fn summary(dir: &Path, made: usize, kept: usize, days: u32) -> String {
    let file = |name: &str| quoted(&dir.join(name));
    let kept = if kept == 0 { String::new() } else { format!("; kept {kept} that exist, with their own dates") };
    format!(
        "{}: made {}, valid for {}{kept}\n\
         coordinator  convoy train --listen 0.0.0.0:7878 --tls-ca {ca} --tls-cert {} --tls-key {}\n\
         a worker     convoy worker --join HOST:7878 --tls-ca {ca} --tls-cert {} --tls-key {}\n\
         Each machine needs ca.pem, and the certificate and the key of its process. Keep ca-key.pem secret: whoever has it can join the cluster.\n",
        dir.display(),
        counted(made, "certificate", "certificates"),
        counted(days as usize, "day", "days"),
        file("coordinator.pem"),
        file("coordinator-key.pem"),
        file("worker-1.pem"),
        file("worker-1-key.pem"),
        ca = file("ca.pem"),
    )
}
