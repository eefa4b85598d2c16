//! What is refused before anything runs. What runs is asked of the contract and of the end-to-end tests.

use berth_domain::ContainerName;
use futures::poll;

use super::*;

fn start() -> v1::ExecStart {
    v1::ExecStart {
        id: "web".into(),
        argv: vec!["ls".into()],
        ..v1::ExecStart::default()
    }
}

#[test]
fn what_breaks_a_rule_is_refused_by_its_field() {
    type Change = fn(&mut v1::ExecStart);
    let size = |columns, rows| Some(v1::TerminalSize { columns, rows });
    let mut wide = start();
    (wide.tty, wide.terminal_size) = (true, size(4097, 24));
    let cases: [(&str, Change); 12] = [
        ("start.argv", |it| it.argv.clear()),
        ("start.argv", |it| it.argv = vec![String::new()]),
        ("start.argv", |it| it.argv = vec!["a\0b".into()]),
        ("start.argv", |it| it.argv = vec!["x".into(); 1025]),
        ("start.env", |it| it.env = vec!["A=1".into(); 1025]),
        // With the zero byte behind each of them.
        ("start.argv", |it| it.argv = vec!["x".repeat(128 << 10)]),
        ("start.argv", |it| {
            it.argv = vec!["x".repeat(64 << 10)];
            it.env = vec![format!("A={}", "x".repeat((64 << 10) - 3))];
        }),
        ("start.env[1]", |it| {
            it.env = vec!["A=1".into(), "=2".into()]
        }),
        ("start.directory", |it| it.directory = "tmp".into()),
        ("start.directory", |it| {
            it.directory = format!("/{}", "x".repeat(4096))
        }),
        ("start.user", |it| it.user = "x".repeat(257)),
        ("start.terminal_size.rows", |it| {
            it.tty = true;
            it.terminal_size = Some(v1::TerminalSize {
                columns: 80,
                rows: 0,
            });
        }),
    ];
    for (field, change) in cases {
        let mut it = start();
        change(&mut it);
        let failure = command(&it).unwrap_err();
        assert_eq!(failure.violations[0].field, field);
    }
    let failure = command(&wide).unwrap_err();
    assert_eq!(failure.violations[0].field, "start.terminal_size.columns");
    let edges: [Change; 7] = [
        |it| it.argv = vec!["x".into(); WORDS_MAX],
        |it| it.env = vec!["A=1".into(); WORDS_MAX],
        |it| it.argv = vec!["x".repeat(WORDS_BYTES_MAX - 1)],
        |it| {
            it.argv = vec!["x".repeat(64 << 10)];
            it.env = vec![format!("A={}", "x".repeat((64 << 10) - 4))];
        },
        |it| it.directory = format!("/{}", "x".repeat(PATH_MAX - 1)),
        |it| it.user = "x".repeat(USER_MAX),
        |it| {
            it.tty = true;
            it.terminal_size = Some(v1::TerminalSize {
                columns: SIDE_MAX,
                rows: SIDE_MAX,
            });
        },
    ];
    for (place, change) in edges.into_iter().enumerate() {
        let mut it = start();
        change(&mut it);
        let taken = command(&it);
        assert!(taken.is_ok(), "edge {place}: {taken:?}");
    }
}

#[test]
fn a_terminal_has_a_size_and_what_is_none_has_not() {
    let mut it = start();
    it.terminal_size = Some(v1::TerminalSize {
        columns: 0,
        rows: 0,
    });
    assert_eq!(command(&it).unwrap().terminal, None);
    it.tty = true;
    it.terminal_size = None;
    assert_eq!(command(&it).unwrap().terminal, Some(SIZE_DEFAULT));
}

#[test]
fn input_that_breaks_a_rule_is_refused_by_its_field() {
    let stdin = |length| Some(Action::Stdin(vec![0; length]));
    let signal = |number| Some(Action::Signal(v1::ExecSignal { number }));
    let size = v1::TerminalSize {
        columns: 1,
        rows: 1,
    };
    let cases = [
        (stdin(STDIN_MAX), None),
        (stdin(STDIN_MAX + 1), Some("stdin")),
        (signal(0), Some("signal.number")),
        (signal(2), None),
        (signal(65), Some("signal.number")),
        (Some(Action::Resize(size)), None),
        (
            Some(Action::Resize(v1::TerminalSize::default())),
            Some("resize.columns"),
        ),
        (Some(Action::Start(start())), Some("start")),
        (Some(Action::StdinEnd(v1::StdinEnd {})), None),
        (None, Some("action")),
    ];
    for (action, expected) in cases {
        let outcome = input_of(action.clone());
        let field = outcome.err().map(|it| it.violations[0].field.clone());
        assert_eq!(field.as_deref(), expected, "{action:?}");
    }
}

