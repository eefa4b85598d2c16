//! Asks systemd for slices: on a host where it owns the cgroups, who wants one has it made there, with its limits.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use berth_domain::Resources;
use serde::Serialize;
use tokio::{sync::Mutex, time::Instant};
use zbus::{Connection, DynamicType, Message, OwnedObjectPath, Variant, conn::Builder};

/// Where systemd is asked.
const BUS: &str = "/run/dbus/system_bus_socket";
/// systemd answers in milliseconds, and has more to do while a host boots.
const LIMIT: Duration = Duration::from_secs(30);
/// What systemd calls no limit.
const INFINITY: u64 = u64::MAX;
/// As on cgroups that are made by hand, in microseconds.
const CPU_PERIOD: u64 = 100_000;
const CPU_STEP: u64 = 10_000;
/// How often it is looked whether a unit has stopped.
const LOOK: Duration = Duration::from_millis(2);
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
#[derive(Debug)]
pub struct Systemd {
    bus: PathBuf,
    limit: Duration,
    connection: Mutex<Option<Connection>>,
}

impl Default for Systemd {
    fn default() -> Self {
        Self::at(Path::new(BUS), LIMIT)
    }
}

impl Systemd {
    fn at(bus: &Path, limit: Duration) -> Self {
        Self {
            bus: bus.to_owned(),
            limit,
            connection: Mutex::default(),
        }
    }

    /// Whether it answers within this time.
    pub async fn answers(&self, within: Duration) -> bool {
        let asked = (["-.slice"].as_slice(),);
        let listed = self.list("ListUnitsByNames", "-.slice", &asked);
        let answer = tokio::time::timeout(within, listed).await;
        answer.is_ok_and(|it| it.is_ok())
    }

    /// Makes a slice that has others below it; one that is there is as good.
    pub async fn start_parent(&self, unit: &str) -> Result<(), SystemdError> {
        match self
            .start_transient(unit, "Sandboxes of Berth", vec![])
            .await
        {
            Err(error) if error.is(UNIT_EXISTS) => Ok(()),
            other => other,
        }
    }

    /// Makes a slice with these limits; one that is there gets them. Its cgroup is there soon after.
    pub async fn start_slice(&self, unit: &str, limits: &Resources) -> Result<(), SystemdError> {
        let started = self.start_transient(unit, "A sandbox of Berth", properties(limits));
        match started.await {
            Err(error) if error.is(UNIT_EXISTS) => {}
            other => return other,
        }
        let at_runtime = (unit, true, properties(limits));
        self.ask("SetUnitProperties", unit, &at_runtime).await?;
        self.ask("StartUnit", unit, &(unit, REPLACE)).await?;
        Ok(())
    }

    /// Stops a slice with all that is in it, which ends its processes, and waits until it has. Gone is a success.
    pub async fn stop_slice(&self, unit: &str) -> Result<(), SystemdError> {
        match self.ask("StopUnit", unit, &(unit, REPLACE)).await {
            Err(error) if error.is(NO_SUCH_UNIT) => {}
            other => drop(other?),
        }
        await_stop(unit, self.limit, || self.has_stopped(unit)).await?;
        self.forget_failed(unit).await
    }

    async fn start_transient(
        &self,
        unit: &str,
        description: &'static str,
        limits: Properties,
    ) -> Result<(), SystemdError> {
        let mut properties: Properties = vec![
            ("Description", description.into()),
            // When the host goes down, sandboxes go after everything that systemd stops, and not beside the manager: that
            // would take them for ended.
            ("DefaultDependencies", false.into()),
        ];
        properties.extend(limits);
        let auxiliary: [(&str, Properties); 0] = [];
        let asked = (unit, REPLACE, &properties, &auxiliary[..]);
        self.ask("StartTransientUnit", unit, &asked).await.map(drop)
    }

    /// Whether nothing is to be done for a unit any more, and it is not there.
    async fn has_stopped(&self, unit: &str) -> Result<bool, SystemdError> {
        let names = [unit];
        let asked = (names.as_slice(),);
        let listed = self.list("ListUnitsByNames", unit, &asked).await?;
        let stands = |it: &Listed| matches!(it.3.as_str(), "inactive" | "failed") && it.7 == 0;
        Ok(listed.iter().all(stands))
    }

