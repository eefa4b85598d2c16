//! TLS, with an authority that nobody trusts unless told to. Its keys are in the tree, so nobody should.

use std::{path::PathBuf, sync::Arc};

use berth_platform::ImageError;
use berth_registry::{Host, Registries, SetUpError, Settings};
use tokio_rustls::rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    DOCUMENT_MAX, Image, assert_same, pull, repository,
    server::{Answer, Server},
    settings,
};

fn file(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.join("tests/pulls/tls").join(name)
}

fn tls() -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config)
}

fn trusting(registry: &str) -> Settings {
    let host = Host {
        mirrors: vec![],
        ca_file: Some(file("authority.pem")),
    };
    Settings {
        hosts: [(registry.to_owned(), host)].into(),
        plain_http: vec![],
        ..settings()
    }
}

#[tokio::test]
async fn a_host_is_trusted_by_the_authority_that_the_settings_name_for_it() {
    let image = Image::small();
    let served = image.clone();
    let server = Server::start_tls(tls(), move |asked| served.answer(asked)).await;
    let registry = server.address.to_string();
    let trusted = repository(trusting(&registry), &registry, None).unwrap();
    assert_same(&pull(&trusted, &image).await.unwrap(), &image);

    let untrusting = repository(trusting("other.example"), &registry, None).unwrap();
    let told = untrusting
        .document("1", None, DOCUMENT_MAX)
        .await
        .unwrap_err();
    assert!(
        matches!(told, ImageError::RegistryUntrusted { .. }),
        "{told:?}"
    );
}

#[tokio::test]
async fn nothing_leads_from_tls_to_none() {
    let plain = Server::start(|_| Answer::ok("")).await;
    let registry = plain.address.to_string();
    let at = repository(trusting(&registry), &registry, None).unwrap();
    let told = at.document("1", None, DOCUMENT_MAX).await.unwrap_err();
    assert!(
        matches!(told, ImageError::RegistryUnreachable { .. }),
        "{told:?}"
    );

    let (to, realm) = (plain.url("/"), plain.url("/token"));
    let redirecting = Server::start_tls(tls(), move |_| Answer::redirect(&to)).await;
    let challenging = Server::start_tls(tls(), move |_| {
        Answer::status(401, "").with(&format!("WWW-Authenticate: Bearer realm=\"{realm}\""))
    })
    .await;
    for server in [redirecting, challenging] {
        let registry = server.address.to_string();
        let at = repository(trusting(&registry), &registry, None).unwrap();
        let told = at.document("1", None, DOCUMENT_MAX).await.unwrap_err();
        assert!(
            matches!(told, ImageError::RegistryProtocol { .. }),
            "{told:?}"
        );
        assert_eq!(server.asked().len(), 1);
    }
    assert_eq!(plain.paths(), Vec::<String>::new(), "nobody was led there");
}

#[test]
fn a_file_without_certificates_is_told_at_once() {
    for name in ["missing.pem", "server.key"] {
        let mut settings = trusting("a.example");
        settings.hosts.get_mut("a.example").unwrap().ca_file = Some(file(name));
        let refused = Registries::new(settings).unwrap_err();
        assert!(matches!(&refused, SetUpError::CaFile { host, .. } if host == "a.example"));
    }
}
