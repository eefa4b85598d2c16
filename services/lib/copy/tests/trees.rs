//! Trees out of one root and into another: what arrives, under which name, and what is left when it does not.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use berth_copy::{CopyError, Options, Owner, Target, Totals, pack, unpack};
use tar::{EntryType, Header};
use tempfile::TempDir;

const AS: Options = Options {
    target: Target::As,
    owner: Owner::Caller,
    overwrite: true,
};
const INTO: Options = Options {
    target: Target::Into,
    ..AS
};

fn root(dir: &TempDir) -> File {
    File::open(dir.path()).unwrap()
}

fn put(dir: &TempDir, path: &str, options: Options, tar: &[u8]) -> Result<Totals, CopyError> {
    unpack(root(dir).as_fd(), Path::new(path), options, tar)
}

fn take(dir: &TempDir, path: &str) -> Result<(Vec<u8>, Totals), CopyError> {
    let mut bytes = vec![];
    let totals = pack(root(dir).as_fd(), Path::new(path), false, &mut bytes)?;
    Ok((bytes, totals))
}

/// An archive of entries by name, kind, and content or link.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(vec![]);
    for (name, kind, text) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        // As it is, which the setter of the crate would refuse.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let content = if *kind == EntryType::Regular {
            *text
        } else {
            header.set_link_name_literal(text).unwrap();
            ""
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn file(name: &str) -> Vec<u8> {
    archive(&[(name, EntryType::Regular, "new")])
}

/// All paths below a folder, with what lies there.
fn listing(dir: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut waiting = vec![dir.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                found.push(format!("{name}/"));
                waiting.push(path);
            } else if kind.is_symlink() {
                found.push(format!(
                    "{name} -> {}",
                    fs::read_link(path).unwrap().display()
                ));
            } else {
                found.push(format!("{name}: {}", fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_tree_arrives_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = from.path().join("tree");
    let deep = format!("{}/{}", "d".repeat(120), "e".repeat(120));
    fs::create_dir_all(tree.join(&deep)).unwrap();
    fs::write(tree.join(&deep).join("deep"), "deep").unwrap();
    fs::write(tree.join("program"), "run me").unwrap();
    fs::set_permissions(tree.join("program"), PermissionsExt::from_mode(0o751)).unwrap();
    fs::hard_link(tree.join("program"), tree.join("same")).unwrap();
    symlink("../elsewhere", tree.join("link")).unwrap();
    fs::create_dir(tree.join("closed")).unwrap();
    fs::write(tree.join("closed/inner"), "inner").unwrap();
    fs::set_permissions(tree.join("closed"), PermissionsExt::from_mode(0o500)).unwrap();
    let long_ago = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000));
    for path in ["program", "closed"] {
        File::open(tree.join(path))
            .unwrap()
            .set_times(long_ago)
            .unwrap();
    }
    let socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();

    let (bytes, sent) = take(&from, "/tree").unwrap();
    drop(socket);
    fs::remove_file(tree.join("socket")).unwrap();
    let made = put(&to, "/", AS, &bytes).unwrap();
    assert_eq!((sent.skipped, made.skipped), (1, 0));
    let counts = |it: Totals| (it.files, it.directories, it.bytes);
    assert_eq!(counts(sent), (5, 4, "run medeepinner".len() as u64));
    assert_eq!(counts(made), counts(sent));
    assert_eq!(listing(to.path()), listing(from.path()));
    let look = |name: &str| fs::metadata(to.path().join("tree").join(name)).unwrap();
    assert_eq!(look("program").mode() & 0o7777, 0o751);
    assert_eq!(look("closed").mode() & 0o7777, 0o500);
    assert_eq!(look("program").ino(), look("same").ino());
    assert_eq!(
        (look("program").mtime(), look("closed").mtime()),
        (1_000_000, 1_000_000)
    );
    let original = fs::metadata(from.path().join("tree/program")).unwrap();
    assert_eq!(look("program").uid(), original.uid());
}

/// `dir/` and `file` stand; what stands afterwards, or why not.
#[test]
#[rustfmt::skip]
fn an_entry_gets_the_name_that_cp_would_give_it() {
    let tree = || archive(&[("top/", EntryType::Directory, ""), ("top/x", EntryType::Regular, "new")]);
    let content = || archive(&[("./", EntryType::Directory, ""), ("./x", EntryType::Regular, "new")]);
    type Case<'a> = (&'a str, Options, Vec<u8>, Result<&'a [&'a str], &'a str>);
    let cases: [Case<'_>; 16] = [
        ("/dir",        AS,   file("a"), Ok(&["dir/", "dir/a: new", "file: old"])),
        ("/dir/",       AS,   file("a"), Ok(&["dir/", "dir/a: new", "file: old"])),
        ("/file",       AS,   file("a"), Ok(&["dir/", "file: new"])),
        ("/new",        AS,   file("a"), Ok(&["dir/", "file: old", "new: new"])),
        ("/dir/new",    AS,   file("a"), Ok(&["dir/", "dir/new: new", "file: old"])),
        ("/",           AS,   file("a"), Ok(&["a: new", "dir/", "file: old"])),
        ("/new/",       AS,   file("a"), Err("/new does not exist")),
        ("/no/new",     AS,   file("a"), Err("/no/ does not exist")),
        ("/file/new",   AS,   file("a"), Err("/file/ is no directory")),
        ("/dir",        AS,   tree(),    Ok(&["dir/", "dir/top/", "dir/top/x: new", "file: old"])),
        ("/new",        AS,   tree(),    Ok(&["dir/", "file: old", "new/", "new/x: new"])),
        ("/new/",       AS,   tree(),    Ok(&["dir/", "file: old", "new/", "new/x: new"])),
        ("/file",       AS,   tree(),    Err("/file is no directory")),
        ("/dir",        AS,   content(), Ok(&["dir/", "dir/x: new", "file: old"])),
        ("/new",        AS,   content(), Ok(&["dir/", "file: old", "new/", "new/x: new"])),
        ("/new",        INTO, file("a"), Err("/new does not exist")),
    ];
    for (path, options, tar, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        fs::write(dir.path().join("file"), "old").unwrap();
        let case = format!("{path} {:?} {expected:?}", options.target);
        match (put(&dir, path, options, &tar), expected) {
            (Ok(_), Ok(listed)) => assert_eq!(listing(dir.path()), listed, "{case}"),
            (Err(error), Err(told)) => assert!(error.to_string().starts_with(told), "{case}: {error}"),
            (other, _) => panic!("{case}: {other:?}"),
        }
    }
}

#[test]
fn what_is_there_is_replaced_only_where_that_is_wanted_and_never_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    fs::write(dir.path().join("file"), "old").unwrap();
    symlink("/etc/passwd", dir.path().join("link")).unwrap();
    let keep = Options {
        overwrite: false,
        ..INTO
    };
    for name in ["file", "link", "dir"] {
        let error = put(&dir, "/", keep, &file(name)).unwrap_err();
        assert!(
            matches!(error, CopyError::Refused { .. }),
            "{name}: {error}"
        );
    }
    let error = put(&dir, "/", INTO, &file("dir")).unwrap_err();
    assert!(error.to_string().contains("is a directory"), "{error}");
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    put(&dir, "/", INTO, &file("link")).unwrap();
    put(&dir, "/", INTO, &file("file")).unwrap();
    assert_eq!(listing(dir.path()), ["dir/", "file: new", "link: new"]);
    assert_eq!(fs::read_to_string("/etc/passwd").unwrap(), passwd);
}

