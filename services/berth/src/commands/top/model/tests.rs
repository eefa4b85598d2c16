//! What two streams make of the board.

use super::*;

fn sandbox(id: &str, status: SandboxStatus) -> Event {
    Event::Sandbox(v1::Sandbox {
        id: id.to_owned(),
        status: status.into(),
        ..Default::default()
    })
}

fn synced() -> Event {
    Event::Synced(v1::WatchSynced {})
}

/// A sample of this millisecond.
fn sample(millis: i64, usage: v1::ResourceUsage) -> v1::UsageSample {
    v1::UsageSample {
        measured_at: Some(prost_types::Timestamp {
            seconds: 100 + millis / 1000,
            nanos: (millis % 1000) as i32 * 1_000_000,
        }),
        usage: Some(usage),
        network: None,
    }
}

fn series(name: &str, generation: u64, sample: v1::UsageSample) -> v1::UsageSeries {
    let (sandbox, container) = name.split_once('/').unwrap_or((name, ""));
    v1::UsageSeries {
        sandbox: sandbox.to_owned(),
        generation,
        container: container.to_owned(),
        samples: vec![sample],
        version: String::new(),
    }
}

fn round(series: Vec<v1::UsageSeries>) -> v1::MonitorResponse {
    v1::MonitorResponse {
        series,
        complete: true,
    }
}

fn cpu(nanos: u64) -> v1::ResourceUsage {
    v1::ResourceUsage {
        total_cpu_time: nanos,
        ..Default::default()
    }
}

fn names(rows: &[Row]) -> Vec<String> {
    let name = |it: &Row| match it.container.as_str() {
        "" => it.sandbox.clone(),
        container => format!("{}/{container}", it.sandbox),
    };
    rows.iter().map(name).collect()
}

/// `web` and `db` run, and half a second lies between the two samples of each.
fn board(before: [v1::ResourceUsage; 2], after: [v1::ResourceUsage; 2]) -> Board {
    let mut board = Board::default();
    for id in ["web", "db"] {
        board.seen(sandbox(id, SandboxStatus::Running));
    }
    board.seen(synced());
    for (millis, [web, db]) in [(900, before), (1_400, after)] {
        board.measured(round(vec![
            series("db", 1, sample(millis, db)),
            series("web", 1, sample(millis, web)),
        ]));
    }
    board
}

#[test]
fn rates_are_what_two_samples_differ_by_in_the_time_between_them() {
    let link = |bytes| v1::NetworkUsage {
        received_bytes: bytes,
        sent_bytes: bytes * 2,
        ..Default::default()
    };
    let usage = |times: u64| v1::ResourceUsage {
        total_cpu_time: 100_000_000 * times,
        throttled_time: 50_000_000 * times,
        io_read_bytes: 1_000 * times,
        io_written_bytes: 3_000 * times,
        pressure: Some(v1::ResourcePressure {
            cpu_some: 5_000_000 * times,
            memory_some: 10_000_000 * times,
            io_some: 20_000_000 * times,
            ..Default::default()
        }),
        ..Default::default()
    };
    let at = |millis, times| v1::UsageSample {
        network: Some(link(500 * times)),
        ..sample(millis, usage(times))
    };
    let rates = rates(&at(900, 1), &at(1_400, 2)).expect("time has passed");
    let expected = Rates {
        cpu: 0.2,
        throttled: 0.1,
        received: 1_000.0,
        sent: 2_000.0,
        read: 2_000.0,
        written: 6_000.0,
        cpu_pressure: 0.01,
        memory_pressure: 0.02,
        io_pressure: 0.04,
    };
    assert_eq!(rates, expected);
    assert_eq!(rates.pressure(), ("io", 0.04));
}

#[test]
fn no_rate_is_told_of_no_time_of_a_counter_that_went_back_or_of_another_generation() {
    assert_eq!(rates(&sample(5, cpu(1)), &sample(5, cpu(2))), None);
    assert_eq!(rates(&sample(6, cpu(1)), &sample(5, cpu(2))), None);
    let back = rates(&sample(0, cpu(9)), &sample(1_000, cpu(2)));
    assert_eq!(back, Some(Rates::default()));

    let mut board = board([cpu(0); 2], [cpu(500_000_000); 2]);
    assert_eq!(board.rows(Order::Cpu, false, false)[0].rates.cpu, 1.0);
    let born_again = series("web", 2, sample(2_400, cpu(600_000_000)));
    board.measured(round(vec![born_again]));
    let rows = board.rows(Order::Name, false, false);
    assert_eq!(rows[1].rates, Rates::default(), "{rows:?}");
}

