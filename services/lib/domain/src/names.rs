//! Every name that Berth gives to something on the node, derived from the instance and the sandbox id alone.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use blake2::{
    Blake2b, Digest as _,
    digest::consts::{U3, U6},
};

use crate::{
    cgroups,
    id::{ContainerName, InstanceId, SandboxId},
    step::Role,
};

/// What every label of the system begins with; user labels may not.
pub const LABEL_PREFIX: &str = "runtime.computer/";
/// The mark of ownership, on every container: the full sandbox id. See [`entity_id`].
pub const LABEL_ENTITY_ID: &str = "runtime.computer/entity-id";
/// The instance whose manager made the object.
pub const LABEL_INSTANCE: &str = "runtime.computer/instance";
/// The generation of the sandbox, decimal.
pub const LABEL_GENERATION: &str = "runtime.computer/generation";
/// On the pause: revision of the record that it was made for, decimal.
pub const LABEL_SANDBOX_VERSION: &str = "runtime.computer/sandbox-version";
/// The application version, where the spec has one.
pub const LABEL_VERSION_ENTITY: &str = "runtime.computer/version-entity";
/// On the pause: `sandbox`.
pub const LABEL_CONTAINER_KIND: &str = "runtime.computer/container-kind";
/// On the pause: whom the log lines belong to.
pub const LABEL_LOG_ENTITY: &str = "runtime.computer/log-entity";
/// On the pause: the first address, without mask; further ones are `…/ip1`, `…/ip2`.
pub const LABEL_IP: &str = "runtime.computer/ip";
/// On app containers: digest of the manifest that they were made from.
pub const LABEL_IMAGE_DIGEST: &str = "runtime.computer/image-digest";
/// On app containers: time between SIGTERM and SIGKILL, as `10s`.
pub const LABEL_SHUTDOWN_TIMEOUT: &str = "runtime.computer/shutdown-timeout";

const CONTAINER_ID_PREFIX: &str = "sandbox.";
const PAUSE_SUFFIX: &str = "_pause";
const LINK_DIGITS: usize = 12;
/// Of a network slot, whose address follows in hex digits.
const SLOT_LINK_PREFIX: &str = "bs";
const SLOT_LINK_DIGITS: usize = 8;
/// No sandbox id begins with it.
const SLOT_PREFIX: &str = ".slot-";

/// The value of [`LABEL_ENTITY_ID`]: `sandbox/<id>`.
pub fn entity_id(id: &SandboxId) -> String {
    format!("sandbox/{id}")
}

/// The sandbox that a value of [`LABEL_ENTITY_ID`] stands for; `None` for a foreign one.
pub fn parse_entity_id(text: &str) -> Option<SandboxId> {
    plain_id(text.strip_prefix("sandbox/")?)
}

/// The containerd id of the pause container: `sandbox.<id>_pause`.
///
/// An id has no `_`, so no app container can have this name.
pub fn pause_container_id(id: &SandboxId) -> String {
    format!("{CONTAINER_ID_PREFIX}{id}{PAUSE_SUFFIX}")
}

/// The containerd id of an app container: `sandbox.<id>.<container>`.
///
/// Neither part has a `.`, so two sandboxes never share one, whatever they are called.
pub fn app_container_id(id: &SandboxId, container: &ContainerName) -> String {
    format!("{CONTAINER_ID_PREFIX}{id}.{container}")
}

/// The containerd id of either.
pub fn container_id(id: &SandboxId, role: &Role) -> String {
    match role {
        Role::Pause => pause_container_id(id),
        Role::App(name) => app_container_id(id, name),
    }
}

/// The sandbox and the role that a containerd id stands for; `None` for a foreign one.
pub fn parse_container_id(text: &str) -> Option<(SandboxId, Role)> {
    let rest = text.strip_prefix(CONTAINER_ID_PREFIX)?;
    if let Some(id) = rest.strip_suffix(PAUSE_SUFFIX) {
        return Some((plain_id(id)?, Role::Pause));
    }
    let (id, name) = rest.split_once('.')?;
    Some((plain_id(id)?, Role::App(ContainerName::parse(name).ok()?)))
}

/// Whether a name is a prefix and this many digits.
fn is_marked(name: &str, prefix: &str, digits: usize) -> bool {
    name.strip_prefix(prefix).is_some_and(|it| {
        it.len() == digits
            && it
                .bytes()
                .all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it))
    })
}

