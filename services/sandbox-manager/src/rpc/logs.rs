//! StreamLogs: what a caller asks for, and the stream that it pulls. It is read from the disk when it is pulled, so a
//! slow caller holds a place in a file and nothing else.

use std::{collections::BTreeMap, path::Path, pin::Pin, sync::Arc, time::SystemTime};

use berth_api::v1::{self, log_entry};
use berth_domain::{Failure, Generation, Reason, SandboxId, SandboxRecord};
use berth_logs::{
    cursor::Cursor,
    format::{GapReason, Kind, Record},
    merge::{Merged, Unreadable},
    reader::{Content, Entry, Position, Reader},
    tail::{Tail, begin_at},
    trace_id::trace_id,
};
use berth_platform::{Images, Network, Runtime};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::Status;

use super::{parse_id, refuse};
use crate::{
    failures::{internal, store_failure},
    logs::{Beat, LogReaders, SYSTEM, writing},
    places::Place,
    registry::{Registry, not_found, shutting_down},
};

const TAIL_MAX: u64 = 100_000;
/// Of one response.
const ENTRIES_MAX: usize = 1000;
const TEXT_BYTES: usize = 1 << 20;
/// Entries that are passed over at once, where few are wanted.
const PASSED_MAX: usize = 20_000;
const KINDS: [Kind; 5] = [
    Kind::Stdout,
    Kind::Stderr,
    Kind::UserOob,
    Kind::Error,
    Kind::System,
];

pub(super) type LogStream = Pin<Box<dyn Stream<Item = Response> + Send>>;
type Response = Result<v1::StreamLogsResponse, Status>;

pub(super) async fn stream<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    readers: &Arc<LogReaders>,
    request: v1::StreamLogsRequest,
) -> Result<LogStream, Status> {
    let id = parse_id("id", &request.id)?;
    let record = registry.store().get(&id).await;
    let record = record.map_err(|it| refuse(store_failure(it)))?;
    let record = record.ok_or_else(|| refuse(not_found(&id)))?;
    let asked = Asked::parse(request, &record).map_err(refuse)?;
    let place = readers.enter(&id).map_err(refuse)?;
    let beat = asked.follow.then(|| readers.follow(registry, &id));
    let (folder, kinds) = (readers.folder(&id), asked.kinds.clone());
    let opened = readers.read(move || asked.open(&folder)).await;
    let merged = opened.and_then(|it| it.map_err(unreadable));
    let reading = Reading {
        registry: registry.clone(),
        readers: readers.clone(),
        merged: merged.map_err(refuse)?,
        kinds,
        generation: record.generation,
        beat,
        told_end: false,
        id,
        _place: place,
    };
    let stream = futures::stream::unfold(Some(reading), |reading| async {
        let (response, reading) = reading?.next().await?;
        Some((response, reading))
    });
    Ok(Box::pin(stream))
}

/// What a request asks for.
#[derive(Debug)]
struct Asked {
    names: Vec<String>,
    kinds: Vec<Kind>,
    follow: bool,
    begin: Begin,
}

#[derive(Debug, PartialEq)]
enum Begin {
    All,
    Since(u64),
    Tail(usize, u64),
    Cursor(BTreeMap<String, Position>),
}

impl Asked {
    fn parse(request: v1::StreamLogsRequest, record: &SandboxRecord) -> Result<Self, Failure> {
        let known = record.spec.containers.iter().map(|it| it.name.to_string());
        let known: Vec<_> = known.chain([SYSTEM.to_owned()]).collect();
        let unknown = request.containers.iter().find(|it| !known.contains(it));
        if let Some(name) = unknown {
            let message = format!("sandbox {} has no container {name:?}", record.id);
            return Err(Failure::new(Reason::ContainerNotFound, message).with("container", name));
        }
        let wanted = |it: &String| request.containers.is_empty() || request.containers.contains(it);
        let names = known.into_iter().filter(wanted).collect();
        let kinds = request.streams.iter().enumerate().map(|(place, number)| {
            let stream = v1::LogStream::try_from(*number).ok();
            stream
                .and_then(kind)
                .ok_or_else(|| Failure::invalid(format!("streams[{place}]"), "is no stream"))
        });
        let mut kinds = kinds.collect::<Result<Vec<_>, _>>()?;
        if kinds.is_empty() {
            kinds = KINDS.to_vec();
        }
        let since = request.since.map(nanoseconds).transpose()?;
        let begin = match (request.cursor.as_str(), request.tail_lines, since) {
            ("", None, None) => Begin::All,
            ("", None, Some(since)) => Begin::Since(since),
            ("", Some(lines), since) => {
                if lines > TAIL_MAX {
                    let problem = format!("must be at most {TAIL_MAX}");
                    return Err(Failure::invalid("tail_lines", problem));
                }
                let lines = usize::try_from(lines).unwrap_or(usize::MAX);
                Begin::Tail(lines, since.unwrap_or(0))
            }
            (text, None, None) => {
                let cursor = Cursor::parse(text, record.id.as_str());
                let problem = "is no cursor of this sandbox's logs";
                Begin::Cursor(cursor.ok_or_else(|| Failure::invalid("cursor", problem))?.0)
            }
            (_, Some(_), _) | (_, _, Some(_)) => {
                let problem = "cannot be given with `tail_lines` or `since`";
                return Err(Failure::invalid("cursor", problem));
            }
        };
        Ok(Self {
            names,
            kinds,
            follow: request.follow,
            begin,
        })
    }

