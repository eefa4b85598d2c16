//! The store while no manager runs: looked at, written out as text, made from text. What is only read is read in a copy
//! in memory, so that looking at a damaged file never changes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, BufRead, Write},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use berth_domain::{
    SandboxRecord,
    subnets::{self, Reserved},
};
use ipnet::Ipv4Net;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    database::{
        self, CATALOG, CHANGES, COLLECTED, COLLECTIONS, LEASES, Lock, META, PINS, RECORDS,
        REVISION, SETTINGS, SUBNETS, USES,
    },
    error::{StoreError, Unreadable},
    migrations::{self, KNOWN_SCHEMA},
    rows::{self, CHANGES_KEPT, Lease, put_lease, put_subnet},
};

/// What a look at a store has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    pub bytes: u64,
    pub schema: u64,
    pub revision: u64,
    pub records: u64,
    pub leases: u64,
    pub entries: u64,
    pub subnets: u64,
    pub pins: u64,
    pub uses: u64,
    pub collections: u64,
    pub changes: u64,
    /// The last change is in pieces; a start takes it back.
    pub last_change_incomplete: bool,
    pub unreadable: Vec<Unreadable>,
}

/// What was written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    pub records: usize,
    /// Entries that are written out as they are, for people to look at.
    pub unreadable: usize,
    /// The file is damaged, and for this reason. The records were found by searching its bytes.
    pub damage: Option<String>,
}

