//! The command `stats`: what one sandbox uses, once or again and again.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use berth_api::v1::{self, sandbox_service_client::SandboxServiceClient};

use super::Session;
use crate::{
    args::Stats,
    errors::Failure,
    output::{self, precise_duration, size},
    proto_json::ProtoJson,
};

/// What puts the cursor to the upper left, and clears what is below it.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) async fn run(session: &Session, args: Stats) -> Result<(), Failure> {
    let mut client = SandboxServiceClient::new(session.connect().await?);
    let mut looks = tokio::time::interval(args.interval);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let clear = if io::stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    let mut former = None;
    loop {
        looks.tick().await;
        let request = v1::SnapshotRequest {
            id: args.id.clone(),
        };
        let snapshot = client
            .snapshot(session.request(request))
            .await?
            .into_inner();
        let denied = denied_line(snapshot.denied);
        if !args.watch {
            let text = || [usage_table(&snapshot), denied].concat();
            return Ok(session.output.object(&ProtoJson(&snapshot), text)?);
        }
        let text = || {
            let table = moving_table(&snapshot, former.as_ref());
            Some([clear, &table, &denied, "\n"].concat())
        };
        session.output.event(&ProtoJson(&snapshot), text)?;
        former = Some(snapshot);
    }
}

/// What the node did not let the sandbox send; nothing where there is nothing to say.
pub(super) fn denied_line(denied: Option<v1::DeniedTraffic>) -> String {
    let it = denied.unwrap_or_default();
    let part = |what, packets, bytes| {
        (packets > 0).then(|| format!("\n{what}: {packets} packets, {}", size(bytes)))
    };
    let dropped = part("denied", it.packets, it.bytes);
    let spoofed = part("spoofed", it.spoofed_packets, it.spoofed_bytes);
    dropped.into_iter().chain(spoofed).collect()
}

const TITLES: [&str; 7] = [
    "CONTAINER",
    "CPU",
    "KERNEL",
    "MEMORY",
    "PEAK",
    "SWAP",
    "PIDS",
];

fn usage_table(snapshot: &v1::SnapshotResponse) -> String {
    let rows = parts(snapshot).map(|it| cells(it.name, it.usage));
    output::table(TITLES, rows.collect())
}

/// The same with the CPUs that were kept busy since the look before.
fn moving_table(snapshot: &v1::SnapshotResponse, former: Option<&v1::SnapshotResponse>) -> String {
    let rows = parts(snapshot).map(|it| {
        let before = former.and_then(|of| parts(of).find(|was| was.name == it.name));
        let busy = before.and_then(|was| busy(&was, &it));
        let [name, rest @ ..] = cells(it.name, it.usage);
        let [cpu, kernel, memory, peak, swap, pids] = rest;
        let busy = busy.map_or_else(String::new, |it| format!("{it:.2}"));
        [name, busy, cpu, kernel, memory, peak, swap, pids]
    });
    let [name, rest @ ..] = TITLES;
    let [cpu, kernel, memory, peak, swap, pids] = rest;
    let titles = [name, "CPUS", cpu, kernel, memory, peak, swap, pids];
    output::table(titles, rows.collect())
}

/// A line of the table.
#[derive(Clone, Copy)]
struct Part<'a> {
    name: &'a str,
    usage: v1::ResourceUsage,
    at: Option<prost_types::Timestamp>,
}

fn parts(snapshot: &v1::SnapshotResponse) -> impl Iterator<Item = Part<'_>> {
    let containers = snapshot.containers.iter().map(|it| Part {
        name: &it.name,
        usage: it.usage.unwrap_or_default(),
        at: it.measured_at,
    });
    containers.chain([Part {
        name: "total",
        usage: snapshot.total.unwrap_or_default(),
        at: snapshot.containers.iter().find_map(|it| it.measured_at),
    }])
}

/// None where no time has passed, or where the counter began anew.
fn busy(was: &Part<'_>, is: &Part<'_>) -> Option<f64> {
    let nanos =
        |it: prost_types::Timestamp| i128::from(it.seconds) * 1_000_000_000 + i128::from(it.nanos);
    let passed = nanos(is.at?) - nanos(was.at?);
    let used = is
        .usage
        .total_cpu_time
        .checked_sub(was.usage.total_cpu_time)?;
    (passed > 0).then(|| used as f64 / passed as f64)
}

fn cells(name: &str, usage: v1::ResourceUsage) -> [String; 7] {
    let cpu = |nanos| precise_duration(Duration::from_nanos(nanos));
    // The contract says 0 where the kernel does not count.
    let counted = |bytes| match bytes {
        0 => String::new(),
        bytes => size(bytes),
    };
    [
        name.to_owned(),
        cpu(usage.total_cpu_time),
        cpu(usage.kernel_cpu_time),
        size(usage.memory_usage),
        counted(usage.memory_peak),
        counted(usage.swap_usage),
        usage.pids.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_has_a_line_per_container_and_the_total() {
        let usage = v1::ResourceUsage {
            total_cpu_time: 1_500_000_000,
            memory_usage: 2 << 20,
            pids: 3,
            ..Default::default()
        };
        let snapshot = v1::SnapshotResponse {
            total: Some(usage),
            containers: vec![v1::ContainerUsage {
                name: "app".to_owned(),
                usage: Some(usage),
                measured_at: None,
            }],
            ..Default::default()
        };
        assert_eq!(
            usage_table(&snapshot),
            "CONTAINER  CPU    KERNEL  MEMORY   PEAK  SWAP  PIDS\n\
                 app        1.50s  0µs     2.0 MiB  -     -     3\n\
                 total      1.50s  0µs     2.0 MiB  -     -     3"
        );
    }

    #[test]
    fn a_second_look_says_how_many_cpus_were_kept_busy_between_the_two() {
        let look = |millis: i64, cpu| {
            let usage = Some(v1::ResourceUsage {
                total_cpu_time: cpu,
                ..Default::default()
            });
            let measured_at = Some(prost_types::Timestamp {
                seconds: 100 + millis / 1000,
                nanos: (millis % 1000) as i32 * 1_000_000,
            });
            v1::SnapshotResponse {
                total: usage,
                containers: vec![v1::ContainerUsage {
                    name: "app".to_owned(),
                    usage,
                    measured_at,
                }],
                ..Default::default()
            }
        };
        let (first, second) = (look(900, 1_000_000_000), look(1_400, 1_250_000_000));
        let cpus = |former| {
            let text = moving_table(&second, former);
            let line = text.lines().nth(1).expect("a line of app").to_owned();
            line.split_whitespace()
                .nth(1)
                .expect("a second column")
                .to_owned()
        };
        assert_eq!(cpus(Some(&first)), "0.50");
        assert_eq!(cpus(None), "-", "the first look");
        assert_eq!(cpus(Some(&second)), "-", "no time has passed");
        assert_eq!(cpus(Some(&look(900, 9_000_000_000))), "-", "it counts anew");
    }
}
