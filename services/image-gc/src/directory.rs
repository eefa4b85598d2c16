//! The directory of the blobs: what is in it, and how a blob goes. No path that leads to a blob is ever removed: it is renamed
//! to a tombstone, which has a name of its own, and that is removed later or named back.

mod authority;
mod links;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, ErrorKind, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use berth_collect::{Digest, blobs::Found, manifest, verdict::Tombstone};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sha2::{Digest as _, Sha256};

pub(crate) use self::{authority::Authority, links::Links};
use crate::{
    config::BlobLayout,
    names::{read_flat, read_tombstone, tombstone},
};

/// Of a blob, in the tree of a registry.
const DATA: &str = "data";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("{} cannot be read", .path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error(
        "{} says that the directory is that of {theirs}, and not of {own}; without the file it is anybody's",
        .path.display()
    )]
    Foreign {
        path: PathBuf,
        theirs: String,
        own: String,
    },
    #[error("the blob {digest} is not what its digest says: what it covers is not known")]
    Corrupt { digest: Digest },
    #[error("the blob {digest} cannot be understood")]
    Manifest {
        digest: Digest,
        source: manifest::Unreadable,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct BlobDir {
    root: PathBuf,
    layout: BlobLayout,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) found: Vec<Found>,
    /// Those that are there and could not be looked at.
    pub(crate) unreadable: Vec<(Digest, String)>,
    pub(crate) links: Links,
}

impl BlobDir {
    pub(crate) fn new(root: PathBuf, layout: BlobLayout) -> Self {
        Self { root, layout }
    }

    /// `None` where there is no such directory.
    pub(crate) fn scan(&self) -> Result<Option<Scan>, Unread> {
        if entries(&self.root)?.is_none() {
            return Ok(None);
        }
        let mut scan = Scan::default();
        match self.layout {
            BlobLayout::Flat => {
                for name in entries(&self.root)?.unwrap_or_default() {
                    if let Some((digest, buried)) = read_flat(&name) {
                        scan.look(digest, buried, &self.root.join(&name));
                    }
                }
            }
            BlobLayout::Distribution => {
                scan.links = Links::read(&self.root)?;
                let blobs = self.root.join("blobs/sha256");
                for shard in entries(&blobs)?.unwrap_or_default() {
                    let shard = blobs.join(shard);
                    for hex in entries(&shard)?.unwrap_or_default() {
                        let Ok(digest) = Digest::from_hex(&hex) else {
                            continue;
                        };
                        let home = shard.join(hex);
                        for name in entries(&home)?.unwrap_or_default() {
                            match read_tombstone(&name) {
                                Some((DATA, buried)) => {
                                    scan.look(digest, Some(buried), &home.join(name));
                                }
                                None if name == DATA => scan.look(digest, None, &home.join(name)),
                                Some(_) | None => {}
                            }
                        }
                    }
                }
            }
        }
        Ok(Some(scan))
    }

    /// Whether there is a tombstone at all, which is asked more often than a scan would be cheap.
    pub(crate) fn has_tombstones(&self) -> Result<bool, Unread> {
        let scan = match self.layout {
            BlobLayout::Flat => {
                let names = entries(&self.root)?.unwrap_or_default();
                return Ok(names.iter().any(|it| read_tombstone(it).is_some()));
            }
            BlobLayout::Distribution => self.scan()?,
        };
        let found = scan.map(|it| it.found).unwrap_or_default();
        Ok(found
            .iter()
            .any(|it| it.buried.is_some() || it.links_buried))
    }

    /// Takes the path of a blob away, links first. What is not as it was seen is left alone, and `false` returned.
    pub(crate) fn bury(&self, links: &Links, it: &Seen, to: Tombstone) -> io::Result<bool> {
        let path = self.path(&it.digest, None);
        let now = fs::symlink_metadata(&path);
        match now {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
            Ok(now) if now.modified()? != it.modified || now.len() != it.size_bytes => {
                return Ok(false);
            }
            Ok(_) => {}
        }
        links.bury(&it.digest, to)?;
        berth_daemon::crash::point(|| "image-gc/links-buried".to_owned());
        rename(&path, &self.path(&it.digest, Some(to)))
    }

    /// Names a blob back, unless its path leads to another copy by now, and its links.
    pub(crate) fn restore(
        &self,
        links: &Links,
        digest: &Digest,
        from: Option<Tombstone>,
    ) -> io::Result<()> {
        if let Some(from) = from {
            rename(&self.path(digest, Some(from)), &self.path(digest, None))?;
        }
        links.restore(digest)?;
        self.sync(&BTreeSet::from([*digest]))
    }

