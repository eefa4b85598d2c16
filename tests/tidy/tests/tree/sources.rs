//! What every source file keeps to, seen as tokens and not as text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use berth_tidy::codegen::GENERATED;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::lints::UNSAFE;
use crate::none;
use crate::workspace::{files, files_with_extension, packages, read};

/// Who may start a task that nobody awaits, and why. Everything else belongs to the task that it runs in.
const MAY_SPAWN: &[(&str, &str)] = &[
    (
        "services/sandbox-manager/src/registry.rs",
        "one task per sandbox, tracked and ended there",
    ),
    (
        "services/sandbox-manager/src/app.rs",
        "the servers and loops of the process",
    ),
    (
        "services/lib/containerd/src/runtime.rs",
        "follows the ends of tasks until its receiver is gone",
    ),
    (
        "services/lib/netns/src/links.rs",
        "drives a netlink socket until its last handle is gone",
    ),
    (
        "services/lib/containerd/src/pulls.rs",
        "one pull for all who wait for it, aborted with the last of them",
    ),
    (
        "services/lib/telemetry/src/prometheus.rs",
        "answers Prometheus until the process ends",
    ),
    ("services/berth/tests", "a scripted manager"),
    ("services/lib/platform/tests", "concurrent callers"),
    ("services/lib/registry/tests", "a scripted registry"),
    ("tests/bench", "concurrent callers"),
    ("tests/e2e", "concurrent callers"),
    ("tests/soak", "concurrent callers"),
];

/// Files that no target of Cargo reaches, and what builds them.
const BUILT_OTHERWISE: &[(&str, &str)] = &[
    (
        "services/pause/program/pause.rs",
        "services/pause/build.rs compiles it without a library",
    ),
    (
        "tests/e2e/programs/pacer.rs",
        "tests/e2e/build.rs compiles it for containers",
    ),
    (
        "tests/bench/program/listener.rs",
        "tests/bench/build.rs compiles it without a library",
    ),
];

/// Files whose comments are looked at for things left to do.
const COMMENTED: &[&str] = &["proto", "py", "rs", "sh", "toml", "yaml", "yml"];

/// The tokens of a source file in one row, with the brackets of groups; comments are gone.
pub(crate) fn tokens(source: &str) -> Vec<String> {
    let mut row = Vec::new();
    flatten(source.parse().unwrap(), &mut row);
    row
}

fn flatten(stream: TokenStream, row: &mut Vec<String>) {
    for token in stream {
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                row.push(open.to_owned());
                flatten(group.stream(), row);
                row.push(close.to_owned());
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {
                row.push(token.to_string());
            }
        }
    }
}

/// The files that a file brings in by `mod` and `include!`, if they were there.
/// `folder` is where the file's modules lie.
fn brought_in(file: &Path, folder: &Path, source: &str) -> Vec<PathBuf> {
    let row = tokens(source);
    let mut found = Vec::new();
    // Brackets that are open, with the module's name for those of `mod name { }`.
    let mut open: Vec<Option<&str>> = Vec::new();
    for (at, token) in row.iter().enumerate() {
        let before = |back: usize| at.checked_sub(back).map_or("", |at| row[at].as_str());
        match token.as_str() {
            "{" => open.push((before(2) == "mod").then(|| before(1))),
            "}" => {
                open.pop();
            }
            ";" if before(2) == "mod" => {
                let mut path = folder.to_owned();
                path.extend(open.iter().flatten());
                found.push(path.join(format!("{}.rs", before(1))));
            }
            literal if before(1) == "(" && before(2) == "!" && before(3) == "include" => {
                found.push(file.with_file_name(literal.trim_matches('"')));
            }
            _ => {}
        }
    }
    found
}

/// The files that the crate with this root consists of.
fn reach(
    crate_root: &Path,
    read: &impl Fn(&Path) -> Option<String>,
    reached: &mut BTreeSet<PathBuf>,
) {
    let folder = crate_root.parent().unwrap_or(Path::new("")).to_owned();
    let mut waiting = vec![(crate_root.to_owned(), folder)];
    while let Some((file, folder)) = waiting.pop() {
        let Some(source) = read(&file) else { continue };
        for next in brought_in(&file, &folder, &source) {
            let folder = next.with_extension("");
            waiting.push((next, folder));
        }
        reached.insert(file);
    }
}

fn orphans(
    crate_roots: &[PathBuf],
    files: &[PathBuf],
    read: &impl Fn(&Path) -> Option<String>,
) -> Vec<String> {
    let mut reached = BTreeSet::new();
    for crate_root in crate_roots {
        reach(crate_root, read, &mut reached);
    }
    let orphans = files.iter().filter(|file| !reached.contains(*file));
    orphans
        .map(|file| format!("{} belongs to no crate", file.display()))
        .collect()
}

fn uses_unsafe(source: &str) -> bool {
    tokens(source).iter().any(|token| token == "unsafe")
}

fn spawns(source: &str) -> bool {
    tokens(source).windows(4).any(|window| {
        matches!(window, [from, one, two, name]
            if (from == "tokio" || from == "task") && one == ":" && two == ":" && name == "spawn")
    })
}