/// What was read in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub records: usize,
    pub leases: usize,
    pub entries: usize,
    pub subnets: usize,
    /// Lines of what could not be read, or was only found.
    pub left_out: usize,
    /// Where the former file is.
    pub former: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("line {number}: {problem}")]
    Line { number: usize, problem: String },
    #[error(
        "{} {holds}: it is left alone, unless `--replace` is given, which keeps it aside",
        path.display()
    )]
    NotEmpty { path: PathBuf, holds: String },
    #[error("the text cannot be read")]
    Input(#[source] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("the text cannot be written")]
    Output(#[source] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A line of the text. An entry's fields are those that it has in the store.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first line.
    BerthStore {
        schema: u64,
        revision: u64,
    },
    Setting {
        key: String,
        value: String,
    },
    Record(Value),
    Lease {
        address: Ipv4Addr,
        #[serde(flatten)]
        lease: Value,
    },
    /// Of the catalog; the key is as `service/web`.
    Entry {
        key: String,
        #[serde(flatten)]
        entry: Value,
    },
    /// A reserved subnet.
    Subnet {
        identifier: String,
        subnet: Ipv4Net,
    },
    /// A pinned image; milliseconds since 1970.
    Pin {
        image: String,
        expires_at: Option<u64>,
    },
    /// When an image was last used; milliseconds since 1970.
    Use {
        digest: String,
        at: u64,
    },
    /// A run of a collection.
    Collection {
        #[serde(flatten)]
        collection: Value,
    },
    /// What a run has deleted.
    Collected {
        collection: u64,
        object: String,
        size_bytes: u64,
    },
    /// The bytes of an entry as text, for people to look at.
    Unreadable {
        key: String,
        problem: String,
        text: String,
    },
    /// A record in the bytes of a damaged file, which may be one that was removed long ago.
    Found(Value),
}

/// Looks at every page and every entry of a store.
pub fn check(path: &Path) -> Result<Checked, StoreError> {
    let _lock = lock(path)?;
    let (database, last_change_incomplete) = database::copied(path)?;
    let schema = database::schema(&database, path)?;
    if schema < KNOWN_SCHEMA {
        let txn = database.begin_write()?;
        migrations::run(&txn, schema)?;
        txn.commit()?;
    }
    database::contain(path, || {
        let txn = database.begin_read()?;
        let (readable, mut unreadable) = rows::records(&txn, None, usize::MAX)?;
        let records = (readable.len() + unreadable.len()) as u64;
        let leases = rows::leases(&txn.open_table(LEASES)?)?;
        let count = leases.len() as u64;
        unreadable.extend(leases.into_iter().filter_map(|it| it.lease.err()));
        let (entries, unread) = rows::entries(&txn.open_table(CATALOG)?)?;
        let entries = (entries.len() + unread.len()) as u64;
        unreadable.extend(unread);
        let (subnets, unread) = rows::subnets(&txn.open_table(SUBNETS)?)?;
        let subnets = (subnets.len() + unread.len()) as u64;
        unreadable.extend(unread);
        let (collections, unread) = rows::collections(&txn.open_table(COLLECTIONS)?)?;
        let collections = (collections.len() + unread.len()) as u64;
        unreadable.extend(unread);
        let changes = txn.open_table(CHANGES)?;
        for entry in changes.iter()? {
            let (at, bytes) = entry?;
            unreadable.extend(rows::change(at.value(), bytes.value()).err());
        }
        Ok(Checked {
            bytes: fs::metadata(path)?.len(),
            schema,
            revision: rows::revision(&txn)?,
            records,
            leases: count,
            entries,
            subnets,
            pins: txn.open_table(PINS)?.len()?,
            uses: txn.open_table(USES)?.len()?,
            collections,
            changes: changes.len()?,
            last_change_incomplete,
            unreadable,
        })
    })
}

/// Writes a store out as JSON lines: a header, the settings, the records, the leases, the catalog, the reserved
/// subnets, the pins and uses of images, the collections.
pub fn export(path: &Path, output: &mut impl Write) -> Result<Exported, ExportError> {
    let _lock = lock(path)?;
    let database = match database::copied(path) {
        Ok((database, _)) => database,
        Err(StoreError::Damaged { problem, .. }) => return export_found(path, problem, output),
        Err(error) => return Err(error.into()),
    };
    let schema = database::schema(&database, path)?;
    let (lines, exported) = database::contain(path, || lines(&database, schema))?;
    for line in &lines {
        write_line(output, line)?;
    }
    output.flush().map_err(ExportError::Output)?;
    Ok(exported)
}

/// Makes a store of what `export` has written, in place of one without records, or of any when it shall be replaced.
/// Records may have been changed, added or taken out by hand.
pub fn import(path: &Path, input: impl BufRead, replace: bool) -> Result<Imported, ImportError> {
    let _lock = Lock::take(path)?;
    let there = path.try_exists().map_err(StoreError::from)?;
    if there && !replace {
        check_empty(path)?;
    }
    let fresh = database::beside(path, "import");
    database::remove_if_there(&fresh)?;
    let done = fill(&fresh, input);
    let mut imported = match done {
        Ok(imported) => imported,
        Err(error) => {
            database::remove_if_there(&fresh)?;
            return Err(error);
        }
    };
    if there && replace {
        let former = free_name(path)?;
        fs::hard_link(path, &former).map_err(StoreError::from)?;
        imported.former = Some(former);
    }
    database::put_in_place(&fresh, path)?;
    Ok(imported)
}

fn lock(path: &Path) -> Result<Lock, StoreError> {
    if !path.try_exists()? {
        return Err(StoreError::Missing {
            path: path.to_owned(),
        });
    }
    Lock::take(path)
}

fn lines(database: &Database, schema: u64) -> Result<(Vec<Line>, Exported), StoreError> {
    let txn = database.begin_read()?;
    let revision = rows::revision(&txn)?;
    let mut lines = vec![Line::BerthStore { schema, revision }];
    let mut exported = Exported {
        records: 0,
        unreadable: 0,
        damage: None,
    };
    match txn.open_table(SETTINGS) {
        Ok(table) => {
            for entry in table.iter()? {
                let (key, value) = entry?;
                let (key, value) = (key.value().to_owned(), value.value().to_owned());
                lines.push(Line::Setting { key, value });
            }
        }
        // Schema 1 has none.
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let mut add = |read: Result<Line, Unreadable>, bytes: &[u8]| match read {
        Ok(line) => {
            exported.records += usize::from(matches!(line, Line::Record(_)));
            lines.push(line);
        }
        Err(Unreadable { key, problem, .. }) => {
            exported.unreadable += 1;
            let text = String::from_utf8_lossy(bytes).into_owned();
            lines.push(Line::Unreadable { key, problem, text });
        }
    };
    // Only an entry of this schema can be read; of an older one it is known that it is JSON.
    let current = schema == KNOWN_SCHEMA;
    for entry in txn.open_table(RECORDS)?.iter()? {
        let (id, bytes) = entry?;
        let (id, bytes) = (id.value(), bytes.value());
        let read = serde_json::from_slice(bytes).map_err(|it| Unreadable::record(id, it));
        let read = match current.then(|| rows::record(id, bytes)) {
            Some(Err(entry)) => Err(entry),
            Some(Ok(_)) | None => read,
        };
        add(read.map(Line::Record), bytes);
    }
    for entry in txn.open_table(LEASES)?.iter()? {
        let (address, bytes) = entry?;
        let (address, bytes) = (Ipv4Addr::from(address.value()), bytes.value());
        let read = rows::lease(address, bytes).and_then(|_| {
            serde_json::from_slice(bytes).map_err(|it| Unreadable::other("lease", address, it))
        });
        add(read.map(|lease| Line::Lease { address, lease }), bytes);
    }
    let catalog = match txn.open_table(CATALOG) {
        Ok(table) => table,
        // Schema 2 has none.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((lines, exported)),
        Err(error) => return Err(error.into()),
    };
    for entry in catalog.iter()? {
        let (key, bytes) = entry?;
        let (key, bytes) = (key.value().to_owned(), bytes.value());
        let read = rows::entry(&key, bytes).and_then(|_| {
            serde_json::from_slice(bytes).map_err(|it| Unreadable::other("entry", &key, it))
        });
        add(read.map(|entry| Line::Entry { key, entry }), bytes);
    }
    let reserved = match txn.open_table(SUBNETS) {
        Ok(table) => table,
        // Schema 3 has none.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((lines, exported)),
        Err(error) => return Err(error.into()),
    };
    for entry in reserved.iter()? {
        let (identifier, bytes) = entry?;
        let (identifier, bytes) = (identifier.value().to_owned(), bytes.value());
        let read = rows::subnet(&identifier, bytes);
        add(
            read.map(|subnet| Line::Subnet { identifier, subnet }),
            bytes,
        );
    }
    let pins = match txn.open_table(PINS) {
        Ok(table) => table,
        // Schema 4 has none.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((lines, exported)),
        Err(error) => return Err(error.into()),
    };
    for entry in pins.iter()? {
        let (image, ends) = entry?;
        let (image, expires_at) = (image.value().to_owned(), ends.value());
        add(Ok(Line::Pin { image, expires_at }), &[]);
    }
    for entry in txn.open_table(USES)?.iter()? {
        let (digest, at) = entry?;
        let (digest, at) = (digest.value().to_owned(), at.value());
        add(Ok(Line::Use { digest, at }), &[]);
    }
    for entry in txn.open_table(COLLECTIONS)?.iter()? {
        let (id, bytes) = entry?;
        let (id, bytes) = (id.value(), bytes.value());
        let read = rows::collection(id, bytes).and_then(|_| {
            serde_json::from_slice(bytes).map_err(|it| Unreadable::other("collection", id, it))
        });
        add(
            read.map(|collection| Line::Collection { collection }),
            bytes,
        );
    }
    for entry in txn.open_table(COLLECTED)?.iter()? {
        let (key, size) = entry?;
        let (collection, object) = key.value();
        let line = Line::Collected {
            collection,
            object: object.to_owned(),
            size_bytes: size.value(),
        };
        add(Ok(line), &[]);
    }
    Ok((lines, exported))
}

fn write_line(output: &mut impl Write, line: &Line) -> Result<(), ExportError> {
    serde_json::to_writer(&mut *output, line)
        .map_err(io::Error::from)
        .and_then(|()| writeln!(output))
        .map_err(ExportError::Output)
}

/// Writes what looks like a record in the bytes of a damaged file, the newest of each id.
fn export_found(
    path: &Path,
    damage: String,
    output: &mut impl Write,
) -> Result<Exported, ExportError> {
    let bytes = fs::read(path).map_err(StoreError::from)?;
    let found = find_records(&bytes);
    let revision = found.values().map(|(record, _)| record.revision).max();
    let header = Line::BerthStore {
        schema: KNOWN_SCHEMA,
        revision: revision.unwrap_or_default(),
    };
    write_line(output, &header)?;
    let records = found.len();
    for (_, value) in found.into_values() {
        write_line(output, &Line::Found(value))?;
    }
    output.flush().map_err(ExportError::Output)?;
    Ok(Exported {
        records,
        unreadable: 0,
        damage: Some(damage),
    })
}

/// How a record begins, in its place and in a change: as it is written, and with its keys sorted by a migration or an
/// import.
const RECORD_BEGINS: [&[u8]; 2] = [b"{\"id\":\"", b"{\"addresses\":"];

fn find_records(bytes: &[u8]) -> BTreeMap<String, (SandboxRecord, Value)> {
    let mut found = BTreeMap::<String, (SandboxRecord, Value)>::new();
    let begins =
        (0..bytes.len()).filter(|&at| RECORD_BEGINS.iter().any(|it| bytes[at..].starts_with(it)));
    for at in begins {
        let mut values = serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else {
            continue;
        };
        let id = value["id"].as_str().unwrap_or_default().to_owned();
        let Ok(record) = rows::record(&id, value.to_string().as_bytes()) else {
            continue;
        };
        let newer = |(known, _): &(SandboxRecord, Value)| known.revision < record.revision;
        if found.get(&id).is_none_or(newer) {
            found.insert(id, (record, value));
        }
    }
    found
}

fn check_empty(path: &Path) -> Result<(), ImportError> {
    let holds = |holds: String| ImportError::NotEmpty {
        path: path.to_owned(),
        holds,
    };
    let database = match database::copied(path) {
        Ok((database, _)) => database,
        Err(StoreError::Damaged { problem, .. }) => {
            return Err(holds(format!(
                "is damaged ({problem}) and may hold records"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    database::schema(&database, path)?;
    let (records, entries, subnets) = database::contain(path, || {
        let txn = database.begin_read()?;
        let entries = match txn.open_table(CATALOG) {
            Ok(table) => table.len()?,
            Err(redb::TableError::TableDoesNotExist(_)) => 0,
            Err(error) => return Err(error.into()),
        };
        let subnets = match txn.open_table(SUBNETS) {
            Ok(table) => table.len()?,
            Err(redb::TableError::TableDoesNotExist(_)) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok::<_, StoreError>((txn.open_table(RECORDS)?.len()?, entries, subnets))
    })?;
    match (records, entries, subnets) {
        (0, 0, 0) => Ok(()),
        (0, 0, subnets) => Err(holds(format!("holds {subnets} reserved subnets"))),
        (0, entries, _) => Err(holds(format!("holds {entries} entries of the catalog"))),
        (records, _, _) => Err(holds(format!("holds {records} records"))),
    }
}

fn free_name(path: &Path) -> Result<PathBuf, StoreError> {
    for number in 1.. {
        let name = database::beside(path, &format!("replaced-{number}"));
        if !name.try_exists()? {
            return Ok(name);
        }
    }
    unreachable!("no folder has so many files")
}

/// Makes the store at `path` of the lines.
fn fill(path: &Path, input: impl BufRead) -> Result<Imported, ImportError> {
    let mut lines = input.lines().enumerate();
    let first = lines.next().map(|(_, line)| parse(1, line)).transpose()?;
    let Some(Line::BerthStore { schema, revision }) = first else {
        return Err(at(1, "must be the header that `store export` writes"));
    };
    if !(1..=KNOWN_SCHEMA).contains(&schema) {
        let problem = format!(
            "the schema is {schema}, this program knows schemas up to {KNOWN_SCHEMA}: import it with the version of \
             Berth that wrote it, or a newer one"
        );
        return Err(at(1, problem));
    }
    let database = database::make(path, schema)?;
    let txn = database.begin_write().map_err(StoreError::from)?;
    let mut imported = Imported {
        records: 0,
        leases: 0,
        entries: 0,
        subnets: 0,
        left_out: 0,
        former: None,
    };
    let mut numbers = BTreeMap::new();
    let mut entries_newest = 0;
    let mut reserved = Reserved::new();
    for (number, line) in lines {
        let number = number + 1;
        match parse(number, line)? {
            Line::BerthStore { .. } => return Err(at(number, "there is one header")),
            Line::Setting { key, value } => {
                let mut table = txn.open_table(SETTINGS).map_err(StoreError::from)?;
                table
                    .insert(key.as_str(), value.as_str())
                    .map_err(StoreError::from)?;
            }
            Line::Record(value) => {
                let id = value["id"].as_str().unwrap_or_default().to_owned();
                let mut table = txn.open_table(RECORDS).map_err(StoreError::from)?;
                table
                    .insert(id.as_str(), value.to_string().as_bytes())
                    .map_err(StoreError::from)?;
                if numbers.insert(id.clone(), number).is_some() {
                    return Err(at(number, format!("there is a record of {id} already")));
                }
                imported.records += 1;
            }
            Line::Lease { address, lease } => {
                rows::lease(address, lease.to_string().as_bytes()).map_err(|it| at(number, it))?;
                let mut table = txn.open_table(LEASES).map_err(StoreError::from)?;
                let before = table
                    .insert(u32::from(address), lease.to_string().as_bytes())
                    .map_err(StoreError::from)?;
                if before.is_some() {
                    return Err(at(number, format!("there is a lease of {address} already")));
                }
                imported.leases += 1;
            }
            Line::Entry { key, entry } => {
                let read = rows::entry(&key, entry.to_string().as_bytes());
                let read = read.map_err(|it| at(number, it))?;
                entries_newest = entries_newest.max(read.revision);
                let mut table = txn.open_table(CATALOG).map_err(StoreError::from)?;
                let before = table
                    .insert(key.as_str(), entry.to_string().as_bytes())
                    .map_err(StoreError::from)?;
                if before.is_some() {
                    return Err(at(number, format!("there is an entry {key} already")));
                }
                imported.entries += 1;
            }
            Line::Subnet { identifier, subnet } => {
                reserve(&txn, &mut reserved, identifier, subnet).map_err(|it| at(number, it))?;
                imported.subnets += 1;
            }
            Line::Pin { image, expires_at } => {
                let mut table = txn.open_table(PINS).map_err(StoreError::from)?;
                let before = table.insert(image.as_str(), expires_at);
                if before.map_err(StoreError::from)?.is_some() {
                    return Err(at(number, format!("there is a pin of {image} already")));
                }
            }
            Line::Use { digest, at } => {
                let mut table = txn.open_table(USES).map_err(StoreError::from)?;
                let inserted = table.insert(digest.as_str(), at);
                inserted.map_err(StoreError::from)?;
            }
            Line::Collection { collection } => {
                let id = collection["id"].as_u64().unwrap_or_default();
                let bytes = collection.to_string();
                rows::collection(id, bytes.as_bytes()).map_err(|it| at(number, it))?;
                let mut table = txn.open_table(COLLECTIONS).map_err(StoreError::from)?;
                let before = table.insert(id, bytes.as_bytes());
                if before.map_err(StoreError::from)?.is_some() {
                    return Err(at(number, format!("there is a collection {id} already")));
                }
            }
            Line::Collected {
                collection,
                object,
                size_bytes,
            } => {
                let mut table = txn.open_table(COLLECTED).map_err(StoreError::from)?;
                let inserted = table.insert((collection, object.as_str()), size_bytes);
                inserted.map_err(StoreError::from)?;
            }
            Line::Unreadable { .. } | Line::Found(_) => imported.left_out += 1,
        }
    }
    migrations::run(&txn, schema)?;
    let newest = settle(&txn, &numbers)?.max(revision).max(entries_newest);
    // Nobody who knows a revision of the former store takes a change of this one for one that was seen.
    txn.open_table(META)
        .and_then(|mut it| Ok(it.insert(REVISION, newest + CHANGES_KEPT)?.map(|_| ())))
        .map_err(StoreError::from)?;
    txn.commit().map_err(StoreError::from)?;
    Ok(imported)
}

fn reserve(
    txn: &WriteTransaction,
    reserved: &mut Reserved,
    identifier: String,
    subnet: Ipv4Net,
) -> Result<(), String> {
    subnets::check_identifier(&identifier).map_err(|it| format!("the identifier {it}"))?;
    if subnet != subnet.trunc() {
        return Err(format!("{subnet} has bits behind its prefix"));
    }
    let overlaps = |it: &Ipv4Net| it.contains(&subnet) || subnet.contains(it);
    if let Some((other, net)) = reserved.iter().find(|(_, it)| overlaps(it)) {
        return Err(format!(
            "{subnet} overlaps {net}, which is that of {other:?}"
        ));
    }
    let mut table = txn.open_table(SUBNETS).map_err(|it| it.to_string())?;
    put_subnet(&mut table, &identifier, subnet).map_err(|it| it.to_string())?;
    match reserved.insert(identifier.clone(), subnet) {
        Some(_) => Err(format!("there is a subnet of {identifier:?} already")),
        None => Ok(()),
    }
}

fn parse(number: usize, line: io::Result<String>) -> Result<Line, ImportError> {
    let line = line.map_err(ImportError::Input)?;
    serde_json::from_str(&line).map_err(|it| at(number, it))
}

fn at(number: usize, problem: impl fmt::Display) -> ImportError {
    ImportError::Line {
        number,
        problem: problem.to_string(),
    }
}

/// Makes sure that every record can be read and holds its addresses alone. Returns the newest revision.
fn settle(txn: &WriteTransaction, numbers: &BTreeMap<String, usize>) -> Result<u64, ImportError> {
    let records = txn.open_table(RECORDS).map_err(StoreError::from)?;
    let mut leases = txn.open_table(LEASES).map_err(StoreError::from)?;
    let mut newest = 0;
    let mut held = BTreeSet::new();
    for (id, &number) in numbers {
        let record = match records.get(id.as_str()).map_err(StoreError::from)? {
            Some(bytes) => rows::record(id, bytes.value()).map_err(|it| at(number, it))?,
            None => continue,
        };
        newest = newest.max(record.revision).max(record.generation.0);
        for net in &record.addresses {
            let IpAddr::V4(address) = net.addr() else {
                continue;
            };
            if !held.insert(address) {
                return Err(at(number, format!("{address} is held by two records")));
            }
            let lease = Lease {
                address,
                owner: record.id.clone(),
                generation: record.generation,
                released_at: None,
                boot_id: record.boot_id.clone(),
            };
            put_lease(&mut leases, &lease)?;
        }
    }
    Ok(newest)
}
