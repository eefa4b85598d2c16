//! What a request must be to become a value of the domain.

use berth_domain::{Destination, NamePattern, NamedDestination};

use super::*;

fn request() -> v1::CreateRequest {
    let container = v1::Container {
        name: "web".into(),
        image: "nginx".into(),
        ..v1::Container::default()
    };
    let spec = v1::SandboxSpec {
        containers: vec![container],
        ..v1::SandboxSpec::default()
    };
    v1::CreateRequest {
        id: "web".into(),
        spec: Some(spec),
        ..v1::CreateRequest::default()
    }
}

fn subnet() -> Ipv4Net {
    "10.87.0.0/16".parse().unwrap()
}

fn by_gateway(gateway: &str) -> Vec<v1::Route> {
    vec![v1::Route {
        destination: "10.0.0.0/8".into(),
        gateway: gateway.into(),
    }]
}

fn resources(cpu_millis: u32, memory_bytes: u64) -> Option<v1::Resources> {
    Some(v1::Resources {
        cpu_millis,
        memory_bytes,
        ..v1::Resources::default()
    })
}

/// The fields that are reported when `spoil` has changed a good request.
fn refused(spoil: impl FnOnce(&mut v1::CreateRequest)) -> (Reason, Vec<String>) {
    let mut request = request();
    spoil(&mut request);
    let failure = create_from_proto(request, subnet()).unwrap_err();
    (
        failure.reason,
        failure.violations.into_iter().map(|it| it.field).collect(),
    )
}

fn spec(request: &mut v1::CreateRequest) -> &mut v1::SandboxSpec {
    request.spec.as_mut().unwrap()
}

fn web(request: &mut v1::CreateRequest) -> &mut v1::Container {
    &mut spec(request).containers[0]
}

fn port(number: u32) -> v1::Port {
    v1::Port {
        port: number,
        ..v1::Port::default()
    }
}

fn file(path: &str, mode: &str) -> v1::ConfigFile {
    v1::ConfigFile {
        path: path.into(),
        data: vec![],
        mode: mode.into(),
    }
}

#[test]
fn the_least_request_has_the_documented_defaults() {
    let create = create_from_proto(request(), subnet()).unwrap();
    assert!(create.wait_for_running);
    let spec = create.spec;
    assert_eq!(spec.port_wait_timeout, Duration::from_secs(15));
    assert_eq!(spec.restart_policy, RestartPolicy::Always);
    assert_eq!(spec.resources, Resources::default());
    let web = &spec.containers[0];
    assert_eq!(web.shutdown_timeout, Duration::from_secs(10));
    assert_eq!(web.image.to_string(), "docker.io/library/nginx:latest");
    assert_eq!((web.args.as_ref(), web.oom_score), (None, 0));
}

