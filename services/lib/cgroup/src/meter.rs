//! What the kernel counts for a cgroup: a table for each version says which file has which figures.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use berth_domain::usage::{Pressure, Stall, Usage};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::{Errno, pread},
};

use crate::hierarchy::{CgroupError, Hierarchy, Kind};

/// A cgroup that has used no CPU since is read in full in one of so many rounds: only what others do to it can have changed, as
/// the kernel that reclaims its memory.
const QUIET_ROUNDS: u64 = 20;

/// A file, and what it says. The first of a version has the CPU time.
#[derive(Debug)]
struct Source {
    /// Whose hierarchy it is in. Empty on v2, which has one.
    controller: &'static str,
    name: &'static str,
    take: fn(&mut Raw, &str),
}

/// Figures as the files have them.
#[derive(Default)]
struct Raw {
    usage: Usage,
    inactive_files: u64,
    /// Memory and swap, which v1 counts together.
    with_swap: u64,
    with_swap_peak: u64,
}

#[rustfmt::skip]
const V1: &[Source] = &[
    v1("cpuacct", "cpuacct.usage", |it, text| it.usage.total_cpu_time = number(text)),
    v1("cpuacct", "cpuacct.usage_sys", |it, text| it.usage.kernel_cpu_time = number(text)),
    v1("cpu", "cpu.stat", |it, text| {
        it.usage.cpu_periods = entry(text, "nr_periods");
        it.usage.throttled_periods = entry(text, "nr_throttled");
        it.usage.throttled_time = entry(text, "throttled_time");
    }),
    v1("memory", "memory.usage_in_bytes", |it, text| it.usage.memory_usage = number(text)),
    v1("memory", "memory.max_usage_in_bytes", |it, text| it.usage.memory_peak = number(text)),
    v1("memory", "memory.memsw.usage_in_bytes", |it, text| it.with_swap = number(text)),
    v1("memory", "memory.memsw.max_usage_in_bytes", |it, text| it.with_swap_peak = number(text)),
    v1("memory", "memory.stat", |it, text| it.inactive_files = entry(text, "total_inactive_file")),
    v1("memory", "memory.oom_control", |it, text| it.usage.oom_kills = entry(text, "oom_kill")),
    v1("pids", "pids.current", |it, text| it.usage.pids = number(text)),
    v1("blkio", "blkio.throttle.io_service_bytes_recursive", |it, text| {
        it.usage.io_read_bytes = of_devices(text, "Read", ' ');
        it.usage.io_written_bytes = of_devices(text, "Write", ' ');
    }),
    v1("blkio", "blkio.throttle.io_serviced_recursive", |it, text| {
        it.usage.io_reads = of_devices(text, "Read", ' ');
        it.usage.io_writes = of_devices(text, "Write", ' ');
    }),
];

#[rustfmt::skip]
const V2: &[Source] = &[
    v2("cpu.stat", |it, text| {
        it.usage.total_cpu_time = of_micros(entry(text, "usage_usec"));
        it.usage.kernel_cpu_time = of_micros(entry(text, "system_usec"));
        it.usage.cpu_periods = entry(text, "nr_periods");
        it.usage.throttled_periods = entry(text, "nr_throttled");
        it.usage.throttled_time = of_micros(entry(text, "throttled_usec"));
    }),
    v2("memory.current", |it, text| it.usage.memory_usage = number(text)),
    v2("memory.peak", |it, text| it.usage.memory_peak = number(text)),
    v2("memory.swap.current", |it, text| it.usage.swap_usage = number(text)),
    v2("memory.swap.peak", |it, text| it.usage.swap_peak = number(text)),
    v2("memory.stat", |it, text| it.inactive_files = entry(text, "inactive_file")),
    v2("memory.events", |it, text| it.usage.oom_kills = entry(text, "oom_kill")),
    v2("pids.current", |it, text| it.usage.pids = number(text)),
    v2("io.stat", |it, text| {
        it.usage.io_read_bytes = of_devices(text, "rbytes", '=');
        it.usage.io_written_bytes = of_devices(text, "wbytes", '=');
        it.usage.io_reads = of_devices(text, "rios", '=');
        it.usage.io_writes = of_devices(text, "wios", '=');
    }),
    v2("cpu.pressure", |it, text| pressure(it).cpu = stall(text)),
    v2("memory.pressure", |it, text| pressure(it).memory = stall(text)),
    v2("io.pressure", |it, text| pressure(it).io = stall(text)),
];

