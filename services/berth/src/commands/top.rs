//! The command `top`: what the sandboxes of the node use, live. Two streams fill a board, keys choose what is shown of it.

mod model;
mod view;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use berth_api::v1::{
    self, metrics_service_client::MetricsServiceClient,
    sandbox_service_client::SandboxServiceClient, watch_response::Event,
};
use crossterm::event::{Event as Input, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures::StreamExt as _;
use serde::Serialize;
use tokio::sync::mpsc;

use super::Session;
use crate::{
    args::{Order, Top},
    errors::Failure,
    terminal::Screen,
};
use model::{Board, Row};
use view::{Choice, Pressed};

const AGAIN: Duration = Duration::from_secs(1);
const PAGE: u16 = 10;
/// News that wait to be shown.
const QUEUE: usize = 64;

/// What a stream tells.
#[derive(Debug)]
enum News {
    WatchBegins,
    Sandbox(Box<Event>),
    MonitorBegins,
    Round(v1::MonitorResponse),
    /// A source is away, and why; or is back.
    Trouble(Source, Option<String>),
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Manager,
    Metrics,
}

pub(super) async fn run(session: &Session, args: Top) -> Result<(), Failure> {
    // Both are asked once before the screen is taken: who answers nobody is told as everywhere else.
    session.connect().await?;
    let named = args.metrics_address.as_ref();
    let metrics = match session.connect_beside("metrics", named).await {
        Ok((address, _)) => address,
        Err(Failure::Unreachable { address, source }) => {
            return Err(Failure::NoMetrics { address, source });
        }
        Err(failure) => return Err(failure),
    };
    let (news, mut heard) = mpsc::channel(QUEUE);
    let once = args.once || (session.output.is_for_people() && !io::stdout().is_terminal());
    let shown = async {
        match (once, session.output.is_for_people()) {
            (false, true) => live(&args, &mut heard).await,
            _ => printed(session, &args, once, &mut heard).await,
        }
    };
    tokio::select! {
        ended = shown => ended,
        never = follow(session, &news) => match never {},
        never = measure(session, &args, &metrics, &news) => match never {},
    }
}

/// Round after round as text or objects.
async fn printed(
    session: &Session,
    args: &Top,
    once: bool,
    heard: &mut mpsc::Receiver<News>,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Rows {
        rows: Vec<Row>,
    }
    let mut board = Board::default();
    while let Some(news) = heard.recv().await {
        let complete = matches!(&news, News::Round(it) if it.complete);
        if let News::Trouble(source, Some(why)) = &news {
            return Err(Failure::Lost(source.name(), why.clone()));
        }
        take(&mut board, news);
        // The last thing that was missing may have been either.
        if !board.is_complete() || !(complete || once) {
            continue;
        }
        let rows = Rows {
            rows: board.rows(args.sort, false, args.containers),
        };
        if once {
            return Ok(session.output.object(&rows, || view::table(&rows.rows))?);
        }
        session.output.event(&rows, || None)?;
    }
    Ok(())
}

/// On a terminal, until a key ends it.
async fn live(args: &Top, heard: &mut mpsc::Receiver<News>) -> Result<(), Failure> {
    let mut screen = Screen::take().map_err(Failure::Output)?;
    let mut keys = EventStream::new();
    let mut board = Board::default();
    let mut troubles: [Option<String>; 2] = [None, None];
    let mut choice = Choice {
        order: args.sort,
        containers: args.containers,
        ..Choice::default()
    };
    loop {
        let said: Vec<_> = troubles.iter().flatten().cloned().collect();
        screen
            .draw(|frame| view::draw(frame, &board, &mut choice, &said))
            .map_err(Failure::Output)?;
        tokio::select! {
            news = heard.recv() => match news {
                Some(News::Trouble(source, why)) => {
                    troubles[source as usize] = why.map(|why| format!("{}: {why}", source.name()));
                }
                Some(news) => take(&mut board, news),
                None => return Ok(()),
            },
            input = keys.next() => match input {
                Some(Ok(input)) => match pressed(&input) {
                    Some(Pressed::Quit) => return Ok(()),
                    Some(it) => choice.press(it),
                    None => {}
                },
                Some(Err(error)) => return Err(Failure::Output(error)),
                None => return Ok(()),
            },
        }
    }
}

fn take(board: &mut Board, news: News) {
    match news {
        News::WatchBegins => board.watch_begins(),
        News::Sandbox(event) => board.seen(*event),
        News::MonitorBegins => board.measuring_begins(),
        News::Round(part) => board.measured(part),
        News::Trouble(..) => {}
    }
}

/// What the keys do; Ctrl-C ends it too.
#[rustfmt::skip]
const KEYS: [(KeyCode, Pressed); 15] = [
    (KeyCode::Char('q'), Pressed::Quit),
    (KeyCode::Esc,       Pressed::Quit),
    (KeyCode::Char('c'), Pressed::Order(Order::Cpu)),
    (KeyCode::Char('m'), Pressed::Order(Order::Memory)),
    (KeyCode::Char('n'), Pressed::Order(Order::Net)),
    (KeyCode::Char('i'), Pressed::Order(Order::Io)),
    (KeyCode::Char('p'), Pressed::Order(Order::Pressure)),
    (KeyCode::Char('s'), Pressed::Order(Order::State)),
    (KeyCode::Char('a'), Pressed::Order(Order::Name)),
    (KeyCode::Char('r'), Pressed::Reverse),
    (KeyCode::Char('t'), Pressed::Containers),
    (KeyCode::Up,        Pressed::Up(1)),
    (KeyCode::Down,      Pressed::Down(1)),
    (KeyCode::PageUp,    Pressed::Up(PAGE)),
    (KeyCode::PageDown,  Pressed::Down(PAGE)),
];

fn pressed(input: &Input) -> Option<Pressed> {
    let Input::Key(key) = input else { return None };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Pressed::Quit);
    }
    let known = KEYS.iter().find(|(code, _)| *code == key.code);
    known.map(|(_, does)| *does)
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Source::Manager => "the manager",
            Source::Metrics => "the metrics process",
        }
    }
}

