//! What can be typed after `berth`, and how sizes, shares of a CPU and ports are read.
//! It does not know what the commands do with it.

mod access;
mod gc;
mod logs;
mod top;
mod watchdog;

use std::{path::PathBuf, time::Duration};

use berth_api::v1;
use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub(crate) use self::access::{Copy, Forward, PortForward, Side};
pub(crate) use gc::{Collected, Explain, Gc, Worker};
pub(crate) use logs::Logs;
pub(crate) use top::{Order, Stats, Top};
pub(crate) use watchdog::{Watchdog, WatchdogAddress};

/// Sets the arguments of all commands apart from those of one.
const GLOBAL: &str = "Options of every command";

/// Creates, watches and removes sandboxes of a node.
#[derive(Debug, Parser)]
#[command(name = "berth", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or an invalid field, 130 interrupted; \
    of `exec`, that of the program."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Where the manager listens: `unix:/path`, `/path` or `http://host:port`
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        env = "BERTH_ADDRESS",
        value_name = "ADDRESS",
        default_value = "unix:/run/berth/manager.sock"
    )]
    pub(crate) address: String,
    /// How objects are printed
    #[arg(
        short,
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub(crate) output: Format,
    /// How long each call to the manager may take, as `90s` or `2m 30s`; at the deadline the wait ends, the
    /// node's work goes on. Default: no limit
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DURATION", value_parser = parse_timeout)]
    pub(crate) timeout: Option<Duration>,
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// Canonical JSON of the contract, fields with default values included
    Json,
    /// The same as YAML
    Yaml,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a sandbox from a file
    Create(Create),
    /// Run one container in a sandbox of its own and return when it is RUNNING
    Run(Run),
    /// List sandboxes by id
    Ls(Ls),
    /// Show one sandbox
    Get(Id),
    /// End a sandbox; its record stays, DEAD
    Stop(Id),
    /// Set when a sandbox ends by itself
    Renew(Renew),
    /// Remove sandboxes and their records; returns when nothing of them is left
    Rm(Rm),
    /// Show the resource usage of a sandbox
    Stats(Stats),
    /// Show what the sandboxes use, live; the metrics process measures it
    Top(Top),
    /// Show sandboxes as they stand and, with `-f`, each change
    Events(Events),
    /// Show what the containers of a sandbox have written and, with `-f`, each new line
    Logs(Logs),
    /// Copy files and directories into a container that runs, and out of one
    Cp(Copy),
    /// Listen here and carry connections to ports of a sandbox, also to those on its loopback
    PortForward(PortForward),
    /// Run a program in a container that runs; its exit code is the command's
    Exec(Exec),
    /// Connect the terminal to a container's own program; Ctrl-P Ctrl-Q leaves it running
    Attach(Attach),
    /// The images of the node
    #[command(subcommand)]
    Images(Images),
    /// The collection of images and blobs that nothing needs
    #[command(subcommand)]
    Gc(Gc),
    /// Say in plain words why something is as it is
    #[command(subcommand)]
    Explain(Explain),
    /// Apps, versions, services and hosts: what sandboxes belong to and are found by
    #[command(subcommand)]
    Catalog(Catalog),
    /// The addresses of the node
    #[command(subcommand)]
    Net(Net),
    /// Check that every object on the node is explained by a record; exit code 1 when not
    Audit(Audit),
    /// What removes by itself what no record explains
    #[command(subcommand)]
    Watchdog(Watchdog),
    /// The node and its manager
    #[command(subcommand)]
    Node(Node),
    /// Show the version of this program and, when it answers, of the manager
    Version,
    /// Print the completion script of a shell
    Completions {
        /// Shell that the script is for
        #[arg(value_enum)]
        shell: Shell,
    },
}

impl Command {
    /// Whether the node goes on with the work when this program is interrupted.
    pub(crate) fn goes_on_alone(&self) -> bool {
        matches!(
            self,
            Self::Create(_)
                | Self::Run(_)
                | Self::Stop(_)
                | Self::Rm(_)
                | Self::Gc(Gc::Run { .. })
                | Self::Watchdog(Watchdog::Run { .. })
        )
    }

