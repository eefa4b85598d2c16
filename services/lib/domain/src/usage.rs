//! What a container or a sandbox has used of the node.

/// Times in nanoseconds, the rest in bytes and counts. What the kernel does not count is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub total_cpu_time: u64,
    pub user_cpu_time: u64,
    pub kernel_cpu_time: u64,
    /// Periods in which it ran, where its CPU is limited.
    pub cpu_periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
    pub memory_usage: u64,
    /// Without the files that the kernel can drop at any time.
    pub memory_working_set: u64,
    pub memory_peak: u64,
    pub swap_usage: u64,
    pub swap_peak: u64,
    /// Processes that the kernel killed for memory.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    pub io_read_bytes: u64,
    pub io_written_bytes: u64,
    pub io_reads: u64,
    pub io_writes: u64,
    /// `None` where the kernel does not measure it.
    pub pressure: Option<Pressure>,
}

impl Usage {
    /// Both together. Waiting cannot be added up: who waits in one while another runs does not wait in the whole.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            total_cpu_time: self.total_cpu_time + other.total_cpu_time,
            user_cpu_time: self.user_cpu_time + other.user_cpu_time,
            kernel_cpu_time: self.kernel_cpu_time + other.kernel_cpu_time,
            cpu_periods: self.cpu_periods + other.cpu_periods,
            throttled_periods: self.throttled_periods + other.throttled_periods,
            throttled_time: self.throttled_time + other.throttled_time,
            memory_usage: self.memory_usage + other.memory_usage,
            memory_working_set: self.memory_working_set + other.memory_working_set,
            memory_peak: self.memory_peak + other.memory_peak,
            swap_usage: self.swap_usage + other.swap_usage,
            swap_peak: self.swap_peak + other.swap_peak,
            oom_kills: self.oom_kills + other.oom_kills,
            pids: self.pids + other.pids,
            io_read_bytes: self.io_read_bytes + other.io_read_bytes,
            io_written_bytes: self.io_written_bytes + other.io_written_bytes,
            io_reads: self.io_reads + other.io_reads,
            io_writes: self.io_writes + other.io_writes,
            pressure: None,
        }
    }
}

/// How long processes have waited for what they lacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub cpu: Stall,
    pub memory: Stall,
    pub io: Stall,
}

/// In nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// At least one process waited.
    pub some: u64,
    /// All of them did.
    pub full: u64,
}

/// What came and went over a link, as its sandbox sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub sent_packets: u64,
    pub received_drops: u64,
    pub sent_drops: u64,
}
