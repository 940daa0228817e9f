//! This machine: processor, memory, descriptors, clock, and places for files.
//!
//! Not here: its name and addresses (`names`, `addresses`).

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use convoy_common::text::counted;
use convoy_coordinator::cluster::local::SocketFolder;
use convoy_kernels::isa::Isa;
use convoy_net::tls::Role;
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
        memory(&read("/proc/meminfo"), Limited::read()),
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

/// The memory of a container: its limit, and how much of that is in use, without what the system would give back.
#[derive(Clone, Copy)]
struct Limited {
    limit: u64,
    used: u64,
}

impl Limited {
    /// As the control group of this process says. None: it has no limit, or this process sees only those of other processes.
    fn read() -> Option<Self> {
        let folder = "/sys/fs/cgroup/memory";
        Self::of(&read(&format!("{folder}.max")), &read(&format!("{folder}.current")), &read(&format!("{folder}.stat")))
    }

    /// From the texts of the files memory.max, which holds "max" if there is no limit, memory.current and memory.stat.
    fn of(limit: &str, used: &str, details: &str) -> Option<Self> {
        let reclaimable = details.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
        let used: u64 = used.trim().parse().ok()?;
        Some(Self { limit: limit.trim().parse().ok()?, used: used.saturating_sub(reclaimable.unwrap_or(0)) })
    }
}

/// What /proc/meminfo says, and the limit of the container.
fn memory(machine: &str, limited: Option<Limited>) -> Finding {
    let of = |key: &str| {
        let line = machine.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line?.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let (Some(total), Some(available)) = (of("MemTotal"), of("MemAvailable")) else {
        return Finding::ok("memory", "the system does not say how much there is");
    };
    let (available, of_what, of) = match limited.filter(|limited| limited.limit < total) {
        Some(Limited { limit, used }) => (available.min(limit.saturating_sub(used)), "this container", limit),
        None => (available, "this machine", total),
    };
    let found = format!("{} available; {of_what} has {}", bytes(available), bytes(of));
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

    const MEMINFO: &str = "MemTotal:       24000000 kB\nMemFree:         1000 kB\nMemAvailable:   20000000 kB\n";

    #[test]
    fn memory_is_that_of_the_machine_or_of_the_container() {
        let found = |limit, used, details| memory(MEMINFO, Limited::of(limit, used, details));
        assert_eq!(found("max\n", "5\n", "").found, "20.5 GB available; this machine has 24.6 GB");
        assert_eq!(found("", "", "").verdict, Verdict::Ok);
        let contained = found("4000000000\n", "1500000000\n", "file 9\ninactive_file 500000000\nactive_file 7\n");
        assert_eq!(contained.found, "3.0 GB available; this container has 4.0 GB");
        assert_eq!(found("1000000000\n", "900000000\n", "").verdict, Verdict::Warning);
        assert_eq!(found("99999999999999\n", "0\n", "").found, "20.5 GB available; this machine has 24.6 GB");
        assert_eq!(memory("", None).verdict, Verdict::Ok);
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
