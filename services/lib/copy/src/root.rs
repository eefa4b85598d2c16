//! How places below a root are opened: by descriptor, so that the kernel keeps every path inside.

use std::{
    ffi::OsStr,
    fs::File,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

/// How often a look is repeated that another process disturbed by renaming.
const DISTURBED_MAX: usize = 128;

const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Opens what `path` leads to, links followed as a process does whose root this is. `follow` is about its last part.
pub(crate) fn place(root: BorrowedFd<'_>, path: &Path, follow: bool) -> Result<OwnedFd, Errno> {
    let flags = match follow {
        true => PLACE,
        false => PLACE | OFlags::NOFOLLOW,
    };
    let path = match path.as_os_str().is_empty() {
        true => Path::new("/"),
        false => path,
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    undisturbed(|| openat2(root, path, flags, Mode::empty(), resolve))
}

/// As `place`, of a directory.
pub(crate) fn directory(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let found = place(root, path, true)?;
    below(found.as_fd(), &[])
}

/// The directory with these names below `base`. No link is followed, whoever made it and when.
pub(crate) fn below(base: BorrowedFd<'_>, names: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
    let path = match names {
        [] => b".".to_vec(),
        names => names.join(&b'/'),
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = PLACE | OFlags::DIRECTORY;
    undisturbed(|| openat2(base, path.as_slice(), flags, Mode::empty(), resolve))
}

/// What has this name in a directory; a link is opened itself.
pub(crate) fn entry(directory: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(directory, name, PLACE | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens for reading what is held by place. Nobody can put something else there in between.
pub(crate) fn reopen(place: &OwnedFd, flags: OFlags) -> Result<File, Errno> {
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(rustix::fs::CWD, path, flags, Mode::empty())?;
    Ok(file.into())
}

/// The kernel answers AGAIN where something was renamed while it looked.
fn undisturbed<T>(mut look: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..DISTURBED_MAX {
        match look() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    look()
}
