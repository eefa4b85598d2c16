//! The server's certificate, its key and whom it trusts: read again when they change. What cannot be used changes nothing.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_telemetry::instruments::TLS_CERTIFICATE_EXPIRY;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use tokio::sync::watch;

use crate::{Files, certificate::facts};

/// A certificate that ends before is worth a word.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of a file; a bundle of hundreds of CAs has less.
const FILE_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Unusable { path: PathBuf, problem: String },
}

/// What connections are made with.
#[derive(Clone, Debug)]
pub(crate) struct Usable {
    pub(crate) config: Arc<ServerConfig>,
    not_after: SystemTime,
    /// Counts how often it was changed whom to trust.
    pub(crate) trust: u64,
}

/// What is known of the files.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) usable: Option<Usable>,
    problem: Option<String>,
}

/// The files as they were read last; without `Debug`, since one is a key.
#[derive(Clone, PartialEq, Eq)]
struct Texts {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
}

/// What others may know of the files.
#[derive(Clone, Debug)]
pub struct Held(pub(crate) watch::Receiver<State>);

impl Held {
    /// What is wrong with the files, one sentence each.
    pub fn problems(&self, now: SystemTime) -> Vec<String> {
        let state = self.0.borrow();
        let mut problems = vec![];
        match (&state.problem, &state.usable) {
            (Some(it), Some(_)) => {
                problems.push(format!("TLS: {it}; the files of before are used"))
            }
            (Some(it), None) => problems.push(format!("TLS: {it}; nobody is served by TLS")),
            (None, _) => {}
        }
        if let Some(usable) = &state.usable {
            match usable.not_after.duration_since(now) {
                Err(_) => problems.push("TLS: the server's certificate has expired".to_owned()),
                Ok(left) if left < SOON => problems.push(format!(
                    "TLS: the server's certificate expires in {} hours",
                    left.as_secs() / 3600
                )),
                Ok(_) => {}
            }
        }
        problems
    }
}

