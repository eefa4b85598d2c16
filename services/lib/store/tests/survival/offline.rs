//! The store as text.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use berth_store::{ImportError, StoreError, check, export, import};
use serde_json::{Value, json};

use super::{admit, file, id, names, open, put_lease, run, tear_record};

fn text_of(path: &Path) -> String {
    let mut text = vec![];
    export(path, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

async fn make(path: &Path) {
    let store = open(path);
    for name in ["a", "b", "c"] {
        run(&store, name).await;
    }
    let b = store.get(&id("b")).await.unwrap().unwrap();
    let now = std::time::SystemTime::now();
    store.remove(&b.id, b.generation, now).await.unwrap();
}

#[tokio::test]
async fn a_store_is_the_same_after_export_and_import() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old.redb"), dir.path().join("new.redb"));
    make(&old).await;
    let text = text_of(&old);
    let lines: Vec<Value> = text
        .lines()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    assert_eq!(
        lines[0],
        json!({"berth_store": {"schema": 5, "revision": 7}})
    );
    assert_eq!(lines[1]["record"]["status"], "RUNNING");
    assert_eq!(lines[4]["lease"]["address"], "10.9.0.3");
    let imported = import(&new, text.as_bytes(), false).unwrap();
    assert_eq!((imported.records, imported.leases), (2, 3));
    assert_eq!(imported.left_out, 0);
    let (old, new) = (open(&old), open(&new));
    assert_eq!(new.all().await.unwrap(), old.all().await.unwrap());
    assert_eq!(new.leases().await.unwrap(), old.leases().await.unwrap());
    let seen = old.revision().await.unwrap();
    let next = admit(&new, "d").await.unwrap();
    assert!(next.generation.0 > seen + 4000, "nobody has seen it");
    assert!(new.watch(seen).await.unwrap().is_none());
}

#[tokio::test]
async fn nothing_is_done_while_a_manager_has_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    let in_use = |it: &StoreError| matches!(it, StoreError::InUse { .. });
    assert!(in_use(&check(&path).unwrap_err()));
    let refused = export(&path, &mut vec![]).unwrap_err();
    assert!(
        matches!(&refused, berth_store::ExportError::Store(it) if in_use(it)),
        "{refused}"
    );
    let refused = import(&path, &b""[..], true).unwrap_err();
    assert!(
        matches!(&refused, ImportError::Store(it) if in_use(it)),
        "{refused}"
    );
    drop(store);
    assert_eq!(check(&path).unwrap().records, 0);
}

#[tokio::test]
async fn an_import_never_takes_the_place_of_records_unless_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    make(&path).await;
    let text = text_of(&path);
    let before = fs::read(&path).unwrap();
    let refused = import(&path, text.as_bytes(), false).unwrap_err();
    assert!(matches!(refused, ImportError::NotEmpty { .. }), "{refused}");
    assert!(refused.to_string().contains("2 records"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), before);

    let only_a: String = text
        .lines()
        .filter(|it| !it.contains("\"id\":\"c\""))
        .map(|it| format!("{it}\n"))
        .collect();
    let imported = import(&path, only_a.as_bytes(), true).unwrap();
    let former = imported.former.unwrap();
    assert_eq!(fs::read(&former).unwrap(), before);
    assert_eq!(names(&open(&path).all().await.unwrap()), ["a"]);

    fs::write(&path, &before[..5000]).unwrap();
    let refused = import(&path, text.as_bytes(), false).unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    let again = import(&path, text.as_bytes(), true).unwrap();
    assert_ne!(again.former, Some(former), "both are kept");
    assert_eq!(names(&open(&path).all().await.unwrap()), ["a", "c"]);
    let empty = dir.path().join("empty.redb");
    drop(open(&empty));
    assert_eq!(import(&empty, text.as_bytes(), false).unwrap().former, None);
}

