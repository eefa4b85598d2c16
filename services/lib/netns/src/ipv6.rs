//! What IPv6 needs of the kernel beside addresses, routes and rules: settings in `/proc/sys`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ipnet::Ipv6Net;

use crate::error::NetnsError;

const SETTINGS: &str = "/proc/sys/net/ipv6";

/// Whether this kernel can do what a node with an IPv6 subnet has to.
pub(crate) fn check(subnet: Ipv6Net) -> Result<(), NetnsError> {
    check_in(Path::new(SETTINGS), subnet)
}

fn check_in(settings: &Path, subnet: Ipv6Net) -> Result<(), NetnsError> {
    match settings.join("conf/all/forwarding").exists() {
        true => Ok(()),
        false => Err(NetnsError::NoIpv6 { subnet }),
    }
}

/// Has the node hand on what is meant for others. `before` goes before that, where it does not.
pub(crate) fn forward(before: impl FnOnce() -> Result<(), NetnsError>) -> Result<(), NetnsError> {
    forward_in(Path::new(SETTINGS), before)
}

fn forward_in(
    settings: &Path,
    before: impl FnOnce() -> Result<(), NetnsError>,
) -> Result<(), NetnsError> {
    let conf = settings.join("conf");
    let forwarding = conf.join("all/forwarding");
    if reads(&forwarding, "1") {
        return Ok(());
    }
    before()?;
    // A node that forwards takes itself for a router, and forgets what it has learned from those on its links, unless it is
    // told that it still depends on them.
    let links = fs::read_dir(&conf).map_err(NetnsError::file("listing", &conf))?;
    for link in links {
        let link = link.map_err(NetnsError::file("listing", &conf))?;
        let accept = link.path().join("accept_ra");
        let is_link = link.file_name() != "all" && link.file_name() != "default";
        if is_link && reads(&accept, "1") {
            // Links of others come and go meanwhile.
            match fs::write(&accept, "2") {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(NetnsError::file("writing", accept)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
    fs::write(&forwarding, "1").map_err(NetnsError::file("writing", forwarding))
}

fn reads(path: &Path, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|it| it.trim() == value)
}

/// For the bridge, before it has its address.
pub(crate) fn set_up_bridge(link: &str) -> Result<(), NetnsError> {
    set(link, "disable_ipv6", "0")
}

/// For either end of a link, before it is up. It has the addresses that it is given, believes nobody who claims to be a
/// router, and works also where somebody has switched IPv6 off for all links to come.
pub(crate) fn set_up_link(link: &str) -> Result<(), NetnsError> {
    set(link, "accept_ra", "0")?;
    set(link, "addr_gen_mode", "1")?;
    set(link, "disable_ipv6", "0")
}

fn set(link: &str, key: &str, value: &str) -> Result<(), NetnsError> {
    let path: PathBuf = Path::new(SETTINGS).join("conf").join(link).join(key);
    fs::write(&path, value).map_err(NetnsError::file("writing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree like that of the kernel, with one link that listens to routers and one that does not.
    fn settings() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, accept) in [("all", "1"), ("default", "1"), ("eth0", "1"), ("eth1", "0")] {
            let link = dir.path().join("conf").join(name);
            fs::create_dir_all(&link).unwrap();
            fs::write(link.join("accept_ra"), accept).unwrap();
            fs::write(link.join("forwarding"), "0\n").unwrap();
        }
        dir
    }

    fn accepts(dir: &Path) -> Vec<String> {
        let read = |link: &str| fs::read_to_string(dir.join("conf").join(link).join("accept_ra"));
        ["all", "default", "eth0", "eth1"]
            .map(|it| read(it).unwrap())
            .to_vec()
    }

    #[test]
    fn a_node_that_begins_to_forward_goes_on_listening_to_its_routers() {
        let dir = settings();
        let forwarding = dir.path().join("conf/all/forwarding");
        forward_in(dir.path(), || {
            assert!(reads(&forwarding, "0"), "it is noted first");
            Ok(())
        })
        .unwrap();
        assert!(reads(&forwarding, "1"));
        assert_eq!(accepts(dir.path()), ["1", "1", "2", "0"]);
        // One that has forwarded before is as its owner wants it.
        fs::write(dir.path().join("conf/eth0/accept_ra"), "1").unwrap();
        forward_in(dir.path(), || panic!("it is a router")).unwrap();
        assert_eq!(accepts(dir.path()), ["1", "1", "1", "0"]);
    }

    #[test]
    fn a_kernel_without_ipv6_is_named_with_the_setting_that_asks_for_it() {
        let subnet = "fd00:1::/64".parse().unwrap();
        let dir = settings();
        check_in(dir.path(), subnet).unwrap();
        let refused = check_in(&dir.path().join("missing"), subnet).unwrap_err();
        assert!(matches!(refused, NetnsError::NoIpv6 { .. }));
        let words = refused.to_string();
        assert!(
            words.contains("network.subnet6") && words.contains("fd00:1::/64"),
            "{words}"
        );
    }
}
