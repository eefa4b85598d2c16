//! Every metric of every process. `docs/telemetry.md` is written from this list, and dashboards and rules are held against it.

use std::sync::OnceLock;

use crate::instrument::{
    Attribute, Instrument,
    Kind::{Counter, Histogram, UpDownCounter},
};

/// Sandboxes of one node at most, as far as metrics tell them apart.
const SANDBOXES: usize = 4096;
const CONTAINERS: usize = 2 * SANDBOXES;

/// Calls and steps: from half a millisecond to the longest deadline that people set.
const SHORT: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Pulls and collections.
const LONG: &[f64] = &[
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
];

const MANAGER: &[&str] = &["sandbox-manager"];
const DNS: &[&str] = &["dns"];
const IMAGE_GC: &[&str] = &["image-gc"];
const METRICS: &[&str] = &["metrics"];
const WATCHDOG: &[&str] = &["watchdog"];

const fn attribute(name: &'static str, values: &'static str) -> Attribute {
    Attribute { name, values }
}

const SYSTEM: Attribute = attribute("rpc.system.name", "`grpc`");
const METHOD: Attribute = attribute(
    "rpc.method",
    "full name as `berth.v1.SandboxService/Create`; `_OTHER` for one that is not served",
);
const ERROR: Attribute = attribute(
    "error.type",
    "a reason of the contract; absent where it went well",
);
const SANDBOX: Attribute = attribute("berth.sandbox.id", "id of the sandbox");
const CONTAINER: Attribute = attribute("container.name", "its name in the spec");
const DIRECTION: Attribute = attribute(
    "network.io.direction",
    "`receive`, `transmit`: as the sandbox sees it",
);
const DISK: Attribute = attribute("disk.io.direction", "`read`, `write`");
const CPU_MODE: Attribute = attribute("cpu.mode", "`user`, `system`");
const KIND: Attribute = attribute("berth.collection.kind", "`images`, `blobs`");

/// Of none and some, the some.
const fn last(of: &'static [&'static [f64]]) -> &'static [f64] {
    of[of.len() - 1]
}

