//! Figures of cgroups, from the domain to the contract.

use berth_domain::usage::{Pressure, Usage};

use crate::v1;

pub fn usage_to_proto(it: &Usage) -> v1::ResourceUsage {
    v1::ResourceUsage {
        total_cpu_time: it.total_cpu_time,
        user_cpu_time: it.user_cpu_time,
        kernel_cpu_time: it.kernel_cpu_time,
        cpu_periods: it.cpu_periods,
        throttled_periods: it.throttled_periods,
        throttled_time: it.throttled_time,
        memory_usage: it.memory_usage,
        memory_working_set: it.memory_working_set,
        memory_peak: it.memory_peak,
        swap_usage: it.swap_usage,
        swap_peak: it.swap_peak,
        oom_kills: it.oom_kills,
        pids: it.pids,
        io_read_bytes: it.io_read_bytes,
        io_written_bytes: it.io_written_bytes,
        io_reads: it.io_reads,
        io_writes: it.io_writes,
        pressure: it.pressure.map(pressure_to_proto),
    }
}

fn pressure_to_proto(it: Pressure) -> v1::ResourcePressure {
    v1::ResourcePressure {
        cpu_some: it.cpu.some,
        cpu_full: it.cpu.full,
        memory_some: it.memory.some,
        memory_full: it.memory.full,
        io_some: it.io.some,
        io_full: it.io.full,
    }
}