/// The lines that leave something to do without naming its issue.
fn loose_ends(text: &str) -> Vec<&str> {
    let word = concat!("TO", "DO");
    text.lines()
        .filter(|line| {
            line.contains(concat!("FIX", "ME"))
                || line.split(word).skip(1).any(|rest| {
                    let issue = rest
                        .strip_prefix("(#")
                        .and_then(|rest| rest.split_once(')'));
                    issue.is_none_or(|(number, _)| number.parse::<u32>().is_err())
                })
        })
        .collect()
}

fn rust_files() -> Vec<PathBuf> {
    let mut files = files_with_extension("rs");
    files.retain(|path| !path.starts_with(GENERATED));
    files
}

#[test]
fn no_source_file_is_an_orphan() {
    let crate_roots: Vec<_> = packages()
        .into_iter()
        .flat_map(|package| package.crate_roots)
        .collect();
    let mut files = files_with_extension("rs");
    files.retain(|path| {
        !BUILT_OTHERWISE
            .iter()
            .any(|(known, _)| path == Path::new(known))
    });
    let read = |path: &Path| std::fs::read_to_string(berth_tidy::root().join(path)).ok();
    none(orphans(&crate_roots, &files, &read));
}

#[test]
fn an_orphan_is_found() {
    let tree = [
        (
            "src/lib.rs",
            "//! mod comment;\nmod store; mod tests { mod table; } include!(\"gen/x.rs\");",
        ),
        (
            "src/store.rs",
            "pub(crate) mod lease; const TEXT: &str = \"mod text;\";",
        ),
        ("src/store/lease.rs", ""),
        ("src/tests/table.rs", ""),
        ("src/gen/x.rs", ""),
        ("src/lease.rs", ""),
        ("src/table.rs", ""),
        ("src/comment.rs", ""),
        ("src/store/text.rs", ""),
    ];
    let files: Vec<_> = tree.iter().map(|(path, _)| PathBuf::from(path)).collect();
    let read = |path: &Path| {
        tree.iter()
            .find(|(known, _)| path == Path::new(known))
            .map(|(_, text)| (*text).to_owned())
    };
    assert_eq!(
        orphans(&[PathBuf::from("src/lib.rs")], &files, &read),
        [
            "src/lease.rs belongs to no crate",
            "src/table.rs belongs to no crate",
            "src/comment.rs belongs to no crate",
            "src/store/text.rs belongs to no crate",
        ]
    );
}

#[test]
fn a_module_is_never_called_mod_rs() {
    let found = rust_files()
        .into_iter()
        .filter(|path| path.ends_with("mod.rs"));
    none(
        found
            .map(|path| format!("{} should be the folder's name.rs", path.display()))
            .collect(),
    );
}

#[test]
fn every_source_file_says_what_it_is() {
    let silent = rust_files()
        .into_iter()
        .filter(|path| !read(path).starts_with("//! "));
    none(
        silent
            .map(|path| format!("{} does not open with //!", path.display()))
            .collect(),
    );
}

#[test]
fn unsafe_stays_where_the_kernel_is_met() {
    let found = rust_files().into_iter().filter(|path| {
        !UNSAFE.iter().any(|folder| path.starts_with(folder)) && uses_unsafe(&read(path))
    });
    none(
        found
            .map(|path| format!("{} uses unsafe", path.display()))
            .collect(),
    );
}

#[test]
fn unsafe_is_found_in_code_and_nowhere_else() {
    assert!(uses_unsafe("fn f() { g(unsafe { h() }) }"));
    assert!(uses_unsafe("m! { unsafe fn f(); }"));
    assert!(!uses_unsafe(
        "// unsafe\nconst A: &str = \"unsafe\"; #[allow(unsafe_code)] fn f() {}"
    ));
}

#[test]
fn tasks_are_spawned_by_their_owners_only() {
    let found = rust_files().into_iter().filter(|path| {
        !MAY_SPAWN.iter().any(|(owner, _)| path.starts_with(owner)) && spawns(&read(path))
    });
    none(
        found
            .map(|path| format!("{} calls tokio::spawn", path.display()))
            .collect(),
    );
}

#[test]
fn a_spawned_task_is_found() {
    assert!(spawns("fn f() { tokio::spawn(async {}); }"));
    assert!(spawns(
        "use tokio::task; fn f() { if x { task::spawn(g()); } }"
    ));
    assert!(!spawns(
        "fn f() { tokio::task::spawn_blocking(g); set.spawn(h()); } // tokio::spawn"
    ));
}

#[test]
fn what_is_left_to_do_names_its_issue() {
    let commented = files().into_iter().filter(|path| {
        path.ends_with("Makefile")
            || path.starts_with("deploy")
            || path.starts_with(".ci")
            || path
                .extension()
                .is_some_and(|it| COMMENTED.iter().any(|known| it == *known))
    });
    let text =
        |path: &Path| std::fs::read_to_string(berth_tidy::root().join(path)).unwrap_or_default();
    none(
        commented
            .flat_map(|path| {
                loose_ends(&text(&path))
                    .into_iter()
                    .map(|line| format!("{}: {}", path.display(), line.trim()))
                    .collect::<Vec<_>>()
            })
            .collect(),
    );
}

#[test]
fn a_loose_end_is_found() {
    let word = concat!("TO", "DO");
    let text = format!("// {word}(#12): fine\n// {word}: loose\n// {word}(#x) loose\n// nothing\n");
    assert_eq!(
        loose_ends(&text),
        [format!("// {word}: loose"), format!("// {word}(#x) loose")]
    );
}
