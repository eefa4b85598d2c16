//! Certificates for a manager and its callers, made here, and a node that serves by TLS.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use berth_api::{Target, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};

use crate::TestNode;

/// Who signs.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
    }

    /// Writes `<name>.crt` and `<name>.key`; the CA's own certificate goes to `<name>.ca`.
    fn write(
        &self,
        dir: &Path,
        name: &str,
        params: &CertificateParams,
    ) -> anyhow::Result<TlsFiles> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        let file = |kind: &str| dir.join(format!("{name}.{kind}"));
        fs::write(file("crt"), certificate.pem())?;
        fs::write(file("key"), key.serialize_pem())?;
        fs::write(file("ca"), self.0.pem())?;
        Ok(TlsFiles {
            ca: file("ca"),
            certificate: file("crt"),
            key: file("key"),
        })
    }

    /// One for a server at 127.0.0.1.
    pub fn server(&self, dir: &Path, name: &str) -> anyhow::Result<TlsFiles> {
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        self.write(dir, name, &params)
    }

    /// One for a caller with these roles, named after its file.
    pub fn caller(&self, dir: &Path, name: &str, roles: &[&str]) -> anyhow::Result<TlsFiles> {
        self.write(dir, name, &caller_params(name, roles)?)
    }

    /// One that has ended long ago.
    pub fn expired(&self, dir: &Path, name: &str, role: &str) -> anyhow::Result<TlsFiles> {
        let mut params = caller_params(name, &[role])?;
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.write(dir, name, &params)
    }
}

fn caller_params(name: &str, roles: &[&str]) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    for role in roles {
        let uri = format!("spiffe://berth/berth/role/{role}");
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    Ok(params)
}

/// A node that serves by TLS as well, and whom it trusts.
#[derive(Debug)]
pub struct TlsNode {
    pub node: TestNode,
    pub authority: Authority,
    pub port: u16,
}

impl TlsNode {
    /// The settings in `toml` go behind those of the port.
    pub async fn start(toml: &str) -> anyhow::Result<Self> {
        let home = TestNode::new_home()?;
        let authority = Authority::new("the CA of a test")?;
        let dir = home.path().join("tls");
        fs::create_dir_all(&dir)?;
        let server = authority.server(&dir, "server")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let settings = format!(
            "tls.listen = \"127.0.0.1:{port}\"\ntls.certificate = {:?}\ntls.key = {:?}\ntls.client_ca = {:?}\n{toml}",
            server.certificate, server.key, server.ca
        );
        let node = TestNode::start_in(home, &settings, &[]).await?;
        Ok(Self {
            node,
            authority,
            port,
        })
    }

    /// Where files of certificates are.
    pub fn dir(&self) -> PathBuf {
        self.node.home().join("tls")
    }

    pub fn target(&self, files: TlsFiles) -> Target {
        Target {
            address: format!("https://127.0.0.1:{}", self.port),
            tls: Some(files),
        }
    }

    /// The way to the manager for a caller with these roles.
    pub fn of_roles(&self, name: &str, roles: &[&str]) -> anyhow::Result<Target> {
        let files = self.authority.caller(&self.dir(), name, roles);
        Ok(self.target(files.context("a certificate")?))
    }
}
