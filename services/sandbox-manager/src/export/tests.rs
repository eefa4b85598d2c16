//! The export against a real receiver, which refuses, dies and comes back.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use berth_logs::format::Kind;
use berth_platform::fake::FakeNode;
use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
        logs_service_server::{LogsService, LogsServiceServer},
    },
    common::v1::any_value::Value,
};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, transport::Server};

use super::*;
use crate::logs::written::{Ground, id, within};

/// Sequence numbers and texts of what was taken, by sandbox and source.
type Taken = BTreeMap<(String, String), Vec<(i64, String)>>;

#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    taken: Taken,
    /// What the next calls get.
    refusals: Vec<Status>,
    /// A call with this line in it gets the same each time.
    poison: Option<(&'static str, Status)>,
    /// What is said beside OK.
    partial: Option<ExportLogsPartialSuccess>,
    calls: usize,
    authorized: bool,
}

impl Receiver {
    fn state<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves until the sender is dropped.
    async fn serve(&self, address: Option<SocketAddr>) -> (SocketAddr, oneshot::Sender<()>) {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = async {
            // The one before lets go of the port when its last call has ended.
            loop {
                match TcpListener::bind(address.unwrap_or(any)).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        };
        let listener = within("the port", bound).await;
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = Server::builder()
            .add_service(LogsServiceServer::new(self.clone()))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                let _ = stopped.await;
            });
        tokio::task::spawn_local(server);
        (address, stop)
    }

    async fn until(&self, what: &str, state: impl Fn(&State) -> bool) {
        let reached = async {
            while !self.state(|it| state(it)) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        within(what, reached).await;
    }
}

#[tonic::async_trait]
impl LogsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.state(|state| {
            state.calls += 1;
            let header = request.metadata().get("authorization");
            state.authorized = header.is_some_and(|it| it == "Bearer x");
            if let Some(refusal) = state.refusals.pop() {
                return Err(refusal);
            }
            let request = request.into_inner();
            if let Some((line, refusal)) = &state.poison
                && has_line(&request, line)
            {
                return Err(refusal.clone());
            }
            for resource in request.resource_logs {
                for record in resource
                    .scope_logs
                    .into_iter()
                    .flat_map(|it| it.log_records)
                {
                    take(&mut state.taken, record);
                }
            }
            Ok(Response::new(ExportLogsServiceResponse {
                partial_success: state.partial.take(),
            }))
        })
    }
}

fn has_line(request: &ExportLogsServiceRequest, line: &str) -> bool {
    let scopes = request.resource_logs.iter().flat_map(|it| &it.scope_logs);
    let bodies = scopes.flat_map(|it| &it.log_records).map(|it| &it.body);
    bodies
        .flatten()
        .any(|it| it.value == Some(Value::StringValue(line.to_owned())))
}

fn take(taken: &mut Taken, record: LogRecord) {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        other => panic!("{other:?}"),
    };
    let find = |key: &str| {
        let found = record.attributes.iter().find(|it| it.key == key);
        found
            .and_then(|it| it.value.clone())
            .and_then(|it| it.value)
    };
    let Some(Value::IntValue(sequence)) = find("sequence") else {
        panic!("a sequence")
    };
    let of = (text(find("sandbox")), text(find("source")));
    let body = record.body.clone().and_then(|it| it.value);
    taken.entry(of).or_default().push((sequence, text(body)));
}

fn settings(address: SocketAddr) -> Settings {
    let settings = Settings::read(|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(format!("http://{address}")),
        "OTEL_EXPORTER_OTLP_HEADERS" => Some("authorization=Bearer%20x".to_owned()),
        _ => None,
    });
    settings.unwrap().unwrap()
}

fn exporter(ground: &Ground, address: SocketAddr) -> Exporter<FakeNode, FakeNode> {
    let file = ground.dir.path().join("log-export");
    let (registry, readers) = (ground.registry.clone(), ground.readers.clone());
    Exporter::new(registry, readers, settings(address), "node".into(), file).unwrap()
}

/// Runs the export of one start of a manager.
fn start(ground: &Ground, address: SocketAddr) {
    let file = ground.dir.path().join("log-export");
    let (registry, readers) = (ground.registry.clone(), ground.readers.clone());
    let export = run(registry, readers, settings(address), "node".into(), file);
    ground.registry.spawn(export);
}

/// Waits until it is written down that the receiver has the lines of the app before this one: until then they may come
/// again.
async fn until_kept(ground: &Ground, next: u64) {
    let file = ground.dir.path().join("log-export");
    let kept = || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut lines = text.lines();
        lines.any(|it| it.starts_with("web app ") && it.ends_with(&format!(" {next}")))
    };
    let reached = async {
        while !kept() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within("it is written down", reached).await;
}

