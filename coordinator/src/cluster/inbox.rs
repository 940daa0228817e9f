//! Where the thread that drives the job waits for what the doors report.
//!
//! Not here: what a report means (`Cluster::poll`).

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;

use super::member::Report;

/// The reports that have not been read.
#[derive(Debug)]
pub(super) struct Inbox(Receiver<Report>);

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Inbox {
    pub(super) fn new(reports: Receiver<Report>) -> Self {
        Self(reports)
    }

    /// The next report, if one comes within `patience`. None at once if all doors are gone; a cluster keeps its own.
    ///
    /// The thread sleeps by itself. A timer of the runtime would cost more, and might wake the runtime's thread for each message.
    pub(super) fn next(&mut self, patience: Duration) -> Option<Report> {
        if let Ok(report) = self.0.try_recv() {
            return Some(report);
        }
        let (began, waker) = (Instant::now(), Waker::from(Arc::new(Unpark(thread::current()))));
        loop {
            if let Poll::Ready(report) = self.0.poll_recv(&mut Context::from_waker(&waker)) {
                return report;
            }
            let left = patience.checked_sub(began.elapsed()).filter(|left| !left.is_zero())?;
            thread::park_timeout(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::channel;

    use super::*;

    fn refused(address: &str) -> Report {
        Report::Refused(address.to_owned(), String::new())
    }

    #[test]
    fn a_report_ends_the_wait_and_reports_keep_their_order() {
        let (doors, reports) = channel(2);
        let mut inbox = Inbox::new(reports);
        assert!(inbox.next(Duration::ZERO).is_none());
        let sender = thread::spawn(move || {
            (0..100).for_each(|number| doors.blocking_send(refused(&number.to_string())).unwrap());
        });
        for number in 0..100 {
            let found = inbox.next(Duration::from_secs(600));
            assert!(matches!(&found, Some(Report::Refused(address, _)) if *address == number.to_string()), "{found:?}");
        }
        sender.join().unwrap();
        assert!(inbox.next(Duration::from_secs(600)).is_none(), "no door is left");
    }

    #[test]
    fn a_wait_without_reports_ends_in_time() {
        let (doors, reports) = channel(2);
        let (began, patience) = (Instant::now(), Duration::from_millis(20));
        // As if this thread had been woken for something else.
        thread::current().unpark();
        assert!(Inbox::new(reports).next(patience).is_none() && began.elapsed() >= patience);
        drop(doors);
    }
}
