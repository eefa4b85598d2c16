//! How `berth top` looks: on a terminal that it has for itself, and as a table.

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Row as Cells, Table, TableState},
};

use super::model::{Board, Row};
use crate::{
    args::Order,
    output::{self, size},
};

const TITLES: [&str; 10] = [
    "SANDBOX", "STATE", "CPU", "MEMORY", "NET IN", "NET OUT", "IO", "PRESSURE", "PIDS", "WHY",
];
const WIDTHS: [Constraint; 10] = [
    Constraint::Length(26),
    Constraint::Length(9),
    Constraint::Length(11),
    Constraint::Length(21),
    Constraint::Length(12),
    Constraint::Length(12),
    Constraint::Length(12),
    Constraint::Length(12),
    Constraint::Length(6),
    Constraint::Min(0),
];
const KEYS: &str = "order by: [c]pu [m]emory [n]et [i]o [p]ressure [s]tate n[a]me   [r]everse  con[t]ainers  [q]uit";

/// What the keys have chosen.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    pub(super) order: Order,
    pub(super) reverse: bool,
    pub(super) containers: bool,
    pub(super) position: TableState,
}

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressed {
    Order(Order),
    Reverse,
    Containers,
    Up(u16),
    Down(u16),
    Quit,
}

impl Choice {
    pub(super) fn press(&mut self, pressed: Pressed) {
        match pressed {
            Pressed::Order(order) => self.order = order,
            Pressed::Reverse => self.reverse = !self.reverse,
            Pressed::Containers => self.containers = !self.containers,
            Pressed::Up(by) => self.position.scroll_up_by(by),
            Pressed::Down(by) => self.position.scroll_down_by(by),
            Pressed::Quit => {}
        }
    }
}

/// Draws everything anew. `troubles` is what is not up to date, and why.
pub(super) fn draw(frame: &mut Frame<'_>, board: &Board, choice: &mut Choice, troubles: &[String]) {
    let troubled = u16::try_from(troubles.len()).unwrap_or(u16::MAX);
    let [head, bad, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(troubled),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let total = board.total();
    let summary = format!(
        "{} sandboxes, {} running   cpu {}   memory {}",
        total.sandboxes,
        total.running,
        cpus(total.cpu),
        size(total.memory)
    );
    frame.render_widget(
        Line::styled(summary, Style::new().add_modifier(Modifier::BOLD)),
        head,
    );
    let troubles: Vec<_> = troubles.iter().map(|it| Line::from(it.as_str())).collect();
    let troubles = ratatui::text::Text::from(troubles).style(Style::new().fg(Color::Red));
    frame.render_widget(troubles, bad);
    let rows = board.rows(choice.order, choice.reverse, choice.containers);
    let rows = rows.iter().map(|row| {
        let style = match row.status {
            "RUNNING" => Style::new().fg(Color::Green),
            "" => Style::new().add_modifier(Modifier::DIM),
            _ => Style::new().fg(Color::Yellow),
        };
        Cells::new(cells(row)).style(style)
    });
    let table = Table::new(rows, WIDTHS)
        .header(Cells::new(TITLES).style(Style::new().add_modifier(Modifier::REVERSED)))
        .row_highlight_style(Style::new().add_modifier(Modifier::BOLD));
    frame.render_stateful_widget(table, body, &mut choice.position);
    frame.render_widget(
        Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM)),
        foot,
    );
}

/// The same once, as text.
pub(super) fn table(rows: &[Row]) -> String {
    output::table(TITLES, rows.iter().map(cells).collect())
}

fn cells(row: &Row) -> [String; 10] {
    let name = match row.container.as_str() {
        "" => row.sandbox.clone(),
        container => format!("  {container}"),
    };
    let limited = |used: String, limit: Option<String>| match limit {
        Some(limit) => format!("{used} / {limit}"),
        None => used,
    };
    let rates = &row.rates;
    let cpu_limit = (row.cpu_limit_millis > 0).then(|| cpus(f64::from(row.cpu_limit_millis) / 1e3));
    let memory_limit = (row.memory_limit > 0).then(|| size(row.memory_limit));
    let (of, share) = rates.pressure();
    let pressure = match share {
        it if it < 0.001 => "-".to_owned(),
        it => format!("{of} {:.1}%", it * 100.0),
    };
    [
        name,
        row.status.to_owned(),
        limited(cpus(rates.cpu), cpu_limit),
        limited(size(row.memory_working_set), memory_limit),
        per_second(rates.received),
        per_second(rates.sent),
        per_second(rates.read + rates.written),
        pressure,
        row.pids.to_string(),
        row.why.clone(),
    ]
}

fn cpus(cpus: f64) -> String {
    format!("{cpus:.2}")
}

fn per_second(bytes: f64) -> String {
    // A rate is finite and not negative; beyond 2^64 the largest number is shown.
    format!("{}/s", size(bytes.round() as u64))
}

#[cfg(test)]
mod tests;
