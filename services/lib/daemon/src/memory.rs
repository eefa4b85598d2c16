//! What the kernel says of memory.

use std::collections::BTreeMap;

/// Resident memory of this process; 0 where the kernel does not tell.
pub fn resident_bytes() -> u64 {
    let figures = kib_figures("/proc/self/status");
    figures.get("VmRSS").copied().unwrap_or_default()
}

/// The lines `Key: number kB` of a file of the kernel, in bytes.
pub fn kib_figures(path: &str) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let figure = |line: &str| {
        let (key, value) = line.split_once(':')?;
        let number: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        Some((key.to_owned(), number * 1024))
    };
    text.lines().filter_map(figure).collect()
}
