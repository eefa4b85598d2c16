//! Who may call: the TLS port, the roles on the Unix socket, and where calls are written down.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{anyhow, ensure};
use berth_calls::{Sockets, TrailSettings};
use serde::{Deserialize, Serialize};

/// Each is an open file and a session of TLS.
const CONNECTIONS_MAX: usize = 8192;
const LABEL_OF_DOMAIN_MAX: usize = 253;
const FILES_MAX: usize = 100;

/// TCP on which both sides show a certificate. Files in PEM, which may be replaced at any time.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// As `0.0.0.0:7443`. Empty: there is no such port.
    pub listen: String,
    /// The server's certificate, with those between it and its CA behind it.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who may have signed the certificates of callers.
    pub client_ca: PathBuf,
    /// Part of the names by which a certificate says its roles: `spiffe://<trust_domain>/berth/role/<role>`.
    pub trust_domain: String,
    /// Between two looks at the files.
    #[serde(with = "berth_daemon::duration")]
    pub reload_interval: Duration,
    /// From the first byte to the end of the handshake.
    #[serde(with = "berth_daemon::duration")]
    pub handshake_timeout: Duration,
    /// Unfinished handshakes at a time; the oldest makes room for the next.
    pub handshakes_max: usize,
    /// Connections at a time.
    pub connections_max: usize,
    /// Of those, by one certificate.
    pub per_certificate_max: usize,
    /// How long a connection may be without a call.
    #[serde(with = "berth_daemon::duration")]
    pub idle_timeout: Duration,
}

/// Roles of callers by the Unix socket.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// As `uid:990=metrics` or `gid:991=watchdog,read-only`; the first that is about a caller counts. Root is `admin`.
    pub socket_roles: Vec<String>,
    /// Of all others who can open the socket, joined by commas, or `none`.
    pub socket_default: String,
}

/// Where calls that change something are written down.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuditLog {
    /// Empty: `audit/audit.log` in `state_dir`.
    pub file: PathBuf,
    /// Of one file.
    pub max_bytes: u64,
    /// With the current one; 0: none is written.
    pub files: usize,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            listen: String::new(),
            certificate: "/etc/berth/tls/tls.crt".into(),
            key: "/etc/berth/tls/tls.key".into(),
            client_ca: "/etc/berth/tls/ca.crt".into(),
            trust_domain: "berth".into(),
            reload_interval: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            handshakes_max: 64,
            connections_max: 512,
            per_certificate_max: 128,
            idle_timeout: Duration::from_secs(300),
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self {
            socket_roles: vec![],
            socket_default: "admin".into(),
        }
    }
}

impl Default for AuditLog {
    fn default() -> Self {
        Self {
            file: PathBuf::new(),
            max_bytes: 16 << 20,
            files: 4,
        }
    }
}

impl Tls {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if !self.listen.is_empty() {
            self.address()?;
        }
        for (key, path) in [
            ("tls.certificate", &self.certificate),
            ("tls.key", &self.key),
            ("tls.client_ca", &self.client_ca),
        ] {
            absolute(key, path)?;
        }
        let plain = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || b".-_".contains(&it);
        ensure!(
            (1..=LABEL_OF_DOMAIN_MAX).contains(&self.trust_domain.len())
                && self.trust_domain.bytes().all(plain),
            "tls.trust_domain: {:?} must be 1 to {LABEL_OF_DOMAIN_MAX} of a to z, digits, `.`, `-`, `_`",
            self.trust_domain
        );
        for (key, number) in [
            ("tls.handshakes_max", self.handshakes_max),
            ("tls.connections_max", self.connections_max),
            ("tls.per_certificate_max", self.per_certificate_max),
        ] {
            ensure!(
                (1..=CONNECTIONS_MAX).contains(&number),
                "{key}: must be 1 to {CONNECTIONS_MAX}"
            );
        }
        for (key, time) in [
            ("tls.reload_interval", self.reload_interval),
            ("tls.handshake_timeout", self.handshake_timeout),
            ("tls.idle_timeout", self.idle_timeout),
        ] {
            ensure!(
                time >= Duration::from_millis(100),
                "{key}: must be at least 100ms"
            );
        }
        Ok(())
    }

    fn address(&self) -> anyhow::Result<SocketAddr> {
        let address = self.listen.parse();
        address.map_err(|_| anyhow!("tls.listen: `{}` must be like `0.0.0.0:7443`", self.listen))
    }

    /// `None` where there is no such port. Checked when it was loaded.
    pub(crate) fn port(&self) -> anyhow::Result<Option<(berth_tls::Settings, berth_tls::Files)>> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        let settings = berth_tls::Settings {
            listen: self.address()?,
            trust_domain: self.trust_domain.clone(),
            handshake_timeout: self.handshake_timeout,
            handshakes_max: self.handshakes_max,
            connections_max: self.connections_max,
            per_certificate_max: self.per_certificate_max,
            idle_timeout: self.idle_timeout,
        };
        let files = berth_tls::Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            client_ca: self.client_ca.clone(),
        };
        Ok(Some((settings, files)))
    }
}

impl Access {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        Sockets::parse(&[], &self.socket_default)
            .map_err(|it| anyhow!("access.socket_default: {it}"))?;
        self.sockets().map(drop)
    }

    pub(crate) fn sockets(&self) -> anyhow::Result<Sockets> {
        Sockets::parse(&self.socket_roles, &self.socket_default)
            .map_err(|it| anyhow!("access.socket_roles: {it}"))
    }
}

impl AuditLog {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if !self.file.as_os_str().is_empty() {
            absolute("audit_log.file", &self.file)?;
        }
        ensure!(
            self.max_bytes >= 64 << 10,
            "audit_log.max_bytes: must be at least 65536"
        );
        ensure!(
            self.files <= FILES_MAX,
            "audit_log.files: must be at most {FILES_MAX}"
        );
        Ok(())
    }

    pub(crate) fn settings(&self, state_dir: &Path) -> TrailSettings {
        let file = match self.file.as_os_str().is_empty() {
            true => state_dir.join("audit/audit.log"),
            false => self.file.clone(),
        };
        TrailSettings {
            file: (self.files > 0).then_some(file),
            max_bytes: self.max_bytes,
            files: self.files,
        }
    }
}

fn absolute(key: &str, path: &Path) -> anyhow::Result<()> {
    ensure!(
        path.is_absolute(),
        "{key}: `{}` must be an absolute path",
        path.display()
    );
    Ok(())
}
