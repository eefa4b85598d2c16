//! What can be typed after `berth logs`.

use std::time::Duration;

use berth_api::v1;
use clap::ValueEnum;
use jiff::Timestamp;

use super::values::parse_time;

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// Id of the sandbox
    pub(crate) id: String,
    /// Go on with each new line until the sandbox has ended or Ctrl-C; also over restarts of the manager
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only this container; `@system` is what the node says about the sandbox. Can be given again. Default: all of these
    #[arg(short, long = "container", value_name = "NAME")]
    pub(crate) containers: Vec<String>,
    /// Only this stream. Can be given again. Default: all
    #[arg(long = "stream", value_name = "STREAM", value_enum)]
    pub(crate) streams: Vec<StreamArg>,
    /// Begin with this many lines from the end, counted over all logs that are shown, at most 100000. Default: all that
    /// is kept
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// Only what is younger, as `10m` or `2h 30m`, or was written since a time, as `2026-05-01T12:00:00Z`
    #[arg(long, value_name = "DURATION|TIME", value_parser = parse_since)]
    pub(crate) since: Option<Since>,
    /// Put before each line when it was written
    #[arg(long)]
    pub(crate) timestamps: bool,
}

/// A stream to filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamArg {
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
    /// Lines that began with `!USER `
    UserOob,
    /// Lines that began with `!ERROR `
    Error,
    /// What the node says about the sandbox
    System,
}

impl From<StreamArg> for v1::LogStream {
    fn from(stream: StreamArg) -> Self {
        match stream {
            StreamArg::Stdout => Self::Stdout,
            StreamArg::Stderr => Self::Stderr,
            StreamArg::UserOob => Self::UserOob,
            StreamArg::Error => Self::Error,
            StreamArg::System => Self::System,
        }
    }
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    Ago(Duration),
    At(Timestamp),
}

impl Since {
    /// The time that is meant; one that the contract cannot name is the beginning of time.
    pub(crate) fn time(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(age) => now.checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH),
        }
        .max(Timestamp::UNIX_EPOCH)
    }
}

fn parse_since(text: &str) -> Result<Since, String> {
    if let Ok(time) = text.parse() {
        return Ok(Since::At(time));
    }
    let wrong = "must be a duration as `10m`, or a time as `2026-05-01T12:00:00Z`";
    parse_time(text)
        .map(Since::Ago)
        .map_err(|_| wrong.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn since_is_a_duration_or_a_time() {
        let now: Timestamp = "2026-05-01T12:00:00Z".parse().expect("a time");
        let cases = [
            ("10m",                       Some("2026-05-01T11:50:00Z")),
            ("1h 30m",                    Some("2026-05-01T10:30:00Z")),
            ("0s",                        Some("2026-05-01T12:00:00Z")),
            ("2026-04-01T00:00:00.5Z",    Some("2026-04-01T00:00:00.5Z")),
            ("2026-04-01T02:00:00+02:00", Some("2026-04-01T00:00:00Z")),
            ("100000000h",                Some("1970-01-01T00:00:00Z")),
            ("1901-01-01T00:00:00Z",      Some("1970-01-01T00:00:00Z")),
            ("-10m",                      None),
            ("yesterday",                 None),
            ("",                          None),
        ];
        for (text, expected) in cases {
            let time = parse_since(text).ok().map(|it| it.time(now).to_string());
            assert_eq!(time.as_deref(), expected, "{text}");
        }
    }
}