    fn open(self, folder: &Path) -> Result<Merged, Unreadable> {
        let Self {
            names,
            kinds,
            begin,
            ..
        } = self;
        let of = |name: &String| {
            let name = name.clone();
            |source| Unreadable { log: name, source }
        };
        let resume = |name: &str, position: Option<Position>| match position {
            Some(position) => Reader::resume(folder.join(name), position),
            None => Reader::new(folder.join(name)),
        };
        let readers = match begin {
            Begin::All => names.iter().map(|it| resume(it, None)).collect(),
            Begin::Cursor(positions) => names
                .iter()
                .map(|it| resume(it, positions.get(it).copied()))
                .collect(),
            Begin::Since(since) => names
                .iter()
                .map(|it| Reader::since(folder.join(it), since).map_err(of(it)))
                .collect::<Result<Vec<_>, _>>()?,
            Begin::Tail(count, since) => {
                let wanted = |it: &Record<'_>| kinds.contains(&it.kind) && it.time_ns >= since;
                let tails = names
                    .iter()
                    .map(|it| Tail::read(&folder.join(it), count, wanted).map_err(of(it)))
                    .collect::<Result<Vec<_>, _>>()?;
                let begins = begin_at(tails, count);
                names
                    .iter()
                    .zip(begins)
                    .map(|(name, begin)| resume(name, begin))
                    .collect()
            }
        };
        Ok(Merged::new(names.into_iter().zip(readers)))
    }
}

/// One caller that reads.
struct Reading<R, N> {
    registry: Registry<R, N>,
    readers: Arc<LogReaders>,
    merged: Merged,
    kinds: Vec<Kind>,
    id: SandboxId,
    generation: Generation,
    /// Of who follows.
    beat: Option<watch::Receiver<Beat>>,
    /// Whether the caller knows that this is the end for now.
    told_end: bool,
    _place: Place,
}

/// What a look at the disk has brought.
struct Batch {
    entries: Vec<v1::LogEntry>,
    cursor: String,
    at_end: bool,
}

impl<R: Runtime + Images, N: Network> Reading<R, N> {
    /// The next response, with what there is to go on with.
    async fn next(mut self) -> Option<(Response, Option<Self>)> {
        loop {
            if self.registry.is_stopping() {
                return Some((Err(refuse(shutting_down())), None));
            }
            let heard = self.beat.as_mut().map(|it| *it.borrow_and_update());
            let over = match heard {
                Some(beat) => beat.is_over(self.generation) && self.is_over().await,
                None => self.is_over().await,
            };
            let batch = match self.read(over).await {
                Ok(batch) => batch,
                Err(failure) => return Some((Err(refuse(failure)), None)),
            };
            let ends = batch.at_end && (over || self.beat.is_none());
            let news = !batch.entries.is_empty() || (batch.at_end && !self.told_end);
            if news || ends {
                self.told_end = batch.at_end;
                let response = v1::StreamLogsResponse {
                    entries: batch.entries,
                    cursor: batch.cursor,
                    at_end: batch.at_end,
                };
                return Some((Ok(response), (!ends).then_some(self)));
            }
            if let (true, Some(beat)) = (batch.at_end, &mut self.beat) {
                let heard = tokio::select! {
                    heard = beat.changed() => heard.is_ok(),
                    () = self.registry.stopping() => true,
                };
                // A stop ends who looks, too.
                if !heard && !self.registry.is_stopping() {
                    let failure = internal("nobody looks at this sandbox any more");
                    return Some((Err(refuse(failure)), None));
                }
            }
        }
    }

    /// Whether nobody writes to these logs any more.
    async fn is_over(&self) -> bool {
        match self.registry.store().get(&self.id).await {
            Ok(record) => record.as_ref().and_then(writing) != Some(self.generation),
            Err(_) => false,
        }
    }

    async fn read(&mut self, over: bool) -> Result<Batch, Failure> {
        let mut merged = std::mem::replace(&mut self.merged, Merged::new([]));
        let (kinds, id) = (self.kinds.clone(), self.id.clone());
        let read = self.readers.read(move || {
            let batch = batch(&mut merged, &kinds, &id, over);
            (merged, batch)
        });
        let (merged, batch) = read.await?;
        self.merged = merged;
        batch.map_err(unreadable)
    }
}