    /// Whether Ctrl-C is for a program that the command talks to.
    pub(crate) fn hands_signals_on(&self) -> bool {
        matches!(self, Self::Exec(_) | Self::Attach(_))
    }
}

/// Arguments of `create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// YAML or JSON (when it begins with `{`) of a CreateRequest; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What to wait for. Default: what the file says, else running
    #[arg(long, value_enum)]
    pub(crate) wait: Option<Wait>,
    /// How long the sandbox lives, as `90s` or `2h 30m`; at least 1s. Default: what the file says, else for ever
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
    pub(crate) ttl: Option<Duration>,
}

/// What a create waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wait {
    /// The record is durable and the address taken
    Accepted,
    /// Every container runs, every declared port listens, every readiness probe has succeeded
    Running,
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Id of the sandbox. Default: `run-` and eight random letters and digits
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Port that the container listens on, as `80` or `53/udp`, which is waited for. Can be given again
    #[arg(long = "port", value_name = "PORT[/udp]", value_parser = parse_port)]
    pub(crate) ports: Vec<PortArg>,
    /// Environment variable, over the image's. Can be given again
    #[arg(long = "env", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) env: Vec<Pair>,
    /// Label of the sandbox. Can be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) labels: Vec<Pair>,
    /// CPU time that the sandbox may use, in CPUs, as `0.5` or `2`; at least 0.01. Default: no limit
    #[arg(long, value_name = "CPUS", value_parser = parse_cpu_millis)]
    pub(crate) cpu: Option<u32>,
    /// Memory that the sandbox may use, in bytes or as `64M` or `1G` (powers of 1024); at least 4M. Default: no limit
    #[arg(long, value_name = "BYTES", value_parser = parse_memory_bytes)]
    pub(crate) memory: Option<u64>,
    /// How long the sandbox lives, as `90s` or `2h 30m`; at least 1s. Default: for ever
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
    pub(crate) ttl: Option<Duration>,
    /// Image to run; it is pulled when the node does not have it
    pub(crate) image: String,
    /// Arguments in place of the image's command. Default: the image's
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// A declared port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortArg {
    pub(crate) port: u16,
    pub(crate) protocol: v1::Protocol,
}

/// `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
}

/// Arguments of `ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// Only sandboxes with this status. Can be given again. Default: all but dead
    #[arg(long = "status", value_name = "STATUS", value_enum, ignore_case = true)]
    pub(crate) statuses: Vec<StatusArg>,
    /// Only sandboxes with this label. Can be given again; all must match
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) labels: Vec<Pair>,
    /// Dead ones too
    #[arg(long, conflicts_with = "statuses")]
    pub(crate) all: bool,
}

/// A status to filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusArg {
    /// It is being created
    Pending,
    /// It was running and is not reachable
    #[value(alias = "not_ready")]
    NotReady,
    /// Every container runs, every declared port listens, every readiness probe has succeeded
    Running,
    /// It is being torn down
    Stopped,
    /// Nothing of it is left but the record
    Dead,
}

impl From<StatusArg> for v1::SandboxStatus {
    fn from(status: StatusArg) -> Self {
        match status {
            StatusArg::Pending => Self::Pending,
            StatusArg::NotReady => Self::NotReady,
            StatusArg::Running => Self::Running,
            StatusArg::Stopped => Self::Stopped,
            StatusArg::Dead => Self::Dead,
        }
    }
}

/// The argument of a command for one sandbox.
#[derive(Debug, clap::Args)]
pub(crate) struct Id {
    /// Id of the sandbox
    pub(crate) id: String,
}

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// Hand standard input on to the program
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Name of the container. Default: the only one
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// User to run as, as `www`, `33` or `www:staff`. Default: that of the container
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Folder to start in, absolute. Default: that of the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Environment variable, over the container's. Can be given again
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) env: Vec<Pair>,
    /// Id of the sandbox
    pub(crate) id: String,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// Arguments of `attach`.
#[derive(Debug, clap::Args)]
pub(crate) struct Attach {
    /// Name of the container. Default: the only one
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Hand no input on
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Id of the sandbox
    pub(crate) id: String,
}

