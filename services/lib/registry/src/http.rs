//! One request, with the redirects that it leads through. What is shown to a registry is shown to nobody that it leads to.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use berth_platform::Source;
use reqwest::{
    Certificate, Client, Response, Url,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, LOCATION, RANGE},
    redirect::Policy,
};

use crate::{
    hosts::host_and_port,
    retry::Patience,
    settings::{Host, SetUpError},
    trouble::{Trouble, broken, shown},
};

/// Storage behind a registry is one away, sometimes two.
const REDIRECTS_MAX: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The proxies of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`) apply to all of them.
#[derive(Debug)]
pub(crate) struct Clients {
    common: Client,
    /// Of hosts for which more certificates are trusted.
    of_hosts: BTreeMap<String, Client>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Get<'a> {
    pub(crate) url: &'a Url,
    pub(crate) accept: Option<&'a str>,
    pub(crate) authorization: Option<&'a HeaderValue>,
    /// How many of the first bytes are not wanted.
    pub(crate) skip: u64,
}

impl Clients {
    pub(crate) fn new(hosts: &BTreeMap<String, Host>) -> Result<Self, SetUpError> {
        // Another part of the process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let common = client(vec![]).map_err(|error| SetUpError::Http(error.into()))?;
        let mut of_hosts = BTreeMap::new();
        for (host, settings) in hosts {
            let Some(file) = &settings.ca_file else {
                continue;
            };
            let made = certificates(file).and_then(|it| Ok(client(it)?));
            let made = made.map_err(|source| SetUpError::CaFile {
                host: host.clone(),
                file: file.clone(),
                source,
            });
            of_hosts.insert(host.clone(), made?);
        }
        Ok(Self { common, of_hosts })
    }

    pub(crate) fn of(&self, url: &Url) -> &Client {
        let name = host_and_port(url);
        let with_port = || {
            let (host, port) = (url.host_str()?, url.port_or_known_default()?);
            self.of_hosts.get(&format!("{host}:{port}"))
        };
        let found = self.of_hosts.get(&name).or_else(with_port);
        found.unwrap_or(&self.common)
    }

    /// The answer at the end of the redirects, whatever it is.
    pub(crate) async fn get(
        &self,
        get: Get<'_>,
        patience: &mut Patience,
    ) -> Result<Response, Trouble> {
        let mut url = get.url.clone();
        let mut authorization = get.authorization;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self
                .of(&url)
                .get(url.clone())
                // What is stored has digests of its own.
                .header(ACCEPT_ENCODING, "identity");
            if let Some(accept) = get.accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            if get.skip > 0 {
                request = request.header(RANGE, format!("bytes={}-", get.skip));
            }
            let sent = patience.wait(request.send()).await?;
            let response = sent.map_err(|error| broken(&url, error))?;
            let location = response.headers().get(LOCATION);
            let (true, Some(location)) = (response.status().is_redirection(), location) else {
                return Ok(response);
            };
            let next = location.to_str().ok().and_then(|it| url.join(it).ok());
            let Some(next) = next.filter(|it| matches!(it.scheme(), "http" | "https")) else {
                let what = format!("{} leads nowhere", shown(&url));
                return Err(Trouble::Protocol(what));
            };
            if url.scheme() == "https" && next.scheme() == "http" {
                let what = format!("{} leads to {}, without TLS", shown(&url), shown(&next));
                return Err(Trouble::Protocol(what));
            }
            if next.origin() != get.url.origin() {
                authorization = None;
            }
            url = next;
        }
        let what = format!(
            "{} leads through more than {REDIRECTS_MAX} redirects",
            shown(get.url)
        );
        Err(Trouble::Protocol(what))
    }
}

fn client(certificates: Vec<Certificate>) -> Result<Client, reqwest::Error> {
    let builder = || {
        Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(Policy::none())
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
    };
    let common = builder().tls_certs_merge(certificates.clone()).build();
    common.or_else(|error| {
        tracing::warn!(%error, "the certificates of this host cannot be used for registries");
        builder().tls_certs_only(certificates).build()
    })
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, Source> {
    let certificates = Certificate::from_pem_bundle(&fs::read(file)?)?;
    if certificates.is_empty() {
        return Err("it has no certificate".into());
    }
    Ok(certificates)
}

/// What is wrong with a file of certificates, before the first pull.
pub fn check_ca_file(file: &Path) -> Result<(), Source> {
    certificates(file).map(drop)
}
