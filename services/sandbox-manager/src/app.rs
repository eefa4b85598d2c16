//! Wires the manager: the only place that names the concrete adapters.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use berth_api::{
    Place,
    v1::{
        catalog_service_server::CatalogServiceServer,
        collection_service_server::CollectionServiceServer,
        image_service_server::ImageServiceServer, lease_service_server::LeaseServiceServer,
        network_service_server::NetworkServiceServer, node_service_server::NodeServiceServer,
        orphan_service_server::OrphanServiceServer, plugin_service_server::PluginServiceServer,
        sandbox_service_server::SandboxServiceServer,
    },
};
use berth_calls::{Access, Trail};
use berth_containerd::{Containerd, SetUpError};
use berth_daemon::{bound, give_to_group};
use berth_domain::{InstanceId, Names, SandboxRecord, Status, cgroups, ipam};
use berth_netns::{NetnsError, NetnsNetwork};
use berth_platform::{ArchiveLimits, ImageInfo, Images as _, Network as _, Runtime as _};
use berth_store::Store;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tower::Layer as _;

use crate::{
    claim::{Elsewhere, claim, claim_cgroups, noted_cgroups},
    config::{Config, PauseRootfs, STORE_FILE},
    crash, export, figures,
    lifecycle::LifecycleLog,
    log_writer,
    logs::LogReaders,
    node::Node,
    places::Places,
    plugins::PluginBook,
    registry::{Limits, Registry},
    rpc::{
        About, CatalogRpc, CollectionRpc, Exports, ImageRpc, Imports, LeaseRpc, NetworkRpc,
        NodeRpc, OrphanRpc, PluginRpc, SandboxRpc, Streams,
    },
    slots,
    tls_port::TlsPort,
};

/// How long the last answers may take on their way, once every plan is at rest.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// In the state directory: what of the logs was exported.
const EXPORT_FILE: &str = "log-export";

type NodeRegistry = Registry<Containerd, NetnsNetwork>;

/// A manager that is ready to serve.
pub struct App {
    registry: NodeRegistry,
    listener: UnixListener,
    socket: PathBuf,
    about: About,
    imports: Imports,
    slot_count: usize,
    allow_host_network: bool,
    calls: berth_calls::Limits,
    access: Access,
    tls: Option<TlsPort>,
    log_dir: PathBuf,
    /// Where logs are exported to, and the file that says what was.
    export: Option<(export::Settings, PathBuf)>,
    store_file: PathBuf,
    execs: Places,
    names: Names,
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
        let export = export::Settings::of_environment().context("exporting logs")?;
        let instance = instance_id(&config)?;
        claim(&config.run_dir, &instance).context("run_dir")?;
        claim(&config.log_dir, &instance).context("log_dir")?;
        let node_id: Arc<str> = match config.node_id.as_str() {
            "" => host_name().into(),
            text => text.into(),
        };
        let subnets = config.network.subnets();
        // The store's lock keeps a second manager out before anything on the node is touched.
        let store = Store::open_within(
            &config.state_dir.join(STORE_FILE),
            subnets,
            config.network.cool_down,
        )
        .context("opening the store")?;
        let imports = Imports {
            spool_dir: config.state_dir.join("spool"),
            limits: archive_limits(&config),
            idle_timeout: config.import.idle_timeout,
        };
        let _ = fs::remove_dir_all(&imports.spool_dir);

        let names = names(&config, instance.clone());
        let network = NetnsNetwork::start(network_settings(&config, names.clone()));
        let network = crash::around("start/network", network)
            .await
            .context("preparing the node's network")?;
        for what in network.degraded() {
            tracing::warn!(what, "degraded");
        }
        let runtime = Containerd::connect(containerd_settings(&config, names.clone())?)
            .context("preparing containerd")?;
        let parent = &names.cgroup_parent;
        let other = cgroups::Driver::from(config.cgroup.driver).other();
        let other = cgroups::parent(other, &config.cgroup.parent, &instance);
        let leave = async |former: &str| Ok(berth_containerd::leave_cgroups(former).await?);
        claim_cgroups(&config.run_dir, parent, &other, leave).await?;

