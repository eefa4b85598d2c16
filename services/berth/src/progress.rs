//! What people see on standard error while they wait: bars and spinners on a terminal, plain lines in a pipe.
//! It does not know what is waited for.

use std::{
    cell::RefCell,
    collections::HashMap,
    io::{self, IsTerminal as _},
    time::Duration,
};

use berth_api::v1;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output;

const SPINNER: &str = "{spinner} {msg} {elapsed}";
const BAR: &str = "{msg} [{bar:30}] {binary_bytes:>10}/{binary_total_bytes:<10}";
const READING: &str = "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec}";
const TICK: Duration = Duration::from_millis(100);

/// Shows that something is waited for, until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Absent in a pipe.
    spinner: Option<ProgressBar>,
    /// The last line in a pipe.
    said: RefCell<String>,
}

impl Waiting {
    /// A spinner with the time that has passed, or one line.
    pub(crate) fn start(message: String) -> Self {
        Self::with_template(message, SPINNER)
    }

    /// The same with the bytes that have passed.
    pub(crate) fn start_reading(message: String) -> Self {
        Self::with_template(message, READING)
    }

    fn with_template(message: String, template: &str) -> Self {
        if !io::stderr().is_terminal() {
            output::complain(&message);
            return Self {
                spinner: None,
                said: RefCell::new(message),
            };
        }
        let spinner = ProgressBar::new_spinner()
            .with_style(style(template))
            .with_message(message);
        spinner.enable_steady_tick(TICK);
        Self {
            spinner: Some(spinner),
            said: RefCell::default(),
        }
    }

    /// Says what is waited for instead; each text is one line in a pipe.
    pub(crate) fn say(&self, message: String) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(message),
            None => {
                let mut said = self.said.borrow_mut();
                if *said != message {
                    output::complain(&message);
                    *said = message;
                }
            }
        }
    }

    /// Counts bytes that have passed.
    pub(crate) fn add(&self, bytes: usize) {
        if let Some(spinner) = &self.spinner {
            spinner.inc(bytes as u64);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

/// Shows how far the layers of a pull are, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pulling {
    waiting: Waiting,
    bars: MultiProgress,
    by_digest: HashMap<String, ProgressBar>,
}

impl Pulling {
    pub(crate) fn start(image: &str) -> Self {
        let bars = MultiProgress::new();
        let mut waiting = Waiting::start(format!("pulling {image}"));
        waiting.spinner = waiting.spinner.take().map(|it| bars.add(it));
        Self {
            waiting,
            bars,
            by_digest: HashMap::new(),
        }
    }

    pub(crate) fn show(&mut self, progress: v1::PullProgress) {
        if self.waiting.spinner.is_none() {
            return;
        }
        for layer in progress.layers {
            let bar = self
                .by_digest
                .entry(layer.digest)
                .or_insert_with_key(|digest| {
                    let bar = ProgressBar::new(layer.total_bytes).with_style(style(BAR));
                    self.bars.add(bar.with_message(short(digest)))
                });
            bar.set_length(layer.total_bytes);
            bar.set_position(layer.current_bytes);
        }
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        for bar in self.by_digest.values() {
            bar.finish_and_clear();
        }
    }
}

/// The algorithm is the same for all, and twelve digits tell the layers of an image apart.
fn short(digest: &str) -> String {
    digest
        .split_once(':')
        .map_or(digest, |(_, hex)| hex)
        .chars()
        .take(12)
        .collect()
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a test reads every template")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid() {
        for template in [SPINNER, BAR, READING] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_digest_is_shown_by_its_first_digits() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("odd"), "odd");
    }
}
