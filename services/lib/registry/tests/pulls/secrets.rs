//! No error and no log has what a registry was shown, also when the registry repeats it.

use std::{
    error::Error,
    io,
    sync::{Arc, Mutex},
};

use berth_platform::Credentials;
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    DOCUMENT_MAX, Image, blob, repository,
    server::{Answer, Asked, Server},
    settings,
};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Says what it was told, and challenges so that all of it is shown.
fn gossip(asked: &Asked, status: u16, challenge: &str) -> Answer {
    let said = format!("you said {} {}", asked.headers, asked.body);
    Answer::status(status, said).with(&format!("WWW-Authenticate: {challenge}"))
}

#[tokio::test]
async fn no_error_and_no_log_has_a_secret() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_max_level(tracing::Level::TRACE)
        .finish();
    // For the whole process: what one thread alone listens to, others may have been told to leave out.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let tokens = Server::start(|asked| match asked.header("authorization") {
        Some(_) => Answer::ok(r#"{"token":"sesame-of-the-server"}"#),
        None => gossip(asked, 403, "Basic realm=\"x\""),
    })
    .await;
    let bearer = format!("Bearer realm=\"{}\"", tokens.url("/token"));
    let basic = Credentials::Basic {
        username: "me".into(),
        password: "sesame-of-mine".into(),
    };
    let kinds = [
        basic,
        Credentials::Token("sesame-token".into()),
        Credentials::Identity("sesame-identity".into()),
    ];
    let mut said = String::new();
    for credentials in kinds {
        for challenge in ["Basic realm=\"x\"", &bearer] {
            for status in [401, 403, 404, 429, 500, 400] {
                let challenge = challenge.to_owned();
                let server = Server::start(move |asked| {
                    let shown = asked.header("authorization").is_some();
                    gossip(asked, if shown { status } else { 401 }, &challenge)
                })
                .await;
                let address = server.address.to_string();
                let repository = repository(settings(), &address, Some(&credentials)).unwrap();
                let document = repository.document("1", None, DOCUMENT_MAX).await;
                let layer = blob(&repository, &Image::small().layer).await;
                for error in [document.unwrap_err(), layer.unwrap_err()] {
                    said.push_str(&format!("{error:?} {error}"));
                    let mut next = error.source();
                    while let Some(cause) = next {
                        said.push_str(&format!(" {cause:?} {cause}"));
                        next = cause.source();
                    }
                }
                said.push_str(&format!("{repository:?}"));
            }
        }
    }
    said.push_str(&String::from_utf8_lossy(&log.0.lock().unwrap()));
    assert!(
        said.contains("asking a registry again"),
        "the log is looked at"
    );
    assert!(said.contains("you said"), "what it says is kept");
    // The base64 of `me:sesame-of-mine`, too.
    for secret in ["sesame", "bWU6c2VzYW1lLW9mLW1pbmU"] {
        let at = said.find(secret);
        let around = at.map(|at| &said[at.saturating_sub(200)..at + 50]);
        assert_eq!(around, None);
    }
}
