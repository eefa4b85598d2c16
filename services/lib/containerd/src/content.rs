//! Blobs in containerd's content store, by digest. containerd itself verifies what is written against its digest.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use berth_domain::names::{self, Names};
use berth_platform::ImageError;
use containerd_client::services::v1::{
    AbortRequest, AddResourceRequest, CreateRequest, DeleteRequest, Info, InfoRequest,
    ReadContentRequest, ReadContentResponse, Resource, UpdateRequest, WriteAction,
    WriteContentRequest,
};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::{
    client::{CallError, Client, LONG_CALL, found, made},
    oci::{DOCUMENT_MAX, Descriptor, corrupt},
};

/// containerd refuses messages over 16 MiB.
const CHUNK: usize = 512 << 10;
/// A lease whose maker died is collected after that.
pub(crate) const LEASE_LIFE: Duration = Duration::from_secs(3600);

static NEXT: AtomicU64 = AtomicU64::new(0);
/// Tells this process from every other that was or will be.
static RUN: LazyLock<String> = LazyLock::new(|| {
    let nanos = jiff::Timestamp::now().as_nanosecond();
    format!("{}-{nanos:x}", std::process::id())
});

/// A name that no other import, pull or unpacking of this or another process has.
pub(crate) fn unique(prefix: &str) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}{number}", own_prefix())
}

/// Whether another process of this instance made this lease, for a pull or an import.
pub(crate) fn is_former_import(names: &Names, lease: &str) -> bool {
    let made_by = lease.strip_prefix(&names.import_lease_prefix());
    made_by.is_some_and(|it| !it.starts_with(&own_prefix()))
}

fn own_prefix() -> String {
    format!("{}-", *RUN)
}

/// Holds what an import makes until an image holds it. Goes with its last user, however that ends.
#[derive(Debug)]
pub(crate) struct TemporaryLease {
    id: String,
    client: Client,
    over: bool,
}

impl TemporaryLease {
    pub(crate) async fn create(client: &Client, names: &Names) -> Result<Self, CallError> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{}{number}", names.import_lease_prefix(), own_prefix());
        let expire = (jiff::Timestamp::now() + LEASE_LIFE).to_string();
        let labels = HashMap::from([
            ("containerd.io/gc.expire".to_owned(), expire),
            (names::LABEL_INSTANCE.to_owned(), names.instance.to_string()),
        ]);
        let request = CreateRequest {
            id: id.clone(),
            labels,
        };
        client
            .call("making a lease", client.leases().create(request))
            .await?;
        Ok(Self {
            client: client.with_lease(&id),
            id,
            over: false,
        })
    }

    /// Calls under this lease.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Lets go; with `collect`, what nothing else holds is gone when this returns.
    pub(crate) async fn end(mut self, collect: bool) -> Result<(), CallError> {
        self.over = true;
        delete_lease(&self.client, &self.id, collect).await
    }
}

impl Drop for TemporaryLease {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (client, id) = (self.client.clone(), std::mem::take(&mut self.id));
            runtime.spawn(async move {
                // One that stays expires.
                let _ = delete_lease(&client, &id, true).await;
            });
        }
    }
}

pub(crate) async fn delete_lease(client: &Client, id: &str, sync: bool) -> Result<(), CallError> {
    let request = DeleteRequest {
        id: id.to_owned(),
        sync,
    };
    let mut leases = client.leases();
    let deleting = leases.delete(request);
    let deleted = if sync {
        // Collecting takes as long as there is to collect.
        client.long_call("removing a lease", deleting).await
    } else {
        client.call("removing a lease", deleting).await
    };
    found(deleted).map(drop)
}

/// Has the lease of these calls hold a blob (`content`) or a snapshot (`snapshots/<snapshotter>`), whether it is there yet
/// or not. What is looked for after this, and found, stays.
pub(crate) async fn hold(client: &Client, kind: &str, id: &str) -> Result<(), CallError> {
    let Some(lease) = client.lease() else {
        return Ok(());
    };
    let request = AddResourceRequest {
        id: lease.to_owned(),
        resource: Some(Resource {
            id: id.to_owned(),
            r#type: kind.to_owned(),
        }),
    };
    let held = client
        .call(
            "holding on to content",
            client.leases().add_resource(request),
        )
        .await;
    made(held).map(drop)
}