/// Arguments of `rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Ids of the sandboxes
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
}

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
pub(crate) struct Events {
    /// Go on with each change until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin after this revision, without the sandboxes as they stand. Default: 0, with them
    #[arg(
        long,
        value_name = "REVISION",
        default_value_t,
        hide_default_value = true,
        requires = "follow"
    )]
    pub(crate) from: u64,
    /// Only this sandbox. Default: all
    pub(crate) id: Option<String>,
}

/// Commands of `images`.
#[derive(Debug, Subcommand)]
pub(crate) enum Images {
    /// List images by name
    Ls,
    /// Import an OCI image layout or a `docker save` archive, plain or gzip
    Import {
        /// The archive; `-` is standard input
        file: PathBuf,
        /// Name for the image, where the archive has one image. Default: the names in the archive
        #[arg(long)]
        name: Option<String>,
    },
    /// Pull an image from its registry
    Pull {
        /// User for the registry. Default: what the node's file of credentials has, if anything
        #[arg(short, long, requires = "password_stdin")]
        username: Option<String>,
        /// Read the password from standard input, to its end; a last line break is not part of it
        #[arg(long, requires = "username")]
        password_stdin: bool,
        /// Read a bearer token for the registry from standard input, likewise
        #[arg(long, conflicts_with_all = ["username", "password_stdin"])]
        token_stdin: bool,
        /// Image reference
        image: String,
    },
    /// Write an image as an OCI image layout archive, which `images import` takes back
    Export {
        /// The archive. Default: standard output, which may be no terminal
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Image reference
        image: String,
    },
    /// Remove one name of an image; its content goes with its last name
    Rm {
        /// Image reference
        image: String,
    },
    /// Keep an image that is here from collections
    Pin {
        /// How long, as `24h`; at least 1s. Default: until it is unpinned
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_timeout)]
        time: Option<Duration>,
        /// Image reference
        image: String,
    },
    /// Take the pin of an image away
    Unpin {
        /// Image reference
        image: String,
    },
}

/// Commands of `catalog`.
#[derive(Debug, Subcommand)]
pub(crate) enum Catalog {
    /// Put the entries of a file, one after another; each replaces the one of its kind and id
    Put {
        /// YAML or JSON (when it begins with `{`) with a list `entries`, as `catalog ls -o yaml` prints it; `-` is
        /// standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// List entries by kind and id
    Ls {
        /// Only this kind. Default: all
        #[arg(long, value_enum)]
        kind: Option<EntryKindArg>,
    },
    /// List the sandboxes that answer for services
    Endpoints {
        /// Only those of this app. Default: all
        #[arg(long)]
        app: Option<String>,
        /// Only those of this service, by its id. Default: all
        #[arg(long)]
        service: Option<String>,
    },
    /// Remove an entry
    Rm {
        /// Kind of the entry
        #[arg(value_enum)]
        kind: EntryKindArg,
        /// Id of the entry
        id: String,
    },
}

/// What an entry of the catalog is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EntryKindArg {
    /// An app
    App,
    /// Something that was built for an app
    Artifact,
    /// A name for addresses that are no sandbox
    Host,
    /// A name by which sandboxes of an app are found
    Service,
    /// A version of an app
    Version,
}

impl From<EntryKindArg> for v1::EntryKind {
    fn from(kind: EntryKindArg) -> Self {
        match kind {
            EntryKindArg::App => Self::App,
            EntryKindArg::Artifact => Self::Artifact,
            EntryKindArg::Host => Self::Host,
            EntryKindArg::Service => Self::Service,
            EntryKindArg::Version => Self::Version,
        }
    }
}

