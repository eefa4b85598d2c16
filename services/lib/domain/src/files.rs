//! The text of the files that every container of a sandbox sees.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use blake2::{Blake2b, Digest as _, digest::consts::U32};

use crate::{id::ContainerName, record::Sandbox, spec::ConfigFile};

/// `/etc/hosts`: the loopback names, the sandbox's own name, the static hosts.
pub fn hosts(sandbox: &Sandbox) -> String {
    let mut text = "# The lines of this file are managed by runtime.computer.\n\
                    127.0.0.1\tlocalhost localhost.localdomain\n\
                    ::1\tlocalhost localhost.localdomain\n"
        .to_owned();
    // In the network of the node its own name leads to the node.
    let node = sandbox.spec.host_network;
    let node = node.then_some((IpAddr::V4(Ipv4Addr::LOCALHOST), sandbox.id.as_str()));
    let own = sandbox.addresses.iter();
    let own = own.map(|net| (net.addr(), sandbox.id.as_str())).chain(node);
    let fixed = sandbox
        .spec
        .static_hosts
        .iter()
        .map(|it| (it.ip, it.host.as_str()));
    for (ip, host) in own.chain(fixed) {
        writeln!(text, "{ip}\t{host}").expect("writing to a string cannot fail");
    }
    text
}

/// `/etc/resolv.conf`: the name servers on the bridge.
pub fn resolv_conf(search: &str, servers: &[IpAddr]) -> String {
    let mut text = format!("search {search}\noptions timeout:2 attempts:3\n");
    for server in servers {
        writeln!(text, "nameserver {server}").expect("writing to a string cannot fail");
    }
    text
}

/// Where a config file lies in the sandbox's folder. Each has a folder of its own: the name tells neither mode nor
/// container, and the same bytes can be another path with another content.
pub fn config_file_path(container: &ContainerName, number: usize, file: &ConfigFile) -> PathBuf {
    let folder = format!("{container}.{number}");
    Path::new("config")
        .join(folder)
        .join(config_file_name(file))
}

/// The same content at the same path has the same name.
fn config_file_name(file: &ConfigFile) -> String {
    let digest = Blake2b::<U32>::new()
        .chain_update(&file.path)
        .chain_update(&file.data)
        .finalize();
    bs58::encode(digest).into_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::tests::sandbox,
        spec::{
            StaticHost,
            tests::{container, spec},
        },
    };

    #[test]
    fn hosts_names_loopback_then_the_sandbox_then_the_static_hosts() {
        let mut spec = spec([container("app", &[])]);
        spec.static_hosts = vec![StaticHost {
            host: "db".into(),
            ip: "10.1.2.3".parse().unwrap(),
        }];
        let mut sandbox = sandbox("web", spec);
        sandbox.addresses = vec!["10.87.0.2/16".parse().unwrap()];
        assert_eq!(
            hosts(&sandbox),
            "# The lines of this file are managed by runtime.computer.\n\
             127.0.0.1\tlocalhost localhost.localdomain\n\
             ::1\tlocalhost localhost.localdomain\n\
             10.87.0.2\tweb\n\
             10.1.2.3\tdb\n"
        );
    }

    #[test]
    fn resolv_conf_has_one_line_per_server() {
        assert_eq!(
            resolv_conf("app.berth", &["10.87.0.1".parse().unwrap()]),
            "search app.berth\noptions timeout:2 attempts:3\nnameserver 10.87.0.1\n"
        );
    }

    #[test]
    fn a_config_file_is_named_after_its_path_and_its_content() {
        let file = |path: &str, data: &str| ConfigFile {
            path: path.into(),
            data: data.into(),
            mode: 0o644,
        };
        // Computed apart: base58 of hashlib.blake2b(b"/etc/ab", digest_size=32).
        assert_eq!(
            config_file_name(&file("/etc/a", "b")),
            "6VUQ6XmNKaeRYNnz4bqir5Jkfn47gF3FigP7HRQfMzSu"
        );
        let name = config_file_name(&file("/etc/a", "b"));
        assert_ne!(name, config_file_name(&file("/etc/a", "c")));
    }
}