#[test]
fn every_broken_rule_is_reported_by_the_path_of_its_field() {
    type Spoil = fn(&mut v1::CreateRequest);
    let cases: &[(&str, Spoil)] = &[
        ("id", |it| it.id.clear()),
        ("id", |it| it.id = "x".repeat(41)),
        ("id", |it| it.id = "a--b".into()),
        ("id", |it| it.id = "a/../b".into()),
        ("id", |it| it.id = "A".into()),
        ("id", |it| it.id = "a\0".into()),
        ("id", |it| it.id = "a\n".into()),
        ("wait", |it| it.wait = 9),
        ("time_to_live", |it| {
            it.time_to_live = Some(prost_types::Duration::default());
        }),
        ("time_to_live", |it| {
            it.time_to_live = Some(prost_types::Duration {
                seconds: i64::MAX,
                nanos: 0,
            });
        }),
        ("spec", |it| it.spec = None),
        ("spec.labels[runtime.computer/x]", |it| {
            drop(
                spec(it)
                    .labels
                    .insert("runtime.computer/x".into(), "y".into()),
            );
        }),
        ("spec.labels[a=b]", |it| {
            spec(it).labels = [("a=b".into(), "c".into())].into();
        }),
        ("spec.labels[a]", |it| {
            drop(spec(it).labels.insert("a".into(), "y".repeat(1025)))
        }),
        ("spec.labels", |it| {
            spec(it).labels = (0..65).map(|it| (it.to_string(), String::new())).collect();
        }),
        ("spec.port_wait_timeout", |it| {
            spec(it).port_wait_timeout = Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            });
        }),
        ("spec.port_wait_timeout", |it| {
            spec(it).port_wait_timeout = Some(prost_types::Duration {
                seconds: 3601,
                nanos: 0,
            });
        }),
        ("spec.restart_policy", |it| spec(it).restart_policy = 7),
        ("spec.routes[0].destination", |it| {
            spec(it).routes = vec![v1::Route {
                destination: "10.0.0.0/33".into(),
                gateway: String::new(),
            }];
        }),
        ("spec.routes[0].destination", |it| {
            spec(it).routes = vec![v1::Route {
                destination: "10.0.0.1/8".into(),
                gateway: String::new(),
            }];
        }),
        ("spec.routes[0].gateway", |it| {
            spec(it).routes = by_gateway("x")
        }),
        ("spec.routes[0].gateway", |it| {
            spec(it).routes = by_gateway("10.88.0.1")
        }),
        ("spec.routes[0].gateway", |it| {
            spec(it).routes = by_gateway("10.87.0.2")
        }),
        ("spec.routes[0].gateway", |it| {
            spec(it).routes = by_gateway("10.87.255.255")
        }),
        ("spec.static_hosts[0].host", |it| {
            spec(it).static_hosts = vec![v1::StaticHost {
                host: "a b".into(),
                ip: "::1".into(),
            }];
        }),
        ("spec.static_hosts[0].ip", |it| {
            spec(it).static_hosts = vec![v1::StaticHost {
                host: "a".into(),
                ip: "1.2.3".into(),
            }];
        }),
        ("spec.containers", |it| spec(it).containers.clear()),
        ("spec.containers[1].name", |it| {
            let twin = web(it).clone();
            spec(it).containers.push(twin);
        }),
        ("spec.containers[0].name", |it| {
            web(it).name = "pause".into()
        }),
        ("spec.containers[0].image", |it| {
            web(it).image = "UPPER".into()
        }),
        ("spec.containers[0].args", |it| {
            web(it).command = "x".into();
            web(it).args = vec!["y".into()];
        }),
        ("spec.containers[0].args[0]", |it| {
            web(it).args = vec!["\0".into()]
        }),
        ("spec.containers[0].directory", |it| {
            web(it).directory = "etc".into()
        }),
        ("spec.containers[0].directory", |it| {
            web(it).directory = "/a/../b".into()
        }),
        ("spec.containers[0].env[1]", |it| {
            web(it).env = vec!["A=b".into(), "A".into()]
        }),
        ("spec.containers[0].env[0]", |it| {
            web(it).env = vec!["=b".into()]
        }),
        ("spec.containers[0].ports[0].port", |it| {
            web(it).ports = vec![port(0)]
        }),
        ("spec.containers[0].ports[0].port", |it| {
            web(it).ports = vec![port(65536)]
        }),
        ("spec.containers[0].ports[1].port", |it| {
            web(it).ports = vec![port(80), port(80)]
        }),
        ("spec.containers[0].ports[0].protocol", |it| {
            web(it).ports = vec![v1::Port {
                protocol: 9,
                ..port(80)
            }];
        }),
        ("spec.containers[0].ports[0].name", |it| {
            web(it).ports = vec![v1::Port {
                name: "A".into(),
                ..port(80)
            }];
        }),
        ("spec.containers[0].stdin", |it| web(it).stdin = true),
        ("spec.containers[0].oom_score", |it| {
            web(it).oom_score = 1001
        }),
        ("spec.containers[0].config_files[0].mode", |it| {
            web(it).config_files = vec![file("/a", "0888")];
        }),
        ("spec.containers[0].config_files[0].mode", |it| {
            web(it).config_files = vec![file("/a", "+644")];
        }),
        ("spec.containers[0].config_files[0].path", |it| {
            web(it).config_files = vec![file("/", "")];
        }),
        ("spec.containers[0].config_files[1].path", |it| {
            web(it).config_files = vec![file("/a", ""), file("/a", "")];
        }),
        ("spec.containers[0].config_files[0].data", |it| {
            let data = vec![0; (64 << 10) + 1];
            web(it).config_files = vec![v1::ConfigFile {
                data,
                ..file("/a", "")
            }];
        }),
        ("spec.containers[0].shutdown_timeout", |it| {
            web(it).shutdown_timeout = Some(prost_types::Duration {
                seconds: 3601,
                nanos: 0,
            });
        }),
        ("spec.resources.cpu_millis", |it| {
            let resources = v1::Resources {
                cpu_millis: 9,
                ..v1::Resources::default()
            };
            spec(it).resources = Some(resources);
        }),
        ("spec.containers[0].resources.memory_bytes", |it| {
            let resources = v1::Resources {
                memory_bytes: 1,
                ..v1::Resources::default()
            };
            web(it).resources = Some(resources);
        }),
        ("spec.containers[0].resources.cpu_millis", |it| {
            spec(it).resources = resources(500, 0);
            web(it).resources = resources(501, 0);
        }),
        ("spec.containers[0].resources.memory_bytes", |it| {
            spec(it).resources = resources(0, 64 << 20);
            web(it).resources = resources(0, (64 << 20) + 1);
        }),
        ("spec.resources.memory_high_bytes", |it| {
            let resources = v1::Resources {
                memory_bytes: 4 << 20,
                memory_high_bytes: 8 << 20,
                ..v1::Resources::default()
            };
            spec(it).resources = Some(resources);
        }),
        ("spec.resources.pids", |it| {
            spec(it).resources = Some(v1::Resources {
                pids: u32::MAX,
                ..v1::Resources::default()
            });
        }),
    ];
    for (place, (field, spoil)) in cases.iter().enumerate() {
        assert_eq!(
            refused(spoil),
            (Reason::InvalidField, vec![(*field).to_owned()]),
            "case {place}"
        );
    }
}

