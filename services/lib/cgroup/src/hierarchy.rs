//! Where the kernel shows its cgroups, and what is made and removed there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use berth_domain::Resources;
use rustix::process::{Pid, Signal, kill_process};

/// The kernel's own default, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// Controllers that a sandbox's cgroup is limited and read by.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroups are mounted")]
    NotMounted,
    #[error("{operation} {}", path.display())]
    Failed {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Processes that were told to end have not ended yet.
    #[error("{} still has processes", path.display())]
    Busy { path: PathBuf },
}

impl CgroupError {
    pub(crate) fn failed(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Failed {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

/// The mounted hierarchies. Paths of cgroups are relative to their roots, as `berth/a1/web`.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    V1 {
        /// A controller and the root of its hierarchy.
        controllers: Vec<(String, PathBuf)>,
        /// The same, and those that are only read.
        readable: BTreeMap<String, PathBuf>,
        /// Every root: also those without a controller of ours, in which runtimes make cgroups too.
        roots: BTreeSet<PathBuf>,
    },
    V2 {
        root: PathBuf,
    },
}

impl Hierarchy {
    /// Finds what this process sees mounted.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mounts =
            fs::read_to_string(path).map_err(|it| CgroupError::failed("reading", path, it))?;
        Self::parse(&mounts).ok_or(CgroupError::NotMounted)
    }

    /// Reads lines of `mountinfo`. A host with any v1 controller is v1: that is where its limits are.
    fn parse(mounts: &str) -> Option<Self> {
        let (mut controllers, mut roots, mut unified) = (vec![], BTreeSet::new(), None);
        let mut readable = BTreeMap::new();
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else {
                continue;
            };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => {
                    unified.get_or_insert(point.clone());
                    roots.insert(point);
                }
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    let ours = options
                        .split(',')
                        .filter(|it| CONTROLLERS.contains(it) || *it == "cpuacct");
                    controllers.extend(ours.map(|it| (it.to_owned(), point.clone())));
                    readable.extend(options.split(',').map(|it| (it.to_owned(), point.clone())));
                    roots.insert(point);
                }
                Some(_) | None => {}
            }
        }
        let kind = match unified {
            _ if !controllers.is_empty() => Kind::V1 {
                controllers,
                readable,
                roots,
            },
            Some(root) => Kind::V2 { root },
            None => return None,
        };
        Some(Self { kind })
    }

    /// 1 or 2.
    pub fn version(&self) -> u32 {
        match self.kind {
            Kind::V1 { .. } => 1,
            Kind::V2 { .. } => 2,
        }
    }

    /// Makes the cgroup with its parents, and sets its limits. One that is there gets the limits.
    pub fn create(&self, path: &str, limits: &Resources) -> Result<(), CgroupError> {
        match &self.kind {
            Kind::V1 { controllers, .. } => {
                for (controller, root) in controllers {
                    let dir = root.join(path);
                    make_dir(&dir)?;
                    for (file, value) in v1_limits(controller, limits) {
                        write(&dir.join(file), &value)?;
                    }
                }
            }
            Kind::V2 { root } => {
                let mut dir = root.clone();
                for part in path.split('/') {
                    delegate(&dir)?;
                    dir.push(part);
                    make_dir(&dir)?;
                }
                delegate(&dir)?;
                for (file, value) in v2_limits(limits) {
                    write(&dir.join(file), &value)?;
                }
            }
        }
        Ok(())
    }

    /// Whether any hierarchy has the cgroup.
    pub fn exists(&self, path: &str) -> bool {
        self.roots().any(|root| root.join(path).is_dir())
    }

    /// What the file system knows of the cgroup, in the first hierarchy that has it.
    pub fn metadata(&self, path: &str) -> Option<fs::Metadata> {
        self.roots()
            .find_map(|root| fs::metadata(root.join(path)).ok())
    }

    /// Removes the cgroup and all below it from every hierarchy, and kills what still runs there. Gone is a success.
    pub fn remove(&self, path: &str) -> Result<(), CgroupError> {
        let mut busy = None;
        for root in self.roots() {
            if let Err(CgroupError::Busy { path }) = remove_tree(&root.join(path))? {
                busy = Some(path);
            }
        }
        busy.map_or(Ok(()), |path| Err(CgroupError::Busy { path }))
    }

    /// Removes the cgroup from every hierarchy in which nothing is in it, nor below it.
    pub fn remove_empty(&self, path: &str) {
        for root in self.roots() {
            let _ = fs::remove_dir(root.join(path));
        }
    }

    /// Sends a signal to every process in the cgroup and below it. Gone is a success.
    pub fn signal(&self, path: &str, signal: Signal) -> Result<(), CgroupError> {
        for pid in self.processes(path)?.into_values() {
            // One that has ended meanwhile needs none.
            let _ = kill_process(pid, signal);
        }
        Ok(())
    }

    /// Whether a process is in the cgroup or below it.
    pub fn has_processes(&self, path: &str) -> Result<bool, CgroupError> {
        Ok(!self.processes(path)?.is_empty())
    }

    /// The numbers of the processes in the cgroup and below it, as the host has them. Gone is empty.
    pub fn process_ids(&self, path: &str) -> Result<Vec<i32>, CgroupError> {
        Ok(self.processes(path)?.into_keys().collect())
    }

    /// The processes in the cgroup and below it: each once, by number, although v1 lists it in every hierarchy.
    pub fn processes(&self, path: &str) -> Result<BTreeMap<i32, Pid>, CgroupError> {
        let mut all = BTreeMap::new();
        for root in self.roots() {
            collect_processes(&root.join(path), &mut all)?;
        }
        Ok(all)
    }

    /// Names of the cgroups below `path`, one level deep.
    pub fn children(&self, path: &str) -> Result<BTreeSet<String>, CgroupError> {
        let mut names = BTreeSet::new();
        for root in self.roots() {
            names.extend(subdirectories(&root.join(path))?);
        }
        Ok(names)
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        let (many, one) = match &self.kind {
            Kind::V1 { roots, .. } => (Some(roots), None),
            Kind::V2 { root } => (None, Some(root)),
        };
        many.into_iter().flatten().chain(one)
    }
}

