//! Who may call what: one row for each method of the contract. What has no row nobody may call but `admin`.

use std::fmt;

/// What a caller is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// May do everything.
    Admin,
    /// Runs sandboxes, and says what the node shall know.
    ControlPlane,
    /// Looks, and changes nothing.
    ReadOnly,
    Watchdog,
    Gc,
    Metrics,
    Dns,
    /// Says which ports of sandboxes are listened on.
    PortReporter,
}

impl Role {
    pub const ALL: [Self; 8] = [
        Self::Admin,
        Self::ControlPlane,
        Self::ReadOnly,
        Self::Watchdog,
        Self::Gc,
        Self::Metrics,
        Self::Dns,
        Self::PortReporter,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ControlPlane => "control-plane",
            Self::ReadOnly => "read-only",
            Self::Watchdog => "watchdog",
            Self::Gc => "gc",
            Self::Metrics => "metrics",
            Self::Dns => "dns",
            Self::PortReporter => "port-reporter",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == text)
    }
}

/// Any number of roles: what one of them may the caller may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles(u16);

impl Roles {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self((1 << Role::ALL.len()) - 1);

    pub const fn of(roles: &[Role]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < roles.len() {
            bits |= 1 << roles[at] as u16;
            at += 1;
        }
        Self(bits)
    }

    pub fn with(self, role: Role) -> Self {
        Self(self.0 | Self::of(&[role]).0)
    }

    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let held = Role::ALL.into_iter();
        held.filter(move |it| self.meets(Self::of(&[*it])))
            .map(Role::as_str)
    }

    fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names().collect();
        match names.as_slice() {
            [] => f.write_str("none"),
            names => f.write_str(&names.join(",")),
        }
    }
}

/// What a call does, as far as the audit log tells it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Reads,
    /// Changes the node or reaches into a sandbox: it is recorded.
    Changes,
    /// Says only that a process is still there, again and again.
    Presence,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    method: &'static str,
    may: Roles,
    effect: Effect,
}

const fn reads(method: &'static str, may: Roles) -> Row {
    let effect = Effect::Reads;
    Row {
        method,
        may,
        effect,
    }
}

const fn changes(method: &'static str, may: Roles) -> Row {
    let effect = Effect::Changes;
    Row {
        method,
        may,
        effect,
    }
}

const fn presence(method: &'static str, may: Roles) -> Row {
    let effect = Effect::Presence;
    Row {
        method,
        may,
        effect,
    }
}

use Role::{Admin, ControlPlane, Dns, Gc, Metrics, PortReporter, ReadOnly, Watchdog};