#[test]
#[rustfmt::skip]
fn no_entry_leads_out_of_its_destination() {
    use EntryType::{Directory, Link, Regular, Symlink};
    type Case<'a> = (&'a [(&'a str, EntryType, &'a str)], &'a str);
    let cases: [Case<'_>; 12] = [
        (&[("../out", Regular, "evil")],                                            "`..`"),
        (&[("a/../../out", Regular, "evil")],                                       "`..`"),
        (&[("l", Symlink, "/"), ("l/out", Regular, "evil")],                        "a symbolic link"),
        (&[("l", Symlink, ".."), ("l/out", Regular, "evil")],                       "a symbolic link"),
        (&[("l", Symlink, "../out"), ("l/", Directory, "")],                        "no directory"),
        (&[("d/", Directory, ""), ("d/l", Symlink, "../.."), ("d/l/out", Regular, "evil")], "a symbolic link"),
        (&[("h", Link, "../outside")],                                              "`..`"),
        (&[("l", Symlink, ".."), ("h", Link, "l/outside")],                         "a symbolic link"),
        (&[("h", Link, "/etc/passwd")],                                             "does not exist"),
        (&[("l", Symlink, "../outside"), ("h", Link, "l")],                         "is a link to what is no file"),
        (&[("h", Link, "")],                                                        "is a link to no name"),
        (&[("", Regular, "evil")],                                                  "has no name"),
    ];
    for (entries, told) in cases {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("outside"), "outside").unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        let error = put(&dir, "/in", INTO, &archive(entries)).unwrap_err().to_string();
        assert!(error.contains(told), "{entries:?}: {error}");
        let listed = listing(dir.path());
        let evil = listed.iter().any(|it| it.contains("evil") || it.contains(".berth-copy"));
        assert!(!evil && listed.contains(&"outside: outside".to_owned()), "{listed:?}");
    }
    // A leading slash means nothing, and a link may say what it likes.
    let dir = tempfile::tempdir().unwrap();
    let entries = [("/abs", Regular, "x"), ("//b/./c", Regular, "y"), ("l", Symlink, "/etc/passwd")];
    put(&dir, "/", INTO, &archive(&entries)).unwrap();
    assert_eq!(listing(dir.path()), ["abs: x", "b/", "b/c: y", "l -> /etc/passwd"]);
}

