//! The reader beside a log that is written, cut, damaged and shortened under it.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::{
    format::{RECORD_HEADER, SEGMENT_HEADER},
    tail::{Tail, begin_at},
    written::{Written, time_of},
};

/// What was read, in short: `7` is the line with this number, the rest speaks for itself.
fn told(entry: &Entry) -> String {
    match &entry.content {
        Content::Line(line) => {
            assert_eq!(line.text, format!("line {}", entry.sequence).as_bytes());
            assert_eq!(entry.time_ns, time_of(entry.sequence));
            entry.sequence.to_string()
        }
        Content::Gap(gap) => format!("{:?} {}+{}", gap.reason, entry.sequence, gap.lines),
        Content::Replaced => "replaced".to_owned(),
    }
}

/// Everything up to the end.
fn read_all(reader: &mut Reader) -> Vec<Entry> {
    let mut entries = vec![];
    while let Read::Entry(entry) = reader.read().unwrap() {
        entries.push(entry);
    }
    entries
}

fn rest(reader: &mut Reader) -> String {
    let entries = read_all(reader);
    entries.iter().map(told).collect::<Vec<_>>().join(" ")
}

fn numbers(range: std::ops::Range<u64>) -> String {
    range.map(|it| it.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn lines_are_read_over_segments_and_as_they_come() {
    let mut log = Written::of(&[3, 2]);
    let mut reader = Reader::new(log.folder());
    assert_eq!(rest(&mut reader), numbers(0..5));
    assert_eq!(rest(&mut reader), "");
    log.lines(1);
    log.rotate();
    log.lines(2);
    log.rotate();
    log.rotate();
    assert_eq!(rest(&mut reader), numbers(5..8));
    log.lines(1);
    assert_eq!(rest(&mut reader), "8");
}

#[test]
fn there_may_be_no_log_yet() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("app");
    let mut reader = Reader::new(folder.clone());
    assert_eq!(rest(&mut reader), "");
    assert_eq!(reader.position(), None);
    fs::create_dir(&folder).unwrap();
    let file = folder.join(crate::format::segment_name(0));
    let log = Written::of(&[2]);
    let bytes = fs::read(log.last()).unwrap();
    for length in 0..SEGMENT_HEADER {
        fs::write(&file, &bytes[..length]).unwrap();
        assert_eq!(rest(&mut reader), "", "{length} bytes");
    }
    fs::write(&file, &bytes).unwrap();
    assert_eq!(rest(&mut reader), "0 1");
}

#[test]
fn half_a_record_is_waited_for_and_what_is_written_in_its_place_is_read() {
    for length in 0..RECORD_HEADER + 11 {
        let mut log = Written::of(&[2]);
        let whole = log.length();
        let mut reader = Reader::new(log.folder());
        log.half(length);
        assert_eq!(rest(&mut reader), "0 1", "{length} bytes");
        let end = reader.read().unwrap();
        let unread_bytes = length as u64;
        assert_eq!(end, Read::End { unread_bytes }, "{length} bytes");
        log.cut(whole);
        assert_eq!(rest(&mut reader), "", "{length} bytes");
        log.gap(1);
        log.lines(1);
        assert_eq!(rest(&mut reader), "Writer 2+1 3", "{length} bytes");
    }
}

#[test]
fn half_a_record_before_another_segment_is_no_loss_where_no_number_is_missing() {
    let mut log = Written::of(&[2]);
    log.half(20);
    log.rotate();
    log.lines(1);
    assert_eq!(rest(&mut Reader::new(log.folder())), "0 1 2");

    let mut log = Written::of(&[2]);
    log.half(20);
    log.next += 3;
    log.rotate();
    log.lines(1);
    let entries = read_all(&mut Reader::new(log.folder()));
    assert_eq!(told(&entries[2]), "Damage 2+3");
    let Content::Gap(gap) = &entries[2].content else {
        panic!("a gap")
    };
    assert_eq!(gap.bytes, 20);
}

#[test]
fn segments_that_are_dropped_under_the_reader_are_counted() {
    let mut log = Written::of(&[3, 3, 3, 3]);
    let mut reader = Reader::new(log.folder());
    let first = reader.read().unwrap();
    assert!(matches!(first, Read::Entry(it) if told(&it) == "0"));
    for _ in 0..3 {
        log.drop_oldest();
    }
    // What it has open it reads to the end.
    assert_eq!(rest(&mut reader), "1 2 Dropped 3+6 9 10 11");
    log.lines(1);
    assert_eq!(rest(&mut reader), "12");
}

#[test]
fn a_cursor_that_comes_back_late_hears_what_it_has_missed() {
    let mut log = Written::of(&[3, 3, 3]);
    let position = Position { log: 77, next: 4 };
    log.drop_oldest();
    log.drop_oldest();
    let mut reader = Reader::resume(log.folder(), position);
    assert_eq!(rest(&mut reader), "Dropped 4+2 6 7 8");
    let position = reader.position().unwrap();
    assert_eq!(rest(&mut Reader::resume(log.folder(), position)), "");
}

#[test]
fn another_log_in_the_place_of_the_one_that_was_read_is_read_from_its_beginning() {
    let mut log = Written::of(&[3, 3]);
    let mut reader = Reader::new(log.folder());
    assert_eq!(rest(&mut reader), numbers(0..6));
    let position = reader.position().unwrap();
    log.replace();
    log.lines(2);
    assert_eq!(rest(&mut reader), "replaced 0 1");
    let mut resumed = Reader::resume(log.folder(), position);
    assert_eq!(rest(&mut resumed), "replaced 0 1");
    assert_eq!(resumed.position(), reader.position());
}

#[test]
fn a_reader_reads_what_it_has_open_when_the_folder_is_removed() {
    let mut log = Written::of(&[3]);
    let mut reader = Reader::new(log.folder());
    assert!(matches!(reader.read().unwrap(), Read::Entry(_)));
    log.lines(1);
    fs::remove_dir_all(log.folder()).unwrap();
    assert_eq!(rest(&mut reader), numbers(1..4));
}

#[test]
fn a_log_that_lost_its_end_goes_on_with_what_is_written() {
    let mut log = Written::of(&[2]);
    let (length, next) = (log.length(), log.next);
    log.lines(3);
    let mut reader = Reader::new(log.folder());
    assert_eq!(rest(&mut reader), numbers(0..5));
    let position = reader.position().unwrap();
    log.cut(length);
    log.next = next;
    let mut resumed = Reader::resume(log.folder(), position);
    assert_eq!(rest(&mut reader), "");
    assert_eq!(rest(&mut resumed), "");
    log.lines(4);
    assert_eq!(rest(&mut reader), numbers(2..6));
    assert_eq!(rest(&mut resumed), numbers(2..6));
}

#[test]
fn a_gap_record_stands_for_its_lines() {
    let mut log = Written::of(&[1]);
    log.gap(40);
    log.lines(1);
    log.gap(0);
    log.lines(1);
    let expected = "0 Writer 1+40 41 Writer 42+0 43";
    assert_eq!(rest(&mut Reader::new(log.folder())), expected);
    let mut reader = Reader::new(log.folder());
    for _ in 0..2 {
        reader.read().unwrap();
    }
    let position = reader.position().unwrap();
    assert_eq!(position.next, 41);
    let mut resumed = Reader::resume(log.folder(), position);
    assert_eq!(rest(&mut resumed), "41 Writer 42+0 43");
}

/// Each number is read or told to be missing, once, and nothing else is.
fn assert_all_accounted(entries: &[Entry], end: u64, case: &str) {
    let mut next = 0;
    for entry in entries {
        assert_eq!(entry.sequence, next, "{case}: {entries:?}");
        next += match &entry.content {
            Content::Line(_) => {
                told(entry);
                1
            }
            Content::Gap(gap) => gap.lines.max(1),
            Content::Replaced => panic!("{case}: replaced"),
        };
    }
    assert_eq!(next, end, "{case}: {entries:?}");
}

#[test]
fn damage_at_any_byte_costs_no_more_than_the_rest_of_its_segment_and_is_told() {
    let log = Written::of(&[3, 3, 2]);
    let path = log.path(1);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        for bits in [0xff, 0x01] {
            let mut bad = good.clone();
            bad[at] ^= bits;
            fs::write(&path, &bad).unwrap();
            let case = format!("byte {at} ^ {bits}");
            let entries = read_all(&mut Reader::new(log.folder()));
            assert_all_accounted(&entries, 8, &case);
            let told = entries.iter().map(told).collect::<Vec<_>>().join(" ");
            assert!(
                told.starts_with("0 1 2 ") && told.ends_with(" 6 7"),
                "{case}: {told}"
            );
            // Bytes of the header that only tell the first number change nothing.
            let harmless = (16..SEGMENT_HEADER).contains(&at);
            assert_eq!(told == numbers(0..8), harmless, "{case}: {told}");
        }
    }
}

