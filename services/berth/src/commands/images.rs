//! Commands on the images of the node.

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    time::Duration,
};

use berth_api::v1::{
    self, HolderKind, image_service_client::ImageServiceClient, import_image_request::Part,
    pull_image_response::Event,
};
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{Session, sandboxes::to_proto};
use crate::{
    args::Images,
    errors::Failure,
    output::{age, moment, size, table, word},
    progress::{Pulling, Waiting},
    proto_json::ProtoJson,
};

/// Half of what the contract allows for a message of an import.
const CHUNK_BYTES: usize = 512 * 1024;
/// More than any password or token of the contract has.
const SECRET_MAX: u64 = 64 << 10;
/// Chunks that are read ahead of the network.
const CHUNKS_AHEAD: usize = 4;

pub(super) async fn run(session: &Session, command: Images) -> Result<(), Failure> {
    match command {
        Images::Ls => list(session).await,
        Images::Import { file, name } => import(session, &file, name.unwrap_or_default()).await,
        Images::Pull {
            username,
            password_stdin: _,
            token_stdin,
            image,
        } => pull(session, image, credentials(username, token_stdin).await?).await,
        Images::Export { file, image } => export(session, image, file.as_deref()).await,
        Images::Rm { image } => remove(session, image).await,
        Images::Pin { time, image } => pin(session, image, time).await,
        Images::Unpin { image } => unpin(session, image).await,
    }
}

async fn client(session: &Session) -> Result<ImageServiceClient<Channel>, Failure> {
    Ok(ImageServiceClient::new(session.connect().await?))
}

async fn list(session: &Session) -> Result<(), Failure> {
    let request = session.request(v1::ListImagesRequest {});
    let images = client(session)
        .await?
        .list_images(request)
        .await?
        .into_inner()
        .images;
    print(session, &images)
}

fn print(session: &Session, images: &[v1::Image]) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Images<'a> {
        images: Vec<ProtoJson<'a, v1::Image>>,
    }

    let object = Images {
        images: images.iter().map(ProtoJson).collect(),
    };
    Ok(session
        .output
        .object(&object, || image_table(images, Timestamp::now()))?)
}

fn image_table(images: &[v1::Image], now: Timestamp) -> String {
    let rows = images.iter().map(|it| {
        let users: Vec<_> = it.holders.iter().map(holder).collect();
        let bytes = if it.size_bytes == 0 {
            String::new()
        } else {
            size(it.size_bytes)
        };
        [
            it.name.clone(),
            it.digest.clone(),
            bytes,
            age(it.created_at.as_ref(), now),
            age(it.last_used_at.as_ref(), now),
            users.join(","),
        ]
    });
    let titles = ["NAME", "DIGEST", "SIZE", "AGE", "LAST USED", "HELD BY"];
    table(titles, rows.collect())
}

/// A sandbox by its id, all else by what it is.
fn holder(it: &v1::Holder) -> String {
    let kind = it.kind();
    let word = word(kind.as_str_name(), "HOLDER_KIND_").to_ascii_lowercase();
    match kind {
        HolderKind::Sandbox => it.id.clone(),
        HolderKind::Version | HolderKind::Artifact | HolderKind::Manifest => {
            format!("{word} {}", it.id)
        }
        HolderKind::Pin | HolderKind::Pull | HolderKind::Manager | HolderKind::Unspecified => {
            format!("({word})")
        }
    }
}

async fn import(session: &Session, path: &Path, name: String) -> Result<(), Failure> {
    let unreadable = |source| Failure::File {
        path: path.to_owned(),
        source,
    };
    let mut archive: Box<dyn AsyncRead + Unpin + Send> = if path == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let file = File::open(path).await.map_err(unreadable)?;
        // A directory can be opened, and its first read would fail after the call has begun.
        if file.metadata().await.map_err(unreadable)?.is_dir() {
            return Err(unreadable(std::io::ErrorKind::IsADirectory.into()));
        }
        Box::new(file)
    };
    let mut client = client(session).await?;
    let waiting = Waiting::start_reading(format!("importing {}", path.display()));
    let (parts, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let header = v1::ImportImageHeader { name };
    let call = async {
        let request = session.request(ReceiverStream::new(receiver));
        Ok(client.import_image(request).await?.into_inner())
    };
    let feed = async {
        feed(&mut archive, header, &parts, &waiting)
            .await
            .map_err(unreadable)?;
        // A failed read drops the call with this end still open: the archive never looks complete.
        drop(parts);
        Ok::<_, Failure>(())
    };
    let (response, ()) = tokio::try_join!(call, feed)?;
    drop(waiting);
    print(session, &response.images)
}