const fn v1(controller: &'static str, name: &'static str, take: fn(&mut Raw, &str)) -> Source {
    Source {
        controller,
        name,
        take,
    }
}

const fn v2(name: &'static str, take: fn(&mut Raw, &str)) -> Source {
    v1("", name, take)
}

impl Raw {
    /// The figures of one version in the terms of both.
    fn finish(self, version: u32) -> Usage {
        let mut it = self.usage;
        // On v1 the kernel's share is counted in ticks and the total is measured: a young process can have more of the share
        // than of the whole.
        it.kernel_cpu_time = it.kernel_cpu_time.min(it.total_cpu_time);
        it.user_cpu_time = it.total_cpu_time - it.kernel_cpu_time;
        // Read at different times, so that a part can be more than its whole.
        it.memory_working_set = it.memory_usage.saturating_sub(self.inactive_files);
        if version == 1 {
            it.swap_usage = self.with_swap.saturating_sub(it.memory_usage);
            it.swap_peak = self.with_swap_peak.saturating_sub(it.memory_peak);
        }
        it
    }
}

/// Reads cgroups again and again. The file with the CPU time stays open, up to a number of files, and who has used none is not
/// read any further.
#[derive(Debug)]
pub struct Meter {
    version: u32,
    sources: &'static [Source],
    /// Of each source; `None` where its controller is not mounted.
    roots: Vec<Option<PathBuf>>,
    known: HashMap<String, Known>,
    open_max: usize,
    /// Cgroups that became known so far.
    met: u64,
    round: u64,
    text: Vec<u8>,
}

/// What is kept of a cgroup between two readings.
#[derive(Debug)]
struct Known {
    /// That of the first source.
    file: OwnedFd,
    /// What the first source said.
    cpu: Usage,
    last: Usage,
    /// Tells in which round it is read in full.
    number: u64,
    /// In which it was read last.
    round: u64,
}

impl Meter {
    /// One that keeps at most `open_max` files open.
    pub fn new(hierarchy: &Hierarchy, open_max: usize) -> Self {
        let sources = match &hierarchy.kind {
            Kind::V1 { .. } => V1,
            Kind::V2 { .. } => V2,
        };
        let root = |it: &Source| match &hierarchy.kind {
            Kind::V1 { readable, .. } => readable.get(it.controller).cloned(),
            Kind::V2 { root } => Some(root.clone()),
        };
        Self {
            version: hierarchy.version(),
            sources,
            roots: sources.iter().map(root).collect(),
            known: HashMap::new(),
            open_max,
            met: 0,
            round: 0,
            text: vec![0; 16 << 10],
        }
    }

    /// The figures of a cgroup; `None` where it is gone.
    pub fn read(&mut self, path: &str) -> Result<Option<Usage>, CgroupError> {
        let Some(mut known) = self.known.remove(path) else {
            return self.read_in_full(path, None);
        };
        let first = read(&known.file, &mut self.text).map_err(|it| of_read(path, it))?;
        let Some(text) = first else {
            // Another cgroup may stand in the place of the one whose file is open.
            return self.read_in_full(path, None);
        };
        let mut raw = Raw::default();
        (self.sources[0].take)(&mut raw, text);
        if raw.usage != known.cpu || known.number % QUIET_ROUNDS == self.round % QUIET_ROUNDS {
            return self.read_in_full(path, Some(known));
        }
        known.round = self.round;
        let usage = known.last;
        self.known.insert(path.to_owned(), known);
        Ok(Some(usage))
    }

    /// Ends a round of readings: forgets the cgroups that were not in it.
    pub fn end_round(&mut self) {
        let round = self.round;
        self.known.retain(|_, it| it.round == round);
        self.round += 1;
    }

    /// Files that are open between two readings.
    pub fn open_files(&self) -> usize {
        self.known.len()
    }

