//! The vocabulary of Berth and every decision about a sandbox: no I/O, no clock, no wire type.

pub mod admit;
pub mod catalog;
pub mod cgroups;
pub mod claims;
pub mod collection;
pub mod decide;
pub mod egress;
pub mod failure;
pub mod files;
pub mod health;
pub mod holders;
pub mod id;
pub mod image_ref;
pub mod ipam;
pub mod lifecycle;
pub mod names;
pub mod plugins;
pub mod probe;
pub mod record;
pub mod spec;
pub mod step;
pub mod subnets;
pub mod usage;
pub mod work_leases;

pub use admit::{Admission, Terms, admit, node_port_conflict};
pub use decide::{Goal, decide};
pub use egress::{InvalidPattern, Lookup, NAME_SERVER_PORTS, NamePattern, NamedDestination};
pub use failure::{Failure, Reason, Violation};
pub use health::{Health, assess};
pub use id::{ContainerName, Generation, InstanceId, InvalidName, SandboxId};
pub use image_ref::{ImageRef, InvalidImageRef};
pub use lifecycle::{NotAllowed, Status};
pub use names::Names;
pub use probe::{Probe, ProbeCheck};
pub use record::{BoundPorts, ExitCause, ExitRecord, Phase, PortSighting, Sandbox, SandboxRecord};
pub use spec::{
    ConfigFile, Container, Destination, Egress, NetworkPolicy, Port, Protocol, Resources,
    RestartPolicy, Route, SandboxSpec, StaticHost,
};
pub use step::{ContainerSeen, Extent, Observed, Plan, Planned, Role, Step, TaskSeen};
