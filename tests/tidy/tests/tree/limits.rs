//! `docs/limits.md`: every bound of the product, as the code has it, with the test that drives it to its edge. A constant
//! that is named like a bound and is in no list fails.

mod api;
mod node;
mod processes;
mod reach;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use self::value::{Value, evaluate, shown};
use crate::none;
use crate::sources::tokens;
use crate::workspace::{files_with_extension, read};

const DOCUMENT: &str = "docs/limits.md";
const BEGIN: &str = "<!-- from here on written by `make limits` -->\n";
const METRICS: &str = "services/lib/telemetry/src/instruments.rs";

/// Refusals are calls that ended with the code of their reason.
const CALLS: &str = "rpc.server.call.duration";
const NONE: &str = "";

/// Bounds of one subject, in one file.
pub(crate) struct Group {
    pub(crate) title: &'static str,
    /// Who keeps to it.
    pub(crate) owner: &'static str,
    pub(crate) file: &'static str,
    pub(crate) rows: &'static [Limit],
}

#[derive(Clone, Copy)]
pub(crate) struct Limit {
    bound: Bound,
    is_bytes: bool,
    what: &'static str,
    /// What happens at it: the reason in capitals, else in words.
    then: &'static str,
    metric: &'static str,
    /// The test that drives it, by the name of its function.
    test: &'static str,
}

#[derive(Clone, Copy)]
enum Bound {
    /// By the constant's name.
    Constant(&'static str),
    /// By its key, with the struct and the path in it that has its default, and the constant that bounds it.
    Setting {
        key: &'static str,
        of: &'static str,
        path: &'static str,
        most: &'static str,
    },
    /// By the struct and the path in it whose default it is.
    Field {
        of: &'static str,
        path: &'static str,
    },
}

/// A number.
pub(crate) const fn n(
    name: &'static str,
    what: &'static str,
    then: &'static str,
    metric: &'static str,
    test: &'static str,
) -> Limit {
    Limit {
        bound: Bound::Constant(name),
        is_bytes: false,
        what,
        then,
        metric,
        test,
    }
}

/// A size in bytes.
pub(crate) const fn b(
    name: &'static str,
    what: &'static str,
    then: &'static str,
    metric: &'static str,
    test: &'static str,
) -> Limit {
    n(name, what, then, metric, test).bytes()
}

/// What can be configured.
pub(crate) const fn s(
    key: &'static str,
    most: &'static str,
    what: &'static str,
    then: &'static str,
    metric: &'static str,
    test: &'static str,
) -> Limit {
    Limit {
        bound: Bound::Setting {
            key,
            of: "Config",
            path: key,
            most,
        },
        ..n("", what, then, metric, test)
    }
}

impl Limit {
    pub(crate) const fn bytes(self) -> Self {
        Self {
            is_bytes: true,
            ..self
        }
    }

    /// What looks like a setting in the code and cannot be configured.
    pub(crate) const fn fixed(self, of: &'static str) -> Self {
        match self.bound {
            Bound::Setting { path, .. } => Self {
                bound: Bound::Field { of, path },
                ..self
            },
            Bound::Constant(_) | Bound::Field { .. } => self,
        }
    }

    /// Where its default is not that of the configuration's struct.
    pub(crate) const fn from(self, of: &'static str, path: &'static str) -> Self {
        let bound = match self.bound {
            Bound::Setting { key, most, .. } => Bound::Setting {
                key,
                of,
                path,
                most,
            },
            bound @ (Bound::Constant(_) | Bound::Field { .. }) => bound,
        };
        Self { bound, ..self }
    }
}

fn groups() -> impl Iterator<Item = &'static Group> {
    [api::ALL, node::ALL, reach::ALL, processes::ALL]
        .into_iter()
        .flatten()
}

/// The sources of what is shipped, as tokens.
struct Sources(BTreeMap<PathBuf, Vec<String>>);

impl Sources {
    fn of_the_tree() -> Self {
        let shipped = files_with_extension("rs").into_iter().filter(|it| {
            // The command line bounds its own call, and nobody else's.
            let of_the_product = it.starts_with("services") && !it.starts_with("services/berth");
            of_the_product
                && !it
                    .iter()
                    .any(|part| part == "gen" || part == "tests" || part == "tests.rs")
        });
        Self(shipped.map(|it| (it.clone(), tokens(&read(it)))).collect())
    }

