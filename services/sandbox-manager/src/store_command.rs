//! `sandbox-manager store`: what somebody needs whose store the manager refuses. It says on standard error what it found,
//! so that standard output is the text alone.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use berth_store::{Checked, ExportError, Exported, ImportError, Imported};

use crate::config::{Config, STORE_FILE};

#[derive(Debug, clap::Subcommand)]
pub enum StoreCommand {
    /// Verifies every page and every entry, and changes nothing.
    Check,
    /// Writes the store out as JSON lines; of a damaged file, what looks like records.
    Export {
        /// A file that does not exist yet, or `-` for standard output.
        file: PathBuf,
    },
    /// Makes the store from what `export` has written.
    Import {
        /// A file, or `-` for standard input.
        file: PathBuf,
        /// Replaces a store that has records or is damaged; its file is kept aside.
        #[arg(long)]
        replace: bool,
    },
}

/// How a command went that did what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    /// The store has something that cannot be read.
    Lacking,
}

impl StoreCommand {
    pub fn run(&self, config: &Config) -> anyhow::Result<Outcome> {
        let store = config.state_dir.join(STORE_FILE);
        match self {
            Self::Check => check(&store),
            Self::Export { file } => export(&store, file),
            Self::Import { file, replace } => import(&store, file, *replace),
        }
    }
}

fn check(store: &Path) -> anyhow::Result<Outcome> {
    let Checked {
        bytes,
        schema,
        revision,
        records,
        leases,
        entries,
        subnets,
        pins,
        uses,
        collections,
        changes,
        last_change_incomplete,
        unreadable,
    } = berth_store::check(store)?;
    say(&format!(
        "{}: {bytes} bytes, schema {schema}, revision {revision}, {records} records, {leases} leases, \
         {entries} entries of the catalog, {subnets} reserved subnets, {pins} pins and {uses} uses of images, {collections} collections, \
         {changes} changes",
        store.display()
    ));
    if last_change_incomplete {
        say("the last change is not complete on disk; a start takes it back");
    }
    for entry in &unreadable {
        say(&format!("the {entry}"));
    }
    Ok(outcome(unreadable.is_empty()))
}

fn export(store: &Path, file: &Path) -> anyhow::Result<Outcome> {
    let exported = if file == Path::new("-") {
        berth_store::export(store, &mut BufWriter::new(io::stdout().lock()))
    } else {
        // Specs may hold what is not for everybody.
        let output = File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(file)
            .with_context(|| format!("making {}", file.display()))?;
        let exported = berth_store::export(store, &mut BufWriter::new(&output));
        output.sync_all()?;
        exported
    };
    let exported = exported.map_err(|error| match error {
        ExportError::Store(error) => anyhow::Error::from(error),
        error @ ExportError::Output(_) => error.into(),
    })?;
    let Exported {
        records,
        unreadable,
        damage,
    } = exported;
    match &damage {
        None => say(&format!("{records} records written")),
        Some(damage) => say(&format!(
            "{} is damaged: {damage}. {records} records were found in its bytes, the newest of each id, maybe of \
             sandboxes that are long gone: write `record` for `found` where one shall be imported",
            store.display()
        )),
    }
    if unreadable > 0 {
        say(&format!(
            "{unreadable} entries cannot be read; they are in the lines `unreadable`"
        ));
    }
    Ok(outcome(unreadable == 0 && damage.is_none()))
}

fn import(store: &Path, file: &Path, replace: bool) -> anyhow::Result<Outcome> {
    if let Some(folder) = store.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let imported = if file == Path::new("-") {
        berth_store::import(store, io::stdin().lock(), replace)
    } else {
        let input = File::open(file).with_context(|| format!("opening {}", file.display()))?;
        berth_store::import(store, BufReader::new(input), replace)
    };
    let Imported {
        records,
        leases,
        entries,
        subnets,
        left_out,
        former,
    } = imported
        .map_err(|error| match error {
            ImportError::Store(error) => anyhow::Error::from(error),
            error @ (ImportError::Line { .. }
            | ImportError::NotEmpty { .. }
            | ImportError::Input(_)) => error.into(),
        })
        .with_context(|| format!("importing {}", file.display()))?;
    say(&format!(
        "{records} records, {leases} leases, {entries} entries of the catalog and {subnets} reserved subnets are in {}",
        store.display()
    ));
    if left_out > 0 {
        say(&format!(
            "{left_out} lines `unreadable` or `found` were left out"
        ));
    }
    if let Some(former) = former {
        say(&format!("the former file is {}", former.display()));
    }
    Ok(Outcome::Good)
}

fn outcome(good: bool) -> Outcome {
    if good {
        Outcome::Good
    } else {
        Outcome::Lacking
    }
}

fn say(text: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stderr(), "{text}");
}
