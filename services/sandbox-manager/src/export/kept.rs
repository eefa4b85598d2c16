//! What the receiver of logs has, in a file of the state directory. Losing it makes lines be sent again and nothing else.

use std::{collections::BTreeMap, fmt::Write as _, fs, io, io::Write as _, path::Path};

use berth_domain::SandboxId;
use berth_logs::{merge::Merged, reader::Position};

/// First line of the file.
const FORM: &str = "berth log export 1";

#[derive(Debug, Default, PartialEq)]
pub(super) struct Kept(BTreeMap<SandboxId, BTreeMap<String, Position>>);

impl Kept {
    pub(super) fn load(file: &Path) -> Self {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "what was exported is not known, and is sent again");
                }
                return Self::default();
            }
        };
        Self::parse(&text)
    }

    /// A line that is none is passed over.
    fn parse(text: &str) -> Self {
        let mut kept = Self::default();
        let mut lines = text.lines();
        if lines.next() != Some(FORM) {
            return kept;
        }
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            let [id, name, log, next] = words[..] else {
                continue;
            };
            let position = u64::from_str_radix(log, 16).ok().zip(next.parse().ok());
            if let (Ok(id), Some((log, next))) = (SandboxId::parse(id), position) {
                let of_one = kept.0.entry(id).or_default();
                of_one.insert(name.to_owned(), Position { log, next });
            }
        }
        kept
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{FORM}\n");
        for (id, logs) in &self.0 {
            for (name, Position { log, next }) in logs {
                // Writing to a text does not fail.
                let _ = writeln!(text, "{id} {name} {log:016x} {next}");
            }
        }
        text
    }

    /// Forgets sandboxes that are gone. Returns whether there were any.
    pub(super) fn retain(&mut self, there: impl Fn(&SandboxId) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|id, _| there(id));
        self.0.len() != before
    }

    /// Returns whether this is news.
    pub(super) fn put(&mut self, id: &SandboxId, positions: BTreeMap<String, Position>) -> bool {
        self.0.insert(id.clone(), positions.clone()) != Some(positions)
    }

    pub(super) fn open(&self, id: &SandboxId, folder: &Path, names: &[String]) -> Merged {
        super::open(folder, names, self.0.get(id))
    }
}

/// Whole or not at all, also after a power cut.
pub(super) fn write(file: &Path, text: &str) -> io::Result<()> {
    let fresh = file.with_extension("new");
    let mut new = fs::File::create(&fresh)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    fs::rename(&fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_what_is_no_line_of_it_is_passed_over() {
        let mut kept = Kept::default();
        let id = SandboxId::parse("web").unwrap();
        let position = |log, next| Position { log, next };
        let positions: BTreeMap<_, _> = [
            ("@system".to_owned(), position(u64::MAX, 0)),
            ("app".to_owned(), position(1, u64::MAX)),
        ]
        .into();
        assert!(kept.put(&id, positions.clone()));
        assert!(!kept.put(&id, positions));
        let text = kept.to_text();
        assert_eq!(Kept::parse(&text), kept);
        assert_eq!(Kept::parse(&format!("{text}x\nA b 1 2\nweb app\n\n")), kept);
        assert_eq!(Kept::parse(&text.replace(" 1\n", " 2\n")), Kept::default());
        assert!(!kept.retain(|it| *it == id));
        assert!(kept.retain(|it| *it != id));
        assert_eq!(kept, Kept::default());
    }

    #[test]
    fn a_file_that_is_not_there_is_nothing_yet() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log-export");
        assert_eq!(Kept::load(&file), Kept::default());
        write(&file, &format!("{FORM}\nweb app 1 2\n")).unwrap();
        assert_eq!(Kept::load(&file).0.len(), 1);
    }
}
