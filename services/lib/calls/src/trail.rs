//! The audit log: who changed what, as lines of JSON in files of bounded size and as log output. Ids only; nothing that a
//! caller says beside them. A call never waits for it: what cannot be kept is counted, and said where the file goes on.

mod denials;
mod file;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant, SystemTime},
};

use berth_telemetry::{
    KeyValue,
    instruments::{AUDIT_LOST, AUDIT_RECORDS},
};
use serde::Serialize;

use self::{denials::Denials, file::Files};
use crate::caller::Identity;

/// Records on their way to the file. A disk that hangs holds them up, and nobody else.
const QUEUE_MAX: usize = 4096;
/// What a disk gets for the last records.
const LAST_RECORDS: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_millis(10);

/// Where the files are, and how much of them is kept.
#[derive(Clone, Debug)]
pub struct TrailSettings {
    /// The current one; those before it have `.1`, `.2` and so on behind their names. `None`: no file.
    pub file: Option<PathBuf>,
    /// Of one file.
    pub max_bytes: u64,
    /// With the current one.
    pub files: usize,
}

/// One call, as it is written down.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) time: String,
    pub(crate) method: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) object: String,
    pub(crate) caller: Who,
    pub(crate) roles: String,
    pub(crate) code: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    pub(crate) duration_ms: u64,
    /// Denied calls before this one that were too many to be written down.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) denied_before: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Who {
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

impl From<&Identity> for Who {
    fn from(it: &Identity) -> Self {
        match it {
            Identity::Process { uid, gid, pid } => Self {
                uid: Some(*uid),
                gid: Some(*gid),
                pid: *pid,
                ..Self::default()
            },
            Identity::Certificate(it) => Self {
                subject: Some(it.subject.clone()),
                serial: Some(it.serial.clone()),
                address: Some(it.address.to_string()),
                ..Self::default()
            },
            Identity::Unknown => Self::default(),
        }
    }
}

enum Message {
    Line(String),
    Stop,
}

/// Takes records from every call. The thread behind it writes until [`Trail::finish`].
#[derive(Clone)]
pub struct Trail(Arc<Shared>);

struct Shared {
    lines: Option<SyncSender<Message>>,
    /// Hears when the writer has ended.
    end: Mutex<Option<Receiver<()>>>,
    denials: Mutex<Denials>,
    /// Records that are not in the file, and why the last of them is not; nothing since one could be written.
    lost: Mutex<(u64, Option<String>)>,
}

impl std::fmt::Debug for Trail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trail").finish_non_exhaustive()
    }
}

impl Trail {
    /// Fails where no thread can be started. A file that cannot be opened is tried again with each record.
    pub fn start(settings: TrailSettings) -> std::io::Result<Self> {
        let Some(file) = settings.file else {
            return Ok(Self::without_file());
        };
        let (lines, queue) = sync_channel(QUEUE_MAX);
        let (ended, end) = sync_channel(1);
        let shared = Arc::new(Shared {
            lines: Some(lines),
            end: Mutex::new(Some(end)),
            denials: Mutex::default(),
            lost: Mutex::default(),
        });
        let files = Files::new(file, settings.max_bytes, settings.files);
        let to = Arc::downgrade(&shared);
        let writer = std::thread::Builder::new().name("audit-log".into());
        writer.spawn(move || {
            write(&queue, files, &to);
            let _ = ended.send(());
        })?;
        Ok(Self(shared))
    }

    /// Without a file: calls are log records alone.
    pub fn without_file() -> Self {
        Self(Arc::new(Shared {
            lines: None,
            end: Mutex::default(),
            denials: Mutex::default(),
            lost: Mutex::default(),
        }))
    }

