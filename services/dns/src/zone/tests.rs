//! Who is told what, case by case.

use std::collections::BTreeMap;

use berth_domain::{
    NamePattern, NamedDestination,
    catalog::{App, Host, Object, Service, Version},
};

use berth_domain::BoundPorts;

use super::*;
use crate::known::Fact;

const DOMAIN: &str = "app.berth";

fn sandbox(id: &str, generation: u64, version: &str, address: &str, status: Status) -> Placed {
    Placed {
        id: SandboxId::parse(id).unwrap(),
        generation: Generation(generation),
        version: version.into(),
        labels: BTreeMap::new(),
        status,
        addresses: vec![address.parse().unwrap()],
        lookup: Lookup::Any,
        bound_ports: BoundPorts::new(),
    }
}

fn service(id: &str, app: &str, name: &str) -> Object {
    let port = |name: &str, port, protocol| ServicePort {
        name: name.into(),
        port,
        target_port: port + 8000,
        protocol,
    };
    Object::Service(Service {
        id: id.into(),
        app: app.into(),
        name: name.into(),
        labels: BTreeMap::new(),
        ports: vec![
            port("http", 80, Protocol::Tcp),
            port("quic", 443, Protocol::Udp),
        ],
    })
}

fn host(id: &str, app: Option<&str>, name: &str, address: &str) -> Object {
    Object::Host(Host {
        id: id.into(),
        app: app.map(str::to_owned),
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
    })
}

/// Two apps of one version each, with a service `web` each; app `a` has `idle` too, which nobody answers for.
fn known() -> Known {
    let mut known = Known::default();
    let mut entries = vec![
        service("a-web", "a", "web"),
        service("b-web", "b", "web"),
        host("all", None, "db.example.org", "192.0.2.1"),
        host("six", None, "six.example.org", "2001:db8::1"),
        host("own", Some("a"), "vault.example.org", "192.0.2.2"),
        host("local", Some("a"), "cache.app.berth", "192.0.2.3"),
    ];
    for app in ["a", "b"] {
        entries.push(Object::App(App {
            id: app.into(),
            name: app.into(),
        }));
        entries.push(Object::Version(Version {
            id: format!("{app}1"),
            app: app.into(),
            ..Version::default()
        }));
    }
    let labels = [("nobody".to_owned(), "has this".to_owned())].into();
    entries.push(Object::Service(Service {
        id: "a-idle".into(),
        app: "a".into(),
        name: "idle".into(),
        labels,
        ports: vec![],
    }));
    known.learn(Fact::Entries(entries), 1);
    let sandboxes = vec![
        sandbox("a-1", 1, "a1", "10.9.0.2", Status::Running),
        sandbox("a-2", 2, "a1", "10.9.0.3", Status::Running),
        sandbox("a-3", 3, "a1", "10.9.0.4", Status::Pending),
        sandbox("b-1", 4, "b1", "10.9.0.5", Status::Running),
        sandbox("x-1", 5, "", "10.9.0.6", Status::Running),
    ];
    known.learn(Fact::Sandboxes(sandboxes), 5);
    known
}

fn zone(known: &Known) -> Zone {
    let subnets = Subnets {
        v4: "10.9.0.0/24".parse().unwrap(),
        v6: Some("fd00:9::/64".parse().unwrap()),
    };
    Zone::new(known, DOMAIN, subnets)
}

/// The answer in short: the records as texts, or what is done instead.
fn ask(zone: &Zone, caller: &str, name: &str, kind: Kind) -> String {
    match zone.answer(caller.parse().unwrap(), Question { name, kind }) {
        Answer::Refused => "refused".to_owned(),
        Answer::Forward => "forward".to_owned(),
        Answer::Unknown => "unknown".to_owned(),
        Answer::Own { records, .. } => records.iter().map(text).collect::<Vec<_>>().join(" | "),
    }
}

