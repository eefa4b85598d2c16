//! What can be typed after `berth images`.

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;

use super::values::parse_timeout;

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
