//! This machine: processor, memory, descriptors, clock, and places for files.
//!
//! Not here: its name and addresses (`names`, `addresses`).

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use convoy_common::text::counted;
use convoy_coordinator::cluster::local::SocketFolder;
use convoy_net::tls::Role;
use convoy_worker::{Isa, Memory};
use rustix::process::{Resource, getrlimit};
use time::OffsetDateTime;

use crate::finding::Finding;

/// A coordinator of many workers has some hundred connections, besides up to 512 of strangers.
const DESCRIPTORS_MIN: u64 = 1024;
/// Less memory than this is enough for small networks only.
const MEMORY_MIN: u64 = 1 << 30;
/// A checkpoint of AlexNet has 0.5 GB, and two are kept.
const DISK_MIN: u64 = 2 << 30;
/// This program did not exist before 2026-01-01, in seconds since 1970, so a clock that shows less is wrong.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// All checks of this machine, for a process of this role; none: for a job on this machine alone. A coordinator writes to the folder `run`.
pub fn findings(run: &Path, role: Option<Role>) -> Vec<Finding> {
    let mut findings = vec![
        processor(&read("/proc/cpuinfo"), Isa::detect()),
        memory(Memory::read()),
        descriptors(getrlimit(Resource::Nofile).current),
        clock(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
    ];
    if role.is_none() {
        findings.push(sockets());
    }
    if role != Some(Role::Worker) {
        findings.push(disk(run));
    }
    findings
}

/// The text of a file of the system; empty if there is none.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn processor(text: &str, isa: Isa) -> Finding {
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = counted(cores, "core", "cores");
    let found = format!("{name}; this process may use {cores}; the kernels use {isa}");
    match isa {
        Isa::Scalar => Finding::warning(
            "processor",
            found,
            "kernels without vectors are many times slower; use a processor with AVX2, AVX-512 or NEON",
        ),
        _ => Finding::ok("processor", found),
    }
}

/// What this process may use.
fn memory(memory: Option<Memory>) -> Finding {
    let Some(Memory { total, available, limited }) = memory else {
        return Finding::ok("memory", "the system does not say how much there is");
    };
    let of_what = if limited { "this container or service may use" } else { "this machine has" };
    let found = format!("{} available; {of_what} {}", bytes(available), bytes(total));
    let advice = "`convoy plan --model MODEL --batch N` shows how much memory a job needs; end other programs, or use more workers";
    if available < MEMORY_MIN { Finding::warning("memory", found, advice) } else { Finding::ok("memory", found) }
}

fn descriptors(limit: Option<u64>) -> Finding {
    match limit {
        None => Finding::ok("descriptors", "no limit"),
        Some(limit) if limit < DESCRIPTORS_MIN => Finding::warning(
            "descriptors",
            format!("a process may have {limit} open files"),
            format!("allow at least {DESCRIPTORS_MIN}, for example with `ulimit -n {DESCRIPTORS_MIN}`"),
        ),
        Some(limit) => Finding::ok("descriptors", format!("a process may have {limit} open files")),
    }
}

/// What the system's clock says: the time since 1970.
fn clock(now: Duration) -> Finding {
    let time = OffsetDateTime::UNIX_EPOCH + now;
    let (date, hour, minute, second) = (time.date(), time.hour(), time.minute(), time.second());
    let found = format!("{date} {hour:02}:{minute:02}:{second:02} UTC");
    if now < EARLIEST {
        return Finding::wrong("clock", found, "set the clock, for example with a time service (NTP); TLS needs it");
    }
    Finding::ok("clock", found)
}

/// Whether local workers can have a Unix socket. Their folder is removed at once.
fn sockets() -> Finding {
    match SocketFolder::create() {
        Ok(folder) => Finding::ok("local workers", format!("can have a socket ({})", folder.address())),
        Err(error) => Finding::wrong(
            "local workers",
            format!("no temporary folder can hold their socket: {error}"),
            "set TMPDIR to a folder that this user can write, with a short name",
        ),
    }
}

/// The disk that holds the folder of runs, or that will.
fn disk(runs: &Path) -> Finding {
    let subject = "disk";
    // The last one is empty for a relative path, and stands for the current folder.
    let there = runs.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("."));
    let shown = there.display();
    if !there.is_dir() {
        return Finding::wrong(subject, format!("{shown} is not a folder"), "give another --out");
    }
    let free = match rustix::fs::statvfs(there) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(error) => {
            return Finding::wrong(subject, format!("cannot look at {shown}: {error}"), "give another --out");
        }
    };
    if let Err(error) = rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        let found = format!("this user cannot write to {shown}: {error}");
        return Finding::wrong(subject, found, "a job writes to the folder of its run; give another --out");
    }
    let found = format!("{} free for runs in {shown}", bytes(free));
    if free < DISK_MIN {
        return Finding::warning(
            subject,
            found,
            "a job ends if it can't write a checkpoint; make room, or give another --out",
        );
    }
    Finding::ok(subject, found)
}

/// A number of bytes, for a person.
pub(crate) fn bytes(count: u64) -> String {
    let count = count as f64;
    if count >= 1e9 { format!("{:.1} GB", count / 1e9) } else { format!("{:.0} MB", count / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Verdict;

    #[test]
    fn memory_is_what_this_process_may_use() {
        let found = |available, limited| memory(Some(Memory { total: 4_000_000_000, available, limited }));
        assert_eq!(found(3_000_000_000, false).found, "3.0 GB available; this machine has 4.0 GB");
        assert_eq!(found(3_000_000_000, true).found, "3.0 GB available; this container or service may use 4.0 GB");
        let verdicts = [found(3_000_000_000, true), found(100_000_000, true), memory(None)].map(|found| found.verdict);
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warning, Verdict::Ok]);
    }

    #[test]
    fn few_descriptors_are_a_warning_and_a_clock_in_the_past_is_wrong() {
        let verdicts = [Some(1023), Some(1024), None].map(|limit| descriptors(limit).verdict);
        assert_eq!(verdicts, [Verdict::Warning, Verdict::Ok, Verdict::Ok]);
        let reset = clock(Duration::ZERO);
        assert!(reset.verdict == Verdict::Wrong && reset.found == "1970-01-01 00:00:00 UTC", "{reset:?}");
        assert_eq!(clock(EARLIEST).verdict, Verdict::Ok);
    }

    #[test]
    fn kernels_without_vectors_are_a_warning() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        let [best, scalar] = [Isa::detect(), Isa::Scalar].map(|isa| processor(text, isa));
        assert!(best.found.starts_with("Some CPU @ 2 GHz; "), "{best:?}");
        assert_eq!(scalar.verdict, Verdict::Warning);
    }

    #[test]
    fn a_folder_that_does_not_exist_is_on_the_disk_of_the_one_above() {
        let folder = std::env::temp_dir();
        let found = disk(&folder.join("no/such/folder"));
        assert!(found.found.contains(&folder.display().to_string()), "{found:?}");
    }
}
