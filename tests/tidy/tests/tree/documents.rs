//! Links in documents lead somewhere, and the commands that they show exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use crate::none;
use crate::workspace::{files_with_extension, read};

#[derive(Default)]
struct Document {
    links: Vec<String>,
    anchors: BTreeSet<String>,
    code: Vec<String>,
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the rest of Markdown says nothing here"
)]
fn parse(text: &str) -> Document {
    let mut document = Document::default();
    let mut heading: Option<String> = None;
    let mut in_block = false;
    for event in Parser::new(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let slug = slug(&heading.take().unwrap_or_default());
                let mut anchor = slug.clone();
                let mut again = 0;
                while !document.anchors.insert(anchor) {
                    again += 1;
                    anchor = format!("{slug}-{again}");
                }
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                document.links.push(dest_url.into_string());
            }
            Event::Start(Tag::CodeBlock(_)) => in_block = true,
            Event::End(TagEnd::CodeBlock) => in_block = false,
            Event::Text(text) if in_block => {
                document.code.extend(text.lines().map(str::to_owned));
            }
            Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
                document.code.push(text.into_string());
            }
            Event::Text(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            _ => {}
        }
    }
    document
}

/// The anchor that a forge gives a heading.
fn slug(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|&letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'))
        .map(|letter| if letter == ' ' { '-' } else { letter })
        .collect()
}

fn broken_links(
    documents: &BTreeMap<PathBuf, Document>,
    exists: impl Fn(&Path) -> bool,
) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, document) in documents {
        for link in &document.links {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                Some(path.clone())
            } else {
                resolve(path, file)
            };
            let sound = target.is_some_and(|target| {
                exists(&target)
                    && (anchor.is_empty()
                        || documents
                            .get(&target)
                            .is_none_or(|page| page.anchors.contains(anchor)))
            });
            if !sound {
                complaints.push(format!("{} links to {link}", path.display()));
            }
        }
    }
    complaints
}

/// Where a link leads, from the root; nowhere if it leaves the tree.
fn resolve(from: &Path, link: &str) -> Option<PathBuf> {
    let mut target = match link.strip_prefix('/') {
        Some(_) => PathBuf::new(),
        None => from.parent()?.to_owned(),
    };
    for component in Path::new(link.trim_start_matches('/')).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if !target.pop() {
                    return None;
                }
            }
            Component::Normal(name) => target.push(name),
            Component::Prefix(_) | Component::RootDir => return None,
        }
    }
    Some(target)
}

/// The targets that a line of code calls `make` for.
fn make_targets(line: &str) -> Vec<&str> {
    let mut words = line.split_whitespace().skip_while(|word| *word == "$");
    if words.next() != Some("make") {
        return Vec::new();
    }
    words
        .take_while(|word| {
            word.chars()
                .all(|letter| letter.is_ascii_lowercase() || letter == '-')
        })
        .collect()
}

/// The targets that a Makefile defines.
fn defined_targets(makefile: &str) -> BTreeSet<&str> {
    makefile
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':'))
        .filter(|(_, rest)| !rest.starts_with('='))
        .flat_map(|(targets, _)| targets.split_whitespace())
        .collect()
}

fn undefined_targets(documents: &BTreeMap<PathBuf, Document>, makefile: &str) -> Vec<String> {
    let defined = defined_targets(makefile);
    let mut complaints = Vec::new();
    for (path, document) in documents {
        for target in document.code.iter().flat_map(|line| make_targets(line)) {
            if !defined.contains(target) {
                complaints.push(format!("{} calls `make {target}`", path.display()));
            }
        }
    }
    complaints
}

fn documents() -> BTreeMap<PathBuf, Document> {
    files_with_extension("md")
        .into_iter()
        .map(|path| (path.clone(), parse(&read(path))))
        .collect()
}

fn made_up(documents: &[(&str, &str)]) -> BTreeMap<PathBuf, Document> {
    documents
        .iter()
        .map(|(path, text)| (PathBuf::from(path), parse(text)))
        .collect()
}

#[test]
fn links_in_documents_lead_somewhere() {
    none(broken_links(&documents(), |path| {
        berth_tidy::root().join(path).exists()
    }));
}

#[test]
fn a_broken_link_is_found() {
    let documents = made_up(&[
        (
            "README.md",
            "# Berth\n## How it `works`, briefly\n## Twice\n## Twice\n\
             [a](docs/plan.md) [b](#how-it-works-briefly) [c](#twice-1) [d](https://example.org/x)\n\
             [e](docs/plan.md#the-plan) [f](docs) ![g](/docs/plan.md) [h][ref]\n\n[ref]: docs/./plan.md\n",
        ),
        (
            "docs/plan.md",
            "# The plan\n[a](../README.md#berth) [b](README.md) [c](#gone) [d](../../outside.md)\n\
             [e](../README.md#twice-2) `[f](gone.md)`\n",
        ),
    ]);
    let exists = |path: &Path| {
        ["README.md", "docs", "docs/plan.md"]
            .iter()
            .any(|known| path == *known)
    };
    assert_eq!(
        broken_links(&documents, exists),
        [
            "docs/plan.md links to README.md",
            "docs/plan.md links to #gone",
            "docs/plan.md links to ../../outside.md",
            "docs/plan.md links to ../README.md#twice-2",
        ]
        .map(String::from)
    );
}

#[test]
fn make_targets_in_documents_exist() {
    none(undefined_targets(&documents(), &read("Makefile")));
}

#[test]
fn a_make_target_that_does_not_exist_is_found() {
    let makefile =
        "demo test: build ## x\nSHELL := /bin/bash\nprograms := a\ncheck:\n\tcargo fmt: no\n";
    let documents = made_up(&[(
        "README.md",
        "Make a demo, or `make demo`, or\n\n```sh\n$ make check tset # and more\nmake test && x\n```\n`make programs`",
    )]);
    assert_eq!(
        undefined_targets(&documents, makefile),
        [
            "README.md calls `make tset`",
            "README.md calls `make programs`"
        ]
    );
}