fn plain_id(text: &str) -> Option<SandboxId> {
    SandboxId::parse(text).ok().filter(|id| id.as_str() == text)
}

/// Where one instance keeps what belongs to its sandboxes.
#[derive(Clone, Debug)]
pub struct Names {
    pub instance: InstanceId,
    /// Parent cgroup of all sandboxes, as [`cgroups::parent`] names it.
    pub cgroup_parent: String,
    pub run_dir: PathBuf,
    pub log_dir: PathBuf,
}

impl Names {
    /// What the host end of every link begins with.
    pub const LINK_PREFIX: &str = "bt";

    /// containerd lease that holds what a sandbox uses.
    pub fn lease(&self, id: &SandboxId) -> String {
        format!("berth.{}.{id}", self.instance)
    }

    /// What the leases of pulls and imports begin with. A sandbox's never does.
    pub fn import_lease_prefix(&self) -> String {
        format!("berth-import.{}.", self.instance)
    }

    /// Host end of the veth pair: 14 bytes of the 15 that the kernel allows.
    pub fn link(&self, id: &SandboxId) -> String {
        let digest = Blake2b::<U6>::new()
            .chain_update(self.instance.as_str())
            .chain_update([0])
            .chain_update(id.as_str())
            .finalize();
        digest
            .iter()
            .fold(Self::LINK_PREFIX.to_owned(), |name, byte| {
                format!("{name}{byte:02x}")
            })
    }

    /// Whether some sandbox's host end could have this name.
    pub fn is_link(name: &str) -> bool {
        is_marked(name, Self::LINK_PREFIX, LINK_DIGITS)
    }

    /// Alias of the host end, which tells whose it is.
    pub fn link_alias(&self, id: &SandboxId) -> String {
        format!("berth {} {id}", self.instance)
    }

    /// Alias of the host ends of network slots. No sandbox id begins with a dot.
    pub fn slot_alias(&self) -> String {
        format!("berth {} .slot", self.instance)
    }

    /// The sandbox whose host end has this alias; `None` for a foreign one.
    pub fn parse_link_alias(&self, alias: &str) -> Option<SandboxId> {
        let rest = alias
            .strip_prefix("berth ")?
            .strip_prefix(self.instance.as_str())?;
        plain_id(rest.strip_prefix(' ')?)
    }

    /// Folder of all pinned namespaces: one folder per sandbox.
    pub fn namespaces_dir(&self) -> PathBuf {
        self.run_dir.join("ns")
    }

    /// Folder of the pinned namespaces `net`, `ipc` and `uts` of one sandbox.
    pub fn namespaces(&self, id: &SandboxId) -> PathBuf {
        self.namespaces_dir().join(id.as_str())
    }

    /// Folder of the pinned namespaces of the network slot for an address.
    pub fn slot(&self, address: Ipv4Addr) -> PathBuf {
        self.namespaces_dir()
            .join(format!("{SLOT_PREFIX}{address}"))
    }

    /// Whether a folder of this name is that of a network slot.
    pub fn is_slot(name: &str) -> bool {
        let address = name.strip_prefix(SLOT_PREFIX);
        address.is_some_and(|it| it.parse::<Ipv4Addr>().is_ok())
    }

    /// Host end of the link of the network slot for an address.
    pub fn slot_link(address: Ipv4Addr) -> String {
        format!("{SLOT_LINK_PREFIX}{:08x}", u32::from(address))
    }

    /// Whether some network slot's host end could have this name.
    pub fn is_slot_link(name: &str) -> bool {
        is_marked(name, SLOT_LINK_PREFIX, SLOT_LINK_DIGITS)
    }

    /// Folder of all sandbox folders.
    pub fn files_dir(&self) -> PathBuf {
        self.run_dir.join("sandboxes")
    }

    /// Folder with `hosts`, `resolv.conf` and the config files of one sandbox.
    pub fn files(&self, id: &SandboxId) -> PathBuf {
        self.files_dir().join(id.as_str())
    }

    /// Folder of the pipes of programs that run beside the containers' own.
    pub fn execs_dir(&self) -> PathBuf {
        self.run_dir.join("exec")
    }

    /// Folder with the output of one sandbox, a folder per container.
    pub fn logs(&self, id: &SandboxId) -> PathBuf {
        self.log_dir.join(id.as_str())
    }

    /// Cgroup of one sandbox, relative to the root of the hierarchy.
    pub fn cgroup(&self, id: &SandboxId) -> String {
        cgroups::of_sandbox(&self.cgroup_parent, id)
    }