/// Where the bytes of a blob come from. An error ends the write.
pub(crate) type Chunks = mpsc::Receiver<Result<Vec<u8>, ImageError>>;

/// Writes a blob of known digest; one that is there is a success. `advance` is told how much is there. It may take as long
/// as the bytes take to come; only containerd is not waited for without an end.
pub(crate) async fn write(
    client: &Client,
    image: &str,
    blob: &Descriptor,
    labels: HashMap<String, String>,
    mut chunks: Chunks,
    advance: impl Fn(u64),
) -> Result<(), ImageError> {
    let ingest = Ingest {
        name: unique("berth"),
        client: client.clone(),
    };
    let total = i64::try_from(blob.size).unwrap_or(i64::MAX);
    let message = |action: WriteAction, offset: u64, data: Vec<u8>| WriteContentRequest {
        action: action.into(),
        r#ref: ingest.name.clone(),
        total,
        expected: blob.digest.clone(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        data,
        labels: HashMap::new(),
    };
    let (sender, receiver) = mpsc::channel(2);
    let mut writing = pin!(client_write(client, ReceiverStream::new(receiver)));
    let operation = "writing content";
    let corrupt = |what: String| corrupt(image, what);
    let advance = &advance;
    let feeding = async move {
        // Its own: however it ends, the write ends with it.
        let sender = sender;
        let mut offset = 0_u64;
        while let Some(chunk) = chunks.recv().await {
            for part in chunk?.chunks(CHUNK) {
                let end = offset + part.len() as u64;
                if end > blob.size {
                    let what = format!("{} is longer than its {} bytes", blob.digest, blob.size);
                    return Err(corrupt(what));
                }
                let part = message(WriteAction::Write, offset, part.to_vec());
                match tokio::time::timeout(LONG_CALL, sender.send(part)).await {
                    Ok(Ok(())) => {}
                    // The answer says why.
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => {
                        let status = Status::unavailable("it takes no more bytes");
                        return Err(CallError { operation, status }.into());
                    }
                }
                offset = end;
                advance(offset);
            }
        }
        if offset != blob.size {
            let what = format!("{} ends after {offset} of {} bytes", blob.digest, blob.size);
            return Err(corrupt(what));
        }
        let mut commit = message(WriteAction::Commit, offset, vec![]);
        commit.labels = labels;
        let _ = sender.send(commit).await;
        Ok(())
    };
    let mut feeding = pin!(feeding);
    let early = tokio::select! {
        // First the feeding: its failure is the cause of whatever containerd says then.
        biased;
        fed = &mut feeding => {
            fed?;
            None
        }
        answer = &mut writing => Some(answer),
    };
    let written = match early {
        // It is there already, or containerd has failed: nobody takes the rest.
        Some(answer) => client.long_call(operation, async { answer }).await,
        None => client.long_call(operation, writing).await,
    };
    match written {
        Ok(()) => {}
        Err(error) if error.is(Code::AlreadyExists) => {}
        Err(error) if error.is(Code::FailedPrecondition) => {
            return Err(corrupt(format!(
                "{}: {}",
                blob.digest,
                error.status.message()
            )));
        }
        Err(error) => return Err(error.into()),
    }
    advance(blob.size);
    Ok(())
}

/// Sends the messages and reads the answers to their end.
async fn client_write(
    client: &Client,
    messages: ReceiverStream<WriteContentRequest>,
) -> Result<tonic::Response<()>, tonic::Status> {
    let mut answers = client.content().write(messages).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(tonic::Response::new(()))
}

/// An unfinished write is taken back. One that was finished is not there any more.
struct Ingest {
    name: String,
    client: Client,
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (client, name) = (self.client.clone(), std::mem::take(&mut self.name));
            runtime.spawn(async move {
                let request = AbortRequest { r#ref: name };
                let _ = client
                    .call("taking a write back", client.content().abort(request))
                    .await;
            });
        }
    }
}

