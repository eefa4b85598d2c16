//! Workers of image-gc beside a node of a test, and a directory of blobs for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self, catalog_service_client::CatalogServiceClient,
    collection_service_client::CollectionServiceClient, entry::Object,
    image_gc_service_client::ImageGcServiceClient, lease_service_client::LeaseServiceClient,
};
use tonic::transport::Channel;

use crate::{
    TestNode,
    images::digest,
    node::{eventually, programs},
};

/// Workers find each other, take over what is another's, and carry a run out within it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A process of image-gc. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    pub name: String,
    pub address: String,
}

impl Worker {
    /// Starts one that finds blobs in `blobs` of the node's folder; `toml` goes before the settings of all tests.
    pub fn start(node: &TestNode, name: &str, toml: &str) -> anyhow::Result<Self> {
        Self::start_with(node, name, toml, &[])
    }

    pub fn start_with(
        node: &TestNode,
        name: &str,
        toml: &str,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let home = node.home();
        let socket = home.join(format!("{name}.sock"));
        let mut lines: BTreeMap<String, String> = [
            (
                "manager_address",
                format!("{:?}", node.variable("BERTH_ADDRESS")),
            ),
            ("name", format!("{name:?}")),
            ("socket", format!("{socket:?}")),
            ("data_path", format!("{home:?}")),
            ("blob_dir", format!("{:?}", home.join("blobs"))),
            // The host's disk is no matter of a test.
            ("disk_pressure_threshold", "100".to_owned()),
            ("blob_age", "\"0s\"".to_owned()),
            ("tombstone_grace", "\"0s\"".to_owned()),
            ("lease_time", "\"2s\"".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        for line in toml.lines() {
            let (key, value) = line.split_once('=').context("a line is `key = value`")?;
            lines.insert(key.trim().to_owned(), value.trim().to_owned());
        }
        let lines = lines
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"));
        let file = home.join(format!("{name}.toml"));
        fs::write(&file, lines.collect::<String>())?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(home.join(format!("{name}.log")))?;
        let child = Command::new(programs().join("image-gc"))
            .arg("--config")
            .arg(file)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self {
            child,
            name: name.to_owned(),
            address: format!("unix:{}", socket.display()),
        })
    }

    pub async fn client(&self) -> anyhow::Result<ImageGcServiceClient<Channel>> {
        Ok(ImageGcServiceClient::new(
            berth_api::connect(&self.address).await?,
        ))
    }

    pub async fn status(&self) -> anyhow::Result<v1::GetImageGcStatusResponse> {
        let mut client = self.client().await?;
        let answer = client.get_image_gc_status(v1::GetImageGcStatusRequest {});
        Ok(answer.await?.into_inner())
    }

    /// A run of blobs or of images from its beginning to its end.
    pub async fn run(&self, images: bool, goal_bytes: u64) -> anyhow::Result<v1::Collection> {
        let request = v1::ImageGcServiceRunRequest {
            images,
            blobs: !images,
            goal_bytes,
        };
        let mut answers = self.client().await?.run(request).await?.into_inner();
        let mut last = None;
        while let Some(answer) = answers.message().await? {
            last = answer.collection;
        }
        last.context("a run has a last message")
    }

    pub async fn plan(
        &self,
        request: v1::ImageGcServicePlanRequest,
    ) -> anyhow::Result<Vec<v1::ImageGcServicePlanResponse>> {
        let mut answers = self.client().await?.plan(request).await?.into_inner();
        let mut objects = Vec::new();
        while let Some(object) = answers.message().await? {
            objects.push(object);
        }
        Ok(objects)
    }

    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status()?;
        ensure!(status.success(), "kill");
        Ok(())
    }

    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|it| it.is_some())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn leases(node: &TestNode) -> anyhow::Result<Vec<v1::WorkLease>> {
    let request = v1::ListWorkLeasesRequest {
        prefix: "image-gc/".into(),
    };
    let mut client = LeaseServiceClient::new(node.channel.clone());
    Ok(client.list_work_leases(request).await?.into_inner().leases)
}

/// Slices of both kinds of each of these workers; an error where one is not known yet, or another one has a slice.
pub async fn slices(node: &TestNode, workers: &[&Worker]) -> anyhow::Result<Vec<BTreeSet<String>>> {
    let leases = leases(node).await?;
    let mut all = Vec::new();
    for worker in workers {
        let pid = worker.child.id().to_string();
        let lives = |it: &&v1::WorkLease| it.attributes.get("pid") == Some(&pid);
        let own = leases.iter().find(lives).context("it is not known yet")?;
        let of_it = |it: &&v1::WorkLease| it.holder == own.holder && it.name != own.name;
        let slices = leases.iter().filter(of_it).map(|it| it.name.clone());
        all.push(slices.collect());
    }
    ensure!(
        all.iter().map(BTreeSet::len).sum::<usize>() == 128,
        "some are another's"
    );
    Ok(all)
}

