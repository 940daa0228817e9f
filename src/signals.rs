//! Signals: the first asks a job to stop at the next step, the second ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Signals closer together than this count as one.
const ECHO: Duration = Duration::from_millis(200);

/// A flag that the first Ctrl-C or SIGTERM sets. The second one ends the program, and with it its workers.
pub(crate) fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            any().await;
            set.store(true, Ordering::Relaxed);
            eprintln!("stopping as soon as nothing is lost by it; once more to stop at once");
            // Shells and supervisors may signal the process and then its group: that is one wish, not two.
            tokio::time::sleep(ECHO).await;
            any().await;
            // Nothing is lost that a checkpoint doesn't have, and the workers' pipes close with the process.
            std::process::exit(i32::from(crate::INTERRUPTED));
        });
    })?;
    Ok(flag)
}

/// Waits for Ctrl-C or SIGTERM.
pub(crate) async fn any() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without signals there is nothing to wait for; the system's own handling ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// `convoy plan | head` is no error: a reader that has seen enough may close the pipe. For commands whose only work is to
/// print.
pub(crate) fn forgive_closed_pipes() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.contains("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(0);
        }
        default(panic);
    }));
}
