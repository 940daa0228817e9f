//! Signals: the first asks a job to stop at the next step, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
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
            // Whoever reads what we print may have stopped reading: the second signal must be heard all the same.
            tokio::task::spawn_blocking(|| {
                crate::output::complain("stopping as soon as nothing is lost by it; once more to stop at once");
            });
            // Shells and supervisors may signal the process and then its group: that is one wish, not two.
            tokio::time::sleep(ECHO).await;
            any().await;
            // Nothing is lost that a checkpoint doesn't have, and the workers' pipes close with the process.
            std::process::exit(i32::from(crate::INTERRUPTED));
        });
    })?;
    Ok(flag)
}

/// Waits for Ctrl-C, SIGTERM, or the end of the terminal (SIGHUP), if that hasn't been made harmless by nohup.
pub(crate) async fn any() {
    let all = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    let [Ok(mut interrupt), Ok(mut terminate)] = all else {
        // Without signals there is nothing to wait for; the system's own handling ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = hung_up() => {}
    }
}

async fn hung_up() {
    static IGNORED: LazyLock<bool> = LazyLock::new(ignores_hang_up);
    if *IGNORED {
        return std::future::pending().await;
    }
    match signal(SignalKind::hangup()) {
        Ok(mut hang_up) => drop(hang_up.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// Whether the process was started with SIGHUP ignored. To be asked before anything listens for it.
fn ignores_hang_up() -> bool {
    const HANG_UP: u64 = 1; // The lowest bit is signal 1.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & HANG_UP != 0)
}
