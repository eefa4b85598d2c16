//! Reads the entries of a tar stream one by one. It decides what an entry says, not what becomes of it; long names are
//! bounded, which the readers of the `tar` crate are not.

use std::io::{self, Read};

use rustix::fs::Timespec;
use tar::{EntryType, Header, PaxExtensions};

use crate::error::CopyError;

const BLOCK: usize = 512;
/// Names and extended headers are kept in memory.
const EXTENSION_MAX: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Of the content that follows, in bytes.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Timespec,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// To what the text says.
    Symlink(Vec<u8>),
    /// To an earlier entry.
    HardLink(Vec<u8>),
}

#[derive(Debug)]
pub(crate) struct Entries<R> {
    stream: R,
    /// Of the content of the entry that was read last.
    left: u64,
    padding: u64,
    /// What a message about a broken header names.
    last: Vec<u8>,
}

/// What headers before the one of an entry say about it.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Timespec>,
}

impl<R: Read> Entries<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self {
            stream,
            left: 0,
            padding: 0,
            last: vec![],
        }
    }

    /// The next entry, whose content is read next; `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, CopyError> {
        let mut extended = Extended::default();
        loop {
            self.skip_content()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = self.number("size", header.entry_size())?;
            let kind = header.entry_type();
            if kind == EntryType::GNULongName {
                extended.path = Some(up_to_zero(&self.extension(size)?));
            } else if kind == EntryType::GNULongLink {
                extended.link = Some(up_to_zero(&self.extension(size)?));
            } else if kind == EntryType::XHeader {
                let bytes = self.extension(size)?;
                self.read_pax(&bytes, &mut extended)?;
            } else if kind == EntryType::XGlobalHeader {
                self.begin(size);
            } else {
                return self.entry(&header, kind, size, extended).map(Some);
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        extended: Extended,
    ) -> Result<Entry, CopyError> {
        let path = extended
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        self.last.clone_from(&path);
        let link = || {
            let in_header = || header.link_name_bytes().map(|it| it.into_owned());
            extended.link.clone().or_else(in_header).unwrap_or_default()
        };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the kinds of another crate, which may become more"
        )]
        let mut kind = match kind {
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link()),
            EntryType::Link => Kind::HardLink(link()),
            EntryType::Fifo => return Err(CopyError::archive(&path, "is a pipe")),
            EntryType::Char | EntryType::Block => {
                return Err(CopyError::archive(&path, "is a device"));
            }
            EntryType::GNUSparse => return Err(CopyError::archive(&path, SPARSE)),
            _ => return Err(CopyError::archive(&path, "is of a kind that is not known")),
        };
        // As archives from before POSIX say it.
        if kind == Kind::File && path.ends_with(b"/") {
            kind = Kind::Directory;
        }
        let size = match kind {
            Kind::File => extended.size.unwrap_or(size),
            Kind::Directory | Kind::Symlink(_) | Kind::HardLink(_) => 0,
        };
        let old = header.as_old();
        let uid = extended.uid.map_or_else(|| id(&old.uid, header.uid()), Ok);
        let gid = extended.gid.map_or_else(|| id(&old.gid, header.gid()), Ok);
        let seconds = header.mtime().unwrap_or_default();
        let modified = extended.modified.unwrap_or(Timespec {
            tv_sec: i64::try_from(seconds).unwrap_or_default(),
            tv_nsec: 0,
        });
        let entry = Entry {
            mode: self.number("mode", header.mode())?,
            uid: self.number("uid", uid)?,
            gid: self.number("gid", gid)?,
            path,
            kind,
            size,
            modified,
        };
        self.begin(size);
        Ok(entry)
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64).wrapping_sub(size) % BLOCK as u64;
    }

    fn skip_content(&mut self) -> Result<(), CopyError> {
        let length = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.stream).take(length), &mut io::sink());
        if skipped.map_err(CopyError::stream)? < length {
            return Err(self.torn());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` where the archive says that it ends.
    fn header(&mut self) -> Result<Option<Header>, CopyError> {
        let mut block = [0; BLOCK];
        if let Err(error) = self.stream.read_exact(&mut block) {
            return Err(match error.kind() == io::ErrorKind::UnexpectedEof {
                true => self.torn(),
                false => CopyError::stream(error),
            });
        }
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        let sum = |from: &[u8]| from.iter().map(|&it| u32::from(it)).sum::<u32>();
        let counted = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        if header.cksum().ok() != Some(counted) {
            let problem = "is followed by what is no header of a tar archive";
            return Err(CopyError::archive(&self.last, problem));
        }
        Ok(Some(header.clone()))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, CopyError> {
        if size > EXTENSION_MAX {
            let problem = format!(
                "is followed by a header of {size} bytes, at most {EXTENSION_MAX} are read"
            );
            return Err(CopyError::archive(&self.last, problem));
        }
        self.begin(size);
        let mut bytes = vec![];
        self.read_to_end(&mut bytes).map_err(CopyError::stream)?;
        Ok(bytes)
    }

    fn read_pax(&self, bytes: &[u8], extended: &mut Extended) -> Result<(), CopyError> {
        let broken = || CopyError::archive(&self.last, "is followed by a broken extended header");
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(|_| broken())?;
            let (key, value) = (record.key_bytes(), record.value_bytes());
            let text = || std::str::from_utf8(value).map_err(|_| broken());
            match key {
                b"path" => extended.path = Some(value.to_vec()),
                b"linkpath" => extended.link = Some(value.to_vec()),
                b"size" => extended.size = Some(text()?.parse().map_err(|_| broken())?),
                b"uid" => extended.uid = Some(text()?.parse().map_err(|_| broken())?),
                b"gid" => extended.gid = Some(text()?.parse().map_err(|_| broken())?),
                b"mtime" => extended.modified = Some(moment(text()?).ok_or_else(broken)?),
                key if key.starts_with(b"GNU.sparse") => {
                    let name = extended.path.as_deref().unwrap_or(&self.last);
                    return Err(CopyError::archive(name, SPARSE));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn number<T>(&self, what: &str, read: io::Result<T>) -> Result<T, CopyError> {
        read.map_err(|_| CopyError::archive(&self.last, format!("has a {what} that is no number")))
    }

    fn torn(&self) -> CopyError {
        CopyError::archive(&self.last, "is the last of an archive that ends too early")
    }
}

const SPARSE: &str = "is a sparse file; make the archive without --sparse";

/// The content of the entry that was read last.
impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = length.min(buffer.len());
        let read = self.stream.read(&mut buffer[..length])?;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The number of a user or a group; a field that was left empty is root's.
fn id(field: &[u8], read: io::Result<u64>) -> io::Result<u32> {
    if field.iter().all(|it| matches!(it, 0 | b' ')) {
        return Ok(0);
    }
    u32::try_from(read?).map_err(io::Error::other)
}

fn up_to_zero(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|it| *it == 0);
    bytes[..end.unwrap_or(bytes.len())].to_vec()
}

/// Seconds, with a fraction where there is one.
fn moment(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let (tv_sec, tv_nsec) = (seconds.parse().ok()?, digits.parse().ok()?);
    (tv_nsec >= 0).then_some(Timespec { tv_sec, tv_nsec })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(fill: impl FnOnce(&mut tar::Builder<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = vec![];
        let mut builder = tar::Builder::new(&mut bytes);
        fill(&mut builder);
        builder.finish().unwrap();
        drop(builder);
        bytes
    }

    fn file(size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o640);
        header.set_mtime(1234);
        header
    }

    #[test]
    fn entries_come_with_long_names_numbers_and_content() {
        let long = format!("{}/file", "d".repeat(180));
        let bytes = archive(|it| {
            it.append_data(&mut file(3), &long, &b"abc"[..]).unwrap();
            it.append_data(&mut file(0), "second", &b""[..]).unwrap();
        });
        let mut entries = Entries::new(bytes.as_slice());
        let first = entries.next().unwrap().unwrap();
        assert_eq!((first.path.as_slice(), first.size), (long.as_bytes(), 3));
        assert_eq!((first.mode, first.modified.tv_sec), (0o640, 1234));
        // Without a look at the content of the first one.
        assert_eq!(entries.next().unwrap().unwrap().path, b"second");
        assert_eq!(entries.next().unwrap(), None);
    }

    #[test]
    fn extended_headers_overrule_what_the_header_can_hold() {
        let pax = [
            ("path", "über".as_bytes()),
            ("uid", b"3000000"),
            ("mtime", b"5.25"),
            ("size", b"2"),
        ];
        let bytes = archive(|it| {
            it.append_pax_extensions(pax).unwrap();
            it.append_data(&mut file(2), "plain", &b"xy"[..]).unwrap();
        });
        let entry = Entries::new(bytes.as_slice()).next().unwrap().unwrap();
        assert_eq!(entry.path, "über".as_bytes());
        let modified = Timespec {
            tv_sec: 5,
            tv_nsec: 250_000_000,
        };
        assert_eq!((entry.uid, entry.size), (3_000_000, 2));
        assert_eq!(entry.modified, modified);
    }

    #[test]
    fn an_archive_that_is_cut_anywhere_is_torn_and_names_its_last_entry() {
        let bytes = archive(|it| {
            it.append_data(&mut file(600), "one", &[7_u8; 600][..])
                .unwrap();
        });
        // The end mark is two blocks, of which one is enough.
        for length in 0..bytes.len() - 2 * BLOCK {
            let mut entries = Entries::new(&bytes[..length]);
            let outcome = entries.next().and_then(|_| entries.next());
            let error = outcome.unwrap_err().to_string();
            assert!(error.ends_with("ends too early"), "{length}: {error}");
            assert_eq!(
                error.contains("`one`"),
                length >= BLOCK,
                "{length}: {error}"
            );
        }
    }

    #[test]
    fn what_is_no_archive_or_asks_for_too_much_is_refused() {
        let of_kind = |kind: EntryType, size: u64| {
            let mut header = file(size);
            header.set_entry_type(kind);
            header.set_path("name").unwrap();
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        let cases = [
            (vec![7; BLOCK], "no header of a tar archive"),
            (of_kind(EntryType::Fifo, 0), "is a pipe"),
            (of_kind(EntryType::Char, 0), "is a device"),
            (of_kind(EntryType::Block, 0), "is a device"),
            (of_kind(EntryType::GNUSparse, 0), "is a sparse file"),
            (of_kind(EntryType::new(b'Z'), 0), "not known"),
            (of_kind(EntryType::GNULongName, 1 << 40), "at most 65536"),
            (of_kind(EntryType::XHeader, 1 << 40), "at most 65536"),
        ];
        for (bytes, problem) in cases {
            let error = Entries::new(bytes.as_slice()).next().unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
        for (size, is_taken) in [(EXTENSION_MAX, true), (EXTENSION_MAX + 1, false)] {
            let bytes = of_kind(EntryType::GNULongName, size);
            // Of one that may be so large, the rest is missing.
            let error = Entries::new(bytes.as_slice()).next().unwrap_err();
            assert_eq!(!error.to_string().contains("at most"), is_taken, "{error}");
        }
    }
}
