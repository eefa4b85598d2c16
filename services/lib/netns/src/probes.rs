//! Asks an app in a sandbox, from the node, whether it is ready. Of an answer only its head is read.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use berth_domain::ProbeCheck;
use berth_platform::ProbeError;
use http::{Request, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// An answer with a longer head is none.
const HEAD_MAX: usize = 16 << 10;
const USER_AGENT: &str = "berth-probe";

pub(crate) async fn ask(address: IpAddr, check: &ProbeCheck) -> Result<(), ProbeError> {
    match check {
        ProbeCheck::TcpConnect { port } => connect(address, *port).await.map(drop),
        ProbeCheck::HttpGet { port, path, host } => get(address, *port, path, host).await,
        ProbeCheck::Exec { .. } => Err(ProbeError::of_program()),
    }
}

async fn connect(address: IpAddr, port: u16) -> Result<TcpStream, ProbeError> {
    let stream = TcpStream::connect((address, port)).await;
    stream.map_err(|error| match error.kind() == ErrorKind::ConnectionRefused {
        true => ProbeError("the connection was refused".to_owned()),
        false => ProbeError(format!("the connection failed: {error}")),
    })
}

async fn get(address: IpAddr, port: u16, path: &str, host: &str) -> Result<(), ProbeError> {
    let stream = TokioIo::new(connect(address, port).await?);
    let host = match host {
        "" => SocketAddr::new(address, port).to_string(),
        host => host.to_owned(),
    };
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(String::new())
        .map_err(|error| ProbeError(format!("the request cannot be written: {error}")))?;
    let failed = |error: hyper::Error| ProbeError(format!("no HTTP answer: {error}"));
    let mut client = http1::Builder::new();
    client.max_buf_size(HEAD_MAX);
    let (mut sender, connection) = client.handshake(stream).await.map_err(failed)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        match answer.status().as_u16() {
            200..400 => Ok(()),
            status => Err(ProbeError(format!("it answered with status {status}"))),
        }
    };
    // The connection moves the bytes, and ends early where the other side closes it: then the exchange knows.
    let moved = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = exchange => answer,
        () = moved => Err(ProbeError("no HTTP answer".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Answers one request with `answer`; returns the verdict and the request.
    async fn answered(answer: &str, path: &str, host: &str) -> (Result<(), String>, String) {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let check = ProbeCheck::HttpGet {
            port: listener.local_addr().unwrap().port(),
            path: path.to_owned(),
            host: host.to_owned(),
        };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![];
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            // One that has heard enough goes away.
            let _ = stream.write_all(answer.as_bytes()).await;
            String::from_utf8(request).unwrap()
        };
        let (verdict, request) = tokio::join!(ask(LOCAL, &check), serve);
        (verdict.map_err(|it| it.to_string()), request)
    }

    #[tokio::test]
    async fn a_status_from_200_to_399_is_a_success_whatever_follows_it() {
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1 << 20));
        let early = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(HEAD_MAX));
        #[rustfmt::skip]
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", None),
            ("HTTP/1.0 302 Found\r\nLocation: /elsewhere\r\n\r\n", None),
            (endless.as_str(), None),
            (early, None),
            ("HTTP/1.1 199 Odd\r\n\r\n", Some("no HTTP answer")),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", Some("status 400")),
            ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", Some("status 503")),
            ("SSH-2.0-OpenSSH_9.2\r\n", Some("no HTTP answer")),
            ("", Some("no HTTP answer")),
            (long.as_str(), Some("no HTTP answer")),
        ];
        for (answer, problem) in cases {
            let (verdict, _) = answered(answer, "/", "").await;
            let beginning = answer.get(..20);
            match (verdict, problem) {
                (Ok(()), None) => {}
                (Err(said), Some(part)) if said.contains(part) => {}
                (verdict, problem) => panic!("{beginning:?}: {verdict:?}, not {problem:?}"),
            }
        }
    }

    #[tokio::test]
    async fn the_request_has_the_path_and_the_host_that_were_asked_for() {
        let answer = "HTTP/1.1 200 OK\r\n\r\n";
        let (_, request) = answered(answer, "/healthz?full=1", "shop.example.org").await;
        assert!(
            request.starts_with("GET /healthz?full=1 HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.contains("host: shop.example.org\r\n"), "{request}");
        let (_, request) = answered(answer, "/", "").await;
        assert!(request.contains("host: 127.0.0.1:"), "{request}");
    }

    #[tokio::test]
    async fn a_connection_is_a_success_and_a_refused_one_is_none() {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        ask(LOCAL, &ProbeCheck::TcpConnect { port }).await.unwrap();
        drop(listener);
        let refused = ask(LOCAL, &ProbeCheck::TcpConnect { port }).await;
        assert!(refused.unwrap_err().to_string().contains("refused"));
    }
}