macro_rules! instruments {
    ($($(#[$doc:meta])* $name:ident = $kind:ident($text:literal, $unit:literal) $of:expr, $most:expr, [$($attribute:expr),*] $(, $buckets:expr)?; $description:literal)*) => {
        $(pub static $name: Instrument = Instrument {
            name: $text,
            kind: $kind,
            unit: $unit,
            description: $description,
            attributes: &[$($attribute),*],
            of: $of,
            most: $most,
            buckets: last(&[&[], $($buckets)?]),
            made: OnceLock::new(),
        };)*
        /// All of them, in the order of the document.
        pub static ALL: &[&Instrument] = &[$(&$name),*];
    };
}

instruments! {
    PROCESS_CPU_TIME = Counter("process.cpu.time", "s") &[], 2, [CPU_MODE];
        "CPU time of the process."
    PROCESS_MEMORY_USAGE = UpDownCounter("process.memory.usage", "By") &[], 1, [];
        "Resident memory of the process."
    PROCESS_FILES = UpDownCounter("process.unix.file_descriptor.count", "{file_descriptor}") &[], 1, [];
        "Files that the process has open."
    PROCESS_UPTIME = UpDownCounter("process.uptime", "s") &[], 1, [];
        "How long the process has run."

    CALL_DURATION = Histogram("rpc.server.call.duration", "s") &[], 1000,
        [SYSTEM, METHOD, attribute("rpc.response.status_code", "a code of gRPC as `NOT_FOUND`"),
         attribute("error.type", "the code, where it is one of a server's fault")], SHORT;
        "How long a call took, for streams until their end."
    CALLS_ACTIVE = UpDownCounter("berth.rpc.server.active_calls", "{call}") &[], 2,
        [attribute("berth.rpc.type", "`unary`, `stream`")];
        "Calls that are under way."
    CALLS_SHED = Counter("berth.rpc.server.shed_calls", "{call}") &[], 200, [METHOD];
        "Calls that were refused since too many were under way."
    AUDIT_RECORDS = Counter("berth.audit.records", "{record}") MANAGER, 1, [];
        "Calls that were written down in the audit log."
    AUDIT_LOST = Counter("berth.audit.lost_records", "{record}") MANAGER, 4,
        [attribute("berth.audit.cause", "`disk`, `queue`; `denials` for denied calls beyond what is written down of them")];
        "Calls that are not in the file of the audit log."
    TLS_CONNECTIONS = UpDownCounter("berth.tls.connection.count", "{connection}") MANAGER, 2,
        [attribute("berth.tls.connection.state", "`handshake`, `open`")];
        "Connections at the TLS port."
    TLS_REFUSED = Counter("berth.tls.refused_connections", "{connection}") MANAGER, 16,
        [attribute("berth.tls.cause", "`handshake`, `timeout`, `evicted`, `full`, `no_certificate`, `idle`, `expired`, `trust_changed`")];
        "Connections at the TLS port that were refused or ended by the manager."
    TLS_CERTIFICATE_EXPIRY = UpDownCounter("berth.tls.certificate.expiry.time", "s") MANAGER, 1, [];
        "When the certificate of the TLS port ends, in seconds since 1970; absent while there is none."

    SANDBOXES_BY_STATUS = UpDownCounter("berth.sandbox.count", "{sandbox}") MANAGER, 8,
        [attribute("berth.sandbox.status", "`PENDING`, `RUNNING`, `NOT_READY`, `STOPPED`, `DEAD`")];
        "Sandboxes that have a record."
    SANDBOX_TROUBLES = UpDownCounter("berth.sandbox.troubled", "{sandbox}") MANAGER, 1, [];
        "Sandboxes that something keeps from getting on."
    CREATE_DURATION = Histogram("berth.sandbox.create.duration", "s") MANAGER, 100, [ERROR], SHORT;
        "From the admission of a Create to RUNNING, or to its failure."
    STEP_DURATION = Histogram("berth.sandbox.step.duration", "s") MANAGER, 500,
        [attribute("berth.sandbox.verb", "`create`, `undo`, `delete`, `stop`, `expire`, `exit`, `clear`"),
         attribute("berth.sandbox.step", "name of the step as `create-task`; `admit` for the promise"), ERROR], SHORT;
        "How long a step of a plan took, with its wait for a place."
    EXITS = Counter("berth.sandbox.exits", "{exit}") MANAGER, 8,
        [attribute("berth.exit.cause", "`exit`, `signal`, `oom`, `runtime_lost`, `unknown`")];
        "Sandboxes that ended by themselves."
    PULL_DURATION = Histogram("berth.image.pull.duration", "s") MANAGER, 100, [ERROR], LONG;
        "How long whoever needed an image waited for it, where it had to be pulled."
    ADDRESSES = UpDownCounter("berth.address.count", "{address}") MANAGER, 3,
        [attribute("berth.address.state", "`held`, `cooling`, `free`")];
        "Addresses of the subnet of the sandboxes."
    WORK_LEASES = UpDownCounter("berth.work_lease.count", "{lease}") MANAGER, 1, [];
        "Leases by which workers share what there is to do."
    STORE_SIZE = UpDownCounter("berth.store.size", "By") MANAGER, 1, [];
        "Length of the file of the store."
    STORE_CHANGES = Counter("berth.store.changes", "{change}") MANAGER, 1, [];
        "Revision of the store."
    LINES_EXPORTED = Counter("berth.log.exported_lines", "{line}") MANAGER, 1, [];
        "Lines of sandboxes' logs that a receiver has taken, where logs are exported."
    LINES_DROPPED = Counter("berth.log.dropped_lines", "{line}") MANAGER, 5,
        [attribute("berth.gap.reason", "`disk`, `writer`, `damage`, `dropped`; `refused` for what the receiver does not take")];
        "Lines that a log says are missing or that the receiver does not take, as far as logs are exported."

    DNS_QUERIES = Counter("berth.dns.queries", "{query}") DNS, 400,
        [attribute("dns.question.type", "`A`, `AAAA`, `PTR`, `SRV`, `TXT`; `_OTHER` for all else"),
         attribute("berth.dns.answered_by", "`zone`, `upstream`; `nobody` for what was left without an answer"),
         attribute("dns.response.code", "as `NOERROR`, `NXDOMAIN`, `SERVFAIL`; absent where there was no answer"),
         attribute("network.transport", "`udp`, `tcp`")];
        "Questions of sandboxes, by what they were told."
    DNS_DURATION = Histogram("berth.dns.answer.duration", "s") DNS, 2,
        [attribute("berth.dns.answered_by", "`zone`, `upstream`")], SHORT;
        "How long an answer took."
    DNS_FOLLOWS = UpDownCounter("berth.dns.follows_manager", "{manager}") DNS, 1, [];
        "1 while what is known is what the manager knows, else 0."

    GC_RUNS = Counter("berth.collection.runs", "{run}") IMAGE_GC, 16,
        [KIND, attribute("berth.collection.cause", "`scheduled`, `pressure`, `requested`"),
         attribute("berth.collection.result", "`done`, `aborted`")];
        "Runs of the node that have ended. Each worker tells of all of them: take the maximum."
    GC_DELETED = Counter("berth.collection.deleted_objects", "{object}") IMAGE_GC, 2, [KIND];
        "Images and blobs that runs have deleted; likewise."
    GC_FREED = Counter("berth.collection.freed", "By") IMAGE_GC, 2, [KIND];
        "What these took on disk; likewise."
    GC_FAILED = Counter("berth.collection.failed_objects", "{object}") IMAGE_GC, 2, [KIND];
        "Images and blobs that could not be deleted; likewise."
    GC_RUN_DURATION = Histogram("berth.collection.duration", "s") IMAGE_GC, 2, [KIND], LONG;
        "How long a run took, with the parts of all workers."
    GC_ALARMS = UpDownCounter("berth.collection.alarms", "{alarm}") IMAGE_GC, 8,
        [attribute("berth.alarm", "what it is about: `manager`, `disk`, `run`, `goal`")];
        "1 for each thing that keeps this worker from its work."
    GC_MISSED = UpDownCounter("berth.collection.missed", "By") IMAGE_GC, 2, [KIND];
        "What the latest run was asked to free and could not, as something needs it."
    DISK_USED = UpDownCounter("berth.disk.used", "By") IMAGE_GC, 1, [];
        "What is used of the file system whose room is watched."
    DISK_CAPACITY = UpDownCounter("berth.disk.capacity", "By") IMAGE_GC, 1, [];
        "What of that file system can be used in all."

    WATCHDOG_RUNS = Counter("berth.watchdog.runs", "{run}") WATCHDOG, 2,
        [attribute("berth.watchdog.result", "`done`, `aborted`")];
        "Runs of the watchdog that have ended."
    WATCHDOG_DELETED = Counter("berth.watchdog.deleted_objects", "{object}") WATCHDOG, 16,
        [attribute("berth.object.kind", "kind of the object as the audit names it")];
        "Orphans that were removed."
    WATCHDOG_FAILED = Counter("berth.watchdog.failed_objects", "{object}") WATCHDOG, 16,
        [attribute("berth.object.kind", "kind of the object as the audit names it")];
        "Orphans that could not be removed."
    WATCHDOG_DURATION = Histogram("berth.watchdog.duration", "s") WATCHDOG, 1, [], LONG;
        "How long a run took."
    WATCHDOG_LAST_RUN = UpDownCounter("berth.watchdog.last_run.time", "s") WATCHDOG, 1, [];
        "When the last run ended, in seconds since 1970."

    SAMPLED = UpDownCounter("berth.sampler.sandboxes", "{sandbox}") METRICS, 1, [];
        "Sandboxes that are read."
    ROUND_TIME = UpDownCounter("berth.sampler.round.duration", "s") METRICS, 1, [];
        "How long the latest round over all sandboxes took."
    ROUNDS_MISSED = Counter("berth.sampler.missed_rounds", "{round}") METRICS, 1, [];
        "Rounds that were left out since the one before took too long."
    SANDBOX_CPU_TIME = Counter("berth.sandbox.cpu.time", "s") METRICS, 2 * SANDBOXES, [SANDBOX, CPU_MODE];
        "CPU time of all processes of a sandbox."
    SANDBOX_THROTTLED_TIME = Counter("berth.sandbox.cpu.throttled.time", "s") METRICS, SANDBOXES, [SANDBOX];
        "How long its limit kept a sandbox from the CPU."
    SANDBOX_THROTTLED = Counter("berth.sandbox.cpu.throttled.periods", "{period}") METRICS, SANDBOXES, [SANDBOX];
        "Periods in which its limit kept a sandbox from the CPU."
    SANDBOX_MEMORY = UpDownCounter("berth.sandbox.memory.usage", "By") METRICS, SANDBOXES, [SANDBOX];
        "Memory of a sandbox, with the files that the kernel keeps for it."
    SANDBOX_WORKING_SET = UpDownCounter("berth.sandbox.memory.working_set", "By") METRICS, SANDBOXES, [SANDBOX];
        "The same without files that can be dropped at any time."
    SANDBOX_MEMORY_PEAK = UpDownCounter("berth.sandbox.memory.peak", "By") METRICS, SANDBOXES, [SANDBOX];
        "The most memory that a sandbox had."
    SANDBOX_SWAP = UpDownCounter("berth.sandbox.memory.swap", "By") METRICS, SANDBOXES, [SANDBOX];
        "What of a sandbox is swapped out."
    SANDBOX_OOM_KILLS = Counter("berth.sandbox.memory.oom_kills", "{process}") METRICS, SANDBOXES, [SANDBOX];
        "Processes of a sandbox that the kernel killed for memory."
    SANDBOX_TASKS = UpDownCounter("berth.sandbox.task.count", "{task}") METRICS, SANDBOXES, [SANDBOX];
        "Processes and threads of a sandbox."
    SANDBOX_DISK_IO = Counter("berth.sandbox.disk.io", "By") METRICS, 2 * SANDBOXES, [SANDBOX, DISK];
        "Bytes that a sandbox read from and wrote to disks."
    SANDBOX_DISK_OPERATIONS = Counter("berth.sandbox.disk.operations", "{operation}") METRICS, 2 * SANDBOXES, [SANDBOX, DISK];
        "How often it did."
    SANDBOX_NETWORK_IO = Counter("berth.sandbox.network.io", "By") METRICS, 2 * SANDBOXES, [SANDBOX, DIRECTION];
        "Bytes over the link of a sandbox."
    SANDBOX_PACKETS = Counter("berth.sandbox.network.packets", "{packet}") METRICS, 2 * SANDBOXES, [SANDBOX, DIRECTION];
        "Packets over the link of a sandbox."
    SANDBOX_DROPS = Counter("berth.sandbox.network.dropped_packets", "{packet}") METRICS, 2 * SANDBOXES, [SANDBOX, DIRECTION];
        "Packets that were dropped at the link of a sandbox."
    SANDBOX_STALLED_TIME = Counter("berth.sandbox.pressure.stalled.time", "s") METRICS, 6 * SANDBOXES,
        [SANDBOX, attribute("berth.resource", "`cpu`, `memory`, `io`"), attribute("berth.pressure", "`some`, `full`")];
        "How long some, or all, tasks of a sandbox waited for a resource, where the kernel measures it."
    CONTAINER_CPU_TIME = Counter("container.cpu.time", "s") METRICS, 2 * CONTAINERS, [SANDBOX, CONTAINER, CPU_MODE];
        "CPU time of a container."
    CONTAINER_MEMORY = UpDownCounter("container.memory.usage", "By") METRICS, CONTAINERS, [SANDBOX, CONTAINER];
        "Memory of a container, as of a sandbox."
    CONTAINER_WORKING_SET = UpDownCounter("container.memory.working_set", "By") METRICS, CONTAINERS, [SANDBOX, CONTAINER];
        "The same without files that can be dropped at any time."
    CONTAINER_OOM_KILLS = Counter("berth.container.memory.oom_kills", "{process}") METRICS, CONTAINERS, [SANDBOX, CONTAINER];
        "Processes of a container that the kernel killed for memory."
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_name_is_that_of_one_instrument_also_for_prometheus() {
        let names: BTreeSet<_> = ALL.iter().map(|it| it.name).collect();
        let shown: BTreeSet<_> = ALL.iter().map(|it| it.prometheus_name()).collect();
        assert_eq!((names.len(), shown.len()), (ALL.len(), ALL.len()));
    }

    #[test]
    fn histograms_have_buckets_and_nothing_else_has() {
        for it in ALL {
            assert_eq!(it.kind == Histogram, !it.buckets.is_empty(), "{}", it.name);
        }
    }
}
