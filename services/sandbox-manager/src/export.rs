//! Sends the logs of all sandboxes to a receiver of OpenTelemetry logs, each line at least once. It reads as every reader
//! does, and a receiver that is away or slow makes it fall behind and nobody else.

mod kept;
mod message;
mod settings;
mod verdict;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_domain::SandboxId;
use berth_logs::{
    merge::{Merged, Unreadable},
    reader::{Content, Position, Reader},
};
use berth_platform::{Images, Network, Runtime};
use berth_telemetry::{
    HttpReceiver, KeyValue,
    instruments::{LINES_DROPPED, LINES_EXPORTED},
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse, logs_service_client::LogsServiceClient,
    },
    logs::v1::LogRecord,
};
use prost::Message as _;
use tokio::time::Instant;
use tonic::{Request, Status, metadata::MetadataMap, transport::Channel};

use self::{
    kept::Kept,
    message::About,
    verdict::{Verdict, verdict},
};
use crate::{
    logs::{LogReaders, files, names},
    registry::Registry,
};

pub(crate) use settings::Settings;

/// How often the folders are looked through.
const BEAT: Duration = Duration::from_secs(1);
/// Looks that show nothing new before the files of a sandbox are closed.
const IDLE_BEATS: u32 = 10;
/// Of one request: receivers take 4 MiB unless told otherwise, and one line can have 1 MiB.
const RECORDS_MAX: usize = 512;
const BYTES_MAX: usize = 1 << 20;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(30);
/// How often a batch is sent before it is looked for what is wrong in it.
const TRIES: u32 = 3;
/// Of lines that the receiver does not take, as the reason for which they are dropped.
const REFUSED: &str = "refused";
/// So many pieces are refused before one is taken: then it is the receiver, whatever it is sent.
const REFUSED_PIECES: u32 = 32;

/// Runs until the manager stops.
pub(crate) async fn run<R: Runtime + Images, N: Network>(
    registry: Registry<R, N>,
    readers: Arc<LogReaders>,
    settings: Settings,
    node_id: Arc<str>,
    file: PathBuf,
) {
    let mut exporter = match Exporter::new(registry, readers, settings, node_id, file) {
        Ok(exporter) => exporter,
        Err(error) => {
            tracing::error!(%error, "log lines are not exported");
            return;
        }
    };
    while !exporter.registry.is_stopping() {
        let stopping = exporter.registry.stopping();
        // What was sent and is not written down when it breaks off here is sent again.
        let more = tokio::select! {
            more = exporter.pass() => more,
            () = stopping => break,
        };
        exporter.save().await;
        if !more {
            exporter.registry.pause(BEAT).await;
        }
    }
    exporter.save().await;
}

struct Exporter<R, N> {
    registry: Registry<R, N>,
    readers: Arc<LogReaders>,
    client: LogsServiceClient<Channel>,
    http: Option<HttpReceiver>,
    settings: Settings,
    node_id: Arc<str>,
    /// What the receiver has.
    kept: Kept,
    file: PathBuf,
    open: BTreeMap<SandboxId, Open>,
    unsaved: bool,
}

/// A sandbox that is looked at.
struct Open {
    /// `None` where it has been quiet.
    merged: Option<Merged>,
    names: Vec<String>,
    /// As the files were when all of them had been read.
    done: Option<u64>,
    idle: u32,
    /// Its next batch was refused, and is not tried before.
    later: Option<Later>,
}

