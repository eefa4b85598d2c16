//! What containers have written, read from the node's disk.

use std::path::Path;

use berth_logs::format::{
    Decoded, Gap, Kind, PARTIAL, SEGMENT_HEADER, SegmentHeader, decode, parse_segment_name,
};

use crate::TestNode;

#[derive(Clone, Debug)]
pub struct Entry {
    pub sequence: u64,
    pub kind: Kind,
    pub flags: u8,
    pub text: Vec<u8>,
}

impl Entry {
    pub fn gap(&self) -> Option<Gap> {
        (self.kind == Kind::Gap).then(|| Gap::decode(&self.text))?
    }
}

/// What a container has written to both streams so far, without what others say about its log.
pub fn output(node: &TestNode, id: &str, container: &str) -> String {
    let mut output = String::new();
    for entry in entries(node, id, container) {
        if matches!(entry.kind, Kind::Gap | Kind::System) {
            continue;
        }
        output += &String::from_utf8_lossy(&entry.text);
        if entry.flags & PARTIAL == 0 {
            output.push('\n');
        }
    }
    output
}

/// All records that the log of a container has. `@system` is the sandbox's own.
pub fn entries(node: &TestNode, id: &str, container: &str) -> Vec<Entry> {
    read(&node.home().join("log").join(id).join(container))
}

/// All records of the log in a folder.
pub fn read(dir: &Path) -> Vec<Entry> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = names
        .filter_map(|it| it.file_name().into_string().ok())
        .filter(|it| parse_segment_name(it).is_some())
        .collect();
    names.sort();
    let mut entries = vec![];
    for name in names {
        // The oldest may go meanwhile.
        let bytes = std::fs::read(dir.join(name)).unwrap_or_default();
        if SegmentHeader::decode(&bytes).is_none() {
            continue;
        }
        let mut rest = &bytes[SEGMENT_HEADER..];
        while let Decoded::Record(it, length) = decode(rest) {
            entries.push(Entry {
                sequence: it.sequence,
                kind: it.kind,
                flags: it.flags,
                text: it.body.to_vec(),
            });
            rest = &rest[length..];
        }
    }
    entries
}
