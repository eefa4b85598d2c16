//! The published table of crashes: written by a whole run, checked by every other.

use std::{fmt::Write as _, path::PathBuf};

use crate::{Row, Scenario};

const HEAD: &str = "# What a crash does, point by point

This page is written by `make crash`; `make test` runs a part of it and compares. A manager built with the feature
`crash-points` ends itself with SIGKILL at each point, before or after the effect of that name. Then it is started again, what
has become of the sandbox is noted (second column), the call whose answer was lost is repeated, and this must hold: the
caller has the same answer (where a sandbox stands: the same generation, address and image digests); every address has one owner; the audit is clean; nothing of the sandbox is left when it is
deleted; and another sandbox on the node, which stood there all the time, has the same process.

";

/// Where the page lies.
pub fn path() -> PathBuf {
    berth_e2e::node::root().join("docs/crash-matrix.md")
}

/// The page.
pub fn render(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    let mut scenario = None;
    for row in rows {
        if scenario != Some(row.scenario) {
            if scenario.is_some() {
                text.push('\n');
            }
            scenario = Some(row.scenario);
            writeln!(
                text,
                "## {}\n\n| crash at | before anybody asks again |\n|---|---|",
                row.scenario
            )
            .expect("writing to a string cannot fail");
        }
        writeln!(text, "{}", line(row)).expect("writing to a string cannot fail");
    }
    writeln!(text, "\n{} points.", rows.len()).expect("writing to a string cannot fail");
    text
}

/// The line of one point.
pub fn line(row: &Row) -> String {
    format!("| `{}` | {} |", row.point, row.outcome)
}

/// The points that a page has, in its order.
pub fn points(page: &str) -> Vec<&str> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect()
}

/// The lines that a page has on one scenario.
pub fn lines(page: &str, scenario: Scenario) -> Vec<&str> {
    let head = format!("## {scenario}");
    page.lines()
        .skip_while(|it| *it != head)
        .skip(1)
        .take_while(|it| !it.starts_with("## "))
        .collect()
}
