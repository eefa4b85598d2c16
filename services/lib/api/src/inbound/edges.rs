//! Each bound of a request is driven to its edge: what is at it is taken, one more is refused by the field.

use berth_domain::{id, image_ref::IMAGE_REF_MAX, subnets};

use super::*;

type Change = fn(&mut v1::CreateRequest, usize);

fn request() -> v1::CreateRequest {
    let app = v1::Container {
        name: "a".into(),
        image: "a".into(),
        ..v1::Container::default()
    };
    let spec = v1::SandboxSpec {
        containers: vec![app],
        ..v1::SandboxSpec::default()
    };
    v1::CreateRequest {
        id: "a".into(),
        spec: Some(spec),
        ..v1::CreateRequest::default()
    }
}

fn spec(it: &mut v1::CreateRequest) -> &mut v1::SandboxSpec {
    it.spec.as_mut().unwrap()
}

fn app(it: &mut v1::CreateRequest) -> &mut v1::Container {
    &mut spec(it).containers[0]
}

fn policy(it: &mut v1::CreateRequest) -> &mut v1::NetworkPolicy {
    spec(it).network.get_or_insert_default()
}

/// As long as asked, of labels that are short enough.
fn domain(length: usize) -> String {
    let mut text = "abcdefg.".repeat(length / 8 + 1);
    text.truncate(length);
    if text.ends_with('.') {
        text.replace_range(length - 1.., "h");
    }
    text
}

fn allowed(rules: Vec<v1::EgressRule>) -> v1::NetworkPolicy {
    v1::NetworkPolicy {
        egress: v1::EgressMode::Allow.into(),
        egress_rules: rules,
        ..v1::NetworkPolicy::default()
    }
}

fn subnet() -> Ipv4Net {
    "10.87.0.0/16".parse().unwrap()
}

fn read(change: Change, size: usize) -> Result<Create, Failure> {
    let mut request = request();
    change(&mut request, size);
    create_from_proto(request, subnet())
}