fn v1_limits(controller: &str, limits: &Resources) -> Vec<(&'static str, String)> {
    match controller {
        "cpu" => limits
            .cpu_millis
            .map(|millis| {
                vec![
                    ("cpu.cfs_period_us", CPU_PERIOD.to_string()),
                    ("cpu.cfs_quota_us", quota(millis).to_string()),
                ]
            })
            .unwrap_or_default(),
        "memory" => [
            ("memory.limit_in_bytes", limits.memory_bytes),
            ("memory.soft_limit_in_bytes", limits.memory_high_bytes),
        ]
        .into_iter()
        .filter_map(|(file, value)| Some((file, value?.to_string())))
        .collect(),
        "pids" => limits
            .pids
            .map(|it| ("pids.max", it.to_string()))
            .into_iter()
            .collect(),
        _ => vec![],
    }
}

fn v2_limits(limits: &Resources) -> Vec<(&'static str, String)> {
    [
        (
            "cpu.max",
            limits
                .cpu_millis
                .map(|it| format!("{} {CPU_PERIOD}", quota(it))),
        ),
        ("memory.max", limits.memory_bytes.map(|it| it.to_string())),
        (
            "memory.high",
            limits.memory_high_bytes.map(|it| it.to_string()),
        ),
        ("pids.max", limits.pids.map(|it| it.to_string())),
    ]
    .into_iter()
    .filter_map(|(file, value)| Some((file, value?)))
    .collect()
}

fn quota(millis: u32) -> u64 {
    u64::from(millis) * CPU_PERIOD / 1000
}

/// Hands the controllers that a v2 cgroup has to those below it.
fn delegate(dir: &Path) -> Result<(), CgroupError> {
    let available = read(&dir.join("cgroup.controllers"))?;
    let given = read(&dir.join("cgroup.subtree_control"))?;
    let wanted: Vec<String> = CONTROLLERS
        .iter()
        .filter(|it| available.split_whitespace().any(|there| there == **it))
        .filter(|it| given.split_whitespace().all(|there| there != **it))
        .map(|it| format!("+{it}"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    write(&dir.join("cgroup.subtree_control"), &wanted.join(" "))
}

fn make_dir(dir: &Path) -> Result<(), CgroupError> {
    fs::create_dir_all(dir).map_err(|it| CgroupError::failed("making", dir, it))
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|it| CgroupError::failed("writing", path, it))
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|it| CgroupError::failed("reading", path, it))
}

fn subdirectories(dir: &Path) -> Result<Vec<String>, CgroupError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(CgroupError::failed("listing", dir, error)),
    };
    Ok(entries
        .flatten()
        .filter(|it| it.file_type().is_ok_and(|it| it.is_dir()))
        .filter_map(|it| it.file_name().into_string().ok())
        .collect())
}

fn processes(dir: &Path) -> Vec<Pid> {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    procs
        .lines()
        .filter_map(|it| it.parse().ok())
        .filter_map(Pid::from_raw)
        .collect()
}

fn collect_processes(dir: &Path, all: &mut BTreeMap<i32, Pid>) -> Result<(), CgroupError> {
    for name in subdirectories(dir)? {
        collect_processes(&dir.join(name), all)?;
    }
    all.extend(processes(dir).into_iter().map(|it| (it.as_raw_pid(), it)));
    Ok(())
}