struct Later {
    at: Instant,
    wait: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Sent {
    /// Nothing of it is sent again. So many of its lines are dropped, the receiver has the others.
    Answered {
        dropped: u64,
    },
    /// It is refused, and others may not be.
    Refused,
    Stopping,
}

/// What lies in the folder of logs.
struct Seen {
    id: SandboxId,
    names: Vec<String>,
    files: u64,
}

/// What is sent at once, and where its logs go on behind it.
struct Batch {
    records: Vec<LogRecord>,
    positions: BTreeMap<String, Position>,
    /// Lines that the logs say are missing, or that are refused, by the reason.
    dropped: BTreeMap<&'static str, u64>,
    at_end: bool,
}

impl<R: Runtime + Images, N: Network> Exporter<R, N> {
    fn new(
        registry: Registry<R, N>,
        readers: Arc<LogReaders>,
        settings: Settings,
        node_id: Arc<str>,
        file: PathBuf,
    ) -> anyhow::Result<Self> {
        let http = settings.http.is_some();
        let http = http.then(|| HttpReceiver::new(settings.timeout));
        Ok(Self {
            http: http.transpose().map_err(|it| anyhow::anyhow!(it))?,
            client: LogsServiceClient::new(settings.channel()),
            settings,
            registry,
            readers,
            node_id,
            kept: Kept::load(&file),
            file,
            open: BTreeMap::new(),
            unsaved: false,
        })
    }

    /// Sends a batch of each sandbox that has something new. Returns whether one of them has more.
    async fn pass(&mut self) -> bool {
        let log_dir = self.readers.log_dir().to_owned();
        let seen = match self.readers.read(move || look(&log_dir)).await {
            Ok(Ok(seen)) => seen,
            // What cannot be read is not gone.
            Ok(Err(error)) => {
                tracing::warn!(%error, "the folder of logs cannot be read; nothing is exported");
                return false;
            }
            Err(_) => return false,
        };
        let there = |id: &SandboxId| seen.iter().any(|it| it.id == *id);
        self.open.retain(|id, _| there(id));
        self.unsaved |= self.kept.retain(there);
        let mut more = false;
        for it in seen {
            more |= self.of_one(it).await;
        }
        more
    }

    /// Returns whether there is more.
    async fn of_one(&mut self, Seen { id, names, files }: Seen) -> bool {
        let open = self.open.entry(id.clone()).or_insert_with(|| Open {
            merged: None,
            names: vec![],
            done: None,
            idle: 0,
            later: None,
        });
        if open.later.as_ref().is_some_and(|it| Instant::now() < it.at) {
            return false;
        }
        if open.done == Some(files) {
            open.idle += 1;
            if open.idle > IDLE_BEATS {
                open.merged = None;
            }
            return false;
        }
        open.idle = 0;
        if open.names != names {
            open.names = names;
            open.merged = None;
        }
        let merged = open.merged.take();
        let merged = merged.unwrap_or_else(|| {
            let folder = self.readers.folder(&id);
            self.kept.open(&id, &folder, &open.names)
        });
        let record = self.registry.store().get(&id).await;
        let about = About::new(&id, record.ok().flatten().as_ref());
        let read = self.readers.read(move || {
            let mut merged = merged;
            let batch = batch(&mut merged, &about);
            (merged, batch, about)
        });
        let Ok((merged, batch, about)) = read.await else {
            return false;
        };
        let mut batch = match batch {
            Ok(batch) => batch,
            Err(Unreadable { log, source }) => {
                tracing::warn!(%id, log, error = %source, "a log cannot be read, and is not exported");
                self.looked(&id, None, Some(files));
                return false;
            }
        };
        if !batch.records.is_empty() {
            let lines = batch.records.len() as u64;
            match self.send(&id, &about, batch.records).await {
                Sent::Answered { dropped } => {
                    // The receiver may say anything.
                    let dropped = dropped.min(lines);
                    LINES_EXPORTED.record((lines - dropped) as f64, &[]);
                    if dropped > 0 {
                        batch.dropped.insert(REFUSED, dropped);
                    }
                }
                Sent::Refused => {
                    self.postpone(&id);
                    return false;
                }
                Sent::Stopping => return false,
            }
        }
        for (reason, lines) in batch.dropped {
            LINES_DROPPED.record(lines as f64, &[KeyValue::new("berth.gap.reason", reason)]);
        }
        self.unsaved |= self.kept.put(&id, batch.positions);
        self.looked(&id, Some(merged), batch.at_end.then_some(files));
        !batch.at_end
    }