#[test]
#[rustfmt::skip]
fn what_is_at_a_bound_of_a_create_is_taken_and_one_more_is_refused_by_its_field() {
    let cases: &[(&str, usize, Change)] = &[
        ("id", id::SANDBOX_ID_MAX, |it, n| it.id = "a".repeat(n)),
        ("spec.labels", LABELS_MAX, |it, n| spec(it).labels = (0..n).map(|it| (it.to_string(), String::new())).collect()),
        ("spec.labels[", LABEL_KEY_MAX, |it, n| spec(it).labels = [("a".repeat(n), String::new())].into()),
        ("spec.labels[a]", LABEL_VALUE_MAX, |it, n| spec(it).labels = [("a".into(), "b".repeat(n))].into()),
        ("spec.log_attributes", LABELS_MAX, |it, n| spec(it).log_attributes = (0..n).map(|it| (it.to_string(), String::new())).collect()),
        ("spec.version", TEXT_MAX, |it, n| spec(it).version = "a".repeat(n)),
        ("spec.log_entity", TEXT_MAX, |it, n| spec(it).log_entity = "a".repeat(n)),
        ("spec.routes", ROUTES_MAX, |it, n| spec(it).routes = (0..n).map(|it| v1::Route { destination: format!("10.{it}.0.0/16"), gateway: String::new() }).collect()),
        ("spec.static_hosts", HOSTS_MAX, |it, n| spec(it).static_hosts = (0..n).map(|it| v1::StaticHost { host: format!("h{it}"), ip: "10.0.0.1".into() }).collect()),
        ("spec.static_hosts[0].host", HOST_NAME_MAX, |it, n| spec(it).static_hosts = vec![v1::StaticHost { host: domain(n), ip: "10.0.0.1".into() }]),
        ("spec.containers", CONTAINERS_MAX, |it, n| {
            let one = app(it).clone();
            spec(it).containers = (0..n).map(|it| v1::Container { name: format!("a{it}"), ..one.clone() }).collect();
        }),
        ("spec.containers[0].name", id::CONTAINER_NAME_MAX, |it, n| app(it).name = "a".repeat(n)),
        ("spec.containers[0].image", IMAGE_REF_MAX, |it, n| app(it).image = format!("a.b/{}:{}", "c/".repeat(190) + "c", "d".repeat(n - 386))),
        ("spec.containers[0].command", COMMAND_MAX, |it, n| app(it).command = "a".repeat(n)),
        ("spec.containers[0].args[0]", COMMAND_MAX, |it, n| app(it).args = vec!["a".repeat(n)]),
        ("spec.containers[0].env[0]", COMMAND_MAX, |it, n| app(it).env = vec![format!("A={}", "a".repeat(n - 2))]),
        ("spec.containers[0].env", ENV_MAX, |it, n| app(it).env = (0..n).map(|it| format!("A{it}=")).collect()),
        ("spec.containers[0].directory", PATH_MAX, |it, n| app(it).directory = format!("/{}", "a".repeat(n - 1))),
        ("spec.containers[0].ports", PORTS_MAX, |it, n| app(it).ports = (1..=n).map(|it| v1::Port { port: it.try_into().unwrap(), ..v1::Port::default() }).collect()),
        ("spec.containers[0].ports[0].name", NAME_MAX, |it, n| app(it).ports = vec![v1::Port { port: 1, name: "a".repeat(n), ..v1::Port::default() }]),
        ("spec.containers[0].ports[0].type", NAME_MAX, |it, n| app(it).ports = vec![v1::Port { port: 1, r#type: "a".repeat(n), ..v1::Port::default() }]),
        ("spec.containers[0].config_files", FILES_MAX, |it, n| app(it).config_files = (0..n).map(|it| v1::ConfigFile { path: format!("/{it}"), ..v1::ConfigFile::default() }).collect()),
        ("spec.containers[0].config_files[0].data", FILE_MAX, |it, n| app(it).config_files = vec![v1::ConfigFile { path: "/a".into(), data: vec![0; n], ..v1::ConfigFile::default() }]),
        ("spec.resources.pids", PIDS_MAX as usize, |it, n| spec(it).resources.get_or_insert_default().pids = n.try_into().unwrap()),
        ("spec.network.egress_rules", EGRESS_RULES_MAX, |it, n| *policy(it) = allowed(vec![v1::EgressRule { cidr: "10.0.0.0/8".into(), ..v1::EgressRule::default() }; n])),
        ("spec.network.egress_rules[0].dns_name", HOST_NAME_MAX, |it, n| *policy(it) = allowed(vec![v1::EgressRule { dns_name: domain(n), port: 443, ..v1::EgressRule::default() }])),
        ("spec.network.egress_rules[0].dns_name", 63, |it, n| *policy(it) = allowed(vec![v1::EgressRule { dns_name: "a".repeat(n), port: 443, ..v1::EgressRule::default() }])),
        ("spec.network.allow_from", SandboxSpec::ALLOW_FROM_MAX, |it, n| policy(it).allow_from = (0..n).map(|it| format!("a={it}")).collect()),
        ("spec.network.allow_from[0]", LABEL_KEY_MAX + 1 + LABEL_VALUE_MAX, |it, n| policy(it).allow_from = vec![format!("a={}", "b".repeat(n - 2))]),
        ("spec.network.subnet", subnets::IDENTIFIER_MAX, |it, n| policy(it).subnet = "a".repeat(n)),
    ];
    for (field, most, change) in cases {
        let taken = read(*change, *most);
        assert!(taken.is_ok(), "{field}: {taken:?}");
        let refused = read(*change, most + 1).unwrap_err();
        assert_eq!(refused.reason, Reason::InvalidField, "{field}");
        let named = &refused.violations[0].field;
        assert!(named.starts_with(field), "{field}: {named}");
    }
}

#[test]
fn a_spec_at_its_size_is_taken_and_one_that_is_a_byte_larger_is_refused() {
    let sized = |size: usize| {
        let mut request = request();
        // Several, as none may have so much by itself.
        app(&mut request).args = vec!["a".repeat(100_000); 2];
        let rest = size - spec(&mut request).encoded_len();
        // A length of three bytes, and the field's number.
        app(&mut request).args.push("a".repeat(rest - 4));
        let whole = spec(&mut request).encoded_len();
        assert_eq!(whole, size);
        create_from_proto(request, subnet())
    };
    let taken = sized(SPEC_MAX);
    assert!(taken.is_ok(), "{taken:?}");
    let refused = sized(SPEC_MAX + 1).unwrap_err();
    assert_eq!(refused.reason, Reason::SpecTooLarge);
}
