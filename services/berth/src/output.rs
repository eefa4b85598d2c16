//! Where text goes and how it looks: the only writer to standard output and standard error.
//! It does not know what the objects mean.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::Format;

/// Prints objects in the form that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    pub(crate) fn is_for_people(&self) -> bool {
        self.format == Format::Table
    }

    /// Prints an object; `for_people` makes its table form.
    pub(crate) fn object<T: Serialize>(
        &self,
        object: &T,
        for_people: impl FnOnce() -> String,
    ) -> io::Result<()> {
        match self.format {
            Format::Table => print(&for_people()),
            Format::Json => print(&serde_json::to_string_pretty(object).map_err(io::Error::other)?),
            Format::Yaml => print(&serde_saphyr::to_string(object).map_err(io::Error::other)?),
        }
    }

    /// Prints one object of a stream: JSON on one line, YAML as a document of its own.
    pub(crate) fn event<T: Serialize>(
        &self,
        event: &T,
        for_people: impl FnOnce() -> Option<String>,
    ) -> io::Result<()> {
        match self.format {
            Format::Table => for_people().map_or(Ok(()), |line| print(&line)),
            Format::Json => print(&serde_json::to_string(event).map_err(io::Error::other)?),
            Format::Yaml => {
                let document = serde_saphyr::to_string(event).map_err(io::Error::other)?;
                print(&format!("---\n{document}"))
            }
        }
    }
}

/// Prints text and ends its line.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.is_empty() && !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()
}

/// Prints bytes as they are.
pub(crate) fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Prints a line for people to standard error. A reader that has gone away is no failure. Names in it may be a container's
/// own, so what a terminal would act on is written out.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", without_controls(line));
}

fn without_controls(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    for it in line.chars() {
        match it {
            '\n' | '\t' => shown.push(it),
            it if it.is_control() => shown.extend(it.escape_default()),
            it => shown.push(it),
        }
    }
    shown
}

/// Lays rows out in columns below their titles.
pub(crate) fn table<const N: usize>(titles: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(titles);
    table.add_rows(rows.into_iter().map(|row| row.map(shown)));
    in_columns(table)
}

/// Lays out a page: a name and a text per line. Texts of several lines stay in their column.
pub(crate) fn page(lines: Vec<(&str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_rows(
        lines
            .into_iter()
            .map(|(name, text)| [format!("{name}:"), shown(text)]),
    );
    in_columns(table)
}

fn in_columns(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn shown(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// The name of an enum's value, as people type it: without the prefix that the contract gives to all of them.
pub(crate) fn word(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// How long ago something was, as `5m`.
pub(crate) fn age(then: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    let Some(then) = then.and_then(|it| Timestamp::new(it.seconds, it.nanos).ok()) else {
        return String::new();
    };
    let seconds = now.duration_since(then).as_secs().max(0).unsigned_abs();
    short_duration(Duration::from_secs(seconds))
}

/// A moment in UTC, for people.
pub(crate) fn moment(at: Option<&prost_types::Timestamp>) -> String {
    at.and_then(|it| Timestamp::new(it.seconds, it.nanos).ok())
        .map_or_else(String::new, |it| format!("{it:.0}"))
}

/// A duration of the contract; negative ones are not in it.
pub(crate) fn duration(duration: Option<&prost_types::Duration>) -> Duration {
    duration
        .and_then(|it| Duration::try_from(*it).ok())
        .unwrap_or_default()
}

/// The largest unit of a duration, and the next smaller one while the number is small: `45s`, `5m`, `2m30s`, `3h10m`,
/// `4d`.
pub(crate) fn short_duration(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = duration.as_secs();
    let (large, large_name, small, small_name) = match seconds {
        0..MINUTE => return format!("{seconds}s"),
        MINUTE..HOUR => (MINUTE, 'm', 1, 's'),
        HOUR..DAY => (HOUR, 'h', MINUTE, 'm'),
        DAY.. => (DAY, 'd', HOUR, 'h'),
    };
    let (count, rest) = (seconds / large, seconds % large / small);
    if count < 10 && rest > 0 {
        format!("{count}{large_name}{rest}{small_name}")
    } else {
        format!("{count}{large_name}")
    }
}

/// A duration with its fractions, as `12.3ms` or `1.25s`.
pub(crate) fn precise_duration(duration: Duration) -> String {
    match duration.as_nanos() {
        0..1_000_000 => format!("{:.0}µs", duration.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1}ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2}s", duration.as_secs_f64()),
    }
}

/// A size in powers of 1024, as `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // From here on it would be rounded to `1024.0`.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn ages_have_one_or_two_units() {
        let cases = [
            (0,           "0s"),
            (59,          "59s"),
            (60,          "1m"),
            (150,         "2m30s"),
            (659,         "10m"),
            (3_600,       "1h"),
            (11_400,      "3h10m"),
            (86_399,      "23h"),
            (86_400,      "1d"),
            (90_000,      "1d1h"),
            (864_000,     "10d"),
        ];
        let now = Timestamp::from_second(2_000_000_000).expect("it is in range");
        for (seconds, expected) in cases {
            let then = prost_types::Timestamp { seconds: 2_000_000_000 - seconds, nanos: 0 };
            assert_eq!(age(Some(&then), now), expected, "{seconds}");
        }
        let ahead = prost_types::Timestamp { seconds: 2_000_000_005, nanos: 0 };
        assert_eq!(age(Some(&ahead), now), "0s", "clocks differ");
        assert_eq!(age(None, now), "");
        let absurd = prost_types::Timestamp { seconds: i64::MAX, nanos: -1 };
        assert_eq!(age(Some(&absurd), now), "");
    }

    #[test]
    #[rustfmt::skip]
    fn sizes_are_in_powers_of_1024() {
        let cases = [
            (0,                  "0 B"),
            (1023,               "1023 B"),
            (1024,               "1.0 KiB"),
            (1536,               "1.5 KiB"),
            (1024 * 1024 - 1,    "1.0 MiB"),
            (64 << 20,           "64.0 MiB"),
            (5 << 30,            "5.0 GiB"),
            (u64::MAX,           "16.0 EiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(size(bytes), expected, "{bytes}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn times_of_phases_keep_three_figures() {
        let cases = [
            (0,             "0µs"),
            (250_000,       "250µs"),
            (12_340_000,    "12.3ms"),
            (1_250_000_000, "1.25s"),
        ];
        for (nanos, expected) in cases {
            assert_eq!(precise_duration(Duration::from_nanos(nanos)), expected);
        }
    }

    #[test]
    fn columns_stand_below_their_titles_and_lines_end_without_blanks() {
        let rows = vec![
            ["web".into(), "a b".into()],
            ["longer-id".into(), String::new()],
        ];
        assert_eq!(
            table(["ID", "NOTE"], rows),
            "ID         NOTE\nweb        a b\nlonger-id  -"
        );
    }

    #[test]
    fn a_page_keeps_texts_of_several_lines_in_their_column() {
        let text = page(vec![("id", "web".into()), ("ports", "80\n81".into())]);
        assert_eq!(text, "id:     web\nports:  80\n        81");
    }
}
