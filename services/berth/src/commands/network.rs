//! Commands on the addresses of the node: net ls, leases, rules, release, subnets, reserve, unreserve.

use berth_api::v1::{self, network_service_client::NetworkServiceClient};
use jiff::Timestamp;
use serde::Serialize;
use tonic::transport::Channel;

use super::Session;
use crate::{
    args::{LeaseStateArg, Net},
    errors::Failure,
    output::{age, page, size, table, word},
    proto_json::ProtoJson,
};

pub(super) async fn run(session: &Session, command: Net) -> Result<(), Failure> {
    match command {
        Net::Ls => count(session).await,
        Net::Leases { state } => list(session, state).await,
        Net::Release { ip: Some(ip), .. } => release(session, &ip).await,
        Net::Release { ip: None, .. } => release_resting(session).await,
        Net::Subnets => subnets(session).await,
        Net::Reserve {
            identifier,
            prefix_length,
        } => reserve(session, identifier, prefix_length).await,
        Net::Unreserve { identifier } => unreserve(session, identifier).await,
        Net::Rules { id } => rules(session, id.unwrap_or_default()).await,
    }
}

async fn client(session: &Session) -> Result<NetworkServiceClient<Channel>, Failure> {
    Ok(NetworkServiceClient::new(session.connect().await?))
}

async fn count(session: &Session) -> Result<(), Failure> {
    let request = session.request(v1::CountLeasesRequest {});
    let answer = client(session).await?.count_leases(request).await?;
    let it = answer.into_inner();
    Ok(session.output.object(&ProtoJson(&it), || {
        let whole = page(vec![
            ("subnet", it.subnet.clone()),
            (
                "subnet6",
                match it.subnet6.as_str() {
                    "" => "none".to_owned(),
                    subnet6 => subnet6.to_owned(),
                },
            ),
            ("bridge", it.bridge.clone()),
            ("addresses", it.capacity.to_string()),
            ("held", it.held.to_string()),
            ("resting", it.resting.to_string()),
            ("free", it.free.to_string()),
        ]);
        match it.subnets.as_slice() {
            [] => whole,
            some => format!("{whole}\n\n{}", subnet_table(some)),
        }
    })?)
}

async fn list(session: &Session, state: Option<LeaseStateArg>) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Leases<'a> {
        leases: Vec<ProtoJson<'a, v1::AddressLease>>,
    }

    let state = state.map_or(v1::LeaseState::Unspecified, Into::into);
    let leases = leases(session, &mut client(session).await?, state).await?;
    let object = Leases {
        leases: leases.iter().map(ProtoJson).collect(),
    };
    Ok(session
        .output
        .object(&object, || lease_table(&leases, Timestamp::now()))?)
}

async fn leases(
    session: &Session,
    client: &mut NetworkServiceClient<Channel>,
    state: v1::LeaseState,
) -> Result<Vec<v1::AddressLease>, Failure> {
    let (mut leases, mut page_token) = (vec![], String::new());
    loop {
        let request = session.request(v1::ListLeasesRequest {
            state: state.into(),
            page_size: 0,
            page_token,
        });
        let page = client.list_leases(request).await?.into_inner();
        leases.extend(page.leases);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(leases);
        }
    }
}

/// Makes the address free that it was a moment ago, and no other owner's.
async fn release(session: &Session, address: &str) -> Result<(), Failure> {
    let mut client = client(session).await?;
    let all = leases(session, &mut client, v1::LeaseState::Unspecified).await?;
    let lease = all.into_iter().find(|it| it.address == address);
    let lease = lease.ok_or_else(|| Failure::NoLease(address.to_owned()))?;
    let request = session.request(v1::ReleaseLeaseRequest {
        address: lease.address,
        expected_owner: lease.owner,
        expected_generation: lease.generation,
    });
    let answer = client.release_lease(request).await?.into_inner();
    Ok(session
        .output
        .object(&ProtoJson(&answer), || format!("{address} is free"))?)
}