#[test]
fn a_container_may_have_as_much_as_its_sandbox_and_a_route_any_host_of_the_subnet() {
    let limits = [
        (resources(500, 64 << 20), resources(500, 64 << 20)),
        (None, resources(501, 65 << 20)),
        (resources(500, 64 << 20), None),
    ];
    for (whole, own) in limits {
        let mut request = request();
        spec(&mut request).resources = whole;
        web(&mut request).resources = own;
        create_from_proto(request, subnet()).unwrap();
    }
    for gateway in ["", "10.87.0.1"] {
        let mut request = request();
        spec(&mut request).routes = by_gateway(gateway);
        create_from_proto(request, subnet()).unwrap();
    }
}

fn allowing(egress_rules: Vec<v1::EgressRule>) -> Option<v1::NetworkPolicy> {
    Some(v1::NetworkPolicy {
        egress: v1::EgressMode::Allow.into(),
        egress_rules,
        ..v1::NetworkPolicy::default()
    })
}

fn rule(cidr: &str, port: u32) -> v1::EgressRule {
    v1::EgressRule {
        cidr: cidr.into(),
        port,
        ..v1::EgressRule::default()
    }
}

fn by_name(name: &str, port: u32) -> v1::EgressRule {
    v1::EgressRule {
        dns_name: name.into(),
        port,
        ..v1::EgressRule::default()
    }
}

#[test]
fn a_policy_of_the_network_is_read_like_this() {
    let mut request = request();
    let named = v1::EgressRule {
        protocol: v1::Protocol::Udp.into(),
        ..by_name("*.example.org", 123)
    };
    let rules = vec![
        rule("10.0.0.0/8", 0),
        named,
        rule("192.0.2.7/32", 443),
        rule("2001:db8::/32", 443),
    ];
    let mut policy = allowing(rules);
    policy.as_mut().unwrap().allow_from = vec!["app=web".into()];
    policy.as_mut().unwrap().subnet = "team".into();
    spec(&mut request).network = policy;
    web(&mut request).ports = vec![v1::Port {
        node_port: 8080,
        ..port(80)
    }];
    let read = create_from_proto(request, subnet()).unwrap().spec;
    let destination = |net: &str, port| Destination {
        net: net.parse().unwrap(),
        port,
    };
    assert_eq!(
        read.network,
        NetworkPolicy {
            egress: Egress::Allow(vec![
                destination("10.0.0.0/8", None),
                destination("192.0.2.7/32", Some((Protocol::Tcp, 443))),
                destination("2001:db8::/32", Some((Protocol::Tcp, 443))),
            ]),
            egress_names: vec![NamedDestination {
                name: NamePattern::parse("*.example.org").unwrap(),
                port: Some((Protocol::Udp, 123)),
            }],
            allow_from: vec!["app=web".into()],
            subnet: Some("team".into()),
        }
    );
    let ports: Vec<_> = read.node_ports().collect();
    assert_eq!(ports, [(Protocol::Tcp, 8080, 80)]);
}

