//! The machine's memory, as the system reports it.

/// Memory of the machine in bytes; `u64::MAX` where the system does not report it.
pub(crate) fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    kilobytes.map_or(u64::MAX, |kilobytes: u64| kilobytes.saturating_mul(1024))
}
