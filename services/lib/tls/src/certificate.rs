//! What a certificate says of whoever shows it. That it may be believed the handshake has decided.

use std::time::{Duration, SystemTime};

use berth_calls::{Role, Roles};
use x509_parser::{
    certificate::X509Certificate, error::X509Error, extensions::GeneralName, nom,
    prelude::FromDer as _,
};

/// Subjects are for people, and can have any length.
const SUBJECT_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) subject: String,
    /// In hexadecimal, as `0a:1b`.
    pub(crate) serial: String,
    pub(crate) roles: Roles,
    pub(crate) not_after: SystemTime,
}

/// Reads the first certificate of a chain. Its roles are the URIs `spiffe://<trust domain>/berth/role/<role>` among its
/// alternative names; a role that this version does not know is none.
pub(crate) fn facts(der: &[u8], trust_domain: &str) -> Result<Facts, nom::Err<X509Error>> {
    let (_, certificate) = X509Certificate::from_der(der)?;
    let prefix = format!("spiffe://{trust_domain}/berth/role/");
    let mut roles = Roles::NONE;
    let names = certificate.subject_alternative_name();
    for name in names
        .ok()
        .flatten()
        .iter()
        .flat_map(|it| &it.value.general_names)
    {
        if let GeneralName::URI(uri) = name
            && let Some(role) = uri.strip_prefix(&prefix).and_then(Role::parse)
        {
            roles = roles.with(role);
        }
    }
    let subject = certificate.subject().to_string();
    let seconds = certificate.validity().not_after.timestamp();
    Ok(Facts {
        subject: subject.chars().take(SUBJECT_MAX).collect(),
        serial: certificate.raw_serial_as_string(),
        roles,
        not_after: SystemTime::UNIX_EPOCH
            + Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["node-1".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "somebody");
        params.serial_number = Some(vec![0x0a, 0x1b].into());
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let uris = uris
            .iter()
            .map(|it| SanType::URI((*it).try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    #[rustfmt::skip]
    fn roles_are_the_names_below_the_trust_domain_and_nothing_else() {
        let cases: &[(&[&str], &str)] = &[
            (&["spiffe://berth/berth/role/gc"],                                              "gc"),
            (&["spiffe://berth/berth/role/gc", "spiffe://berth/berth/role/read-only"],       "read-only,gc"),
            (&["spiffe://berth/berth/role/gc", "spiffe://berth/berth/role/of-another-year"], "gc"),
            (&["spiffe://other/berth/role/admin"],                                           "none"),
            (&["spiffe://berth/berth/role/admin/x"],                                         "none"),
            (&["spiffe://berth.evil/berth/role/admin"],                                      "none"),
            (&["https://berth/berth/role/admin"],                                            "none"),
            (&["spiffe://berth/berth/role/ADMIN"],                                           "none"),
            (&[],                                                                            "none"),
        ];
        for (uris, expected) in cases {
            let facts = facts(&certificate(uris), "berth").unwrap();
            assert_eq!(facts.roles.to_string(), *expected, "{uris:?}");
        }
    }

    #[test]
    fn it_is_told_whose_it_is_and_how_long_it_holds() {
        let facts = facts(&certificate(&[]), "berth").unwrap();
        assert!(facts.subject.contains("CN=somebody"), "{}", facts.subject);
        assert_eq!(facts.serial, "0a:1b");
        let end = facts.not_after.duration_since(SystemTime::UNIX_EPOCH);
        assert_eq!(end.unwrap().as_secs(), 2_208_988_800);
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        let whole = certificate(&["spiffe://berth/berth/role/gc"]);
        for length in 0..whole.len() {
            facts(&whole[..length], "berth").unwrap_err();
        }
    }
}
