//! Carries a tar stream out below a root. Names of entries are taken below the destination, whatever they say, and no link
//! there is followed: neither one that the archive made nor one that somebody puts there meanwhile.

use std::{
    collections::hash_map::RandomState,
    ffi::OsStr,
    fs::File,
    hash::{BuildHasher as _, Hasher as _},
    io::{Read, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, StatxAttributes, StatxFlags, Timespec,
        Timestamps, Uid, chownat, fchmod, fchown, futimens, linkat, mkdirat, openat, renameat,
        renameat_with, statat, statx, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use crate::{
    DEPTH_MAX, Totals,
    error::CopyError,
    reader::{Entries, Entry, Kind},
    root::{below, directory, reopen},
};

const BUFFER: usize = 128 << 10;
/// Of one name of an archive, in bytes: as long as the kernel takes a path.
const PATH_MAX: usize = 4096;

/// Whether something is mounted at a name, as whoever reaches the directory by its descriptor sees it.
fn is_mount(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    let found = statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    found.is_ok_and(|it| it.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Where an archive goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Its entries go into this directory, which exists.
    Into,
    /// Its one entry at the top becomes what `cp -r` makes of it: it goes into the path where that is a directory, and takes
    /// its name where nothing or a file is there. The entry `.` is a directory without a name, whose content goes there.
    As,
}

/// Whose a new file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Of whoever copies.
    Caller,
    Given {
        uid: u32,
        gid: u32,
    },
    /// Of whom the archive says. Only so set-user-id and set-group-id bits are kept.
    Archived,
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub target: Target,
    pub owner: Owner,
    /// Whether what is there, and is no directory, is replaced.
    pub overwrite: bool,
}

/// Reads `archive` to its end and makes what it holds. What was made before a failure stays, but for a file of which only
/// a part had come.
pub fn unpack(
    root: BorrowedFd<'_>,
    path: &Path,
    options: Options,
    archive: impl Read,
) -> Result<Totals, CopyError> {
    let destination = Destination::find(root, path, options.target)?;
    let mut entries = Entries::new(archive);
    let Some(first) = entries.next()? else {
        return Ok(Totals::default());
    };
    let mut unpacking = destination.begin(path, options, &first)?;
    let mut next = Some(first);
    while let Some(entry) = next {
        unpacking.make(&entry, &mut entries)?;
        next = entries.next()?;
    }
    unpacking.leave(0)?;
    Ok(unpacking.totals)
}

/// What the path of a copy leads to, before its archive says what it holds.
enum Destination {
    Directory(OwnedFd),
    /// Nothing, or what is no directory.
    Name {
        parent: OwnedFd,
        name: Vec<u8>,
        /// It was written as that of a directory.
        slash: bool,
    },
}

impl Destination {
    fn find(root: BorrowedFd<'_>, path: &Path, target: Target) -> Result<Self, CopyError> {
        let missing = match directory(root, path) {
            Ok(found) => return Ok(Self::Directory(found)),
            Err(errno) => errno,
        };
        let may_be_made = matches!(missing, Errno::NOENT | Errno::NOTDIR);
        if target == Target::Into || !may_be_made {
            return Err(CopyError::of("opening", path)(missing));
        }
        let bytes = path.as_os_str().as_bytes();
        let trimmed = bytes.trim_ascii_end_of(b'/');
        let start = trimmed.iter().rposition(|it| *it == b'/');
        let (parent, name) = trimmed.split_at(start.map_or(0, |it| it + 1));
        if matches!(name, b"" | b"." | b"..") {
            return Err(CopyError::of("opening", path)(missing));
        }
        let parent_path = Path::new(OsStr::from_bytes(parent));
        let parent = directory(root, parent_path).map_err(CopyError::of("opening", parent_path))?;
        Ok(Self::Name {
            parent,
            name: name.to_vec(),
            slash: trimmed.len() < bytes.len(),
        })
    }

    fn begin(self, path: &Path, options: Options, first: &Entry) -> Result<Unpacking, CopyError> {
        let nameless = names(&first.path)?.is_empty();
        let (base, prefix, top) = match self {
            Self::Directory(base) if options.target == Target::Into || nameless => {
                (base, path.to_owned(), Top::Any)
            }
            Self::Directory(base) => (
                base,
                path.to_owned(),
                Top::One {
                    first: None,
                    name: None,
                },
            ),
            Self::Name { name, slash, .. } if slash && first.kind != Kind::Directory => {
                let path = path.with_file_name(OsStr::from_bytes(&name));
                return Err(CopyError::of("opening", path)(Errno::NOENT));
            }
            Self::Name { parent, name, .. } if nameless => (
                parent,
                path.parent().unwrap_or(Path::new("")).to_owned(),
                Top::Below(name),
            ),
            Self::Name { parent, name, .. } => (
                parent,
                path.parent().unwrap_or(Path::new("")).to_owned(),
                Top::One {
                    first: None,
                    name: Some(name),
                },
            ),
        };
        Ok(Unpacking {
            base,
            prefix,
            top,
            options,
            entered: vec![],
            buffer: vec![0; BUFFER],
            salt: RandomState::new().build_hasher().finish(),
            totals: Totals::default(),
        })
    }
}

trait TrimEnd {
    fn trim_ascii_end_of(&self, byte: u8) -> &[u8];
}

impl TrimEnd for [u8] {
    fn trim_ascii_end_of(&self, byte: u8) -> &[u8] {
        let end = self.iter().rposition(|it| *it != byte);
        &self[..end.map_or(0, |it| it + 1)]
    }
}

/// What may stand at the top of the archive.
enum Top {
    Any,
    /// One entry, with all below it; it may get another name.
    One {
        first: Option<Vec<u8>>,
        name: Option<Vec<u8>>,
    },
    /// All of it lies below this name.
    Below(Vec<u8>),
}

struct Unpacking {
    base: OwnedFd,
    /// As the caller names the base.
    prefix: PathBuf,
    top: Top,
    options: Options,
    /// Directories made here whose content is still coming, outermost first. They get their modes at the end.
    entered: Vec<Entered>,
    buffer: Vec<u8>,
    /// Makes temporary names that nobody guesses.
    salt: u64,
    totals: Totals,
}

struct Entered {
    names: Vec<Vec<u8>>,
    /// Device and inode: somebody may put another one there.
    identity: (u64, u64),
    mode: u32,
    modified: Timespec,
}

impl Unpacking {
    fn make(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), CopyError> {
        let mut path = self.placed(&entry.path)?;
        let Some(name) = path.pop() else {
            // The base itself, which is there.
            return match entry.kind {
                Kind::Directory => Ok(()),
                Kind::File | Kind::Symlink(_) | Kind::HardLink(_) => {
                    Err(CopyError::archive(&entry.path, "has no name"))
                }
            };
        };
        let common = self
            .entered
            .iter()
            .take_while(|it| path.starts_with(&it.names));
        let common = common.count();
        self.leave(common)?;
        let parent = self.parent(&path)?;
        let place = Place {
            path: self.named(&path, &name),
            parent,
            name,
        };
        match &entry.kind {
            Kind::Directory => {
                path.push(place.name.clone());
                self.make_directory(&place, path, entry)?;
                self.totals.directories += 1;
                return Ok(());
            }
            Kind::File => self.make_file(&place, entry, content)?,
            Kind::Symlink(text) => self.make_symlink(&place, text, entry)?,
            Kind::HardLink(to) => self.make_hard_link(&place, to, entry)?,
        }
        self.totals.files += 1;
        Ok(())
    }

    /// The names that lead from the base to where an entry goes.
    fn placed(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>, CopyError> {
        let mut names: Vec<_> = names(path)?.into_iter().map(<[u8]>::to_vec).collect();
        match &mut self.top {
            Top::Any => {}
            Top::Below(name) => names.insert(0, name.clone()),
            Top::One { first, name } => {
                let Some(top) = names.first_mut() else {
                    return Err(CopyError::archive(path, "has no name"));
                };
                let first = first.get_or_insert_with(|| top.clone());
                if first != top {
                    return Err(CopyError::archive(path, "is a second one at the top"));
                }
                if let Some(name) = name {
                    top.clone_from(name);
                }
            }
        }
        Ok(names)
    }

    /// The directory that an entry goes into; made where the archive does not tell of it.
    fn parent(&self, names: &[Vec<u8>]) -> Result<OwnedFd, CopyError> {
        match below(self.base.as_fd(), names) {
            Ok(found) => return Ok(found),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(CopyError::of("opening", self.path_of(names))(errno)),
        }
        for length in 1..=names.len() {
            let (parents, name) = (&names[..length - 1], &names[length - 1]);
            let path = self.path_of(&names[..length]);
            let parent =
                below(self.base.as_fd(), parents).map_err(CopyError::of("opening", &path))?;
            match mkdirat(&parent, name.as_slice(), Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    if let Some((uid, gid)) = self.owner(None) {
                        chownat(
                            &parent,
                            name.as_slice(),
                            uid,
                            gid,
                            AtFlags::SYMLINK_NOFOLLOW,
                        )
                        .map_err(CopyError::of("giving away", &path))?;
                    }
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(CopyError::of("making", path)(errno)),
            }
        }
        below(self.base.as_fd(), names).map_err(CopyError::of("opening", self.path_of(names)))
    }

    fn make_directory(
        &mut self,
        at: &Place,
        names: Vec<Vec<u8>>,
        entry: &Entry,
    ) -> Result<(), CopyError> {
        let name = at.name.as_slice();
        let made = match mkdirat(&at.parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(CopyError::of("making", &at.path)(errno)),
        };
        let found = statat(&at.parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(CopyError::of("looking at", &at.path))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            return Err(CopyError::of("making", &at.path)(Errno::NOTDIR));
        }
        // One that was there stays as it is: it is somebody's.
        if !made {
            return Ok(());
        }
        if let Some((uid, gid)) = self.owner(Some(entry)) {
            chownat(&at.parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(CopyError::of("giving away", &at.path))?;
        }
        self.entered.push(Entered {
            names,
            identity: (found.st_dev, found.st_ino),
            mode: entry.mode,
            modified: entry.modified,
        });
        Ok(())
    }

    fn make_file(
        &mut self,
        at: &Place,
        entry: &Entry,
        content: &mut impl Read,
    ) -> Result<(), CopyError> {
        let temporary = self.temporary(at);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let flags = flags | OFlags::CLOEXEC;
        let name = temporary.name.as_slice();
        let file = openat(&at.parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(CopyError::of("making", &at.path))?;
        let mut file = File::from(file);
        let mut left = entry.size;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let read = content
                .read(&mut self.buffer[..length])
                .map_err(CopyError::stream)?;
            if read == 0 {
                let problem = "is the last of an archive that ends too early";
                return Err(CopyError::archive(&entry.path, problem));
            }
            file.write_all(&self.buffer[..read])
                .map_err(CopyError::of_io("writing", &at.path))?;
            left -= read as u64;
            self.totals.bytes += read as u64;
        }
        if let Some((uid, gid)) = self.owner(Some(entry)) {
            fchown(&file, uid, gid).map_err(CopyError::of("giving away", &at.path))?;
        }
        // After its owner: a change of that takes set-user-id bits away.
        fchmod(&file, self.mode(entry.mode))
            .map_err(CopyError::of("setting the mode of", &at.path))?;
        futimens(&file, &times(entry.modified))
            .map_err(CopyError::of("setting the times of", &at.path))?;
        self.put_in_place(temporary, at)
    }

    fn make_symlink(&self, at: &Place, text: &[u8], entry: &Entry) -> Result<(), CopyError> {
        let temporary = self.temporary(at);
        let name = temporary.name.as_slice();
        symlinkat(text, &at.parent, name).map_err(CopyError::of("making", &at.path))?;
        if let Some((uid, gid)) = self.owner(Some(entry)) {
            chownat(&at.parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(CopyError::of("giving away", &at.path))?;
        }
        utimensat(
            &at.parent,
            name,
            &times(entry.modified),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(CopyError::of("setting the times of", &at.path))?;
        self.put_in_place(temporary, at)
    }

    fn make_hard_link(&mut self, at: &Place, to: &[u8], entry: &Entry) -> Result<(), CopyError> {
        let mut target = self.placed(to)?;
        let Some(target_name) = target.pop() else {
            return Err(CopyError::archive(&entry.path, "is a link to no name"));
        };
        let path = self.named(&target, &target_name);
        let parent = below(self.base.as_fd(), &target).map_err(CopyError::of("opening", &path))?;
        let target_name = target_name.as_slice();
        let temporary = self.temporary(at);
        linkat(
            &parent,
            target_name,
            &at.parent,
            temporary.name.as_slice(),
            AtFlags::empty(),
        )
        .map_err(CopyError::of("linking to", &path))?;
        let linked = statat(
            &at.parent,
            temporary.name.as_slice(),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(CopyError::of("looking at", &at.path))?;
        if FileType::from_raw_mode(linked.st_mode) != FileType::RegularFile {
            return Err(CopyError::archive(
                &entry.path,
                "is a link to what is no file",
            ));
        }
        self.put_in_place(temporary, at)
    }

    /// Gives a finished file its name.
    fn put_in_place(&self, temporary: Temporary<'_>, at: &Place) -> Result<(), CopyError> {
        let (from, to) = (temporary.name.as_slice(), at.name.as_slice());
        let parent = &at.parent;
        // The kernel keeps only mounts of its caller's own namespace from being replaced, and takes those of the container away.
        if is_mount(parent.as_fd(), to) {
            return Err(CopyError::of("naming", &at.path)(Errno::BUSY));
        }
        let renamed = match self.options.overwrite {
            true => renameat(parent, from, parent, to),
            false => renameat_with(parent, from, parent, to, RenameFlags::NOREPLACE),
        };
        renamed.map_err(CopyError::of("naming", &at.path))
        // `temporary` is removed all the same: the kernel leaves it where both are links to one file.
    }

    fn temporary<'a>(&self, at: &'a Place) -> Temporary<'a> {
        let serial = self.totals.files;
        Temporary {
            parent: &at.parent,
            name: format!(".berth-copy-{:016x}-{serial}", self.salt).into_bytes(),
        }
    }

    /// Finishes the directories that nothing more comes into, until only this many are left.
    fn leave(&mut self, outer: usize) -> Result<(), CopyError> {
        while self.entered.len() > outer {
            let Some(it) = self.entered.pop() else { break };
            let path = self.path_of(&it.names);
            let place =
                below(self.base.as_fd(), &it.names).map_err(CopyError::of("opening", &path))?;
            let found = rustix::fs::fstat(&place).map_err(CopyError::of("looking at", &path))?;
            if (found.st_dev, found.st_ino) != it.identity {
                continue;
            }
            let directory =
                reopen(&place, OFlags::DIRECTORY).map_err(CopyError::of("opening", &path))?;
            futimens(&directory, &times(it.modified))
                .map_err(CopyError::of("setting the times of", &path))?;
            fchmod(&directory, self.mode(it.mode))
                .map_err(CopyError::of("setting the mode of", &path))?;
        }
        Ok(())
    }

    fn owner(&self, entry: Option<&Entry>) -> Option<(Option<Uid>, Option<Gid>)> {
        let (uid, gid) = match self.options.owner {
            Owner::Caller => return None,
            Owner::Given { uid, gid } => (uid, gid),
            Owner::Archived => entry.map(|it| (it.uid, it.gid))?,
        };
        Some((Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
    }

    fn mode(&self, archived: u32) -> Mode {
        let kept = match self.options.owner {
            Owner::Archived => 0o7777,
            Owner::Caller | Owner::Given { .. } => 0o1777,
        };
        Mode::from_raw_mode(archived & kept)
    }

    fn path_of(&self, names: &[Vec<u8>]) -> PathBuf {
        let names = names.iter().map(|it| OsStr::from_bytes(it));
        names.fold(self.prefix.clone(), |path, name| path.join(name))
    }

    fn named(&self, parents: &[Vec<u8>], name: &[u8]) -> PathBuf {
        self.path_of(parents).join(OsStr::from_bytes(name))
    }
}

/// Where one entry goes.
struct Place {
    parent: OwnedFd,
    name: Vec<u8>,
    /// As the caller names it.
    path: PathBuf,
}

/// A file without its name yet. Dropping it removes it.
struct Temporary<'a> {
    parent: &'a OwnedFd,
    name: Vec<u8>,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // There is nothing where it was put in place.
        let _ = unlinkat(self.parent, self.name.as_slice(), AtFlags::empty());
    }
}

/// The names in a path, taken below a directory: a leading slash means nothing, and `..` is refused.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, CopyError> {
    if path.len() > PATH_MAX {
        return Err(CopyError::archive(
            &path[..64],
            "has a path that is too long",
        ));
    }
    let mut names = vec![];
    for name in path.split(|it| *it == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(CopyError::archive(path, "leads upwards by `..`")),
            name if name.contains(&0) => return Err(CopyError::archive(path, "has a zero byte")),
            name => names.push(name),
        }
    }
    if names.len() > DEPTH_MAX {
        let begin = path.get(..64).unwrap_or(path);
        let problem = format!("lies deeper than {DEPTH_MAX} directories");
        return Err(CopyError::archive(begin, problem));
    }
    Ok(names)
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps {
        last_access: modified,
        last_modification: modified,
    }
}
