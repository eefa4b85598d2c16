//! Puts whole tables into the kernel by the program `nft`: at start and when they were taken away, never on the path of a
//! request. What is in them, others know.

use std::{io::Write as _, process::Stdio};

use crate::{admit::Abilities, error::NetnsError, rules};

const NFT: &str = "nft";

/// Whether sandboxes are fenced off, and reach beyond the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    Installed,
    /// This kernel has no NAT for nftables, so there are no tables.
    Unsupported {
        /// What nft said.
        message: String,
    },
}

/// Carries out a text in one transaction.
pub(crate) fn install(text: &str) -> Result<Rules, NetnsError> {
    install_with(nft, text)
}

/// Changes tables of others, all or nothing.
pub(crate) fn change(text: &str) -> Result<(), NetnsError> {
    nft(&["-f", "-"], text)
}

/// What this kernel can beyond what the rules cannot do without.
pub(crate) fn abilities() -> Result<Abilities, NetnsError> {
    abilities_with(nft)
}

fn abilities_with(
    nft: impl Fn(&[&str], &str) -> Result<(), NetnsError>,
) -> Result<Abilities, NetnsError> {
    let can = |text: &str| match nft(&["--check", "-f", "-"], text) {
        Ok(()) => Ok(true),
        Err(NetnsError::Refused { .. }) => Ok(false),
        Err(other) => Err(other),
    };
    if can(&[Abilities::COUNTS, Abilities::ANSWERS].concat())? {
        return Ok(Abilities::ALL);
    }
    Ok(Abilities {
        counts: can(Abilities::COUNTS)?,
        answers: can(Abilities::ANSWERS)?,
    })
}

/// Gone is a success, also on a kernel on which there is nothing because it cannot be.
pub(crate) fn remove(instance: &str) -> Result<(), NetnsError> {
    install(&rules::removal(instance)).map(drop)
}

/// A refusal says only in words what is at fault. So the kernel is asked for the plainest translation of addresses: one that
/// refuses this as well has none (rights are not what it lacks, it has made the bridge), and the node does without.
fn install_with(
    nft: impl Fn(&[&str], &str) -> Result<(), NetnsError>,
    text: &str,
) -> Result<Rules, NetnsError> {
    let refused = match nft(&["-f", "-"], text) {
        Ok(()) => return Ok(Rules::Installed),
        Err(error) => error,
    };
    let NetnsError::Refused { message, .. } = &refused else {
        return Err(refused);
    };
    // No instance's table has this name.
    let plainest = "table ip berth_probe {\n\
                    \tchain postrouting {\n\
                    \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
                    \t\tmasquerade\n\
                    \t}\n\
                    }\n";
    match nft(&["--check", "-f", "-"], plainest) {
        Ok(()) => Err(refused),
        Err(NetnsError::Refused { .. }) => Ok(Rules::Unsupported {
            message: message.lines().next().unwrap_or_default().to_owned(),
        }),
        Err(other) => Err(other),
    }
}

fn nft(arguments: &[&str], text: &str) -> Result<(), NetnsError> {
    let failed = NetnsError::executing(NFT);
    let mut command = program(NFT);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut nft = command.spawn().map_err(&failed)?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(text.as_bytes()).map_err(&failed)?;
    }
    let output = nft.wait_with_output().map_err(&failed)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(refused(message.trim().to_owned()))
}

/// As `nft` has said it.
pub(crate) fn refused(message: String) -> NetnsError {
    let program = NFT;
    NetnsError::Refused { program, message }
}

/// A program of the system, to be given its arguments.
pub(crate) fn program(name: &str) -> std::process::Command {
    let mut command = std::process::Command::new(name);
    // Services are often started without the folders of system programs.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "table ip x { type nat; masquerade; ip saddr }";

    /// On a kernel that refuses every text with `lacks` in it.
    fn install_without(lacks: &str) -> Result<Rules, NetnsError> {
        let nft = |_: &[&str], text: &str| {
            if text.contains(lacks) {
                let message = format!("no {lacks}\n^^");
                return Err(refused(message));
            }
            Ok(())
        };
        install_with(nft, TEXT)
    }

    #[test]
    fn a_kernel_without_nat_is_told_from_one_that_refuses_our_table() {
        let all = install_without("a word that no table has").unwrap();
        assert_eq!(all, Rules::Installed);
        for missing in ["table ip", "type nat", "masquerade"] {
            let message = format!("no {missing}");
            let seen = install_without(missing).unwrap();
            assert_eq!(seen, Rules::Unsupported { message });
        }
        let refused = install_without("ip saddr").unwrap_err();
        assert!(matches!(refused, NetnsError::Refused { .. }), "{refused}");
    }

    #[test]
    fn what_a_kernel_lacks_is_found_one_by_one() {
        let lacking = |lacks: &'static str| {
            let nft = move |_: &[&str], text: &str| match text.contains(lacks) {
                true => Err(refused(lacks.to_owned())),
                false => Ok(()),
            };
            abilities_with(nft).unwrap()
        };
        let all = Abilities::ALL;
        assert_eq!(lacking("a word that no table has"), all);
        let counts = Abilities {
            counts: false,
            ..all
        };
        assert_eq!(lacking("ct count"), counts);
        let answers = Abilities {
            answers: false,
            ..all
        };
        assert_eq!(lacking("reject"), answers);
    }

    #[test]
    fn without_the_program_nothing_is_said_of_the_kernel() {
        let nft = |_: &[&str], _: &str| {
            let missing = std::io::ErrorKind::NotFound.into();
            Err(NetnsError::executing(NFT)(missing))
        };
        let failed = install_with(nft, TEXT).unwrap_err();
        assert!(matches!(failed, NetnsError::Program { .. }), "{failed}");
    }
}
