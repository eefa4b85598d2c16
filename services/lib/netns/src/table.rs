//! The nftables table of this instance. It is rendered whole, at start and never on the path of a request.

use std::{io::Write as _, process::Stdio};

use ipnet::Ipv4Net;

use crate::error::NetnsError;

/// Whether sandboxes reach beyond the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Masquerade {
    Installed,
    /// This kernel has no NAT for nftables, so there is no table.
    Unsupported {
        /// What nft said.
        message: String,
    },
}

pub(crate) fn name(instance: &str) -> String {
    format!("berth-{instance}")
}

/// Replaces the table in one transaction.
pub(crate) fn install(instance: &str, subnet: Ipv4Net) -> Result<Masquerade, NetnsError> {
    install_with(nft, instance, subnet)
}

/// Gone is a success.
pub(crate) fn remove(instance: &str) -> Result<(), NetnsError> {
    let name = name(instance);
    nft(
        &["-f", "-"],
        &format!("table ip {name}\ndelete table ip {name}\n"),
    )
}

/// A refusal says only in words what is at fault. So the kernel is asked for the plainest translation of addresses: one that
/// refuses this as well has none (rights are not what it lacks, it has made the bridge), and the node does without.
fn install_with(
    nft: impl Fn(&[&str], &str) -> Result<(), NetnsError>,
    instance: &str,
    subnet: Ipv4Net,
) -> Result<Masquerade, NetnsError> {
    let name = name(instance);
    let refused = match nft(&["-f", "-"], &render(&name, subnet)) {
        Ok(()) => return Ok(Masquerade::Installed),
        Err(error) => error,
    };
    let NetnsError::Table { message } = &refused else {
        return Err(refused);
    };
    let plainest = format!(
        "table ip {name}-probe {{\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tmasquerade\n\
         \t}}\n\
         }}\n"
    );
    match nft(&["--check", "-f", "-"], &plainest) {
        Ok(()) => Err(refused),
        Err(NetnsError::Table { .. }) => Ok(Masquerade::Unsupported {
            message: message.lines().next().unwrap_or_default().to_owned(),
        }),
        Err(other) => Err(other),
    }
}

/// Whether there is a table of this name. It executes a program: never on the path of a request for a sandbox.
pub(crate) fn exists(name: &str) -> Result<bool, NetnsError> {
    let mut command = program();
    command.args(["list", "tables", "ip"]).stdin(Stdio::null());
    let output = command.output().map_err(NetnsError::executing)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(NetnsError::Table { message });
    }
    let own = format!("table ip {name}");
    let tables = String::from_utf8_lossy(&output.stdout);
    Ok(tables.lines().any(|line| line.trim() == own))
}

fn render(name: &str, subnet: Ipv4Net) -> String {
    format!(
        "table ip {name}\n\
         delete table ip {name}\n\
         table ip {name} {{\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr {subnet} ip daddr != {subnet} masquerade\n\
         \t}}\n\
         }}\n"
    )
}

fn nft(arguments: &[&str], text: &str) -> Result<(), NetnsError> {
    let failed = NetnsError::executing;
    let mut command = program();
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut nft = command.spawn().map_err(failed)?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(text.as_bytes()).map_err(failed)?;
    }
    let output = nft.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NetnsError::Table { message })
}

fn program() -> std::process::Command {
    let mut command = std::process::Command::new("nft");
    // Services are often started without the folders of system programs.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 1, 0, 0), 24);

    /// On a kernel that refuses every text with `lacks` in it.
    fn install_without(lacks: &str) -> Result<Masquerade, NetnsError> {
        let nft = |_: &[&str], text: &str| {
            if text.contains(lacks) {
                let message = format!("no {lacks}\n^^");
                return Err(NetnsError::Table { message });
            }
            Ok(())
        };
        install_with(nft, "a1", SUBNET)
    }

    #[test]
    fn a_kernel_without_nat_is_told_from_one_that_refuses_our_table() {
        let all = install_without("a word that no table has").unwrap();
        assert_eq!(all, Masquerade::Installed);
        for missing in ["table ip", "type nat", "masquerade"] {
            let message = format!("no {missing}");
            let seen = install_without(missing).unwrap();
            assert_eq!(seen, Masquerade::Unsupported { message });
        }
        let refused = install_without("ip saddr").unwrap_err();
        assert!(matches!(refused, NetnsError::Table { .. }), "{refused}");
    }

    #[test]
    fn without_the_program_nothing_is_said_of_the_kernel() {
        let nft = |_: &[&str], _: &str| {
            Err(NetnsError::Kernel {
                operation: "running nft",
                source: std::io::ErrorKind::NotFound.into(),
            })
        };
        let failed = install_with(nft, "a1", SUBNET).unwrap_err();
        assert!(matches!(failed, NetnsError::Kernel { .. }), "{failed}");
    }
}