    /// A scope whose process was killed for memory is kept as failed, and with it the slice that it was in.
    async fn forget_failed(&self, slice: &str) -> Result<(), SystemdError> {
        let stem = slice.strip_suffix(".slice").unwrap_or(slice);
        let patterns = [
            format!("{stem}.*.scope"),
            format!("{stem}-*.scope"),
            format!("{stem}-*.slice"),
        ];
        let asked = (["failed"].as_slice(), patterns.as_slice());
        let failed = self.list("ListUnitsByPatterns", slice, &asked).await?;
        for (unit, ..) in failed {
            match self.ask("ResetFailedUnit", &unit, &(unit.as_str(),)).await {
                Err(error) if error.is(NO_SUCH_UNIT) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    async fn list<B: Serialize + DynamicType>(
        &self,
        method: &'static str,
        unit: &str,
        body: &B,
    ) -> Result<Vec<Listed>, SystemdError> {
        let listed = self.ask(method, unit, body).await?;
        let units = listed.body().deserialize();
        units.map_err(|it| failed_to(method, unit, it))
    }

    /// A connection that was lost meanwhile is made again, once: each method may be called twice.
    async fn ask<B: Serialize + DynamicType>(
        &self,
        method: &'static str,
        unit: &str,
        body: &B,
    ) -> Result<Message, SystemdError> {
        let answer = async {
            let known = self.connection.lock().await.clone();
            if let Some(connection) = known {
                match call(&connection, method, body).await {
                    Err(error) if !is_refusal(&error) => {}
                    answer => return answer.map_err(|it| failed_to(method, unit, it)),
                }
            }
            let connection = connect(&self.bus).await.map_err(SystemdError::Connect)?;
            *self.connection.lock().await = Some(connection.clone());
            let answer = call(&connection, method, body).await;
            answer.map_err(|it| failed_to(method, unit, it))
        };
        let answer = tokio::time::timeout(self.limit, answer).await;
        answer.unwrap_or_else(|_| {
            let unit = unit.to_owned();
            Err(SystemdError::Slow { method, unit })
        })
    }
}

async fn await_stop<F>(
    unit: &str,
    limit: Duration,
    has_stopped: impl Fn() -> F,
) -> Result<(), SystemdError>
where
    F: Future<Output = Result<bool, SystemdError>>,
{
    let deadline = Instant::now() + limit;
    while !has_stopped().await? {
        if Instant::now() >= deadline {
            let (method, unit) = ("StopUnit", unit.to_owned());
            return Err(SystemdError::Slow { method, unit });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn connect(bus: &Path) -> zbus::Result<Connection> {
    let address = format!("unix:path={}", bus.display());
    Builder::address(address.as_str()).build().await
}

async fn call<B: Serialize + DynamicType>(
    connection: &Connection,
    method: &'static str,
    body: &B,
) -> zbus::Result<Message> {
    let called = connection.call_method(
        Some("org.freedesktop.systemd1"),
        "/org/freedesktop/systemd1",
        Some("org.freedesktop.systemd1.Manager"),
        method,
        body,
    );
    called.await
}

/// Whether systemd or the bus said no, over a connection that is as it should be.
fn is_refusal(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(..) | zbus::Error::FDO(_))
}

impl SystemdError {
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
    // Per second, in microseconds: a thousandth of a CPU is 1,000. systemd keeps whole hundredths, and the older ones cut.
    let cpu = limits.cpu_millis.map(|it| u64::from(it) * 1000);
    let cpu = cpu.map(|it| it.next_multiple_of(CPU_STEP));
    let limit = |it: Option<u64>| Variant::from(it.unwrap_or(INFINITY));
    vec![
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_bus_that_is_not_there_or_never_answers_is_told_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let bus = dir.path().join("bus");
        let ask = async || {
            let systemd = Systemd::at(&bus, Duration::from_millis(100));
            assert!(!systemd.answers(Duration::from_millis(50)).await);
            systemd.start_parent("berth.slice").await.unwrap_err()
        };
        let error = ask().await;
        assert!(matches!(error, SystemdError::Connect(_)), "{error:?}");
        let _silent = std::os::unix::net::UnixListener::bind(&bus).unwrap();
        let error = ask().await;
        assert!(matches!(error, SystemdError::Slow { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_slice_that_never_stops_is_told_and_not_waited_for() {
        let wait = async |limit, answers: &[bool]| {
            let looks = AtomicUsize::new(0);
            let has_stopped = || {
                let look = looks.fetch_add(1, Ordering::Relaxed);
                let answer = answers.get(look).or(answers.last());
                std::future::ready(Ok(*answer.unwrap()))
            };
            let waiting = await_stop("berth-a.slice", limit, has_stopped);
            let waited = tokio::time::timeout(LIMIT, waiting).await;
            waited.expect("it has its limit")
        };
        let error = wait(LOOK, &[false]).await.unwrap_err();
        let told = matches!(&error, SystemdError::Slow { method: "StopUnit", unit } if unit == "berth-a.slice");
        assert!(told, "{error:?}");
        wait(LIMIT, &[false, false, true]).await.unwrap();
        wait(Duration::ZERO, &[true]).await.unwrap();
    }

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
        for (millis, expected) in [(1, 10_000), (15, 20_000), (255, 260_000), (1000, 1_000_000)] {
            let limits = Resources {
                cpu_millis: Some(millis),
                ..limits
            };
            assert_eq!(
                told(&limits)[0].1,
                expected,
                "never less than was asked for"
            );
        }
        let unlimited = told(&Resources::default()).into_iter();
        let unlimited = unlimited.filter(|(name, _)| *name != "CPUQuotaPeriodUSec");
        assert!(
            unlimited.clone().count() == 4 && unlimited.map(|(_, it)| it).all(|it| it == u64::MAX)
        );
    }
}
