//! What each verb leaves on a real disk, in both layouts.

use std::time::{Duration, UNIX_EPOCH};

use super::*;

const TO: Tombstone = Tombstone {
    token: 7,
    at: UNIX_EPOCH,
};

struct Tree {
    home: tempfile::TempDir,
    directory: BlobDir,
}

impl Tree {
    fn new(layout: BlobLayout) -> Self {
        let home = tempfile::tempdir().unwrap();
        let directory = BlobDir::new(home.path().to_owned(), layout);
        Self { home, directory }
    }

    fn put(&self, content: &[u8]) -> Digest {
        let digest = Digest::from_bytes(Sha256::digest(content).into());
        self.write(&self.directory.path(&digest, None), content);
        digest
    }

    /// A repository's links to a blob, and a tag on it.
    fn link(&self, digest: Digest) -> Vec<PathBuf> {
        let hex = digest.hex();
        let links = [
            format!("repositories/team/shop/_layers/sha256/{hex}/link"),
            format!("repositories/team/shop/_manifests/revisions/sha256/{hex}/link"),
            "repositories/team/shop/_manifests/tags/shop-1/current/link".to_owned(),
            format!("repositories/team/shop/_manifests/tags/shop-1/index/sha256/{hex}/link"),
        ];
        let links = links.map(|it| self.home.path().join(it));
        for link in &links {
            self.write(link, digest.to_string().as_bytes());
        }
        links.into()
    }

    fn write(&self, path: &Path, content: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn scan(&self) -> Scan {
        self.directory.scan().unwrap().unwrap()
    }

    fn seen(&self, digest: Digest) -> Seen {
        let found = self.scan().found;
        let it = found.iter().find(|it| it.digest == digest).unwrap();
        Seen {
            digest,
            size_bytes: it.size_bytes,
            modified: it.modified,
        }
    }

    fn bury(&self, digest: Digest, to: Tombstone) -> bool {
        let links = self.scan().links;
        self.directory.bury(&links, &self.seen(digest), to).unwrap()
    }

    /// All files, by their paths below the root.
    fn files(&self) -> BTreeSet<String> {
        fn walk(path: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => walk(&path, found),
                    false => found.push(path),
                }
            }
        }
        let mut found = Vec::new();
        walk(self.home.path(), &mut found);
        let below = |it: &PathBuf| it.strip_prefix(self.home.path()).unwrap().to_owned();
        found
            .iter()
            .map(|it| below(it).display().to_string())
            .collect()
    }
}

const LAYOUTS: [BlobLayout; 2] = [BlobLayout::Flat, BlobLayout::Distribution];

#[test]
fn a_blob_is_buried_and_named_back_as_it_was() {
    for layout in LAYOUTS {
        let tree = Tree::new(layout);
        let digest = tree.put(b"layer");
        if layout == BlobLayout::Distribution {
            tree.link(digest);
        }
        let before = tree.files();
        assert!(tree.bury(digest, TO));
        assert!(
            tree.files().is_disjoint(&before),
            "{layout:?}: no path is left"
        );
        let scan = tree.scan();
        assert_eq!(scan.found[0].buried, Some(TO));
        let back = tree.directory.restore(&scan.links, &digest, Some(TO));
        back.unwrap();
        assert_eq!(tree.files(), before, "{layout:?}");
    }
}

#[test]
fn nothing_is_left_of_a_blob_that_was_removed() {
    for layout in LAYOUTS {
        let tree = Tree::new(layout);
        let (digest, other) = (tree.put(b"layer"), tree.put(b"other"));
        if layout == BlobLayout::Distribution {
            tree.link(digest);
        }
        assert!(tree.bury(digest, TO));
        let links = tree.scan().links;
        tree.directory.remove(&links, &digest, TO).unwrap();
        let left = tree.files();
        assert_eq!(left.len(), 1, "{layout:?}: {left:?}");
        assert_eq!(tree.scan().found[0].digest, other);
        // Once more is no error, nor is a restore of what is gone.
        tree.directory.remove(&links, &digest, TO).unwrap();
        tree.directory.restore(&links, &digest, Some(TO)).unwrap();
        assert_eq!(tree.files(), left, "{layout:?}");
        tree.directory.sync(&[digest, other].into()).unwrap();
    }
}

#[test]
fn an_empty_tag_goes_with_its_links() {
    let tree = Tree::new(BlobLayout::Distribution);
    let digest = tree.put(b"manifest");
    tree.link(digest);
    assert_eq!(tree.scan().links.tags["shop-1"], [digest]);
    tree.bury(digest, TO);
    let links = tree.scan().links;
    assert_eq!(
        links.tags["shop-1"],
        [digest],
        "a tag is known by its tombstone too"
    );
    tree.directory.remove(&links, &digest, TO).unwrap();
    let tags = tree
        .home
        .path()
        .join("repositories/team/shop/_manifests/tags");
    assert_eq!(entries(&tags).unwrap(), Some(vec![]));
}