#[test]
fn a_policy_that_breaks_a_rule_is_refused_by_the_field() {
    type Spoil = fn(&mut v1::CreateRequest);
    let cases: &[(&str, Spoil)] = &[
        ("spec.network.egress", |it| {
            spec(it).network = Some(v1::NetworkPolicy {
                egress: 9,
                ..v1::NetworkPolicy::default()
            });
        }),
        ("spec.network.egress_rules", |it| {
            spec(it).network = Some(v1::NetworkPolicy {
                egress_rules: vec![rule("10.0.0.0/8", 0)],
                ..v1::NetworkPolicy::default()
            });
        }),
        ("spec.network.egress_rules", |it| {
            spec(it).network = allowing(vec![rule("10.0.0.0/8", 0); 10_000]);
        }),
        ("spec.network.egress_rules", |it| {
            // Networks and names count together, and the limit is said.
            let mut rules = vec![by_name("api.example.org", 443); 9_900];
            rules.extend(vec![rule("10.0.0.0/8", 0); 100]);
            spec(it).network = allowing(rules);
        }),
        ("spec.network.egress_rules[1].dns_name", |it| {
            let rules = vec![rule("10.0.0.0/8", 0), by_name("API.example.org", 443)];
            spec(it).network = allowing(rules);
        }),
        ("spec.network.egress_rules[0].dns_name", |it| {
            spec(it).network = allowing(vec![by_name("a_b.example.org", 0)]);
        }),
        ("spec.network.egress_rules[0].dns_name", |it| {
            spec(it).network = allowing(vec![by_name("*", 0)]);
        }),
        ("spec.network.egress_rules[0].cidr", |it| {
            let both = v1::EgressRule {
                dns_name: "api.example.org".into(),
                ..rule("10.0.0.0/8", 0)
            };
            spec(it).network = allowing(vec![both]);
        }),
        ("spec.network.egress_rules[0].cidr", |it| {
            spec(it).network = allowing(vec![v1::EgressRule::default()]);
        }),
        ("spec.network.egress_rules[0].port", |it| {
            let rules = vec![rule("10.0.0.0/8", 53), by_name("api.example.org", 443)];
            spec(it).network = allowing(rules);
        }),
        ("spec.network.egress_rules[0].port", |it| {
            spec(it).network = allowing(vec![by_name("dns.example.org", 853)]);
        }),
        ("spec.network.egress_rules", |it| {
            spec(it).network = Some(v1::NetworkPolicy {
                egress_rules: vec![by_name("api.example.org", 443)],
                ..v1::NetworkPolicy::default()
            });
        }),
        ("spec.network.egress_rules[0].cidr", |it| {
            spec(it).network = allowing(vec![rule("10.0.0.1/8", 0)]);
        }),
        ("spec.network.egress_rules[0].cidr", |it| {
            spec(it).network = allowing(vec![rule("fd00::1/8", 0)]);
        }),
        ("spec.network.egress_rules[0].cidr", |it| {
            spec(it).network = allowing(vec![rule("fd00::/129", 0)]);
        }),
        ("spec.network.egress_rules[0].port", |it| {
            spec(it).network = allowing(vec![rule("10.0.0.0/8", 65_536)]);
        }),
        ("spec.network.egress_rules[0].port", |it| {
            let udp = v1::EgressRule {
                protocol: v1::Protocol::Udp.into(),
                ..rule("10.0.0.0/8", 0)
            };
            spec(it).network = allowing(vec![udp]);
        }),
        ("spec.network.allow_from", |it| {
            let allow_from = (0..5).map(|it| format!("a={it}")).collect();
            spec(it).network = Some(v1::NetworkPolicy {
                allow_from,
                ..v1::NetworkPolicy::default()
            });
        }),
        ("spec.network.allow_from[0]", |it| {
            spec(it).network = Some(v1::NetworkPolicy {
                allow_from: vec!["web".into()],
                ..v1::NetworkPolicy::default()
            });
        }),
        ("spec.network.subnet", |it| {
            spec(it).network = Some(v1::NetworkPolicy {
                subnet: "x".repeat(129),
                ..v1::NetworkPolicy::default()
            });
        }),
        ("spec.containers[0].ports[1].node_port", |it| {
            let port = |number| v1::Port {
                node_port: 8080,
                ..port(number)
            };
            web(it).ports = vec![port(80), port(81)];
        }),
        ("spec.containers[0].ports[0].node_port", |it| {
            web(it).ports = vec![v1::Port {
                node_port: 65_536,
                ..port(80)
            }];
        }),
    ];
    for (field, spoil) in cases {
        assert_eq!(
            refused(spoil),
            (Reason::InvalidField, vec![(*field).to_owned()])
        );
    }
}