fn batch(
    merged: &mut Merged,
    kinds: &[Kind],
    id: &SandboxId,
    over: bool,
) -> Result<Batch, Unreadable> {
    let (mut entries, mut bytes, mut at_end) = (vec![], 0, true);
    merged.look_again();
    let mut passed = 0;
    while let Some((name, entry)) = merged.read()? {
        passed += 1;
        let wanted = match &entry.content {
            Content::Line(line) => kinds.contains(&line.kind),
            Content::Gap(_) | Content::Replaced => true,
        };
        if wanted {
            if let Content::Line(line) = &entry.content {
                bytes += line.text.len();
            }
            entries.push(to_proto(name, entry));
        }
        if entries.len() == ENTRIES_MAX || bytes >= TEXT_BYTES || passed == PASSED_MAX {
            at_end = false;
            break;
        }
    }
    if at_end && over {
        // What stands behind the last whole record of a log that is over was to become one.
        entries.extend(merged.unread().map(|(name, bytes)| v1::LogEntry {
            container: container(name),
            sequence: 0,
            time: Some(SystemTime::now().into()),
            content: Some(log_entry::Content::Gap(v1::LogGap {
                reason: v1::LogGapReason::Damage.into(),
                lines: 0,
                bytes,
            })),
        }));
    }
    let positions = merged.positions();
    let cursor = Cursor(positions.map(|(name, it)| (name.to_owned(), it)).collect());
    Ok(Batch {
        entries,
        cursor: cursor.to_text(id.as_str()),
        at_end,
    })
}

fn to_proto(name: &str, entry: Entry) -> v1::LogEntry {
    let content = match entry.content {
        Content::Line(line) => log_entry::Content::Line(v1::LogLine {
            stream: stream_of(line.kind).into(),
            truncated: line.truncated,
            partial: line.partial,
            trace_id: trace_id(&line.text).unwrap_or_default().to_owned(),
            text: line.text,
        }),
        Content::Gap(gap) => log_entry::Content::Gap(v1::LogGap {
            reason: reason(gap.reason).into(),
            lines: gap.lines,
            bytes: gap.bytes,
        }),
        Content::Replaced => log_entry::Content::Gap(v1::LogGap {
            reason: v1::LogGapReason::Replaced.into(),
            lines: 0,
            bytes: 0,
        }),
    };
    let time = prost_types::Timestamp {
        seconds: i64::try_from(entry.time_ns / NANOS).unwrap_or(i64::MAX),
        nanos: i32::try_from(entry.time_ns % NANOS).unwrap_or(0),
    };
    v1::LogEntry {
        container: container(name),
        sequence: entry.sequence,
        time: Some(time),
        content: Some(content),
    }
}

const NANOS: u64 = 1_000_000_000;

fn nanoseconds(time: prost_types::Timestamp) -> Result<u64, Failure> {
    let invalid = || Failure::invalid("since", "must be a time between 1970 and 2554");
    let seconds = u64::try_from(time.seconds).map_err(|_| invalid())?;
    let nanos = u64::try_from(time.nanos).ok().filter(|it| *it < NANOS);
    let whole = seconds.checked_mul(NANOS).ok_or_else(invalid)?;
    whole
        .checked_add(nanos.ok_or_else(invalid)?)
        .ok_or_else(invalid)
}

fn container(name: &str) -> String {
    match name {
        SYSTEM => String::new(),
        name => name.to_owned(),
    }
}

fn kind(stream: v1::LogStream) -> Option<Kind> {
    Some(match stream {
        v1::LogStream::Unspecified => return None,
        v1::LogStream::Stdout => Kind::Stdout,
        v1::LogStream::Stderr => Kind::Stderr,
        v1::LogStream::UserOob => Kind::UserOob,
        v1::LogStream::Error => Kind::Error,
        v1::LogStream::System => Kind::System,
    })
}

fn stream_of(kind: Kind) -> v1::LogStream {
    match kind {
        Kind::Stdout => v1::LogStream::Stdout,
        Kind::Stderr => v1::LogStream::Stderr,
        Kind::UserOob => v1::LogStream::UserOob,
        Kind::Error => v1::LogStream::Error,
        Kind::System => v1::LogStream::System,
        // A reader makes no line of it.
        Kind::Gap => v1::LogStream::Unspecified,
    }
}

fn reason(reason: GapReason) -> v1::LogGapReason {
    match reason {
        GapReason::Disk => v1::LogGapReason::Disk,
        GapReason::Writer => v1::LogGapReason::Writer,
        GapReason::Damage => v1::LogGapReason::Damage,
        GapReason::Dropped => v1::LogGapReason::Dropped,
    }
}

pub(super) fn unreadable(Unreadable { log, source }: Unreadable) -> Failure {
    tracing::warn!(log, error = %source, "a log cannot be read");
    let message = format!("the log of {log:?} cannot be read: {source}");
    Failure::new(Reason::LogUnreadable, message).with("container", log)
}

#[cfg(test)]
mod tests;
