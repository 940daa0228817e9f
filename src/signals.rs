//! Signals: the first asks a job to stop at the next step, the second ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Signals closer together than this count as one.
const ECHO: Duration = Duration::from_millis(200);

/// A flag that the first Ctrl-C, SIGTERM or SIGHUP sets. The second one ends the program, and with it its workers.
pub(crate) fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            any().await;
            set.store(true, Ordering::Relaxed);
            crate::output::complain("stopping as soon as nothing is lost by it; once more to stop at once");
            // Shells and supervisors may signal the process and then its group: that is one wish, not two.
            tokio::time::sleep(ECHO).await;
            any().await;
            // Nothing is lost that a checkpoint doesn't have, and the workers' pipes close with the process.
            std::process::exit(i32::from(crate::INTERRUPTED));
        });
    })?;
    Ok(flag)
}

/// Waits for Ctrl-C, SIGTERM, or the end of the terminal (SIGHUP).
pub(crate) async fn any() {
    let all = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hang_up)] = all else {
        // Without signals there is nothing to wait for; the system's own handling ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}
