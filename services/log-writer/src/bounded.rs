//! A file that keeps the end of what is written to it: the current half, and the half before.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

const CURRENT: &str = "output.log";
const FORMER: &str = "output.log.1";

#[derive(Debug)]
pub(crate) struct BoundedFile {
    dir: PathBuf,
    half: u64,
    current: File,
    written: u64,
}

impl BoundedFile {
    /// Goes on with what `dir` holds. Both files together stay below `limit` bytes and one write.
    pub(crate) fn open(dir: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let current = File::options()
            .create(true)
            .append(true)
            .open(dir.join(CURRENT))?;
        let written = current.metadata()?.len();
        Ok(Self {
            dir: dir.to_owned(),
            half: limit / 2,
            current,
            written,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.half {
            fs::rename(self.dir.join(CURRENT), self.dir.join(FORMER))?;
            *self = Self::open(&self.dir, self.half * 2)?;
        }
        self.current.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_output_is_kept_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = BoundedFile::open(dir.path(), 100).unwrap();
        for number in 0..100 {
            file.write(format!("line {number:04}\n").as_bytes())
                .unwrap();
        }
        let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
        let kept = read(FORMER) + &read(CURRENT);
        assert!(kept.len() <= 100, "{}", kept.len());
        let lines: Vec<_> = kept.lines().collect();
        let expected: Vec<_> = (100 - lines.len()..100)
            .map(|number| format!("line {number:04}"))
            .collect();
        assert_eq!(lines, expected);
        assert!(
            lines.len() >= 6,
            "half of the limit is always kept: {lines:?}"
        );
    }

    #[test]
    fn a_writer_goes_on_where_the_one_before_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        BoundedFile::open(dir.path(), 100)
            .unwrap()
            .write(b"one\n")
            .unwrap();
        BoundedFile::open(dir.path(), 100)
            .unwrap()
            .write(b"two\n")
            .unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join(CURRENT)).unwrap(),
            "one\ntwo\n"
        );
    }
}
