//! The memory that this process may use: that of the machine, or less if a container or a service has a limit.
//!
//! Not here: how much memory a job needs (`tower`).

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The most memory that this process may use, in bytes; `u64::MAX` where the system does not say.
pub(crate) fn most_bytes() -> u64 {
    Memory::read().map_or(u64::MAX, |memory| memory.total)
}

/// Memory in bytes, and how much of it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What this process and those beside it may use at most.
    pub total: u64,
    /// What is left of that. What the system gives back when memory runs out counts as left.
    pub available: u64,
    /// Whether the limit of a control group is the reason, as in a container. Otherwise, the machine has no more.
    pub limited: bool,
}

impl Memory {
    /// What the system says; none where it says nothing.
    pub fn read() -> Option<Self> {
        let machine = Self::of_machine(&read("/proc/meminfo"))?;
        Some(machine.within(folders(&read("/proc/self/cgroup")).iter().filter_map(|folder| Limit::read(folder))))
    }

    /// From the text of /proc/meminfo.
    fn of_machine(text: &str) -> Option<Self> {
        let of = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        let total = of("MemTotal")?;
        Some(Self { total, available: of("MemAvailable").unwrap_or(total), limited: false })
    }

    /// The same under the limits of control groups.
    fn within(self, limits: impl IntoIterator<Item = Limit>) -> Self {
        limits.into_iter().filter(|limit| limit.bytes < self.total).fold(self, |memory, limit| Self {
            total: memory.total.min(limit.bytes),
            available: memory.available.min(limit.bytes.saturating_sub(limit.used)),
            limited: true,
        })
    }
}

/// The limit of a control group, and how much of that is in use, in bytes.
struct Limit {
    bytes: u64,
    used: u64,
}

impl Limit {
    /// What the files in the folder of a control group say, of either version; none if it has no limit.
    fn read(folder: &Path) -> Option<Self> {
        let text = |name| read(folder.join(name));
        let details = text("memory.stat");
        Self::of(&text("memory.max"), &text("memory.current"), &details)
            .or_else(|| Self::of(&text("memory.limit_in_bytes"), &text("memory.usage_in_bytes"), &details))
    }

    /// From the limit, the use, and what the use consists of. Without a limit, there is the word "max" or a huge number.
    fn of(limit: &str, used: &str, details: &str) -> Option<Self> {
        let of = |key: &str| details.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
        // Pages of files that were not used recently are given back before memory runs out.
        let reclaimable: u64 = of("total_inactive_file ").or_else(|| of("inactive_file ")).unwrap_or(0);
        let used: u64 = used.trim().parse().ok()?;
        Some(Self { bytes: limit.trim().parse().ok()?, used: used.saturating_sub(reclaimable) })
    }
}

/// The folders of the control groups that limit this process, from the text of /proc/self/cgroup: its own, and those above. A container
/// often sees only the last one, where the system shows it its own group.
fn folders(groups: &str) -> Vec<PathBuf> {
    groups.lines().filter_map(folders_of).flatten().collect()
}

/// The folders of a line, `NUMBER:CONTROLLERS:PATH`.
fn folders_of(line: &str) -> Option<Vec<PathBuf>> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let top = match controllers {
        "" => "/sys/fs/cgroup",
        _ if controllers.split(',').any(|name| name == "memory") => "/sys/fs/cgroup/memory",
        _ => return None,
    };
    // A group above the one that this process sees has no folder here.
    let path = Path::new(path.strip_prefix('/')?);
    let is_seen = path.components().all(|component| matches!(component, Component::Normal(_)));
    is_seen.then(|| path.ancestors().map(|path| Path::new(top).join(path)).collect())
}

/// The text of a file of the system; empty if there is none.
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24000000 kB\nMemFree:         1000 kB\nMemAvailable:   20000000 kB\n";

    #[test]
    fn memory_is_that_of_the_machine_or_what_a_control_group_allows() {
        let machine = Memory::of_machine(MEMINFO).unwrap();
        assert_eq!(machine, Memory { total: 24_576_000_000, available: 20_480_000_000, limited: false });
        let within = |limit, used, details| machine.within(Limit::of(limit, used, details));
        assert_eq!(within("max\n", "5\n", ""), machine);
        assert_eq!(within("", "", ""), machine);
        // Version 1 has no word for no limit.
        assert_eq!(within("9223372036854771712\n", "5\n", ""), machine);
        let contained = Memory { total: 4_000_000_000, available: 3_000_000_000, limited: true };
        let details = "file 9\ninactive_file 500000000\nactive_file 7\n";
        assert_eq!(within("4000000000\n", "1500000000\n", details), contained);
        let details = "inactive_file 1\ntotal_inactive_file 500000000\n";
        assert_eq!(within("4000000000\n", "1500000000\n", details), contained);
        assert_eq!(within("1000\n", "2000\n", ""), Memory { total: 1000, available: 0, limited: true });
        let outer = [Limit { bytes: 9000, used: 8999 }, Limit { bytes: 5000, used: 0 }];
        assert_eq!(machine.within(outer), Memory { total: 5000, available: 1, limited: true });
        let old = Memory { total: 5120, available: 5120, limited: false };
        assert_eq!(Memory::of_machine("MemTotal: 5 kB\n"), Some(old), "old systems say no more");
        assert_eq!(Memory::of_machine("MemFree: 5 kB\n"), None);
    }

    #[test]
    fn the_groups_of_a_process_are_its_own_and_those_above() {
        let own = ["/sys/fs/cgroup/system.slice/convoy.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"];
        assert_eq!(folders("0::/system.slice/convoy.service\n"), own.map(PathBuf::from));
        let own = [
            "/sys/fs/cgroup/memory/docker/f00",
            "/sys/fs/cgroup/memory/docker",
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup",
        ];
        assert_eq!(folders("5:devices:/a\n4:cpu,memory:/docker/f00\n0::/\n"), own.map(PathBuf::from));
        // A group outside of what this process sees.
        assert_eq!(folders("0::/../other\n"), Vec::<PathBuf>::new());
        assert_eq!(folders("nonsense\n\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn this_process_has_memory() {
        let memory = Memory::read().unwrap();
        assert!(memory.total > 0 && memory.available <= memory.total, "{memory:?}");
    }
}