    fn read_in_full(
        &mut self,
        path: &str,
        known: Option<Known>,
    ) -> Result<Option<Usage>, CgroupError> {
        let (mut old, number) = match known {
            Some(known) => (Some(known.file), Some(known.number)),
            None => (None, None),
        };
        let (mut raw, mut first, mut found) = (Raw::default(), None, false);
        for (at, (source, root)) in self.sources.iter().zip(&self.roots).enumerate() {
            let file = match (old.take(), root) {
                (Some(old), _) => Some(old),
                (None, Some(root)) => open(&root.join(path).join(source.name))?,
                (None, None) => None,
            };
            let Some(file) = file else { continue };
            let text = read(&file, &mut self.text).map_err(|it| of_read(path, it))?;
            let Some(text) = text else { continue };
            (source.take)(&mut raw, text);
            found = true;
            if at == 0 {
                first = Some((file, raw.usage));
            }
        }
        if !found {
            return Ok(None);
        }
        let last = raw.finish(self.version);
        if let Some((file, cpu)) = first
            && self.known.len() < self.open_max
        {
            let number = number.unwrap_or_else(|| {
                self.met += 1;
                self.met
            });
            let known = Known {
                file,
                cpu,
                last,
                number,
                round: self.round,
            };
            self.known.insert(path.to_owned(), known);
        }
        Ok(Some(last))
    }
}

fn of_read(path: &str, error: Errno) -> CgroupError {
    CgroupError::failed("reading", Path::new(path), error.into())
}

impl Hierarchy {
    /// Reads the figures of a cgroup once; `None` where it is gone.
    pub fn usage(&self, path: &str) -> Result<Option<Usage>, CgroupError> {
        Meter::new(self, 0).read(path)
    }
}

/// `None` where this kernel does not have the file, or the cgroup is gone.
fn open(path: &Path) -> Result<Option<OwnedFd>, CgroupError> {
    match openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        Err(error) => Err(CgroupError::failed("opening", path, error.into())),
    }
}