    fn looked(&mut self, id: &SandboxId, merged: Option<Merged>, done: Option<u64>) {
        if let Some(open) = self.open.get_mut(id) {
            open.merged = merged;
            open.done = done;
            open.later = None;
        }
    }

    /// Reads the same again after a while, with what has come to it by then.
    fn postpone(&mut self, id: &SandboxId) {
        if let Some(open) = self.open.get_mut(id) {
            let wait = open.later.as_ref().map_or(FIRST_WAIT, |it| it.wait * 2);
            let wait = wait.min(LAST_WAIT);
            let at = Instant::now() + wait;
            open.later = Some(Later { at, wait });
        }
    }

    /// Tries until the receiver has answered for the batch.
    async fn send(&mut self, id: &SandboxId, about: &About, records: Vec<LogRecord>) -> Sent {
        let (mut wait, mut doubtful) = (FIRST_WAIT, 0);
        while !self.registry.is_stopping() {
            let status = match self.attempt(id, about, &records).await {
                Ok(dropped) => return Sent::Answered { dropped },
                Err(status) => status,
            };
            match verdict(&status) {
                Verdict::Batch => {
                    tracing::warn!(%id, error = %status, "the receiver refuses a batch of log lines for good");
                    let dropped = records.len() as u64;
                    return Sent::Answered { dropped };
                }
                Verdict::Either => {
                    doubtful += 1;
                    if doubtful == TRIES {
                        return self.send_apart(id, about, &records).await;
                    }
                }
                // A receiver that is away says nothing of the batch.
                Verdict::Receiver => {}
            }
            if wait == FIRST_WAIT {
                tracing::warn!(error = %status, "log lines wait for their receiver");
            }
            self.save().await;
            self.registry.pause(wait).await;
            wait = (wait * 2).min(LAST_WAIT);
        }
        Sent::Stopping
    }

    /// Sends a batch in pieces, ever smaller ones where they are refused. What is refused line by line while others are taken
    /// is given up.
    async fn send_apart(&mut self, id: &SandboxId, about: &About, records: &[LogRecord]) -> Sent {
        let (mut pieces, mut refused, mut given_up) = (vec![records], 0, vec![]);
        let (mut taken, mut dropped) = (false, 0);
        while let Some(piece) = pieces.pop() {
            if self.registry.is_stopping() {
                return Sent::Stopping;
            }
            let status = match self.attempt(id, about, piece).await {
                Ok(rejected) => {
                    taken = true;
                    dropped += rejected;
                    continue;
                }
                Err(status) => status,
            };
            refused += 1;
            let hopeless = !taken && refused > REFUSED_PIECES;
            if hopeless || verdict(&status) == Verdict::Receiver {
                return Sent::Refused;
            }
            if piece.len() == 1 {
                given_up.push(status);
            } else {
                let (begin, end) = piece.split_at(piece.len() / 2);
                pieces.extend([end, begin]);
            }
        }
        if !taken {
            return Sent::Refused;
        }
        if let Some(error) = given_up.last() {
            let lines = given_up.len();
            tracing::warn!(%id, lines, %error, "the receiver refuses log lines each time, and takes others");
        }
        dropped += given_up.len() as u64;
        Sent::Answered { dropped }
    }