async fn stop(ground: &Ground) {
    ground.stop.cancel();
    within("the export to rest", ground.registry.finish()).await;
}

fn of_app(taken: &Taken) -> Vec<i64> {
    let lines = taken.get(&("web".to_owned(), "app".to_owned()));
    lines.into_iter().flatten().map(|it| it.0).collect()
}

async fn local(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn lines_of_all_sandboxes_arrive_once_and_those_of_the_next_start_too() {
    local(async {
        let ground = Ground::new();
        ground.admit(&id("web"), |_| {}).await;
        ground.admit(&id("db"), |_| {}).await;
        let mut app = ground.log(&id("web"), "app");
        app.lines(1500);
        ground.log(&id("db"), "app").line(Kind::Stderr, "");
        let receiver = Receiver::default();
        let (address, _stop) = receiver.serve(None).await;
        start(&ground, address);
        receiver
            .until("all lines", |it| {
                of_app(&it.taken).len() == 1500 && it.taken.len() == 2
            })
            .await;
        app.lines(1);
        // A log that begins later.
        let mut system = ground.log(&id("web"), "@system");
        system.line(Kind::System, "pulled");
        receiver
            .until("new lines", |it| {
                of_app(&it.taken).len() == 1501 && it.taken.len() == 3
            })
            .await;
        until_kept(&ground, 1501).await;
        stop(&ground).await;
        app.lines(1);
        let next = ground.again();
        start(&next, address);
        receiver
            .until("the last line", |it| of_app(&it.taken).len() == 1502)
            .await;
        stop(&next).await;
        receiver.state(|it| {
            assert_eq!(of_app(&it.taken), (0..1502).collect::<Vec<_>>());
            let of = |sandbox: &str, source: &str| &it.taken[&(sandbox.into(), source.into())];
            assert_eq!(*of("db", "app"), [(0, " ".to_owned())]);
            assert_eq!(*of("web", "system"), [(0, "pulled".to_owned())]);
            assert!(it.authorized);
        });
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_refuses_and_dies_gets_each_line_when_it_is_back() {
    local(async {
        let ground = Ground::new();
        ground.admit(&id("web"), |_| {}).await;
        let mut app = ground.log(&id("web"), "app");
        app.lines(600);
        let receiver = Receiver::default();
        receiver.state(|it| it.refusals = vec![Status::unavailable("not yet")]);
        let (address, stop_receiver) = receiver.serve(None).await;
        start(&ground, address);
        receiver
            .until("the first lines", |it| of_app(&it.taken).len() == 600)
            .await;
        drop(stop_receiver);
        app.lines(600);
        let (_, _stop) = receiver.serve(Some(address)).await;
        receiver
            .until("the rest", |it| of_app(&it.taken).contains(&1199))
            .await;
        stop(&ground).await;
        receiver.state(|it| {
            let mut numbers = of_app(&it.taken);
            // What was on its way when the receiver died may come again.
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers, (0..1200).collect::<Vec<_>>());
        });
    })
    .await;
}

#[tokio::test]
async fn what_a_receiver_refuses_for_good_is_not_sent_again_and_holds_nothing_up() {
    local(async {
        let ground = Ground::new();
        ground.admit(&id("web"), |_| {}).await;
        let mut app = ground.log(&id("web"), "app");
        app.lines(1);
        let receiver = Receiver::default();
        receiver.state(|it| it.refusals = vec![Status::invalid_argument("never")]);
        let (address, _stop) = receiver.serve(None).await;
        start(&ground, address);
        receiver.until("the refusal", |it| it.calls == 1).await;
        receiver.state(|it| {
            it.partial = Some(ExportLogsPartialSuccess {
                rejected_log_records: 1,
                error_message: "one is bad".to_owned(),
            });
        });
        app.lines(2);
        receiver.until("the next lines", |it| it.calls == 2).await;
        app.lines(1);
        receiver.until("the last line", |it| it.calls == 3).await;
        stop(&ground).await;
        receiver.state(|it| assert_eq!(of_app(&it.taken), [1, 2, 3]));
    })
    .await;
}

#[tokio::test]
async fn a_line_at_which_the_receiver_breaks_each_time_is_given_up_and_holds_up_no_other() {
    local(async {
        let ground = Ground::new();
        for name in ["db", "web"] {
            ground.admit(&id(name), |_| {}).await;
        }
        // Alone it may as well be the receiver that is broken, which others show.
        let mut db = ground.log(&id("db"), "app");
        db.line(Kind::Stdout, "line 7");
        let mut app = ground.log(&id("web"), "app");
        app.lines(600);
        let receiver = Receiver::default();
        receiver.state(|it| it.poison = Some(("line 7", Status::internal("it broke"))));
        let (address, _stop) = receiver.serve(None).await;
        start(&ground, address);
        receiver
            .until("all but one", |it| of_app(&it.taken).len() == 599)
            .await;
        let of_db = |state: &State| state.taken.get(&("db".into(), "app".into())).cloned();
        receiver.state(|it| {
            assert!(!of_app(&it.taken).contains(&7));
            assert_eq!(of_db(it), None);
        });
        db.line(Kind::Stdout, "another");
        receiver
            .until("what follows it", |it| of_db(it).is_some())
            .await;
        stop(&ground).await;
        receiver.state(|it| assert_eq!(of_db(it), Some(vec![(1, "another".to_owned())])));
    })
    .await;
}

#[tokio::test]
async fn a_line_is_given_up_after_so_many_tries_that_find_the_receiver_and_counts_as_dropped_and_not_as_exported()
 {
    local(async {
        let ground = Ground::new();
        let mut app = ground.log(&id("web"), "app");
        app.lines(20);
        let receiver = Receiver::default();
        let broke = || Status::internal("it broke");
        receiver.state(|it| {
            // The last is the first: the try that would be the last for the batch finds nobody.
            it.refusals = vec![Status::unavailable("away"), broke(), broke()];
            it.poison = Some(("line 7", broke()));
        });
        let (address, _stop) = receiver.serve(None).await;
        let mut exporter = exporter(&ground, address);
        let about = About::new(&id("web"), None);
        let mut merged = open(&ground.readers.folder(&id("web")), &["app".into()], None);
        let mut next = || batch(&mut merged, &about).unwrap().records;
        let sent = exporter.send(&id("web"), &about, next()).await;
        assert_eq!(sent, Sent::Answered { dropped: 1 });
        receiver.state(|it| {
            // The search sends 20, 10, 5, 5, 2, 3, 1, 2, 10.
            assert_eq!(it.calls, 1 + TRIES as usize + 9);
            let others: Vec<_> = (0..20).filter(|it| *it != 7).collect();
            assert_eq!(of_app(&it.taken), others);
            it.partial = Some(ExportLogsPartialSuccess {
                rejected_log_records: 2,
                error_message: "two are bad".to_owned(),
            });
        });
        app.lines(3);
        let sent = exporter.send(&id("web"), &about, next()).await;
        assert_eq!(sent, Sent::Answered { dropped: 2 });
        receiver.state(|it| it.refusals = vec![Status::invalid_argument("never")]);
        app.lines(4);
        let sent = exporter.send(&id("web"), &about, next()).await;
        assert_eq!(sent, Sent::Answered { dropped: 4 });
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_breaks_at_everything_loses_nothing() {
    local(async {
        let ground = Ground::new();
        ground.admit(&id("web"), |_| {}).await;
        ground.log(&id("web"), "app").lines(100);
        let receiver = Receiver::default();
        let broken = vec![Status::unknown("it is broken"); TRIES as usize + 40];
        receiver.state(|it| it.refusals = broken);
        let (address, _stop) = receiver.serve(None).await;
        start(&ground, address);
        receiver
            .until("all lines", |it| of_app(&it.taken).len() == 100)
            .await;
        stop(&ground).await;
        receiver.state(|it| assert_eq!(of_app(&it.taken), (0..100).collect::<Vec<_>>()));
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_is_away_does_not_hold_up_the_end_and_lines_that_are_dropped_meanwhile_are_counted()
 {
    local(async {
        let ground = Ground::new();
        ground.admit(&id("web"), |_| {}).await;
        let mut app = ground.log(&id("web"), "app");
        app.lines(5);
        let receiver = Receiver::default();
        let (address, stop_receiver) = receiver.serve(None).await;
        start(&ground, address);
        receiver
            .until("the first lines", |it| of_app(&it.taken).len() == 5)
            .await;
        until_kept(&ground, 5).await;
        stop(&ground).await;
        drop(stop_receiver);
        app.lines(5);
        app.rotate();
        app.lines(1);
        app.drop_oldest();
        let next = ground.again();
        start(&next, address);
        stop(&next).await;
        let receiver = Receiver::default();
        let (address, _stop) = receiver.serve(None).await;
        let last = ground.again();
        start(&last, address);
        receiver
            .until("the rest", |it| of_app(&it.taken).len() == 2)
            .await;
        stop(&last).await;
        receiver.state(|it| {
            let lines = &it.taken[&("web".into(), "app".into())];
            let expected = [(5, "lines are missing"), (10, "line 10")];
            assert_eq!(
                *lines,
                expected.map(|(number, text)| (number, text.to_owned()))
            );
        });
    })
    .await;
}
