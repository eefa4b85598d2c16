//! What is to be seen on the screen.

use berth_api::v1::{self, watch_response::Event};
use ratatui::{Terminal, backend::TestBackend};

use super::*;

/// Two sandboxes, the second of which has a container.
fn board() -> Board {
    let mut board = Board::default();
    let limits = v1::Resources {
        cpu_millis: 1_500,
        memory_bytes: 64 << 20,
        ..Default::default()
    };
    for (id, status, reason) in [
        ("db", v1::SandboxStatus::NotReady, "PORT_TIMEOUT"),
        ("web", v1::SandboxStatus::Running, ""),
    ] {
        board.seen(Event::Sandbox(v1::Sandbox {
            id: id.to_owned(),
            status: status.into(),
            reason: reason.to_owned(),
            spec: Some(v1::SandboxSpec {
                resources: (id == "web").then_some(limits),
                ..Default::default()
            }),
            ..Default::default()
        }));
    }
    for second in [10, 11] {
        let series = ["web", "web/app"].map(|name| {
            let (sandbox, container) = name.split_once('/').unwrap_or((name, ""));
            v1::UsageSeries {
                sandbox: sandbox.to_owned(),
                generation: 1,
                container: container.to_owned(),
                samples: vec![v1::UsageSample {
                    measured_at: Some(prost_types::Timestamp {
                        seconds: second,
                        nanos: 0,
                    }),
                    usage: Some(v1::ResourceUsage {
                        total_cpu_time: second as u64 * 250_000_000,
                        memory_working_set: 3 << 20,
                        pids: 4,
                        ..Default::default()
                    }),
                    network: None,
                }],
                version: String::new(),
            }
        });
        board.measured(v1::MonitorResponse {
            series: series.into(),
            complete: true,
        });
    }
    board
}

fn drawn(board: &Board, choice: &mut Choice, troubles: &[String]) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(150, 9)).unwrap();
    terminal
        .draw(|frame| draw(frame, board, choice, troubles))
        .unwrap();
    let buffer = terminal.backend().buffer().clone();
    let lines = buffer.content.chunks(150).map(|line| {
        let line: String = line.iter().map(|cell| cell.symbol()).collect();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    lines.collect()
}

#[test]
fn a_screen_has_the_sum_the_troubles_a_row_per_sandbox_and_the_keys() {
    let away = ["the manager: it does not answer".to_owned()];
    let lines = drawn(&board(), &mut Choice::default(), &away);
    let expected = [
        "2 sandboxes, 1 running cpu 0.25 memory 3.0 MiB",
        "the manager: it does not answer",
        "SANDBOX STATE CPU MEMORY NET IN NET OUT IO PRESSURE PIDS WHY",
        "web RUNNING 0.25 / 1.50 3.0 MiB / 64.0 MiB 0 B/s 0 B/s 0 B/s - 4",
        "db NOT_READY 0.00 0 B 0 B/s 0 B/s 0 B/s - 0 PORT_TIMEOUT",
        "",
        "",
        "",
        "order by: [c]pu [m]emory [n]et [i]o [p]ressure [s]tate n[a]me [r]everse con[t]ainers [q]uit",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn keys_choose_the_order_and_what_is_shown() {
    let mut choice = Choice::default();
    let mut first = |pressed: Pressed| {
        choice.press(pressed);
        let lines = drawn(&board(), &mut choice, &[]);
        let names = lines[2..5]
            .iter()
            .map(|it| it.split(' ').next().unwrap_or("").to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(first(Pressed::Reverse), ["db", "web", ""]);
    assert_eq!(first(Pressed::Containers), ["db", "web", "app"]);
    assert_eq!(first(Pressed::Order(Order::State)), ["web", "app", "db"]);
    assert_eq!(first(Pressed::Reverse), ["db", "web", "app"]);
}

#[test]
fn the_rows_scroll_no_further_than_there_are_any() {
    let mut many = Board::default();
    for number in 0..20 {
        many.seen(Event::Sandbox(v1::Sandbox {
            id: format!("box-{number:02}"),
            status: v1::SandboxStatus::Running.into(),
            ..Default::default()
        }));
    }
    let mut choice = Choice::default();
    let mut last = |pressed| {
        choice.press(pressed);
        let lines = drawn(&many, &mut choice, &[]);
        lines[7].split(' ').next().unwrap_or("").to_owned()
    };
    assert_eq!(last(Pressed::Up(1)), "box-05");
    assert_eq!(last(Pressed::Down(10)), "box-10");
    assert_eq!(last(Pressed::Down(100)), "box-19");
}
