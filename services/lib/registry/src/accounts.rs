//! Credentials of a file in docker's form. What helper programs would be asked for is not known here.

use std::{collections::BTreeMap, fs, io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use berth_platform::Credentials;
use serde::Deserialize;

/// Far more than any such file has.
const FILE_MAX: u64 = 1 << 20;
/// What docker calls its own registry in that file.
const DOCKER: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "docker.io"];

/// By host, with its port where the file has one.
#[derive(Debug, Default)]
pub(crate) struct Accounts(BTreeMap<String, Credentials>);

#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    #[error("reading it")]
    Read(#[from] io::Error),
    #[error("it is larger than {FILE_MAX} bytes")]
    TooLarge,
    /// The parser's words may have a part of the file in them.
    #[error("it is not of the form {{\"auths\": {{HOST: …}}}}: line {line}, column {column}")]
    Malformed { line: usize, column: usize },
    #[error("`auth` of {host} is not the base64 of `user:password`")]
    Auth { host: String },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Accounts {
    pub(crate) fn read(file: &Path) -> Result<Self, AccountsError> {
        if fs::metadata(file)?.len() > FILE_MAX {
            return Err(AccountsError::TooLarge);
        }
        Self::parse(&fs::read(file)?)
    }

    fn parse(bytes: &[u8]) -> Result<Self, AccountsError> {
        let file: File =
            serde_json::from_slice(bytes).map_err(|error| AccountsError::Malformed {
                line: error.line(),
                column: error.column(),
            })?;
        let mut accounts = BTreeMap::new();
        for (key, entry) in file.auths {
            let host = host_of(&key);
            // An entry of nothing says that a helper program would know.
            if let Some(credentials) = entry.credentials(&host)? {
                accounts.insert(host, credentials);
            }
        }
        Ok(Self(accounts))
    }

    /// What is shown to a host: `host:port` goes before `host`.
    pub(crate) fn of(&self, account: &str) -> Option<&Credentials> {
        self.0.get(account).or_else(|| {
            let (host, _) = account.rsplit_once(':')?;
            self.0.get(host)
        })
    }
}

impl Entry {
    fn credentials(self, host: &str) -> Result<Option<Credentials>, AccountsError> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::Token(self.registrytoken)));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::Identity(self.identitytoken)));
        }
        if !self.auth.is_empty() {
            let malformed = || AccountsError::Auth {
                host: host.to_owned(),
            };
            let bytes = STANDARD.decode(&self.auth).map_err(|_| malformed())?;
            let text = String::from_utf8(bytes).map_err(|_| malformed())?;
            let (username, password) = text.split_once(':').ok_or_else(malformed)?;
            return Ok(Some(Credentials::Basic {
                username: username.to_owned(),
                // Docker once padded it.
                password: password.trim_matches('\0').to_owned(),
            }));
        }
        Ok((!self.username.is_empty()).then_some(Credentials::Basic {
            username: self.username,
            password: self.password,
        }))
    }
}

/// `https://index.docker.io/v1/` is `docker.io`, as images are named.
fn host_of(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = rest.split_once('/').map_or(rest, |(host, _)| host);
    if DOCKER.contains(&host) {
        "docker.io".to_owned()
    } else {
        host.to_owned()
    }
}

/// What is wrong with a file of credentials, before the first pull.
pub fn check_credentials_file(file: &Path) -> Result<(), AccountsError> {
    Accounts::read(file).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic {
            username: username.into(),
            password: password.into(),
        }
    }

    #[test]
    fn each_form_of_an_entry_is_read() {
        let file = format!(
            r#"{{"auths": {{
                "https://index.docker.io/v1/": {{"auth": "{}"}},
                "one.example": {{"username": "u", "password": "p"}},
                "one.example:5000": {{"registrytoken": "t"}},
                "http://two.example/v2/": {{"identitytoken": "i", "auth": "{}"}},
                "helped.example": {{}}
            }}, "credsStore": "desktop", "HttpHeaders": {{"a": "b"}}}}"#,
            STANDARD.encode("me:pass:word"),
            STANDARD.encode("<token>:"),
        );
        let accounts = Accounts::parse(file.as_bytes()).unwrap();
        for (host, expected) in [
            ("docker.io", Some(basic("me", "pass:word"))),
            ("one.example", Some(basic("u", "p"))),
            ("one.example:5000", Some(Credentials::Token("t".into()))),
            ("one.example:5001", Some(basic("u", "p"))),
            ("two.example", Some(Credentials::Identity("i".into()))),
            ("helped.example", None),
            ("other.example", None),
        ] {
            assert_eq!(accounts.of(host), expected.as_ref(), "{host}");
        }
        assert_eq!(Accounts::parse(b"{}").unwrap().of("docker.io"), None);
    }

    #[test]
    fn a_file_that_is_wrong_is_told_without_what_is_in_it() {
        let no_pair = STANDARD.encode("sesame");
        for text in [
            r#"{"auths": {"a": {"password": "sesame", }}}"#.to_owned(),
            r#"{"auths": {"a": {"password": ["sesame"]}}}"#.to_owned(),
            r#"{"auths": ["sesame"]}"#.to_owned(),
            format!(r#"{{"auths": {{"a": {{"auth": "{no_pair}"}}}}}}"#),
            r#"{"auths": {"a": {"auth": "sesame!"}}}"#.to_owned(),
            "sesame".to_owned(),
        ] {
            let error = Accounts::parse(text.as_bytes()).unwrap_err();
            let said = format!("{error} {error:?}");
            assert!(
                !said.contains("sesame") && !said.contains(&no_pair),
                "{said}"
            );
        }
        let missing = Accounts::read(Path::new("/nonexistent/config.json"));
        assert!(matches!(missing, Err(AccountsError::Read(_))));
    }

    #[test]
    fn a_file_of_credentials_that_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let of_size = |size: u64| {
            let text = r#"{"auths": {}}"#;
            let rest = " ".repeat(usize::try_from(size).unwrap() - text.len());
            fs::write(&file, format!("{text}{rest}")).unwrap();
            Accounts::read(&file)
        };
        assert!(of_size(FILE_MAX).is_ok());
        let large = of_size(FILE_MAX + 1);
        assert!(matches!(large, Err(AccountsError::TooLarge)));
    }
}
