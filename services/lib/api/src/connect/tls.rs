//! One connection by TLS 1.3 on which both sides show a certificate.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::TLS13,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Uri;

/// A peer that does not get through a handshake in this time is none.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client shows, and whom it trusts. Files in PEM, which may be replaced at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who may have signed the server's certificate.
    pub ca: PathBuf,
    /// The client's own certificate, with those between it and its CA behind it.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug)]
pub(super) struct Peer {
    name: ServerName<'static>,
    host: String,
    port: u16,
    files: TlsFiles,
}

impl Peer {
    /// `None` where the address has no name that a certificate could have, or no port.
    pub(super) fn new(uri: &Uri, files: TlsFiles) -> Option<Self> {
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        Some(Self {
            name: ServerName::try_from(host.clone()).ok()?,
            host,
            port: uri.port_u16()?,
            files,
        })
    }

    /// Returns when the server has taken the certificate: in TLS 1.3 it says that behind the client's own handshake, and a
    /// server of HTTP/2 speaks first.
    pub(super) async fn connect(&self) -> io::Result<BufReader<TlsStream<TcpStream>>> {
        let connecting = async {
            let config = client_config(&self.files).await?;
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::new(config));
            let mut stream = BufReader::new(connector.connect(self.name.clone(), stream).await?);
            if stream.fill_buf().await?.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(stream)
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

async fn client_config(files: &TlsFiles) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca).await? {
        roots
            .add(certificate)
            .map_err(|it| unusable(&files.ca, it))?;
    }
    let chain = certificates(&files.certificate).await?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key).await?)
        .map_err(|it| unusable(&files.key, it))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|it| unusable(&files.certificate, it))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file).await?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(unusable(file, "has no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(file, error)),
    }
}

async fn read(file: &Path) -> io::Result<Vec<u8>> {
    let read = tokio::fs::read(file).await;
    read.map_err(|it| io::Error::new(it.kind(), format!("{}: {it}", file.display())))
}

fn unusable(file: &Path, problem: impl std::fmt::Display) -> io::Error {
    let text = format!("{}: {problem}", file.display());
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