/// Reads the files, and reads them again.
pub struct Keeper {
    files: Files,
    state: watch::Sender<State>,
    seen: Option<Texts>,
    trusted: Vec<u8>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl Keeper {
    /// Files that are not there, or cannot be used, may come later.
    pub fn new(files: Files) -> Self {
        let mut keeper = Self {
            files,
            state: watch::Sender::default(),
            seen: None,
            trusted: vec![],
        };
        keeper.look();
        keeper
    }

    pub fn held(&self) -> Held {
        Held(self.state.subscribe())
    }

    /// Looks now and then, for ever.
    pub async fn keep(mut self, every: Duration) {
        let held = self.state.subscribe();
        TLS_CERTIFICATE_EXPIRY.observe(move |it| {
            let state = held.borrow();
            let end = state.usable.as_ref().map(|it| it.not_after);
            let since = end.and_then(|it| it.duration_since(SystemTime::UNIX_EPOCH).ok());
            if let Some(since) = since {
                it.see(since.as_secs_f64(), &[]);
            }
        });
        loop {
            tokio::time::sleep(every).await;
            self.look();
        }
    }

    /// The files are small, and whoever replaces one may keep its time and its length: they are compared whole.
    fn look(&mut self) {
        let loaded = match texts(&self.files) {
            Ok(texts) if self.seen.as_ref() == Some(&texts) => return,
            Ok(texts) => {
                self.seen = Some(texts.clone());
                load(&self.files, &texts).map(|it| (it, texts))
            }
            Err(error) => {
                self.seen = None;
                Err(error)
            }
        };
        match loaded {
            Ok(((config, not_after), texts)) => {
                let trust = self.state.borrow().usable.as_ref().map_or(0, |it| it.trust);
                let changed = self.trusted != texts.client_ca;
                self.trusted = texts.client_ca;
                tracing::info!("the certificates of the TLS port are read");
                self.state.send_replace(State {
                    usable: Some(Usable {
                        config: Arc::new(config),
                        not_after,
                        trust: trust + u64::from(changed),
                    }),
                    problem: None,
                });
            }
            Err(error) => {
                let problem = error.to_string();
                self.state.send_if_modified(|state| {
                    if state.problem.as_ref() == Some(&problem) {
                        return false;
                    }
                    tracing::warn!(problem, "the certificates of the TLS port cannot be used");
                    state.problem = Some(problem);
                    true
                });
            }
        }
    }
}

fn texts(files: &Files) -> Result<Texts, LoadError> {
    Ok(Texts {
        certificate: read(&files.certificate)?,
        key: read(&files.key)?,
        client_ca: read(&files.client_ca)?,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > FILE_MAX {
        return Err(unusable(path, "is too long"));
    }
    std::fs::read(path).map_err(failed)
}

fn unusable(path: &Path, problem: impl ToString) -> LoadError {
    LoadError::Unusable {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// The configuration of connections, and when the server's certificate ends.
fn load(files: &Files, texts: &Texts) -> Result<(ServerConfig, SystemTime), LoadError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.client_ca, &texts.client_ca)? {
        let added = roots.add(certificate);
        added.map_err(|it| unusable(&files.client_ca, it))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|it| unusable(&files.client_ca, it))?;
    let chain = certificates(&files.certificate, &texts.certificate)?;
    let own = chain.first().map(|it| facts(it, ""));
    let own = own.and_then(Result::ok);
    let own = own.ok_or_else(|| unusable(&files.certificate, "cannot be read"))?;
    let key = PrivateKeyDer::from_pem_slice(&texts.key)
        .map_err(|_| unusable(&files.key, "has no key in PEM"))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|it| unusable(&files.certificate, it))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|it| unusable(&files.certificate, it))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A session that is taken up again would be trusted as it was trusted then.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, own.not_after))
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(unusable(path, "has no certificate")),
        Ok(found) => Ok(found),
        // The library prints the bytes that it missed.
        Err(_) => Err(unusable(path, "is no PEM, or only a part of it")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair(not_after: (i32, u8, u8)) -> (String, String) {
        let mut params = CertificateParams::new(vec!["node-1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn new_files_are_taken_and_broken_ones_are_told_and_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let files = Files {
            certificate: file("tls.crt"),
            key: file("tls.key"),
            client_ca: file("ca.crt"),
        };
        let mut keeper = Keeper::new(files.clone());
        let held = keeper.held();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let config = || held.0.borrow().usable.as_ref().map(|it| it.config.clone());
        let trust = || held.0.borrow().usable.as_ref().map(|it| it.trust);
        let told = || held.problems(now).join("; ");
        assert!(told().contains("nobody is served"), "{}", told());
        assert!(config().is_none());

        let (certificate, key) = pair((2040, 1, 1));
        fs::write(&files.certificate, &certificate).unwrap();
        fs::write(&files.key, &key).unwrap();
        fs::write(&files.client_ca, &certificate).unwrap();
        keeper.look();
        assert!(config().is_some());
        assert_eq!((told().as_str(), trust()), ("", Some(1)));

        let (other, other_key) = pair((2030, 3, 18));
        for (path, text, word) in [
            (&files.key, other_key.as_str(), "tls.crt"),
            (&files.key, "", "tls.key"),
            (&files.certificate, &certificate[..100], "tls.crt"),
            (&files.client_ca, "none", "ca.crt"),
        ] {
            let before = config().unwrap();
            let good = fs::read_to_string(path).unwrap();
            fs::write(path, text).unwrap();
            keeper.look();
            assert!(
                told().contains(word) && told().contains("of before"),
                "{word}: {}",
                told()
            );
            assert!(Arc::ptr_eq(&before, &config().unwrap()), "{word}");
            fs::write(path, good).unwrap();
            keeper.look();
            assert_eq!((told().as_str(), trust()), ("", Some(1)), "{word}");
        }
        let before = config().unwrap();
        fs::remove_file(&files.key).unwrap();
        keeper.look();
        assert!(told().contains("tls.key"), "{}", told());

        fs::write(&files.certificate, &other).unwrap();
        fs::write(&files.key, &other_key).unwrap();
        keeper.look();
        assert!(!Arc::ptr_eq(&before, &config().unwrap()));
        assert_eq!(trust(), Some(1), "it is trusted whom it was trusted before");
        assert!(told().contains("expires in"), "{}", told());
        fs::write(&files.client_ca, &other).unwrap();
        keeper.look();
        assert_eq!(trust(), Some(2));
        let late = now + Duration::from_secs(30 * 24 * 3600);
        assert!(held.problems(late).join("").contains("has expired"));
    }
}