    fn constant(&self, file: &Path, name: &str) -> Result<Value, String> {
        let in_file = self.0.get(file).and_then(|row| value::constant(row, name));
        let found = match in_file {
            Some(found) => found,
            None => {
                let mut all = self.0.values().filter_map(|row| value::constant(row, name));
                let found = all.next();
                let found = found.ok_or_else(|| format!("no constant {name}"))?;
                match all.next() {
                    None => found,
                    Some(_) => return Err(format!("several constants {name}")),
                }
            }
        };
        evaluate(found, &|it| self.constant(file, it))
    }

    fn value(&self, file: &str, limit: &Limit) -> Result<String, String> {
        let path = Path::new(file);
        match limit.bound {
            Bound::Constant(name) => Ok(shown(self.constant(path, name)?, limit.is_bytes)),
            Bound::Setting { of, path: at, .. } | Bound::Field { of, path: at } => {
                let row = self.0.get(path).ok_or_else(|| format!("no file {file}"))?;
                let found = value::default(row, of, at);
                let found = found.ok_or_else(|| format!("no default of {of}.{at}"))?;
                let value = evaluate(found, &|it| self.constant(path, it))?;
                Ok(shown(value, limit.is_bytes))
            }
        }
    }
}

/// Whether a constant is named like a bound.
fn is_bound(name: &str) -> bool {
    let ends = ["_MAX", "_MOST", "_LIMIT"];
    let is = ["MAX", "MOST", "LIMIT"];
    ends.iter().any(|it| name.ends_with(it)) || name.starts_with("MAX_") || is.contains(&name)
}

/// The constants of a file that are named like bounds and are worth a number or a time.
fn bounds(row: &[String]) -> BTreeSet<&str> {
    let consts = row.windows(4).filter(|it| it[0] == "const" && it[2] == ":");
    let numbers = consts.filter(|it| it[3] != "&");
    let names = numbers.map(|it| it[1].as_str());
    names.filter(|it| is_bound(it)).collect()
}

fn named<'a>(groups: impl Iterator<Item = &'a Group>) -> BTreeSet<(&'a str, &'a str)> {
    let rows = groups.flat_map(|group| group.rows.iter().map(|it| (group.file, it)));
    rows.flat_map(|(file, it)| match it.bound {
        Bound::Constant(name) => [(file, name), (file, name)],
        Bound::Setting { key, most, .. } => [(file, key), (file, most)],
        Bound::Field { path, .. } => [(file, path), (file, path)],
    })
    .collect()
}

#[test]
fn every_constant_that_is_named_like_a_bound_is_in_the_list_of_limits() {
    let others = processes::NONE_OF_OURS
        .iter()
        .map(|(file, name, _)| (*file, *name));
    let listed: BTreeSet<_> = named(groups()).into_iter().chain(others.clone()).collect();
    let sources = Sources::of_the_tree();
    let gone = others.filter(|(file, name)| {
        let row = sources.0.get(Path::new(file));
        row.is_none_or(|row| value::constant(row, name).is_none())
    });
    let mut complaints: Vec<_> = gone
        .map(|(file, name)| format!("{file}: there is no constant {name}"))
        .collect();
    for (file, row) in &sources.0 {
        let source = read(file);
        // Of a file's own tests, nothing is a bound of the product.
        let shipped = source
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        let row = if shipped.len() == source.len() {
            row.clone()
        } else {
            tokens(shipped)
        };
        let file = file.to_str().unwrap();
        let missing = bounds(&row)
            .into_iter()
            .filter(|it| !listed.contains(&(file, it)));
        complaints.extend(
            missing.map(|it| format!("{file}: {it} is in no list of tests/tidy/tests/tree/limits")),
        );
    }
    none(complaints);
}