#[test]
fn rows_come_in_the_order_that_was_asked_for_and_equal_ones_by_id() {
    let memory = |bytes| v1::ResourceUsage {
        memory_working_set: bytes,
        ..cpu(0)
    };
    let web_is_busy = board([cpu(0); 2], [cpu(7), cpu(3)]);
    let db_is_large = board([memory(0); 2], [memory(1), memory(2)]);
    let order = |board: &Board, order, reverse| names(&board.rows(order, reverse, false));
    assert_eq!(order(&web_is_busy, Order::Cpu, false), ["web", "db"]);
    assert_eq!(order(&web_is_busy, Order::Cpu, true), ["db", "web"]);
    assert_eq!(order(&web_is_busy, Order::Memory, false), ["db", "web"]);
    assert_eq!(order(&db_is_large, Order::Memory, false), ["db", "web"]);
    assert_eq!(order(&db_is_large, Order::Memory, true), ["web", "db"]);
    assert_eq!(order(&db_is_large, Order::Name, false), ["db", "web"]);
}

#[test]
fn what_is_not_running_comes_first_by_state_and_the_dead_never() {
    let mut board = board([cpu(0); 2], [cpu(0); 2]);
    board.seen(sandbox("young", SandboxStatus::NotReady));
    board.seen(sandbox("old", SandboxStatus::Running));
    board.seen(sandbox("old", SandboxStatus::Dead));
    let rows = board.rows(Order::State, false, false);
    assert_eq!(names(&rows), ["young", "db", "web"]);
    let total = board.total();
    assert_eq!((total.sandboxes, total.running), (3, 2));
}

#[test]
fn containers_follow_their_sandbox_by_name_whatever_ids_are_alike() {
    let mut board = board([cpu(0); 2], [cpu(0); 2]);
    board.seen(sandbox("web-2", SandboxStatus::Running));
    let all = ["web", "web/b", "web/a", "web-2", "web-2/c", "db"];
    let all = all.map(|name| series(name, 1, sample(2_000, cpu(1))));
    board.measured(round(all.into()));
    let rows = board.rows(Order::Name, false, true);
    let expected = ["db", "web", "web/a", "web/b", "web-2", "web-2/c"];
    assert_eq!(names(&rows), expected);
}

#[test]
fn what_a_new_watch_or_a_round_does_not_name_is_gone() {
    let mut board = board([cpu(0); 2], [cpu(7), cpu(3)]);
    assert!(board.is_complete());
    board.measured(round(vec![series("web", 1, sample(1_400, cpu(7)))]));
    assert!(
        !board.is_complete(),
        "the same sample once more tells no rate"
    );
    let mut young = Board::default();
    young.seen(synced());
    young.measured(round(vec![]));
    young.measured(round(vec![series("web", 1, sample(0, cpu(7)))]));
    assert!(!young.is_complete(), "one sample tells none");
    young.measured(round(vec![series("web", 1, sample(1_000, cpu(8)))]));
    assert!(young.is_complete());
    let mut idle = Board::default();
    idle.seen(synced());
    for complete in [false, false, true] {
        idle.measured(round(vec![]));
        assert_eq!(idle.is_complete(), complete);
    }
    board.watch_begins();
    assert!(!board.is_complete());
    board.seen(sandbox("web", SandboxStatus::Running));
    assert_eq!(
        names(&board.rows(Order::Name, false, false)),
        ["db", "web"],
        "not yet"
    );
    board.seen(synced());
    assert_eq!(names(&board.rows(Order::Name, false, false)), ["web"]);

    // Half a round changes nothing, and one that was cut off counts for nothing.
    let late = series("web", 1, sample(2_400, cpu(1_000_000_007)));
    let half = v1::MonitorResponse {
        series: vec![late],
        complete: false,
    };
    board.measured(half);
    board.measuring_begins();
    board.measured(round(vec![]));
    let rows = board.rows(Order::Cpu, false, false);
    assert_eq!(
        rows[0].rates,
        Rates::default(),
        "the last round did not name it"
    );
}