#[test]
fn damage_at_the_end_of_a_log_is_told_at_once_and_counted_when_the_next_segment_comes() {
    let mut log = Written::of(&[4]);
    let file = log.last();
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    let record = RECORD_HEADER + "line 0".len();
    bad[SEGMENT_HEADER + 2 * record + 30] ^= 1;
    fs::write(&file, &bad).unwrap();
    let mut reader = Reader::new(log.folder());
    assert_eq!(rest(&mut reader), "0 1 Damage 2+0");
    let position = reader.position().unwrap();
    let mut resumed = Reader::resume(log.folder(), position);
    assert_eq!(rest(&mut reader), "");
    assert_eq!(rest(&mut resumed), "", "it was told");
    log.lines(1);
    assert_eq!(rest(&mut reader), "");
    log.rotate();
    log.lines(1);
    assert_eq!(rest(&mut reader), "Damage 3+2 5");
    assert_eq!(rest(&mut resumed), "Damage 3+2 5");
}

#[test]
fn a_long_line_is_read_whole_and_its_memory_is_given_back() {
    let mut log = Written::new();
    let text = vec![b'x'; crate::format::TEXT_MAX];
    log.record(Kind::Stderr, &text);
    log.record(Kind::Stderr, b"");
    let mut reader = Reader::new(log.folder());
    let entries = read_all(&mut reader);
    let lengths: Vec<_> = entries
        .iter()
        .map(|it| match &it.content {
            Content::Line(line) => line.text.len(),
            Content::Gap(_) | Content::Replaced => panic!("a line"),
        })
        .collect();
    assert_eq!(lengths, [text.len(), 0]);
}

