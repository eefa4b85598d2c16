//! OTLP over HTTP: the threads that export have no runtime, so each request is a task of the process's own.

use std::{error::Error, pin::Pin, time::Duration};

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
