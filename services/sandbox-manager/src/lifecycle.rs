//! What happens to a sandbox, in the words of its own log: `<log_dir>/<id>/@system/`, beside the output of its containers.
//! It is told as well as it can be: no step waits for a disk or fails with it.

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use berth_domain::{Failure, Names, Reason, SandboxId, SandboxRecord, Status};
use berth_logs::{
    format::{Kind, Record},
    segments::{Segments, Tail},
};
use tokio::sync::oneshot;

/// Name of the folder; no container can be called so.
const FOLDER: &str = "@system";
const LIMIT: u64 = 256 << 10;
/// Lines that wait for the disk; those beyond are dropped.
const WAITING: usize = 1024;
/// For a disk that does not answer.
const SETTLE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

#[derive(Debug)]
enum Message {
    Lines(Lines),
    Settle(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Lines {
    id: SandboxId,
    time: SystemTime,
    lines: Vec<String>,
    /// Nobody wants them any more.
    forgotten: Arc<AtomicBool>,
}

#[derive(Debug)]
pub(crate) struct LifecycleLog {
    messages: SyncSender<Message>,
    /// Of the sandboxes of which something was told since they were forgotten last.
    told: Mutex<BTreeMap<SandboxId, Arc<AtomicBool>>>,
}

impl LifecycleLog {
    /// Starts the thread that writes. It ends with the last sender.
    pub(crate) fn start(names: Names) -> io::Result<Self> {
        let (messages, arriving) = sync_channel(WAITING);
        thread::Builder::new()
            .name("lifecycle".to_owned())
            .spawn(move || write(&names, &arriving))?;
        Ok(Self {
            messages,
            told: Mutex::default(),
        })
    }

    pub(crate) fn tell(&self, before: Option<&SandboxRecord>, after: &SandboxRecord) {
        let lines = lines(before, after);
        if lines.is_empty() {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = told.entry(after.id.clone()).or_default().clone();
        drop(told);
        let message = Message::Lines(Lines {
            id: after.id.clone(),
            time: SystemTime::now(),
            lines,
            forgotten,
        });
        if self.messages.try_send(message).is_err() {
            tracing::warn!(sandbox = %after.id, "its log does not take what happens to it");
        }
    }

    /// Lets nothing that was told of a sandbox be written from here on. Returns when what is being written has been, or when
    /// the disk does not answer: what it still writes then is removed again.
    pub(crate) async fn forget(&self, id: &SandboxId) {
        self.drop_untold(id);
        let _ = tokio::time::timeout(SETTLE, self.settle()).await;
    }

    fn drop_untold(&self, id: &SandboxId) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(forgotten) = told.remove(id) {
            forgotten.store(true, Ordering::SeqCst);
        }
    }

    /// Returns when all that was told before is written.
    async fn settle(&self) {
        let (done, settled) = oneshot::channel();
        let mut message = Message::Settle(done);
        while let Err(TrySendError::Full(unsent)) = self.messages.try_send(message) {
            message = unsent;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let _ = settled.await;
    }
}

/// What became of a sandbox between two records of it; without a former one, it was just admitted.
fn lines(before: Option<&SandboxRecord>, after: &SandboxRecord) -> Vec<String> {
    let Some(before) = before else {
        let containers = after.spec.containers.iter().map(|it| it.name.as_str());
        let containers: Vec<_> = containers.collect();
        return vec![format!("being created: {}", containers.join(", "))];
    };
    let mut lines = Vec::new();
    if let Some(failure) = after.failure.as_ref().filter(|_| before.failure.is_none()) {
        lines.push(format!(
            "creating it failed: {} ({})",
            failure.message,
            failure.reason.as_str()
        ));
        lines.extend(hint(failure).map(str::to_owned));
    }
    if let Some(exit) = after.exit.as_ref().filter(|_| before.exit.is_none()) {
        lines.push(exit.describe());
    }
    if before.status != after.status {
        lines.extend(entered(before.status, after));
    }
    lines
}

fn entered(from: Status, record: &SandboxRecord) -> Option<String> {
    let why = &record.message;
    Some(match record.status {
        Status::Running if from == Status::Pending => "running".to_owned(),
        Status::Running => "ready again".to_owned(),
        Status::NotReady => format!("not ready: {why}"),
        Status::Pending => format!("being created again: {why}"),
        Status::Stopped if record.exit.as_ref().is_some_and(|it| it.describe() == *why) => {
            "stopping the rest of it".to_owned()
        }
        Status::Stopped => format!("stopping: {why}"),
        Status::Dead => "dead: nothing is left of it but its record and its logs".to_owned(),
    })
}

/// What to look at, where the message alone does not say it.
const HINTS: &[(Reason, &str)] = &[
    (
        Reason::ImageNotFound,
        "hint: was it pushed under that name? `berth images ls` shows the names of those that were imported",
    ),
    (
        Reason::RegistryUnreachable,
        "hint: a registry is asked over TLS unless `containerd.plain_http_registries` lists it, and found by the node's resolver",
    ),
    (
        Reason::RegistryDenied,
        "hint: it may want credentials, and may say the same of images that it does not have",
    ),
    (
        Reason::RegistryUntrusted,
        "hint: `pull.registries.HOST.ca_file` names certificates that are trusted for it",
    ),
    (
        Reason::PullStalled,
        "hint: `pull.no_progress_timeout` says how long a registry may send nothing",
    ),
];

/// What to look at where the registry of the cluster itself is not reached.
const CLUSTER_HINT: &str = "hint: cluster.local is the registry of the cluster: it is asked without TLS at the address of `pull.cluster_registry`, else at port 5000 of what the node's resolver says";

fn hint(failure: &Failure) -> Option<&'static str> {
    let image = failure.metadata.get("image").map_or("", String::as_str);
    let of_cluster = ["cluster.local/", "cluster.local:5000/"]
        .iter()
        .any(|it| image.starts_with(it));
    if of_cluster
        && matches!(
            failure.reason,
            Reason::RegistryUnreachable | Reason::PullStalled
        )
    {
        return Some(CLUSTER_HINT);
    }
    let hint = HINTS.iter().find(|it| it.0 == failure.reason);
    hint.map(|it| it.1)
}

fn write(names: &Names, messages: &Receiver<Message>) {
    for message in messages {
        match message {
            Message::Lines(told) => {
                let dir = names.logs(&told.id).join(FOLDER);
                write_one(&dir, &told);
            }
            Message::Settle(done) => {
                // Who asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }
}

fn write_one(dir: &Path, told: &Lines) {
    let is_forgotten = || told.forgotten.load(Ordering::SeqCst);
    if is_forgotten() {
        return;
    }
    if let Err(error) = append(dir, told.time, &told.lines) {
        tracing::warn!(sandbox = %told.id, %error, "its log does not take what happens to it");
    }
    // Nobody but this thread writes here, so it is what was just made.
    if is_forgotten() && fs::remove_dir_all(dir).is_ok() {
        // The logs of containers are in it, if there are any.
        let _ = dir.parent().map(fs::remove_dir);
    }
}

fn append(dir: &Path, time: SystemTime, lines: &[String]) -> io::Result<()> {
    let name = RandomState::new().build_hasher().finish();
    let (mut segments, mut end, tail) = Segments::open(dir, LIMIT, name)?;
    if tail != Tail::Whole {
        tracing::warn!(dir = %dir.display(), ?tail, "the end of a log was cut off");
    }
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let time_ns = since.map_or(0, |it| it.as_nanos() as u64);
    let mut records = Vec::new();
    for line in lines {
        let text = line.split('\n').collect::<Vec<_>>().join(" ");
        let mut length = text.len().min(LINE_MAX);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        let record = Record {
            sequence: end.next,
            time_ns,
            kind: Kind::System,
            flags: 0,
            body: &text.as_bytes()[..length],
        };
        record.encode(&mut records);
        end.next += 1;
    }
    let mut begun = end;
    begun.next -= lines.len() as u64;
    let place = segments.place(begun, records.len());
    segments.write(place, &records).map_err(|it| {
        let _ = segments.cut(begun);
        it.source
    })
}

/// Messages are short; this bounds what a cause from elsewhere may bring along.
const LINE_MAX: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_domain::{ExitRecord, Generation, InstanceId, Role, SandboxSpec};
    use berth_logs::format::{Decoded, SEGMENT_HEADER, decode, segment_name};

    use super::*;

    fn record() -> SandboxRecord {
        let id = SandboxId::parse("web").unwrap();
        let now = SystemTime::UNIX_EPOCH;
        SandboxRecord::new(
            id,
            Generation(1),
            Arc::new(SandboxSpec::default()),
            vec![],
            now,
        )
    }

    fn with(change: impl FnOnce(&mut SandboxRecord)) -> SandboxRecord {
        let mut record = record();
        change(&mut record);
        record
    }

    fn in_status(status: Status, message: &str) -> SandboxRecord {
        with(|it| {
            it.status = status;
            it.message = message.to_owned();
        })
    }

    #[test]
    fn every_change_that_counts_is_told_once_and_others_are_not() {
        let now = SystemTime::UNIX_EPOCH;
        let pending = record();
        let running = in_status(Status::Running, "");
        let lost = in_status(Status::NotReady, "port 80 (app) no longer listens");
        let exit = ExitRecord::from_status(Role::Pause, 7, Some(now), None, now);
        let exited = with(|it| {
            it.status = Status::Stopped;
            it.message = exit.describe();
            it.exit = Some(exit.clone());
        });
        let failure = Failure::new(Reason::ImageNotFound, "image a/b:1 is not in its registry");
        let failed = with(|it| it.failure = Some(failure.clone()));
        let dead = in_status(Status::Dead, "");
        let stopped = in_status(Status::Stopped, "it was told to go");
        let again = in_status(Status::Pending, "the node lost it");
        #[rustfmt::skip]
        let cases: &[(Option<&SandboxRecord>, &SandboxRecord, &[&str])] = &[
            (None,           &pending, &["being created: "]),
            (Some(&pending), &pending, &[]),
            (Some(&pending), &running, &["running"]),
            (Some(&running), &lost,    &["not ready: port 80 (app) no longer listens"]),
            (Some(&lost),    &running, &["ready again"]),
            (Some(&running), &exited,  &["the pause container exited with code 7", "stopping the rest of it"]),
            (Some(&running), &stopped, &["stopping: it was told to go"]),
            (Some(&running), &again,   &["being created again: the node lost it"]),
            (Some(&failed),  &failed,  &[]),
            (Some(&failed),  &dead,    &["dead: nothing is left of it but its record and its logs"]),
        ];
        for (before, after, expected) in cases {
            assert_eq!(lines(*before, after), *expected, "{after:?}");
        }
        let told = lines(Some(&pending), &failed);
        assert_eq!(
            told[0],
            "creating it failed: image a/b:1 is not in its registry (IMAGE_NOT_FOUND)"
        );
        assert!(told[1].starts_with("hint: "), "{told:?}");
    }

    #[tokio::test]
    async fn what_is_told_is_there_when_it_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names {
            instance: InstanceId::parse("test").unwrap(),
            cgroup_parent: String::new(),
            run_dir: dir.path().join("run"),
            log_dir: dir.path().join("log"),
        };
        let log = LifecycleLog::start(names.clone()).unwrap();
        log.tell(None, &record());
        let failure = Failure::new(Reason::Internal, format!("two\nlines{}", "é".repeat(9000)));
        log.tell(
            Some(&record()),
            &with(|it| it.failure = Some(failure.clone())),
        );
        log.settle().await;
        let path = names.logs(&record().id).join(FOLDER).join(segment_name(0));
        let bytes = std::fs::read(path).unwrap();
        let mut rest = &bytes[SEGMENT_HEADER..];
        let mut seen = vec![];
        while let Decoded::Record(it, length) = decode(rest) {
            assert_eq!(it.kind, Kind::System);
            seen.push((it.sequence, String::from_utf8(it.body.to_vec()).unwrap()));
            rest = &rest[length..];
        }
        assert_eq!(seen[0], (0, "being created: ".to_owned()));
        assert_eq!(seen[1].0, 1);
        assert!(seen[1].1.starts_with("creating it failed: two lines"));
        assert!(seen[1].1.len() <= LINE_MAX);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        std::fs::write(&log_dir, "").unwrap();
        let names = Names {
            instance: InstanceId::parse("test").unwrap(),
            cgroup_parent: String::new(),
            run_dir: dir.path().join("run"),
            log_dir,
        };
        let log = LifecycleLog::start(names).unwrap();
        log.tell(None, &record());
        log.settle().await;
    }

    #[test]
    fn what_waits_for_the_disk_does_not_bring_back_the_log_of_a_sandbox_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names {
            instance: InstanceId::parse("test").unwrap(),
            cgroup_parent: String::new(),
            run_dir: dir.path().join("run"),
            log_dir: dir.path().join("log"),
        };
        // No thread takes what waits, as when the disk does not answer, and there is no room.
        let (messages, arriving) = sync_channel(2);
        let log = LifecycleLog {
            messages,
            told: Mutex::default(),
        };
        log.tell(None, &record());
        log.tell(Some(&record()), &in_status(Status::Running, ""));
        log.drop_untold(&record().id);
        let Ok(Message::Lines(first)) = arriving.try_recv() else {
            panic!("it was told");
        };
        log.tell(None, &record());
        drop(log);
        let folder = names.logs(&record().id);
        write_one(&folder.join(FOLDER), &first);
        assert!(!folder.exists());
        // The one that has its id afterwards is told of.
        write(&names, &arriving);
        let path = folder.join(FOLDER).join(segment_name(0));
        let bytes = fs::read(path).unwrap();
        let Decoded::Record(only, length) = decode(&bytes[SEGMENT_HEADER..]) else {
            panic!("there is a record");
        };
        assert_eq!(only.body, b"being created: ");
        assert_eq!(SEGMENT_HEADER + length, bytes.len());
    }
}
