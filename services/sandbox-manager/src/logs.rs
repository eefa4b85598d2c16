//! Who reads the logs of sandboxes: how many may, how they hear that there is more, and where their files are. Readers
//! that follow one sandbox share one look at its folder.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_domain::{Failure, Generation, Reason, SandboxId, SandboxRecord, Status};
use berth_logs::format::parse_segment_name;
use berth_platform::{Images, Network, Runtime};
use tokio::sync::{Semaphore, watch};

use crate::{
    failures::internal,
    places::{Full, Place, Places},
    registry::Registry,
};

#[cfg(test)]
pub(crate) mod written;

/// The log of what the node says about a sandbox. No container has such a name.
pub(crate) const SYSTEM: &str = "@system";
/// So that one sandbox that everybody looks at does not take the places of all others.
const READERS_PER_SANDBOX: usize = 100;
/// Each holds a file for each log.
const READERS: usize = 1000;
/// Reads of the disk at the same time: more of them only wait for it.
const READS_AT_ONCE: usize = 16;
/// How often a followed sandbox is looked at.
const BEAT: Duration = Duration::from_millis(100);
/// The same while it ends: its last lines are there for a moment only, before Delete removes them.
const LAST_BEATS: Duration = Duration::from_millis(10);

pub(crate) struct LogReaders {
    log_dir: PathBuf,
    reads: Semaphore,
    places: Places,
    beats: Mutex<BTreeMap<SandboxId, watch::Receiver<Beat>>>,
}

/// What a look at a sandbox has shown. It changes when there may be something to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Beat {
    files: u64,
    /// Which sandbox of this id writes.
    live: Option<Generation>,
    /// Nothing changed since the look before.
    settled: bool,
}

impl Beat {
    /// Whether nothing comes any more from this generation.
    pub(crate) fn is_over(self, generation: Generation) -> bool {
        self.settled && self.live != Some(generation)
    }

    fn behind(self, files: u64, live: Option<Generation>) -> Self {
        Self {
            files,
            live,
            settled: self.files == files && self.live == live,
        }
    }
}

impl LogReaders {
    pub(crate) fn new(log_dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            log_dir,
            reads: Semaphore::new(READS_AT_ONCE),
            places: Places::new(READERS_PER_SANDBOX, READERS),
            beats: Mutex::default(),
        })
    }

    /// Folder of the folders of all sandboxes.
    pub(crate) fn log_dir(&self) -> &Path {
        &self.log_dir
    }

    /// Folder of the logs of a sandbox: one folder for each.
    pub(crate) fn folder(&self, id: &SandboxId) -> PathBuf {
        self.log_dir.join(id.as_str())
    }

    /// The place of one more reader.
    pub(crate) fn enter(&self, id: &SandboxId) -> Result<Place, Failure> {
        self.places.take(id).map_err(|Full { of, limit }| {
            let message = format!("{limit} callers read the logs of this {of} already");
            let failure = Failure::new(Reason::LogReadersExhausted, message);
            failure.with("of", of).with("limit", limit)
        })
    }

    /// Reads from the disk, beside the threads that answer.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let _place = self.reads.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| internal("reading a log broke off"))
    }

    /// Hears of what may be new in the logs of a sandbox.
    pub(crate) fn follow<R: Runtime + Images, N: Network>(
        self: &Arc<Self>,
        registry: &Registry<R, N>,
        id: &SandboxId,
    ) -> watch::Receiver<Beat> {
        let mut beats = lock(&self.beats);
        if let Some(beat) = beats.get(id) {
            return beat.clone();
        }
        let (sender, receiver) = watch::channel(Beat::default());
        beats.insert(id.clone(), receiver.clone());
        registry.spawn(beat(registry.clone(), self.clone(), id.clone(), sender));
        receiver
    }

    /// How many sandboxes are looked at.
    #[cfg(test)]
    pub(crate) fn beating(&self) -> usize {
        lock(&self.beats).len()
    }

    /// Forgets a beat that nobody hears.
    fn retire(&self, id: &SandboxId, sender: &watch::Sender<Beat>) -> bool {
        let mut beats = lock(&self.beats);
        // The one here is no reader.
        let unheard = sender.receiver_count() <= 1;
        if unheard {
            beats.remove(id);
        }
        unheard
    }
}

