//! The real node keeps the contract that the fake node keeps: what is proved with the fake is true of containerd and the
//! kernel.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use berth_containerd::{Containerd, PauseRootfs};
use berth_domain::{
    ImageRef, InstanceId, Names,
    ipam::{self, Subnets},
};
use berth_e2e::{
    TestNode, images,
    leftovers::Leftovers,
    node::{root, succeed},
};
use berth_netns::NetnsNetwork;
use berth_platform::{
    Images as _,
    contract::{self, Subject},
};
use ipnet::{Ipv4Net, Ipv6Net};

/// An instance beside the node's own, on its containerd.
struct Neighbour {
    instance: String,
    home: PathBuf,
    containerd: PathBuf,
    subnet: Ipv4Net,
}

impl Neighbour {
    fn of(node: &TestNode) -> anyhow::Result<Self> {
        let own = fs::read_to_string(node.home().join("instance"))?;
        let number = u32::from_str_radix(own.trim(), 16).context("six hex digits")?;
        // Another id of the same form: what is left of it must not pass for the node's.
        let number = number ^ 0x80_0000;
        let instance = format!("{number:06x}");
        let home = node.home().join("neighbour");
        fs::create_dir(&home)?;
        fs::write(home.join("instance"), &instance)?;
        // So that the script of a node can take it down when a property does not hold.
        let containerd = node.variable("CONTAINERD_ADDRESS");
        fs::write(home.join("containerd.address"), containerd)?;
        // A range for tests of network devices (RFC 2544): no host has business there.
        let base = u32::from(Ipv4Addr::new(198, 18, 0, 0));
        let subnet = Ipv4Net::new((base + (number % 8192) * 16).into(), 28)?;
        Ok(Self {
            instance,
            home,
            containerd: containerd.into(),
            subnet,
        })
    }

    fn namespace(&self) -> String {
        format!("berth-{}", self.instance)
    }

    fn subnets(&self) -> Subnets {
        let number = u32::from_str_radix(&self.instance, 16).expect("six hex digits");
        // Unique local, and of this instance.
        let [_, a, b, c] = number.to_be_bytes();
        let pair = |a, b| u16::from_be_bytes([a, b]);
        let prefix = Ipv6Addr::new(pair(0xfd, a), pair(b, c), 0, 0, 0, 0, 0, 0);
        Subnets {
            v4: self.subnet,
            v6: Some(Ipv6Net::new_assert(prefix, 64)),
        }
    }

    fn names(&self) -> anyhow::Result<Names> {
        Ok(Names {
            instance: InstanceId::parse(&self.instance)?,
            cgroup_parent: self.cgroup_parent(),
            run_dir: self.home.join("run"),
            log_dir: self.home.join("log"),
        })
    }

    fn log_writer(&self) -> anyhow::Result<PathBuf> {
        let path = self.home.join("log-writer");
        if !path.exists() {
            fs::write(&path, berth_log_writer::PROGRAM)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(path)
    }

    fn cgroup_parent(&self) -> String {
        format!("berth/{}", self.instance)
    }

    fn runtime(&self, pause_rootfs: PauseRootfs) -> anyhow::Result<Containerd> {
        Ok(Containerd::connect(berth_containerd::Settings {
            names: self.names()?,
            cgroup_driver: berth_domain::cgroups::Driver::Cgroupfs,
            address: self.containerd.clone(),
            namespace: self.namespace(),
            handler: "io.containerd.runc.v2".into(),
            runtime_binary: None,
            snapshotter: "overlayfs".into(),
            log_writer: self.log_writer()?,
            log_limit_bytes: 1 << 20,
            state_dir: self.home.join("state"),
            pause_image: berth_pause::IMAGE_NAME.into(),
            pause_program: berth_pause::PROGRAM,
            pause_rootfs,
            registries: berth_registry::Settings::default(),
            pulls_at_once: 4,
            layers_at_once: 3,
            archive_limits: berth_platform::ArchiveLimits {
                max_bytes: 1 << 30,
                reserve_bytes: 0,
            },
            search_domain: "app.berth".into(),
            name_servers: vec![ipam::gateway(self.subnet).into()],
            warm_cgroup_lock: false,
            call_timeout: Duration::from_secs(30),
        })?)
    }

    fn network_settings(&self) -> anyhow::Result<berth_netns::Settings> {
        Ok(berth_netns::Settings {
            names: self.names()?,
            bridge: format!("br-{}", self.instance),
            subnets: self.subnets(),
            reachable_from: vec![],
            connections_max: 0,
            foreign_accept: false,
        })
    }

    async fn import(&self, runtime: &Containerd, archive: &[u8]) -> anyhow::Result<()> {
        let file = self.home.join("image.tar");
        fs::write(&file, archive)?;
        runtime.import(&file, None, false).await?;
        Ok(())
    }

    fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut ctr = Command::new("ctr");
        ctr.args(["--namespace", &self.namespace(), "--address"]);
        succeed(ctr.arg(&self.containerd).args(arguments))
    }

    /// Removes what outlives sandboxes: images, the namespace, the parent cgroup.
    fn remove(&self) -> anyhow::Result<()> {
        for image in self.ctr(&["images", "ls", "-q"])?.lines() {
            self.ctr(&["images", "rm", "--sync", image])?;
        }
        // It is refused while anything is left in the namespace.
        self.ctr(&["namespaces", "rm", &self.namespace()])?;
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root)?.flatten().map(|it| it.path());
        for hierarchy in hierarchies.chain([root.to_owned()]) {
            let parent = hierarchy.join(self.cgroup_parent());
            if parent.is_dir() {
                fs::remove_dir(&parent).with_context(|| parent.display().to_string())?;
            }
        }
        Ok(())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // After a run that went well its home is gone, and there is nothing to do.
        let mut down = Command::new(root().join("deploy/dev/node"));
        down.args(["down", "--purge", "--home"]).arg(&self.home);
        let _ = down.output();
    }
}

/// The suite is one future, and a debug build needs more for it than the thread of a test has.
const STACK_BYTES: usize = 16 << 20;

#[test]
fn the_real_node_keeps_the_contract_of_the_fake() -> anyhow::Result<()> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(keeps_the_contract())
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let ended = thread.spawn(run)?.join();
    ended.map_err(|_| anyhow!("a property does not hold"))?
}

async fn keeps_the_contract() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let neighbour = Neighbour::of(&node)?;
    let leftovers = Leftovers::of(&neighbour.home, &neighbour.namespace())?;
    let network = NetnsNetwork::start(neighbour.network_settings()?).await?;
    let subject = Subject {
        image: ImageRef::parse(images::BUSYBOX)?,
        addresses: neighbour
            .subnets()
            .addresses(Ipv4Addr::from(u32::from(neighbour.subnet.network()) + 2)),
    };
    for pause_rootfs in [PauseRootfs::Shared, PauseRootfs::Snapshot] {
        let runtime = neighbour.runtime(pause_rootfs)?;
        neighbour.import(&runtime, &images::busybox()).await?;
        neighbour
            .import(&runtime, &berth_pause::image_archive())
            .await?;
        contract::holds(&runtime, &network, &subject).await;
    }
    node.assert_clean().await?;
    NetnsNetwork::uninstall(&neighbour.network_settings()?).await?;
    neighbour.remove()?;
    leftovers.assert_none()?;
    node.finish()
}
