//! Firewalls of iptables-legacy, which the kernel keeps apart from nftables and shows to its own program alone: whether they
//! let the packets of sandboxes pass, and what a person has to be told. Nothing is changed in them.

use std::{fs, process::Stdio};

use ipnet::IpNet;

use berth_domain::Names;

use crate::{error::NetnsError, table};

/// By family: where the kernel names the tables that there are in this network namespace, and the program that reads them.
const FAMILIES: [(&str, &str); 2] = [
    ("/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
    ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
];

/// What a person has to do, a sentence each. Executes a program where there is such a firewall, and nowhere else. Blocks.
pub(crate) fn obstacles(subnets: &[IpNet]) -> Vec<String> {
    let of_family = |(names, program): (&str, &'static str)| {
        let own = subnets
            .iter()
            .filter(|it| it.addr().is_ipv4() == (program == FAMILIES[0].1));
        let own: Vec<_> = own.copied().collect();
        // To ask for a table that is not there makes it.
        let names = fs::read_to_string(names).unwrap_or_default();
        if own.is_empty() || !names.lines().any(|it| it == "filter") {
            return None;
        }
        obstacle(program, &own, read(program))
    };
    FAMILIES.into_iter().filter_map(of_family).collect()
}

/// All rules of the table, as the program writes them.
fn read(program: &'static str) -> Result<String, NetnsError> {
    let mut command = table::program(program);
    command.args(["--wait", "1", "--list-rules"]);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(NetnsError::executing(program))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(NetnsError::Refused {
            program,
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

fn obstacle(program: &str, own: &[IpNet], read: Result<String, NetnsError>) -> Option<String> {
    let rules = match read {
        Ok(rules) => rules,
        Err(error) => {
            return Some(format!(
                "there is a firewall of {program}, and nobody can say whether it lets pass what is forwarded: {error}"
            ));
        }
    };
    // The first rule that asks for nothing decides, or else the policy.
    let decides = |it: &str| {
        let verdict = it.strip_prefix("-A FORWARD -j ")?;
        let drops = verdict == "DROP" || verdict.starts_with("REJECT");
        (drops || verdict == "ACCEPT").then_some(drops)
    };
    let policy = rules.lines().any(|it| it == "-P FORWARD DROP");
    let drops = rules.lines().find_map(decides).unwrap_or(policy);
    let links = Names::LINK_PREFIX;
    let wanted = own.iter().flat_map(|it| {
        [
            format!("-s {it} -i {links}+ -j ACCEPT"),
            format!("-d {it} -o {links}+ -j ACCEPT"),
        ]
    });
    // In whichever chain: docker leaves one to others.
    let missing = wanted.filter(|it| !rules.lines().any(|rule| rule.ends_with(it)));
    let missing: Vec<_> = missing
        .map(|it| format!("`{program} -I FORWARD {it}`"))
        .collect();
    (drops && !missing.is_empty()).then(|| {
        let missing = missing.join(" and ");
        format!("chain FORWARD of {program} drops what is forwarded, and Berth changes nothing in it: it takes {missing}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn a_firewall_that_drops_is_told_until_it_accepts_both_directions() {
        let own = ["10.1.0.0/16".parse().unwrap()];
        let from = "-A FORWARD -s 10.1.0.0/16 -i bt+ -j ACCEPT\n";
        let to = "-A DOCKER-USER -d 10.1.0.0/16 -o bt+ -j ACCEPT\n";
        let cases = [
            ("-P FORWARD ACCEPT\n".to_owned(), None),
            ("-P FORWARD DROP\n".to_owned(), Some(2)),
            ("-P FORWARD ACCEPT\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n".to_owned(), Some(2)),
            ("-P FORWARD ACCEPT\n-A FORWARD -j DROP\n-A INPUT -j ACCEPT\n".to_owned(), Some(2)),
            ("-P FORWARD ACCEPT\n-A FORWARD -j DROP\n-A FORWARD -j ACCEPT\n".to_owned(), Some(2)),
            ("-P FORWARD DROP\n-A FORWARD -j ACCEPT\n".to_owned(), None),
            ("-P INPUT DROP\n-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j DROP\n".to_owned(), None),
            (format!("-P FORWARD DROP\n{from}"), Some(1)),
            (format!("-P FORWARD DROP\n{from}{to}"), None),
            (format!("-P FORWARD DROP\n{from}{to}").replace("10.1", "10.2"), Some(2)),
        ];
        for (rules, missing) in cases {
            let told = obstacle("iptables-legacy", &own, Ok(rules.clone()));
            let found = told.as_ref().map(|it| it.matches("`iptables-legacy -I FORWARD -").count());
            assert_eq!(found, missing, "{rules}{told:?}");
        }
        let mute = NetnsError::executing("iptables-legacy")(std::io::ErrorKind::NotFound.into());
        let told = obstacle("iptables-legacy", &own, Err(mute)).unwrap();
        assert!(told.contains("running iptables-legacy"), "{told}");
    }
}