fn text(it: &Data) -> String {
    match it {
        Data::A(it) => it.to_string(),
        Data::Aaaa(it) => it.to_string(),
        Data::Ptr(name) => name.clone(),
        Data::Srv { port, target } => format!("{target}:{port}"),
        Data::Txt(texts) => texts.join("+"),
    }
}

#[test]
#[rustfmt::skip]
fn each_caller_is_told_what_its_app_may_see() {
    use Kind::{A, Aaaa, Other, Ptr, Srv, Txt};
    let (a, pending, b, none, free) = ("10.9.0.2", "10.9.0.4", "10.9.0.5", "10.9.0.6", "10.9.0.99");
    let cases = [
        (a,            "web.app.berth",              A,     "10.9.0.2 | 10.9.0.3"),
        (pending,      "web.app.berth",              A,     "10.9.0.2 | 10.9.0.3"),
        (b,            "web.app.berth",              A,     "10.9.0.5"),
        (none,         "web.app.berth",              A,     ""),
        (free,         "web.app.berth",              A,     ""),
        (a,            "web.app.berth",              Aaaa,  ""),
        (a,            "web.app.berth",              Other, ""),
        (a,            "web.app.berth",              Txt,   ""),
        (a,            "idle.app.berth",             A,     ""),
        (a,            "none.app.berth",             A,     ""),
        (a,            "x.web.app.berth",            A,     ""),
        (a,            "app.berth",                  Txt,   "idle web"),
        (b,            "app.berth",                  Txt,   "web"),
        (none,         "app.berth",                  Txt,   ""),
        (a,            "app.berth",                  A,     ""),
        (a,            "webapp.berth",               A,     "forward"),
        (a,            "berth",                      A,     "forward"),
        (a,            "example.org",                A,     "forward"),
        (a,            "",                           Other, "forward"),
        (none,         "example.org",                A,     "forward"),
        (free,         "example.org",                A,     "unknown"),
        (free,         "db.example.org",             A,     "192.0.2.1"),
        (a,            "_http._tcp.web.app.berth",   Srv,   "web.app.berth:8080"),
        (a,            "_quic._udp.web.app.berth",   Srv,   "web.app.berth:8443"),
        (a,            "_http._udp.web.app.berth",   Srv,   ""),
        (a,            "http._tcp.web.app.berth",    Srv,   ""),
        (a,            "_http._tcp.idle.app.berth",  Srv,   ""),
        (none,         "_http._tcp.web.app.berth",   Srv,   ""),
        (a,            "3.0.9.10.in-addr.arpa",      Ptr,   "web.app.berth"),
        (a,            "4.0.9.10.in-addr.arpa",      Ptr,   ""),
        (a,            "5.0.9.10.in-addr.arpa",      Ptr,   ""),
        (none,         "6.0.9.10.in-addr.arpa",      Ptr,   ""),
        (a,            "3.0.9.10.in-addr.arpa",      A,     ""),
        (a,            "1.0.0.10.in-addr.arpa",      Ptr,   "forward"),
        (a,            "db.example.org",             A,     "192.0.2.1"),
        (none,         "db.example.org",             A,     "192.0.2.1"),
        (a,            "db.example.org",             Aaaa,  ""),
        (a,            "db.example.org",             Txt,   ""),
        (a,            "six.example.org",            Aaaa,  "2001:db8::1"),
        (a,            "vault.example.org",          A,     "192.0.2.2"),
        (b,            "vault.example.org",          A,     "forward"),
        (none,         "vault.example.org",          A,     "forward"),
        (a,            "cache.app.berth",            A,     "192.0.2.3"),
        (b,            "cache.app.berth",            A,     ""),
        ("10.9.1.2",   "web.app.berth",              A,     "refused"),
        ("127.0.0.1",  "example.org",                A,     "refused"),
        ("::1",        "example.org",                A,     "refused"),
    ];
    let zone = zone(&known());
    for (caller, name, kind, expected) in cases {
        assert_eq!(ask(&zone, caller, name, kind), expected, "{caller} asks for {kind:?} of {name}");
    }
}