/// Writes a blob that is in memory.
pub(crate) async fn write_bytes(
    client: &Client,
    image: &str,
    blob: &Descriptor,
    labels: HashMap<String, String>,
    bytes: Vec<u8>,
) -> Result<(), ImageError> {
    let (sender, chunks) = mpsc::channel(1);
    // The channel has room for the one message.
    let _ = sender.try_send(Ok(bytes));
    drop(sender);
    write(client, image, blob, labels, chunks, |_| {}).await
}

pub(crate) async fn exists(client: &Client, digest: &str) -> Result<bool, CallError> {
    Ok(labels(client, digest).await?.is_some())
}

/// The labels of a blob; `None` where it is not there.
pub(crate) async fn labels(
    client: &Client,
    digest: &str,
) -> Result<Option<HashMap<String, String>>, CallError> {
    Ok(info(client, digest).await?.map(|it| it.labels))
}

/// The length of a blob in bytes; `None` where it is not there.
pub(crate) async fn size(client: &Client, digest: &str) -> Result<Option<u64>, CallError> {
    let info = info(client, digest).await?;
    Ok(info.map(|it| u64::try_from(it.size).unwrap_or_default()))
}

async fn info(client: &Client, digest: &str) -> Result<Option<Info>, CallError> {
    let request = InfoRequest {
        digest: digest.to_owned(),
    };
    let info = client
        .call("looking for content", client.content().info(request))
        .await;
    Ok(found(info)?.map(|it| it.info.unwrap_or_default()))
}

/// Begins to read a blob.
pub(crate) async fn open(
    client: &Client,
    digest: &str,
) -> Result<Streaming<ReadContentResponse>, Status> {
    let request = ReadContentRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: 0,
    };
    Ok(client.content().read(request).await?.into_inner())
}

/// Reads a document; `None` where it is not there.
pub(crate) async fn read(
    client: &Client,
    image: &str,
    digest: &str,
) -> Result<Option<Vec<u8>>, ImageError> {
    let reading = async {
        let mut parts = open(client, digest).await?;
        let mut bytes = Vec::new();
        while let Some(part) = parts.message().await? {
            bytes.extend(part.data);
            if bytes.len() as u64 > DOCUMENT_MAX {
                break;
            }
        }
        Ok(tonic::Response::new(bytes))
    };
    let read = found(client.call("reading content", reading).await)?;
    if read
        .as_ref()
        .is_some_and(|it| it.len() as u64 > DOCUMENT_MAX)
    {
        let what = format!("{digest} is larger than the {DOCUMENT_MAX} bytes of a document");
        return Err(corrupt(image, what));
    }
    Ok(read)
}

/// Sets labels of a blob that is there.
pub(crate) async fn label(
    client: &Client,
    digest: &str,
    labels: HashMap<String, String>,
) -> Result<(), CallError> {
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Info {
        digest: digest.to_owned(),
        labels,
        ..Info::default()
    };
    let request = UpdateRequest {
        info: Some(info),
        update_mask: Some(FieldMask { paths }),
    };
    let updated = client
        .call("labelling content", client.content().update(request))
        .await;
    made(updated).map(drop)
}

#[cfg(test)]
mod tests {
    use berth_domain::InstanceId;

    use super::*;

    #[test]
    fn only_what_another_process_of_this_instance_made_is_a_former_import() {
        let names = Names {
            instance: InstanceId::parse("abc123").unwrap(),
            cgroup_parent: String::new(),
            run_dir: "/run".into(),
            log_dir: "/log".into(),
        };
        let own = format!("berth-import.abc123.{}7", own_prefix());
        for (lease, former) in [
            ("berth-import.abc123.1-17f-0", true),
            (own.as_str(), false),
            ("berth-import.abc124.1-17f-0", false),
            ("berth-import-1-17f-0", false),
            ("berth.abc123.web", false),
        ] {
            assert_eq!(is_former_import(&names, lease), former, "{lease}");
        }
    }
}
