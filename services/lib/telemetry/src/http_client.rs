//! OTLP over HTTP: the threads that export have no runtime, so each request is a task of the process's own.

use std::{error::Error, pin::Pin, time::Duration};

use http::{HeaderMap, header::CONTENT_TYPE};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::runtime::Handle;

/// A receiver has little to say.
const ANSWER_MAX: usize = 1 << 20;

#[derive(Clone, Debug)]
pub(crate) struct Client {
    runtime: Handle,
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new(timeout: Duration) -> Result<Self, Box<dyn Error + Send + Sync>> {
        // Another part of the process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            runtime: Handle::current(),
            http: reqwest::Client::builder().timeout(timeout).build()?,
        })
    }
}

impl HttpClient for Client {
    fn send_bytes<'me, 'answer>(
        &'me self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'answer>>
    where
        'me: 'answer,
    {
        let http = self.http.clone();
        let sent = AbortOnDrop(self.runtime.spawn(send(http, request)));
        Box::pin(async move { sent.await? })
    }
}

/// A receiver that is posted to.
#[derive(Clone, Debug)]
pub struct HttpReceiver(reqwest::Client);

impl HttpReceiver {
    /// No answer takes longer than `timeout`.
    pub fn new(timeout: Duration) -> Result<Self, HttpError> {
        Ok(Self(Client::new(timeout)?.http))
    }

    /// The status of the answer, and what it says.
    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<(u16, Vec<u8>), HttpError> {
        let mut request = Request::post(url)
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(body.into())?;
        request.headers_mut().extend(headers);
        let answer = send(self.0.clone(), request).await?;
        Ok((answer.status().as_u16(), answer.into_body().to_vec()))
    }
}

async fn send(
    http: reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let mut answer = http.execute(request.try_into()?).await?;
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        headers.extend(std::mem::take(answer.headers_mut()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > ANSWER_MAX {
            return Err("the answer is too large".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(response.body(body.into())?)
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