#[test]
fn what_is_named_like_a_bound_is_seen_wherever_it_stands() {
    let row = tokens(
        "const CALLS_MAX: usize = 1; impl It { pub const WAIT_LIMIT: Duration = D; } const FILE_MAX: &str = \"/proc\";
         const PART: usize = 2; mod a { const MAX_PARTS: u8 = 3; } static LIMIT: u8 = 4;",
    );
    assert_eq!(
        bounds(&row),
        ["CALLS_MAX", "MAX_PARTS", "WAIT_LIMIT"].into()
    );
}

/// Every test of the tree by its name, with its file.
fn tests() -> BTreeMap<String, Vec<PathBuf>> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for file in files_with_extension("rs") {
        let source = read(&file);
        let mut is_test = false;
        for line in source.lines().map(str::trim) {
            if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((before, rest)) = line.split_once("fn ")
                && matches!(before, "" | "async ")
                && std::mem::take(&mut is_test)
            {
                let name = rest.split(['(', '<']).next().unwrap_or_default();
                all.entry(name.to_owned()).or_default().push(file.clone());
            }
        }
    }
    all
}

fn document(text: &str) -> Result<String, Vec<String>> {
    let (sources, tests) = (Sources::of_the_tree(), tests());
    let metrics = read(METRICS);
    let mut complaints = vec![];
    let written = text.split(BEGIN).next().unwrap_or_default();
    let mut all = format!("{written}{BEGIN}");
    for group in groups() {
        let Group {
            title, owner, file, ..
        } = group;
        let _ = writeln!(
            all,
            "\n## {title}\n\nKept by {owner}, in [`{file}`](../{file}).\n\n| what | at most | name | then | metric | test |\n\
             |---|---|---|---|---|---|"
        );
        for it in group.rows {
            let (value, name) = match (sources.value(file, it), it.bound) {
                (Err(problem), _) => {
                    complaints.push(format!("{file}: {}: {problem}", it.what));
                    continue;
                }
                (Ok(value), Bound::Constant(name) | Bound::Field { path: name, .. }) => {
                    (value, format!("`{name}`"))
                }
                (Ok(value), Bound::Setting { key, most: "", .. }) => {
                    (format!("{value}, by default"), format!("setting `{key}`"))
                }
                (Ok(value), Bound::Setting { key, most, .. }) => {
                    match sources.constant(Path::new(file), most) {
                        Ok(most) => {
                            let most = shown(most, it.is_bytes);
                            let value = format!("{value}, by default; most {most}");
                            (value, format!("setting `{key}`"))
                        }
                        Err(problem) => {
                            complaints.push(format!("{file}: {key}: {problem}"));
                            continue;
                        }
                    }
                }
            };
            // Of several with one name, the one beside it is meant.
            let of = tests.get(it.test).map_or(&[][..], Vec::as_slice);
            let beside = of.iter().find(|it| it.starts_with(folder_of(file)));
            let Some(of) = beside.or(of.first().filter(|_| of.len() == 1)) else {
                complaints.push(format!("{file}: {}: no test {}", it.what, it.test));
                continue;
            };
            if !it.metric.is_empty() && !metrics.contains(&format!("\"{}\"", it.metric)) {
                complaints.push(format!("{file}: {}: no metric {}", it.what, it.metric));
            }
            let metric = match it.metric {
                "" => "none".to_owned(),
                name => format!("`{name}`"),
            };
            let of = of.to_str().unwrap();
            let _ = writeln!(
                all,
                "| {} | {value} | {name} | {} | {metric} | [{}](../{of}) |",
                it.what,
                it.then,
                it.test.replace('_', " ")
            );
        }
    }
    match complaints.is_empty() {
        true => Ok(all),
        false => Err(complaints),
    }
}

/// The package that a file is of.
fn folder_of(file: &str) -> &str {
    file.split_once("/src/")
        .map_or(file, |(package, _)| package)
}

#[test]
fn the_document_of_limits_is_what_the_code_says_and_its_tests_and_metrics_exist() {
    let text = read(DOCUMENT);
    let now = document(&text).unwrap_or_else(|complaints| {
        none(complaints);
        unreachable!("it had complaints")
    });
    // `make limits`.
    if std::env::var_os("BERTH_WRITE_DOCUMENTS").is_some() {
        return std::fs::write(berth_tidy::root().join(DOCUMENT), now).unwrap();
    }
    assert!(now == text, "{DOCUMENT} is stale: run `make limits`");
}
