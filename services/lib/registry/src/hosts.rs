//! Which hosts are asked for an image, in which order, and whether over TLS. Pure.

use reqwest::Url;

use crate::settings::Settings;

/// The registry that a cluster has for itself is always asked without TLS.
const CLUSTER: [&str; 2] = ["cluster.local", "cluster.local:5000"];

/// One place that may have an image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// Where the paths of the repository begin.
    pub(crate) base: Url,
    pub(crate) is_mirror: bool,
    /// Host by which credentials are looked up.
    pub(crate) account: String,
}

/// The mirrors of the registry in their order, and then the registry itself. An error says what is wrong with the settings.
pub(crate) fn endpoints(
    settings: &Settings,
    registry: &str,
    repository: &str,
) -> Result<Vec<Place>, String> {
    let is_cluster = CLUSTER.contains(&registry);
    let registry = if is_cluster { CLUSTER[1] } else { registry };
    let host = settings.hosts.get(registry);
    let mut places = vec![];
    for mirror in host.map_or(&[][..], |it| &it.mirrors) {
        let url = check_mirror(mirror)?;
        let prefix = url.path().trim_matches('/');
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        let origin = url.origin().ascii_serialization();
        places.push(Place {
            base: parse(&format!("{origin}/v2/{prefix}{repository}/"))?,
            is_mirror: true,
            account: host_and_port(&url),
        });
    }
    let address = match registry {
        // The name that everybody writes is not that of the registry.
        "docker.io" => "registry-1.docker.io",
        _ if is_cluster => settings.cluster_registry.as_deref().unwrap_or(registry),
        other => other,
    };
    let plain = is_cluster || speaks_http(&settings.plain_http, registry);
    let scheme = if plain { "http" } else { "https" };
    places.push(Place {
        base: parse(&format!("{scheme}://{address}/v2/{repository}/"))?,
        is_mirror: false,
        account: registry.to_owned(),
    });
    Ok(places)
}

/// Reads the address of a mirror.
pub fn check_mirror(text: &str) -> Result<Url, String> {
    let url = parse(text)?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.host_str().is_some()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if plain {
        Ok(url)
    } else {
        Err(format!(
            "`{text}` must be `https://host[:port][/prefix]`, or with `http`"
        ))
    }
}

fn parse(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|error| format!("`{text}` is no address: {error}"))
}

/// A host as the names of images have it: without a port where it is the scheme's own.
pub(crate) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether the settings name the registry, by `host:port` or `host:*`.
fn speaks_http(settings: &[String], registry: &str) -> bool {
    settings.iter().any(|it| match it.strip_suffix(":*") {
        Some(host) => registry.rsplit_once(':').map_or(registry, |(host, _)| host) == host,
        None => it == registry,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Host;

    #[test]
    fn only_registries_of_the_settings_are_asked_without_tls() {
        let settings = ["127.0.0.1:*".to_owned(), "near.example:5000".to_owned()];
        for plain in ["127.0.0.1:5000", "127.0.0.1", "near.example:5000"] {
            assert!(speaks_http(&settings, plain), "{plain}");
        }
        for secure in [
            "docker.io",
            "near.example:5001",
            "near.example",
            "127.0.0.10:5000",
        ] {
            assert!(!speaks_http(&settings, secure), "{secure}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn mirrors_are_asked_in_order_and_then_the_registry_that_the_name_means() {
        /// Of settings and a registry, the addresses and accounts.
        type Case<'a> = (&'a Settings, &'a str, &'a [(&'a str, &'a str)]);
        let mirrors = ["http://10.0.0.2:5000", "https://harbor.example/hub/"];
        let mirrored = Host { mirrors: mirrors.map(str::to_owned).into(), ca_file: None };
        let settings = Settings {
            hosts: [("docker.io".to_owned(), mirrored)].into(),
            plain_http: vec!["near.example:80".into()],
            ..Settings::default()
        };
        let moved = Settings { cluster_registry: Some("10.0.0.9:30500".into()), ..Settings::default() };
        let cases: &[Case<'_>] = &[
            (&settings, "docker.io", &[
                ("http://10.0.0.2:5000/v2/a/b/", "10.0.0.2:5000"),
                ("https://harbor.example/v2/hub/a/b/", "harbor.example"),
                ("https://registry-1.docker.io/v2/a/b/", "docker.io"),
            ]),
            (&settings, "ghcr.io",            &[("https://ghcr.io/v2/a/b/", "ghcr.io")]),
            (&settings, "near.example:80",    &[("http://near.example/v2/a/b/", "near.example:80")]),
            (&settings, "cluster.local",      &[("http://cluster.local:5000/v2/a/b/", "cluster.local:5000")]),
            (&settings, "cluster.local:5000", &[("http://cluster.local:5000/v2/a/b/", "cluster.local:5000")]),
            (&settings, "cluster.local:5001", &[("https://cluster.local:5001/v2/a/b/", "cluster.local:5001")]),
            (&moved,    "cluster.local",      &[("http://10.0.0.9:30500/v2/a/b/", "cluster.local:5000")]),
            (&moved,    "cluster.local:5000", &[("http://10.0.0.9:30500/v2/a/b/", "cluster.local:5000")]),
        ];
        for (settings, registry, expected) in cases {
            let places = endpoints(settings, registry, "a/b").unwrap();
            let found: Vec<_> = places.iter().map(|it| (it.base.as_str(), it.account.as_str())).collect();
            assert_eq!(found, *expected, "{registry}");
            let (origin, mirrors) = places.split_last().unwrap();
            assert!(!origin.is_mirror && mirrors.iter().all(|it| it.is_mirror), "{registry}");
        }
    }

    #[test]
    fn an_address_of_a_mirror_has_no_more_than_a_host_and_a_prefix() {
        for good in [
            "https://a.example",
            "http://10.0.0.1:5000/",
            "https://a/b/c",
        ] {
            check_mirror(good).unwrap();
        }
        for bad in [
            "a.example",
            "ftp://a",
            "https://user@a",
            "https://user:password@a",
            "https://a?b",
            "https://a#b",
            "https://",
        ] {
            check_mirror(bad).unwrap_err();
        }
    }
}
