//! Asks systemd for slices: on a host where it owns the cgroups, who wants one has it made there, with its limits.

use std::time::Duration;

use berth_domain::Resources;
use serde::Serialize;
use tokio::sync::Mutex;
use zbus::{Connection, DynamicType, Message, OwnedObjectPath, Variant, conn::Builder};

/// Where systemd is asked.
const BUS: &str = "/run/dbus/system_bus_socket";
/// systemd answers in milliseconds, and has more to do while a host boots.
const LIMIT: Duration = Duration::from_secs(30);
/// What systemd calls no limit.
const INFINITY: u64 = u64::MAX;
/// As on cgroups that are made by hand, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// A job that waits for this unit gives way.
const REPLACE: &str = "replace";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("systemd is not reached over {BUS}")]
    Connect(#[source] zbus::Error),
    #[error("{method} of {unit}")]
    Failed {
        method: &'static str,
        unit: String,
        source: zbus::Error,
    },
    #[error("{method} of {unit}: systemd has not answered within {LIMIT:?}")]
    Slow { method: &'static str, unit: String },
}

/// Properties of a unit, by name.
type Properties = Vec<(&'static str, Variant<'static>)>;
/// As systemd lists a unit: its name, and what nobody here asks for.
type Listed = (
    String,
    String,
    String,
    String,
    String,
    String,
    OwnedObjectPath,
    u32,
    String,
    OwnedObjectPath,
);

/// The systemd of this host. Connects when it is first asked, and again after its connection was lost.
#[derive(Debug, Default)]
pub struct Systemd {
    connection: Mutex<Option<Connection>>,
}

impl Systemd {
    /// Makes a slice with these limits; one that is there gets them. Its cgroup is there soon after.
    pub async fn start_slice(&self, unit: &str, limits: &Resources) -> Result<(), SystemdError> {
        let properties = properties(limits);
        let auxiliary: [(&str, Properties); 0] = [];
        let asked = (unit, REPLACE, &properties, &auxiliary[..]);
        match self.ask("StartTransientUnit", unit, &asked).await {
            Err(error) if error.is(UNIT_EXISTS) => {}
            other => return other.map(drop),
        }
        let at_runtime = (unit, true, &properties);
        self.ask("SetUnitProperties", unit, &at_runtime).await?;
        self.ask("StartUnit", unit, &(unit, REPLACE)).await?;
        Ok(())
    }

    /// Stops a slice with all that is in it, which ends its processes. Its cgroup is gone soon after. Gone is a success.
    pub async fn stop_slice(&self, unit: &str) -> Result<(), SystemdError> {
        match self.ask("StopUnit", unit, &(unit, REPLACE)).await {
            Err(error) if error.is(NO_SUCH_UNIT) => {}
            other => drop(other?),
        }
        self.forget_failed(unit).await
    }

    /// A scope whose process was killed for memory is kept as failed, and with it the slice that it was in.
    async fn forget_failed(&self, slice: &str) -> Result<(), SystemdError> {
        let stem = slice.strip_suffix(".slice").unwrap_or(slice);
        let patterns = [format!("{stem}.*"), format!("{stem}-*")];
        let asked = (["failed"].as_slice(), patterns.as_slice());
        let listed = self.ask("ListUnitsByPatterns", slice, &asked).await?;
        let failed = listed.body().deserialize::<Vec<Listed>>();
        let failed = failed.map_err(|it| failed_to("ListUnitsByPatterns", slice, it))?;
        for (unit, ..) in failed {
            match self.ask("ResetFailedUnit", &unit, &(unit.as_str(),)).await {
                Err(error) if error.is(NO_SUCH_UNIT) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    async fn ask<B: Serialize + DynamicType>(
        &self,
        method: &'static str,
        unit: &str,
        body: &B,
    ) -> Result<Message, SystemdError> {
        let answer = async {
            let connection = self.connect().await.map_err(SystemdError::Connect)?;
            let called = connection.call_method(
                Some("org.freedesktop.systemd1"),
                "/org/freedesktop/systemd1",
                Some("org.freedesktop.systemd1.Manager"),
                method,
                body,
            );
            called.await.map_err(|it| failed_to(method, unit, it))
        };
        let answer = tokio::time::timeout(LIMIT, answer).await;
        let answer = answer.unwrap_or_else(|_| {
            let unit = unit.to_owned();
            Err(SystemdError::Slow { method, unit })
        });
        if answer.as_ref().is_err_and(|it| !it.is_refusal()) {
            *self.connection.lock().await = None;
        }
        answer
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        let mut connection = self.connection.lock().await;
        if let Some(there) = &*connection {
            return Ok(there.clone());
        }
        let address = format!("unix:path={BUS}");
        let fresh = Builder::address(address.as_str()).build().await?;
        Ok(connection.insert(fresh).clone())
    }
}

impl SystemdError {
    /// Whether systemd itself said no, over a connection that is as it should be.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Failed { source, .. } if matches!(source, zbus::Error::MethodError(..)))
    }

    fn is(&self, name: &str) -> bool {
        matches!(self, Self::Failed { source: zbus::Error::MethodError(it, ..), .. } if it.as_str() == name)
    }
}

fn failed_to(method: &'static str, unit: &str, source: zbus::Error) -> SystemdError {
    let unit = unit.to_owned();
    SystemdError::Failed {
        method,
        unit,
        source,
    }
}

/// A limit that is not set is told too: the slice that is there may have one.
fn properties(limits: &Resources) -> Properties {
    // Per second, in microseconds: a thousandth of a CPU is 1,000.
    let cpu = limits.cpu_millis.map(|it| u64::from(it) * 1000);
    let limit = |it: Option<u64>| Variant::from(it.unwrap_or(INFINITY));
    vec![
        ("Description", "A sandbox of Berth".into()),
        ("CPUAccounting", true.into()),
        ("MemoryAccounting", true.into()),
        ("TasksAccounting", true.into()),
        ("CPUQuotaPerSecUSec", limit(cpu)),
        ("CPUQuotaPeriodUSec", CPU_PERIOD.into()),
        ("MemoryMax", limit(limits.memory_bytes)),
        ("MemoryHigh", limit(limits.memory_high_bytes)),
        ("TasksMax", limit(limits.pids.map(u64::from))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_the_words_of_systemd() {
        let told = |limits: &Resources| {
            let all = properties(limits).into_iter();
            all.filter_map(|(name, value)| Some((name, u64::try_from(value).ok()?)))
                .collect::<Vec<_>>()
        };
        let limits = Resources {
            cpu_millis: Some(250),
            memory_bytes: Some(64 << 20),
            memory_high_bytes: Some(32 << 20),
            pids: Some(10),
        };
        let expected = [
            ("CPUQuotaPerSecUSec", 250_000),
            ("CPUQuotaPeriodUSec", 100_000),
            ("MemoryMax", 67_108_864),
            ("MemoryHigh", 33_554_432),
            ("TasksMax", 10),
        ];
        assert_eq!(told(&limits), expected);
        let unlimited = told(&Resources::default()).into_iter();
        let unlimited = unlimited.filter(|(name, _)| *name != "CPUQuotaPeriodUSec");
        assert!(
            unlimited.clone().count() == 4 && unlimited.map(|(_, it)| it).all(|it| it == u64::MAX)
        );
    }
}
