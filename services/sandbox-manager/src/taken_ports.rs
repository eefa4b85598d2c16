//! Ports of the node that a sandbox has and that a program of the node listens on as well, since later than its admission:
//! what a person is told of them.

use std::collections::BTreeSet;

use berth_domain::{SandboxRecord, Status};
use berth_platform::{ListeningSocket, Network, NetworkError};

/// A sentence for each.
pub(crate) async fn told<N: Network>(
    network: &N,
    records: &[SandboxRecord],
) -> Result<Vec<String>, NetworkError> {
    let live = |it: &&SandboxRecord| it.status != Status::Dead;
    let claims = |it: &&SandboxRecord| it.spec.claimed_ports().next().is_some();
    let records: Vec<_> = records.iter().filter(live).filter(claims).collect();
    if records.is_empty() {
        return Ok(vec![]);
    }
    let listens = network.node_listens().await?;
    let mut all = vec![];
    for record in records {
        let taken = taken(record, &listens, &BTreeSet::new());
        if taken.is_empty() {
            continue;
        }
        // Those of a sandbox that shares the network of the node are among them.
        let own = match record.spec.host_network {
            // Where its namespaces cannot be read, nobody can tell them apart.
            true => match network.listening(&record.id).await {
                Ok(own) => own,
                Err(error) => {
                    tracing::debug!(id = %record.id, %error, "its sockets cannot be read");
                    continue;
                }
            },
            false => vec![],
        };
        let own = own.into_iter().map(|it| it.inode).collect();
        all.extend(self::taken(record, &listens, &own));
    }
    Ok(all)
}

fn taken(record: &SandboxRecord, listens: &[ListeningSocket], own: &BTreeSet<u64>) -> Vec<String> {
    let spec = &record.spec;
    let who = match spec.host_network {
        true => "both share what comes to it, or the sandbox does not get it",
        false => "who calls it reaches the sandbox",
    };
    let taken = spec.claimed_ports().filter(|(protocol, port)| {
        let mut others = listens.iter().filter(|it| !own.contains(&it.inode));
        others.any(|it| it.protocol == *protocol && it.port == *port)
    });
    let id = &record.id;
    let sentence = |(protocol, port)| {
        format!(
            "port {port}/{protocol} of the node is that of sandbox {id}, and a program of the node has come to listen on it \
             as well: {who}"
        )
    };
    taken.map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc, time::SystemTime};

    use berth_domain::{Generation, ImageRef, Port, Protocol, SandboxId, SandboxSpec};
    use berth_platform::contract::Subject;

    use super::*;

    #[test]
    fn a_port_that_somebody_else_listens_on_is_told_and_that_of_the_sandbox_itself_is_not() {
        let record = |host_network, node_port| {
            let subject = Subject {
                image: ImageRef::parse("registry/web:1").unwrap(),
                addresses: vec![],
            };
            let mut spec = SandboxSpec::clone(&subject.sandbox("web").spec);
            spec.host_network = host_network;
            spec.containers[0].ports = vec![Port {
                number: 80,
                name: String::new(),
                protocol: Protocol::Tcp,
                kind: String::new(),
                node_port,
            }];
            let id = SandboxId::parse("web").unwrap();
            let (spec, now) = (Arc::new(spec), SystemTime::UNIX_EPOCH);
            SandboxRecord::new(id, Generation(1), spec, vec![], now)
        };
        let listens = |protocol, port, inode| ListeningSocket {
            protocol,
            address: Ipv4Addr::UNSPECIFIED.into(),
            port,
            inode,
        };
        let all = [
            listens(Protocol::Tcp, 80, 7),
            listens(Protocol::Udp, 8080, 8),
            listens(Protocol::Tcp, 8081, 9),
        ];
        let cases = [
            (false, Some(8080), 0, false),
            (false, Some(8081), 0, true),
            (false, None, 0, false),
            (true, None, 7, false),
            (true, None, 0, true),
        ];
        for (host_network, node_port, own, told) in cases {
            let record = record(host_network, node_port);
            let found = taken(&record, &all, &[own].into());
            assert_eq!(found.len(), usize::from(told), "{found:?}");
            assert!(
                found.iter().all(|it| it.contains("sandbox web")),
                "{found:?}"
            );
        }
    }
}
