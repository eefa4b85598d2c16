//! A development node for one test: real containerd, real manager, everything its own.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use berth_api::v1::{
    self, collection_service_client::CollectionServiceClient,
    image_service_client::ImageServiceClient, import_image_request::Part,
    lease_service_client::LeaseServiceClient, node_service_client::NodeServiceClient,
    sandbox_service_client::SandboxServiceClient,
};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{faults::is_alive, images, leftovers::Leftovers};

/// Root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the repository is here")
}

const HOMES: &str = "/tmp";
/// Goes before the process id of the test.
const HOME_PREFIX: &str = "berth-e2e-";
/// In a home: the path of the network namespace that the node lives in, where that is not the test's.
pub(crate) const NAMESPACE_FILE: &str = "netns";

/// A running node. Dropping it takes it down; [`TestNode::finish`] also proves that nothing is left.
#[derive(Debug)]
pub struct TestNode {
    home: TempDir,
    env: BTreeMap<String, String>,
    pub channel: Channel,
}

impl TestNode {
    /// Starts a node with the busybox image on it.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with("", &[]).await
    }

    /// Starts a node whose configuration has `toml` at its end.
    pub async fn start_with(toml: &str, options: &[&str]) -> anyhow::Result<Self> {
        Self::start_in(Self::new_home()?, toml, options).await
    }

    /// A folder for a node. What a killed run has left in its own is taken down.
    pub fn new_home() -> anyhow::Result<TempDir> {
        sweep();
        let prefix = format!("{HOME_PREFIX}{}-", std::process::id());
        let home = tempfile::Builder::new().prefix(&prefix).tempdir_in(HOMES)?;
        Ok(home)
    }

    /// Starts a node in a folder that the caller has prepared.
    pub async fn start_in(home: TempDir, toml: &str, options: &[&str]) -> anyhow::Result<Self> {
        let extra = home.path().join("extra.toml");
        std::fs::write(&extra, toml)?;
        let mut command = script("up", home.path());
        command.env("BERTH_DEV_EXTRA_TOML", &extra).args(options);
        let up = succeed(command).context("starting the node");
        if let Err(error) = up {
            let _ = script("down", home.path()).arg("--purge").output();
            return Err(error);
        }
        let env = succeed(script("env", home.path()))?;
        let env = env
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.trim_matches(['\'', '"']).to_owned()))
            .collect::<BTreeMap<_, _>>();
        let address = env
            .get("BERTH_ADDRESS")
            .context("no BERTH_ADDRESS in the environment")?;
        let channel = berth_api::connect(address).await?;
        let node = Self { home, env, channel };
        node.import(&images::busybox(), "")
            .await
            .context("importing busybox")?;
        Ok(node)
    }

    pub fn sandboxes(&self) -> SandboxServiceClient<Channel> {
        SandboxServiceClient::new(self.channel.clone())
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    pub fn collections(&self) -> CollectionServiceClient<Channel> {
        CollectionServiceClient::new(self.channel.clone())
    }

    pub fn leases(&self) -> LeaseServiceClient<Channel> {
        LeaseServiceClient::new(self.channel.clone())
    }

    pub fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A variable of `deploy/dev/node env`.
    pub fn variable(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    /// A command that sees the node as a user does.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        let own = self
            .variable("PATH")
            .replace("$PATH", &path)
            .replace("${PATH}", &path);
        command
            .envs(self.env.iter().filter(|(key, _)| *key != "PATH"))
            .env("PATH", own);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `berth` and returns what it prints.
    pub fn berth(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command("berth");
        command.args(arguments);
        succeed(command)
    }

    /// Imports an archive over the API.
    pub async fn import(
        &self,
        archive: &[u8],
        name: &str,
    ) -> Result<Vec<v1::Image>, tonic::Status> {
        let header = v1::ImportImageHeader {
            name: name.to_owned(),
        };
        let parts = std::iter::once(Part::Header(header))
            .chain(archive.chunks(512 << 10).map(|it| Part::Chunk(it.to_vec())))
            .map(|part| v1::ImportImageRequest { part: Some(part) })
            .collect::<Vec<_>>();
        let answer = self
            .images()
            .import_image(tokio_stream::iter(parts))
            .await?;
        Ok(answer.into_inner().images)
    }

    pub async fn create(
        &self,
        id: &str,
        spec: v1::SandboxSpec,
    ) -> Result<v1::Sandbox, tonic::Status> {
        let request = v1::CreateRequest {
            id: id.into(),
            spec: Some(spec),
            ..v1::CreateRequest::default()
        };
        let answer = self.sandboxes().create(request).await?.into_inner();
        Ok(answer.sandbox.unwrap_or_default())
    }

    /// As `create`, and does not wait until it is RUNNING.
    pub async fn accept(
        &self,
        id: &str,
        spec: v1::SandboxSpec,
    ) -> Result<v1::Sandbox, tonic::Status> {
        let request = v1::CreateRequest {
            id: id.into(),
            spec: Some(spec),
            wait: v1::WaitFor::Accepted.into(),
            ..v1::CreateRequest::default()
        };
        let answer = self.sandboxes().create(request).await?.into_inner();
        Ok(answer.sandbox.unwrap_or_default())
    }

    pub async fn get(&self, id: &str) -> Result<v1::Sandbox, tonic::Status> {
        let answer = self
            .sandboxes()
            .get(v1::GetRequest { id: id.into() })
            .await?
            .into_inner();
        Ok(answer.sandbox.unwrap_or_default())
    }

    /// The addresses of a sandbox, IPv4 first.
    pub async fn addresses(&self, id: &str) -> anyhow::Result<Vec<IpAddr>> {
        let sandbox = self.get(id).await?;
        let bare = sandbox
            .addresses
            .iter()
            .filter_map(|it| it.address.split('/').next());
        Ok(bare.map(str::parse).collect::<Result<_, _>>()?)
    }

    /// What was denied to a sandbox so far.
    pub async fn denied(&self, id: &str) -> anyhow::Result<v1::DeniedTraffic> {
        let request = v1::SnapshotRequest { id: id.into() };
        let snapshot = self.sandboxes().snapshot(request).await?.into_inner();
        snapshot.denied.context("it counts")
    }

    /// The name of the node's tables, without their family.
    pub fn table(&self) -> anyhow::Result<String> {
        let instance = std::fs::read_to_string(self.home().join("instance"))?;
        Ok(format!("berth-{}", instance.trim()))
    }

    pub async fn delete(&self, id: &str) -> Result<bool, tonic::Status> {
        let request = v1::DeleteRequest {
            id: id.into(),
            expected_generation: 0,
        };
        Ok(self.sandboxes().delete(request).await?.into_inner().existed)
    }

    pub async fn stop(&self, id: &str) -> Result<v1::Sandbox, tonic::Status> {
        let request = v1::StopRequest {
            id: id.into(),
            ..v1::StopRequest::default()
        };
        let answer = self.sandboxes().stop(request).await?.into_inner();
        Ok(answer.sandbox.unwrap_or_default())
    }

    /// Every sandbox, also the dead.
    pub async fn list(&self) -> Result<Vec<v1::Sandbox>, tonic::Status> {
        let request = v1::ListRequest {
            statuses: (1..=5).collect(),
            page_size: 1000,
            ..v1::ListRequest::default()
        };
        Ok(self.sandboxes().list(request).await?.into_inner().sandboxes)
    }

    pub async fn status(&self) -> Result<v1::GetStatusResponse, tonic::Status> {
        let request = v1::GetStatusRequest {};
        Ok(self.node().get_status(request).await?.into_inner())
    }

    pub async fn audit(&self) -> Result<v1::AuditResponse, tonic::Status> {
        let request = v1::AuditRequest::default();
        Ok(self.node().audit(request).await?.into_inner())
    }

    /// Fails unless the audit is clean.
    pub async fn assert_clean(&self) -> anyhow::Result<()> {
        let audit = self.audit().await?;
        ensure!(audit.clean, "the audit is not clean: {:#?}", audit.objects);
        Ok(())
    }

    /// Kills the manager with SIGKILL and returns when it is dead: `up` starts none beside one that still dies.
    pub fn kill_manager(&self) -> anyhow::Result<()> {
        self.signal_manager("-KILL", Duration::from_secs(10))
    }

    /// Signals the manager and returns when it has ended.
    pub fn signal_manager(&self, signal: &str, limit: Duration) -> anyhow::Result<()> {
        self.end("manager", signal, limit)
    }

    /// Kills the dns with SIGKILL and returns when it is dead.
    pub fn kill_dns(&self) -> anyhow::Result<()> {
        self.end("dns", "-KILL", Duration::from_secs(10))
    }

    /// Signals a process, as its file of the pid is named, and returns when it has ended.
    pub fn end(&self, process: &str, signal: &str, limit: Duration) -> anyhow::Result<()> {
        let pid = std::fs::read_to_string(self.home().join(format!("{process}.pid")));
        let pid = pid.with_context(|| format!("the pid of the {process}"))?;
        let status = Command::new("kill").args([signal, pid.trim()]).status()?;
        ensure!(status.success(), "kill");
        let deadline = Instant::now() + limit;
        while self.runs(process) {
            ensure!(Instant::now() < deadline, "the {process} does not end");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Whether the process that was started last is there and no zombie.
    pub fn manager_runs(&self) -> bool {
        self.runs("manager")
    }

    fn runs(&self, process: &str) -> bool {
        let pid = std::fs::read_to_string(self.home().join(format!("{process}.pid")));
        let pid = pid.ok().and_then(|it| it.trim().parse().ok());
        pid.is_some_and(is_alive)
    }

    /// Starts again what does not run, and waits until the manager answers on the old channel.
    pub async fn up(&self) -> anyhow::Result<()> {
        self.up_with(&[]).await
    }

    /// As `up`, with these variables in the environment of what is started.
    pub async fn up_with(&self, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut command = self.up_command();
        command.envs(environment.iter().copied());
        succeed(command)?;
        let answers = || async { !self.manager_runs() || self.status().await.is_ok() };
        eventually("the manager answers", Duration::from_secs(10), answers).await?;
        ensure!(self.manager_runs(), "the manager has died");
        Ok(())
    }

    pub(crate) fn up_command(&self) -> Command {
        let mut command = script("up", self.home());
        command.env("BERTH_DEV_EXTRA_TOML", self.home().join("extra.toml"));
        command
    }

    /// Takes the node down and proves that nothing of it is left on the host.
    pub fn finish(self) -> anyhow::Result<()> {
        let leftovers = Leftovers::of(self.home(), self.variable("CONTAINERD_NAMESPACE"))?;
        succeed(script("down", self.home()).arg("--purge")).context("taking the node down")?;
        leftovers.assert_none()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        // After `finish` this finds nothing to do.
        let _ = script("down", self.home.path()).arg("--purge").output();
    }
}

/// Takes down, once per process, what a run of tests left that was killed.
pub(crate) fn sweep() {
    static SWEPT: std::sync::Once = std::sync::Once::new();
    SWEPT.call_once(|| {
        for entry in std::fs::read_dir(HOMES).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name
                .strip_prefix(HOME_PREFIX)
                .and_then(|it| it.split_once('-'));
            let Some((pid, _)) = pid else { continue };
            if !Path::new("/proc").join(pid).exists() {
                let _ = script("down", &entry.path()).arg("--purge").output();
            }
        }
    });
}

/// Waits until `state` holds.
pub async fn eventually<F: Future<Output = bool>>(
    what: &str,
    limit: Duration,
    mut state: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !state().await {
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Tries `work` until it succeeds.
pub async fn obtained<T, F: Future<Output = anyhow::Result<T>>>(
    what: &str,
    limit: Duration,
    mut work: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let late = Instant::now() >= deadline;
        ensure!(!late, "not within {limit:?}: {what}: {error:#}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn script(verb: &str, home: &Path) -> Command {
    let mut command = on_host_of(home, root().join("deploy/dev/node"));
    command
        .arg(verb)
        .arg("--home")
        .arg(home)
        .stdin(Stdio::null());
    // A test starts those that it is about.
    command.env("BERTH_DEV_PROCESSES", "dns");
    command.env("BERTH_BIN", programs());
    command
}

/// A program in the network namespace of the node in `home`.
pub(crate) fn on_host_of(home: &Path, program: impl AsRef<OsStr>) -> Command {
    let namespace = std::fs::read_to_string(home.join(NAMESPACE_FILE)).map(PathBuf::from);
    match namespace {
        Ok(path) if path.exists() => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", path.display()));
            command.arg(program);
            command
        }
        Ok(_) | Err(_) => Command::new(program),
    }
}

/// Folder of the programs under test: those of the same build as the test.
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its program");
    test.ancestors()
        .find(|it| it.join("sandbox-manager").is_file())
        .expect("`cargo build --workspace --bins` goes before the e2e tests")
        .to_owned()
}

/// Runs a command and returns its standard output.
pub fn succeed(mut command: impl std::borrow::BorrowMut<Command>) -> anyhow::Result<String> {
    let command = command.borrow_mut();
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!(
            "{command:?} ended with {status}\n{}{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