#[test]
#[rustfmt::skip]
fn since_begins_at_the_first_record_that_is_not_older() {
    let log = Written::of(&[3, 3, 3]);
    let cases = [
        (0,                0..9),
        (time_of(0),       0..9),
        (time_of(2) + 1,   3..9),
        (time_of(3),       3..9),
        (time_of(4) - 3,   4..9),
        (time_of(8),       8..9),
        (time_of(8) + 1,   9..9),
    ];
    for (since, expected) in cases {
        let mut reader = Reader::since(log.folder(), since).unwrap();
        assert_eq!(rest(&mut reader), numbers(expected), "{since}");
    }
}

#[test]
fn since_reads_on_with_what_is_written_later() {
    let mut log = Written::of(&[2]);
    let mut reader = Reader::since(log.folder(), time_of(3)).unwrap();
    assert_eq!(rest(&mut reader), "");
    log.lines(3);
    assert_eq!(rest(&mut reader), "3 4");
}

#[test]
#[rustfmt::skip]
fn the_tail_is_the_last_lines_that_are_wanted() {
    let mut log = Written::of(&[3, 3]);
    log.gap(5);
    log.lines(1); // 11
    let cases = [
        (0,   ""),
        (1,   "11"),
        (2,   "5 Writer 6+5 11"),
        (4,   "3 4 5 Writer 6+5 11"),
        (5,   "2 3 4 5 Writer 6+5 11"),
        (99,  "0 1 2 3 4 5 Writer 6+5 11"),
    ];
    for (count, expected) in cases {
        let tail = Tail::read(&log.folder(), count, |it| it.kind != Kind::Gap).unwrap();
        let begin = begin_at(vec![tail], count)[0].unwrap();
        let mut reader = Reader::resume(log.folder(), begin);
        assert_eq!(rest(&mut reader), expected, "{count}");
    }
}