/// Waits until these workers have all slices among them, as even as can be.
pub async fn shared_by(node: &TestNode, workers: &[&Worker]) -> anyhow::Result<()> {
    let even = || async {
        let Ok(slices) = slices(node, workers).await else {
            return false;
        };
        let counts = slices.iter().map(BTreeSet::len);
        counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0) <= 2
    };
    eventually("the slices are shared", DEADLINE, even).await
}

pub fn collections(node: &TestNode) -> CollectionServiceClient<Channel> {
    CollectionServiceClient::new(node.channel.clone())
}

pub async fn latest(node: &TestNode) -> anyhow::Result<Vec<v1::Collection>> {
    let request = v1::ListCollectionsRequest::default();
    let answer = collections(node).list_collections(request).await?;
    Ok(answer.into_inner().collections)
}

/// Waits until the runs that a schedule begins with are over, images and blobs. From then on the catalog is not empty, which
/// would keep all blobs.
pub async fn settled(node: &TestNode) -> anyhow::Result<()> {
    put_artifact(
        node,
        "artifact/standing",
        v1::ArtifactStatus::Active,
        vec![],
    )
    .await?;
    let over = || async {
        latest(node).await.is_ok_and(|runs| {
            runs.iter().all(|it| it.ended_at.is_some())
                && [v1::CollectionKind::Images, v1::CollectionKind::Blobs]
                    .iter()
                    .all(|kind| runs.iter().any(|it| it.kind() == *kind))
        })
    };
    eventually("the first runs are over", DEADLINE, over).await
}

pub async fn put(node: &TestNode, object: Object) -> anyhow::Result<()> {
    let entry = v1::Entry {
        revision: 0,
        object: Some(object),
    };
    let request = v1::PutEntryRequest {
        entry: Some(entry),
        expected_revision: 0,
    };
    let mut client = CatalogServiceClient::new(node.channel.clone());
    client.put_entry(request).await?;
    Ok(())
}

pub async fn put_artifact(
    node: &TestNode,
    id: &str,
    status: v1::ArtifactStatus,
    blobs: Vec<String>,
) -> anyhow::Result<()> {
    let artifact = v1::Artifact {
        id: id.to_owned(),
        status: status.into(),
        blobs,
    };
    put(node, Object::Artifact(artifact)).await
}

/// A directory of blobs, in one of the two layouts.
#[derive(Clone, Debug)]
pub struct Registry {
    pub root: PathBuf,
    pub tree: bool,
}

impl Registry {
    pub fn new(root: PathBuf, tree: bool) -> anyhow::Result<Self> {
        fs::create_dir_all(&root)?;
        Ok(Self { root, tree })
    }

    pub fn layout(&self) -> &'static str {
        if self.tree {
            "\"distribution\""
        } else {
            "\"flat\""
        }
    }

    pub fn path(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        match self.tree {
            false => self.root.join(digest),
            true => self
                .root
                .join(format!("blobs/sha256/{}/{hex}/data", &hex[..2])),
        }
    }

    /// Writes a blob, and in a tree a link to it.
    pub fn write(&self, content: &[u8]) -> anyhow::Result<String> {
        let digest = digest(content);
        write(&self.path(&digest), content)?;
        if self.tree {
            let hex = digest.trim_start_matches("sha256:");
            let link = format!("repositories/shop/_layers/sha256/{hex}/link");
            write(&self.root.join(link), digest.as_bytes())?;
        }
        Ok(digest)
    }

    pub fn made(&self, digest: &str, at: SystemTime) -> anyhow::Result<()> {
        let file = fs::File::options().append(true).open(self.path(digest))?;
        Ok(file.set_modified(at)?)
    }

    pub fn has(&self, digest: &str) -> bool {
        self.path(digest).exists()
    }

    /// The file that says whose the directory is.
    pub fn authority(&self) -> PathBuf {
        self.root.join(".berth-authority")
    }

    /// All files of blobs that there are, and of links.
    pub fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let (mut found, mut next) = (Vec::new(), vec![self.root.clone()]);
        while let Some(directory) = next.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                match path.is_dir() {
                    true => next.push(path),
                    false => found.push(path),
                }
            }
        }
        found.retain(|it| *it != self.authority());
        Ok(found)
    }
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    fs::create_dir_all(path.parent().context("a directory")?)?;
    Ok(fs::write(path, content)?)
}
