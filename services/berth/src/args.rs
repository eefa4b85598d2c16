//! What can be typed after `berth`. How values are read is in `args/values.rs`.
//! It does not know what the commands do with it.

mod access;
mod catalog;
mod gc;
mod images;
mod logs;
mod net;
mod top;
mod values;
mod watchdog;

use std::{path::PathBuf, time::Duration};

use berth_api::v1;
use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub(crate) use self::access::{Copy, Forward, PortForward, Side};
pub(crate) use catalog::{Catalog, EntryKindArg};
pub(crate) use gc::{Collected, Explain, Gc, Worker};
pub(crate) use images::Images;
pub(crate) use logs::Logs;
pub(crate) use net::{LeaseStateArg, Net};
pub(crate) use top::{Order, Stats, Top};
pub(crate) use values::{Pair, PortArg};
use values::{
    parse_cpu_millis, parse_memory_bytes, parse_pair, parse_port, parse_time, parse_timeout,
};
pub(crate) use watchdog::{Watchdog, WatchdogAddress};

/// Sets the arguments of all commands apart from those of one.
const GLOBAL: &str = "Options of every command";

/// Creates, watches and removes sandboxes of a node.
#[derive(Debug, Parser)]
#[command(name = "berth", version = berth_version::LONG, arg_required_else_help = true)]
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
    /// Where the manager listens: `unix:/path`, `/path`, `http://host:port` or `https://host:port`
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        env = "BERTH_ADDRESS",
        value_name = "ADDRESS",
        default_value = "unix:/run/berth/manager.sock"
    )]
    pub(crate) address: String,
    /// Who may have signed the certificate of a manager behind `https://`, in PEM
    #[arg(long, global = true, help_heading = GLOBAL, env = "BERTH_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Own certificate for such a manager; it says what you may do
    #[arg(long, global = true, help_heading = GLOBAL, env = "BERTH_TLS_CERTIFICATE", value_name = "FILE")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Key of the own certificate
    #[arg(long, global = true, help_heading = GLOBAL, env = "BERTH_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
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
    /// Ask a process of Berth, at --address, how it is; exit code 0 when it serves
    Health(Health),
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

/// Arguments of `health`.
#[derive(Debug, clap::Args)]
pub(crate) struct Health {
    /// Whose health: a service as `berth.v1.SandboxService`, or `manager` for how a process beside the manager hears from it.
    /// Default: that of the process
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) service: String,
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

    /// Words behind `berth` in documents and alerts, as far as they name commands.
    fn named_in(text: &str) -> Vec<Vec<&str>> {
        let quoted = text.split("`berth ").skip(1);
        let commands = quoted.filter_map(|it| it.split('`').next());
        let is_word = |it: &&str| it.chars().all(|it| it.is_ascii_lowercase() || it == '-');
        commands
            .map(|it| it.split_whitespace().take_while(is_word).collect())
            .collect()
    }

    #[test]
    fn every_command_that_documents_and_alerts_name_is_one() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut files = vec![
            root.join("README.md"),
            root.join("deploy/observability/rules.yaml"),
        ];
        let docs = std::fs::read_dir(root.join("docs")).expect("docs");
        files.extend(docs.map(|it| it.expect("a document").path()));
        let mut seen = 0;
        for file in files {
            let text = std::fs::read_to_string(&file).expect("text");
            for words in named_in(&text) {
                let mut command = Args::command();
                // Which adds `help`.
                command.build();
                for word in &words {
                    if !command.has_subcommands() {
                        break;
                    }
                    // What is behind a command that has no others is its argument.
                    let found = command.find_subcommand(word).cloned();
                    command = found.unwrap_or_else(|| panic!("{}: {words:?}", file.display()));
                    seen += 1;
                }
            }
        }
        assert!(seen > 50, "{seen} are named");
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