#[test]
fn a_link_that_stands_is_followed_to_the_destination_and_not_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("root");
    fs::create_dir_all(inner.join("etc")).unwrap();
    fs::create_dir(inner.join("data")).unwrap();
    symlink("/etc", inner.join("absolute")).unwrap();
    symlink("../../../etc", inner.join("up")).unwrap();
    symlink("/etc", inner.join("data/etc")).unwrap();
    symlink("/proc/self/root/etc", inner.join("magic")).unwrap();
    let root = File::open(&inner).unwrap();
    let put = |path: &str, tar: &[u8]| unpack(root.as_fd(), Path::new(path), AS, tar);
    put("/absolute", &file("a")).unwrap();
    put("/up", &file("b")).unwrap();
    assert_eq!(listing(&inner.join("etc")), ["a: new", "b: new"]);
    put("/magic/x", &file("c")).unwrap_err();
    let error = put("/data", &archive(&[("etc/x", EntryType::Regular, "x")])).unwrap_err();
    assert!(matches!(error, CopyError::Refused { .. }), "{error}");
    assert!(!Path::new("/etc/a").exists() && !Path::new("/etc/b").exists());

    symlink("/etc/a", inner.join("to-file")).unwrap();
    let mut bytes = vec![];
    pack(root.as_fd(), Path::new("/to-file"), true, &mut bytes).unwrap();
    let mut content = String::new();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    entry.read_to_string(&mut content).unwrap();
    assert_eq!(
        (entry.path().unwrap(), content.as_str()),
        (Path::new("to-file").into(), "new")
    );
    let mut hosts = vec![];
    symlink("/etc/hostname", inner.join("host")).unwrap();
    let error = pack(root.as_fd(), Path::new("/host"), true, &mut hosts).unwrap_err();
    assert!(matches!(error, CopyError::NotFound { .. }), "{error}");
}

