//! The sandboxes that are read, and what was read of each: the whole of it, and each container.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
    time::Duration,
};

use crate::{
    figures::{Figures, WIDTH},
    history::{History, Sample},
};

/// Where the figures of a sandbox are found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) generation: u64,
    pub(crate) version: String,
    /// Relative to the roots of the hierarchies; each container's is below it, under its name.
    pub(crate) cgroup: String,
    /// The node's end of its link. Empty where it has none.
    pub(crate) interface: String,
    pub(crate) containers: Vec<String>,
}

/// One reading of a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) whole: Figures,
    /// By name.
    pub(crate) containers: Vec<(String, Figures)>,
}

/// All series, by the id of the sandbox.
#[derive(Debug)]
pub(crate) struct Book {
    keep: Duration,
    entries: BTreeMap<String, Entry>,
}

pub(crate) type SharedBook = Arc<RwLock<Book>>;

#[derive(Debug)]
struct Entry {
    watched: Arc<Watched>,
    whole: History<WIDTH>,
    containers: BTreeMap<String, History<WIDTH>>,
}

/// Samples of one series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// `None`: the whole sandbox.
    pub(crate) container: Option<String>,
    /// Oldest first, with milliseconds since 1970.
    pub(crate) samples: Vec<(u64, Figures)>,
}

/// Which samples are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Span {
    Latest,
    /// From and to, and at most one in so many milliseconds.
    Between(u64, u64, u64),
}

impl Book {
    pub(crate) fn new(keep: Duration) -> Self {
        Self {
            keep,
            entries: BTreeMap::new(),
        }
    }

    /// Takes a sandbox in. One of another generation begins anew.
    pub(crate) fn add(&mut self, id: &str, watched: Watched) {
        let keep = self.keep;
        match self.entries.get_mut(id) {
            Some(entry) if entry.watched.generation == watched.generation => {
                if *entry.watched != watched {
                    entry.watched = Arc::new(watched);
                }
            }
            Some(_) | None => {
                let entry = Entry {
                    watched: Arc::new(watched),
                    whole: History::new(keep),
                    containers: BTreeMap::new(),
                };
                self.entries.insert(id.to_owned(), entry);
            }
        }
    }

    /// Forgets a sandbox; one that is not known is fine.
    pub(crate) fn remove(&mut self, id: &str) {
        self.entries.remove(id);
    }

    /// Forgets what is not among `ids`.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.entries.retain(|id, _| keep(id));
    }

    pub(crate) fn watched(&self) -> Vec<(String, Arc<Watched>)> {
        let all = self.entries.iter();
        all.map(|(id, it)| (id.clone(), it.watched.clone()))
            .collect()
    }

    /// Adds a reading, unless the sandbox is gone or another one by now.
    pub(crate) fn record(&mut self, id: &str, generation: u64, round: Round) {
        let entry = self.entries.get_mut(id);
        let Some(entry) = entry.filter(|it| it.watched.generation == generation) else {
            return;
        };
        let sample = |figures: Figures| Sample {
            at: round.at,
            figures: figures.to_row(),
        };
        entry.whole.push(sample(round.whole));
        for (name, figures) in round.containers {
            let series = entry.containers.entry(name);
            let series = series.or_insert_with(|| History::new(self.keep));
            series.push(sample(figures));
        }
    }

    /// What there is of a sandbox, the whole of it first; `None` where it is not known.
    pub(crate) fn gather(
        &self,
        id: &str,
        span: Span,
        containers: bool,
    ) -> Option<(Arc<Watched>, Vec<Taken>)> {
        let entry = self.entries.get(id)?;
        let whole = std::iter::once((None, &entry.whole));
        let parts = entry.containers.iter().filter(|_| containers);
        let parts = parts.map(|(name, it)| (Some(name.clone()), it));
        let taken = whole.chain(parts).map(|(container, history)| Taken {
            container,
            samples: take(history, span),
        });
        let taken = taken.filter(|it| !it.samples.is_empty()).collect();
        Some((entry.watched.clone(), taken))
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// How many sandboxes and series there are, and the bytes that their samples take.
    pub(crate) fn size(&self) -> (usize, usize, usize) {
        let histories = || {
            let all = self.entries.values();
            all.flat_map(|it| it.containers.values().chain([&it.whole]))
        };
        let bytes = histories().map(History::size).sum();
        (self.entries.len(), histories().count(), bytes)
    }
}

