//! Files of bounded size: whole lines are appended to the current one, and the oldest goes when a new one begins.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    max_bytes: u64,
    number: usize,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    file: File,
    length: u64,
    inode: (u64, u64),
}

impl Files {
    /// At least one file is kept, whatever `number` says.
    pub(super) fn new(path: PathBuf, max_bytes: u64, number: usize) -> Self {
        Self {
            path,
            max_bytes,
            number: number.max(1),
            current: None,
        }
    }

    /// Appends whole lines, all of them or nothing.
    pub(super) fn append(&mut self, lines: &str) -> io::Result<()> {
        let mut current = match self.current.take().filter(|it| it.is_at(&self.path)) {
            Some(current) => current,
            None => open(&self.path)?,
        };
        if current.length > 0 && current.length + lines.len() as u64 > self.max_bytes {
            drop(current);
            self.turn()?;
            current = open(&self.path)?;
        }
        if let Err(error) = current.file.write_all(lines.as_bytes()) {
            // Half a line would spoil the next one. What is not cut off here the next start ends.
            let _ = current.file.set_len(current.length);
            return Err(error);
        }
        current.length += lines.len() as u64;
        self.current = Some(current);
        Ok(())
    }

    /// Makes room for a new current file.
    fn turn(&self) -> io::Result<()> {
        for older in (1..self.number).rev() {
            let newer = match older {
                1 => self.path.clone(),
                older => behind(&self.path, older - 1),
            };
            match fs::rename(&newer, behind(&self.path, older)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        match self.number {
            1 => fs::remove_file(&self.path),
            _ => Ok(()),
        }
    }
}

impl Current {
    /// Somebody else may have moved it away.
    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|it| (it.dev(), it.ino()) == self.inode)
    }
}

fn behind(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Opens it for its owner alone. A line that a crash has left half is ended, so that the next one stands by itself.
fn open(path: &Path) -> io::Result<Current> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .append(true)
        .read(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let metadata = file.metadata()?;
    let mut length = metadata.len();
    if length > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            length += 1;
        }
    }
    Ok(Current {
        file,
        length,
        inode: (metadata.dev(), metadata.ino()),
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A disk of one page, which takes half of a line that is longer.
    struct Page(tempfile::TempDir);

    impl Page {
        fn mounted() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", "size=4k", "page"]);
            assert!(mount.arg(dir.path()).status().unwrap().success());
            Self(dir)
        }
    }

    impl Drop for Page {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn the_newest_lines_are_kept_in_so_many_files_of_such_a_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/audit.log");
        let mut files = Files::new(path.clone(), 10, 3);
        for number in 0..9 {
            files.append(&format!("{number}--\n")).unwrap();
        }
        assert_eq!(read(&path), "8--\n");
        assert_eq!(read(&behind(&path, 1)), "6--\n7--\n");
        assert_eq!(read(&behind(&path, 2)), "4--\n5--\n");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 3);
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let mut one = Files::new(path.clone(), 10, 1);
        one.append("a-------\n").unwrap();
        assert_eq!(read(&path), "a-------\n", "a single file begins anew");
    }

    #[test]
    fn half_a_line_of_a_crash_does_not_spoil_the_next_and_a_moved_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        fs::write(&path, "whole\nhal").unwrap();
        let mut files = Files::new(path.clone(), 1000, 2);
        files.append("next\n").unwrap();
        assert_eq!(read(&path), "whole\nhal\nnext\n");
        let away = dir.path().join("away");
        fs::rename(&path, &away).unwrap();
        files.append("new\n").unwrap();
        assert_eq!(
            (read(&path).as_str(), read(&away).lines().count()),
            ("new\n", 3)
        );
    }

    #[test]
    fn half_a_line_that_a_full_disk_has_taken_is_cut_off() {
        let page = Page::mounted();
        let path = page.0.path().join("audit.log");
        let mut files = Files::new(path.clone(), 1 << 20, 2);
        files.append("first\n").unwrap();
        let long = format!("{}\n", "x".repeat(128 << 10));
        let error = files.append(&long).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&path), "first\n");
        files.append("next\n").unwrap();
        assert_eq!(read(&path), "first\nnext\n");
    }
}
