//! Firewalls of others that drop what our rules let through: a packet has to pass all of them. Reads what `nft` lists, and
//! changes nothing.

/// What of a list of chains (`nft list chains`) may drop the packets of sandboxes, a sentence each.
pub(crate) fn obstacles(chains: &str, own: &str) -> Vec<String> {
    let mut found = vec![];
    let (mut table, mut chain) = ("", "");
    for line in chains.lines().map(str::trim) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["table", _, name, "{"] => table = name,
            ["chain", name, "{"] => {
                chain = name;
                if *name == "DOCKER-USER" {
                    found.push(format!(
                        "docker filters what is forwarded: chain DOCKER-USER of table {table} has to accept the subnet"
                    ));
                }
            }
            [..] if table == own => {}
            [..] if line.contains(" hook forward ") => {
                if line.contains("policy drop") {
                    found.push(format!(
                        "chain {chain} of table {table} drops what is forwarded: it has to accept the subnet"
                    ));
                } else if table == "firewalld" {
                    found.push(
                        "firewalld filters what is forwarded: a zone that accepts has to have the subnet as source"
                            .to_owned(),
                    );
                }
            }
            [..] => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(table: &str, chain: &str, policy: &str) -> String {
        let hook =
            |hook, policy| format!("type filter hook {hook} priority filter; policy {policy};");
        let (forward, input) = (hook("forward", policy), hook("input", "drop"));
        format!(
            "table {table} {{\n\tchain OTHER {{\n\t}}\n\tchain {chain} {{\n\t\t{forward}\n\t}}\n\
             \tchain INPUT {{\n\t\t{input}\n\t}}\n}}\n"
        )
    }

    #[test]
    #[rustfmt::skip]
    fn who_drops_what_is_forwarded_is_named() {
        let cases = [
            (chains("ip filter", "FORWARD", "accept"), None),
            (chains("ip filter", "FORWARD", "drop"), Some("chain FORWARD of table filter")),
            (chains("inet mine", "forward", "drop"), Some("chain forward of table mine")),
            (chains("inet firewalld", "filter_FORWARD", "accept"), Some("firewalld")),
            (chains("inet berth-a1", "forward", "drop"), None),
            ("table ip filter {\n\tchain DOCKER-USER {\n\t}\n}\n".to_owned(), Some("DOCKER-USER")),
        ];
        for (list, expected) in cases {
            let found = obstacles(&list, "berth-a1");
            assert_eq!(found.len(), usize::from(expected.is_some()), "{found:?} in {list}");
            let named = found.iter().zip(expected).all(|(it, expected)| it.contains(expected));
            assert!(named, "{found:?}");
        }
    }
}
