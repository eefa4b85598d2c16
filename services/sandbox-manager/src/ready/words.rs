//! What people and programs are told about ports and probes.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use berth_domain::{
    ContainerName, Failure, PortSighting, ProbeCheck, Protocol, Reason, Sandbox, Status,
};
use berth_platform::{ListeningSocket, SocketHolder};

use super::ports::{Declared, is_loopback, named, of_interest, others};

/// An error travels in a header of limited size.
const SOCKETS_TOLD: usize = 8;

/// Who has which socket open; `None` where that could not be read.
pub(crate) type Holders = Option<BTreeMap<u64, SocketHolder>>;

/// A probe that does not succeed, and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Failing {
    pub(crate) container: ContainerName,
    pub(crate) check: ProbeCheck,
    pub(crate) answer: String,
}

/// What a sandbox is whose containers run, by what was seen of its ports and probes.
pub(crate) fn standing(
    ports: &[PortSighting],
    failing: &[Failing],
) -> (Status, &'static str, String) {
    let (there, lost): (Vec<_>, Vec<_>) = ports.iter().partition(|it| it.bound);
    let mut said = vec![];
    if !lost.is_empty() {
        said.push(format!(
            "port {} no longer listens",
            join(lost.into_iter().map(of))
        ));
    }
    let port_lost = !said.is_empty();
    said.extend(failing.iter().map(|it| {
        let Failing {
            container,
            check,
            answer,
        } = it;
        format!("the readiness probe of container {container} fails, {check}: {answer}")
    }));
    if !said.is_empty() {
        let reason = if port_lost {
            "PORT_LOST"
        } else {
            Reason::ProbeFailed.as_str()
        };
        return (Status::NotReady, reason, said.join("; "));
    }
    let elsewhere = there.into_iter().filter_map(|it| {
        let bound = it.bound_port?;
        Some(format!(
            "{bound} is listened on in the place of port {}",
            of(it)
        ))
    });
    let message = join(elsewhere);
    let reason = if message.is_empty() {
        ""
    } else {
        "PORT_DIVERGED"
    };
    (Status::Running, reason, message)
}

fn of(it: &PortSighting) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = named(&mut text, it.port, it.protocol, &it.container);
    text
}

/// The ports that were declared, in words.
pub(crate) fn expected(missing: &[Declared<'_>]) -> String {
    join(missing.iter().map(ToString::to_string))
}

/// Says what was expected, what listened in its place and by whom, and what to do.
pub(crate) fn port_timeout(
    sandbox: &Sandbox,
    missing: &[Declared<'_>],
    sockets: &[ListeningSocket],
    holders: &Holders,
    waited: Duration,
) -> Failure {
    let expected = expected(missing);
    let told = |sockets: &mut dyn Iterator<Item = &ListeningSocket>| list(sockets, holders);
    let relevant: Vec<_> = of_interest(sockets, missing).collect();
    let (loopback, routable): (Vec<_>, Vec<_>) = relevant
        .iter()
        .copied()
        .partition(|it| is_loopback(it.address));
    let is_expected = |it: &&ListeningSocket| {
        let mut missing = missing.iter();
        missing.any(|of| (of.port.number, of.port.protocol) == (it.port, it.protocol))
    };
    let on_loopback: Vec<_> = loopback.iter().copied().filter(is_expected).collect();
    let others = others(&sandbox.spec, sockets, missing);
    let wrong = match on_loopback.is_empty() && others.is_empty() {
        // Whatever there is on loopback is what the app has.
        true => &loopback,
        false => &on_loopback,
    };
    let (finding, advice) = if !wrong.is_empty() {
        let there = told(&mut wrong.iter().copied());
        let advice = format!(
            "on loopback only, where nobody outside the sandbox reaches it, listens {there}: bind 0.0.0.0, or :: for IPv6 \
             as well"
        );
        ("LOOPBACK_ONLY", advice)
    } else if !others.is_empty() {
        let there = told(&mut others.iter().copied());
        let advice = format!(
            "in its place listens {there}, and what of that is meant cannot be told: listen on the port that is declared, \
             or declare the one that is listened on"
        );
        ("OTHER_PORTS", advice)
    } else {
        let nothing = match routable.is_empty() {
            true => "nothing listens in the sandbox",
            false => "nothing else listens in the sandbox",
        };
        let advice = format!(
            "{nothing}: its log may say why; an app that needs longer gets a longer `port_wait_timeout`"
        );
        ("NOTHING_LISTENS", advice)
    };
    let limit = sandbox.spec.port_wait_timeout.as_millis();
    let message = format!(
        "sandbox {}: port {expected} did not listen within {limit} ms; {advice}",
        sandbox.id
    );
    Failure::new(Reason::PortTimeout, message)
        .with("finding", finding)
        .with("expected", expected)
        .with("listening", told(&mut relevant.iter().copied()))
        .with("routable", told(&mut routable.iter().copied()))
        .with("loopback", told(&mut loopback.iter().copied()))
        .with("waited_ms", waited.as_millis())
}

/// Says which probe did not succeed, and what came of its last try.
pub(crate) fn probe_timeout(sandbox: &Sandbox, failing: &Failing, waited: Duration) -> Failure {
    let Failing {
        container,
        check,
        answer,
    } = failing;
    let answer = match answer.as_str() {
        "" => "it was not answered yet",
        answer => answer,
    };
    let waited = waited.as_millis();
    let message = format!(
        "sandbox {}: the readiness probe of container {container}, {check}, did not succeed within {waited} ms: {answer}",
        sandbox.id
    );
    Failure::new(Reason::ProbeFailed, message)
        .with("container", container)
        .with("probe", check)
        .with("answer", answer)
        .with("waited_ms", waited)
}

/// `0.0.0.0:80 (httpd, process 1 of web)`, each address once.
fn list(sockets: &mut dyn Iterator<Item = &ListeningSocket>, holders: &Holders) -> String {
    let sockets: BTreeMap<_, _> = sockets
        .map(|it| ((it.protocol, it.address, it.port), it.inode))
        .collect();
    let beyond = sockets.len().saturating_sub(SOCKETS_TOLD);
    let told = sockets.into_iter().take(SOCKETS_TOLD);
    let told = told.map(|((protocol, address, port), inode)| {
        let address = match address {
            IpAddr::V4(ip) => format!("{ip}:{port}"),
            IpAddr::V6(ip) => format!("[{ip}]:{port}"),
        };
        let protocol = match protocol {
            Protocol::Tcp => "",
            Protocol::Udp => "/udp",
        };
        let holder = holders.as_ref().and_then(|it| it.get(&inode));
        let holder = holder.map_or_else(String::new, |it| {
            let SocketHolder { role, command, pid } = it;
            format!(" ({command}, process {pid} of {role})")
        });
        format!("{address}{protocol}{holder}")
    });
    let more = (beyond > 0).then(|| format!("and {beyond} more"));
    join(told.chain(more))
}

fn join(it: impl Iterator<Item = String>) -> String {
    it.collect::<Vec<_>>().join(", ")
}