/// A sandbox `a-9` of app `a` at 10.9.0.9 that may ask for so much.
fn asking(lookup: Lookup) -> Known {
    let mut known = known();
    let it = sandbox("a-9", 9, "a1", "10.9.0.9", Status::Pending);
    known.learn(Fact::Sandbox(Placed { lookup, ..it }), 9);
    known
}

fn named(name: &str, port: Option<u16>) -> NamedDestination {
    NamedDestination {
        name: NamePattern::parse(name).unwrap(),
        port: port.map(|port| (Protocol::Tcp, port)),
    }
}

#[test]
#[rustfmt::skip]
fn a_fenced_caller_is_told_own_names_and_asks_others_for_nothing_that_it_may_not_reach() {
    use Kind::{A, Aaaa, Other, Ptr, Txt};
    let rules = [named("api.example.org", Some(443)), named("*.example.net", None)];
    let listed = zone(&asking(Lookup::Named(rules.into())));
    let closed = zone(&asking(Lookup::Nothing));
    let open = zone(&asking(Lookup::Any));
    let cases = [
        // What is asked for               by whom may ask all  the list   nothing
        ("web.app.berth",           A,     "10.9.0.2 | 10.9.0.3", "10.9.0.2 | 10.9.0.3", "10.9.0.2 | 10.9.0.3"),
        ("app.berth",               Txt,   "idle web",          "idle web", "idle web"),
        ("vault.example.org",       A,     "192.0.2.2",         "192.0.2.2", "192.0.2.2"),
        ("3.0.9.10.in-addr.arpa",   Ptr,   "web.app.berth",     "web.app.berth", "web.app.berth"),
        ("api.example.org",         A,     "forward",           "forward", ""),
        ("api.example.org",         Aaaa,  "forward",           "forward", ""),
        ("api.example.org",         Other, "forward",           "forward", ""),
        ("secret.api.example.org",  A,     "forward",           "",        ""),
        ("secret.api.example.org",  Txt,   "forward",           "",        ""),
        ("example.org",             A,     "forward",           "",        ""),
        ("any.thing.example.net",   A,     "forward",           "forward", ""),
        ("example.net",             A,     "forward",           "",        ""),
        ("1.0.0.10.in-addr.arpa",   Ptr,   "forward",           "",        ""),
        ("",                        Other, "forward",           "",        ""),
    ];
    for (name, kind, all, list, nothing) in cases {
        let seen = [&open, &listed, &closed].map(|it| ask(it, "10.9.0.9", name, kind));
        assert_eq!(seen, [all, list, nothing], "{kind:?} of {name}");
    }
}

#[test]
fn a_door_is_opened_for_the_owner_of_the_address_and_for_names_of_its_list_only() {
    let rules = [
        named("*.example.org", Some(443)),
        named("api.example.org", Some(80)),
        named("db.example.org", None),
    ];
    let mut known = asking(Lookup::Named(rules.into()));
    let door = |known: &Known, caller: &str, name| {
        let door = zone(known).door(caller.parse().unwrap(), name);
        door.map(|it| (it.owner, it.ports, it.ipv6))
    };
    let tcp = |port| Some((Protocol::Tcp, port));
    let owner = |generation| Owner::of(Generation(generation));
    let expected = Some((owner(9), vec![tcp(80), tcp(443)], false));
    assert_eq!(door(&known, "10.9.0.9", "api.example.org"), expected);
    // Also where the node itself answers for the name.
    let expected = Some((owner(9), vec![None], false));
    assert_eq!(door(&known, "10.9.0.9", "db.example.org"), expected);
    assert_eq!(door(&known, "10.9.0.9", "web.app.berth"), None);
    assert_eq!(door(&known, "10.9.0.2", "api.example.org"), None);
    assert_eq!(door(&known, "10.9.0.99", "api.example.org"), None);
    // The next one of its address, and of its id, has doors of its own.
    let next = sandbox("b-9", 10, "b1", "10.9.0.9", Status::Pending);
    let lookup = Lookup::Named([named("api.example.org", None)].into());
    known.learn(Fact::Sandbox(Placed { lookup, ..next }), 10);
    let expected = Some((owner(10), vec![None], false));
    assert_eq!(door(&known, "10.9.0.9", "api.example.org"), expected);
}