    /// What keeps records from the file at the moment, for people.
    pub fn problem(&self) -> Option<String> {
        let lost = self.0.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, problem) = &*lost;
        let problem = problem.as_ref()?;
        Some(format!(
            "audit log: {number} records are not in its file: {problem}"
        ))
    }

    pub(crate) fn take(&self, mut entry: Entry, denied: bool) {
        if denied {
            let mut denials = self
                .0
                .denials
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let Some(before) = denials.admit(Instant::now()) else {
                AUDIT_LOST.record(1.0, &[KeyValue::new("berth.audit.cause", "denials")]);
                return;
            };
            entry.denied_before = before;
        }
        AUDIT_RECORDS.record(1.0, &[]);
        let who = serde_json::to_string(&entry.caller).unwrap_or_default();
        tracing::info!(
            target: "audit",
            method = entry.method,
            object = entry.object,
            caller = who,
            roles = entry.roles,
            code = entry.code,
            reason = entry.reason,
            duration_ms = entry.duration_ms,
            denied_before = entry.denied_before,
            "call"
        );
        let Some(lines) = &self.0.lines else { return };
        let line = serde_json::to_string(&entry).unwrap_or_default();
        match lines.try_send(Message::Line(format!("{line}\n"))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.0.lose("queue", "its disk does not keep up".to_owned());
            }
        }
    }

    /// Returns when all that was taken so far is in the file. A disk that hangs is not waited for.
    pub fn finish(&self) {
        let end = self.0.end.lock();
        let Some(end) = end.unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        let deadline = Instant::now() + LAST_RECORDS;
        // A queue that is full has room as soon as one is written.
        while let Some(lines) = &self.0.lines
            && matches!(lines.try_send(Message::Stop), Err(TrySendError::Full(_)))
            && Instant::now() < deadline
        {
            if end.recv_timeout(AGAIN).is_ok() {
                return;
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if end.recv_timeout(left).is_err() {
            tracing::warn!(
                "the disk of the audit log does not keep up; its last records are given up"
            );
        }
    }
}

impl Shared {
    fn lose(&self, cause: &'static str, problem: String) {
        AUDIT_LOST.record(1.0, &[KeyValue::new("berth.audit.cause", cause)]);
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.1.is_none() {
            tracing::warn!(problem, "the audit log cannot be written; calls go on");
        }
        *lost = (lost.0 + 1, Some(problem));
    }

    /// How many there are that the file has to say it lacks.
    fn lacks(&self) -> u64 {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn told(&self, number: u64) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let left = lost.0.saturating_sub(number);
        let problem = lost.1.take().filter(|_| left > 0);
        *lost = (left, problem);
    }
}

fn write(queue: &Receiver<Message>, mut files: Files, shared: &std::sync::Weak<Shared>) {
    while let Ok(Message::Line(line)) = queue.recv() {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let lacks = shared.lacks();
        let gap = match lacks {
            0 => String::new(),
            lost => format!("{{\"time\":\"{}\",\"lost\":{lost}}}\n", now()),
        };
        match files.append(&format!("{gap}{line}")) {
            Ok(()) if lacks > 0 => shared.told(lacks),
            Ok(()) => {}
            Err(error) => shared.lose("disk", error.to_string()),
        }
    }
}

/// The time as RFC 3339 has it.
pub(crate) fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or(Duration::ZERO);
    let stamp = jiff::Timestamp::from_millisecond(i64::try_from(since.as_millis()).unwrap_or(0));
    stamp.map(|it| format!("{it:.3}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, process::Command};

    use super::*;

    fn entry(object: &str) -> Entry {
        Entry {
            time: now(),
            method: "berth.v1.SandboxService/Create".into(),
            object: object.into(),
            caller: Who::from(&Identity::Process {
                uid: 0,
                gid: 0,
                pid: Some(7),
            }),
            roles: "admin".into(),
            code: "OK",
            reason: String::new(),
            duration_ms: 3,
            denied_before: 0,
        }
    }

    fn trail(file: &std::path::Path) -> Trail {
        let settings = TrailSettings {
            file: Some(file.to_owned()),
            max_bytes: 1 << 20,
            files: 2,
        };
        Trail::start(settings).unwrap()
    }

    #[test]
    fn a_record_is_a_line_of_json_with_who_what_and_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.log");
        let trail = trail(&file);
        trail.take(entry("we\"b\n"), false);
        trail.finish();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["object"], "we\"b\n");
        assert_eq!(line["caller"]["uid"], 0);
        assert_eq!(line["code"], "OK");
        assert!(line.get("reason").is_none(), "{text}");
    }

    #[test]
    fn what_a_full_disk_refuses_is_counted_and_said_where_the_file_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.log");
        symlink("/dev/full", &file).unwrap();
        let trail = trail(&file);
        trail.take(entry("a"), false);
        trail.take(entry("b"), false);
        let deadline = Instant::now() + Duration::from_secs(10);
        while trail.0.lacks() < 2 {
            assert!(Instant::now() < deadline, "{:?}", trail.problem());
            std::thread::yield_now();
        }
        let problem = trail.problem().unwrap();
        assert!(problem.contains("2 records"), "{problem}");
        fs::remove_file(&file).unwrap();
        trail.take(entry("c"), false);
        trail.finish();
        assert_eq!(trail.problem(), None);
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|it| serde_json::from_str(it).unwrap())
            .collect();
        assert_eq!((lines.len(), &lines[0]["lost"]), (2, &2.into()), "{text}");
        assert_eq!(lines[1]["object"], "c");
    }

    #[test]
    fn a_disk_that_hangs_holds_up_no_call_and_each_record_is_written_or_counted() {
        const TAKEN: usize = 3 * QUEUE_MAX;
        let dir = tempfile::tempdir().unwrap();
        // Nobody reads it yet: it takes some lines, then it hangs.
        let file = dir.path().join("audit.log");
        let made = Command::new("mkfifo").arg(&file).status().unwrap();
        assert!(made.success());
        let trail = trail(&file);
        let (taking, (done, taken)) = (trail.clone(), sync_channel(1));
        std::thread::spawn(move || {
            for number in 0..TAKEN {
                taking.take(entry(&number.to_string()), false);
            }
            let _ = done.send(());
        });
        let waited = taken.recv_timeout(Duration::from_secs(60));
        waited.expect("calls wait for the disk");
        let problem = trail.problem().unwrap();
        assert!(problem.contains("its disk does not keep up"), "{problem}");

        let reader = std::thread::spawn(move || fs::read_to_string(&file).unwrap());
        // The end of the queue tells of the gap with the next record.
        trail.take(entry("last"), false);
        let deadline = Instant::now() + Duration::from_secs(60);
        while trail.0.lacks() > 0 && Instant::now() < deadline {
            // Whatever is written tells of the gap before it.
            std::thread::yield_now();
        }
        trail.finish();
        let lost = trail.0.lacks();
        drop(trail);
        let text = reader.join().unwrap();
        let lines = text.lines().map(|it| serde_json::from_str(it).unwrap());
        let lines: Vec<serde_json::Value> = lines.collect();
        let told = lines.iter().filter_map(|it| it["lost"].as_u64());
        let written = lines.iter().filter(|it| it.get("lost").is_none()).count();
        assert!(lost + told.clone().sum::<u64>() > 0, "nothing was too much");
        let all = written as u64 + lost + told.sum::<u64>();
        assert_eq!(all, TAKEN as u64 + 1);
    }
}
