//! Writes what lies at a path below a root as a tar stream, file by file as it is found. Nothing is held but the
//! directories that are open and the first name of files with several.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Dir, FileType, OFlags, Stat, fstat, fstatfs, readlinkat};
use tar::{Builder, EntryType, Header};

use crate::{
    DEPTH_MAX, Totals,
    error::CopyError,
    root::{entry, place, reopen},
};

/// Files with several names whose first name is remembered; further ones are written again as files of their own.
const LINKS_MAX: usize = 64 << 10;
/// Of their names together, in bytes.
const LINK_NAMES_MAX: usize = 4 << 20;
/// What the kernel makes up: reading all of it never ends well.
const MADE_UP: [i64; 4] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
];

/// Writes the file, link or tree at `path`. Its entry at the top has the last name of the path, or `.` where the path ends
/// in one. A last link is written itself unless `follow`.
pub fn pack(
    root: BorrowedFd<'_>,
    path: &Path,
    follow: bool,
    sink: impl Write,
) -> Result<Totals, CopyError> {
    let top = top(path)?;
    let found = place(root, path, follow).map_err(CopyError::of("opening", path))?;
    let mut packing = Packing {
        builder: Builder::new(Sink { sink, cut: false }),
        first_names: HashMap::new(),
        first_names_bytes: 0,
        totals: Totals::default(),
    };
    if let Err(error) = packing.write_tree(found, path, top) {
        packing.builder.get_mut().cut = true;
        return Err(error);
    }
    let sink = packing.builder.into_inner();
    sink.and_then(|mut it| it.flush())
        .map_err(CopyError::stream)?;
    Ok(packing.totals)
}

fn top(path: &Path) -> Result<PathBuf, CopyError> {
    let bytes = path.as_os_str().as_bytes();
    let last = bytes.split(|it| *it == b'/').rfind(|it| !it.is_empty());
    match last {
        None | Some(b".") => Ok(".".into()),
        Some(b"..") => Err(CopyError::refused(path, "must end in a name or in `/.`")),
        Some(name) => Ok(Path::new(OsStr::from_bytes(name)).to_owned()),
    }
}