#[test]
fn a_blob_that_was_written_anew_since_is_left_alone() {
    for layout in LAYOUTS {
        let tree = Tree::new(layout);
        let digest = tree.put(b"layer");
        let mut seen = tree.seen(digest);
        seen.modified -= Duration::from_secs(1);
        let links = tree.scan().links;
        assert!(!tree.directory.bury(&links, &seen, TO).unwrap());
        assert_eq!(tree.scan().found[0].buried, None);
    }
}

#[test]
fn a_tombstone_never_comes_in_the_place_of_a_new_copy() {
    for layout in LAYOUTS {
        let tree = Tree::new(layout);
        let digest = tree.put(b"layer");
        tree.bury(digest, TO);
        tree.put(b"layer");
        let scan = tree.scan();
        tree.directory
            .restore(&scan.links, &digest, Some(TO))
            .unwrap();
        assert_eq!(tree.scan().found.len(), 2, "{layout:?}: both are there");
        tree.directory.remove_superseded(&digest, TO).unwrap();
        let found = tree.scan().found;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].buried, None, "{layout:?}");
    }
}

#[test]
fn links_that_a_crash_has_buried_alone_are_seen_and_come_back() {
    let tree = Tree::new(BlobLayout::Distribution);
    let digest = tree.put(b"layer");
    let links = tree.link(digest);
    tree.scan().links.bury(&digest, TO).unwrap();
    let scan = tree.scan();
    assert!(scan.found[0].links_buried);
    tree.directory.restore(&scan.links, &digest, None).unwrap();
    assert!(links.iter().all(|it| it.exists()));
    assert!(!tree.scan().found[0].links_buried);
}

#[test]
fn only_links_of_a_tombstone_or_older_ones_go_with_it() {
    for (buried_with, goes) in [(6, true), (7, true), (8, false)] {
        let tree = Tree::new(BlobLayout::Distribution);
        let digest = tree.put(b"layer");
        let links = tree.link(digest);
        let token = buried_with;
        tree.scan()
            .links
            .bury(&digest, Tombstone { token, ..TO })
            .unwrap();
        assert!(tree.bury(digest, TO));
        let scan = tree.scan();
        tree.directory.remove(&scan.links, &digest, TO).unwrap();
        let left = if goes { 0 } else { links.len() };
        assert_eq!(tree.files().len(), left, "buried with {buried_with}");
        tree.directory.restore(&scan.links, &digest, None).unwrap();
        assert!(links.iter().all(|it| it.exists() != goes));
    }
}

#[test]
fn a_directory_that_is_missing_is_empty_and_one_that_is_none_is_unreadable() {
    for layout in LAYOUTS {
        let tree = Tree::new(layout);
        let nowhere = BlobDir::new(tree.home.path().join("nowhere"), layout);
        assert!(nowhere.scan().unwrap().is_none());
        assert!(!nowhere.has_tombstones().unwrap());
        let file = tree.home.path().join("file");
        fs::write(&file, "").unwrap();
        let error = BlobDir::new(file, layout).scan().unwrap_err().to_string();
        assert!(error.ends_with("file cannot be read"), "{error}");
    }
}

#[test]
fn what_is_none_of_ours_is_not_found() {
    let tree = Tree::new(BlobLayout::Flat);
    let digest = tree.put(b"layer");
    fs::write(tree.home.path().join("upload"), "x").unwrap();
    fs::create_dir(
        tree.home
            .path()
            .join(Digest::from_bytes([1; 32]).to_string()),
    )
    .unwrap();
    std::os::unix::fs::symlink(
        "/",
        tree.home
            .path()
            .join(Digest::from_bytes([2; 32]).to_string()),
    )
    .unwrap();
    let found = tree.scan().found;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].digest, digest);
}

#[test]
fn what_a_manifest_covers_is_told_and_a_broken_one_is_an_error() {
    for layout in LAYOUTS {
        let tree = Tree::new(layout);
        let layer = tree.put(b"\x1f\x8blayer");
        let text = format!(r#"{{"layers":[{{"digest":"{layer}"}}]}}"#);
        let manifest = tree.put(text.as_bytes());
        let children = |digest: Digest| {
            let scan = tree.scan();
            let found = scan.found.iter().find(|it| it.digest == digest);
            tree.directory.children(found.unwrap())
        };
        assert_eq!(children(manifest).unwrap(), [layer]);
        assert_eq!(children(layer).unwrap(), []);
        // Also a buried one tells.
        tree.bury(manifest, TO);
        assert_eq!(children(manifest).unwrap(), [layer]);
        for broken in [text[..10].to_owned(), String::new(), " ".repeat(99)] {
            fs::write(tree.directory.path(&manifest, Some(TO)), broken).unwrap();
            let error = children(manifest).unwrap_err();
            assert!(matches!(error, Unread::Corrupt { .. }), "{error}");
        }
        let unsound = tree.put(br#"{"layers":[{"digest":"sha256:1"}]}"#);
        assert!(matches!(
            children(unsound).unwrap_err(),
            Unread::Manifest { .. }
        ));
        // Whatever it is: it was written so, and it is no manifest.
        assert_eq!(children(tree.put(b"{ no json")).unwrap(), []);
    }
}