const ANY: Roles = Roles::ALL;
const CONTROL: Roles = Roles::of(&[Admin, ControlPlane]);
const LOOK: Roles = Roles::of(&[Admin, ControlPlane, ReadOnly]);
const SANDBOXES: Roles = Roles::of(&[Admin, ControlPlane, ReadOnly, PortReporter]);
const FOLLOW: Roles = Roles::of(&[Admin, ControlPlane, ReadOnly, Metrics, Dns, PortReporter]);
const USAGE: Roles = Roles::of(&[Admin, ControlPlane, ReadOnly, Metrics]);
const REPORT: Roles = Roles::of(&[Admin, ControlPlane, PortReporter]);
const BEAT: Roles = Roles::of(&[Admin, Watchdog, Gc, Metrics, Dns, PortReporter]);
const ORPHANS: Roles = Roles::of(&[Admin, Watchdog]);
const WORK: Roles = Roles::of(&[Admin, Watchdog, Gc]);
const WORK_LOOK: Roles = Roles::of(&[Admin, ControlPlane, ReadOnly, Watchdog, Gc]);
const COLLECT: Roles = Roles::of(&[Admin, Gc]);
const COLLECT_START: Roles = Roles::of(&[Admin, ControlPlane, Gc]);
const COLLECT_LOOK: Roles = Roles::of(&[Admin, ControlPlane, ReadOnly, Gc]);
const CATALOG: Roles = Roles::of(&[Admin, ControlPlane, ReadOnly, Gc, Dns]);
const NAMES: Roles = Roles::of(&[Admin, ControlPlane, ReadOnly, Dns]);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    changes("SandboxService/Create",                CONTROL),
    changes("SandboxService/Delete",                CONTROL),
    changes("SandboxService/Stop",                  CONTROL),
    reads("SandboxService/Get",                     SANDBOXES),
    reads("SandboxService/List",                    SANDBOXES),
    reads("SandboxService/Watch",                   FOLLOW),
    reads("SandboxService/Snapshot",                USAGE),
    changes("SandboxService/SetPortStatus",         REPORT),
    changes("SandboxService/Renew",                 CONTROL),
    reads("SandboxService/StreamLogs",              LOOK),
    changes("SandboxService/CopyTo",                CONTROL),
    changes("SandboxService/CopyFrom",              CONTROL),
    changes("SandboxService/PortForward",           CONTROL),
    changes("SandboxService/Exec",                  CONTROL),
    changes("SandboxService/Attach",                CONTROL),

    reads("ImageService/ListImages",                COLLECT_LOOK),
    changes("ImageService/ImportImage",             CONTROL),
    changes("ImageService/PullImage",               CONTROL),
    changes("ImageService/RemoveImage",             CONTROL),
    changes("ImageService/PinImage",                CONTROL),
    changes("ImageService/UnpinImage",              CONTROL),
    reads("ImageService/ExportImage",               CONTROL),

    changes("CatalogService/PutEntry",              CONTROL),
    changes("CatalogService/DeleteEntry",           CONTROL),
    reads("CatalogService/ListEntries",             CATALOG),
    reads("CatalogService/WatchCatalog",            CATALOG),
    reads("CatalogService/ListEndpoints",           NAMES),
    reads("CatalogService/WatchEndpoints",          NAMES),

    reads("NetworkService/ListLeases",              LOOK),
    reads("NetworkService/CountLeases",             LOOK),
    changes("NetworkService/ReleaseLease",          CONTROL),
    changes("NetworkService/ReleaseRestingLeases",  CONTROL),
    changes("NetworkService/ReserveSubnet",         CONTROL),
    reads("NetworkService/ListSubnets",             LOOK),
    changes("NetworkService/ReleaseSubnet",         CONTROL),
    reads("NetworkService/ListRules",               LOOK),

    reads("NodeService/GetStatus",                  ANY),
    changes("NodeService/Drain",                    CONTROL),
    // With `fix` it removes.
    changes("NodeService/Audit",                    ORPHANS),

    presence("PluginService/Heartbeat",             BEAT),

    presence("LeaseService/AcquireWorkLease",       WORK),
    presence("LeaseService/RenewWorkLeases",        WORK),
    presence("LeaseService/ReleaseWorkLeases",      WORK),
    reads("LeaseService/ListWorkLeases",            WORK_LOOK),

    changes("OrphanService/EndOrphans",             ORPHANS),
    changes("OrphanService/RemoveOrphans",          ORPHANS),

    changes("CollectionService/StartCollection",    COLLECT_START),
    reads("CollectionService/WatchCollections",     COLLECT_LOOK),
    reads("CollectionService/ListCollections",      COLLECT_LOOK),
    changes("CollectionService/ClaimDeletions",     COLLECT),
    changes("CollectionService/CommitDeletions",    COLLECT),
    changes("CollectionService/ReleaseDeletions",   COLLECT),
    changes("CollectionService/ReportSlice",        COLLECT),
    reads("CollectionService/ListHolders",          COLLECT_LOOK),

    reads("ImageGcService/Plan",                    LOOK),
    changes("ImageGcService/Run",                   CONTROL),
    reads("ImageGcService/GetImageGcStatus",        LOOK),

    reads("MetricsService/Gather",                  LOOK),
    reads("MetricsService/Monitor",                 LOOK),
    reads("MetricsService/GetMetricsStatus",        LOOK),

    reads("WatchdogService/Plan",                   LOOK),
    changes("WatchdogService/Run",                  CONTROL),
    reads("WatchdogService/GetWatchdogStatus",      LOOK),
];

/// What the table says of a method, by its path as `/berth.v1.SandboxService/Create`.
fn row(path: &str) -> Option<&'static Row> {
    let method = path.strip_prefix("/berth.v1.")?;
    TABLE.iter().find(|it| it.method == method)
}