#[test]
fn an_archive_that_breaks_off_leaves_no_half_of_a_file() {
    struct Torn<'a>(&'a [u8]);
    impl io::Read for Torn<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionAborted.into()),
                read => Ok(read),
            }
        }
    }
    let big = "x".repeat(300_000);
    let tar = archive(&[
        ("whole", EntryType::Regular, "whole"),
        ("big", EntryType::Regular, &big),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let torn = Torn(&tar[..200_000]);
    let error = unpack(root(&dir).as_fd(), Path::new("/"), INTO, torn).unwrap_err();
    assert!(matches!(error, CopyError::Stream { .. }), "{error}");
    assert_eq!(listing(dir.path()), ["whole: whole"]);
    let error = put(&dir, "/", INTO, &tar[..200_000])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`big`") && error.ends_with("too early"),
        "{error}"
    );
    assert_eq!(listing(dir.path()), ["whole: whole"]);
}

#[test]
fn only_an_archived_owner_keeps_the_bits_that_change_who_runs() {
    let mut builder = tar::Builder::new(vec![]);
    let mut header = Header::new_gnu();
    header.set_mode(0o6755);
    header.set_uid(4321);
    header.set_gid(1234);
    header.set_size(0);
    builder
        .append_data(&mut header, "tool", io::empty())
        .unwrap();
    let tar = builder.into_inner().unwrap();
    let given = Owner::Given { uid: 77, gid: 78 };
    let cases = [
        (Owner::Archived, (4321, 1234), 0o6755),
        (given, (77, 78), 0o755),
    ];
    for (owner, ids, mode) in cases {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, "/", Options { owner, ..INTO }, &tar).unwrap();
        let made = fs::metadata(dir.path().join("tool")).unwrap();
        assert_eq!(
            ((made.uid(), made.gid()), made.mode() & 0o7777),
            (ids, mode)
        );
    }
}

#[test]
fn what_cannot_be_sent_is_said_and_ends_without_the_mark_of_an_end() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    let path: PathBuf = (0..300).map(|_| "n").collect();
    fs::create_dir_all(dir.path().join("d").join(path)).unwrap();
    let mut bytes = vec![];
    let packed = pack(root(&dir).as_fd(), Path::new("d"), false, &mut bytes);
    let error = packed.unwrap_err().to_string();
    assert!(error.ends_with("deeper than 256 directories"), "{error}");
    assert!(bytes.len() > 512 && !bytes.ends_with(&[0; 1024]));
    for (path, told) in [
        ("/none", "/none does not exist"),
        ("/d/..", "/d/.. must end in a name or in `/.`"),
    ] {
        assert_eq!(take(&dir, path).unwrap_err().to_string(), told);
    }
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    assert!(matches!(take(&dir, "s"), Err(CopyError::Refused { .. })));
}

#[test]
fn a_tree_is_as_deep_on_the_way_in_as_it_may_be_on_the_way_out() {
    let of_depth = |depth: usize| {
        let path: PathBuf = (0..depth).map(|_| "n").collect();
        let mut builder = tar::Builder::new(vec![]);
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        builder.append_data(&mut header, path, &[][..]).unwrap();
        builder.into_inner().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let totals = put(&dir, "/", INTO, &of_depth(256)).unwrap();
    assert_eq!(totals.directories, 1);
    take(&dir, "n").unwrap();
    let path: PathBuf = (0..257).map(|_| "n").collect();
    fs::create_dir_all(dir.path().join(path)).unwrap();
    let out = take(&dir, "n").unwrap_err();
    let dir = tempfile::tempdir().unwrap();
    let into = put(&dir, "/", INTO, &of_depth(257)).unwrap_err();
    assert!(listing(dir.path()).is_empty());
    for (error, is_of_its_way) in [
        (&out, matches!(out, CopyError::Refused { .. })),
        (&into, matches!(into, CopyError::Archive { .. })),
    ] {
        let told = error.to_string();
        assert!(is_of_its_way, "{error:?}");
        assert!(told.ends_with("deeper than 256 directories"), "{told}");
    }
}