/// Sends the archive in order. When the manager has hung up, its answer says why.
async fn feed(
    archive: &mut (impl AsyncRead + Unpin),
    header: v1::ImportImageHeader,
    parts: &mpsc::Sender<v1::ImportImageRequest>,
    waiting: &Waiting,
) -> std::io::Result<()> {
    let message = |part| v1::ImportImageRequest { part: Some(part) };
    if parts.send(message(Part::Header(header))).await.is_err() {
        return Ok(());
    }
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        (&mut *archive)
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .await?;
        if chunk.is_empty() {
            return Ok(());
        }
        let bytes = chunk.len();
        if parts.send(message(Part::Chunk(chunk))).await.is_err() {
            return Ok(());
        }
        waiting.add(bytes);
    }
}

/// Reads what was promised on standard input.
async fn credentials(
    username: Option<String>,
    token: bool,
) -> Result<Option<v1::RegistryCredentials>, Failure> {
    if username.is_none() && !token {
        return Ok(None);
    }
    let mut secret = String::new();
    let stdin = tokio::io::stdin().take(SECRET_MAX);
    read_secret(stdin, &mut secret)
        .await
        .map_err(|source| Failure::File {
            path: "-".into(),
            source,
        })?;
    Ok(Some(match username {
        Some(username) => v1::RegistryCredentials {
            username,
            password: secret,
            token: String::new(),
        },
        None => v1::RegistryCredentials {
            token: secret,
            ..Default::default()
        },
    }))
}

/// The line break that editors and `echo` leave is not meant.
async fn read_secret(mut from: impl AsyncRead + Unpin, secret: &mut String) -> io::Result<()> {
    from.read_to_string(secret).await?;
    if secret.ends_with('\n') {
        secret.pop();
        if secret.ends_with('\r') {
            secret.pop();
        }
    }
    Ok(())
}

/// Writes the archive beside the file first, so that one which broke off is not taken for whole.
async fn export(session: &Session, image: String, file: Option<&Path>) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Exported<'a> {
        exported: &'a str,
        file: &'a Path,
        bytes: u64,
    }

    if file.is_none() && io::stdout().is_terminal() {
        return Err(Failure::Terminal);
    }
    let mut client = client(session).await?;
    let waiting = Waiting::start_reading(format!("exporting {image}"));
    let request = session.request(v1::ExportImageRequest {
        image: image.clone(),
    });
    let mut parts = client.export_image(request).await?.into_inner();
    let Some(file) = file else {
        let mut stdout = tokio::io::stdout();
        write(&mut parts, &mut stdout, &waiting).await?;
        return Ok(());
    };
    let unwritable = |source| Failure::Unwritable {
        path: file.to_owned(),
        source,
    };
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let written = async {
        let mut out = File::create(&partial).await.map_err(unwritable)?;
        let bytes = write(&mut parts, &mut out, &waiting).await?;
        tokio::fs::rename(&partial, file)
            .await
            .map_err(unwritable)?;
        Ok::<_, Failure>(bytes)
    };
    let written = written.await;
    if written.is_err() {
        let _ = tokio::fs::remove_file(&partial).await;
    }
    drop(waiting);
    let exported = Exported {
        exported: &image,
        file,
        bytes: written?,
    };
    Ok(session.output.object(&exported, || {
        format!("{image} {} {}", file.display(), size(exported.bytes))
    })?)
}

/// Writes an archive as it comes; returns its length in bytes.
async fn write(
    parts: &mut tonic::Streaming<v1::ExportImageResponse>,
    out: &mut (impl AsyncWrite + Unpin),
    waiting: &Waiting,
) -> Result<u64, Failure> {
    let mut bytes = 0;
    while let Some(part) = parts.message().await? {
        out.write_all(&part.chunk).await?;
        waiting.add(part.chunk.len());
        bytes += part.chunk.len() as u64;
    }
    out.flush().await?;
    Ok(bytes)
}

async fn pull(
    session: &Session,
    image: String,
    credentials: Option<v1::RegistryCredentials>,
) -> Result<(), Failure> {
    let mut client = client(session).await?;
    let mut pulling = Pulling::start(&image);
    let request = session.request(v1::PullImageRequest { image, credentials });
    let mut events = client.pull_image(request).await?.into_inner();
    let mut pulled = None;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Progress(progress)) => pulling.show(progress),
            Some(Event::Image(image)) => pulled = Some(image),
            None => (),
        }
    }
    drop(pulling);
    let image = pulled.ok_or(Failure::Incomplete("image"))?;
    Ok(session.output.object(&ProtoJson(&image), || {
        format!("{} {}", image.name, image.digest)
    })?)
}

