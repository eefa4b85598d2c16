//! The nftables table of this instance. It is rendered whole, at start and never on the path of a request.

use std::{io::Write as _, process::Stdio};

use ipnet::Ipv4Net;

use crate::error::NetnsError;

pub(crate) fn name(instance: &str) -> String {
    format!("berth-{instance}")
}

/// Replaces the table in one transaction.
pub(crate) fn install(instance: &str, subnet: Ipv4Net) -> Result<(), NetnsError> {
    load(&render(&name(instance), subnet))
}

/// Gone is a success.
pub(crate) fn remove(instance: &str) -> Result<(), NetnsError> {
    let name = name(instance);
    load(&format!("table ip {name}\ndelete table ip {name}\n"))
}

/// Whether there is a table of this name. It executes a program: never on the path of a request for a sandbox.
pub(crate) fn exists(name: &str) -> Result<bool, NetnsError> {
    let mut command = nft();
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

fn load(text: &str) -> Result<(), NetnsError> {
    let failed = NetnsError::executing;
    let mut command = nft();
    command.args(["-f", "-"]);
    command
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

fn nft() -> std::process::Command {
    let mut command = std::process::Command::new("nft");
    // Services are often started without the folders of system programs.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}