    /// The sandbox whose cgroup below the parent has this name; `None` for a foreign one.
    pub fn parse_cgroup(&self, name: &str) -> Option<SandboxId> {
        plain_id(&cgroups::parse_sandbox(&self.cgroup_parent, name)?)
    }

    /// Cgroup of one container, relative to the root of the hierarchy.
    pub fn container_cgroup(&self, id: &SandboxId, role: &Role) -> String {
        cgroups::of_container(&self.cgroup(id), &role.to_string())
    }
}

/// An instance id for whoever configures none: six hex digits of the state directory's path.
pub fn derived_instance(state_dir: &Path) -> String {
    let digest = Blake2b::<U3>::digest(state_dir.as_os_str().as_encoded_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SandboxId {
        SandboxId::parse(text).unwrap()
    }

    fn app(text: &str) -> Role {
        Role::App(ContainerName::parse(text).unwrap())
    }

    fn names(instance: &str) -> Names {
        Names {
            instance: InstanceId::parse(instance).unwrap(),
            cgroup_parent: format!("berth/{instance}"),
            run_dir: "/run/berth".into(),
            log_dir: "/var/log/berth".into(),
        }
    }

    #[test]
    fn ids_that_the_seed_confused_have_names_of_their_own() {
        let names = [
            container_id(&id("a"), &app("b-c")),
            container_id(&id("a-b"), &app("c")),
            container_id(&id("a-b"), &Role::Pause),
            container_id(&id("a"), &app("b")),
            container_id(&id("a"), &Role::Pause),
        ];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }

    #[test]
    fn a_container_id_leads_back_to_its_sandbox() {
        for (sandbox, role) in [("a", app("b-c")), ("a-b", app("c")), ("web", Role::Pause)] {
            let text = container_id(&id(sandbox), &role);
            assert_eq!(parse_container_id(&text), Some((id(sandbox), role)));
        }
        for foreign in [
            "web",
            "sandbox.web",
            "sandbox.a.b.c",
            "sandbox.A_pause",
            "sandbox.a._pause",
        ] {
            assert_eq!(parse_container_id(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_longest_names_fit_into_what_containerd_and_the_kernel_allow() {
        let (id, role) = (id(&"x".repeat(40)), app(&"y".repeat(26)));
        assert!(container_id(&id, &role).len() <= 76);
        assert!(names("i").link(&id).len() <= 15);
    }

    #[test]
    fn two_instances_name_the_links_of_one_sandbox_id_apart() {
        assert_ne!(names("one").link(&id("web")), names("two").link(&id("web")));
        let alias = names("one").link_alias(&id("web"));
        assert_eq!(names("one").parse_link_alias(&alias), Some(id("web")));
        assert_eq!(names("two").parse_link_alias(&alias), None);
        assert_eq!(names("on").parse_link_alias(&alias), None);
    }

    #[test]
    fn what_could_be_the_link_of_a_sandbox_is_known_by_its_name() {
        assert!(Names::is_link(&names("one").link(&id("web"))));
        for foreign in [
            "eth0",
            "bt",
            "bt0123456789a",
            "btABCDEF012345",
            "veth12345678",
        ] {
            assert!(!Names::is_link(foreign), "{foreign}");
        }
    }

    #[test]
    fn what_is_a_slots_is_told_from_what_is_a_sandboxes() {
        let address = Ipv4Addr::new(10, 87, 0, 2);
        let link = Names::slot_link(address);
        assert_eq!(link, "bs0a570002");
        assert!(Names::is_slot_link(&link) && !Names::is_link(&link));
        assert!(!Names::is_slot_link(&names("one").link(&id("web"))));
        let alias = names("one").slot_alias();
        assert_eq!(names("one").parse_link_alias(&alias), None);
        let folder = names("one").slot(address);
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(Names::is_slot(name) && SandboxId::parse(name).is_err());
        assert!(!Names::is_slot("web") && !Names::is_slot(".slot-web"));
    }

    #[test]
    fn a_mark_of_ownership_leads_back_to_its_sandbox() {
        assert_eq!(parse_entity_id(&entity_id(&id("web"))), Some(id("web")));
        for foreign in ["web", "sandbox/", "sandbox/Web", "sandbox/sandbox/web"] {
            assert_eq!(parse_entity_id(foreign), None, "{foreign}");
        }
    }
}