fn take(history: &History<WIDTH>, span: Span) -> Vec<(u64, Figures)> {
    let of = |it: &Sample<WIDTH>| (it.at, Figures::of_row(&it.figures));
    let (from, to, step) = match span {
        Span::Latest => return history.last().iter().map(|it| of(it)).collect(),
        Span::Between(from, to, step) => (from, to, step.max(1)),
    };
    let mut samples: Vec<(u64, Figures)> = vec![];
    for sample in history.range(from, to) {
        match samples.last_mut() {
            Some(last) if last.0 / step == sample.at / step => *last = of(&sample),
            Some(_) | None => samples.push(of(&sample)),
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use berth_domain::usage::Usage;

    use super::*;

    fn figures(pids: u64) -> Figures {
        let usage = Usage {
            pids,
            ..Usage::default()
        };
        Figures {
            usage,
            traffic: None,
        }
    }

    fn watched(generation: u64) -> Watched {
        Watched {
            generation,
            containers: vec!["app".into()],
            ..Watched::default()
        }
    }

    fn round(at: u64, pids: u64) -> Round {
        Round {
            at,
            whole: figures(pids),
            containers: vec![("app".into(), figures(pids - 1))],
        }
    }

    fn book() -> Book {
        let mut book = Book::new(Duration::from_secs(900));
        book.add("web", watched(1));
        for second in 1..=5 {
            book.record("web", 1, round(second * 1000, second));
        }
        book
    }

    fn pids(book: &Book, span: Span) -> Vec<(Option<String>, Vec<u64>)> {
        let (_, taken) = book.gather("web", span, true).unwrap();
        let taken = taken.into_iter().map(|it| {
            let pids = it.samples.iter().map(|(_, it)| it.usage.pids).collect();
            (it.container, pids)
        });
        taken.collect()
    }

    #[test]
    fn the_latest_sample_or_a_range_is_told_of_the_whole_and_of_each_container() {
        let book = book();
        let app = Some("app".to_owned());
        assert_eq!(
            pids(&book, Span::Latest),
            [(None, vec![5]), (app.clone(), vec![4])]
        );
        let all = Span::Between(0, u64::MAX, 1);
        assert_eq!(
            pids(&book, all),
            [
                (None, vec![1, 2, 3, 4, 5]),
                (app.clone(), vec![0, 1, 2, 3, 4])
            ]
        );
        let thinned = Span::Between(2000, 5000, 2000);
        assert_eq!(
            pids(&book, thinned),
            [(None, vec![3, 5]), (app, vec![2, 4])]
        );
        let (_, whole) = book.gather("web", Span::Latest, false).unwrap();
        assert_eq!(whole.len(), 1);
    }

    #[test]
    fn nothing_is_said_of_a_sandbox_that_is_not_known() {
        let mut book = book();
        assert!(book.gather("db", Span::Latest, true).is_none());
        book.remove("db");
        book.remove("web");
        assert!(book.gather("web", Span::Latest, true).is_none());
        book.record("web", 1, round(9000, 9));
        assert!(
            book.gather("web", Span::Latest, true).is_none(),
            "its series are gone with it"
        );
        assert_eq!(book.size(), (0, 0, 0));
    }

    #[test]
    fn a_sandbox_that_was_made_anew_begins_anew_and_readings_of_the_former_one_are_dropped() {
        let mut book = book();
        book.add("web", watched(1));
        assert_eq!(pids(&book, Span::Latest)[0].1, [5], "the same one goes on");
        book.add("web", watched(2));
        book.record("web", 1, round(6000, 6));
        assert_eq!(pids(&book, Span::Latest), []);
        book.record("web", 2, round(7000, 7));
        assert_eq!(pids(&book, Span::Latest)[0].1, [7]);
    }
}
