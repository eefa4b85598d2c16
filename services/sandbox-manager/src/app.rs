//! Wires the manager: the only place that names the concrete adapters.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use berth_api::{
    Place,
    v1::{
        image_service_server::ImageServiceServer, node_service_server::NodeServiceServer,
        sandbox_service_server::SandboxServiceServer,
    },
};
use berth_containerd::Containerd;
use berth_domain::{InstanceId, Names, ipam};
use berth_netns::NetnsNetwork;
use berth_platform::Images as _;
use berth_store::Store;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    claim::claim,
    config::{Config, PauseRootfs},
    node::Node,
    registry::{Limits, Registry},
    rpc::{About, ImageRpc, NodeRpc, SandboxRpc, deadline::DeadlineLayer},
};

type NodeRegistry = Registry<Containerd, NetnsNetwork>;

/// A manager that is ready to serve.
pub struct App {
    registry: NodeRegistry,
    listener: UnixListener,
    socket: PathBuf,
    about: About,
    spool_dir: PathBuf,
    stop: CancellationToken,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl App {
    pub async fn build(config: Config, stop: CancellationToken) -> anyhow::Result<Self> {
        for dir in [&config.state_dir, &config.run_dir, &config.log_dir] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let instance = instance_id(&config)?;
        claim(&config.run_dir, &instance).context("run_dir")?;
        claim(&config.log_dir, &instance).context("log_dir")?;
        let node_id: Arc<str> = match config.node_id.as_str() {
            "" => host_name().into(),
            text => text.into(),
        };
        let subnet = config.network.subnet;
        // The store's lock keeps a second manager out before anything on the node is touched.
        let store = Store::open(
            &config.state_dir.join("berth.redb"),
            subnet,
            config.network.cool_down,
        )
        .context("opening the store")?;
        let spool_dir = config.state_dir.join("spool");
        let _ = fs::remove_dir_all(&spool_dir);

        let names = Names {
            instance: instance.clone(),
            cgroup_parent: match config.cgroup.parent.trim_matches('/') {
                "" => format!("berth/{instance}"),
                parent => parent.to_owned(),
            },
            run_dir: config.run_dir.clone(),
            log_dir: config.log_dir.clone(),
        };
        let network = NetnsNetwork::start(berth_netns::Settings {
            names: names.clone(),
            bridge: config.network.bridge.clone(),
            subnet,
        })
        .await
        .context("preparing the node's network")?;
        let runtime = Containerd::connect(containerd_settings(&config, names)?)
            .context("preparing containerd")?;

        let listener = listen(&config).await?;
        let about = About {
            node_id,
            instance_id: instance.to_string(),
            bridge: config.network.bridge.clone(),
            subnet: subnet.to_string(),
            started: Instant::now(),
        };
        let limits = Limits {
            parallel_creates: match config.parallel_creates {
                0 => 2 * std::thread::available_parallelism().map_or(1, usize::from),
                number => number,
            },
            end_timeout: config.end_timeout,
            dead_horizon: config.dead_horizon,
        };
        let node = Node {
            runtime: Arc::new(runtime),
            network: Arc::new(network),
        };
        let registry = Registry::new(node, store, limits, stop.clone());
        Ok(Self {
            registry,
            listener,
            socket: config.socket,
            about,
            spool_dir,
            stop,
        })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Takes up what the store holds, and serves until the stop token is cancelled and all plans are at rest.
    pub async fn serve(self) -> anyhow::Result<()> {
        let Self {
            registry,
            listener,
            socket,
            about,
            spool_dir,
            stop,
        } = self;
        registry.start().await.context("taking up the records")?;
        let pause = pin_pause_image(
            registry.node().runtime.clone(),
            spool_dir.clone(),
            stop.clone(),
        );
        registry.spawn(pause);

        let (health, health_service) = tonic_health::server::health_reporter();
        health
            .set_serving::<SandboxServiceServer<SandboxRpc<Containerd, NetnsNetwork>>>()
            .await;
        health
            .set_serving::<ImageServiceServer<ImageRpc<Containerd, NetnsNetwork>>>()
            .await;
        health
            .set_serving::<NodeServiceServer<NodeRpc<Containerd, NetnsNetwork>>>()
            .await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(berth_api::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let place = Place {
            node_id: about.node_id.to_string(),
            bridge: about.bridge.clone(),
        };
        let sandboxes = SandboxRpc {
            registry: registry.clone(),
            place: Arc::new(place),
        };
        let served = Server::builder()
            .layer(DeadlineLayer)
            .add_service(health_service)
            .add_service(reflection().build_v1().context("reflection")?)
            // Tools made with Python still ask for the older version.
            .add_service(reflection().build_v1alpha().context("reflection")?)
            .add_service(SandboxServiceServer::new(sandboxes))
            .add_service(ImageServiceServer::new(ImageRpc {
                registry: registry.clone(),
                spool_dir,
            }))
            .add_service(NodeServiceServer::new(NodeRpc {
                registry: registry.clone(),
                about,
            }))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled())
            .await;
        let _ = fs::remove_file(&socket);
        registry.finish().await;
        served.context("serving")
    }
}

fn containerd_settings(
    config: &Config,
    names: Names,
) -> anyhow::Result<berth_containerd::Settings> {
    let log_writer = match config.log_writer.as_os_str().is_empty() {
        false => config.log_writer.clone(),
        true => std::env::current_exe()
            .context("finding the manager's own program")?
            .with_file_name("log-writer"),
    };
    if !log_writer.is_file() {
        bail!("log_writer: {} is not there", log_writer.display());
    }
    let name_servers = match config.name_servers.as_slice() {
        [] => vec![IpAddr::V4(ipam::gateway(config.network.subnet))],
        some => some.to_vec(),
    };
    let it = &config.containerd;
    Ok(berth_containerd::Settings {
        names,
        address: it.address.clone(),
        namespace: it.namespace.clone(),
        handler: it.handler.clone(),
        runtime_binary: (!it.runtime_binary.is_empty()).then(|| it.runtime_binary.clone()),
        snapshotter: it.snapshotter.clone(),
        log_writer,
        log_limit_bytes: config.log_limit_bytes,
        state_dir: config.state_dir.clone(),
        pause_image: berth_pause::IMAGE_NAME.to_owned(),
        pause_program: berth_pause::PROGRAM,
        pause_rootfs: match it.pause_rootfs {
            PauseRootfs::Shared => berth_containerd::PauseRootfs::Shared,
            PauseRootfs::Snapshot => berth_containerd::PauseRootfs::Snapshot,
        },
        plain_http_registries: it.plain_http_registries.clone(),
        search_domain: config.search_domain.clone(),
        name_servers,
        warm_cgroup_lock: it.warm_cgroup_lock,
        call_timeout: it.call_timeout,
    })
}

/// Imports and pins the pause image, however long containerd takes to answer.
async fn pin_pause_image(runtime: Arc<Containerd>, spool_dir: PathBuf, stop: CancellationToken) {
    const RETRY: Duration = Duration::from_secs(5);
    let archive = spool_dir.join("pause.tar");
    loop {
        let written = fs::create_dir_all(&spool_dir)
            .and_then(|()| fs::write(&archive, berth_pause::image_archive()));
        match written {
            Ok(()) => match runtime.import(&archive, None, true).await {
                Ok(_) => {
                    let _ = fs::remove_file(&archive);
                    return;
                }
                Err(error) => tracing::warn!(%error, "the pause image is not imported yet"),
            },
            Err(error) => tracing::warn!(%error, "the pause image cannot be written"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// The instance id of the configuration, else the one that the state directory holds, else one derived from its path.
/// It never changes: what carries the old one would be nobody's.
fn instance_id(config: &Config) -> anyhow::Result<InstanceId> {
    let file = config.state_dir.join("instance-id");
    let stored = fs::read_to_string(&file)
        .ok()
        .map(|it| it.trim().to_owned());
    let wanted = match (&stored, config.instance_id.as_str()) {
        (Some(stored), "") => stored.clone(),
        (Some(stored), wanted) if stored != wanted => bail!(
            "instance_id: `{wanted}` is configured, but {} belongs to instance `{stored}`",
            config.state_dir.display()
        ),
        (_, "") => berth_domain::names::derived_instance(&config.state_dir),
        (_, wanted) => wanted.to_owned(),
    };
    let instance = InstanceId::parse(&wanted)
        .with_context(|| format!("instance id `{wanted}` of {}", file.display()))?;
    if stored.is_none() {
        fs::write(&file, format!("{instance}\n"))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(instance)
}

/// Binds the socket, in place of one that a former manager left.
async fn listen(config: &Config) -> anyhow::Result<UnixListener> {
    let socket = &config.socket;
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    if socket.exists() {
        if UnixStream::connect(socket).await.is_ok() {
            bail!("socket: another process serves {}", socket.display());
        }
        fs::remove_file(socket).with_context(|| format!("removing {}", socket.display()))?;
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("binding {}", socket.display()))?;
    let group = fs::read_to_string("/etc/group")
        .ok()
        .and_then(|it| group_id(&it, &config.socket_group));
    let mode = match group {
        Some(gid) => {
            std::os::unix::fs::chown(socket, None, Some(gid))
                .with_context(|| format!("giving {} to its group", socket.display()))?;
            0o660
        }
        None => 0o600,
    };
    fs::set_permissions(socket, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", socket.display()))?;
    Ok(listener)
}

/// Number of a group by its line `name:password:number:members`.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nberth-x:x:7:\nberth:x:42:anna\n";
        assert_eq!(group_id(groups, "berth"), Some(42));
        assert_eq!(group_id(groups, "bert"), None);
    }

    #[test]
    fn an_instance_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let config = |id: &str| Config {
            instance_id: id.into(),
            state_dir: dir.path().into(),
            ..Config::default()
        };
        let first = instance_id(&config("")).unwrap();
        assert_eq!(instance_id(&config("")).unwrap(), first);
        assert_eq!(instance_id(&config(first.as_str())).unwrap(), first);
        let error = instance_id(&config("other")).unwrap_err();
        assert!(error.to_string().contains(first.as_str()), "{error}");
    }
}