        let listener = crash::around("start/socket", listen(&config)).await?;
        let tls = TlsPort::bind(&config.tls).await?;
        let access = Access {
            sockets: config.access.sockets()?,
            trail: Trail::start(config.audit_log.settings(&config.state_dir))
                .context("starting a thread")?,
        };
        let about = About {
            node_id,
            instance_id: instance.to_string(),
            bridge: config.network.bridge.clone(),
            subnets,
            started: Instant::now(),
        };
        let limits = Limits {
            sandboxes: config.sandboxes_max,
            task_creations: match config.parallel_creates {
                0 => 4 * std::thread::available_parallelism().map_or(1, usize::from),
                number => number,
            },
            end_timeout: config.end_timeout,
            dead_horizon: config.dead_horizon,
            purge_interval: config.purge_interval,
        };
        let node = Node {
            runtime: Arc::new(runtime),
            network: Arc::new(network),
        };
        let registry = Registry::new(node, store, limits, boot_id(), stop.clone());
        registry.tell_lifecycle(LifecycleLog::start(names.clone()).context("starting a thread")?);
        Ok(Self {
            registry,
            listener,
            socket: config.socket,
            about,
            imports,
            slot_count: config.network.slots,
            allow_host_network: config.network.allow_host_network,
            calls: berth_calls::Limits {
                unary_max: config.calls.unary_max,
                streams_max: config.calls.streams_max,
                default_deadline: config.calls.default_deadline,
            },
            access,
            tls,
            log_dir: config.log_dir,
            export: export.map(|it| (it, config.state_dir.join(EXPORT_FILE))),
            store_file: config.state_dir.join(STORE_FILE),
            execs: Places::new(config.exec.per_sandbox, config.exec.per_node),
            names,
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
            imports,
            slot_count,
            allow_host_network,
            calls,
            access,
            tls,
            log_dir,
            export,
            store_file,
            execs,
            names,
            stop,
        } = self;
        registry.start().await.context("taking up the records")?;
        let pause = pin_pause_image(
            registry.node().runtime.clone(),
            imports.spool_dir.clone(),
            stop.clone(),
        );
        registry.spawn(pause);
        let (node, stopping) = (registry.node().network.clone(), registry.stopping());
        registry.spawn(async move {
            tokio::select! {
                () = node.keep() => {}
                () = stopping => {}
            }
        });
        registry.spawn(slots::keep(registry.clone(), slot_count));
        let former = forget_former_imports(registry.node().runtime.clone(), stop.clone());
        registry.spawn(former);
        let logs = LogReaders::new(log_dir);
        if let Some((settings, file)) = export {
            let node_id = about.node_id.clone();
            let export = export::run(registry.clone(), logs.clone(), settings, node_id, file);
            registry.spawn(export);
        }
        registry.spawn(figures::keep(registry.clone(), store_file));
        let former = end_former_execs(registry.node().runtime.clone(), stop.clone());
        registry.spawn(former);

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
        health
            .set_serving::<CatalogServiceServer<CatalogRpc<Containerd, NetnsNetwork>>>()
            .await;
        health
            .set_serving::<NetworkServiceServer<NetworkRpc<Containerd, NetnsNetwork>>>()
            .await;
        health
            .set_serving::<LeaseServiceServer<LeaseRpc<Containerd, NetnsNetwork>>>()
            .await;
        health
            .set_serving::<CollectionServiceServer<CollectionRpc<Containerd, NetnsNetwork>>>()
            .await;
        health.set_serving::<PluginServiceServer<PluginRpc>>().await;
        health
            .set_serving::<OrphanServiceServer<OrphanRpc<Containerd, NetnsNetwork>>>()
            .await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(berth_api::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let plugins = Arc::new(PluginBook::new());
        let place = Place {
            node_id: about.node_id.to_string(),
            bridge: about.bridge.clone(),
            names,
        };
        let sandboxes = SandboxRpc {
            registry: registry.clone(),
            place: Arc::new(place),
            host_network: allow_host_network,
            logs,
            copies: Streams::copies(),
            connections: Streams::connections(),
            execs,
        };
        let certificates = tls.as_ref().map(TlsPort::held);
        let routes = Routes::new(health_service)
            .add_service(reflection().build_v1().context("reflection")?)
            // Tools made with Python still ask for the older version.
            .add_service(reflection().build_v1alpha().context("reflection")?)
            .add_service(SandboxServiceServer::new(sandboxes))
            .add_service(ImageServiceServer::new(ImageRpc {
                registry: registry.clone(),
                exports: Exports::new(imports.idle_timeout),
                imports,
            }))
            .add_service(CatalogServiceServer::new(CatalogRpc {
                registry: registry.clone(),
            }))
            .add_service(NetworkServiceServer::new(NetworkRpc {
                registry: registry.clone(),
                bridge: about.bridge.clone(),
            }))
            .add_service(NodeServiceServer::new(NodeRpc {
                registry: registry.clone(),
                about,
                plugins: plugins.clone(),
                trail: access.trail.clone(),
                certificates,
            }))
            .add_service(PluginServiceServer::new(PluginRpc { plugins }))
            .add_service(OrphanServiceServer::new(OrphanRpc {
                registry: registry.clone(),
            }))
            .add_service(LeaseServiceServer::new(LeaseRpc {
                registry: registry.clone(),
            }))
            .add_service(CollectionServiceServer::new(CollectionRpc {
                registry: registry.clone(),
            }));
        let trail = access.trail.clone();
        // Both ways lead to the same places: what is too much is so together.
        let layers = berth_calls::layers(calls, Some(access));
        let far = layers.layer(routes.clone());
        let far = async {
            if let Some(tls) = tls {
                tls.serve(far, stop.clone()).await;
            }
            Ok(())
        };
        let near = Server::builder()
            .initial_stream_window_size(berth_api::CALL_WINDOW_BYTES)
            .initial_connection_window_size(berth_api::CONNECTION_WINDOW_BYTES)
            .layer(layers)
            .add_routes(routes)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled());
        let served = async { tokio::try_join!(near, far) };
        let at_rest = async {
            stop.cancelled().await;
            registry.finish().await;
            // A caller that hangs never closes its channel, and keeps nobody from stopping.
            tokio::time::sleep(LAST_ANSWERS).await;
        };
        let served = tokio::select! {
            served = served => served.map(drop).context("serving"),
            () = at_rest => Ok(()),
        };
        let _ = fs::remove_file(&socket);
        registry.finish().await;
        // It waits for a disk, and is not worth a thread of the runtime for longer than that.
        let _ = tokio::task::spawn_blocking(move || trail.finish()).await;
        served
    }
}