#[test]
fn the_tail_of_several_logs_is_counted_over_all_of_them() {
    let position = |log, next| Some(Position { log, next });
    let folders = [Written::of(&[4]), Written::of(&[6])];
    let tails = || {
        folders
            .iter()
            .map(|it| Tail::read(&it.folder(), 3, |_| true).unwrap())
            .chain([None])
            .collect::<Vec<_>>()
    };
    let expected = [position(77, 4), position(77, 3), None];
    assert_eq!(begin_at(tails(), 3), expected, "5, 4 and 3 of the second");
}

/// What a writer, or its end, does next.
#[derive(Clone, Debug)]
enum Act {
    Lines(u64),
    Gap(u64),
    Rotate,
    Half(usize),
    /// The writer is replaced: half a record is cut off, or left behind in a segment that is over.
    Recover(bool),
    DropOldest,
    /// A reader reads so many entries.
    Read(usize),
    /// It ends, and another one goes on by its position.
    Resume,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..30u64).prop_map(Act::Lines),
        1 => (0..5u64).prop_map(Act::Gap),
        2 => Just(Act::Rotate),
        1 => (0..40usize).prop_map(Act::Half),
        1 => any::<bool>().prop_map(Act::Recover),
        1 => Just(Act::DropOldest),
        4 => (0..40usize).prop_map(Act::Read),
        2 => Just(Act::Resume),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_line_is_read_once_and_in_order_by_readers_that_stop_and_go_on(
        acts in prop::collection::vec(act(), 1..60)
    ) {
        let mut log = Written::new();
        let mut reader = Reader::new(log.folder());
        let mut entries = vec![];
        let mut whole = None;
        let mut dropped = 0;
        for act in acts {
            let recovered = match (&act, whole) {
                (Act::Lines(_) | Act::Gap(_) | Act::Rotate | Act::Half(_), Some(length)) => {
                    log.cut(length);
                    true
                }
                _ => false,
            };
            if recovered {
                whole = None;
            }
            match act {
                Act::Lines(count) => log.lines(count),
                Act::Gap(lines) => log.gap(lines),
                Act::Rotate => log.rotate(),
                Act::Half(length) => {
                    whole = Some(log.length());
                    log.half(length);
                }
                Act::Recover(cut) => {
                    // A segment without a record cannot be left: the next one would have its name.
                    if let Some(length) = whole.take() && (cut || length == SEGMENT_HEADER as u64) {
                        log.cut(length);
                    }
                    log.rotate();
                }
                Act::DropOldest => if log.segments() > 1 {
                    log.drop_oldest();
                    dropped += 1;
                },
                Act::Read(count) => for _ in 0..count {
                    match reader.read().unwrap() {
                        Read::Entry(entry) => entries.push(entry),
                        Read::End { .. } => break,
                    }
                },
                Act::Resume => if let Some(position) = reader.position() {
                    reader = Reader::resume(log.folder(), position);
                },
            }
        }
        if let Some(length) = whole {
            log.cut(length);
        }
        log.lines(1);
        entries.extend(read_all(&mut reader));
        assert_all_accounted(&entries, log.next, "the whole log");
        let lost = |it: &Entry| matches!(&it.content, Content::Gap(gap) if gap.reason == GapReason::Dropped);
        prop_assert!(dropped > 0 || !entries.iter().any(lost));
        let damaged = |it: &Entry| matches!(&it.content, Content::Gap(gap) if gap.reason == GapReason::Damage);
        prop_assert!(dropped > 0 || !entries.iter().any(damaged), "{:?}", entries);
    }
}