/// Looks at a sandbox for all who follow it.
async fn beat<R: Runtime + Images, N: Network>(
    registry: Registry<R, N>,
    readers: Arc<LogReaders>,
    id: SandboxId,
    sender: watch::Sender<Beat>,
) {
    while !registry.is_stopping() && !readers.retire(&id, &sender) {
        let last = *sender.borrow();
        // Its state before its files: a line that is written while it is live is seen behind it.
        let record = registry.store().get(&id).await;
        let ends =
            matches!(&record, Ok(Some(it)) if it.ending.is_some() || it.status == Status::Stopped);
        let live = match record {
            Ok(record) => record.as_ref().and_then(writing),
            // Not known is not over.
            Err(_) => last.live,
        };
        let folder = readers.folder(&id);
        let files = readers.read(move || files(&folder)).await;
        let now = last.behind(files.unwrap_or(last.files), live);
        sender.send_if_modified(|it| std::mem::replace(it, now) != now);
        registry.pause(if ends { LAST_BEATS } else { BEAT }).await;
    }
}

/// The generation that may still write, if the record is of one.
pub(crate) fn writing(record: &SandboxRecord) -> Option<Generation> {
    (record.status != Status::Dead).then_some(record.generation)
}

/// The logs of a sandbox that are on the disk, by name.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = vec![];
    for entry in std::fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// A number that changes when the files do.
pub(crate) fn files(folder: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in names(folder).unwrap_or_default() {
        let log = folder.join(&name);
        let mut segments = names(&log).unwrap_or_default();
        segments.retain(|it| parse_segment_name(it).is_some());
        let Some(last) = segments.last() else {
            continue;
        };
        let stat = std::fs::metadata(log.join(last)).map(|it| (it.len(), it.ino()));
        (name, segments.len(), last, stat.ok()).hash(&mut hasher);
    }
    hasher.finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SandboxId {
        SandboxId::parse(text).unwrap()
    }

    #[test]
    fn readers_have_places_of_their_sandbox_and_of_the_node() {
        let readers = LogReaders::new("/nowhere".into());
        let of = |failure: Failure| {
            assert_eq!(failure.reason, Reason::LogReadersExhausted);
            failure.metadata["of"].clone()
        };
        let enter = |id: &SandboxId| readers.enter(id).map_err(of);
        let mut places: Vec<_> = (0..READERS_PER_SANDBOX)
            .map(|_| enter(&id("a")).unwrap())
            .collect();
        assert_eq!(enter(&id("a")).err().unwrap(), "sandbox");
        places.pop();
        places.push(enter(&id("a")).unwrap());
        for number in 0..READERS - READERS_PER_SANDBOX {
            places.push(enter(&id(&format!("b{}", number % 50))).unwrap());
        }
        assert_eq!(enter(&id("c")).err().unwrap(), "node");
        places.clear();
        assert!(readers.places.is_empty());
    }

    #[test]
    fn what_is_written_shows_also_beside_files_that_are_no_segments() {
        let ground = written::Ground::new();
        let id = id("web");
        let folder = ground.readers.folder(&id);
        let nothing = files(&folder);
        let mut app = ground.log(&id, "app");
        std::fs::write(folder.join("app/zz"), "no segment").unwrap();
        let begun = files(&folder);
        app.lines(1);
        let written = files(&folder);
        assert_eq!(written, files(&folder));
        app.rotate();
        let rotated = files(&folder);
        let mut all = vec![nothing, begun, written, rotated];
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4, "each differs");
    }

    #[test]
    #[rustfmt::skip]
    fn a_sandbox_is_over_when_it_writes_no_more_and_a_second_look_shows_the_same() {
        let (one, two) = (Generation(1), Generation(2));
        let live = Beat::default().behind(7, Some(one)).behind(7, Some(one));
        let cases = [
            ("it is quiet",          live,                                   false),
            ("it has just ended",    live.behind(7, None),                   false),
            ("a last line came",     live.behind(7, None).behind(8, None),   false),
            ("nothing more came",    live.behind(7, None).behind(7, None),   true),
            ("another has its id",   live.behind(9, Some(two)).behind(9, Some(two)), true),
        ];
        for (case, beat, over) in cases {
            assert_eq!(beat.is_over(one), over, "{case}");
        }
    }
}
