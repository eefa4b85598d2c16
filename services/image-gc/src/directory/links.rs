//! The links of a registry's tree: in a directory per blob that a repository has, and in one per tag.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use berth_collect::{Digest, verdict::Tombstone};

use super::{ByTag, Unread, entries, rename, sync_directory};
use crate::names::{read_tombstone, tombstone};

const LINK: &str = "link";
/// A repository's name has at most 255 bytes.
const DEPTH_MAX: usize = 128;

/// Directories with a link to a blob, or with the tombstone of one.
#[derive(Debug, Default)]
pub(crate) struct Links {
    directories: BTreeMap<Digest, Vec<PathBuf>>,
    buried: BTreeSet<Digest>,
    /// What a tag stands for, in any repository.
    pub(crate) tags: ByTag,
}

impl Links {
    pub(crate) fn read(root: &Path) -> Result<Self, Unread> {
        let mut links = Self::default();
        links.walk(&root.join("repositories"), 0)?;
        Ok(links)
    }

    pub(crate) fn is_buried(&self, digest: &Digest) -> bool {
        self.buried.contains(digest)
    }

    fn walk(&mut self, path: &Path, depth: usize) -> Result<(), Unread> {
        for name in directories(path)? {
            let below = path.join(&name);
            match name.as_str() {
                "_layers" => self.by_digest(&below.join("sha256"))?,
                "_manifests" => {
                    self.by_digest(&below.join("revisions/sha256"))?;
                    self.tags_of(&below.join("tags"))?;
                }
                _ if name.starts_with('_') || depth == DEPTH_MAX => {}
                _ => self.walk(&below, depth + 1)?,
            }
        }
        Ok(())
    }

    fn by_digest(&mut self, path: &Path) -> Result<(), Unread> {
        for hex in directories(path)? {
            if let Ok(digest) = Digest::from_hex(&hex) {
                self.take(digest, path.join(hex))?;
            }
        }
        Ok(())
    }

    fn tags_of(&mut self, path: &Path) -> Result<(), Unread> {
        for tag in directories(path)? {
            let tagged = path.join(&tag);
            self.by_digest(&tagged.join("index/sha256"))?;
            let current = tagged.join("current");
            for name in entries(&current)?.unwrap_or_default() {
                let is_link = name == LINK || matches!(read_tombstone(&name), Some((LINK, _)));
                if !is_link {
                    continue;
                }
                let file = current.join(name);
                let text = match fs::read_to_string(&file) {
                    Ok(text) => text,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(source) => return Err(Unread::Path { path: file, source }),
                };
                // A link that leads nowhere keeps nothing, and would keep everything if it were an error.
                if let Ok(digest) = text.trim().parse::<Digest>() {
                    self.take(digest, current.clone())?;
                    self.tags.entry(tag.clone()).or_default().push(digest);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, digest: Digest, directory: PathBuf) -> Result<(), Unread> {
        let names = entries(&directory)?.unwrap_or_default();
        if names.iter().any(|it| is_buried_link(it)) {
            self.buried.insert(digest);
        }
        self.directories.entry(digest).or_default().push(directory);
        Ok(())
    }

    pub(super) fn bury(&self, digest: &Digest, to: Tombstone) -> io::Result<()> {
        for directory in self.of(digest) {
            rename(&directory.join(LINK), &directory.join(tombstone(LINK, to)))?;
            sync_directory(directory)?;
        }
        Ok(())
    }

    pub(super) fn restore(&self, digest: &Digest) -> io::Result<()> {
        for directory in self.of(digest) {
            for name in buried_in(directory)? {
                let back = rename(&directory.join(&name), &directory.join(LINK))?;
                if !back {
                    gone(&directory.join(&name))?;
                }
            }
            sync_directory(directory)?;
        }
        Ok(())
    }

    /// Removes the links that were buried with a tombstone, or before it. Later ones are another's, who may name them back.
    pub(super) fn remove(&self, digest: &Digest, with: Tombstone) -> io::Result<()> {
        for directory in self.of(digest) {
            for name in buried_in(directory)? {
                let is_later = read_tombstone(&name).is_none_or(|(_, it)| it.token > with.token);
                if is_later {
                    continue;
                }
                let path = directory.join(name);
                gone(&path)?;
                prune(&path);
            }
        }
        Ok(())
    }

    fn of(&self, digest: &Digest) -> &[PathBuf] {
        self.directories.get(digest).map_or(&[], Vec::as_slice)
    }
}

/// Removes the directories above a file that was removed, as far as they are empty, and those that a tag is made of.
pub(super) fn prune(file: &Path) {
    const STAY: [&str; 5] = ["_layers", "_manifests", "revisions", "tags", "blobs"];
    let name = |it: &Path| it.file_name().map(|it| it.to_string_lossy().into_owned());
    for directory in file.ancestors().skip(1) {
        let (own, above) = (name(directory), directory.parent().and_then(name));
        let stays = own.is_none_or(|it| {
            STAY.contains(&it.as_str()) || it == "sha256" && above.as_deref() != Some("index")
        });
        // What is not empty, or has gone meanwhile, is not ours to mind.
        if stays || fs::remove_dir(directory).is_err() {
            return;
        }
    }
}

fn is_buried_link(name: &str) -> bool {
    matches!(read_tombstone(name), Some((LINK, _)))
}

fn buried_in(directory: &Path) -> io::Result<Vec<String>> {
    let read = match fs::read_dir(directory) {
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in read {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.retain(|it| is_buried_link(it));
    Ok(names)
}

fn gone(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The directories in a directory; none where there is none. What is no directory is none of ours.
fn directories(path: &Path) -> Result<Vec<String>, Unread> {
    let mut names = entries(path)?.unwrap_or_default();
    names.retain(|it| path.join(it).is_dir());
    Ok(names)
}
