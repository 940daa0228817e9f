//! Signals: the first asks a job to stop after a checkpoint, the second ends the program immediately.

use std::future::poll_fn;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals within this time count as one.
const ECHO: Duration = Duration::from_millis(200);

/// A flag that the first Ctrl-C, SIGTERM or SIGHUP sets. The second signal ends the program and its workers. The first one prints
/// `answer`, which says what happens now, and the second one prints `farewell`.
pub(crate) fn stop_flag(answer: &'static str, farewell: String) -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before this returns, so that a signal never finds the system's default.
    let first = {
        let _entered = runtime.enter();
        Signals::listen()
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            first.next().await;
            set.store(true, Ordering::Relaxed);
            // Shells and supervisors may signal the process and then its group. That is one request, not two.
            tokio::time::sleep(ECHO).await;
            // It listens before it says so, and the message therefore comes late: not at all if the command has ended by then. Printing may
            // block if nobody reads. The second signal must work all the same.
            let again = Signals::listen();
            tokio::task::spawn_blocking(move || {
                crate::output::complain(&format!("{answer}; press Ctrl-C again to quit immediately"));
            });
            again.next().await;
            let said = tokio::task::spawn_blocking(move || crate::output::complain(&farewell));
            let _ = tokio::time::timeout(ECHO, said).await;
            // The last checkpoint stays good. Processes that this one has started end when their pipes close with it.
            std::process::exit(i32::from(crate::INTERRUPTED));
        });
    })?;
    Ok(flag)
}

/// Ends this process when its standard input closes. The process that started it holds the other end of the pipe, which closes when
/// that process ends for any reason.
pub(crate) fn end_with_input() -> std::io::Result<()> {
    let lifeline = || {
        let mut input = std::io::stdin().lock();
        let mut bytes = [0; 64];
        while !matches!(input.read(&mut bytes), Ok(0) | Err(_)) {}
        std::process::exit(0);
    };
    thread::Builder::new().name("lifeline".to_owned()).spawn(lifeline).map(drop)
}

/// Waits for Ctrl-C, SIGTERM, or the end of the terminal (SIGHUP, unless the process was started by nohup).
pub(crate) async fn any() {
    Signals::listen().next().await;
}

/// The signals that stop the program. Those that arrive from now on are noticed. Without a handler the system's default applies: the
/// signal ends the process.
struct Signals(Vec<Signal>);

impl Signals {
    fn listen() -> Self {
        static IGNORES_HANG_UP: LazyLock<bool> = LazyLock::new(ignores_hang_up);
        let hang_up = (!*IGNORES_HANG_UP).then(SignalKind::hangup);
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()].into_iter().chain(hang_up);
        Self(kinds.filter_map(|kind| signal(kind).ok()).collect())
    }

    /// Waits for the next one.
    async fn next(mut self) {
        let any = |context: &mut Context<'_>| match self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready())
        {
            true => Poll::Ready(()),
            false => Poll::Pending,
        };
        poll_fn(any).await;
    }
}

/// Whether the process was started with SIGHUP ignored. Must be called before anything handles SIGHUP.
fn ignores_hang_up() -> bool {
    const HANG_UP: u64 = 1; // The lowest bit is signal 1.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & HANG_UP != 0)
}