/// Which roles may call a method.
pub(crate) fn allowed(path: &str) -> Roles {
    row(path).map_or(Roles::of(&[Admin]), |it| it.may)
}

/// Whether one of the roles is enough. Health and reflection are open to whoever could connect.
pub(crate) fn may(roles: Roles, path: &str) -> bool {
    crate::methods::is_about_the_server(path) || roles.meets(allowed(path))
}

pub(crate) fn effect(path: &str) -> Effect {
    row(path).map_or(Effect::Reads, |it| it.effect)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::methods::Methods;

    #[test]
    fn every_method_of_the_contract_has_one_row_and_every_row_a_method() {
        let methods = Methods::of_contract();
        let contract: BTreeSet<_> = methods.paths().collect();
        let rows = TABLE.iter().map(|it| format!("/berth.v1.{}", it.method));
        let rows: Vec<_> = rows.collect();
        let table: BTreeSet<_> = rows.iter().map(String::as_str).collect();
        assert_eq!(table, contract);
        assert_eq!(rows.len(), table.len(), "none has two");
    }

    #[test]
    fn whatever_is_in_no_row_is_for_admins_only_and_health_is_for_all() {
        for path in [
            "/berth.v1.SandboxService/create",
            "/berth.v2.SandboxService/Get",
            "/x",
            "",
        ] {
            for role in Role::ALL {
                assert_eq!(
                    may(Roles::of(&[role]), path),
                    role == Admin,
                    "{path} {role:?}"
                );
            }
            assert!(!may(Roles::NONE, path), "{path}");
        }
        assert!(may(Roles::NONE, "/grpc.health.v1.Health/Check"));
    }

    #[test]
    fn an_admin_may_all_and_without_a_role_nobody_may_anything() {
        for Row { method, .. } in TABLE {
            let path = format!("/berth.v1.{method}");
            assert!(may(Roles::of(&[Admin]), &path), "{method}");
            assert!(!may(Roles::NONE, &path), "{method}");
        }
    }

    #[test]
    fn who_only_looks_may_nothing_that_is_recorded() {
        for Row {
            method,
            may,
            effect,
        } in TABLE
        {
            assert!(
                *effect != Effect::Changes || !may.meets(Roles::of(&[ReadOnly])),
                "{method}"
            );
        }
    }

    /// The table as the document has it.
    fn document() -> String {
        let row = |Row {
                       method,
                       may,
                       effect,
                   }: &Row| {
            let names: Vec<_> = match *may == ANY {
                true => vec!["every role".to_owned()],
                false => may.names().skip(1).map(|it| format!("`{it}`")).collect(),
            };
            let recorded = match effect {
                Effect::Changes => "yes",
                Effect::Reads | Effect::Presence => "no",
            };
            format!("| `{method}` | {} | {recorded} |\n", names.join(", "))
        };
        let rows: String = TABLE.iter().map(row).collect();
        format!("| method | roles beside `admin` | recorded |\n|---|---|---|\n{rows}")
    }

    #[test]
    fn the_document_has_the_table() {
        let text = include_str!("../../../../docs/access-control.md");
        let table = document();
        assert!(
            text.contains(&table),
            "docs/access-control.md has to have:\n{table}"
        );
    }

    #[test]
    #[rustfmt::skip]
    fn the_rows_that_matter_most_are_as_they_were_decided() {
        let cases = [
            ("SandboxService/Create",            "admin,control-plane"),
            ("SandboxService/Exec",              "admin,control-plane"),
            ("SandboxService/SetPortStatus",     "admin,control-plane,port-reporter"),
            ("NodeService/Audit",                "admin,watchdog"),
            ("OrphanService/RemoveOrphans",      "admin,watchdog"),
            ("CollectionService/CommitDeletions", "admin,gc"),
            ("NodeService/GetStatus",            "admin,control-plane,read-only,watchdog,gc,metrics,dns,port-reporter"),
        ];
        for (method, expected) in cases {
            assert_eq!(allowed(&format!("/berth.v1.{method}")).to_string(), expected, "{method}");
        }
        assert_eq!(Roles::NONE.to_string(), "none");
        assert_eq!(Role::ALL.map(|it| Role::parse(it.as_str())), Role::ALL.map(Some));
    }
}
