//! Starts the program as the shim does, looks at its processes, and reads what it has written.
#![allow(unreachable_pub)]

use std::{
    fs,
    io::{PipeWriter, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use berth_logs::format::{
    Decoded, Gap, Kind, SEGMENT_HEADER, SegmentHeader, decode, parse_segment_name,
};
use rustix::process::{Pid, Signal, kill_process};

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Writer {
    child: Child,
    pub out: PipeWriter,
    pub err: PipeWriter,
    dir: PathBuf,
}

#[derive(Debug)]
pub struct Entry {
    pub sequence: u64,
    pub time_ns: u64,
    pub kind: Kind,
    pub flags: u8,
    pub text: Vec<u8>,
}

impl Entry {
    pub fn gap(&self) -> Option<Gap> {
        (self.kind == Kind::Gap).then(|| Gap::decode(&self.text).unwrap())
    }

    pub fn numbers(&self) -> u64 {
        self.gap().map_or(1, |it| it.lines.max(1))
    }
}

impl Writer {
    pub fn start(dir: &Path, limit: u64) -> Self {
        let ((out_end, out), (err_end, err)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let (mut ready, ready_end) = std::io::pipe().unwrap();
        let redirected = r#"exec "$0" "$@" 3<&0 4<&1 5>&2 0</dev/null 1>/dev/null 2>&1"#;
        let child = Command::new("/bin/sh")
            .args(["-c", redirected])
            .arg(program())
            .arg("dir")
            .arg(dir)
            .args(["limit", &limit.to_string()])
            .stdin(Stdio::from(out_end))
            .stdout(Stdio::from(err_end))
            .stderr(Stdio::from(ready_end))
            .spawn()
            .unwrap();
        let mut told = vec![];
        ready.read_to_end(&mut told).unwrap();
        assert!(told.is_empty(), "{}", String::from_utf8_lossy(&told));
        Self {
            child,
            out,
            err,
            dir: dir.to_owned(),
        }
    }

    pub fn guardian(&self) -> i32 {
        self.child.id() as i32
    }

    /// Guardian and worker, where there is one of each: a new one has its parent's name for a moment.
    pub fn pair(&self) -> Option<(i32, i32)> {
        let of = |name| <[i32; 1]>::try_from(self.processes(name)).ok();
        let ([guardian], [worker]) = (of("log-guardian")?, of("log-writer")?);
        Some((guardian, worker))
    }

    /// The processes of that name that write into the folder.
    pub fn processes(&self, name: &str) -> Vec<i32> {
        let dir = self.dir.to_str().unwrap();
        let mut found = vec![];
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let file = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
            if file("comm").trim() == name && file("cmdline").split('\0').any(|it| it == dir) {
                let pid = path.file_name().unwrap().to_str().unwrap();
                found.push(pid.parse().unwrap());
            }
        }
        found
    }

    /// The most that each of its processes has held, in KiB.
    pub fn peaks(&self) -> Vec<(&'static str, u64)> {
        let peak = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
            let kib = line.unwrap().trim().trim_end_matches(" kB");
            kib.parse().unwrap()
        };
        let (guardian, worker) = until("there are two", || self.pair());
        vec![
            ("log-guardian", peak(guardian)),
            ("log-writer", peak(worker)),
        ]
    }

    /// Bytes of the segments that there are.
    pub fn size(&self) -> u64 {
        let sizes = segments(&self.dir)
            .into_iter()
            .map(|(_, it)| fs::metadata(it).map_or(0, |it| it.len()));
        sizes.sum()
    }

    pub fn last_segment(&self) -> (PathBuf, Vec<u8>) {
        let (_, path) = segments(&self.dir).pop().unwrap();
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    }

    pub fn until_read(&self, enough: impl Fn(&[Entry]) -> bool) {
        until("enough is written", || {
            enough(&read(&self.dir)).then_some(())
        });
    }

    /// Closes both ends, and waits for the program to end.
    pub fn end(&mut self) {
        self.close();
        self.wait();
    }

    pub fn close(&mut self) {
        let nowhere = || std::io::pipe().unwrap().1;
        (self.out, self.err) = (nowhere(), nowhere());
    }

    pub fn wait(&mut self) {
        let status = until("the program ends", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for name in ["log-guardian", "log-writer"] {
            for pid in self.processes(name) {
                kill(pid, Signal::KILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn segments(dir: &Path) -> Vec<(u64, PathBuf)> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|it| {
            let name = it.ok()?.file_name();
            let first = parse_segment_name(name.to_str()?)?;
            Some((first, dir.join(name)))
        })
        .collect();
    found.sort();
    found
}

/// All that can be read of a log, which may be written meanwhile.
pub fn read(dir: &Path) -> Vec<Entry> {
    let mut entries = vec![];
    for (first, path) in segments(dir) {
        let bytes = fs::read(&path).unwrap_or_default();
        let Some(header) = SegmentHeader::decode(&bytes) else {
            continue;
        };
        assert_eq!(header.first, first);
        let mut rest = &bytes[SEGMENT_HEADER..];
        while let Decoded::Record(it, length) = decode(rest) {
            entries.push(Entry {
                sequence: it.sequence,
                time_ns: it.time_ns,
                kind: it.kind,
                flags: it.flags,
                text: it.body.to_vec(),
            });
            rest = &rest[length..];
        }
    }
    entries
}

pub fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Whether the process waits for something.
pub fn sleeps(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|it| it.1.starts_with('S'));
    state == Some(true)
}

/// Waits for what is looked for.
#[expect(
    clippy::disallowed_methods,
    reason = "each look costs more than a pause, and the machine has other work"
)]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The program as a file, which is complete before any other is started.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PROGRAM.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log-writer");
        fs::write(&path, berth_log_writer::PROGRAM).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    });
    path
}