    /// Returns how many of the records the receiver rejects while it takes the others.
    async fn attempt(
        &mut self,
        id: &SandboxId,
        about: &About,
        records: &[LogRecord],
    ) -> Result<u64, Status> {
        let request = about.request(&self.node_id, records.to_vec());
        if let (Some(http), Some(url)) = (&self.http, &self.settings.http) {
            let headers = self.settings.with_headers(&MetadataMap::new());
            return posted(http, id, url, headers, &request).await;
        }
        let mut attempt = Request::new(request);
        attempt.set_timeout(self.settings.timeout);
        *attempt.metadata_mut() = self.settings.with_headers(attempt.metadata());
        let answer = self.client.export(attempt);
        match tokio::time::timeout(self.settings.timeout, answer).await {
            Ok(answer) => Ok(rejected(id, &answer?.into_inner())),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    /// Writes down what the receiver has.
    async fn save(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        let (text, file) = (self.kept.to_text(), self.file.clone());
        let saved = self.readers.read(move || kept::write(&file, &text)).await;
        if let Ok(Err(error)) = saved {
            self.unsaved = true;
            tracing::warn!(%error, "what was exported is not written down, and may be sent again");
        }
    }
}

/// As a call would go, over HTTP.
async fn posted(
    http: &HttpReceiver,
    id: &SandboxId,
    url: &str,
    headers: MetadataMap,
    request: &ExportLogsServiceRequest,
) -> Result<u64, Status> {
    let answer = http
        .post(url, headers.into_headers(), request.encode_to_vec())
        .await;
    let (code, body) = answer.map_err(|it| Status::unavailable(it.to_string()))?;
    if (200..300).contains(&code) {
        let answer = ExportLogsServiceResponse::decode(body.as_slice()).unwrap_or_default();
        return Ok(rejected(id, &answer));
    }
    Err(verdict::of_http(code))
}

/// What the receiver says beside that it takes the others.
fn rejected(id: &SandboxId, answer: &ExportLogsServiceResponse) -> u64 {
    let Some(partial) = &answer.partial_success else {
        return 0;
    };
    let message = &partial.error_message;
    let rejected = u64::try_from(partial.rejected_log_records).unwrap_or_default();
    if rejected > 0 {
        tracing::warn!(%id, rejected, message, "the receiver refuses log lines");
    } else if !message.is_empty() {
        tracing::info!(%id, message, "the receiver of log lines says something");
    }
    rejected
}

fn look(log_dir: &Path) -> io::Result<Vec<Seen>> {
    let mut seen = vec![];
    for name in names(log_dir)? {
        let Ok(id) = SandboxId::parse(&name) else {
            continue;
        };
        let folder = log_dir.join(&name);
        match names(&folder) {
            Ok(names) => seen.push(Seen {
                names,
                files: files(&folder),
                id,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

fn batch(merged: &mut Merged, about: &About) -> Result<Batch, Unreadable> {
    let (mut records, mut bytes, mut at_end) = (vec![], 0, true);
    let mut dropped = BTreeMap::new();
    merged.look_again();
    loop {
        let log = |name: &str, all: &Merged| {
            all.positions()
                .find(|it| it.0 == name)
                .map_or(0, |it| it.1.log)
        };
        let Some((name, entry)) = merged.read()? else {
            break;
        };
        let name = name.to_owned();
        let log = log(&name, merged);
        if let Content::Gap(gap) = &entry.content {
            *dropped.entry(message::reason(gap.reason)).or_default() += gap.lines;
        }
        let record = about.record(&name, log, entry);
        bytes += message::size(&record);
        records.push(record);
        if records.len() == RECORDS_MAX || bytes >= BYTES_MAX {
            at_end = false;
            break;
        }
    }
    let positions = merged.positions();
    let positions = positions.map(|(name, it)| (name.to_owned(), it)).collect();
    Ok(Batch {
        records,
        positions,
        dropped,
        at_end,
    })
}

/// A reader of a sandbox's logs from these positions on.
fn open(folder: &Path, names: &[String], positions: Option<&BTreeMap<String, Position>>) -> Merged {
    let reader = |name: &String| {
        let folder = folder.join(name);
        let reader = match positions.and_then(|it| it.get(name)) {
            Some(position) => Reader::resume(folder, *position),
            None => Reader::new(folder),
        };
        (name.clone(), reader)
    };
    Merged::new(names.iter().map(reader))
}

#[cfg(test)]
mod tests;