/// The whole of a file; `None` where its cgroup is gone.
fn read<'a>(file: &OwnedFd, text: &'a mut Vec<u8>) -> Result<Option<&'a str>, Errno> {
    let mut length = 0;
    loop {
        let Some(room) = text.get_mut(length..).filter(|it| !it.is_empty()) else {
            text.resize(text.len() * 2, 0);
            continue;
        };
        let size = room.len();
        match pread(file, room, length as u64) {
            // Less than there was room for is all that there is: saves asking for the end.
            Ok(count) if count < size => {
                length += count;
                let text = text.get(..length).unwrap_or_default();
                return Ok(Some(str::from_utf8(text).unwrap_or_default()));
            }
            Ok(count) => length += count,
            // Removed, or a measure that was switched off.
            Err(Errno::NODEV | Errno::OPNOTSUPP) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

/// The figure of `key` in lines of `key figure`.
pub(crate) fn entry(text: &str, key: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.map(number).unwrap_or_default()
}

/// The sum of a figure over the devices: words of `key<between>figure` after each device's number.
fn of_devices(text: &str, key: &str, between: char) -> u64 {
    let figures = text.lines().filter_map(|line| {
        let (device, figures) = line.split_once(' ')?;
        if !device.contains(':') {
            return None;
        }
        if between == ' ' {
            return figures.strip_prefix(key)?.strip_prefix(' ').map(number);
        }
        figures
            .split(' ')
            .find_map(|it| it.strip_prefix(key)?.strip_prefix(between).map(number))
    });
    figures.sum()
}

fn pressure(raw: &mut Raw) -> &mut Pressure {
    raw.usage.pressure.get_or_insert_default()
}

fn stall(text: &str) -> Stall {
    let total = |kind: &str| {
        let line = text.lines().find(|it| it.starts_with(kind));
        let total = line.and_then(|it| it.rsplit_once("total="));
        of_micros(total.map(|(_, it)| number(it)).unwrap_or_default())
    };
    Stall {
        some: total("some "),
        full: total("full "),
    }
}

fn of_micros(micros: u64) -> u64 {
    micros.saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::hierarchy::tests::v2_like;

    fn v1_like(root: &Path) -> Hierarchy {
        let readable = ["cpuacct", "cpu", "memory", "pids", "blkio"]
            .map(|it| (it.to_owned(), root.join(it)))
            .into();
        Hierarchy {
            kind: Kind::V1 {
                controllers: vec![],
                readable,
                roots: [root.to_owned()].into(),
            },
        }
    }

    fn put(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn figures_of_v1_are_read_in_the_documented_units() {
        let dir = tempfile::tempdir().unwrap();
        let of = |controller: &str| dir.path().join(controller).join("berth/web");
        put(
            &of("cpuacct"),
            &[("cpuacct.usage", "12\n"), ("cpuacct.usage_sys", "5\n")],
        );
        put(
            &of("cpu"),
            &[(
                "cpu.stat",
                "nr_periods 9\nnr_throttled 4\nthrottled_time 77\n",
            )],
        );
        put(
            &of("memory"),
            &[
                ("memory.usage_in_bytes", "100\n"),
                ("memory.max_usage_in_bytes", "200\n"),
                ("memory.memsw.usage_in_bytes", "130\n"),
                ("memory.memsw.max_usage_in_bytes", "260\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 40\n"),
                (
                    "memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                ),
            ],
        );
        put(&of("pids"), &[("pids.current", "3\n")]);
        let bytes =
            "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\n8:16 Write 2\n8:0 Total 30\nTotal 33\n";
        let counts = "8:0 Read 4\n8:0 Write 5\nTotal 9\n";
        put(
            &of("blkio"),
            &[
                ("blkio.throttle.io_service_bytes_recursive", bytes),
                ("blkio.throttle.io_serviced_recursive", counts),
            ],
        );
        let expected = Usage {
            total_cpu_time: 12,
            user_cpu_time: 7,
            kernel_cpu_time: 5,
            cpu_periods: 9,
            throttled_periods: 4,
            throttled_time: 77,
            memory_usage: 100,
            memory_working_set: 60,
            memory_peak: 200,
            swap_usage: 30,
            swap_peak: 60,
            oom_kills: 2,
            pids: 3,
            io_read_bytes: 11,
            io_written_bytes: 22,
            io_reads: 4,
            io_writes: 5,
            pressure: None,
        };
        let hierarchy = v1_like(dir.path());
        assert_eq!(hierarchy.usage("berth/web").unwrap(), Some(expected));
        assert_eq!(hierarchy.usage("berth/other").unwrap(), None);
    }

    #[test]
    fn figures_of_v2_are_read_in_the_documented_units() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = v2_like(dir.path());
        let pressure = |some: u64, full: u64| {
            format!(
                "some avg10=0.00 avg60=0.00 avg300=0.00 total={some}\n\
                 full avg10=0.00 avg60=0.00 avg300=0.00 total={full}\n"
            )
        };
        put(
            &dir.path().join("berth/web"),
            &[
                (
                    "cpu.stat",
                    "usage_usec 12\nuser_usec 7\nsystem_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 6\n",
                ),
                ("memory.current", "4096\n"),
                ("memory.peak", "8192\n"),
                ("memory.swap.current", "1\n"),
                ("memory.stat", "anon 3\ninactive_file 96\n"),
                (
                    "memory.events",
                    "low 0\noom 4\noom_kill 2\noom_group_kill 9\n",
                ),
                ("pids.current", "3\n"),
                (
                    "io.stat",
                    "8:0 rbytes=10 wbytes=20 rios=4 wios=5 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 rios=0 wios=0\n",
                ),
                ("cpu.pressure", &pressure(3, 1)),
                ("memory.pressure", &pressure(5, 2)),
                ("io.pressure", &pressure(7, 4)),
            ],
        );
        let stall = |some, full| Stall { some, full };
        let expected = Usage {
            total_cpu_time: 12_000,
            user_cpu_time: 7_000,
            kernel_cpu_time: 5_000,
            cpu_periods: 9,
            throttled_periods: 4,
            throttled_time: 6_000,
            memory_usage: 4096,
            memory_working_set: 4000,
            memory_peak: 8192,
            swap_usage: 1,
            swap_peak: 0,
            oom_kills: 2,
            pids: 3,
            io_read_bytes: 11,
            io_written_bytes: 22,
            io_reads: 4,
            io_writes: 5,
            pressure: Some(Pressure {
                cpu: stall(3_000, 1_000),
                memory: stall(5_000, 2_000),
                io: stall(7_000, 4_000),
            }),
        };
        assert_eq!(hierarchy.usage("berth/web").unwrap(), Some(expected));
        assert_eq!(hierarchy.usage("berth/other").unwrap(), None);
    }

    #[test]
    fn a_part_is_never_more_than_its_whole() {
        let raw = Raw {
            usage: Usage {
                total_cpu_time: 3,
                kernel_cpu_time: 4,
                memory_usage: 10,
                ..Usage::default()
            },
            inactive_files: 11,
            with_swap: 9,
            with_swap_peak: 0,
        };
        let it = raw.finish(1);
        assert_eq!((it.kernel_cpu_time, it.user_cpu_time), (3, 0));
        assert_eq!((it.memory_working_set, it.swap_usage), (0, 0));
    }

    #[test]
    fn so_many_files_stay_open_and_what_is_read_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = v2_like(dir.path());
        let paths = ["berth/web", "berth/api"];
        let put = |cpu: u64, pids: u64| {
            for path in paths {
                let (cpu, pids) = (format!("usage_usec {cpu}\n"), format!("{pids}\n"));
                put(
                    &dir.path().join(path),
                    &[("cpu.stat", cpu.as_str()), ("pids.current", pids.as_str())],
                );
            }
        };
        put(1, 1);
        let mut meter = Meter::new(&hierarchy, 1);
        let read = |meter: &mut Meter| {
            let pids = paths.map(|it| meter.read(it).unwrap().map(|it| it.pids));
            assert_eq!(meter.open_files(), 1, "no room for another");
            pids
        };
        assert_eq!(read(&mut meter), [Some(1), Some(1)]);
        put(2, 12);
        assert_eq!(read(&mut meter), [Some(12), Some(12)]);
        meter.end_round();
        assert_eq!(meter.open_files(), 1);
        assert_eq!(meter.read("berth/none").unwrap(), None);
        meter.end_round();
        assert_eq!(meter.open_files(), 0, "what is no longer read is forgotten");
    }

    #[test]
    fn who_has_used_no_cpu_is_read_in_full_once_in_so_many_rounds() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = v2_like(dir.path());
        let paths = ["berth/web", "berth/api", "berth/db"];
        for path in paths {
            put(
                &dir.path().join(path),
                &[("cpu.stat", "usage_usec 7\nnr_throttled 0\n")],
            );
        }
        let mut meter = Meter::new(&hierarchy, 100);
        let mut fresh = vec![vec![]; paths.len()];
        for round in 0..2 * QUIET_ROUNDS {
            for (path, fresh) in paths.iter().zip(&mut fresh) {
                let pids = format!("{round}\n");
                put(&dir.path().join(path), &[("pids.current", pids.as_str())]);
                if meter.read(path).unwrap().unwrap().pids == round {
                    fresh.push(round);
                }
            }
            meter.end_round();
        }
        // The first time, and then each in a round of its own.
        let own = |number| vec![0, number, number + QUIET_ROUNDS];
        assert_eq!(fresh, [own(1), own(2), own(3)]);

        let read = |meter: &mut Meter| meter.read("berth/web").unwrap().unwrap().pids;
        let web = dir.path().join("berth/web");
        put(&web, &[("pids.current", "99\n")]);
        assert_ne!(read(&mut meter), 99);
        put(&web, &[("cpu.stat", "usage_usec 7\nnr_throttled 1\n")]);
        assert_eq!(
            read(&mut meter),
            99,
            "what is read anyway is never of before"
        );
        put(&web, &[("pids.current", "100\n")]);
        assert_ne!(read(&mut meter), 100);
        put(&web, &[("cpu.stat", "usage_usec 8\nnr_throttled 1\n")]);
        assert_eq!(read(&mut meter), 100);
    }

    /// Needs the right to make cgroups.
    #[test]
    fn a_cgroup_that_is_made_anew_in_the_place_of_another_is_read_and_one_that_is_gone_is_not() {
        let hierarchy = Hierarchy::detect().unwrap();
        let path = format!("berth-meter-{}", std::process::id());
        let mut meter = Meter::new(&hierarchy, 1);
        for _ in 0..2 {
            hierarchy
                .create(&path, &berth_domain::Resources::default())
                .unwrap();
            assert!(meter.read(&path).unwrap().is_some());
            assert!(meter.open_files() > 0);
            hierarchy.remove(&path).unwrap();
        }
        assert_eq!(meter.read(&path).unwrap(), None);
        assert_eq!(meter.open_files(), 0);
        hierarchy
            .create(&path, &berth_domain::Resources::default())
            .unwrap();
        let reading = meter.read(&path).unwrap().unwrap();
        assert_eq!((reading.pids, reading.oom_kills), (0, 0));
        hierarchy.remove(&path).unwrap();
    }
}