#[test]
fn a_reused_address_never_answers_for_its_former_owner() {
    let mut known = known();
    let web = |known: &Known| ask(&zone(known), "10.9.0.3", "web.app.berth", Kind::A);
    // a-1 is gone and b-2 has its address; the word about a-1 is still on its way.
    known.learn(
        Fact::Sandbox(sandbox("b-2", 9, "b1", "10.9.0.2", Status::Pending)),
        9,
    );
    assert_eq!(web(&known), "10.9.0.3");
    let seen = ask(&zone(&known), "10.9.0.2", "web.app.berth", Kind::A);
    assert_eq!(seen, "10.9.0.5", "the new owner is of the other app");
    // Late words about the former owner publish nothing.
    for status in [Status::Running, Status::Stopped, Status::Dead] {
        known.learn(
            Fact::Sandbox(sandbox("a-1", 1, "a1", "10.9.0.2", status)),
            10,
        );
        assert_eq!(web(&known), "10.9.0.3", "{status}");
    }
    known.learn(
        Fact::SandboxGone(SandboxId::parse("a-1").unwrap(), Generation(1)),
        11,
    );
    let asked = ask(&zone(&known), "10.9.0.2", "web.app.berth", Kind::A);
    assert_eq!(asked, "10.9.0.5", "and take nothing from the new one");
}

#[test]
fn only_what_runs_is_published_and_a_former_generation_changes_nothing() {
    let mut known = known();
    let web = |known: &Known| ask(&zone(known), "10.9.0.3", "web.app.berth", Kind::A);
    for status in [
        Status::Pending,
        Status::NotReady,
        Status::Stopped,
        Status::Dead,
    ] {
        known.learn(
            Fact::Sandbox(sandbox("a-1", 1, "a1", "10.9.0.2", status)),
            6,
        );
        assert_eq!(web(&known), "10.9.0.3", "{status}");
    }
    known.learn(
        Fact::Sandbox(sandbox("a-1", 8, "a1", "10.9.0.7", Status::Running)),
        8,
    );
    assert_eq!(web(&known), "10.9.0.3 | 10.9.0.7");
    known.learn(
        Fact::SandboxGone(SandboxId::parse("a-1").unwrap(), Generation(1)),
        9,
    );
    known.learn(
        Fact::Sandbox(sandbox("a-1", 1, "a1", "10.9.0.2", Status::Running)),
        9,
    );
    assert_eq!(web(&known), "10.9.0.3 | 10.9.0.7");
    known.learn(Fact::Sandboxes(vec![]), 10);
    assert_eq!(web(&known), "");
}

#[test]
fn a_list_of_services_that_is_long_has_several_texts() {
    // Sixteen names of 15 bytes, with what stands between them, are as long as a text can be.
    const FIT: usize = 16;
    assert_eq!(FIT * 15 + FIT - 1, TEXT_MAX);
    for (longer, in_first) in [("", FIT), ("x", FIT - 1)] {
        let mut known = known();
        for number in 1..=40 {
            let longer = if number == FIT { longer } else { "" };
            let name = format!("service-of-a-{number:02}{longer}");
            known.learn(Fact::Entry(service(&name, "b", &name)), 7);
        }
        let zone = zone(&known);
        let question = Question {
            name: DOMAIN,
            kind: Kind::Txt,
        };
        let Answer::Own { records, .. } = zone.answer([10, 9, 0, 5].into(), question) else {
            panic!("it is our own");
        };
        let [Data::Txt(texts)] = records.as_slice() else {
            panic!("{records:?}");
        };
        assert_eq!(texts[0].split(' ').count(), in_first);
        assert!(texts.iter().all(|it| it.len() <= TEXT_MAX), "{texts:?}");
        let names: Vec<_> = texts.iter().flat_map(|it| it.split(' ')).collect();
        assert_eq!(names.len(), 41);
        assert!(names.is_sorted(), "{names:?}");
    }
}