async fn release_resting(session: &Session) -> Result<(), Failure> {
    let request = session.request(v1::ReleaseRestingLeasesRequest {});
    let mut client = client(session).await?;
    let answer = client.release_resting_leases(request).await?.into_inner();
    Ok(session.output.object(&ProtoJson(&answer), || {
        format!("{} addresses are free", answer.released)
    })?)
}

async fn subnets(session: &Session) -> Result<(), Failure> {
    let request = session.request(v1::ListSubnetsRequest {});
    let answer = client(session).await?.list_subnets(request).await?;
    let it = answer.into_inner();
    Ok(session
        .output
        .object(&ProtoJson(&it), || subnet_table(&it.subnets))?)
}

async fn reserve(session: &Session, identifier: String, prefix_length: u32) -> Result<(), Failure> {
    let request = session.request(v1::ReserveSubnetRequest {
        identifier,
        prefix_length,
    });
    let answer = client(session).await?.reserve_subnet(request).await?;
    let it = answer.into_inner();
    Ok(session.output.object(&ProtoJson(&it), || {
        let subnet = it.subnet.clone().unwrap_or_default();
        format!("{} is reserved for {}", subnet.subnet, subnet.identifier)
    })?)
}

async fn unreserve(session: &Session, identifier: String) -> Result<(), Failure> {
    let request = session.request(v1::ReleaseSubnetRequest { identifier });
    let answer = client(session).await?.release_subnet(request).await?;
    let it = answer.into_inner();
    Ok(session.output.object(&ProtoJson(&it), || {
        let subnet = it.former.clone().unwrap_or_default();
        format!("{} is everybody's again", subnet.subnet)
    })?)
}

fn subnet_table(subnets: &[v1::ReservedSubnet]) -> String {
    let rows = subnets.iter().map(|it| {
        [
            it.subnet.clone(),
            it.identifier.clone(),
            it.capacity.to_string(),
            it.held.to_string(),
            it.resting.to_string(),
            it.free.to_string(),
        ]
    });
    let columns = ["SUBNET", "FOR", "ADDRESSES", "HELD", "RESTING", "FREE"];
    table(columns, rows.collect())
}

async fn rules(session: &Session, sandbox: String) -> Result<(), Failure> {
    let mut client = client(session).await?;
    let mut whole = v1::ListRulesResponse::default();
    loop {
        let request = session.request(v1::ListRulesRequest {
            sandbox: sandbox.clone(),
            page_size: 0,
            page_token: whole.next_page_token.clone(),
        });
        let mut page = client.list_rules(request).await?.into_inner();
        let former = std::mem::take(&mut whole.sandboxes);
        page.sandboxes.splice(0..0, former);
        whole = page;
        if whole.next_page_token.is_empty() {
            break;
        }
    }
    Ok(session
        .output
        .object(&ProtoJson(&whole), || rule_tables(&whole))?)
}

fn rule_tables(rules: &v1::ListRulesResponse) -> String {
    let head = match &rules.table {
        None => "no rules: the kernel of this node has no NAT for nftables".to_owned(),
        Some(it) if it.stands => format!("table {} of version {} stands", it.name, it.version),
        Some(it) => format!("table {} of version {} is gone", it.name, it.version),
    };
    let accepts = rules.foreign_accepts.iter().map(|it| {
        let (packets, bytes) = (it.packets, size(it.bytes));
        format!(
            "\naccept in chain {} of table {} {}: {} ({packets} packets, {bytes})",
            it.chain, it.family, it.table, it.comment
        )
    });
    let rows = rules.sandboxes.iter().map(|it| {
        let ports = it.node_ports.iter().map(|it| {
            let protocol = match it.protocol() {
                v1::Protocol::Unspecified | v1::Protocol::Tcp => "tcp",
                v1::Protocol::Udp => "udp",
            };
            format!("{}/{protocol}->{}", it.node_port, it.port)
        });
        let policy = it.network.clone().unwrap_or_default();
        let denied = it.denied.unwrap_or_default();
        [
            it.sandbox.clone(),
            it.link.clone(),
            it.addresses.join(","),
            ports.collect::<Vec<_>>().join(","),
            egress(&policy),
            policy.allow_from.join(","),
            denied.packets.to_string(),
            denied.spoofed_packets.to_string(),
        ]
    });
    let columns = [
        "SANDBOX",
        "LINK",
        "ADDRESSES",
        "NODE PORTS",
        "EGRESS",
        "LETS IN",
        "DENIED",
        "SPOOFED",
    ];
    let accepts: String = accepts.collect();
    format!("{head}{accepts}\n{}", table(columns, rows.collect()))
}