/// Whether a start failed because of its configuration, so that starting again will not help.
pub fn is_misconfigured(error: &anyhow::Error) -> bool {
    error.chain().any(|it| {
        matches!(it.downcast_ref(), Some(NetnsError::Misconfigured { .. }))
            || matches!(it.downcast_ref(), Some(SetUpError::CgroupDriver))
            || it.is::<Elsewhere>()
    })
}

/// Removes what a manager makes on the node for all sandboxes.
pub async fn uninstall(config: &Config) -> anyhow::Result<()> {
    let store = config.state_dir.join(STORE_FILE);
    let subnets = config.network.subnets();
    // The lock keeps managers out.
    let store = Store::open_within(&store, subnets, config.network.cool_down)
        .context("opening the store")?;
    let records = store.all().await.context("reading the records")?;
    let unreadable = store.unreadable().await.context("reading the records")?;
    let live = |it: &&SandboxRecord| it.status != Status::Dead || !it.addresses.is_empty();
    let held = records.iter().filter(live).count() + unreadable.len();
    if held > 0 {
        bail!(
            "there are {held} sandboxes: remove them first, with `berth rm` while the manager runs"
        );
    }
    let names = names(config, config.instance()?);
    if let Some(former) = noted_cgroups(&config.run_dir)? {
        let left = berth_containerd::leave_cgroups(&former).await;
        left.context("removing the cgroups")?;
    }
    let removed = NetnsNetwork::uninstall(&network_settings(config, names.clone())).await;
    removed.context("removing the network")?;
    let it = &config.containerd;
    berth_containerd::uninstall(&it.address, &it.namespace, it.call_timeout, &names)
        .await
        .context("removing what is on containerd")
}

fn network_settings(config: &Config, names: Names) -> berth_netns::Settings {
    berth_netns::Settings {
        names,
        bridge: config.network.bridge.clone(),
        subnets: config.network.subnets(),
        reachable_from: config.network.reachable_from.clone(),
        connections_max: config.network.connections_max,
        foreign_accept: config.network.foreign_accept,
    }
}

fn names(config: &Config, instance: InstanceId) -> Names {
    Names {
        cgroup_parent: cgroups::parent(
            config.cgroup.driver.into(),
            &config.cgroup.parent,
            &instance,
        ),
        run_dir: config.run_dir.clone(),
        log_dir: config.log_dir.clone(),
        instance,
    }
}

