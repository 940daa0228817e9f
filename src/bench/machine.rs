//! What the machine tells about processes and energy: the most memory that a process had, and the joules of its processors. Both are
//! known on Linux only, and energy only where the system lets this user read the processors' counters (RAPL); a virtual machine has none.
//!
//! Not here: times, which the job itself measures.

use std::fs;
use std::path::{Path, PathBuf};

/// The processors' energy counters.
const COUNTERS: &str = "/sys/class/powercap";

/// The most memory that a process of this machine has had, in bytes (`VmHWM`). None if it can't be known.
pub(super) fn peak_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Readings of the energy counters of all processors, in microjoules.
pub(super) struct Energy(Vec<(PathBuf, u64)>);

impl Energy {
    /// None if there are no counters, or this user may not read all of them.
    pub(super) fn read() -> Option<Self> {
        Self::read_in(Path::new(COUNTERS))
    }

    fn read_in(counters: &Path) -> Option<Self> {
        let entries = fs::read_dir(counters).ok()?.flatten().map(|entry| entry.path());
        // Each processor is a package. Other counters are of parts of it, of the whole platform, or the same again over another bus.
        let is_processor = |path: &PathBuf| {
            let is_rapl = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("intel-rapl:"));
            is_rapl && fs::read_to_string(path.join("name")).is_ok_and(|name| name.starts_with("package-"))
        };
        let read = |path: PathBuf| Some((path.clone(), number(&path.join("energy_uj"))?));
        let readings: Vec<_> = entries.filter(is_processor).map(read).collect::<Option<_>>()?;
        (!readings.is_empty()).then_some(Self(readings))
    }

    /// The joules since then. None if a counter can no longer be read.
    pub(super) fn joules_since(&self) -> Option<f64> {
        let since = |(path, before): &(PathBuf, u64)| {
            let now = number(&path.join("energy_uj"))?;
            // A counter that has reached its end begins at zero again.
            let turn = if now < *before { number(&path.join("max_energy_range_uj"))? } else { 0 };
            Some((now + turn).saturating_sub(*before) as f64 / 1e6)
        };
        self.0.iter().map(since).sum()
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_is_the_sum_over_processors_also_when_a_counter_begins_again() {
        let folder = tempfile::tempdir().unwrap();
        let write = |counter: &str, file: &str, value: u64| {
            fs::write(folder.path().join(counter).join(file), format!("{value}\n")).unwrap();
        };
        let counter = |counter: &str, name: &str| {
            fs::create_dir_all(folder.path().join(counter)).unwrap();
            fs::write(folder.path().join(counter).join("name"), format!("{name}\n")).unwrap();
        };
        assert!(Energy::read_in(folder.path()).is_none(), "no counter");
        for (path, name) in [
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:1", "package-1"),
            ("intel-rapl:2", "psys"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl-mmio:0", "package-0"),
        ] {
            counter(path, name);
            write(path, "energy_uj", 1);
        }
        write("intel-rapl:0", "energy_uj", 5_000_000);
        write("intel-rapl:1", "energy_uj", 9_000_000);
        write("intel-rapl:1", "max_energy_range_uj", 10_000_000);
        let before = Energy::read_in(folder.path()).unwrap();
        write("intel-rapl:0", "energy_uj", 7_000_000);
        write("intel-rapl:1", "energy_uj", 1_500_000);
        for other in ["intel-rapl:2", "intel-rapl:0:0", "intel-rapl-mmio:0"] {
            write(other, "energy_uj", 99_000_000);
        }
        assert_eq!(before.joules_since(), Some(2.0 + 2.5));
        fs::remove_file(folder.path().join("intel-rapl:1/energy_uj")).unwrap();
        assert_eq!(before.joules_since(), None);
    }

    #[test]
    fn a_process_has_memory_and_one_that_does_not_exist_has_none() {
        assert!(peak_memory(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(peak_memory(u32::MAX), None);
    }
}
