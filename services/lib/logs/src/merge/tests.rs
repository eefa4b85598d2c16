//! The order of several logs, and the positions in between.

use super::*;
use crate::{format::Kind, reader::Content, written::Written};

fn rest(merged: &mut Merged) -> Vec<(String, u64)> {
    let mut entries = vec![];
    while let Some((name, entry)) = merged.read().unwrap() {
        entries.push((name.to_owned(), entry.sequence));
    }
    entries
}

fn both(logs: &[Written; 2]) -> Merged {
    let reader = |at: usize| Reader::new(logs[at].folder());
    Merged::new([("a".to_owned(), reader(0)), ("b".to_owned(), reader(1))])
}

#[test]
fn logs_are_read_by_time_and_each_by_number() {
    let mut logs = [Written::of(&[2]), Written::of(&[1])];
    let mut merged = both(&logs);
    let name = |name: &str, sequence| (name.to_owned(), sequence);
    assert_eq!(
        rest(&mut merged),
        [name("a", 0), name("b", 0), name("a", 1)]
    );
    logs[1].lines(1);
    assert_eq!(rest(&mut merged), [], "only when it looks again");
    merged.look_again();
    assert_eq!(rest(&mut merged), [name("b", 1)]);
}

#[test]
fn whoever_goes_on_by_the_positions_reads_what_was_not_given() {
    let logs = [Written::of(&[3, 2]), Written::of(&[4])];
    let all = rest(&mut both(&logs));
    for given in 0..=all.len() {
        let mut merged = both(&logs);
        for _ in 0..given {
            merged.read().unwrap();
        }
        let resumed = ["a", "b"].map(|name| {
            let folder = logs[usize::from(name == "b")].folder();
            let position = merged.positions().find(|it| it.0 == name);
            let reader = match position {
                Some((_, position)) => Reader::resume(folder, position),
                None => Reader::new(folder),
            };
            (name.to_owned(), reader)
        });
        assert_eq!(rest(&mut Merged::new(resumed)), all[given..], "{given}");
    }
}

#[test]
fn bytes_behind_the_end_are_told_with_their_log() {
    let mut logs = [Written::of(&[1]), Written::of(&[1])];
    logs[1].record(Kind::Stderr, b"x");
    logs[1].half(13);
    let mut merged = both(&logs);
    while let Some((_, entry)) = merged.read().unwrap() {
        assert!(matches!(entry.content, Content::Line(_)));
    }
    assert_eq!(merged.unread().collect::<Vec<_>>(), [("b", 13)]);
}
