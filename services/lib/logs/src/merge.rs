//! Several logs read as one: by time between them, by number within each.

use std::io;

use crate::reader::{Content, Entry, Position, Read, Reader};

#[derive(Debug)]
pub struct Merged {
    logs: Vec<Log>,
}

/// The disk does not give a log.
#[derive(Debug)]
pub struct Unreadable {
    pub log: String,
    pub source: io::Error,
}

#[derive(Debug)]
struct Log {
    name: String,
    reader: Reader,
    head: Option<Entry>,
    /// Where a reader goes on that is to read the head.
    before: Option<Position>,
    /// How many bytes lie behind its end; `None` while the end was not seen.
    ended: Option<u64>,
}

impl Merged {
    pub fn new(logs: impl IntoIterator<Item = (String, Reader)>) -> Self {
        let logs = logs.into_iter().map(|(name, reader)| Log {
            name,
            before: reader.position(),
            reader,
            head: None,
            ended: None,
        });
        Self {
            logs: logs.collect(),
        }
    }

    /// Asks logs again that had ended.
    pub fn look_again(&mut self) {
        for log in &mut self.logs {
            log.ended = None;
        }
    }

    /// The next entry with the name of its log; `None` when all have ended.
    pub fn read(&mut self) -> Result<Option<(&str, Entry)>, Unreadable> {
        for log in &mut self.logs {
            if let Err(source) = log.look() {
                let log = log.name.clone();
                return Err(Unreadable { log, source });
            }
        }
        let heads = self
            .logs
            .iter_mut()
            .filter_map(|log| Some((log.head.as_ref()?.time_ns, log)));
        let Some((_, log)) = heads.min_by_key(|(time_ns, _)| *time_ns) else {
            return Ok(None);
        };
        let entry = log.head.take();
        log.before = log.reader.position();
        Ok(entry.map(|entry| (log.name.as_str(), entry)))
    }

    /// Where each log goes on behind what `read` has given.
    pub fn positions(&self) -> impl Iterator<Item = (&str, Position)> {
        self.logs.iter().filter_map(|log| {
            let position = match log.head {
                Some(_) => log.before,
                None => log.reader.position(),
            };
            Some((log.name.as_str(), position?))
        })
    }

    /// Logs that have ended in bytes of no record, with how many.
    pub fn unread(&self) -> impl Iterator<Item = (&str, u64)> {
        self.logs.iter().filter_map(|log| {
            let bytes = log.ended.filter(|bytes| *bytes > 0)?;
            Some((log.name.as_str(), bytes))
        })
    }
}

impl Log {
    fn look(&mut self) -> io::Result<()> {
        if self.head.is_some() || self.ended.is_some() {
            return Ok(());
        }
        self.before = self.reader.position();
        match self.reader.read()? {
            Read::Entry(entry) => {
                // A reader since a time has passed over what is older.
                if let (Some(position), false) =
                    (self.reader.position(), entry.content == Content::Replaced)
                {
                    self.before = Some(Position {
                        next: entry.sequence,
                        ..position
                    });
                }
                self.head = Some(entry);
            }
            Read::End { unread_bytes } => self.ended = Some(unread_bytes),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
