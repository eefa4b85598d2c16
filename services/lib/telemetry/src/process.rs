//! What every process says of itself, read from the kernel when somebody asks.

use std::{fs, time::Instant};

use opentelemetry::KeyValue;

use crate::instruments;

/// Of the times in `/proc`, on every system that Linux is run on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Where the times are in `/proc/self/stat`, counted from what follows the name of the program.
const USER: usize = 11;
const PAGE: f64 = 4096.0;

pub(crate) fn observe() {
    let began = Instant::now();
    instruments::PROCESS_CPU_TIME.observe(|it| {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        for (mode, ticks) in ["user", "system"].into_iter().zip(times(&stat)) {
            it.see(ticks / TICKS_PER_SECOND, &[KeyValue::new("cpu.mode", mode)]);
        }
    });
    instruments::PROCESS_MEMORY_USAGE.observe(|it| {
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = statm.split(' ').nth(1);
        if let Some(Ok(pages)) = pages.map(str::parse::<f64>) {
            it.see(pages * PAGE, &[]);
        }
    });
    instruments::PROCESS_FILES.observe(|it| {
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            it.see(files.count() as f64, &[]);
        }
    });
    instruments::PROCESS_UPTIME.observe(move |it| it.see(began.elapsed().as_secs_f64(), &[]));
}

fn times(stat: &str) -> Vec<f64> {
    let fields = stat.rsplit_once(") ").map_or("", |it| it.1).split(' ');
    fields
        .skip(USER)
        .take(2)
        .filter_map(|it| it.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name_of_a_program() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 31 0 0 20 0 4 0 1 2 3";
        assert_eq!(times(stat), [250.0, 31.0]);
        assert_eq!(times(""), [0.0; 0]);
    }
}