/// Nobody hears any more: whoever shows ends first.
async fn tell(news: &mpsc::Sender<News>, it: News) {
    let _ = news.send(it).await;
}

/// Follows the sandboxes, over every interruption.
async fn follow(session: &Session, news: &mpsc::Sender<News>) -> std::convert::Infallible {
    loop {
        let why = followed(session, news).await;
        let why = why.map_or_else(
            |failure| failure.to_string(),
            |()| "its stream has ended".to_owned(),
        );
        tell(news, News::Trouble(Source::Manager, Some(why))).await;
        tokio::time::sleep(AGAIN).await;
    }
}

async fn followed(session: &Session, news: &mpsc::Sender<News>) -> Result<(), Failure> {
    let mut client = SandboxServiceClient::new(session.connect().await?);
    let request = tonic::Request::new(v1::WatchRequest::default());
    let mut events = client.watch(request).await?.into_inner();
    tell(news, News::Trouble(Source::Manager, None)).await;
    tell(news, News::WatchBegins).await;
    while let Some(event) = events.message().await? {
        if let Some(event) = event.event {
            tell(news, News::Sandbox(Box::new(event))).await;
        }
    }
    Ok(())
}

/// Follows what they use, over every interruption.
async fn measure(
    session: &Session,
    args: &Top,
    metrics: &str,
    news: &mpsc::Sender<News>,
) -> std::convert::Infallible {
    loop {
        let why = measured(session, args, metrics, news).await;
        let why = why.map_or_else(
            |failure| failure.to_string(),
            |()| "its stream has ended".to_owned(),
        );
        tell(news, News::Trouble(Source::Metrics, Some(why))).await;
        tokio::time::sleep(AGAIN).await;
    }
}

async fn measured(
    session: &Session,
    args: &Top,
    metrics: &str,
    news: &mpsc::Sender<News>,
) -> Result<(), Failure> {
    let mut client = MetricsServiceClient::new(session.connect_to(metrics).await?);
    let request = v1::MonitorRequest {
        sandboxes: vec![],
        interval_seconds: args.interval,
        containers: args.containers || !args.once,
    };
    let mut rounds = client.monitor(request).await?.into_inner();
    tell(news, News::Trouble(Source::Metrics, None)).await;
    tell(news, News::MonitorBegins).await;
    while let Some(part) = rounds.message().await? {
        tell(news, News::Round(part)).await;
    }
    Ok(())
}
