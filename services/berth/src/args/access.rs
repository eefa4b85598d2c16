//! What can be typed after `berth cp` and `berth port-forward`.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

/// Arguments of `cp`.
#[derive(Debug, clap::Args)]
pub(crate) struct Copy {
    /// Container of the sandbox. Default: the one that is written as `ID/CONTAINER:PATH`, else the only one
    #[arg(short, long, value_name = "CONTAINER")]
    pub(crate) container: Option<String>,
    /// Copy what a link at SRC leads to, not the link
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// Keep the numbers of users and groups. Default: files are those of the container's process, or of who copies
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Refuse to replace files that are there
    #[arg(short = 'n', long)]
    pub(crate) keep_existing: bool,
    /// What is copied: a path here, or `ID:PATH` or `ID/CONTAINER:PATH`; `-` is a tar archive on standard input. `/.` at its
    /// end means the content of a directory
    #[arg(value_name = "SRC", value_parser = parse_side)]
    pub(crate) from: Side,
    /// Where it goes: into a directory that is there, else under this name; `-` is a tar archive on standard output. What
    /// comes from standard input goes into a directory
    #[arg(value_name = "DST", value_parser = parse_side)]
    pub(crate) to: Side,
}

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Here(PathBuf),
    There {
        id: String,
        container: Option<String>,
        path: String,
    },
}

/// Arguments of `port-forward`.
#[derive(Debug, clap::Args)]
pub(crate) struct PortForward {
    /// Address to listen on here
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) listen: IpAddr,
    /// Id of the sandbox
    pub(crate) id: String,
    /// TCP port of the sandbox, after `LOCAL:` where another one is listened on here; `:PORT` takes any free one
    #[arg(required = true, value_name = "[LOCAL:]PORT", value_parser = parse_forward)]
    pub(crate) ports: Vec<Forward>,
}

/// A port here and a port there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    /// 0 is any free one.
    pub(crate) local: u16,
    pub(crate) remote: u16,
}

/// A path here begins with `/` or `.` or has no colon.
fn parse_side(text: &str) -> Result<Side, String> {
    let here = || Ok(Side::Here(text.into()));
    if text.starts_with(['/', '.']) {
        return here();
    }
    let Some((whose, path)) = text.split_once(':') else {
        return here();
    };
    let (id, container) = match whose.split_once('/') {
        Some((id, container)) => (id, Some(container.to_owned())),
        None => (whose, None),
    };
    if id.is_empty() || path.is_empty() || container.as_deref() == Some("") {
        return Err("must be a path, `ID:PATH` or `ID/CONTAINER:PATH`".to_owned());
    }
    Ok(Side::There {
        id: id.to_owned(),
        container,
        path: path.to_owned(),
    })
}

fn parse_forward(text: &str) -> Result<Forward, String> {
    let (local, remote) = match text.split_once(':') {
        Some(("", remote)) => ("0", remote),
        Some((local, remote)) => (local, remote),
        None => (text, text),
    };
    let number = |text: &str| {
        let digits = text.bytes().all(|it| it.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits)
    };
    match (number(local), number(remote)) {
        (Some(local), Some(remote)) if remote != 0 => Ok(Forward { local, remote }),
        _ => Err("must be `PORT`, `LOCAL:PORT` or `:PORT`, ports 1 to 65535".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn a_side_is_here_unless_it_names_a_sandbox() {
        let there = |id: &str, container: Option<&str>, path: &str| Some(Side::There {
            id: id.into(), container: container.map(str::to_owned), path: path.into(),
        });
        let here = |path: &str| Some(Side::Here(path.into()));
        let cases = [
            ("web:/etc/x",     there("web", None, "/etc/x")),
            ("web/app:/etc/x", there("web", Some("app"), "/etc/x")),
            ("web:a:b",        there("web", None, "a:b")),
            ("file",           here("file")),
            ("a/b",            here("a/b")),
            ("./a:b",          here("./a:b")),
            ("/a:b",           here("/a:b")),
            ("../a:b",         here("../a:b")),
            ("-",              here("-")),
            ("web:",           None),
            (":/x",            None),
            ("web/:/x",        None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_side(text).ok(), expected, "{text}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_forward_is_one_port_or_two() {
        let cases = [
            ("80",      Some((80, 80))),
            ("8080:80", Some((8080, 80))),
            (":80",     Some((0, 80))),
            ("0:80",    Some((0, 80))),
            ("80:",     None),
            ("0",       None),
            ("80:0",    None),
            ("+80",     None),
            ("65536",   None),
            ("1:2:3",   None),
            ("",        None),
        ];
        for (text, expected) in cases {
            let read = parse_forward(text).ok().map(|it| (it.local, it.remote));
            assert_eq!(read, expected, "{text}");
        }
    }
}