#[test]
fn a_list_that_is_too_long_is_refused_with_the_limit_and_one_of_networks_may_have_port_53() {
    let with = |rules| {
        let mut request = request();
        spec(&mut request).network = allowing(rules);
        create_from_proto(request, subnet())
    };
    let rules = |number| vec![by_name("api.example.org", 443); number];
    with(rules(EGRESS_RULES_MAX)).unwrap();
    let refused = with(rules(10_000)).unwrap_err();
    let said = refused.violations.iter().map(|it| it.problem.as_str());
    let said: Vec<_> = said.filter(|it| it.contains("256")).collect();
    assert_eq!(said.len(), 1, "{refused:?}");
    with(vec![rule("10.0.0.0/8", 53)]).unwrap();
}

#[test]
fn what_only_a_network_of_its_own_has_is_refused_beside_that_of_the_node() {
    type Spoil = fn(&mut v1::CreateRequest);
    let cases: &[(&str, Spoil)] = &[
        ("spec.routes", |it| spec(it).routes = by_gateway("")),
        ("spec.network.egress", |it| {
            spec(it).network = allowing(vec![rule("10.0.0.0/8", 0)]);
        }),
        ("spec.network.egress", |it| {
            spec(it).network = Some(v1::NetworkPolicy {
                egress: v1::EgressMode::Deny.into(),
                ..v1::NetworkPolicy::default()
            });
        }),
        ("spec.network.allow_from", |it| {
            spec(it).network = Some(v1::NetworkPolicy {
                allow_from: vec!["a=b".into()],
                ..v1::NetworkPolicy::default()
            });
        }),
        ("spec.network.subnet", |it| {
            spec(it).network = Some(v1::NetworkPolicy {
                subnet: "team".into(),
                ..v1::NetworkPolicy::default()
            });
        }),
        ("spec.containers[0].ports[1].node_port", |it| {
            let published = v1::Port {
                node_port: 8080,
                ..port(81)
            };
            web(it).ports = vec![port(80), published];
        }),
    ];
    for (field, spoil) in cases {
        let shared = |it: &mut v1::CreateRequest| {
            spoil(it);
            spec(it).host_network = true;
        };
        let expected = (Reason::InvalidField, vec![(*field).to_owned()]);
        assert_eq!(refused(shared), expected);
        let mut own = request();
        spoil(&mut own);
        create_from_proto(own, subnet()).unwrap();
    }
    let mut request = request();
    spec(&mut request).host_network = true;
    web(&mut request).ports = vec![port(80)];
    let read = create_from_proto(request, subnet()).unwrap().spec;
    let claimed: Vec<_> = read.claimed_ports().collect();
    assert_eq!(claimed, [(Protocol::Tcp, 80)]);
    assert_eq!(read.node_ports().next(), None);
}

#[test]
fn what_is_not_built_yet_is_refused_by_name_and_never_ignored() {
    type Spoil = fn(&mut v1::CreateRequest);
    let cases: &[(&str, Spoil)] = &[
        ("spec.volumes", |it| {
            spec(it).volumes.push(v1::Volume::default())
        }),
        ("spec.containers[0].privileged", |it| {
            web(it).privileged = true
        }),
        ("spec.containers[0].mounts", |it| {
            web(it).mounts.push(v1::Mount::default())
        }),
    ];
    for (field, spoil) in cases {
        assert_eq!(
            refused(spoil),
            (Reason::UnsupportedField, vec![(*field).to_owned()])
        );
    }
}

#[test]
fn a_spec_over_the_limit_is_refused_with_the_limit() {
    let mut request = request();
    web(&mut request).args = vec!["x".repeat(100 << 10); 3];
    let failure = create_from_proto(request, subnet()).unwrap_err();
    assert_eq!(failure.reason, Reason::SpecTooLarge);
    assert_eq!(failure.metadata["limit_bytes"], "262144");
}

#[test]
fn one_port_may_be_declared_for_both_transports() {
    let mut request = request();
    let udp = v1::Port {
        protocol: v1::Protocol::Udp.into(),
        ..port(53)
    };
    web(&mut request).ports = vec![port(53), udp];
    assert_eq!(
        create_from_proto(request, subnet())
            .unwrap()
            .spec
            .containers[0]
            .ports
            .len(),
        2
    );
}
