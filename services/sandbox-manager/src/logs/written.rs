//! A manager without sandboxes of its own, and logs that are written by hand, for tests of readers.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{Generation, ImageRef, SandboxId, SandboxSpec, Status};
use berth_logs::format::{Kind, PARTIAL, Record, SegmentHeader, segment_name};
use berth_platform::{contract::Subject, fake::FakeNode};
use berth_store::{Admitted, Arrival, Store};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::LogReaders;
use crate::{
    node::Node,
    registry::{Limits, Registry},
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What a manager stands on, and who reads at it.
pub(crate) struct Ground {
    pub(crate) registry: Registry<FakeNode, FakeNode>,
    pub(crate) readers: Arc<LogReaders>,
    pub(crate) store: Store,
    pub(crate) stop: CancellationToken,
    pub(crate) dir: Arc<TempDir>,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let subnet = "10.9.0.0/24".parse().unwrap();
        let file = dir.path().join("test.redb");
        let store = Store::open(&file, subnet, Duration::ZERO).unwrap();
        Self::on(dir, store)
    }

    /// The next start of the manager.
    pub(crate) fn again(&self) -> Self {
        Self::on(self.dir.clone(), self.store.clone())
    }

    fn on(dir: Arc<TempDir>, store: Store) -> Self {
        let node = FakeNode::default();
        let seams = Node {
            runtime: Arc::new(node.clone()),
            network: Arc::new(node),
        };
        let limits = Limits {
            task_creations: 1,
            sandboxes: 1000,
            end_timeout: DEADLINE,
            dead_horizon: DEADLINE,
            purge_interval: DEADLINE,
        };
        let stop = CancellationToken::new();
        let registry = Registry::new(seams, store.clone(), limits, String::new(), stop.clone());
        Self {
            registry,
            readers: LogReaders::new(dir.path().join("log")),
            store,
            stop,
            dir,
        }
    }

    /// The record of a sandbox with the container `app`.
    pub(crate) async fn admit(
        &self,
        id: &SandboxId,
        change: impl FnOnce(&mut SandboxSpec),
    ) -> Generation {
        let subject = Subject {
            image: ImageRef::parse("app").unwrap(),
            addresses: vec!["10.9.0.2/24".parse().unwrap()],
        };
        let mut spec = SandboxSpec::clone(&subject.sandbox("web").spec);
        change(&mut spec);
        let (spec, now) = (Arc::new(spec), SystemTime::now());
        let admitted = self.store.admit(id, spec, Arrival::default(), now).await;
        match admitted.unwrap() {
            Admitted::Begun(record) | Admitted::Joined(record) => record.generation,
        }
    }

    pub(crate) async fn bury(&self, id: &SandboxId, generation: Generation) {
        for status in [Status::Stopped, Status::Dead] {
            let change = move |it: &mut berth_domain::SandboxRecord| it.status = status;
            let buried = self.store.bury(id, generation, SystemTime::now(), change);
            buried.await.unwrap();
        }
    }

    pub(crate) fn log(&self, id: &SandboxId, name: &str) -> LogFile {
        LogFile::new(self.readers.folder(id).join(name))
    }
}

pub(crate) fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).unwrap()
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// A log as its writer leaves it.
pub(crate) struct LogFile {
    folder: PathBuf,
    log: u64,
    first: u64,
    pub(crate) next: u64,
}

impl LogFile {
    pub(crate) fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let mut new = Self {
            folder,
            log: 42,
            first: 0,
            next: 0,
        };
        new.rotate();
        new
    }

    pub(crate) fn rotate(&mut self) {
        self.first = self.next;
        let header = SegmentHeader {
            log: self.log,
            first: self.first,
        };
        let file = self.folder.join(segment_name(self.first));
        fs::write(file, header.encode()).unwrap();
    }

    /// Removes all segments but the last.
    pub(crate) fn drop_oldest(&self) {
        for entry in fs::read_dir(&self.folder).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with(segment_name(self.first)) {
                fs::remove_file(path).unwrap();
            }
        }
    }

    pub(crate) fn line(&mut self, kind: Kind, text: &str) {
        self.append(kind, 0, text.as_bytes(), usize::MAX);
        self.next += 1;
    }

    /// What the rest of its line has not followed yet.
    pub(crate) fn part(&mut self, kind: Kind, text: &str) {
        self.append(kind, PARTIAL, text.as_bytes(), usize::MAX);
        self.next += 1;
    }

    /// Lines `line 0`, `line 1` of standard output, by their numbers.
    pub(crate) fn lines(&mut self, count: u64) {
        for _ in 0..count {
            self.line(Kind::Stdout, &format!("line {}", self.next));
        }
    }

    pub(crate) fn half(&mut self, length: usize) {
        self.append(Kind::Stdout, 0, b"never whole", length);
    }

    fn append(&self, kind: Kind, flags: u8, body: &[u8], length: usize) {
        let mut bytes = vec![];
        Record {
            sequence: self.next,
            time_ns: 1_000_000_000 + self.next * 1000,
            kind,
            flags,
            body,
        }
        .encode(&mut bytes);
        bytes.truncate(length);
        let file = self.folder.join(segment_name(self.first));
        let mut file = OpenOptions::new().append(true).open(file).unwrap();
        file.write_all(&bytes).unwrap();
    }
}
