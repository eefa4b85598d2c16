//! Whose blobs a directory has: a file in it names the manager that alone says what of it may go.

use std::{
    fmt,
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{BlobDir, Unread, rename, sync_directory};

/// Neither layout has a blob of this name.
const FILE: &str = ".berth-authority";

/// A manager, over all its restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) instance: String,
    pub(crate) node: String,
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, node } = self;
        write!(f, "instance {instance} of node {node}")
    }
}

impl BlobDir {
    /// Refuses a directory that is another manager's. One that is nobody's is everybody's.
    pub(crate) fn check(&self, own: &Authority) -> Result<(), Unread> {
        let path = self.root.join(FILE);
        let written = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Unread::Path { path, source }),
        };
        match written.trim() == own.to_string() {
            true => Ok(()),
            false => Err(Unread::Foreign {
                path,
                theirs: written.trim().chars().take(256).collect(),
                own: own.to_string(),
            }),
        }
    }

    /// Makes a directory a manager's, or refuses it.
    pub(crate) fn bind(&self, own: &Authority) -> Result<(), Unread> {
        let path = self.root.join(FILE);
        if !path.exists() {
            let written = write_once(&path, &format!("{own}\n"));
            written.map_err(|source| Unread::Path { path, source })?;
        }
        self.check(own)
    }
}

/// The file comes with all that is in it, and never in the place of another.
fn write_once(path: &Path, text: &str) -> io::Result<()> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = since.unwrap_or_default().as_nanos();
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}.{nanos}", std::process::id()));
    let aside = PathBuf::from(aside);
    let mut file = File::create_new(&aside)?;
    let placed = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| rename(&aside, path));
    if !matches!(placed, Ok(true)) {
        let _ = fs::remove_file(&aside);
    }
    placed?;
    path.parent().map_or(Ok(()), sync_directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BlobLayout;

    fn authority(instance: &str, node: &str) -> Authority {
        Authority {
            instance: instance.to_owned(),
            node: node.to_owned(),
        }
    }

    #[test]
    fn a_directory_is_the_first_ones_until_its_file_is_removed() {
        for layout in [BlobLayout::Flat, BlobLayout::Distribution] {
            let home = tempfile::tempdir().unwrap();
            let directory = BlobDir::new(home.path().to_owned(), layout);
            let first = authority("i-1", "node-1");
            directory.check(&first).unwrap();
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
            directory.bind(&first).unwrap();
            directory.bind(&first).unwrap();
            directory.check(&first).unwrap();
            let others = [authority("i-2", "node-1"), authority("i-1", "node-2")];
            for other in &others {
                for refused in [directory.check(other), directory.bind(other)] {
                    let error = refused.unwrap_err().to_string();
                    assert!(error.contains("instance i-1 of node node-1"), "{error}");
                    assert!(error.contains(&other.to_string()), "{error}");
                }
            }
            let scan = directory.scan().unwrap().unwrap();
            assert_eq!(scan.found, [], "the file is no blob");
            let files = fs::read_dir(home.path()).unwrap().count();
            assert_eq!(files, 1, "nothing is left aside");
            fs::remove_file(home.path().join(FILE)).unwrap();
            directory.bind(&others[0]).unwrap();
            directory.check(&first).unwrap_err();
        }
    }

    #[test]
    fn a_file_that_is_empty_or_cannot_be_read_is_no_authority() {
        let home = tempfile::tempdir().unwrap();
        let directory = BlobDir::new(home.path().to_owned(), BlobLayout::Flat);
        let own = authority("i-1", "node-1");
        fs::write(home.path().join(FILE), "").unwrap();
        let error = directory.bind(&own).unwrap_err();
        assert!(matches!(error, Unread::Foreign { .. }), "{error}");
        fs::remove_file(home.path().join(FILE)).unwrap();
        fs::create_dir(home.path().join(FILE)).unwrap();
        let error = directory.bind(&own).unwrap_err();
        assert!(matches!(error, Unread::Path { .. }), "{error}");
    }
}
