//! What becomes of a packet on which the rules of either family have decided: chains that they lead to. Pure. A connection
//! that is admitted carries a mark, so that one which nobody has asked about is told from it, however long it stands.

use std::fmt::Write as _;

/// The bit of a connection's mark that says that it was admitted. The others are whoever's they are.
const ADMITTED: u32 = 0x2000_0000;

/// Counts the connections of a sandbox, by its link, so that those of both families are one number.
const CONNECTIONS: &str = "connections";

/// What a kernel may lack, and the rules can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// To count the connections of a sandbox.
    pub(crate) counts: bool,
    /// To tell a sandbox that something is denied.
    pub(crate) answers: bool,
}

impl Abilities {
    pub(crate) const ALL: Self = Self {
        counts: true,
        answers: true,
    };

    /// What each needs, in a table of its own to ask the kernel with, which no instance has: their names have no underscore.
    pub(crate) const COUNTS: &str = "\
        table inet berth_probe {\n\
        \tset connections { type ifname; flags dynamic; }\n\
        \tchain forward { add @connections { iifname ct count over 1 } drop; }\n\
        }\n";
    pub(crate) const ANSWERS: &str = "\
        table inet berth_probe {\n\
        \tchain prerouting {\n\
        \t\ttype filter hook prerouting priority raw; policy accept;\n\
        \t\tmeta l4proto tcp reject with tcp reset\n\
        \t\treject with icmpx admin-prohibited\n\
        \t}\n\
        }\n";

    /// What the node is without, as its status says it.
    pub(crate) fn lacks(self, connections_max: u32) -> Vec<String> {
        let mut lacks = vec![];
        if !self.counts && connections_max > 0 {
            lacks.push(
                "this kernel counts no connections for nftables (CONFIG_NFT_CONNLIMIT): network.connections_max is not \
                 enforced, and one sandbox can take all connections that the node can track"
                    .to_owned(),
            );
        }
        if !self.answers {
            lacks.push(
                "this kernel refuses no packets for nftables (CONFIG_NFT_REJECT_INET): what is denied to a sandbox is \
                 dropped, and who calls waits"
                    .to_owned(),
            );
        }
        lacks
    }
}

/// The first rules of the chain of what is forwarded: an admitted connection passes. Of one that is not, the side that has
/// opened it is asked about again, and who answers may go on as long as that side might.
pub(crate) fn known(group: u32) -> String {
    let mut rules =
        format!("\t\tct state established ct mark and {ADMITTED:#x} == {ADMITTED:#x} accept\n");
    for side in ["iifgroup", "oifgroup"] {
        let _ = writeln!(
            rules,
            "\t\t{side} {group} ct state established ct direction reply goto answer"
        );
    }
    rules
}

/// The chain `answer` of a family: `ip` is what it calls its addresses, `suffix` ends the names of its sets and chains.
pub(crate) fn answer(
    group: u32,
    (ip, suffix): (&str, &str),
    first: &str,
    floor: &str,
    reachable_from: &[String],
) -> String {
    let reachable = match reachable_from.is_empty() {
        true => String::new(),
        false => format!(
            "\t\toifgroup != {group} {ip} daddr {{ {} }} accept\n",
            reachable_from.join(", ")
        ),
    };
    format!(
        "\tchain answer{suffix} {{\n\
         {first}\
         \t\toifgroup {group} {ip} daddr @closed{suffix} drop\n\
         \t\toifgroup {group} {ip} daddr @listed{suffix} drop\n\
         \t\tiifgroup != {group} {ip} saddr != {{ {floor} }} accept\n\
         \t\tct status dnat accept\n\
         {reachable}\
         \t\tdrop\n\
         \t}}\n"
    )
}

/// The sets and chains that both families lead to. `connections_max` of a sandbox; 0 for no limit.
pub(crate) fn shared(
    group: u32,
    connections_max: u32,
    abilities: Abilities,
    has_ipv6: bool,
) -> String {
    let (set, limit) = match abilities.counts && connections_max > 0 {
        true => (
            format!("\tset {CONNECTIONS} {{ type ifname; size 65535; flags dynamic; }}\n"),
            // Once for each connection: kernels before 6.19 count some of its packets as others.
            format!(
                "\t\tiifgroup {group} ct mark and {ADMITTED:#x} == 0 \
                 add @{CONNECTIONS} {{ iifname ct count over {connections_max} }} goto dropped\n"
            ),
        ),
        false => (String::new(), String::new()),
    };
    let refuse = match abilities.answers {
        true => {
            "\t\tmeta l4proto tcp reject with tcp reset\n\t\treject with icmpx admin-prohibited\n"
        }
        false => "\t\tdrop\n",
    };
    let six = match has_ipv6 {
        true => "\t\tmeta nfproto ipv6 iifname @denials6 drop\n",
        false => "",
    };
    format!(
        "{set}\
         \tchain refused {{\n\
         {refuse}\
         \t}}\n\
         \tchain dropped {{\n\
         \t\tip saddr @denials drop\n\
         {six}\
         \t\tdrop\n\
         \t}}\n\
         \tchain admit {{\n\
         \t\tct state related accept\n\
         {limit}\
         \t\tct mark set ct mark or {ADMITTED:#x}\n\
         \t\taccept\n\
         \t}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_stands_where_it_is_wanted_and_the_kernel_counts() {
        let blind = Abilities {
            counts: false,
            ..Abilities::ALL
        };
        for (max, abilities, stands) in [
            (7, Abilities::ALL, true),
            (0, Abilities::ALL, false),
            (7, blind, false),
        ] {
            let text = shared(1, max, abilities, false);
            assert_eq!(
                text.contains("ct count over 7"),
                stands,
                "{max} {abilities:?}"
            );
            assert_eq!(text.contains("set connections"), stands, "{text}");
        }
        assert_eq!(Abilities::ALL.lacks(7), [""; 0]);
        assert_eq!(
            blind.lacks(0),
            [""; 0],
            "who wants no limit misses no counting"
        );
        assert!(blind.lacks(7)[0].contains("network.connections_max"));
    }

    #[test]
    fn a_kernel_that_cannot_refuse_drops_and_says_so() {
        let mute = Abilities {
            answers: false,
            ..Abilities::ALL
        };
        assert!(shared(1, 0, Abilities::ALL, false).contains("reject with"));
        assert!(!shared(1, 0, mute, true).contains("reject with"));
        assert_eq!(mute.lacks(7).len(), 1);
    }
}