fn containerd_settings(
    config: &Config,
    names: Names,
) -> anyhow::Result<berth_containerd::Settings> {
    let log_writer = if config.log_writer.as_os_str().is_empty() {
        log_writer::install(&config.state_dir, berth_log_writer::PROGRAM)
            .context("log_writer: putting it into state_dir")?
    } else {
        config.log_writer.clone()
    };
    let name_servers = match config.name_servers.as_slice() {
        [] => vec![IpAddr::V4(ipam::gateway(config.network.subnet))],
        some => some.to_vec(),
    };
    let it = &config.containerd;
    Ok(berth_containerd::Settings {
        names,
        cgroup_driver: config.cgroup.driver.into(),
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
        registries: config.pull.settings(&it.plain_http_registries),
        pulls_at_once: config.pull.at_once,
        layers_at_once: config.pull.layers_at_once,
        archive_limits: archive_limits(config),
        search_domain: config.search_domain.clone(),
        name_servers,
        warm_cgroup_lock: it.warm_cgroup_lock,
        call_timeout: it.call_timeout,
    })
}

fn archive_limits(config: &Config) -> ArchiveLimits {
    ArchiveLimits {
        max_bytes: config.import.max_bytes,
        reserve_bytes: config.import.reserve_bytes,
    }
}

/// How often containerd is asked for what a start needs of it and no request waits for.
const RETRY: Duration = Duration::from_secs(5);

/// Lets go of what pulls of a former process hold, however long containerd takes to answer.
async fn forget_former_imports(runtime: Arc<Containerd>, stop: CancellationToken) {
    loop {
        match crash::around("start/imports", runtime.forget_former_imports()).await {
            Ok(0) => return,
            Ok(leases) => {
                tracing::info!(leases, "let go of pulls and imports that were cut off");
                return;
            }
            Err(error) => tracing::warn!(%error, "what was cut off is not let go of yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Ends the programs that callers of a former process ran, however long containerd takes to answer.
async fn end_former_execs(runtime: Arc<Containerd>, stop: CancellationToken) {
    loop {
        match crash::around("start/execs", runtime.end_former_execs()).await {
            Ok(0) => return,
            Ok(programs) => {
                tracing::info!(programs, "ended programs whose callers had been cut off");
                return;
            }
            Err(error) => tracing::warn!(%error, "programs of before are not ended yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Has the pause image on the node, pinned, however long containerd takes to answer.
async fn pin_pause_image(runtime: Arc<Containerd>, spool_dir: PathBuf, stop: CancellationToken) {
    loop {
        let ensured = ensure_pause_image(&runtime, &spool_dir);
        match crash::around("start/pause-image", ensured).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(error = format!("{error:#}"), "no pause image yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn ensure_pause_image(runtime: &Containerd, spool_dir: &Path) -> anyhow::Result<()> {
    let digest = berth_pause::image_digest();
    let same = |it: &ImageInfo| it.name == berth_pause::IMAGE_NAME && it.digest == digest;
    let images = runtime.list_images().await?;
    if images.iter().any(|it| same(it) && it.pinned) {
        return Ok(());
    }
    let archive = spool_dir.join("pause.tar");
    fs::create_dir_all(spool_dir)
        .and_then(|()| fs::write(&archive, berth_pause::image_archive()))
        .context("writing it")?;
    runtime
        .import(&archive, None, true)
        .await
        .context("importing it")?;
    let _ = fs::remove_file(&archive);
    Ok(())
}

/// The instance id, which the state directory keeps from here on.
fn instance_id(config: &Config) -> anyhow::Result<InstanceId> {
    let instance = config.instance()?;
    let file = config.instance_file();
    let line = format!("{instance}\n");
    if fs::read_to_string(&file).ok().as_ref() != Some(&line) {
        // Whole or not at all, also after a power cut.
        let fresh = file.with_extension("new");
        fs::write(&fresh, line)
            .and_then(|()| fs::File::open(&fresh)?.sync_all())
            .and_then(|()| fs::rename(&fresh, &file))
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
    give_to_group(socket, &config.socket_group)
        .with_context(|| format!("giving {} to its group", socket.display()))?;
    bound();
    Ok(listener)
}

/// The kernel's name for this boot. Where it tells none, no boot is told from another.
fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
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
    fn an_instance_keeps_the_id_of_its_first_start() {
        let dir = tempfile::tempdir().unwrap();
        let config = |id: &str| Config {
            instance_id: id.into(),
            state_dir: dir.path().into(),
            ..Config::default()
        };
        assert_eq!(instance_id(&config("mine")).unwrap().as_str(), "mine");
        assert_eq!(instance_id(&config("")).unwrap().as_str(), "mine");
        instance_id(&config("other")).unwrap_err();
        fs::write(config("").instance_file(), "").unwrap();
        assert_eq!(instance_id(&config("mine")).unwrap().as_str(), "mine");
    }
}