/// Commands of `net`.
#[derive(Debug, Subcommand)]
pub(crate) enum Net {
    /// Show the subnet and how many of its addresses are held, rest and are free
    Ls,
    /// List the addresses that are held or were
    Leases {
        /// Only those in this state. Default: all
        #[arg(long, value_enum)]
        state: Option<LeaseStateArg>,
    },
    /// Show what the rules of the node allow and deny to each sandbox, and our rules in firewalls of others
    Rules {
        /// Only those of the sandbox with this id
        #[arg(value_name = "ID")]
        id: Option<String>,
    },
    /// Make an address free that rests, or whose owner has no record
    Release {
        /// IPv4 address
        #[arg(value_name = "ADDRESS", required_unless_present = "all_resting")]
        ip: Option<String>,
        /// Every address that was given back; those that are held stay held
        #[arg(long, conflicts_with = "ip")]
        all_resting: bool,
    },
    /// List the reserved subnets
    Subnets,
    /// Reserve a part of the node's subnet; the same identifier always gets the same one
    Reserve {
        /// Whose it is, as sandboxes name it in `network.subnet`
        identifier: String,
        /// Its size
        #[arg(long, value_name = "BITS")]
        prefix_length: u32,
    },
    /// Give a reserved subnet to everybody again
    Unreserve {
        /// Whose it is
        identifier: String,
    },
}

/// A state of a lease to filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LeaseStateArg {
    /// A record holds it
    Held,
    /// It was given back less than the cool-down ago
    Resting,
    /// It was given back, and its rest is over
    Free,
    /// It is held for an owner that has no record
    Unexplained,
}

impl From<LeaseStateArg> for v1::LeaseState {
    fn from(state: LeaseStateArg) -> Self {
        match state {
            LeaseStateArg::Held => Self::Held,
            LeaseStateArg::Resting => Self::Resting,
            LeaseStateArg::Free => Self::Free,
            LeaseStateArg::Unexplained => Self::Unexplained,
        }
    }
}

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Audit {
    /// Remove what no record explains, and have sandboxes that lost something look at themselves
    #[arg(long)]
    pub(crate) fix: bool,
    /// Time between the two looks; only what is the same orphan at both is removed; at most 1m. Default: 5s
    #[arg(long, value_name = "DURATION", requires = "fix", value_parser = parse_time)]
    pub(crate) settle: Option<Duration>,
}

/// Commands of `node`.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Show who answers, what works, what is degraded and what is tried again
    Status,
    /// Take no new sandboxes, until `undrain`; those that stand go on
    Drain {
        /// Why, for whoever is refused
        #[arg(long, default_value_t)]
        message: String,
    },
    /// Take new sandboxes again
    Undrain,
}

/// Arguments of `renew`.
#[derive(Debug, clap::Args)]
pub(crate) struct Renew {
    /// Id of the sandbox
    pub(crate) id: String,
    /// How long it lives from now on, as `90s` or `2h 30m`; at least 1s. Default: for ever
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
    pub(crate) ttl: Option<Duration>,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let duration: jiff::SignedDuration =
        text.parse().map_err(|err: jiff::Error| err.to_string())?;
    Duration::try_from(duration).map_err(|_| "must not be less than zero".to_owned())
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

fn parse_pair(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(Pair {
            key: key.to_owned(),
            value: value.to_owned(),
        }),
        Some(_) | None => Err("must be KEY=VALUE".to_owned()),
    }
}

fn parse_port(text: &str) -> Result<PortArg, String> {
    let (port, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), v1::Protocol::Tcp),
        Some((port, "udp")) => (port, v1::Protocol::Udp),
        Some((_, other)) => return Err(format!("`{other}` is neither tcp nor udp")),
    };
    match digits(port).and_then(|port| u16::try_from(port).ok()) {
        Some(port) if port > 0 => Ok(PortArg { port, protocol }),
        Some(_) | None => Err("must be 1 to 65535".to_owned()),
    }
}

fn parse_cpu_millis(text: &str) -> Result<u32, String> {
    let wrong = || "must be a number of CPUs with at most three decimals, as `0.5`".to_owned();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.is_empty() || fraction.len() > 3 {
        return Err(wrong());
    }
    let whole = digits(whole).ok_or_else(wrong)?;
    let thousandths = digits(&format!("{fraction:0<3}")).ok_or_else(wrong)?;
    let millis = whole
        .checked_mul(1000)
        .and_then(|it| it.checked_add(thousandths));
    match millis.and_then(|it| u32::try_from(it).ok()) {
        Some(0) => Err("must be more than 0".to_owned()),
        Some(millis) => Ok(millis),
        None => Err(wrong()),
    }
}