#[tokio::test]
async fn a_line_that_cannot_be_imported_is_named_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old.redb"), dir.path().join("new.redb"));
    make(&old).await;
    let text = text_of(&old);
    let lines: Vec<&str> = text.lines().collect();
    let twin = lines[1].replace("\"id\":\"a\"", "\"id\":\"x\"");
    let halved = &lines[2][..40];
    let status = lines[1].replace("RUNNING", "WALKING");
    let newer = lines[0].replace("\"schema\":5", "\"schema\":6");
    #[rustfmt::skip]
    let cases: [(Vec<&str>, usize, &str); 8] = [
        (vec![],                              1, "header"),
        (vec![lines[1]],                      1, "header"),
        (vec![&newer],                        1, "schema is 6"),
        (vec![lines[0], halved],              2, "EOF"),
        (vec![lines[0], lines[1], &status],   3, "already"),
        (vec![lines[0], lines[2], &status],   3, "WALKING"),
        (vec![lines[0], lines[1], &twin],     3, "two records"),
        (vec![lines[0], lines[1], lines[0]],  3, "one header"),
    ];
    for (lines, number, problem) in cases {
        let text = lines.join("\n");
        let error = import(&new, text.as_bytes(), false).unwrap_err();
        let said = error.to_string();
        let first = number == 1 && lines.is_empty();
        assert!(
            first || matches!(error, ImportError::Line { number: it, .. } if it == number),
            "{said}"
        );
        assert!(said.contains(problem), "{problem}: {said}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
    let left = left
        .iter()
        .filter(|it| it.file_name().to_string_lossy().starts_with("new.redb"));
    assert_eq!(left.count(), 1, "the lock");
}

#[tokio::test]
async fn what_cannot_be_read_is_written_out_for_people_and_left_out_of_an_import() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    make(&path).await;
    tear_record(&path, "a");
    put_lease(&path, [10, 9, 0, 9], b"nonsense");
    let checked = check(&path).unwrap();
    assert_eq!((checked.records, checked.leases), (2, 4));
    let keys: Vec<_> = checked
        .unreadable
        .iter()
        .map(|it| it.key.as_str())
        .collect();
    assert_eq!(keys, ["record a", "lease 10.9.0.9"]);
    let text = text_of(&path);
    assert!(text.contains("\"text\":\"nonsense\""), "{text}");
    let imported = import(&path, text.as_bytes(), true).unwrap();
    assert_eq!((imported.records, imported.left_out), (1, 2));
    let store = open(&path);
    assert_eq!(names(&store.all().await.unwrap()), ["c"]);
    assert_eq!(store.unreadable().await.unwrap(), []);
}

#[tokio::test]
async fn the_records_of_a_damaged_file_are_found_and_wait_for_somebody_to_judge_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    make(&path).await;
    let expected = open(&path).all().await.unwrap();
    let damaged = fs::File::options().write(true).open(&path).unwrap();
    damaged.write_all_at(&[0; 320], 0).unwrap();
    let before = fs::read(&path).unwrap();
    let error = check(&path).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let mut text = vec![];
    let exported = export(&path, &mut text).unwrap();
    assert!(exported.damage.is_some());
    assert_eq!(exported.records, 3, "the one that was removed too");
    assert_eq!(fs::read(&path).unwrap(), before, "it was only looked at");

    let text = String::from_utf8(text).unwrap();
    let imported = import(&path, text.as_bytes(), true).unwrap();
    assert_eq!((imported.records, imported.left_out), (0, 3));
    let judged: Vec<_> = text
        .lines()
        .filter(|it| !it.contains("\"id\":\"b\""))
        .map(|it| it.replace("{\"found\"", "{\"record\""))
        .collect();
    let imported = import(&path, judged.join("\n").as_bytes(), false).unwrap();
    assert_eq!(imported.records, 2);
    let store = open(&path);
    assert_eq!(store.all().await.unwrap(), expected);
    assert_eq!(
        store.lease_counts().await.unwrap().held,
        2,
        "as the records say"
    );
}