#[test]
fn a_service_record_brings_the_addresses_of_its_target() {
    let zone = zone(&known());
    let question = Question {
        name: "_http._tcp.web.app.berth",
        kind: Kind::Srv,
    };
    let Answer::Own { beside, .. } = zone.answer([10, 9, 0, 5].into(), question) else {
        panic!("it is our own");
    };
    let target = "web.app.berth".to_owned();
    assert_eq!(beside, [(target, Data::A([10, 9, 0, 5].into()))]);
}

#[test]
fn a_service_record_leads_to_where_the_sandboxes_listen() {
    let question = Question {
        name: "_http._tcp.web.app.berth",
        kind: Kind::Srv,
    };
    let mut known = known();
    let mut elsewhere = sandbox("b-1", 6, "b1", "10.9.0.5", Status::Running);
    elsewhere.bound_ports.insert((Protocol::Tcp, 8080), 9000);
    known.learn(Fact::Sandbox(elsewhere), 10);
    let answer = zone(&known).answer([10, 9, 0, 5].into(), question);
    let Answer::Own { records, .. } = answer else {
        panic!("it is our own");
    };
    let records: Vec<_> = records.iter().map(text).collect();
    assert_eq!(records, ["web.app.berth:9000"]);
}

/// The reverse name of an IPv6 address.
fn reverse6(address: &str) -> String {
    let address: Ipv6Addr = address.parse().unwrap();
    let digits = format!("{:032x}", u128::from(address));
    let digits: Vec<_> = digits.chars().rev().map(String::from).collect();
    format!("{}.ip6.arpa", digits.join("."))
}

#[test]
#[rustfmt::skip]
fn a_sandbox_is_known_and_found_by_its_ipv6_address_as_by_the_other() {
    use Kind::{A, Aaaa, Ptr};
    let mut known = known();
    let mut both = sandbox("a-1", 6, "a1", "10.9.0.2", Status::Running);
    both.addresses.push("fd00:9::a09:2".parse().unwrap());
    known.learn(Fact::Sandbox(both), 6);
    let mut other = sandbox("b-1", 7, "b1", "10.9.0.5", Status::Running);
    other.addresses.push("fd00:9::a09:5".parse().unwrap());
    known.learn(Fact::Sandbox(other), 7);
    let (four, six, b) = ("10.9.0.2", "fd00:9::a09:2", "fd00:9::a09:5");
    let (own, far) = (reverse6(six), reverse6("fd00:8::a09:2"));
    let cases = [
        (four,              "web.app.berth", Aaaa, six),
        (six,               "web.app.berth", Aaaa, six),
        (six,               "web.app.berth", A,    "10.9.0.2 | 10.9.0.3"),
        (b,                 "web.app.berth", Aaaa, b),
        (six,               &own,            Ptr,  "web.app.berth"),
        (four,              &own,            Ptr,  "web.app.berth"),
        (b,                 &own,            Ptr,  ""),
        (six,               &far,            Ptr,  "forward"),
        ("fd00:9::a09:63",  "web.app.berth", Aaaa, ""),
        ("fd00:8::a09:2",   "web.app.berth", Aaaa, "refused"),
        ("::ffff:10.9.0.2", "web.app.berth", Aaaa, "refused"),
    ];
    for (caller, name, kind, expected) in cases {
        assert_eq!(ask(&zone(&known), caller, name, kind), expected, "{caller} asks {kind:?} of {name}");
    }
    // What the node has no subnet for is nobody's.
    let alone = Zone::new(&known, DOMAIN, "10.9.0.0/24".parse::<ipnet::Ipv4Net>().unwrap().into());
    assert_eq!(ask(&alone, six, "web.app.berth", A), "refused");
}