/// The builder marks the end of the archive when it is dropped; one that is not whole must not have such a mark.
struct Sink<W> {
    sink: W,
    cut: bool,
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.cut {
            true => Ok(bytes.len()),
            false => self.sink.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

struct Packing<W: Write> {
    builder: Builder<Sink<W>>,
    /// By device and inode.
    first_names: HashMap<(u64, u64), PathBuf>,
    first_names_bytes: usize,
    totals: Totals,
}

/// A directory whose entries are being written.
struct Level {
    place: OwnedFd,
    entries: Dir,
    /// In the archive, and as the caller names it.
    name: PathBuf,
    path: PathBuf,
}

impl<W: Write> Packing<W> {
    fn write_tree(&mut self, top: OwnedFd, path: &Path, name: PathBuf) -> Result<(), CopyError> {
        let status = fstat(&top).map_err(CopyError::of("looking at", path))?;
        if is_special(&status) {
            let problem = "is neither a file nor a directory nor a link";
            return Err(CopyError::refused(path, problem));
        }
        let mut levels: Vec<Level> = vec![];
        levels.extend(self.write(top, &status, path.to_owned(), name)?);
        while let Some(level) = levels.last_mut() {
            let Some(found) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let found = found.map_err(CopyError::of("listing", &level.path))?;
            let own = found.file_name().to_bytes();
            if matches!(own, b"." | b"..") {
                continue;
            }
            let own = OsStr::from_bytes(own);
            let (path, name) = (level.path.join(own), level.name.join(own));
            // What was removed meanwhile is not in the copy.
            let opened = match entry(&level.place, own) {
                Err(rustix::io::Errno::NOENT) => continue,
                opened => opened.map_err(CopyError::of("opening", &path))?,
            };
            let status = fstat(&opened).map_err(CopyError::of("looking at", &path))?;
            if is_special(&status) {
                self.totals.skipped += 1;
                continue;
            }
            if levels.len() >= DEPTH_MAX {
                let problem = format!("lies deeper than {DEPTH_MAX} directories");
                return Err(CopyError::refused(path, problem));
            }
            levels.extend(self.write(opened, &status, path, name)?);
        }
        Ok(())
    }

    /// Writes one entry; returns the directory whose entries come next.
    fn write(
        &mut self,
        opened: OwnedFd,
        status: &Stat,
        path: PathBuf,
        name: PathBuf,
    ) -> Result<Option<Level>, CopyError> {
        let mut header = header(status);
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                let named = match name.as_os_str().as_bytes() {
                    b"." => name.clone(),
                    _ => name.join(""),
                };
                self.builder
                    .append_data(&mut header, named, io::empty())
                    .map_err(CopyError::stream)?;
                self.totals.directories += 1;
                let of = fstatfs(&opened).map_err(CopyError::of("looking at", &path))?;
                if MADE_UP.contains(&of.f_type) {
                    self.totals.skipped += 1;
                    return Ok(None);
                }
                let listed = reopen(&opened, OFlags::DIRECTORY);
                let entries = listed.and_then(|it| Dir::read_from(&it));
                let entries = entries.map_err(CopyError::of("listing", &path))?;
                Ok(Some(Level {
                    place: opened,
                    entries,
                    name,
                    path,
                }))
            }
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let text = readlinkat(&opened, "", vec![])
                    .map_err(CopyError::of("reading", &path))?
                    .into_bytes();
                self.builder
                    .append_link(&mut header, name, OsString::from_vec(text))
                    .map_err(CopyError::stream)?;
                self.totals.files += 1;
                Ok(None)
            }
            FileType::RegularFile
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                self.write_file(&opened, status, header, &path, name)?;
                Ok(None)
            }
        }
    }

    fn write_file(
        &mut self,
        opened: &OwnedFd,
        status: &Stat,
        mut header: Header,
        path: &Path,
        name: PathBuf,
    ) -> Result<(), CopyError> {
        self.totals.files += 1;
        let identity = (status.st_dev, status.st_ino);
        if let Some(first) = self.first_names.get(&identity) {
            header.set_entry_type(EntryType::Link);
            return self
                .builder
                .append_link(&mut header, name, first)
                .map_err(CopyError::stream);
        }
        let size = u64::try_from(status.st_size).unwrap_or_default();
        header.set_size(size);
        let mut content = Content {
            file: reopen(opened, OFlags::empty()).map_err(CopyError::of("opening", path))?,
            left: size,
            failed: None,
        };
        let written = self.builder.append_data(&mut header, &name, &mut content);
        match (content.failed, written) {
            (Some(error), _) => return Err(CopyError::of_io("reading", path)(error)),
            (None, Err(error)) => return Err(CopyError::stream(error)),
            (None, Ok(())) => {}
        }
        if content.left > 0 {
            return Err(CopyError::refused(path, "became shorter while it was read"));
        }
        self.totals.bytes += size;
        let names = self.first_names_bytes + name.as_os_str().len();
        if status.st_nlink > 1 && self.first_names.len() < LINKS_MAX && names <= LINK_NAMES_MAX {
            self.first_names_bytes = names;
            self.first_names.insert(identity, name);
        }
        Ok(())
    }
}

/// As much of a file as its header promises; what is appended meanwhile is not in the copy.
struct Content {
    file: File,
    left: u64,
    /// Tells a file that cannot be read from a sink that cannot be written.
    failed: Option<io::Error>,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = length.min(buffer.len());
        match self.file.read(&mut buffer[..length]) {
            Ok(read) => {
                self.left -= read as u64;
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}

fn is_special(status: &Stat) -> bool {
    !matches!(
        FileType::from_raw_mode(status.st_mode),
        FileType::RegularFile | FileType::Directory | FileType::Symlink
    )
}

fn header(status: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(status.st_mode & 0o7777);
    header.set_uid(status.st_uid.into());
    header.set_gid(status.st_gid.into());
    // A time before 1970 has no place in it.
    header.set_mtime(u64::try_from(status.st_mtime).unwrap_or_default());
    header.set_size(0);
    header
}