    /// Removes a tombstone, and the links that were buried with it.
    pub(crate) fn remove(&self, links: &Links, digest: &Digest, it: Tombstone) -> io::Result<()> {
        links.remove(digest, it)?;
        self.remove_superseded(digest, it)
    }

    /// Removes a tombstone alone: the links are those of the copy that the path leads to.
    pub(crate) fn remove_superseded(&self, digest: &Digest, it: Tombstone) -> io::Result<()> {
        let path = self.path(digest, Some(it));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if self.layout == BlobLayout::Distribution {
            links::prune(&path);
        }
        Ok(())
    }

    /// Makes renames and removals of these blobs durable.
    pub(crate) fn sync(&self, digests: &BTreeSet<Digest>) -> io::Result<()> {
        let homes: BTreeSet<_> = digests.iter().map(|it| self.home(it)).collect();
        homes.iter().try_for_each(|it| sync_directory(it))
    }

    /// What a blob covers: nothing where it can be no manifest.
    pub(crate) fn children(&self, it: &Found) -> Result<Vec<Digest>, Unread> {
        if it.size_bytes > manifest::BYTES_MAX {
            return Ok(vec![]);
        }
        let path = self.path(&it.digest, it.buried);
        let unread = |source| Unread::Path {
            path: path.clone(),
            source,
        };
        let mut file = File::open(&path).map_err(unread)?;
        let mut content = Vec::new();
        let mut beginning = (&mut file).take(4);
        beginning.read_to_end(&mut content).map_err(unread)?;
        if manifest::is_compressed(&content) {
            return Ok(vec![]);
        }
        let mut rest = file.take(manifest::BYTES_MAX);
        rest.read_to_end(&mut content).map_err(unread)?;
        let digest = Digest::from_bytes(Sha256::digest(&content).into());
        if digest != it.digest {
            return Err(Unread::Corrupt { digest: it.digest });
        }
        manifest::children(&content).map_err(|source| Unread::Manifest {
            digest: it.digest,
            source,
        })
    }

    /// The directory that the file of a blob is in.
    fn home(&self, digest: &Digest) -> PathBuf {
        match self.layout {
            BlobLayout::Flat => self.root.clone(),
            BlobLayout::Distribution => {
                let hex = digest.hex();
                let shard = hex.get(..2).unwrap_or_default();
                self.root.join("blobs/sha256").join(shard).join(&hex)
            }
        }
    }

    fn path(&self, digest: &Digest, buried: Option<Tombstone>) -> PathBuf {
        let name = match self.layout {
            BlobLayout::Flat => digest.to_string(),
            BlobLayout::Distribution => DATA.to_owned(),
        };
        let name = match buried {
            Some(it) => tombstone(&name, it),
            None => name,
        };
        self.home(digest).join(name)
    }
}

/// A blob as a plan saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) modified: SystemTime,
}

impl Scan {
    fn look(&mut self, digest: Digest, buried: Option<Tombstone>, path: &Path) {
        let seen = fs::symlink_metadata(path).and_then(|it| Ok((it.modified()?, it)));
        match seen {
            Ok((modified, it)) if it.is_file() => self.found.push(Found {
                digest,
                size_bytes: it.len(),
                modified,
                buried,
                links_buried: buried.is_none() && self.links.is_buried(&digest),
            }),
            // A directory or a link of this name is none of ours.
            Ok(_) => {}
            // It has gone since its name was read.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => self.unreadable.push((digest, error.to_string())),
        }
    }
}

/// The names in a directory; `None` where there is none.
fn entries(path: &Path) -> Result<Option<Vec<String>>, Unread> {
    let unread = |source| Unread::Path {
        path: path.to_owned(),
        source,
    };
    let read = match fs::read_dir(path) {
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unread(error)),
    };
    let mut names = Vec::new();
    for entry in read {
        // What is no text is no name of ours.
        names.extend(entry.map_err(unread)?.file_name().into_string().ok());
    }
    Ok(Some(names))
}

/// Renames where the new name is free. `false` where the old one is gone or the new one is taken.
fn rename(from: &Path, to: &Path) -> io::Result<bool> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(it) => it.sync_all(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Digests by what stands for them, as those of tags.
pub(crate) type ByTag = BTreeMap<String, Vec<Digest>>;

#[cfg(test)]
mod tests;