fn parse_memory_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "must be a number of bytes, or one followed by K, M, G or T".to_owned();
    let end = text
        .find(|it: char| !it.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let exponent = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 1,
        "m" | "mb" | "mi" | "mib" => 2,
        "g" | "gb" | "gi" | "gib" => 3,
        "t" | "tb" | "ti" | "tib" => 4,
        _ => return Err(wrong()),
    };
    let number = digits(number).ok_or_else(wrong)?;
    match number.checked_mul(1024_u64.pow(exponent)) {
        Some(0) => Err("must be more than 0".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err(wrong()),
    }
}

/// Reads digits only: `parse` alone would take a sign.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|it| it.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_argument_is_documented() {
        fn look(command: &clap::Command) {
            for argument in command.get_arguments() {
                let (name, of) = (argument.get_id(), command.get_name());
                assert!(argument.get_help().is_some(), "{name} of {of} has no help");
            }
            for command in command.get_subcommands() {
                assert!(
                    command.get_about().is_some(),
                    "{} has no help",
                    command.get_name()
                );
                look(command);
            }
        }
        look(&Args::command());
    }

    #[test]
    #[rustfmt::skip]
    fn sizes_are_read_in_powers_of_1024() {
        let cases = [
            ("1",                    Some(1)),
            ("67108864",             Some(64 << 20)),
            ("64M",                  Some(64 << 20)),
            ("64m",                  Some(64 << 20)),
            ("64MiB",                Some(64 << 20)),
            ("1G",                   Some(1 << 30)),
            ("2Ti",                  Some(2 << 40)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("17179869184G",         None),
            ("0",                    None),
            ("",                     None),
            ("M",                    None),
            ("-1",                   None),
            ("+1",                   None),
            ("1.5G",                 None),
            ("1X",                   None),
            ("1é",                   None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_memory_bytes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn shares_of_a_cpu_are_read_exactly() {
        let cases = [
            ("0.5",       Some(500)),
            ("0.05",      Some(50)),
            ("0.001",     Some(1)),
            ("1",         Some(1000)),
            ("2.25",      Some(2250)),
            ("1024",      Some(1_024_000)),
            ("0",         None),
            ("0.0",       None),
            ("0.0001",    None),
            (".5",        None),
            ("1.",        None),
            ("-1",        None),
            ("1.-1",      None),
            ("nan",       None),
            ("1e3",       None),
            ("4294968",   None),
            ("",          None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_cpu_millis(text).ok(), expected, "{text}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn ports_are_read_with_their_protocol() {
        let cases = [
            ("80",         Some((80, v1::Protocol::Tcp))),
            ("80/tcp",     Some((80, v1::Protocol::Tcp))),
            ("53/udp",     Some((53, v1::Protocol::Udp))),
            ("65535",      Some((65535, v1::Protocol::Tcp))),
            ("0",          None),
            ("65536",      None),
            ("80/sctp",    None),
            ("80/",        None),
            ("/udp",       None),
            ("+80",        None),
            ("80/tcp/tcp", None),
            ("",           None),
        ];
        for (text, expected) in cases {
            let read = parse_port(text).ok().map(|it| (it.port, it.protocol));
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn a_pair_keeps_every_sign_after_the_first_equals() {
        let pair = parse_pair("A=b=c").expect("it is a pair");
        assert_eq!((pair.key.as_str(), pair.value.as_str()), ("A", "b=c"));
        assert!(parse_pair("=b").is_err());
        assert!(parse_pair("A").is_err());
    }

    #[test]
    fn a_timeout_is_read_in_words_and_is_longer_than_zero() {
        assert_eq!(parse_timeout("1m 30s").ok(), Some(Duration::from_secs(90)));
        assert_eq!(
            parse_timeout("250ms").ok(),
            Some(Duration::from_millis(250))
        );
        assert!(parse_timeout("0s").is_err());
        assert!(parse_timeout("-5s").is_err());
        assert!(parse_timeout("90").is_err());
    }

    #[test]
    fn what_follows_two_dashes_is_the_command() {
        let args = Args::try_parse_from(["berth", "run", "--id", "web", "nginx", "--", "-g", "x"]);
        let Command::Run(run) = args.expect("it is right").command else {
            panic!("it is a run")
        };
        assert_eq!((run.image.as_str(), run.command.len()), ("nginx", 2));
    }
}