#[test]
fn the_only_container_goes_without_saying_and_one_of_several_does_not() {
    let name = |text| ContainerName::parse(text).unwrap();
    let (app, db) = (name("app"), name("db"));
    let choose = |containers: &[&ContainerName], wanted: &str| {
        let start = v1::ExecStart {
            container: wanted.to_owned(),
            ..v1::ExecStart::default()
        };
        role(&record(containers), &start.container)
    };
    assert_eq!(choose(&[&app], "").unwrap(), Role::App(app.clone()));
    let chosen = choose(&[&app, &db], "db").unwrap();
    assert_eq!(chosen, Role::App(db.clone()));
    let failure = choose(&[&app, &db], "").unwrap_err();
    assert_eq!(failure.violations[0].field, "start.container");
    assert!(failure.message.contains("app, db"), "{failure}");
    let failure = choose(&[&app], "db").unwrap_err();
    assert_eq!(failure.reason, Reason::ContainerNotFound);
}

fn record(names: &[&ContainerName]) -> SandboxRecord {
    let subject = berth_platform::contract::Subject {
        image: berth_domain::ImageRef::parse("app").unwrap(),
        addresses: vec![],
    };
    let sandbox = subject.sandbox("web");
    let mut spec = berth_domain::SandboxSpec::clone(&sandbox.spec);
    let model = spec.containers.remove(0);
    spec.containers = names
        .iter()
        .map(|&name| berth_domain::Container {
            name: name.clone(),
            ..model.clone()
        })
        .collect();
    let (generation, now) = (sandbox.generation, std::time::SystemTime::UNIX_EPOCH);
    SandboxRecord::new(sandbox.id, generation, spec.into(), vec![], now)
}

#[test]
fn who_may_run_no_more_programs_is_told_whose_limit_it_is() {
    let id = SandboxId::parse("web").unwrap();
    for (of, words) in [
        ("sandbox", "sandbox web runs 7"),
        ("node", "this node runs 7"),
    ] {
        let failure = full(&id, Full { of, limit: 7 });
        assert_eq!(failure.reason, Reason::ExecLimit);
        assert_eq!(failure.metadata["scope"], of);
        assert_eq!(failure.metadata["limit"], "7");
        assert!(failure.message.starts_with(words), "{failure}");
    }
}

#[tokio::test]
async fn a_caller_that_does_not_read_makes_the_program_wait() {
    let (said, output) = mpsc::channel(WAITING);
    let (answers, mut taken) = mpsc::channel(WAITING);
    let ((begun, _begin), (_wrong, faults)) = (oneshot::channel(), mpsc::channel(1));
    let forwarding = forward(output, &answers, begun, faults, std::future::pending());
    let mut forwarding = std::pin::pin!(forwarding);
    let mut say = async || {
        let taken = said.try_send(ExecOutput::Stdout(vec![7])).is_ok();
        assert!(poll!(&mut forwarding).is_pending());
        taken
    };
    // Those of both halves, and the one in hand between them.
    for number in 0..=2 * WAITING {
        assert!(say().await, "{number}");
    }
    assert!(!say().await);
    taken.recv().await.unwrap().unwrap();
    assert!(!say().await, "the place is seen behind this");
    assert!(say().await);
    assert!(!say().await);
}

#[test]
fn a_message_that_cannot_be_taken_in_is_told_and_a_caller_that_goes_away_is_not() {
    let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    for (status, expected) in [
        (Status::out_of_range("more than 4 MiB"), Some("stdin")),
        (Status::internal("no message"), Some("action")),
        (Status::from_error(Box::new(broken)), None),
        (Status::aborted("gone"), None),
    ] {
        let failure = unreadable(&status);
        let field = failure.as_ref().map(|it| it.violations[0].field.as_str());
        assert_eq!(field, expected, "{status:?}");
    }
}

#[tokio::test]
async fn only_a_caller_that_ends_its_input_ends_that_of_the_program() {
    let some = || {
        Ok(v1::ExecRequest {
            action: Some(Action::Stdin(b"some".to_vec())),
        })
    };
    let over = Status::out_of_range("more than 4 MiB");
    for (last, field, ends) in [
        (None, None, true),
        (Some(Err(Status::aborted("gone"))), None, false),
        (Some(Err(over)), Some("stdin"), false),
        (
            Some(Ok(v1::ExecRequest { action: None })),
            Some("action"),
            false,
        ),
    ] {
        let messages = tokio_stream::iter([some()].into_iter().chain(last));
        let (input, mut taken) = mpsc::channel(WAITING);
        let (wrong, mut faults) = mpsc::channel(1);
        let mut taking = Box::pin(async move { take_input(messages, &input, wrong).await });
        let is_over = futures::poll!(&mut taking).is_ready();
        assert_eq!(is_over, ends, "{field:?}");
        assert_eq!(taken.recv().await, Some(ExecInput::Bytes(b"some".to_vec())));
        let fault = faults.try_recv().ok();
        let named = fault.as_ref().map(|it| it.violations[0].field.as_str());
        assert_eq!(named, field);
        // The program has ended.
        drop(taken);
        if !is_over {
            taking.await;
        }
    }
}