async fn remove(session: &Session, image: String) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Removed {
        removed: String,
    }

    let request = session.request(v1::RemoveImageRequest {
        image: image.clone(),
    });
    client(session).await?.remove_image(request).await?;
    let object = Removed { removed: image };
    Ok(session
        .output
        .object(&object, || format!("{} removed", object.removed))?)
}

async fn pin(session: &Session, image: String, time: Option<Duration>) -> Result<(), Failure> {
    let request = session.request(v1::PinImageRequest {
        image,
        time_to_live: time.map(to_proto),
    });
    let pinned = client(session).await?.pin_image(request).await?;
    let pinned = pinned.into_inner();
    Ok(session
        .output
        .object(&ProtoJson(&pinned), || match &pinned.expires_at {
            Some(end) => format!("{} pinned until {}", pinned.image, moment(Some(end))),
            None => format!("{} pinned", pinned.image),
        })?)
}

async fn unpin(session: &Session, image: String) -> Result<(), Failure> {
    let request = session.request(v1::UnpinImageRequest {
        image: image.clone(),
    });
    let answer = client(session).await?.unpin_image(request).await?;
    let answer = answer.into_inner();
    Ok(session
        .output
        .object(&ProtoJson(&answer), || match answer.existed {
            true => format!("{image} unpinned"),
            false => format!("{image} was not pinned"),
        })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_archive_is_sent_as_a_header_and_chunks_in_order() {
        let archive: Vec<u8> = (0..CHUNK_BYTES * 2 + 7)
            .map(|it| (it % 251) as u8)
            .collect();
        let (parts, mut receiver) = mpsc::channel(CHUNKS_AHEAD);
        let waiting = Waiting::default();
        let header = v1::ImportImageHeader {
            name: "n".to_owned(),
        };
        let sent = feed(&mut archive.as_slice(), header.clone(), &parts, &waiting).await;
        assert!(sent.is_ok());
        drop(parts);
        let first = receiver.recv().await.and_then(|it| it.part);
        assert_eq!(first, Some(Part::Header(header)));
        let mut received = Vec::new();
        while let Some(message) = receiver.recv().await {
            let Some(Part::Chunk(chunk)) = message.part else {
                panic!("a chunk was due")
            };
            assert!(chunk.len() <= CHUNK_BYTES);
            received.extend(chunk);
        }
        assert!(received == archive, "the bytes differ");
    }

    #[tokio::test]
    async fn a_manager_that_hangs_up_ends_the_reading_without_a_failure_of_its_own() {
        let (parts, receiver) = mpsc::channel(CHUNKS_AHEAD);
        drop(receiver);
        let waiting = Waiting::default();
        let sent = feed(
            &mut &b"abc"[..],
            v1::ImportImageHeader::default(),
            &parts,
            &waiting,
        )
        .await;
        assert!(sent.is_ok());
    }

    #[tokio::test]
    async fn a_secret_is_what_comes_but_for_its_last_line_break() {
        for (input, expected) in [
            ("sesame", "sesame"),
            ("sesame\n", "sesame"),
            ("sesame\r\n", "sesame"),
            ("sesame\n\n", "sesame\n"),
            (" se same ", " se same "),
            ("", ""),
        ] {
            let mut secret = String::new();
            read_secret(input.as_bytes(), &mut secret).await.unwrap();
            assert_eq!(secret, expected, "{input:?}");
        }
    }

    #[test]
    fn an_image_is_one_line_with_its_holders() {
        let holder = |kind: HolderKind, id: &str| v1::Holder {
            kind: kind.into(),
            id: id.to_owned(),
            until: None,
        };
        let image = v1::Image {
            name: "docker.io/library/nginx:1.27".to_owned(),
            digest: "sha256:ab".to_owned(),
            size_bytes: 3 << 20,
            last_used_at: Some(prost_types::Timestamp {
                seconds: -60,
                nanos: 0,
            }),
            holders: vec![
                holder(HolderKind::Sandbox, "a"),
                holder(HolderKind::Version, "v1"),
                holder(HolderKind::Pin, "docker.io/library/nginx:1.27"),
                holder(HolderKind::Manager, ""),
            ],
            ..Default::default()
        };
        assert_eq!(
            output_line(&image),
            "docker.io/library/nginx:1.27  sha256:ab  3.0 MiB  -    1m         a,version v1,(pin),(manager)"
        );
    }

    fn output_line(image: &v1::Image) -> String {
        let now = Timestamp::UNIX_EPOCH;
        let text = image_table(std::slice::from_ref(image), now);
        text.lines().last().unwrap_or_default().to_owned()
    }
}
