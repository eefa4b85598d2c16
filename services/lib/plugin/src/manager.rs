//! Where the manager is, as a configuration says it, and whether it is there.

use std::path::{Path, PathBuf};

use berth_api::{Target, TlsFiles};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What a process shows to a manager behind `https://`, and whom it trusts: files in PEM, read for each connection anew.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct ManagerTls {
    /// Who may have signed the manager's certificate.
    pub ca: PathBuf,
    /// This process's own certificate.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Whether it is the manager that is away, and not something that it needs.
pub fn is_away(status: &Status) -> bool {
    let away = [Code::Unavailable, Code::Unknown, Code::Cancelled];
    away.contains(&status.code()) && status.get_error_details().error_info().is_none()
}

/// Which key of a configuration is at fault, and why.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error("manager_tls.{key}: `{}` must be an absolute path", path.display())]
    Path { key: &'static str, path: PathBuf },
    #[error("{key}: {source}")]
    Address {
        key: &'static str,
        source: berth_api::ConnectError,
    },
}

impl ManagerTls {
    pub fn target(&self, address: &str) -> Target {
        let Self {
            ca,
            certificate,
            key,
        } = self.clone();
        let given = *self != Self::default();
        Target {
            address: address.to_owned(),
            tls: given.then_some(TlsFiles {
                ca,
                certificate,
                key,
            }),
        }
    }

    /// Refuses an address, set by `key`, that is none or lacks its files. Whether these are there is seen at each connection.
    pub fn check(&self, key: &'static str, address: &str) -> Result<(), ManagerError> {
        if *self != Self::default() {
            let files: [(&str, &Path); 3] = [
                ("ca", &self.ca),
                ("certificate", &self.certificate),
                ("key", &self.key),
            ];
            if let Some((key, path)) = files.into_iter().find(|(_, it)| !it.is_absolute()) {
                let path = path.to_owned();
                return Err(ManagerError::Path { key, path });
            }
        }
        let checked = self.target(address).check();
        checked.map_err(|source| ManagerError::Address { key, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn an_address_and_its_files_are_refused_by_their_key() {
        let tls = |ca: &str, certificate: &str, key: &str| ManagerTls {
            ca: ca.into(),
            certificate: certificate.into(),
            key: key.into(),
        };
        let cases = [
            ("unix:/run/m.sock",    tls("", "", ""),       ""),
            ("unix:/run/m.sock",    tls("/a", "/b", "/c"), ""),
            ("https://node-1:7443", tls("/a", "/b", "/c"), ""),
            ("https://node-1:7443", tls("", "", ""),       "manager_address: "),
            ("https://node-1:7443", tls("/a", "/b", ""),   "manager_tls.key: "),
            ("https://node-1:7443", tls("a", "/b", "/c"),  "manager_tls.ca: "),
            ("somewhere",           tls("", "", ""),       "manager_address: "),
        ];
        for (address, tls, expected) in cases {
            let said = tls.check("manager_address", address).err();
            let said = said.map(|it| it.to_string()).unwrap_or_default();
            assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{address}: {said}");
        }
    }
}
