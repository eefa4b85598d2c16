//! Files that are torn, or something else altogether.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use berth_domain::SandboxRecord;
use berth_store::StoreError;

use super::{file, open, run, try_open};

struct Made {
    records: Vec<SandboxRecord>,
    /// As it lies on disk while it is open, and when it was closed.
    open: Vec<u8>,
    closed: Vec<u8>,
}

async fn make() -> Made {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    for number in 0..20 {
        run(&store, &format!("s-{number}")).await;
    }
    let records = store.all().await.unwrap();
    let open = fs::read(&path).unwrap();
    drop(store);
    Made {
        records,
        open,
        closed: fs::read(&path).unwrap(),
    }
}

/// What came of a file: refused by name and left as it was, or all that was in it.
async fn refused(path: &Path, bytes: &[u8], made: &Made) -> bool {
    fs::write(path, bytes).unwrap();
    match try_open(path) {
        Ok(store) => {
            let records = store.all().await.unwrap();
            // A manager that was killed may lose the one change that was not complete on disk.
            let lost = bytes.len() == made.open.len() && store.revision().await.unwrap() == 39;
            for (record, expected) in records.iter().zip(&made.records) {
                match lost && expected.revision == 40 {
                    true => assert_eq!(record.revision, 39),
                    false => assert_eq!(record, expected),
                }
            }
            assert_eq!(records.len(), made.records.len());
            assert_eq!(store.unreadable().await.unwrap(), []);
            false
        }
        Err(error) => {
            assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
            let said = error.to_string();
            assert!(said.contains(path.to_str().unwrap()), "{said}");
            assert!(said.contains("store check"), "{said}");
            true
        }
    }
}

#[tokio::test]
async fn a_byte_that_was_flipped_is_noticed_at_the_start_or_lies_where_nothing_is() {
    let made = make().await;
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    for whole in [&made.closed, &made.open] {
        let (mut noticed, mut harmless) = (0, 0);
        for at in (0..330).step_by(5).chain((330..whole.len()).step_by(4001)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            match refused(&path, &bytes, &made).await {
                true => noticed += 1,
                false => harmless += 1,
            }
        }
        assert!(noticed > 20 && harmless > 20, "{noticed}, {harmless}");
    }
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_refused_and_left_as_it_is() {
    let made = make().await;
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let lengths = [0, 1, 9, 300, 320, 4096, 4097, 8192, 40_000];
    for length in lengths
        .into_iter()
        .chain((50_000..made.closed.len()).step_by(20_011))
    {
        let bytes = &made.closed[..length];
        assert!(refused(&path, bytes, &made).await, "{length}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{length}");
    }
}

#[tokio::test]
async fn what_was_never_a_store_is_refused_and_left_as_it_is() {
    let made = make().await;
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let text = b"hello\n".repeat(3000);
    for bytes in [&[][..], b"hello\n", &text, &[0; 512], &[0; 300_000]] {
        assert!(refused(&path, bytes, &made).await, "{} bytes", bytes.len());
        let error = berth_store::check(&path).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        assert_eq!(error.to_string().contains("empty"), bytes.is_empty());
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    fs::remove_file(&path).unwrap();
    drop(redb::Database::create(&path).unwrap());
    let error = try_open(&path).unwrap_err();
    assert!(error.to_string().contains("no store of Berth"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_damaged_while_it_is_open_fails_calls_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    for number in 0..200 {
        run(&store, &format!("s-{number}")).await;
    }
    drop(store);
    let store = open(&path);
    let under = fs::File::options().write(true).open(&path).unwrap();
    let length = under.metadata().unwrap().len();
    for at in (4096..length).step_by(4096) {
        under.write_all_at(&[0xee; 4096], at).unwrap();
    }
    // The records were read when it was opened, and are cached; the changes were not.
    let error = store.watch(0).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    // It cannot be opened again, and each call says so.
    let error = store.revision().await.unwrap_err();
    assert!(matches!(error, StoreError::Failed { .. }), "{error:?}");
}
