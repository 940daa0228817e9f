//! The log: quiet unless RUST_LOG says otherwise, as text or JSON, on standard error, and never in the midst of a progress
//! bar. Embedded workers' lines come through a pipe, for the same reason.

use std::error::Error;
use std::io::{BufRead, BufReader, IsTerminal, PipeReader, pipe};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use convoy_coordinator::job::LocalProgram;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::fmt::MakeWriter;

use crate::output::{self, StandardError, complain};
use crate::settings::Misuse;

/// What says how the log is written where no flag does.
pub(crate) const FORMAT_VARIABLE: &str = "CONVOY_LOG_FORMAT";
/// What is logged where RUST_LOG says nothing.
const DEFAULT: &str = "warn";
/// What `output` says is logged whatever RUST_LOG says.
const TOLD: &str = "convoy::output=warn";
/// A line that is longer is cut.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Workers that have ended have said all they had to within this.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// A log that has begun. At its end it waits for what workers still have to say.
pub(crate) struct Log {
    format: Format,
    passed_on: Mutex<Option<Receiver<()>>>,
}

impl Drop for Log {
    fn drop(&mut self) {
        let passed_on = self.passed_on.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(passed_on) = &*passed_on {
            // A worker that can't be ended may never close its end.
            let _ = passed_on.recv_timeout(LAST_WORDS);
        }
    }
}

struct ToStandardError;

impl MakeWriter<'_> for ToStandardError {
    type Writer = StandardError;

    fn make_writer(&self) -> StandardError {
        StandardError
    }
}

impl Log {
    /// Warnings alone, unless RUST_LOG says otherwise.
    pub(crate) fn begin(format: Format) -> Self {
        let wanted = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|wanted| !wanted.is_empty());
        let parsed = EnvFilter::builder().parse(wanted.as_deref().unwrap_or(DEFAULT));
        let unreadable = parsed.as_ref().err().map(|error| format!("note: RUST_LOG isn't read: {error}"));
        let filter = parsed.unwrap_or_else(|_| EnvFilter::new(DEFAULT));
        // What a person is told in any case is not for the filter to keep from a program.
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
                output::is_for_programs();
            }
        }
        unreadable.iter().for_each(|note| complain(note));
        Self { format, passed_on: Mutex::default() }
    }

    /// This program, for embedded workers, which log as we do.
    pub(crate) fn local_program(&self) -> Result<LocalProgram, Box<dyn Error>> {
        let wrong = |error| Misuse(format!("find this program's own file: {error}"));
        let path = std::env::current_exe().map_err(wrong)?;
        let arguments = match self.format {
            Format::Text => Vec::new(),
            Format::Json => vec!["--log-format".into(), "json".into()],
        };
        let (reader, writer) = pipe()?;
        let (ended, passed_on) = channel();
        let passing_on = move || {
            pass_on(reader);
            // Nobody may wait for it.
            let _ = ended.send(());
        };
        std::thread::Builder::new().name("complaints".to_owned()).spawn(passing_on)?;
        *self.passed_on.lock().unwrap_or_else(PoisonError::into_inner) = Some(passed_on);
        Ok(LocalProgram { path, arguments, complaints: Some(Arc::new(writer)) })
    }
}

/// Lines of workers, until the last of them is gone.
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
