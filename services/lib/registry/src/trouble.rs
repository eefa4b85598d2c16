//! What can become of one request, and what a caller is told of it.

use std::{error::Error, io, time::Duration};

use berth_platform::{ImageError, Source};
use reqwest::{StatusCode, Url};

/// As much of what a registry says of a refusal is kept.
pub(crate) const SAID_MAX: u64 = 4 << 10;

#[derive(Debug)]
pub(crate) enum Trouble {
    NotFound(Source),
    Denied(Source),
    Busy {
        retry_after: Option<Duration>,
        source: Source,
    },
    /// No connection, one that broke, or a registry that has failed.
    Unreachable(Source),
    /// What answers does not speak TLS.
    NoTls(Source),
    Untrusted(Source),
    Protocol(String),
    Corrupt(String),
    /// No byte came for as long as a pull waits for one.
    Stalled,
}

impl Trouble {
    pub(crate) fn into_error(self, image: &str, no_progress: Duration) -> ImageError {
        let image = image.to_owned();
        match self {
            Self::NotFound(source) => ImageError::NotFound {
                image,
                source: Some(source),
            },
            Self::Denied(source) => ImageError::RegistryDenied { image, source },
            Self::Busy {
                retry_after,
                source,
            } => ImageError::RegistryBusy {
                image,
                retry_after,
                source,
            },
            Self::Unreachable(source) | Self::NoTls(source) => {
                ImageError::RegistryUnreachable { image, source }
            }
            Self::Untrusted(source) => ImageError::RegistryUntrusted { image, source },
            Self::Protocol(what) => ImageError::RegistryProtocol { image, what },
            Self::Corrupt(what) => ImageError::Corrupt { image, what },
            Self::Stalled => ImageError::PullStalled {
                image,
                after: no_progress,
            },
        }
    }
}

/// An address without what may be a secret in it: storage that registries lead to is opened by its query.
pub(crate) fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// Tells a refusal by its status, and where that says little, by the code in its text.
pub(crate) fn refusal(
    url: &Url,
    status: StatusCode,
    said: &str,
    retry_after: Option<Duration>,
) -> Trouble {
    let says = |codes: &[&str]| codes.iter().any(|it| said.contains(it));
    let url = shown(url);
    let source = Source::from(format!("{url} answers {status}: {said}"));
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Trouble::Denied(source),
        StatusCode::NOT_FOUND => Trouble::NotFound(source),
        StatusCode::TOO_MANY_REQUESTS => Trouble::Busy {
            retry_after,
            source,
        },
        StatusCode::REQUEST_TIMEOUT => Trouble::Unreachable(source),
        _ if status.is_server_error() => Trouble::Unreachable(source),
        _ if status.is_client_error() && says(&["MANIFEST_UNKNOWN", "NAME_UNKNOWN"]) => {
            Trouble::NotFound(source)
        }
        _ if status.is_client_error() && says(&["UNAUTHORIZED", "DENIED"]) => {
            Trouble::Denied(source)
        }
        _ => Trouble::Protocol(format!("{url} answers {status}")),
    }
}

/// What a request or an answer that broke off means.
pub(crate) fn broken(url: &Url, error: reqwest::Error) -> Trouble {
    let tls = tls_error(&error);
    let untrusted = matches!(tls, Some(rustls::Error::InvalidCertificate(_)));
    let no_tls = tls.is_some();
    let is_builder = error.is_builder();
    // Its own words have the whole address.
    let error = error.without_url();
    let mut text = format!("{}: {error}", shown(url));
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    match (untrusted, no_tls, is_builder) {
        (true, _, _) => Trouble::Untrusted(text.into()),
        (_, true, _) => Trouble::NoTls(text.into()),
        (_, _, true) => Trouble::Protocol(text),
        _ => Trouble::Unreachable(text.into()),
    }
}

/// What TLS says of a connection: it lies in I/O errors, which pass it over as their cause.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(it) = next {
        if let Some(tls) = it.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = it.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(tls) = inner.and_then(|it| tls_error(it)) {
            return Some(tls);
        }
        next = it.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn a_refusal_is_told_by_its_status_and_then_by_its_code() {
        let url = Url::parse("https://registry.example/v2/a/manifests/1?secret").unwrap();
        let told = |status: u16, text: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            match refusal(&url, status, text, None) {
                Trouble::NotFound(_) => "not found",
                Trouble::Denied(_) => "denied",
                Trouble::Busy { .. } => "busy",
                Trouble::Unreachable(_) => "unreachable",
                Trouble::Protocol(_) => "protocol",
                Trouble::NoTls(_)
                | Trouble::Untrusted(_)
                | Trouble::Corrupt(_)
                | Trouble::Stalled => "something else",
            }
        };
        for (status, text, expected) in [
            (404, "<html>",                                      "not found"),
            (400, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#, "not found"),
            (401, "",                                            "denied"),
            (403, "",                                            "denied"),
            (400, r#"{"errors":[{"code":"DENIED"}]}"#,           "denied"),
            (429, "",                                            "busy"),
            (408, "",                                            "unreachable"),
            (500, "MANIFEST_UNKNOWN",                            "unreachable"),
            (503, "",                                            "unreachable"),
            (400, "",                                            "protocol"),
            (204, "",                                            "protocol"),
            (302, "",                                            "protocol"),
        ] {
            assert_eq!(told(status, text), expected, "{status} {text}");
        }
        let said = format!("{:?}", refusal(&url, StatusCode::FORBIDDEN, "", None));
        assert!(said.contains("registry.example/v2/a") && !said.contains("secret"), "{said}");
    }

    #[test]
    fn what_tls_says_is_found_in_an_io_error() {
        let tls = rustls::Error::DecryptError;
        let wrapped = io::Error::other(io::Error::other(tls));
        assert_eq!(tls_error(&wrapped), Some(&rustls::Error::DecryptError));
        assert_eq!(tls_error(&io::Error::other("reset")), None);
    }
}
