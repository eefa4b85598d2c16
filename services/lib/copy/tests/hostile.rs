//! Whatever an archive holds, and however the tree changes under it, nothing outside of its destination is touched.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs::{self, File},
    os::{fd::AsFd as _, unix::fs::symlink},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use berth_copy::{Options, Owner, Target, unpack};
use proptest::prelude::*;
use tar::{EntryType, Header};

/// Names that meet each other, lead upwards, and lead to the links of `ground`.
fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => "[ab]",
        1 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just(String::new()),
        1 => Just("to-outside".to_owned()),
        1 => Just("to-secret".to_owned()),
        1 => Just("deep".to_owned()),
    ];
    let parts = proptest::collection::vec(part, 1..4);
    (parts, any::<bool>()).prop_map(|(parts, absolute)| {
        let path = parts.join("/");
        match absolute {
            true => format!("/{path}"),
            false => path,
        }
    })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        name(),
        Just("../../outside".to_owned()),
        Just("/outside/secret".to_owned()),
        Just("../outside/secret".to_owned()),
        Just("/proc/self/root".to_owned()),
        Just("/proc/self/cwd".to_owned()),
    ]
}

fn entry() -> impl Strategy<Value = (String, EntryType, String)> {
    let kind = prop_oneof![
        Just(EntryType::Regular),
        Just(EntryType::Directory),
        Just(EntryType::Symlink),
        Just(EntryType::Link),
    ];
    (name(), kind, text())
}

fn archive(entries: &[(String, EntryType, String)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(vec![]);
    for (name, kind, text) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o777);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let content: &[u8] = if *kind == EntryType::Regular {
            b"overwritten"
        } else {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            b""
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A root with a destination, and a neighbour of both that must stay as it is.
fn ground() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("root/in/deep")).unwrap();
    fs::create_dir(at("outside")).unwrap();
    fs::write(at("outside/secret"), "secret").unwrap();
    fs::write(at("root/other"), "other").unwrap();
    symlink(at("outside"), at("root/in/to-outside")).unwrap();
    symlink("../../outside/secret", at("root/in/to-secret")).unwrap();
    dir
}

/// What lies outside of the destination, with its content, links and modes.
fn outside(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let mut seen = vec![];
    let mut waiting = vec![dir.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let found = fs::symlink_metadata(&path).unwrap();
            let inside = path == dir.join("root/in");
            // A new entry in the destination changes its times and its number of links.
            let links = if inside { 0 } else { found.nlink() };
            let content = if found.is_file() {
                fs::read_to_string(&path).unwrap()
            } else {
                String::new()
            };
            seen.push(format!(
                "{} {:o} {links} {content}",
                path.display(),
                found.mode()
            ));
            if found.is_dir() && !inside {
                waiting.push(path);
            }
        }
    }
    seen.sort();
    seen
}

const INTO: Options = Options {
    target: Target::Into,
    owner: Owner::Caller,
    overwrite: true,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_outside_is_touched_by_any_archive(
        entries in proptest::collection::vec(entry(), 1..8),
        target in prop_oneof![Just(Target::Into), Just(Target::As)],
    ) {
        let dir = ground();
        let before = outside(dir.path());
        let root = File::open(dir.path().join("root")).unwrap();
        let options = Options { target, ..INTO };
        let _ = unpack(root.as_fd(), Path::new("/in"), options, archive(&entries).as_slice());
        prop_assert_eq!(outside(dir.path()), before);
    }

    #[test]
    fn bytes_that_are_no_archive_do_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), at in 0_usize..1024) {
        let dir = ground();
        let before = outside(dir.path());
        let root = File::open(dir.path().join("root")).unwrap();
        let _ = unpack(root.as_fd(), Path::new("/in"), INTO, bytes.as_slice());
        // And an archive with some of its bytes changed.
        let mut broken = archive(&[("a/b".into(), EntryType::Regular, String::new())]);
        bytes.truncate(8);
        for (place, byte) in broken[at..].iter_mut().zip(bytes) {
            *place = byte;
        }
        let _ = unpack(root.as_fd(), Path::new("/in"), INTO, broken.as_slice());
        prop_assert_eq!(outside(dir.path()), before);
    }
}

#[test]
fn a_directory_that_is_swapped_for_a_link_leads_nowhere() {
    let dir = ground();
    let before = outside(dir.path());
    let root = File::open(dir.path().join("root")).unwrap();
    let inner = dir.path().join("root/in");
    let kept = inner.join("kept");
    fs::create_dir(&kept).unwrap();
    let entries: Vec<_> = (0..2000)
        .map(|number| (format!("race/{number}"), EntryType::Regular, String::new()))
        .collect();
    let tar = archive(&entries);
    let swaps = AtomicU32::new(0);
    let deadline = Instant::now() + Duration::from_secs(60);
    let goes_on = || swaps.load(Ordering::Relaxed) < 100 && Instant::now() < deadline;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (race, link, was) = (inner.join("race"), inner.join("link"), kept.join("was"));
            while goes_on() {
                let _ = symlink("../../outside", &link);
                if fs::rename(&race, &was).is_ok() && fs::rename(&link, &race).is_ok() {
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
                let _ = fs::remove_file(&race);
                let _ = fs::remove_dir_all(&was);
            }
        });
        while goes_on() {
            let _ = unpack(root.as_fd(), Path::new("/in"), INTO, tar.as_slice());
        }
    });
    assert!(Instant::now() < deadline, "{swaps:?} swaps");
    assert_eq!(outside(dir.path()), before);
}