/// `OPEN`, `DENY`, or where connections may go.
fn egress(policy: &v1::NetworkPolicy) -> String {
    let rule = |it: &v1::EgressRule| match (it.port, it.protocol()) {
        (0, _) => format!("{}{}", it.cidr, it.dns_name),
        (port, v1::Protocol::Udp) => format!("{}{}:{port}/udp", it.cidr, it.dns_name),
        (port, v1::Protocol::Unspecified | v1::Protocol::Tcp) => {
            format!("{}{}:{port}", it.cidr, it.dns_name)
        }
    };
    match policy.egress() {
        v1::EgressMode::Unspecified | v1::EgressMode::Open => "OPEN".to_owned(),
        v1::EgressMode::Deny => "DENY".to_owned(),
        v1::EgressMode::Allow => {
            let rules: Vec<_> = policy.egress_rules.iter().map(rule).collect();
            rules.join(",")
        }
    }
}

fn lease_table(leases: &[v1::AddressLease], now: Timestamp) -> String {
    let rows = leases.iter().map(|it| {
        let state = word(it.state().as_str_name(), "LEASE_STATE_").to_owned();
        let since = it.released_at.as_ref().or(it.held_since.as_ref());
        [
            it.address.clone(),
            state,
            it.owner.clone(),
            it.generation.to_string(),
            age(since, now),
            it.boot_id.chars().take(8).collect(),
        ]
    });
    let columns = ["ADDRESS", "STATE", "OWNER", "GENERATION", "SINCE", "BOOT"];
    table(columns, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_subnet_tells_whose_it_is_and_what_is_left_of_it() {
        let subnet = v1::ReservedSubnet {
            identifier: "team".to_owned(),
            subnet: "10.0.0.16/28".to_owned(),
            capacity: 16,
            held: 3,
            resting: 1,
            free: 12,
        };
        assert_eq!(
            subnet_table(&[subnet]),
            "SUBNET        FOR   ADDRESSES  HELD  RESTING  FREE\n\
             10.0.0.16/28  team  16         3     1        12"
        );
    }

    #[test]
    fn a_lease_tells_since_when_it_is_what_it_is() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let held = v1::AddressLease {
            address: "10.0.0.2".to_owned(),
            owner: "web".to_owned(),
            generation: 7,
            state: v1::LeaseState::Held.into(),
            held_since: at(100),
            boot_id: "0123456789ab".to_owned(),
            ..Default::default()
        };
        let resting = v1::AddressLease {
            address: "10.0.0.3".to_owned(),
            owner: "db".to_owned(),
            generation: 5,
            state: v1::LeaseState::Resting.into(),
            released_at: at(150),
            free_at: at(1950),
            ..Default::default()
        };
        let now = Timestamp::from_second(190).expect("it is in range");
        assert_eq!(
            lease_table(&[held, resting], now),
            "ADDRESS   STATE    OWNER  GENERATION  SINCE  BOOT\n\
             10.0.0.2  HELD     web    7           1m30s  01234567\n\
             10.0.0.3  RESTING  db     5           40s    -"
        );
    }
}