/// The outer error is a failure, the inner one says that it has to be tried again.
fn remove_tree(dir: &Path) -> Result<Result<(), CgroupError>, CgroupError> {
    for name in subdirectories(dir)? {
        if let busy @ Err(_) = remove_tree(&dir.join(name))? {
            return Ok(busy);
        }
    }
    match fs::remove_dir(dir) {
        Ok(()) => Ok(Ok(())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Ok(())),
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            for pid in processes(dir) {
                // One that has ended meanwhile is what was wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
            Ok(Err(CgroupError::Busy {
                path: dir.to_owned(),
            }))
        }
        Err(error) => Err(CgroupError::failed("removing", dir, error)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const HYBRID: &str = "\
        25 20 0:22 / /sys rw - sysfs sysfs rw\n\
        30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        35 30 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
    const UNIFIED: &str = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_host_with_v1_controllers_is_v1_and_every_hierarchy_is_cleaned() {
        let hybrid = Hierarchy::parse(HYBRID).unwrap();
        assert_eq!(hybrid.version(), 1);
        let roots: Vec<_> = hybrid.roots().map(|it| it.display().to_string()).collect();
        assert_eq!(
            roots,
            ["cpu,cpuacct", "memory", "pids", "systemd", "unified"]
                .map(|it| format!("/sys/fs/cgroup/{it}"))
        );
        assert_eq!(Hierarchy::parse(UNIFIED).unwrap().version(), 2);
        assert!(Hierarchy::parse("25 20 0:22 / /sys rw - sysfs sysfs rw\n").is_none());
    }

    /// A folder that looks like a v2 root with one cgroup in the making.
    pub(crate) fn v2_like(root: &Path) -> Hierarchy {
        let mut dir = root.to_owned();
        for part in ["", "berth", "web"] {
            dir.push(part);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.controllers"), "cpuset cpu memory pids\n").unwrap();
            fs::write(dir.join("cgroup.subtree_control"), "memory\n").unwrap();
        }
        Hierarchy {
            kind: Kind::V2 {
                root: root.to_owned(),
            },
        }
    }

    #[test]
    fn limits_are_written_in_the_words_of_v2() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = v2_like(dir.path());
        let limits = Resources {
            cpu_millis: Some(250),
            memory_bytes: Some(64 << 20),
            memory_high_bytes: Some(32 << 20),
            pids: Some(10),
        };
        hierarchy.create("berth/web", &limits).unwrap();
        let read =
            |file: &str| fs::read_to_string(dir.path().join("berth/web").join(file)).unwrap();
        assert_eq!(read("cpu.max"), "25000 100000");
        assert_eq!(read("memory.max"), "67108864");
        assert_eq!(read("memory.high"), "33554432");
        assert_eq!(read("pids.max"), "10");
        assert_eq!(read("cgroup.subtree_control"), "+cpu +pids");
    }

    #[test]
    fn no_limit_writes_nothing() {
        assert!(v2_limits(&Resources::default()).is_empty());
        assert!(
            CONTROLLERS
                .iter()
                .all(|it| v1_limits(it, &Resources::default()).is_empty())
        );
    }

    /// Needs the right to make cgroups.
    #[test]
    fn a_cgroup_of_this_host_is_made_found_and_removed_with_all_below_it() {
        let hierarchy = Hierarchy::detect().unwrap();
        let parent = format!("berth-test-{}", std::process::id());
        let path = format!("{parent}/web");
        let limits = Resources {
            pids: Some(7),
            memory_bytes: Some(64 << 20),
            ..Resources::default()
        };
        hierarchy.create(&path, &limits).unwrap();
        hierarchy
            .create(&format!("{path}/pause"), &Resources::default())
            .unwrap();
        assert!(hierarchy.exists(&path));
        assert_eq!(
            hierarchy.children(&parent).unwrap(),
            BTreeSet::from(["web".to_owned()])
        );
        let usage = hierarchy.usage(&path).unwrap().unwrap();
        assert_eq!((usage.pids, usage.oom_kills), (0, 0));
        let mut sleeper = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        for root in hierarchy.roots() {
            let procs = root.join(&path).join("pause/cgroup.procs");
            if procs.exists() {
                fs::write(procs, sleeper.id().to_string()).unwrap();
            }
        }
        assert!(hierarchy.has_processes(&parent).unwrap());
        hierarchy.signal(&parent, Signal::CONT).unwrap();
        let busy = hierarchy.remove(&parent).unwrap_err();
        assert!(matches!(busy, CgroupError::Busy { .. }), "{busy}");
        sleeper.wait().unwrap();
        hierarchy.remove(&parent).unwrap();
        assert!(!hierarchy.exists(&parent));
        assert!(!hierarchy.has_processes(&parent).unwrap());
        assert_eq!(hierarchy.usage(&path).unwrap(), None);
        hierarchy.remove(&parent).unwrap();
    }
}
