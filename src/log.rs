//! The log, on standard error, as text or JSON. It shows warnings unless RUST_LOG sets another level. A line never breaks a
//! progress bar; for that reason the lines of workers that this process starts come through a pipe.

use std::error::Error;
use std::io::{BufRead, BufReader, IsTerminal, PipeReader, pipe};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use convoy_coordinator::running::LocalProgram;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::fmt::MakeWriter;

use crate::output::{self, StandardError, complain};
use crate::settings::Misuse;

/// The variable that sets the log's format where no flag does.
pub(crate) const FORMAT_VARIABLE: &str = "CONVOY_LOG_FORMAT";
/// The level where RUST_LOG sets none.
const DEFAULT: &str = "warn";
/// Libraries of HTTP and of TLS. They warn of connections that break their rules, which any stranger can open.
const WARY: [&str; 2] = ["h2", "rustls"];
/// Messages for people are logged at any level.
const TOLD: &str = "convoy::output=warn";
/// Longer lines of workers are cut.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// How long to wait, at the end, for the last lines of workers.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// The running log. When dropped, it waits for the last lines of workers.
pub(crate) struct Log {
    format: Format,
    passed_on: Mutex<Option<Receiver<()>>>,
}

impl Drop for Log {
    fn drop(&mut self) {
        let passed_on = self.passed_on.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(passed_on) = &*passed_on {
            // A worker that can't be killed never closes its end.
            let _ = passed_on.recv_timeout(LAST_LINES);
        }
    }
}

/// These levels, and only errors of the libraries that they do not name.
fn quieted(levels: &str) -> String {
    let unnamed = WARY.iter().filter(|library| !levels.contains(**library));
    unnamed.fold(levels.to_owned(), |levels, library| format!("{levels},{library}=error"))
}

struct ToStandardError;

impl MakeWriter<'_> for ToStandardError {
    type Writer = StandardError;

    fn make_writer(&self) -> StandardError {
        StandardError
    }
}

impl Log {
    /// Starts the log. It shows warnings unless RUST_LOG sets another level.
    pub(crate) fn begin(format: Format) -> Self {
        let wanted = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|wanted| !wanted.is_empty());
        let parsed = EnvFilter::builder().parse(quieted(wanted.as_deref().unwrap_or(DEFAULT)));
        let unreadable = parsed.as_ref().err().map(|error| format!("note: RUST_LOG is ignored: {error}"));
        let filter = parsed.unwrap_or_else(|_| EnvFilter::new(quieted(DEFAULT)));
        // What people always see must also reach programs, whatever the level.
        let told = Directive::from_str(TOLD).map(|told| filter.clone().add_directive(told));
        let filter = told.unwrap_or(filter);
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(ToStandardError)
            .log_internal_errors(false);
        match format {
            Format::Text => log.init(),
            Format::Json => {
                log.json().flatten_event(true).with_span_list(false).init();
                output::set_for_programs();
            }
        }
        unreadable.iter().for_each(|note| complain(note));
        Self { format, passed_on: Mutex::default() }
    }

    /// How to start this program as a local worker, which logs as this process does.
    pub(crate) fn local_program(&self) -> Result<LocalProgram, Box<dyn Error>> {
        let wrong = |error| Misuse(format!("cannot find the path of this program: {error}"));
        let path = std::env::current_exe().map_err(wrong)?;
        let arguments = match self.format {
            Format::Text => Vec::new(),
            Format::Json => vec!["--log-format".into(), "json".into()],
        };
        let (reader, writer) = pipe()?;
        let (ended, passed_on) = channel();
        let passing_on = move || {
            pass_on(reader);
            // There may be no receiver any more.
            let _ = ended.send(());
        };
        std::thread::Builder::new().name("complaints".to_owned()).spawn(passing_on)?;
        *self.passed_on.lock().unwrap_or_else(PoisonError::into_inner) = Some(passed_on);
        Ok(LocalProgram { path, arguments, complaints: Some(Arc::new(writer)) })
    }
}

/// Copies lines of workers to standard error until the last worker has ended.
fn pass_on(reader: PipeReader) {
    use std::io::Read;
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if !line.ends_with(b"\n") {
                    let _ = reader.skip_until(b'\n');
                    line.push(b'\n');
                }
                output::to_standard_error(&line);
            }
        }
    }
}
