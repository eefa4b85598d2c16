//! `sandbox-manager store`, and how the manager refuses a store that is not as it should be.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use berth_store::Store;

/// From `sysexits.h`: the configuration, and the store's file.
const EX_CONFIG: i32 = 78;
const EX_DATAERR: i32 = 65;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let dir = |name: &str| home.0.path().join(name);
        let text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\nlog_dir = {:?}\nsocket = {:?}\n",
            dir("state"),
            dir("run"),
            dir("log"),
            dir("manager.sock"),
        );
        std::fs::write(home.config(), text).unwrap();
        home
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("manager.toml")
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("state/berth.redb")
    }

    fn run(&self, arguments: &[&str]) -> Said {
        self.run_with(arguments, "")
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Said {
        let mut running = Command::new(env!("CARGO_BIN_EXE_sandbox-manager"))
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have ended before it read anything.
        let _ = running.stdin.take().unwrap().write_all(input.as_bytes());
        Said::from(running.wait_with_output().unwrap())
    }
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(it: Output) -> Self {
        Self {
            code: it.status.code(),
            out: String::from_utf8(it.stdout).unwrap(),
            err: String::from_utf8(it.stderr).unwrap(),
        }
    }
}

const EMPTY: &str = "{\"berth_store\":{\"schema\":2,\"revision\":7}}\n";

fn tear(store: &Path) {
    let bytes = std::fs::read(store).unwrap();
    std::fs::write(store, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn a_store_is_made_from_text_looked_at_and_written_out_again() {
    let home = Home::new();
    let said = home.run(&["store", "check"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("there is no store at"), "{}", said.err);

    let said = home.run_with(&["store", "import", "-"], EMPTY);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let said = home.run(&["store", "check"]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), ""));
    assert!(said.err.contains("schema 5, revision"), "{}", said.err);
    let said = home.run(&["store", "export", "-"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.starts_with("{\"berth_store\":"), "{}", said.out);

    let file = home.0.path().join("export.jsonl");
    let to = ["store", "export", file.to_str().unwrap()];
    assert_eq!(home.run(&to).code, Some(0));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), said.out);
    let said = home.run(&to);
    assert_eq!(said.code, Some(1), "a file is never written over");
    let said = home.run(&["store", "import", file.to_str().unwrap()]);
    assert_eq!(said.code, Some(0), "{}", said.err);
}

#[test]
fn a_damaged_store_is_refused_by_the_manager_and_replaced_by_an_import() {
    let home = Home::new();
    assert_eq!(
        home.run_with(&["store", "import", "-"], EMPTY).code,
        Some(0)
    );
    tear(&home.store());
    let store = home.store();
    let store = store.to_str().unwrap();
    for arguments in [&[][..], &["store", "check"]] {
        let said = home.run(arguments);
        assert_eq!(said.code, Some(EX_DATAERR), "{}", said.err);
        for part in [store, "is damaged", "store check", "store import --replace"] {
            assert!(said.err.contains(part), "{part}: {}", said.err);
        }
        assert!(!said.err.contains("panicked"), "{}", said.err);
    }
    let said = home.run(&["store", "export", "-"]);
    assert_eq!(said.code, Some(EX_DATAERR), "{}", said.err);
    assert!(said.err.contains("is damaged"), "{}", said.err);

    let said = home.run_with(&["store", "import", "-"], EMPTY);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("--replace"), "{}", said.err);
    let said = home.run_with(&["store", "import", "--replace", "-"], EMPTY);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("berth.redb.replaced-1"), "{}", said.err);
    assert_eq!(home.run(&["store", "check"]).code, Some(0));
}

#[test]
fn what_newer_programs_wrote_is_refused_by_its_schema() {
    let home = Home::new();
    let newer = EMPTY.replace("\"schema\":2", "\"schema\":99");
    let said = home.run_with(&["store", "import", "-"], &newer);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("the schema is 99"), "{}", said.err);
}

#[test]
fn while_a_manager_has_the_store_the_commands_and_a_second_manager_say_so() {
    let home = Home::new();
    std::fs::create_dir_all(home.store().parent().unwrap()).unwrap();
    let subnet = "10.87.0.0/16".parse().unwrap();
    let _held = Store::open(&home.store(), subnet, std::time::Duration::ZERO).unwrap();
    for arguments in [
        &[][..],
        &["store", "check"],
        &["store", "export", "-"],
        &["store", "import", "--replace", "-"],
    ] {
        let said = home.run_with(arguments, EMPTY);
        assert_eq!(said.code, Some(1), "{arguments:?}: {}", said.err);
        assert!(said.err.contains("in use by another"), "{}", said.err);
    }
}

#[test]
fn a_bad_configuration_ends_a_store_command_with_78() {
    let home = Home::new();
    std::fs::write(home.config(), "colour = 1\n").unwrap();
    let said = home.run(&["store", "check"]);
    assert_eq!(said.code, Some(EX_CONFIG), "{}", said.err);
    assert!(said.err.contains("colour"), "{}", said.err);
}
